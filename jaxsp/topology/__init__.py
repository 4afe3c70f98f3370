"""Graphs and their mixing matrices, as static NumPy data.

`graphs` has the graphs by name, `matrices` those of any mixing matrix or graph, and
`time_varying` those that change from step to step. `mixing` has what they make: a
`Topology`, which is one doubly stochastic matrix $W$, or a `TimeVarying` sequence of
them. `permutations` turns a matrix into the fewest full permutations, one for each
message that a worker sends.
"""

from jaxsp.topology.graphs import (
    complete,
    erdos_renyi,
    exponential,
    path,
    ring,
    star,
    torus,
)
from jaxsp.topology.matrices import (
    from_graph,
    from_matrix,
    lazy,
    metropolis_hastings,
)
from jaxsp.topology.mixing import TimeVarying, Topology
from jaxsp.topology.time_varying import (
    from_sequence,
    one_peer_exponential,
    random_ring,
)

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
