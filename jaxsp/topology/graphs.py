"""Graphs by name, each with its mixing matrix.

Every function makes a `Topology`, one doubly stochastic matrix $W$. Row $m$ of $W$
weighs what worker $m$ receives.

Example:
  >>> from jaxsp import topology
  >>> ring = topology.ring(20)
  >>> ring
  Topology('ring', size=20, permutes=2, lambda2=0.9674)
  >>> ring.diameter, round(ring.chi, 2)
  (10, 40.86)
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from jaxsp._arguments import check_probability, check_seed, check_workers
from jaxsp.topology.matrices import from_adjacency, is_connected
from jaxsp.topology.mixing import Topology

__all__ = [
    "complete",
    "erdos_renyi",
    "exponential",
    "path",
    "powers_of_two",
    "ring",
    "star",
    "torus",
    "uniform",
]

_TRIES = 1000  # random graphs that may be disconnected


def ring(n: int) -> Topology:
    r"""Undirected cycle, weights 1/3 on a worker and its two neighbours.

    $$\lambda_k = \tfrac13 + \tfrac23 \cos(2\pi k/n).$$

    Two workers make one exchange, with weights 1/2.

    Args:
      n: the number of workers.

    Returns:
      A topology of 2 permutes.

    Raises:
      ValueError: `n` is not an integer of at least 1.

    Example:
      >>> from jaxsp import topology
      >>> topology.ring(4).permutations
      array([[3, 0, 1, 2],
             [1, 2, 3, 0]])
    """
    n = check_workers("n", n)
    worker = np.arange(n)
    return uniform("ring", [(worker - 1) % n, (worker + 1) % n])


def torus(rows: int, cols: int) -> Topology:
    """Two-dimensional periodic grid, worker (i, j) being number `i * cols + j`.

    Equal weights on a worker and its *different* neighbours: 1/5 where `rows` and
    `cols` are at least 3. Along a side of 2 both neighbours are one worker, along a
    side of 1 there is none; `torus(1, n)` is `ring(n)`.

    Args:
      rows: the number of rows.
      cols: the number of columns.

    Returns:
      A topology of at most 4 permutes.

    Raises:
      ValueError: `rows` or `cols` is not an integer of at least 1.

    Example:
      >>> from jaxsp import topology
      >>> topology.torus(3, 4)
      Topology('torus', size=12, permutes=4, lambda2=0.6)
      >>> topology.torus(2, 4)
      Topology('torus', size=8, permutes=3, lambda2=0.5)
    """
    rows, cols = check_workers("rows", rows), check_workers("cols", cols)
    check_workers("rows * cols", rows * cols)
    worker = np.arange(rows * cols).reshape(rows, cols)
    moves = itertools.product((1, 0), (1, -1))
    return uniform("torus", [np.roll(worker, by, axis).ravel() for axis, by in moves])


def exponential(n: int) -> Topology:
    r"""Static exponential graph: a worker hears from those 1, 2, 4, ... places on.

    Worker $m$ hears from $m + 2^k$ for all $k < T = \lceil \log_2 n \rceil$, with equal
    weights $1/(T + 1)$. The graph is directed and circulant. For even $n$,
    $\lambda_2 = 1 - 2/(T + 1)$.

    Args:
      n: the number of workers.

    Returns:
      A topology of $T$ permutes.

    Raises:
      ValueError: `n` is not an integer of at least 1.

    Example:
      >>> from jaxsp import topology
      >>> topology.exponential(16)
      Topology('exponential', size=16, permutes=4, lambda2=0.6)

    References:
      Ying, Yuan, Chen, Hu, Pan, Yin, *Exponential graph is provably efficient for
      decentralized deep training*, NeurIPS 2021, arXiv 2110.13363.
    """
    n = check_workers("n", n)
    worker = np.arange(n)
    return uniform(
        "exponential", [(worker + hop) % n for hop in powers_of_two(n)] or [worker]
    )


def complete(n: int) -> Topology:
    r"""All workers joined, $W = J = 11^\top/n$: one mixing averages exactly.

    Args:
      n: the number of workers.

    Returns:
      A topology of $n - 1$ permutes. An all-reduce computes the same with less traffic.

    Raises:
      ValueError: `n` is not an integer of at least 1.

    Example:
      >>> from jaxsp import topology
      >>> topology.complete(8)
      Topology('complete', size=8, permutes=7, lambda2=0)
    """
    n = check_workers("n", n)
    worker = np.arange(n)
    return uniform("complete", [(worker + hop) % n for hop in range(n)])


def star(n: int) -> Topology:
    """Worker 0 joined to all the others, Metropolis–Hastings weights $1/n$.

    Args:
      n: the number of workers.

    Returns:
      A topology of $n - 1$ permutes: only worker 0 is busy in all of them.

    Raises:
      ValueError: `n` is not an integer of at least 1.

    Example:
      >>> from jaxsp import topology
      >>> topology.star(5)
      Topology('star', size=5, permutes=4, lambda2=0.8)
      >>> topology.star(5).messages()[0]
      array([4, 1, 1, 1, 1])
    """
    n = check_workers("n", n)
    adjacency = np.zeros((n, n))
    adjacency[0, 1:] = adjacency[1:, 0] = 1
    return from_adjacency("star", adjacency)


def path(n: int) -> Topology:
    r"""Workers in a line, in their order, Metropolis–Hastings weights.

    $$\lambda_k = \tfrac13 + \tfrac23 \cos(\pi k/n) \qquad (n \ge 3).$$

    Args:
      n: the number of workers.

    Returns:
      A topology of 2 permutes.

    Raises:
      ValueError: `n` is not an integer of at least 1.

    Example:
      >>> from jaxsp import topology
      >>> topology.path(5).permutations
      array([[1, 0, 3, 2, 4],
             [0, 2, 1, 4, 3]])
    """
    n = check_workers("n", n)
    return from_adjacency("path", np.eye(n, k=1) + np.eye(n, k=-1))


def erdos_renyi(n: int, p: float, seed: int) -> Topology:
    r"""Connected random graph in which each pair is joined with probability $p$.

    Graphs are drawn from the seed until one is connected: the result follows
    $G(n, p)$ given that it is connected. Metropolis–Hastings weights.

    Args:
      n: the number of workers.
      p: the probability of an edge, in (0, 1].
      seed: an integer of at least 0; the same seed gives the same graph.

    Returns:
      A topology with as many permutes as the largest degree.

    Raises:
      ValueError: an argument is out of range, or 1000 graphs in a row were
        disconnected (`p` well below $\log(n)/n$).

    Example:
      >>> from jaxsp import topology
      >>> topology.erdos_renyi(10, 0.4, seed=0).diameter
      3
    """
    n = check_workers("n", n)
    check_probability("p", p)
    rng = np.random.default_rng(check_seed(seed))
    for _ in range(_TRIES):
        upper = np.triu(rng.random((n, n)) < p, k=1)
        if is_connected(adjacency := upper | upper.T):
            return from_adjacency("erdos_renyi", adjacency)
    raise ValueError(
        f"p must be large enough for a connected graph, got p={p} with n={n}: "
        f"{_TRIES} draws were all disconnected; write p above "
        f"log(n)/n = {math.log(n) / n:.3g}"
    )


def uniform(name: str, sources: Sequence[npt.NDArray[np.int64]]) -> Topology:
    """Equal weights on a worker and its sources, repeats and identities left out."""
    identity = np.arange(len(sources[0]))
    distinct = {s.tobytes(): s for s in sources if (s != identity).any()}
    shape = len(distinct), len(identity)
    weight = 1 / (1 + len(distinct))
    return Topology(
        name=name,
        self_weights=np.full(len(identity), weight),
        permutations=np.array(list(distinct.values()), dtype=int).reshape(shape),
        weights=np.full(shape, weight),
    )


def powers_of_two(n: int) -> list[int]:
    """The powers 1, 2, 4, ... below `n`."""
    return [2**k for k in range((n - 1).bit_length())]
