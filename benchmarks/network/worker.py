"""What each process of `measure.py` runs: the steps of every method, timed and counted.

    python worker.py PARENT '{"coordinator": "10.99.0.1:29400", ...}'

The arguments are the process that starts it, with which it dies, and a `Task` as JSON.
What the process found is written to `process-N.json` of the task's directory.
"""

import ctypes
import dataclasses
import json
import math
import os
import pathlib
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import namespaces
import numpy as np
import optax
from task import Run, Task, traffic

import jaxsp
from jaxsp import compressors, topology

__all__ = [
    "GANS",
    "LATENCY",
    "METHODS",
    "Method",
    "Run",
    "Task",
    "directed_ring",
    "main",
    "measure",
    "operator",
    "prepare",
    "shape",
    "traffic",
]

WARM_UP = 2  # cycles: compiling, and TCP's first round trips
LATENCY = "latency"  # an all-reduce of one number: what a round costs
LEAST = 3  # cycles that are measured at least


@dataclasses.dataclass(frozen=True)
class Method:
    """A way of training, as a transformation.

    Attributes:
      make: from the number of workers and `axis_name` to the transformation.
      cycle: after so many steps its messages repeat; times are means over a cycle.
      parameters: numbers in its model, if not the task's.
    """

    make: Callable[[int, Any], optax.GradientTransformationExtraArgs]
    cycle: Callable[[int], int] = lambda count: 1
    parameters: int | None = None


def directed_ring(count: int) -> topology.Topology:
    """Everyone mixes with the predecessor alone, weights one half."""
    after = np.roll(np.eye(count), 1, axis=0)
    return topology.from_matrix((np.eye(count) + after) / 2)


def _gossip(graph):
    def make(count, axis):
        step = optax.scale(-0.1)
        return optax.chain(step, jaxsp.gossip(graph(count), axis_name=axis))

    return make


def _mean(factory, codec, both_ways=True):
    def make(count, axis):
        del count
        key = jax.random.key(0)
        down = codec if both_ways else None
        mean = factory(jaxsp.channel(axis, codec, down, key=key))
        return optax.chain(mean, optax.scale(-0.1))

    return make


def _all_reduce(count, axis):
    del count
    return optax.chain(jaxsp.average(axis), optax.scale(-0.1))


def _local(count, axis):
    del count
    return optax.chain(optax.scale(-0.1), jaxsp.sync(8, axis))


def _masha1(count, axis):
    del count
    key = jax.random.key(0)
    channel = jaxsp.channel(axis, compressors.rand_k(0.01), key=key)
    return jaxsp.methods.masha1(0.1, channel, 0.01)


_FEEDBACK, _UNBIASED = jaxsp.error_feedback_average, jaxsp.average
METHODS = {
    LATENCY: Method(_all_reduce, parameters=1),
    "all-reduce": Method(_all_reduce),
    "ring": Method(_gossip(topology.ring)),
    "one-way ring": Method(_gossip(directed_ring)),
    "one-peer exponential": Method(
        _gossip(topology.one_peer_exponential),
        lambda count: len(topology.one_peer_exponential(count).members),
    ),
    "sync every 8": Method(_local, lambda count: 8),
    "quantize 8 bits": Method(_mean(_UNBIASED, compressors.quantize(8))),
    "quantize 4 bits": Method(_mean(_UNBIASED, compressors.quantize(4))),
    "quantize 2 bits": Method(_mean(_UNBIASED, compressors.quantize(2))),
    "sign": Method(_mean(_FEEDBACK, compressors.sign())),
    "top-k 1 %": Method(_mean(_FEEDBACK, compressors.top_k(0.01))),
    "low rank 2": Method(_mean(_FEEDBACK, compressors.low_rank(2), False)),
    "MASHA1 rand-k 1 %": Method(_masha1),
}
GANS = ("MD-GAN", "FL-GAN sync every 8")  # of gans.py


def shape(parameters: int) -> tuple[int, int]:
    """The matrix of so many numbers that is nearest to a square."""
    rows = next(r for r in range(math.isqrt(parameters), 0, -1) if parameters % r == 0)
    return rows, parameters // rows


def operator(z: Any, own: Any) -> Any:
    """A worker's gradient, z − a: hardly any arithmetic, and other numbers for each."""
    return jax.tree.map(jnp.subtract, z, own)


def prepare(method: Method, task: Task) -> Run:
    """Place parameters and state of a method on all workers."""
    workers = jaxsp.Workers(task.num_processes)
    tx = method.make(workers.count, workers.axis_name)

    def one_step(z, state, own):
        gradient = operator(z, own)
        oracle = lambda z: operator(z, own)  # noqa: E731
        updates, state = tx.update(gradient, state, z, operator_fn=oracle)
        return optax.apply_updates(z, updates), state

    rng = np.random.default_rng(0)
    stack = (workers.count, *shape(method.parameters or task.parameters))
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
    jaxsp.distributed.barrier("start")
    bytes_before = _bytes(task.interface)
    for _ in range(cycles * cycle):
        start = time.perf_counter()
        state = run.step(state)
        found["seconds"].append(time.perf_counter() - start)
        after = run.traffic(state)
        found["up"].append(after[0] - before[0])
        found["down"].append(after[1] - before[1])
        before = after
    jaxsp.distributed.barrier("end")
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
        task.coordinator, task.num_processes, task.process_id, configuration=shared
    )
    found = {}
    for name in task.methods:
        if name in METHODS:
            ready = prepare(METHODS[name], task)
        else:
            import gans  # which imports flax

            ready = gans.prepare(name, task)
        found[name] = measure(ready, task)
        if task.process_id == 0:
            ms = 1e3 * float(np.mean(found[name]["seconds"]))
            print(f"{name}: {ms:.1f} ms", file=sys.stderr, flush=True)
    path = pathlib.Path(task.directory) / f"process-{task.process_id}.json"
    path.write_text(json.dumps(found))
    jaxsp.distributed.finalize()


if __name__ == "__main__":
    _tie(int(sys.argv[1]))
    main(Task(**json.loads(sys.argv[2])))
