"""MD-GAN by hand: one generator on a server, a discriminator on every worker.

The server sends generated samples, never its generator; a worker, which holds the data,
answers with the gradient of its loss at these samples. Once in a while the
discriminators change places, so that none learns its worker's data by heart. The
training loop of jaxsp.gan does the same over devices and machines.

    python examples/md_gan.py
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsp.gan import data, losses, md_gan, models, scores
from jaxsp.gan.data import partition


def main(steps=1_500, workers=4, batches_k=2, batch_size=32, swap_every=250):
    """Train an MD-GAN on eight Gaussians, and print how well it does.

    Args:
      steps: how many iterations.
      workers: how many workers.
      batches_k: how many batches the server generates in one.
      batch_size: samples in a batch.
      swap_every: iterations between two swaps.

    Returns:
      The Fréchet distance of samples to data before and after.
    """
    mixture, key = data.load("mixture_ring"), jax.random.key(0)
    gan = models.mlp(mixture.sample_shape, width=128)
    game = losses.non_saturating(gan, r1=1.0)
    adam = optax.adam(1e-3, b1=0.5, b2=0.9)
    parts = partition.iid(mixture.train_labels, workers, seed=0)
    shares, sizes = partition.stack(mixture.train, parts)
    evaluate = scores.evaluator(mixture)

    x, y = models.init(gan, key)
    server = x, adam.init(x)
    everyone = jax.tree.map(lambda leaf: jnp.stack([leaf] * workers), (y, adam.init(y)))
    alive = np.ones(workers, bool)
    g_index, d_index = md_gan.assignment(alive, batches_k)  # who gets which batches
    rng = np.random.default_rng(0)

    @jax.jit
    def generate(x, key):
        return md_gan.server_generate(
            gan, x, jax.random.split(key, batches_k), batch_size
        )

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, 0, 0, 0, 0, 0))
    def work(y_and_state, share, size, fakes_d, fakes_g, key):  # what one worker does
        batch = data.draw(key, share, size, batch_size)
        return md_gan.worker_step(
            game, adam, *y_and_state, batch, fakes_d, fakes_g, key
        )

    @jax.jit
    def update(server, latents, feedback):
        x, state, _ = md_gan.server_update(
            gan, adam, *server, latents, feedback, g_index, alive
        )
        return x, state

    def score(x):
        return evaluate(models.sample(gan, x, key, 2_000))["frechet_distance"]

    before = score(x)
    for k in range(1, steps + 1):
        ours, *theirs = jax.random.split(jax.random.fold_in(key, k), 1 + workers)
        samples, latents = generate(server[0], ours)
        y, state, feedback, _ = work(
            everyone,
            *(shares, sizes),
            *(samples[d_index], samples[g_index]),
            jnp.stack(theirs),
        )
        if k % swap_every == 0:
            y = md_gan.swap(y, md_gan.derangement(rng, alive))
        everyone = y, state
        server = update(server, latents, feedback)
        if k % max(1, steps // 3) == 0:
            print(f"step {k}: Frechet distance {before:.3f} -> {score(server[0]):.3f}")
    return before, score(server[0])


if __name__ == "__main__":
    main()
