"""Many processes: starting them together, and ending them together.

`initialize` brings the processes of a run together, compares what they were started
with, and starts `jax.distributed`; from then on `jax.devices()` are the devices of all
processes and `jaxsp.Workers` spans them. While the run goes on, every process knows
when another one dies, and ends with one line that names it and exit code 75.
"""

from jaxsp.distributed.collective import (
    barrier,
    is_main,
    process_count,
    process_index,
    process_max,
)
from jaxsp.distributed.rendezvous import DistributedError
from jaxsp.distributed.run import EXIT_CODE, finalize, initialize
from jaxsp.distributed.together import (
    Signals,
    anywhere,
    check_same,
    combine,
    in_all,
    is_alone,
    raise_together,
    raised_in_all,
)

__all__ = [
    "EXIT_CODE",
    "DistributedError",
    "Signals",
    "anywhere",
    "barrier",
    "check_same",
    "combine",
    "finalize",
    "in_all",
    "initialize",
    "is_alone",
    "is_main",
    "process_count",
    "process_index",
    "process_max",
    "raise_together",
    "raised_in_all",
]
