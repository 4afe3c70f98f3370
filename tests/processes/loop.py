"""A process of a run that goes round in a collective until something happens.

`loop.py EVENT [PROCESS]`: after a moment that process raises, exits with code 3, quits
with code 4 while another of its threads is stuck, or has too many devices; `fork` is
killed by the test, and leaves a child; `end` ends all.
"""

import builtins
import os
import socket
import sys
import threading
import time
import warnings

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import jaxsp.distributed
import jaxsp.distributed.run

event = sys.argv[1]
mine = sys.argv[2:] in ([], [os.environ["JAXSP_PROCESS_ID"]])
if event == "devices" and mine:
    jax.config.update("jax_num_cpu_devices", 2)
before = sys.exit, builtins.exit, builtins.quit, sys.excepthook
jaxsp.distributed.initialize(
    configuration={"rate": 0.1, "seed": {"data": mine if event == "differ" else 0}},
    resume_command="python again.py",
)

number, count = jaxsp.distributed.process_index(), jaxsp.distributed.process_count()
assert jaxsp.distributed.is_main() == (number == 0)
spec = PartitionSpec("w")
mesh = Mesh(np.array(jax.devices()), ("w",), axis_types=(AxisType.Auto,))
rows = np.arange(count, dtype=np.float32)[:, None] * np.ones(100, np.float32)
x = jax.make_array_from_callback(
    rows.shape, NamedSharding(mesh, spec), lambda index: rows[index]
)
mean = jax.jit(
    jax.shard_map(
        lambda x: jax.lax.pmean(x, "w"), mesh=mesh, in_specs=spec, out_specs=spec
    )
)
x = mean(x).block_until_ready()
assert np.all(np.asarray(x.addressable_data(0)) == (count - 1) / 2)

if event == "end":
    big = 1 << 40
    both = jaxsp.distributed.process_max([number - 5, -number * big])
    np.testing.assert_array_equal(both, [count - 6, 0])
    jaxsp.distributed.barrier("the same")
    try:
        jaxsp.distributed.barrier(f"of process {number}")
    except jaxsp.distributed.DistributedError as error:
        print(error)
    print("done", flush=True)
    time.sleep(0.5 * number)  # ends when all do
    if number == 0:
        jaxsp.distributed.finalize()
        assert before == (sys.exit, builtins.exit, builtins.quit, sys.excepthook)
        host, port = os.environ["JAXSP_COORDINATOR"].split(":")
        socket.create_server((host, int(port))).close()
    sys.exit()
if event == "fork" and mine:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that JAX has threads
        child = os.fork()
    if not child:
        time.sleep(60)
        os._exit(0)

print("loops", flush=True)
end = time.monotonic() + 0.3
while True:
    x = mean(x).block_until_ready()
    if mine and time.monotonic() > end:
        if event == "raise":
            raise ValueError("a bug\nof two lines")
        if event == "exit":
            sys.exit(3)
        if event == "quit":
            jaxsp.distributed.run._SLOW_END = 1.0
            threading.Thread(target=threading.Event().wait).start()
            builtins.quit(4)
