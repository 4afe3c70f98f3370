"""Many processes: starting them together, deciding alike, and ending them together.

`initialize` brings the processes of a run together by `jax.distributed`, and compares
what they were started with; from then on `jax.devices()` are the devices of all
processes and `jaxsp.Workers` spans them. `ending_together` sees that no process waits
for one that is gone.
"""

from jaxsp.distributed.compare import number_options
from jaxsp.distributed.errors import DistributedError, in_all, raised_in_all
from jaxsp.distributed.failure import EXIT_CODE, ending_together, lost_peer
from jaxsp.distributed.start import finalize, initialize
from jaxsp.distributed.together import (
    Signals,
    anywhere,
    check_same,
    combine,
    is_alone,
    is_main,
    process_count,
    process_index,
    process_max,
    raise_together,
)

__all__ = [
    "EXIT_CODE",
    "DistributedError",
    "Signals",
    "anywhere",
    "check_same",
    "combine",
    "ending_together",
    "finalize",
    "in_all",
    "initialize",
    "is_alone",
    "is_main",
    "lost_peer",
    "number_options",
    "process_count",
    "process_index",
    "process_max",
    "raise_together",
    "raised_in_all",
]
