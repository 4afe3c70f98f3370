"""What the workers' discriminators say of real and of generated samples."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsp import comm, distributed
from jaxsp.gan import data, models
from jaxsp.gan.losses import Losses
from jaxsp.workers import Workers

__all__ = ["fetch_rows", "make_judge"]

_SAMPLES = 1024  # real ones, and as many generated ones, of all workers together


def make_judge(
    gan: models.Gan, losses: Losses, workers: Workers, shared_generator: bool = False
) -> Callable[..., jax.Array]:
    r"""Compile what every worker's discriminator says, mean over samples.

    Worker m takes real samples of its own share and as many of the generator it trains
    with, and finds the means of $p(D_m(b))$ and of $p(D_m(g))$, with `losses.reads` as
    $p$: probabilities where $D$ are logits. The workers share 1,024 samples of each
    kind, so that it costs about a step, however many workers there are.

    Args:
      gan: generator and discriminator.
      losses: the game, which knows what the outputs are.
      workers: who trains.
      shared_generator: whether there is one generator, which is not stacked.

    Returns:
      `judge(x, y, shares, sizes, key)`, float32 [workers, 2], stacked; the same samples
      are drawn from the same key.
    """
    count = -(-_SAMPLES // workers.count)

    def judge(x, y, share, size, key):
        key = jax.random.fold_in(key, comm.worker_index(workers.axis_name))
        draw_key, latent_key = jax.random.split(key)
        real = data.draw(draw_key, share, size, count)
        real = data.to_unit(real[0] if isinstance(real, tuple) else real)
        fake = models.sample(gan, x, latent_key, count)
        said = [models.discriminate(gan, y, s) for s in (real, fake)]
        said = jnp.stack(said).astype(jnp.float32)
        return (losses.reads(said) if losses.reads else said).mean(axis=1)

    axes = (None if shared_generator else 0, 0, 0, 0, None)
    return jax.jit(workers.map(judge, in_axes=axes))


def fetch_rows(values: Any, workers: Workers, width: int, gather: bool) -> np.ndarray:
    """A row of numbers of each worker, float64 [workers, width].

    Where `gather` is set all processes call it, and get all rows; in one without
    workers `values` is not looked at. Otherwise all workers are here.
    """
    if not gather:
        return np.asarray(values, np.float64)
    # The bits of numbers, and the least integer for what another process holds.
    rows = np.full((workers.count, width), np.iinfo(np.int64).min)
    if workers.local:
        blocks = sorted(values.addressable_shards, key=lambda s: s.index[0].start or 0)
        mine = np.concatenate([np.asarray(block.data) for block in blocks])
        rows[list(workers.local)] = mine.astype(np.float64).view(np.int64)
    return distributed.process_max(rows).view(np.float64)
