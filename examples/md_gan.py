"""MD-GAN by hand: one generator on a server, a discriminator on every worker.

The server sends generated samples, never its generator; a worker, which holds the data,
answers with the gradient of its loss at these samples. Once in a while the
discriminators change places, so that none learns its worker's data by heart. The
training loop of jaxsp.gan does the same over devices and machines.

    python examples/md_gan.py
"""

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
    x_state = adam.init(x)
    y, y_state = jax.tree.map(lambda p: jnp.stack([p] * workers), (y, adam.init(y)))
    alive = [True] * workers
    g_index, d_index = md_gan.assignment(alive, batches_k)  # who gets which batches
    rng = np.random.default_rng(0)

    @jax.jit
    def generate(x, key):  # what the server sends
        keys = jax.random.split(key, batches_k)
        return md_gan.server_generate(gan, x, keys, batch_size)

    @jax.jit
    @jax.vmap
    def work(y, y_state, share, size, fakes, key):  # what one worker does
        batch = data.draw(key, share, size, batch_size)
        return md_gan.worker_step(game, adam, y, y_state, batch, fakes, key)

    @jax.jit
    def update(x, x_state, latents, feedback):  # what the server does with the answers
        return md_gan.server_update(
            gan, adam, x, x_state, latents, feedback, g_index, alive
        )

    def score(x):
        return evaluate(models.sample(gan, x, key, 2_000))["frechet_distance"]

    before = score(x)
    for k in range(1, steps + 1):
        ours, *theirs = jax.random.split(jax.random.fold_in(key, k), 1 + workers)
        samples, latents = generate(x, ours)
        fakes = samples[d_index], samples[g_index]
        y, y_state, feedback, _ = work(
            y, y_state, shares, sizes, fakes, jnp.stack(theirs)
        )
        x, x_state, _ = update(x, x_state, latents, feedback)
        if k % swap_every == 0:
            y = md_gan.swap(y, md_gan.derangement(rng, alive))
        if k % max(1, steps // 3) == 0:
            print(f"step {k}: Frechet distance {before:.3f} -> {score(x):.3f}")
    return before, score(x)


if __name__ == "__main__":
    main()
