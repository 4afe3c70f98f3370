"""What each process of `measure.py` runs: the steps of every method, timed and counted.

    python worker.py '{"methods": ["ring"], "parameters": 1000, ...}'

The argument has those of `main`. What the process found is written to `process-N.json`
in the directory. GANs train a pair of networks for images of 28 x 28 with batches of
100. The server of MD-GAN is process 0; otherwise every process has one worker.
"""

import json
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import methods
import namespaces
import numpy as np
import optax
from jax.experimental import multihost_utils

import jaxsp
from jaxsp.gan import fl_gan, losses, md_gan, models, step

__all__ = ["GANS", "main", "measure", "prepare"]

MD_GAN, FL_GAN = GANS = ("MD-GAN", "FL-GAN sync every 8")
BATCH, SHARE, SYNC_EVERY = 100, 200, 8
WARM_UP = 2  # cycles: compiling, and TCP's first round trips
LEAST = 3  # cycles that are measured at least


class Run(NamedTuple):
    """A method that is ready to step.

    Attributes:
      step: does a step, from state to state.
      state: the first.
      traffic: from the state to the bits (sent, received) of this process.
      cycle: as of `methods.Method`.
    """

    step: Callable[[Any], Any]
    state: Any
    traffic: Callable[[Any], tuple[int, int]]
    cycle: int


def traffic(state: Any) -> tuple[int, int]:
    """Bits (sent, received) since `init` by the busiest worker of this process."""
    counts = jaxsp.comm.find_traffic(state)
    here = jax.tree.map(
        lambda x: np.concatenate([s.data for s in x.addressable_shards]), counts
    )
    bits = jaxsp.metrics.bits_sent(here)
    return int(bits.up.max()), int(bits.down.max())


def prepare(name: str, parameters: int) -> Run:
    """Place what a method trains, and its state, on all workers."""
    if name in GANS:
        return _prepare_gan(name)
    method = methods.METHODS[name]
    workers = jaxsp.Workers(jax.process_count())
    tx = method.make(workers.count, workers.axis_name)

    def one_step(z, state, own):
        def operator(z):  # hardly any arithmetic, and other numbers for each
            return jax.tree.map(jnp.subtract, z, own)

        updates, state = tx.update(operator(z), state, z, operator_fn=operator)
        return optax.apply_updates(z, updates), state

    rng = np.random.default_rng(0)
    stack = (workers.count, *methods.shape(method.parameters or parameters))
    own = workers.shard({"w": rng.standard_normal(stack, np.float32)})
    z = workers.replicate({"w": jnp.zeros(stack[1:])})
    state = workers.shard(jax.jit(workers.map(tx.init))(z))
    compiled = jax.jit(workers.map(one_step), donate_argnums=(0, 1))
    cycle = method.cycle(workers.count)
    return Run(lambda both: compiled(*both, own), (z, state), traffic, cycle)


def _prepare_gan(name):
    adam, options = optax.adam(2e-4, b1=0.5), dict[str, Any](batch_size=BATCH)
    gan = models.mlp((28, 28, 1), latent_size=64, width=256)
    game = losses.non_saturating(gan)
    if name == MD_GAN:
        others = [d for d in jax.devices() if d.process_index > 0]
        workers = jaxsp.Workers(len(others), devices=others)
        program = md_gan.MDGan(adam, adam).program(gan, game, workers, **options)
    else:
        workers = jaxsp.Workers(jax.process_count())
        method = fl_gan.fl_gan(adam, adam, SYNC_EVERY, axis_name=workers.axis_name)
        options["steps_per_call"] = 1
        program = step.program(gan, game, method, workers, **options)
    shape = (workers.count, SHARE, *gan.sample_shape)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    shares, sizes = workers.shard((images, np.full(workers.count, SHARE, np.int32)))
    key = jax.random.key(1)

    def counted(state):
        if name != MD_GAN:
            return traffic(state)
        sent = jaxsp.metrics.bits_sent(state)
        if not workers.local:  # the server
            return int(sent.down.sum()), int(sent.up.sum())
        (me,) = workers.local
        return int(sent.up[me]), int(sent.down[me])

    return Run(
        lambda state: program.step(state, shares, sizes, key, 1)[0],
        program.init(jax.random.key(0)),
        counted,
        1 if name == MD_GAN else SYNC_EVERY,
    )


def measure(
    run: Run, steps: int, seconds: float = np.inf, rate: float | None = None
) -> dict[str, Any]:
    """Time and count the steps of a method.

    Args:
      run: the method, in all processes.
      steps: how many, but for whole cycles, of which there are three at least.
      seconds: what they may take by the rate and the count of bits, or they are fewer.
      rate: of the links, in bits a second; None if they are not limited.

    Returns:
      Lists with an entry for each step measured, `seconds`, and accounted bits `up` and
      `down`; `sent` and `received`, bytes of the interface over all of them, where
      there is a rate; `cycle`.
    """
    state, cycle = run.state, run.cycle
    for _ in range(WARM_UP * cycle):
        state = jax.block_until_ready(run.step(state))
    before = run.traffic(state)
    cycles = max(steps // cycle, LEAST)
    if rate is not None:
        # What a step will take at least; all processes count alike to agree on steps.
        bits = jaxsp.distributed.process_max(max(before)) / WARM_UP
        cycles = max(min(cycles, int(seconds * rate / max(int(bits), 1))), LEAST)
    found = {"seconds": [], "up": [], "down": [], "cycle": cycle}
    multihost_utils.sync_global_devices("start")
    moved = namespaces.counters() if rate else (0, 0)
    for _ in range(cycles * cycle):
        start = time.perf_counter()
        state = jax.block_until_ready(run.step(state))
        found["seconds"].append(time.perf_counter() - start)
        after = run.traffic(state)
        found["up"].append(after[0] - before[0])
        found["down"].append(after[1] - before[1])
        before = after
    multihost_utils.sync_global_devices("end")
    moved = np.subtract(namespaces.counters(), moved).tolist() if rate else moved
    return found | dict(zip(("sent", "received"), moved, strict=True))


def main(methods: list[str], parameters: int, directory: str, **limits: Any) -> None:
    """Measure methods, by `measure` with the other arguments, and write the results."""
    jaxsp.distributed.initialize(settings=[methods, parameters, limits])
    found = {}
    for name in methods:
        found[name] = measure(prepare(name, parameters), **limits)
        if jax.process_index() == 0:
            ms = 1e3 * float(np.mean(found[name]["seconds"]))
            print(f"{name}: {ms:.1f} ms", file=sys.stderr)
    path = pathlib.Path(directory) / f"process-{jax.process_index()}.json"
    path.write_text(json.dumps(found))
    jaxsp.distributed.finalize()


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
