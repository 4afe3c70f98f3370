"""What workers say to each other: the only place that calls a collective.

A transformation sees one worker. Everything it learns of the others comes through the
functions here, which take the name of the worker axis that `jaxsp.Workers` (or the
user's own `vmap`, `shard_map`, `pmap`) binds, or a channel over it. Each takes the
count of what has travelled so far, and returns the new one beside what arrived: what is
counted is what is sent. Leaves travel packed between devices, so that a step has as
many collectives as the method has rounds, whatever the number of leaves of the model.
"""

from jaxsp.comm.axis import (
    AxisName,
    anywhere,
    between_devices,
    check_unchecked,
    inside_workers,
    permute,
    send,
    shared_index,
    sum_of_rows,
    worker_count,
    worker_index,
    worker_key,
)
from jaxsp.comm.channels import (
    Channel,
    Route,
    as_channel,
    channel,
    check_contractive,
    check_key,
    check_mean,
    check_unbiased,
)
from jaxsp.comm.collectives import (
    all_reduce,
    buffers,
    gather,
    mix,
    mix_payloads,
    pack,
    transpose,
)
from jaxsp.comm.compressed import (
    Exchange,
    decode,
    encode,
    exchange,
    first_payloads,
    mean,
    no_residual,
)
from jaxsp.comm.members import check_draws, member
from jaxsp.comm.parts import mean_of_owners, owners
from jaxsp.comm.refresh import check_refresh, flip
from jaxsp.comm.traffic import (
    Traffic,
    add_traffic,
    dense_bits,
    find_traffic,
    no_traffic,
)

__all__ = [
    "AxisName",
    "Channel",
    "Exchange",
    "Route",
    "Traffic",
    "add_traffic",
    "all_reduce",
    "anywhere",
    "as_channel",
    "between_devices",
    "buffers",
    "channel",
    "check_contractive",
    "check_draws",
    "check_key",
    "check_mean",
    "check_refresh",
    "check_unbiased",
    "check_unchecked",
    "decode",
    "dense_bits",
    "encode",
    "exchange",
    "find_traffic",
    "first_payloads",
    "flip",
    "gather",
    "inside_workers",
    "mean",
    "mean_of_owners",
    "member",
    "mix",
    "mix_payloads",
    "no_residual",
    "no_traffic",
    "owners",
    "pack",
    "permute",
    "send",
    "shared_index",
    "sum_of_rows",
    "transpose",
    "worker_count",
    "worker_index",
    "worker_key",
]
