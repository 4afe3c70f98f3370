"""A GAN on four workers that send 4 bits a number, beside one that sends 32.

DQGAN with Adam quantizes the gradients on their way to the server and the server's mean
on its way back, and feeds what quantization leaves out into the next step. The other
run is the same method without compression, CP-OAdam. Both learn eight Gaussians on a
circle; how well is the Fréchet distance of samples to data.

    python examples/compressed_gan.py
"""

import jax
import jax.numpy as jnp
import optax

import jaxsp
from jaxsp.gan import data, losses, models, scores
from jaxsp.gan.data import partition


def main(steps=2_000, workers=4, batch_size=32, width=128):
    """Train both, and print what they reach and what they send.

    Args:
      steps: how many steps.
      workers: how many workers.
      batch_size: samples of a worker's gradient.
      width: of the layers of both networks.

    Returns:
      For each run the Fréchet distance before and after, and the bytes that a worker
      has sent and received.
    """
    team, mixture = jaxsp.Workers(workers), data.load("mixture_ring")
    gan = models.mlp(mixture.sample_shape, width=width)
    game = losses.non_saturating(gan, r1=1.0)
    operator = jaxsp.game(game.generator, game.discriminator)
    parts = partition.iid(mixture.train_labels, workers, seed=0)
    shares, sizes = map(team.shard, partition.stack(mixture.train, parts))
    evaluate = scores.evaluator(mixture)

    four_bits, key = jaxsp.compressors.quantize(4), jax.random.key(0)
    channel = jaxsp.channel(team.axis_name, four_bits, four_bits, key=key)
    methods = {
        "32 bits": jaxsp.methods.cp_oadam(2e-3, team.axis_name),
        "4 bits": jaxsp.methods.dqgan_adam(2e-3, channel),
    }
    found = {}
    for name, tx in methods.items():

        def step(z, state, share, size, index, k, tx=tx):  # what one worker does
            batch_key, noise_key = jax.random.split(
                jax.random.fold_in(jax.random.fold_in(key, index), k)
            )
            batch = data.draw(batch_key, share, size, batch_size)
            g = operator(z, batch, noise_key)  # of this worker's sample
            updates, state = tx.update(g, state, z)
            return optax.apply_updates(z, updates), state

        def score(z):
            x = jax.tree.map(lambda leaf: leaf.mean(0), z.x)
            return evaluate(models.sample(gan, x, key, 2_000))["frechet_distance"]

        z = team.replicate(models.init(gan, key))
        state = jax.jit(team.map(tx.init))(z)
        step = jax.jit(team.map(step, in_axes=(0, 0, 0, 0, 0, None)))
        before, index = score(z), jnp.arange(workers)
        for k in range(steps):
            z, state = jax.block_until_ready(step(z, state, shares, sizes, index, k))
        after = score(z)
        sent, received = (int(b[0]) / 8 for b in jaxsp.metrics.bits_sent(state))
        found[name] = before, after, sent, received
        print(
            f"{name:>7}: Frechet distance {before:.3f} -> {after:.3f}, a worker has "
            f"sent {sent / 1e6:.1f} MB and received {received / 1e6:.1f} MB"
        )
    return found


if __name__ == "__main__":
    main()
