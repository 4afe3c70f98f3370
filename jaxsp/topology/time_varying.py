"""Topologies that change from step to step."""

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from jaxsp._arguments import check_count, check_seed, check_workers, shown
from jaxsp.topology.graphs import powers_of_two, uniform
from jaxsp.topology.matrices import of_weights
from jaxsp.topology.mixing import TimeVarying, Topology

__all__ = ["from_sequence", "one_peer_exponential", "random_ring"]


def one_peer_exponential(n: int) -> TimeVarying:
    r"""Exponential graph with one edge a step.

    In step $t$ worker $m$ hears from $m + 2^{t \bmod T}$, $T = \lceil \log_2 n \rceil$,
    with weights 1/2. Where $n$ is a power of 2, $T$ steps average exactly.

    Args:
      n: the number of workers.

    Returns:
      A sequence of $T$ topologies of one permute each.

    Raises:
      ValueError: `n` is not an integer of at least 1.

    Example:
      >>> from jaxsp import topology
      >>> W1, W2 = topology.one_peer_exponential(4).matrices
      >>> (W2 @ W1)[0]
      array([0.25, 0.25, 0.25, 0.25])

    References:
      Ying, Yuan, Chen, Hu, Pan, Yin, *Exponential graph is provably efficient for
      decentralized deep training*, NeurIPS 2021, arXiv 2110.13363.
    """
    n = check_workers("n", n)
    worker = np.arange(n)
    members = [
        uniform(f"exponential, hop {hop}", [(worker + hop) % n])
        for hop in powers_of_two(n) or [0]
    ]
    return TimeVarying("one_peer_exponential", tuple(members))


def random_ring(n: int, pool: int = 32, seed: int = 0) -> TimeVarying:
    r"""In each step the undirected ring over a random order of the workers.

    Weights 1/3. A permutation must be known when a step is compiled, so the rings are
    drawn here, once: at most `pool` different ones of the $(n - 1)!/2$ that there are.
    The transformation that mixes draws one of them in every step, from a key that all
    workers share.

    Args:
      n: the number of workers.
      pool: the largest number of different rings.
      seed: an integer of at least 0, from which the pool is drawn.

    Returns:
      A sequence with `random=True`, of topologies of 2 permutes.

    Raises:
      ValueError: `n` or `pool` is not an integer of at least 1, or `seed` not one of at
        least 0.

    Example:
      >>> from jaxsp import topology
      >>> topology.random_ring(16)
      TimeVarying('random_ring', size=16, members=32, random=True, lambda2=0.6216)
    """
    n, pool = check_workers("n", n), check_count("pool", pool)
    rng = np.random.default_rng(check_seed(seed))
    count = min(pool, max(1, math.factorial(min(n - 1, 20)) // 2))
    orders: dict[tuple[int, ...], None] = {}  # cycles from 0, one direction of each
    while len(orders) < count:
        order = [0, *(1 + rng.permutation(n - 1)).tolist()]
        if n > 2 and order[1] > order[-1]:
            order[1:] = order[:0:-1]
        orders[tuple(order)] = None
    members = []
    for order in orders:
        before, after = np.empty(n, dtype=int), np.empty(n, dtype=int)
        before[list(order)] = np.roll(order, 1)
        after[list(order)] = np.roll(order, -1)
        members.append(uniform("ring in random order", [before, after]))
    return TimeVarying("random_ring", tuple(members), random=True)


def from_sequence(
    members: Iterable[Topology | npt.ArrayLike], random: bool = False
) -> TimeVarying:
    r"""Time-varying topology of the given members.

    Args:
      members: topologies, or mixing matrices as `from_matrix` takes them.
      random: whether a step draws its member uniformly; otherwise step $t$ uses member
        $t \bmod T$.

    Returns:
      The sequence.

    Raises:
      ValueError: no sequence, no members, different sizes, a time-varying member, or
        a matrix that `from_matrix` refuses.

    Example:
      >>> from jaxsp import topology
      >>> pairs = topology.from_matrix([[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1]])
      >>> topology.from_sequence([pairs, topology.path(3)]).diameter
      2
    """
    if isinstance(members, Topology | TimeVarying) or not isinstance(members, Iterable):
        raise ValueError(
            f"members must be a sequence of topologies or matrices, got "
            f"{shown(members)}; write from_sequence([ring(4), complete(4)])"
        )
    fixed = [
        member
        if isinstance(member, Topology | TimeVarying)
        else of_weights(f"members[{i}]", member)
        for i, member in enumerate(members)
    ]
    return TimeVarying("from_sequence", tuple(fixed), random=random)  # type: ignore
