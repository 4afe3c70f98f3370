"""Topologies of any mixing matrix, and the matrix of any undirected graph.

References:
  Xiao, Boyd, *Fast linear iterations for distributed averaging*, Systems & Control
  Letters 53, 2004.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from jaxsp._arguments import check_array
from jaxsp.topology.mixing import Matrix, TimeVarying, Topology
from jaxsp.topology.permutations import decompose

__all__ = [
    "from_adjacency",
    "from_graph",
    "from_matrix",
    "is_connected",
    "lazy",
    "metropolis_hastings",
    "of_weights",
]


def from_matrix(W: npt.ArrayLike) -> Topology:
    """Topology of any doubly stochastic matrix, which is kept exactly.

    Args:
      W: $(n, n)$, nonnegative, rows and columns summing to 1 within 1e-9; `W[m, j]`
        weighs what $m$ receives from $j$. It need not be symmetric or connected.

    Returns:
      A topology with as many permutes as a row or column has off-diagonal entries at
      most, and `to_matrix()` equal to $W$.

    Raises:
      ValueError: `W` is not such a matrix.

    Example:
      >>> from jaxsp import topology
      >>> topology.from_matrix([[0.5, 0.5, 0], [0, 0.5, 0.5], [0.5, 0, 0.5]])
      Topology('from_matrix', size=3, permutes=1, lambda2=0.5)
    """
    return of_weights("W", W)


def of_weights(name: str, value: Any) -> Topology:
    """As `from_matrix`, of an argument of that name."""
    matrix = _square(name, value)
    hint = (
        "write from_matrix(metropolis_hastings(adjacency)) for the weights of an "
        "undirected graph, and compute your own weights in float64"
    )
    if (matrix < 0).any():
        m, j = np.argwhere(matrix < 0)[0]
        raise ValueError(
            f"{name} must be nonnegative, got {name}[{m}, {j}] = {matrix[m, j]}; {hint}"
        )
    for axis, line in ((1, "row"), (0, "column")):
        sums = matrix.sum(axis=axis)
        worst = int(np.abs(sums - 1).argmax())
        if abs(sums[worst] - 1) > 1e-9:
            raise ValueError(
                f"each {line} of {name} must sum to 1 within 1e-9, got "
                f"{sums[worst]} for {line} {worst}; {hint}"
            )
    return _of_matrix("from_matrix", matrix)


def from_graph(graph: Any) -> Topology:
    """Topology of a connected undirected networkx graph, Metropolis–Hastings weights.

    Worker $m$ is the node number $m$ of `graph.nodes`. Self loops, edge weights and
    repeated edges are ignored.

    Args:
      graph: a `networkx.Graph`, or anything with its `nodes` and `edges`.

    Returns:
      A topology with as many permutes as the largest degree.

    Raises:
      ValueError: `graph` is no graph, has no nodes, or is directed or disconnected.

    Example:
      >>> import networkx
      >>> from jaxsp import topology
      >>> topology.from_graph(networkx.petersen_graph())
      Topology('from_graph', size=10, permutes=3, lambda2=0.5)
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
    if not is_connected(adjacency):
        raise ValueError(
            "graph must be connected, got one whose parts would never agree; add "
            "edges, or write from_matrix(W) if that is meant"
        )
    return from_adjacency("from_graph", adjacency)


def metropolis_hastings(adjacency: npt.ArrayLike) -> Matrix:
    r"""Metropolis–Hastings weights of an undirected graph with degrees $d_i$.

    $$W_{ij} = \frac1{1 + \max(d_i, d_j)} \text{ on edges}, \qquad
    W_{ii} = 1 - \sum_{j \ne i} W_{ij}.$$

    Args:
      adjacency: $(n, n)$, symmetric, nonzero where there is an edge; its
        diagonal and the size of its entries are ignored.

    Returns:
      $W$, symmetric and doubly stochastic, a float64 array.

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
    """Lazy mixing $(I + W)/2$, whose eigenvalues are at least 0 for symmetric $W$.

    Args:
      topology: a fixed topology, or a mixing matrix as `from_matrix` takes it.

    Returns:
      A topology with the same permutes.

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
    fixed = (
        topology if isinstance(topology, Topology) else of_weights("topology", topology)
    )
    return Topology(
        name=f"lazy {fixed.name}",
        self_weights=(1 + fixed.self_weights) / 2,
        permutations=fixed.permutations,
        weights=fixed.weights / 2,
    )


def from_adjacency(name: str, adjacency: npt.NDArray) -> Topology:
    """The Metropolis–Hastings topology of an undirected graph."""
    return _of_matrix(name, metropolis_hastings(adjacency))


def _of_matrix(name: str, matrix: Matrix) -> Topology:
    return Topology(name, np.diag(matrix), *decompose(matrix))


def is_connected(adjacency: npt.NDArray[np.bool_]) -> bool:
    """Whether an undirected graph is connected."""
    from scipy.sparse import csgraph  # a quarter of a second

    return csgraph.connected_components(adjacency, directed=False)[0] == 1


def _square(argument: str, value: Any) -> Matrix:
    """The argument as a new, finite, square float64 matrix."""
    array = check_array(argument, value)
    if array.ndim != 2 or array.shape[0] != array.shape[1] or array.size == 0:
        raise ValueError(
            f"{argument} must be a square matrix with one row a worker, got shape "
            f"{array.shape}; write an (n, n) array"
        )
    return array.astype(np.float64)
