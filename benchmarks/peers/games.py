"""The games of `peers.py`, each written once for JAX and once for PyTorch."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from in_torch import gan_field, saddle_field

import jaxsp
from jaxsp.gan import data, losses, models

__all__ = ["Game", "all_games", "games", "gan_game"]

WORKERS = 8
BATCHES, BATCH = 16, 32


class Game(NamedTuple):
    """A game that several libraries can play.

    Attributes:
      name: for the table.
      start: z, a pytree of NumPy arrays.
      data: of all workers, stacked.
      field: `field(z, data of a worker, iteration)` in JAX.
      torch_field: `torch_field(torch, leaves of z, data of a worker, iteration)`.
      rate, adam_rate: of plain and of Adam's steps.
      goal: how many times faster than cooper.
      loss: of a GAN, `loss(z, data)`, of both players on all batches.
    """

    name: str
    start: Any
    data: Any
    field: Callable[..., Any]
    torch_field: Callable[..., Any]
    rate: float
    adam_rate: float
    goal: float
    loss: Callable[..., Any] | None = None


def _bilinear(x, y, data):
    A, b, c = data
    return x @ A @ y + b @ x - c @ y


def _quadratic(x, y, data):
    P, A, Q, b, c = data
    return 0.5 * x @ P @ x + x @ A @ y - 0.5 * y @ Q @ y + b @ x - c @ y


def games() -> Iterator[Game]:
    """A bilinear game of 20 + 20 numbers, and a quadratic one of 25 + 25."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(size=(WORKERS, *shape))

    def definite(n):
        M = normal(n, n) / np.sqrt(n)
        return 0.1 * np.eye(n) + 0.2 * M @ M.swapaxes(1, 2)

    for name, f, n, made in (
        ("bilinear, 20 + 20", _bilinear, 20, ()),
        ("quadratic, 25 + 25", _quadratic, 25, (definite, definite)),
    ):
        A = normal(n, n) / np.sqrt(n)
        square = [make(n) for make in made]
        coupled = [*square[:1], A, *square[1:], normal(n), normal(n)]
        field = jaxsp.saddle(f)
        yield Game(
            name,
            jaxsp.MinMax(*rng.normal(size=(2, n))),
            tuple(coupled),
            lambda z, data, i, field=field: field(z, data),
            lambda torch, leaves, data, i, f=f: saddle_field(torch, f, leaves, data),
            rate=0.1,
            adam_rate=1e-3,
            goal=10.0,
        )


def gan_game(workers: int = WORKERS) -> Game:
    """The MLP GAN of `jaxsp.gan` on scikit-learn's digits, batches of 32."""
    digits = data.load("digits")
    gan = models.mlp(digits.sample_shape)
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(digits.train), size=(workers, BATCHES, BATCH))
    images = np.asarray(data.to_unit(digits.train))[drawn]
    latents = rng.normal(size=(workers, BATCHES, BATCH, gan.latent_size))

    @functools.cache
    def players(dtype) -> Any:  # which the networks compute in
        gan = models.mlp(digits.sample_shape, dtype=dtype)
        made: Any = losses.non_saturating(gan)

        def generator(x, y, images, latents):
            return made.generator_on(y, models.generate(gan, x, latents))

        def discriminator(x, y, images, latents):
            fakes = models.generate(gan, x, latents)
            return made.discriminator_on(y, images, fakes, None)

        return generator, discriminator

    def field(z, data, i):
        images, latents = (x[i % BATCHES] for x in data)
        return jaxsp.game(*players(latents.dtype))(z, images, latents)

    @jax.jit
    def loss(z, data):
        images, latents = (x.reshape(-1, *x.shape[3:]) for x in data)
        return sum(f(*z, images, latents) for f in players(latents.dtype))

    def torch_field(torch, leaves, data, i):
        images, latents = (x[i % BATCHES] for x in data)
        return gan_field(torch, leaves, images, latents)

    start = jax.tree.map(np.asarray, models.init(gan, jax.random.key(0)))
    return Game(
        "MLP GAN, digits",
        start,
        (images, latents),
        field,
        torch_field,
        rate=0.05,
        adam_rate=1e-3,
        goal=3.0,
        loss=loss,
    )


def all_games() -> Iterator[Game]:
    """Each when it is wanted."""
    yield from games()
    yield gan_game()
