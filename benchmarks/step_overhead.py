"""A DPOSG training step of jaxsp next to the same step written by hand.

    python benchmarks/step_overhead.py [--devices 1] [--repeats 60]

Both train the same GAN on the same batches with the same losses on a ring of 8; the
step by hand is plain JAX and `ppermute`, without jaxsp's operators, transformations and
workers. The two take turns, and the ratio is the median over pairs.
"""

import argparse
import statistics
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, PartitionSpec

import jaxsp
from jaxsp.gan import losses as gan_losses
from jaxsp.gan import models

N, BATCH, RATE = 8, 32, 0.05


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


def measure(gan, devices, repeats: int) -> dict[str, float]:
    """Median milliseconds a step of both, and the median ratio of pairs."""
    loss = gan_losses.non_saturating(gan)
    workers = jaxsp.Workers(N, devices=devices)
    keys = workers.shard(jax.random.split(jax.random.key(1), N))
    rng = np.random.default_rng(0)
    batch = rng.uniform(-1, 1, size=(N, BATCH, *gan.sample_shape))
    batch = workers.shard(jnp.asarray(batch, jnp.float32))
    z = models.init(gan, jax.random.key(0))
    ours, ours_init = by_library(loss, workers)
    theirs, theirs_init = by_hand(loss, workers.devices)
    z1, z2 = workers.replicate(z), tuple(workers.replicate(z))
    s1, s2 = ours_init(z1), theirs_init(z2)

    def timed(step, z, s):
        start = time.perf_counter()
        for _ in range(4):
            z, s = step(z, s, batch, keys)
        jax.block_until_ready((z, s))
        return (time.perf_counter() - start) / 4 * 1e3, z, s

    a, b = [], []
    for i in range(repeats + 3):
        order = (0, 1) if i % 2 else (1, 0)
        for which in order:
            if which == 0:
                t, z1, s1 = timed(ours, z1, s1)
                a.append(t)
            else:
                t, z2, s2 = timed(theirs, z2, s2)
                b.append(t)
    for left, right in zip(jax.tree.leaves(z1), jax.tree.leaves(z2), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-2, atol=1e-3)
    a, b = a[3:], b[3:]
    ratio = statistics.median(x / y for x, y in zip(a, b, strict=True))
    return {
        "jaxsp": statistics.median(a),
        "hand": statistics.median(b),
        "ratio": ratio,
    }


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--devices", type=int, default=1, choices=(1, N))
    parser.add_argument("--repeats", type=int, default=60)
    arguments = parser.parse_args()
    if arguments.devices > 1:  # without effect where there are accelerators
        jax.config.update("jax_num_cpu_devices", N)
    devices = jax.devices()[: arguments.devices]
    gans = {
        "MLP, 8x8": models.mlp((8, 8, 1)),
        "DCGAN, 28x28": models.dcgan((28, 28, 1)),
    }
    print(f"{N} workers, {len(devices)} {devices[0].device_kind} device(s)")
    print("| model | parameters | jaxsp ms | by hand ms | ratio |")
    print("| --- | --- | --- | --- | --- |")
    for name, gan in gans.items():
        size = sum(x.size for x in jax.tree.leaves(models.init(gan, jax.random.key(0))))
        t = measure(gan, devices, arguments.repeats)
        print(
            f"| {name} | {size:,} | {t['jaxsp']:.2f} | {t['hand']:.2f} | "
            f"{t['ratio']:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
