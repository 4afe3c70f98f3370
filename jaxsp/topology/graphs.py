"""Graphs and their mixing matrices, as static NumPy data.

Every function here makes a `Topology`, one doubly stochastic matrix W, or a
`TimeVarying` sequence of them. Row m of W weighs what worker m receives.

Example:
  >>> from jaxsp import topology
  >>> ring = topology.ring(20)
  >>> ring
  Topology('ring', size=20, rounds=2, lambda2=0.9674)
  >>> ring.diameter, round(ring.chi, 2)
  (10, 40.86)

References:
  Xiao, Boyd, *Fast linear iterations for distributed averaging*, Systems & Control
  Letters 53, 2004.
"""

import itertools
import math
import numbers
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from jaxsp.topology.mixing import Matrix, TimeVarying, Topology
from jaxsp.topology.permutations import decompose

__all__ = [
    "TimeVarying",
    "Topology",
    "complete",
    "erdos_renyi",
    "exponential",
    "from_graph",
    "from_matrix",
    "from_sequence",
    "lazy",
    "metropolis_hastings",
    "one_peer_exponential",
    "path",
    "random_ring",
    "ring",
    "star",
    "torus",
]

_ERDOS_RENYI_TRIES = 1000


def ring(n: int) -> Topology:
    """Undirected cycle, weights 1/3 on a worker and its two neighbours.

        λ_k = 1/3 + (2/3) cos(2πk/n)

    Two workers make one exchange, with weights 1/2.

    Args:
      n: number of workers.

    Returns:
      A topology of 2 rounds.

    Raises:
      ValueError: `n` is not an integer ≥ 1.

    Example:
      >>> from jaxsp import topology
      >>> topology.ring(4).permutations
      array([[3, 0, 1, 2],
             [1, 2, 3, 0]])
    """
    n = _integer("n", n)
    worker = np.arange(n)
    return _uniform("ring", [(worker - 1) % n, (worker + 1) % n])


def torus(rows: int, cols: int) -> Topology:
    """Two-dimensional periodic grid, worker (i, j) being number i * cols + j.

    Uniform weights on a worker and its *different* neighbours: 1/5 for rows and
    cols ≥ 3. Along a side of 2 both neighbours are one worker, along a side of 1 there
    is none; `torus(1, n)` is `ring(n)`.

    Args:
      rows: number of rows.
      cols: number of columns.

    Returns:
      A topology of at most 4 rounds.

    Raises:
      ValueError: `rows` or `cols` is not an integer ≥ 1.

    Example:
      >>> from jaxsp import topology
      >>> topology.torus(3, 4)
      Topology('torus', size=12, rounds=4, lambda2=0.6)
      >>> topology.torus(2, 4)
      Topology('torus', size=8, rounds=3, lambda2=0.5)
    """
    rows, cols = _integer("rows", rows), _integer("cols", cols)
    worker = np.arange(rows * cols).reshape(rows, cols)
    moves = itertools.product((1, 0), (1, -1))
    return _uniform("torus", [np.roll(worker, by, axis).ravel() for axis, by in moves])


def exponential(n: int) -> Topology:
    """Static exponential graph: worker m hears from m + 2^k, all k < ⌈log₂ n⌉.

    Uniform weights 1/(⌈log₂ n⌉ + 1); directed, circulant, doubly stochastic. For even
    n, λ₂ = 1 − 2/(⌈log₂ n⌉ + 1).

    Args:
      n: number of workers.

    Returns:
      A topology of ⌈log₂ n⌉ rounds.

    Raises:
      ValueError: `n` is not an integer ≥ 1.

    Example:
      >>> from jaxsp import topology
      >>> topology.exponential(16)
      Topology('exponential', size=16, rounds=4, lambda2=0.6)

    References:
      Ying, Yuan, Chen, Hu, Pan, Yin, *Exponential graph is provably efficient for
      decentralized deep training*, NeurIPS 2021, arXiv 2110.13363.
    """
    n = _integer("n", n)
    worker = np.arange(n)
    return _uniform(
        "exponential", [(worker + hop) % n for hop in _powers_of_two(n)] or [worker]
    )


def one_peer_exponential(n: int) -> TimeVarying:
    """Exponential graph with one edge a step: m hears from m + 2^(t mod ⌈log₂ n⌉).

    Weights 1/2. For n a power of two, log₂ n steps average exactly.

    Args:
      n: number of workers.

    Returns:
      A sequence of ⌈log₂ n⌉ topologies of one round each.

    Raises:
      ValueError: `n` is not an integer ≥ 1.

    Example:
      >>> from jaxsp import topology
      >>> W1, W2 = topology.one_peer_exponential(4).matrices
      >>> (W2 @ W1)[0]
      array([0.25, 0.25, 0.25, 0.25])

    References:
      Ying, Yuan, Chen, Hu, Pan, Yin, *Exponential graph is provably efficient for
      decentralized deep training*, NeurIPS 2021, arXiv 2110.13363.
    """
    n = _integer("n", n)
    worker = np.arange(n)
    members = [
        _uniform(f"exponential, hop {hop}", [(worker + hop) % n])
        for hop in _powers_of_two(n) or [0]
    ]
    return TimeVarying("one_peer_exponential", tuple(members))


