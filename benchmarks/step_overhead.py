"""A DPOSG training step of jaxsp next to the same step written by hand.

    python benchmarks/step_overhead.py [--devices 1] [--repeats 60]

Both train the same GAN on the same batches with the same losses on a ring of 8; the
step by hand is plain JAX and `ppermute`, without jaxsp's operators, transformations and
workers. They first do some steps from the same start and must agree. Then they take
turns, each going first in every other pair, and the ratio is the median over pairs.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import command_line, in_turns, print_table
from jax.sharding import AxisType, Mesh, PartitionSpec

import jaxsp
from jaxsp.gan import losses as gan_losses
from jaxsp.gan import models

N, BATCH, RATE = 8, 32, 0.05
STEPS = 4  # in a timing, and before the comparison


def by_library(loss, workers):
    """The step in jaxsp."""
    ring = jaxsp.topology.ring(N)
    tx = jaxsp.methods.dposg(RATE, ring, axis_name=workers.axis_name)
    operator = jaxsp.game(loss.generator, loss.discriminator)

    def step(z, state, batch, key):
        updates, state = tx.update(operator(z, batch, key), state, z)
        return optax.apply_updates(z, updates), state

    return jax.jit(workers.map(step), donate_argnums=(0, 1)), workers.map(tx.init)


def by_hand(loss, devices):
    """The step in plain JAX."""
    left = [(i, (i + 1) % N) for i in range(N)]
    right = [(i, (i - 1) % N) for i in range(N)]

    def step(z, past, batch, key):  # past = η G_prev
        x, y = z
        g = (
            jax.grad(loss.generator, 0)(x, y, batch, key),
            jax.grad(loss.discriminator, 1)(x, y, batch, key),
        )
        g = jax.tree.map(lambda g: RATE * g, g)
        z = jax.tree.map(lambda z, p, g: z + p - g, (x, y), past, g)  # X

        def mix(v):
            around = jax.lax.ppermute(v, "w", left) + jax.lax.ppermute(v, "w", right)
            return (v + around) / 3

        z = jax.tree.map(lambda v, g: mix(v) - g, z, g)  # W X − η G
        return z, g

    if len(devices) == 1:
        mapped = jax.vmap(step, axis_name="w")
    else:
        mesh = Mesh(np.array(devices), ("w",), axis_types=(AxisType.Auto,))
        one = partial(jax.tree.map, lambda v: v[0])
        mapped = jax.shard_map(
            lambda *a: jax.tree.map(lambda v: v[None], step(*map(one, a))),
            mesh=mesh,
            in_specs=PartitionSpec("w"),
            out_specs=PartitionSpec("w"),
            check_vma=False,
        )
    init = partial(jax.tree.map, jnp.zeros_like)
    return jax.jit(mapped, donate_argnums=(0, 1)), init


def measure(gan, devices, repeats: int) -> dict[str, np.ndarray]:
    """Milliseconds a step of both, in pairs."""
    loss = gan_losses.non_saturating(gan)
    workers = jaxsp.Workers(N, devices=devices)
    keys = workers.shard(jax.random.split(jax.random.key(1), N))
    batch = np.random.default_rng(0).uniform(-1, 1, (N, BATCH, *gan.sample_shape))
    batch = workers.shard(jnp.asarray(batch, jnp.float32))
    z = models.init(gan, jax.random.key(0))
    points = {"jaxsp": workers.replicate(z), "hand": tuple(workers.replicate(z))}
    steps = {"jaxsp": by_library(loss, workers), "hand": by_hand(loss, workers.devices)}
    states = {name: (z, steps[name][1](z)) for name, z in points.items()}

    def run(name, count=STEPS):
        for _ in range(count):
            states[name] = steps[name][0](*states[name], batch, keys)
        return states[name]

    # After few steps: later ones make a game's rounding errors as large as anything.
    ours, theirs = (
        [np.asarray(x) for x in jax.tree.leaves(run(n, 3)[0])] for n in steps
    )
    trees = zip(ours, theirs, jax.tree.leaves(z), strict=True)
    off, moved = np.sum(
        [(np.sum((a - b) ** 2), np.sum((a - c) ** 2)) for a, b, c in trees], 0
    )
    if off > 1e-6 * moved:
        raise RuntimeError("the step of jaxsp and the one by hand are not the same.")
    seconds = in_turns({name: partial(run, name) for name in steps}, repeats, 2)
    return {name: 1e3 / STEPS * times for name, times in seconds.items()}


def main():
    parser = command_line(__doc__)
    parser.add_argument("--devices", type=int, default=1, choices=(1, N))
    parser.add_argument("--repeats", type=int, default=60)
    arguments = parser.parse_args()
    if arguments.devices > 1:  # without effect where there are accelerators
        jax.config.update("jax_num_cpu_devices", N)
    devices = jax.devices()[: arguments.devices]
    mlp, dcgan = models.mlp((8, 8, 1)), models.dcgan((28, 28, 1))
    print(f"{N} workers, {len(devices)} {devices[0].device_kind} device(s)")

    def row(name, gan):
        z = jax.eval_shape(lambda: models.init(gan, jax.random.key(0)))
        t = measure(gan, devices, arguments.repeats)
        return [
            *(name, f"{sum(x.size for x in jax.tree.leaves(z)):,}"),
            *(f"{np.median(ms):.2f}" for ms in t.values()),
            f"{np.median(t['jaxsp'] / t['hand']):.3f}",
        ]

    head = ["model", "parameters", "jaxsp ms", "by hand ms", "ratio"]
    print_table(head, map(row, ("MLP, 8x8", "DCGAN, 28x28"), (mlp, dcgan)))


if __name__ == "__main__":
    main()
