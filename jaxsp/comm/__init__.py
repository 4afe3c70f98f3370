"""What workers say to each other: the only place that calls a collective.

A transformation sees one worker. Everything it learns of the others comes through the
functions here, which take the name of the worker axis that `jaxsp.Workers` (or the
user's own `vmap`, `shard_map`, `pmap`) binds. Leaves travel packed, one flat buffer a
dtype, so that a step has as many collectives as the method has rounds, whatever the
number of leaves of the model.
"""

from jaxsp.comm.axis import (
    AxisName,
    permute,
    send,
    shared_index,
    worker_count,
    worker_index,
    worker_key,
)
from jaxsp.comm.collectives import gather, mean, mix, mix_payloads, pack, transpose
from jaxsp.comm.traffic import (
    Traffic,
    add_mixing,
    add_traffic,
    dense_bits,
    find_traffic,
    mean_bits,
    no_traffic,
)

__all__ = [
    "AxisName",
    "Traffic",
    "add_mixing",
    "add_traffic",
    "dense_bits",
    "find_traffic",
    "gather",
    "mean",
    "mean_bits",
    "mix",
    "mix_payloads",
    "no_traffic",
    "pack",
    "permute",
    "send",
    "shared_index",
    "transpose",
    "worker_count",
    "worker_index",
    "worker_key",
]