def complete(n: int) -> Topology:
    """All workers joined, W = J = 11ᵀ/n: one mixing averages exactly.

    Args:
      n: number of workers.

    Returns:
      A topology of n − 1 rounds. An all-reduce computes the same with less traffic.

    Raises:
      ValueError: `n` is not an integer ≥ 1.

    Example:
      >>> from jaxsp import topology
      >>> topology.complete(8)
      Topology('complete', size=8, rounds=7, lambda2=0)
    """
    n = _integer("n", n)
    worker = np.arange(n)
    return _uniform("complete", [(worker + hop) % n for hop in range(n)])


def star(n: int) -> Topology:
    """Worker 0 joined to all the others, Metropolis–Hastings weights 1/n.

    Args:
      n: number of workers.

    Returns:
      A topology of n − 1 rounds: only worker 0 is busy in all of them.

    Raises:
      ValueError: `n` is not an integer ≥ 1.

    Example:
      >>> from jaxsp import topology
      >>> topology.star(5)
      Topology('star', size=5, rounds=4, lambda2=0.8)
      >>> topology.star(5).messages()[0]
      array([4, 1, 1, 1, 1])
    """
    n = _integer("n", n)
    adjacency = np.zeros((n, n))
    adjacency[0, 1:] = adjacency[1:, 0] = 1
    return _from_adjacency("star", adjacency)


def path(n: int) -> Topology:
    """Workers 0, 1, …, n − 1 in a line, Metropolis–Hastings weights.

        λ_k = 1/3 + (2/3) cos(πk/n)    (n ≥ 3)

    Args:
      n: number of workers.

    Returns:
      A topology of 2 rounds.

    Raises:
      ValueError: `n` is not an integer ≥ 1.

    Example:
      >>> from jaxsp import topology
      >>> topology.path(5).permutations
      array([[1, 0, 3, 2, 4],
             [0, 2, 1, 4, 3]])
    """
    n = _integer("n", n)
    return _from_adjacency("path", np.eye(n, k=1) + np.eye(n, k=-1))


def erdos_renyi(n: int, p: float, seed: int) -> Topology:
    """Random graph in which each pair is joined with probability p, connected.

    Graphs are drawn from the seed until one is connected: the result follows
    G(n, p) given that it is connected. Metropolis–Hastings weights.

    Args:
      n: number of workers.
      p: probability of an edge, in (0, 1].
      seed: integer ≥ 0; the same seed gives the same graph.

    Returns:
      A topology with as many rounds as the largest degree.

    Raises:
      ValueError: an argument is out of range, or 1000 graphs in a row were
        disconnected (`p` well below log(n)/n).

    Example:
      >>> from jaxsp import topology
      >>> topology.erdos_renyi(10, 0.4, seed=0).diameter
      3
    """
    n = _integer("n", n)
    if isinstance(p, bool) or not isinstance(p, numbers.Real) or not 0 < p <= 1:
        raise ValueError(f"p must be a number in (0, 1], got {p!r}; write p=0.5")
    rng = np.random.default_rng(_integer("seed", seed, least=0))
    for _ in range(_ERDOS_RENYI_TRIES):
        upper = np.triu(rng.random((n, n)) < p, k=1)
        if _connected(adjacency := upper | upper.T):
            return _from_adjacency("erdos_renyi", adjacency)
    raise ValueError(
        f"p must be large enough for a connected graph, got p={p} with n={n}: "
        f"{_ERDOS_RENYI_TRIES} draws were all disconnected; write p above "
        f"log(n)/n = {math.log(n) / n:.3g}"
    )


