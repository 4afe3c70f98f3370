"""A process of a run that goes round in a collective until something happens.

`loop.py EVENT [PROCESS]`: after a moment that process fails in one of several ways.
"""

import os
import signal
import sys
import time

import jax
import numpy as np

import jaxsp.distributed
from jaxsp.distributed import ending_together

event = sys.argv[1]
mine = sys.argv[2:] in ([], [os.environ["JAXSP_PROCESS_ID"]])
if mine and event == "devices":
    jax.config.update("jax_num_cpu_devices", 2)
if mine and event == "options":
    jax.config.update("jax_threefry_partitionable", False)
jaxsp.distributed.initialize(
    settings={"rate": 0.1, "seed": {"data": 0}},
    initialization_timeout=30,
    heartbeat_timeout=4,
)
number, count = jaxsp.distributed.process_index(), jaxsp.distributed.process_count()
assert jaxsp.distributed.is_main() == (number == 0)


def go_round():
    """Collectives, of which the others' last one waits for this process."""
    print("loops", flush=True)
    end = time.monotonic() + 0.3
    while True:
        total = jaxsp.distributed.process_max([number])
        assert total == count - 1
        if not mine or time.monotonic() < end:
            continue
        if event.endswith("raise"):
            raise KeyError("a bug")
        if event.endswith("exit"):
            sys.exit(3)
        if event.endswith("words"):
            sys.exit("the reason")
        if event.endswith("stop"):
            os.kill(os.getpid(), signal.SIGSTOP)
        if event.endswith("kill"):
            os.kill(os.getpid(), signal.SIGKILL)


def main():
    if event == "end":
        big = 1 << 40
        both = jaxsp.distributed.process_max([number - 5, -number * big])
        np.testing.assert_array_equal(both, [count - 6, 0])
        time.sleep(0.5 * number)  # ends when all do
        print("done", flush=True)
        return
    if event == "together":
        with jaxsp.distributed.raise_together():
            if number == 1:
                raise OSError("no space left")
    go_round()


if event.startswith("bare"):  # a script that knows nothing of how to end
    main()
else:
    with ending_together("python again.py"):
        main()
