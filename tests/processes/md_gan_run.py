"""What each of four processes runs of MD-GAN, process 0 as the server.

    python -m jaxsp.launch -n 4 md_gan_run.py DIRECTORY

leaves DIRECTORY/PROCESS.npz.
"""

import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import jaxsp
from jaxsp.gan import losses, md_gan, models
from jaxsp.gan.training import checkpoint
from jaxsp.gan.training.progress import Progress

STEPS, BATCH = 12, 4
SIZES = (30, 25, 20, 28, 22, 26)
# Worker 1 leaves before iteration 3 and comes back before 7; of six so does 4, who
# shares a device with 5; both workers of a device, 2 and 3, are gone before 9.
ALIVE = {3: np.ones((STEPS, 3), bool), 6: np.ones((STEPS, 6), bool)}
for alive in ALIVE.values():
    alive[3:7, 1] = False
ALIVE[6][3:7, 4] = ALIVE[6][9:, 2:4] = False

PLAIN = models.mlp((2,), latent_size=3, width=6, depth=1)
CONDITIONAL = models.mlp((2,), 4, latent_size=7, width=6, depth=1)

CASES: dict[str, dict[str, Any]] = {
    "travel": {"count": 3, "moments": "travel"},
    "blocks": {"count": 6, "moments": "stay", "batches_k": 4},
    "conditional": {"count": 3, "moments": "reset", "batches_k": 1, "gan": CONDITIONAL},
}


def program_of(workers, *, count, moments, batches_k=2, gan=PLAIN):
    """The program of a case, and the data it trains on."""
    adam = optax.adam(0.01, b1=0.5), optax.adam(0.03, b1=0.5)
    method = md_gan.MDGan(
        *adam,
        batches_k=batches_k,
        disc_steps=2,
        swap_every=3,
        alive=lambda step: ALIVE[count][step],
        moments=moments,
    )
    loss = losses.acgan(gan) if gan.num_classes else losses.non_saturating(gan)
    program = method.program(gan, loss, workers, batch_size=BATCH)
    rng = np.random.default_rng(0)
    shares = rng.normal(size=(count, max(SIZES), 2)).astype(np.float32)
    shares += np.arange(count, dtype=np.float32)[:, None, None]
    labels = rng.integers(0, 4, size=shares.shape[:2]).astype(np.int32)
    data = (shares, labels) if gan.num_classes else shares
    return program, data, np.array(SIZES[:count], np.int32)


def run_case(workers, path, **case):
    """All that a run leaves, as flat arrays by name."""
    program, shares, sizes = program_of(workers, **case)
    shares, sizes = workers.shard((shares, sizes))
    state, flight, found = program.init(jax.random.key(3)), [], {}
    for step in range(STEPS):
        state, values = program.step(state, shares, sizes, jax.random.key(4), 1)
        flight.append(values)
        if step % 5 == 4 or step == STEPS - 1:
            jax.block_until_ready(state)
            found[f"losses {step}"] = np.stack(program.fetch(flight))
            flight = []
    with checkpoint.Checkpoints(path) as checkpoints:
        checkpoints.save(state, program.summary(state), Progress(STEPS))
        again = checkpoints.restore(STEPS, program.init(jax.random.key(5)))
        summary = checkpoints.summary(STEPS, program.summary(state))
    resumed = [
        np.array_equal(x, y)
        for pair in zip(jax.tree.leaves(state), jax.tree.leaves(again), strict=True)
        for x, y in zip(*map(pieces, pair), strict=True)
    ]
    trees = state.params, state.opt_state, program.summary(state).params
    found |= {
        "held": [
            any(len(pieces(leaf)) > 0 for leaf in jax.tree.leaves(of_player))
            for of_player in zip(*trees, strict=True)
        ],
        "generator": ravel_pytree(program.generator(state))[0],
        "summary": ravel_pytree(summary)[0],
        "bits": program.bits(state),
        "resumed": all(resumed),
        "finite": program.finite(state),
    }
    # Others go on from the summary.
    state = program.restart_from(summary, 5)
    state, values = program.step(state, shares, sizes, jax.random.key(4), 1)
    found["adopted"] = ravel_pytree(program.generator(state))[0]
    found["adopted losses"] = program.fetch([values])[0]
    for player in ("x", "y"):
        broken = state.params._replace(
            **{player: jax.tree.map(_nan, getattr(state.params, player))}
        )
        finite = program.finite(state._replace(params=broken))
        found[f"finite without {player}"] = finite
    return {name: np.asarray(value) for name, value in found.items()}


def _nan(leaf):
    return leaf * jnp.nan if leaf.addressable_shards else leaf


def pieces(leaf):
    """What this process holds of an array of a state."""
    if isinstance(leaf, jax.Array):
        return [np.asarray(shard.data) for shard in leaf.addressable_shards]
    return [leaf]


def written(workers, process):
    """Bytes that this process has written in some iterations, and what is counted.

    Worker 1 is gone from the beginning, so nobody writes to it.
    """
    gan, T = models.mlp((784,), latent_size=8, width=32, depth=1), 4
    optimizer = optax.sgd(0.01)
    method = md_gan.MDGan(
        optimizer, optimizer, 2, swap_every=2, alive=lambda step: [True, False, True]
    )
    program = method.program(gan, losses.non_saturating(gan), workers, batch_size=64)
    data = np.ones((3, 80, 784), np.float32), np.full(3, 80, np.int32)
    shares, sizes = workers.shard(data)
    state, key = program.init(jax.random.key(0)), jax.random.key(1)
    counts = []
    for steps in (2, T):
        for _ in range(steps):
            state, values = program.step(state, shares, sizes, key, 1)
        program.fetch([values])  # by then all is sent
        counts.append(_bytes_written())
    size = md_gan.messages(gan, 64)
    lives = process != 2  # worker 1 is in process 2
    counted = (
        lives * (T * size.up + T // 2 * size.swap) if process else 2 * T * size.down
    )
    return np.array([counts[1] - counts[0], counted // 8])


def _bytes_written():
    """What this process has written to files and sockets since its start (Linux)."""
    lines = pathlib.Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["wchar"])


def refused(*devices):
    """What is said when workers leave no device to the server."""
    workers = jaxsp.Workers(3, devices=devices)
    try:
        program_of(workers, count=3, moments="stay")
    except ValueError as error:
        return np.array(str(error))
    return np.array("nothing")


def main(directory):
    """One of the processes."""
    jaxsp.distributed.initialize()
    process, devices = jaxsp.distributed.process_index(), jax.devices()
    found = {}
    for name, case in CASES.items():
        workers = jaxsp.Workers(case["count"], devices=devices[1:])
        path = pathlib.Path(directory) / name
        for key, value in run_case(workers, path, **case).items():
            found[f"{name}: {key}"] = value
    three = jaxsp.Workers(3, devices=devices[1:])
    if sys.platform == "linux":
        found["written"] = written(three, process)
    found["refused"] = refused(*devices[:3])
    np.savez(pathlib.Path(directory) / f"{process}.npz", **found)
    jaxsp.distributed.finalize()


if __name__ == "__main__":
    main(sys.argv[1])
