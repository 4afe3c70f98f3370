"""What each process of `measure.py` runs: the steps of every method, timed and counted.

    python worker.py PARENT '{"coordinator": "10.99.0.1:29400", ...}'

The arguments are the process that starts it, with which it dies, and a `Task` as JSON.
What the process found is written to `process-N.json` of the task's directory.
"""

import ctypes
import dataclasses
import json
import os
import pathlib
import signal
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import methods
import namespaces
import numpy as np
import optax
from jax.experimental import multihost_utils
from task import Run, Task, traffic

import jaxsp

__all__ = ["GANS", "main", "measure", "prepare"]

GANS = ("MD-GAN", "FL-GAN sync every 8")  # of gans.py
WARM_UP = 2  # cycles: compiling, and TCP's first round trips
LEAST = 3  # cycles that are measured at least


def prepare(name: str, task: Task) -> Run:
    """Place parameters and state of a method on all workers."""
    if name in GANS:
        import gans  # which imports flax

        return gans.prepare(name, task)
    method = methods.METHODS[name]
    workers = jaxsp.Workers(task.num_processes)
    tx = method.make(workers.count, workers.axis_name)

    def one_step(z, state, own):
        def operator(z):  # hardly any arithmetic, and other numbers for each
            return jax.tree.map(jnp.subtract, z, own)

        updates, state = tx.update(operator(z), state, z, operator_fn=operator)
        return optax.apply_updates(z, updates), state

    rng = np.random.default_rng(0)
    stack = (workers.count, *methods.shape(method.parameters or task.parameters))
    own = workers.shard({"w": rng.standard_normal(stack, np.float32)})
    z = workers.replicate({"w": jnp.zeros(stack[1:])})
    state = workers.shard(jax.jit(workers.map(tx.init))(z))
    compiled = jax.jit(workers.map(one_step), donate_argnums=(0, 1))

    def step(both):
        return jax.block_until_ready(compiled(*both, own))

    return Run(step, (z, state), traffic, method.cycle(workers.count))


def measure(run: Run, task: Task) -> dict[str, Any]:
    """Time and count the steps of a method.

    Args:
      run: the method, in all processes.
      task: of this process.

    Returns:
      Lists with an entry for each step measured, `seconds`, and accounted bits `up` and
      `down`; `sent` and `received`, bytes of the interface over all of them, or None;
      `cycle`.
    """
    state, cycle = run.state, run.cycle
    for _ in range(WARM_UP * cycle):
        state = run.step(state)
    before = run.traffic(state)
    cycles = max(task.steps // cycle, LEAST)
    if task.rate is not None:
        # What a step will take at least; all processes count alike to agree on steps.
        bits = jaxsp.distributed.process_max(max(before)) / WARM_UP
        fit = task.seconds * task.rate / max(int(bits), 1)
        cycles = max(min(cycles, int(fit)), LEAST)
    found = {"seconds": [], "up": [], "down": [], "cycle": cycle}
    multihost_utils.sync_global_devices("start")
    bytes_before = _bytes(task.interface)
    for _ in range(cycles * cycle):
        start = time.perf_counter()
        state = run.step(state)
        found["seconds"].append(time.perf_counter() - start)
        after = run.traffic(state)
        found["up"].append(after[0] - before[0])
        found["down"].append(after[1] - before[1])
        before = after
    multihost_utils.sync_global_devices("end")
    moved = [b - a for a, b in zip(bytes_before, _bytes(task.interface), strict=True)]
    sent, received = moved or (None, None)
    return found | {"sent": sent, "received": received}


def _bytes(interface: str | None) -> tuple[int, ...]:
    return () if interface is None else namespaces.counters(interface)


def _tie(parent):
    """On Linux, be killed when the process that started this one dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)


def main(task: Task) -> None:
    """Measure all methods of a task, and write the results."""
    own = ("process_id", "directory")
    shared = {k: v for k, v in dataclasses.asdict(task).items() if k not in own}
    jaxsp.distributed.initialize(
        task.coordinator, task.num_processes, task.process_id, settings=shared
    )
    found = {}
    for name in task.methods:
        found[name] = measure(prepare(name, task), task)
        if task.process_id == 0:
            ms = 1e3 * float(np.mean(found[name]["seconds"]))
            print(f"{name}: {ms:.1f} ms", file=sys.stderr, flush=True)
    path = pathlib.Path(task.directory) / f"process-{task.process_id}.json"
    path.write_text(json.dumps(found))
    jaxsp.distributed.finalize()


if __name__ == "__main__":
    _tie(int(sys.argv[1]))
    main(Task(**json.loads(sys.argv[2])))