def random_ring(n: int, pool: int = 32, seed: int = 0) -> TimeVarying:
    """At each step the undirected ring over a random order of the workers.

    Weights 1/3. Rings come from a pool that is drawn here, once, because a permutation
    must be known when a step is compiled: a step then costs two collective permutes,
    and takes one of `min(pool, (n − 1)!/2)` different rings. Which one is drawn by the
    transformation that mixes, from a key that all workers share.

    Args:
      n: number of workers.
      pool: largest number of different rings.
      seed: integer ≥ 0 from which the pool is drawn.

    Returns:
      A sequence with `random=True`, of topologies of 2 rounds.

    Raises:
      ValueError: `n` or `pool` is not an integer ≥ 1, or `seed` not one ≥ 0.

    Example:
      >>> from jaxsp import topology
      >>> topology.random_ring(16)
      TimeVarying('random_ring', size=16, members=32, random=True, lambda2=0.6216)
    """
    n, pool = _integer("n", n), _integer("pool", pool)
    rng = np.random.default_rng(_integer("seed", seed, least=0))
    count = min(pool, max(1, math.factorial(n - 1) // 2))
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
        members.append(_uniform("ring in random order", [before, after]))
    return TimeVarying("random_ring", tuple(members), random=True)


def from_matrix(W: npt.ArrayLike) -> Topology:
    """Topology of any doubly stochastic matrix, which is kept exactly.

    Args:
      W: (n, n), nonnegative, rows and columns summing to 1 within 1e-9;
        `W[m, j]` weighs what m receives from j. It need not be symmetric or
        connected.

    Returns:
      A topology with as many rounds as the largest number of off-diagonal
      entries in a row or column, and `to_matrix()` equal to W.

    Raises:
      ValueError: `W` is not such a matrix.

    Example:
      >>> from jaxsp import topology
      >>> topology.from_matrix([[0.5, 0.5, 0], [0, 0.5, 0.5], [0.5, 0, 0.5]])
      Topology('from_matrix', size=3, rounds=1, lambda2=0.5)
    """
    matrix = _square("W", W)
    hint = (
        "write from_matrix(metropolis_hastings(adjacency)) for the weights of an "
        "undirected graph, and compute your own weights in float64"
    )
    if (matrix < 0).any():
        m, j = np.argwhere(matrix < 0)[0]
        raise ValueError(
            f"W must be nonnegative, got W[{m}, {j}] = {matrix[m, j]}; {hint}"
        )
    for axis, line in ((1, "row"), (0, "column")):
        sums = matrix.sum(axis=axis)
        worst = int(np.abs(sums - 1).argmax())
        if abs(sums[worst] - 1) > 1e-9:
            raise ValueError(
                f"each {line} of W must sum to 1 within 1e-9, got {sums[worst]} for "
                f"{line} {worst}; {hint}"
            )
    return _from_matrix("from_matrix", matrix)


def from_graph(graph: Any) -> Topology:
    """Topology of a connected undirected networkx graph, Metropolis–Hastings weights.

    Worker m is the m-th node of `graph.nodes`. Self loops, edge weights and repeated
    edges are ignored.

    Args:
      graph: a `networkx.Graph`, or anything with its `nodes` and `edges`.

    Returns:
      A topology with as many rounds as the largest degree.

    Raises:
      ValueError: `graph` is no graph, has no nodes, or is directed or disconnected.

    Example:
      >>> import networkx
      >>> from jaxsp import topology
      >>> topology.from_graph(networkx.petersen_graph())
      Topology('from_graph', size=10, rounds=3, lambda2=0.5)
    """
    if not hasattr(graph, "nodes") or not hasattr(graph, "edges"):
        raise ValueError(
            "graph must have nodes and edges as networkx.Graph has, got "
            f"{type(graph).__name__}; write from_matrix(W) for a mixing matrix"
        )
    if hasattr(graph, "is_directed") and graph.is_directed():
        raise ValueError(
            "graph must be undirected, got a directed one, whose Metropolis–Hastings "
            "weights are not doubly stochastic; write from_matrix(W) with your weights"
        )
    index = {node: m for m, node in enumerate(graph.nodes)}
    if not index:
        raise ValueError("graph must have at least one node, got none")
    adjacency = np.zeros((len(index), len(index)), dtype=bool)
    for u, v, *_ in graph.edges:
        adjacency[index[u], index[v]] = adjacency[index[v], index[u]] = True
    if not _connected(adjacency):
        raise ValueError(
            "graph must be connected, got one whose parts would never agree; add "
            "edges, or write from_matrix(W) if that is meant"
        )
    return _from_adjacency("from_graph", adjacency)


def from_sequence(
    members: Iterable[Topology | npt.ArrayLike], random: bool = False
) -> TimeVarying:
    """Time-varying topology of the given members.

    Args:
      members: topologies, or mixing matrices as `from_matrix` takes them.
      random: whether a step draws its member uniformly; otherwise step t uses
        member t mod T.

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
            f"members must be a sequence of topologies or matrices, got {members!r}; "
            "write from_sequence([ring(4), complete(4)])"
        )
    fixed = [
        member if isinstance(member, Topology | TimeVarying) else from_matrix(member)
        for member in members
    ]
    return TimeVarying("from_sequence", tuple(fixed), random=random)  # type: ignore


def metropolis_hastings(adjacency: npt.ArrayLike) -> Matrix:
    """Metropolis–Hastings weights of an undirected graph.

        W_ij = 1 / (1 + max(d_i, d_j)) on edges,    W_ii = 1 − Σ_{j≠i} W_ij

    Args:
      adjacency: (n, n) symmetric, nonzero where there is an edge; its
        diagonal and the size of its entries are ignored.

    Returns:
      W, symmetric and doubly stochastic, (n, n) float64.

    Raises:
      ValueError: `adjacency` is not a symmetric square matrix.

    Example:
      >>> from jaxsp import topology
      >>> topology.metropolis_hastings([[0, 1, 1], [1, 0, 0], [1, 0, 0]]).round(3)
      array([[0.333, 0.333, 0.333],
             [0.333, 0.667, 0.   ],
             [0.333, 0.   , 0.667]])

    References:
      Xiao, Boyd, *Fast linear iterations for distributed averaging*, Systems &
      Control Letters 53, 2004.
    """
    edges = _square("adjacency", adjacency) != 0
    if (edges != edges.T).any():
        m, j = np.argwhere(edges != edges.T)[0]
        raise ValueError(
            "adjacency must be symmetric, got an edge in only one direction between "
            f"{m} and {j}; write adjacency | adjacency.T to join them both ways"
        )
    np.fill_diagonal(edges, False)
    degree = edges.sum(axis=1)
    W = np.where(edges, 1 / (1 + np.maximum.outer(degree, degree)), 0.0)
    np.fill_diagonal(W, 1 - W.sum(axis=1))
    return W


def lazy(topology: Topology | npt.ArrayLike) -> Topology:
    """Lazy mixing (I + W)/2, whose eigenvalues are ≥ 0 for symmetric W.

    Args:
      topology: a fixed topology, or a mixing matrix as `from_matrix` takes it.

    Returns:
      A topology with the same rounds.

    Raises:
      ValueError: `topology` is time-varying, or a matrix that `from_matrix`
        refuses.

    Example:
      >>> from jaxsp import topology
      >>> topology.lazy(topology.ring(4)).to_matrix()[0].round(3)
      array([0.667, 0.167, 0.   , 0.167])
    """
    if isinstance(topology, TimeVarying):
        raise ValueError(
            f"topology must be fixed, got {topology!r}; write from_sequence([lazy(m) "
            "for m in topology.members], topology.random)"
        )
    fixed = topology if isinstance(topology, Topology) else from_matrix(topology)
    return Topology(
        name=f"lazy {fixed.name}",
        self_weights=(1 + fixed.self_weights) / 2,
        permutations=fixed.permutations,
        weights=fixed.weights / 2,
    )


def _uniform(name: str, sources: Sequence[npt.NDArray[np.int64]]) -> Topology:
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


def _from_matrix(name: str, matrix: Matrix) -> Topology:
    return Topology(name, np.diag(matrix), *decompose(matrix))


def _from_adjacency(name: str, adjacency: npt.NDArray) -> Topology:
    return _from_matrix(name, metropolis_hastings(adjacency))


def _powers_of_two(n: int) -> list[int]:
    """1, 2, 4, … below n: ⌈log₂ n⌉ of them."""
    return [2**k for k in range((n - 1).bit_length())]


def _connected(adjacency: npt.NDArray[np.bool_]) -> bool:
    reached = np.zeros(len(adjacency), dtype=bool)
    frontier = np.arange(len(adjacency)) == 0
    while frontier.any():
        reached |= frontier
        frontier = adjacency[frontier].any(axis=0) & ~reached
    return bool(reached.all())


def _integer(argument: str, value: Any, least: int = 1) -> int:
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        given = f"{value!r} of type {type(value).__name__}"
    elif value < least:
        given = f"{value}"
    else:
        return int(value)
    raise ValueError(
        f"{argument} must be an integer >= {least}, got {given}; "
        f"write {argument}={max(least, 8)}"
    )


def _square(argument: str, value: Any) -> Matrix:
    """The argument as a new, finite, square float64 matrix."""
    try:
        array = np.asarray(value)
    except ValueError as error:  # rows of different lengths
        raise ValueError(f"{argument} must be a square matrix: {error}") from error
    if array.dtype.kind not in "biuf":
        raise ValueError(
            f"{argument} must be a matrix of real numbers, got "
            f"{type(value).__name__} with dtype {array.dtype}; write a NumPy array"
        )
    if array.ndim != 2 or array.shape[0] != array.shape[1] or array.size == 0:
        raise ValueError(
            f"{argument} must be a square matrix with one row a worker, got shape "
            f"{array.shape}; write an (n, n) array"
        )
    if not np.isfinite(array).all():
        m, j = np.argwhere(~np.isfinite(array))[0]
        raise ValueError(
            f"{argument} must be finite, got {argument}[{m}, {j}] = {array[m, j]}"
        )
    return array.astype(np.float64)
