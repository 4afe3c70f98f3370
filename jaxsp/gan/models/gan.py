"""The pair of networks that is trained, and what is done with it.

All functions take `gan`, the pair of networks, and what they need of

    x, y: parameters of the generator and of the discriminator.
    key: a typed random key.
    latents: latent vectors `[n, latent_size]`.
    samples: real or generated samples `[n, *sample_shape]`; generated images lie in
      [-1, 1].
"""

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import errors
from flax import linen as nn
from jax.core import Tracer

from jaxsp._arguments import check_array, check_count, check_instance, check_key, refuse
from jaxsp.gan.models.arguments import check
from jaxsp.operators import MinMax


@dataclasses.dataclass(frozen=True)
class Gan:
    """A generator, a discriminator, and the shapes between them.

    Any two modules of flax.linen do that have nothing but parameters and draw nothing
    at random: `generator` maps latents `[n, latent_size]` to samples
    `[n, *sample_shape]`, `discriminator` maps samples to logits [n].
    `flax.nnx.bridge.to_linen` makes such a module of a class of flax.nnx. The pair is
    hashable, so it may be a static argument of `jax.jit`.

    With `num_classes` C > 0 the pair is conditional, as in ACGAN. The last C entries of
    a latent vector are its class, one-hot, so that a sample is still a function of its
    latent vector. `discriminator` maps samples to (logits [n], class logits [n, C]).

    Attributes:
      generator: module with the parameters x.
      discriminator: module with the parameters y.
      latent_size: length of a latent vector, drawn from a standard normal; the class
        included where there is one.
      sample_shape: shape of one sample.
      num_classes: number of classes, or 0 for a pair that knows none.

    Raises:
      ValueError: if the sizes do not fit, or a network is no module of flax.linen.
    """

    generator: nn.Module
    discriminator: nn.Module
    latent_size: int
    sample_shape: tuple[int, ...]
    num_classes: int = 0

    def __post_init__(self):
        for name in ("generator", "discriminator"):
            if not isinstance(module := getattr(self, name), nn.Module):
                kind = type(module) if not isinstance(module, type) else module
                raise ValueError(
                    f"{name} must be a module of flax.linen, got {kind.__name__}: of a "
                    "class of flax.nnx write flax.nnx.bridge.to_linen("
                    f"{kind.__name__}, ...), with its arguments but rngs."
                )
        check(self.sample_shape)
        check_count("latent_size", self.latent_size)
        check_count("num_classes", self.num_classes, minimum=0)
        if self.num_classes and self.num_classes >= self.latent_size:
            raise ValueError(
                "latent_size must be larger than num_classes, whose one-hot vector is "
                f"its end, got {self.latent_size} and {self.num_classes}."
            )


def init(gan: Gan, key: jax.Array) -> MinMax:
    """Draws the parameters of both players, `MinMax(x, y)`.

    Raises:
      ValueError: if a network has more than parameters, as the statistics of BatchNorm,
        or draws at random, as Dropout does.

    Example:
      >>> import jax
      >>> from jaxsp.gan.models import mlp
      >>> gan = mlp((2,), latent_size=4, width=8)
      >>> z = init(gan, jax.random.key(0))
      >>> sample(gan, z.x, jax.random.key(1), 5).shape
      (5, 2)
    """
    return initializer(gan)(key)


def initializer(gan: Gan) -> Callable[[jax.Array], MinMax]:
    """`init` of a pair of networks, compiled once for all keys."""
    check_gan(gan)

    @jax.jit  # one program, where each layer's operations would be many
    def draw(key):
        x_key, y_key = jax.random.split(key)
        latent = jnp.zeros((1, gan.latent_size))
        x = _params(gan.generator, "generator", x_key, latent)
        sample = jnp.zeros((1, *gan.sample_shape))
        return MinMax(x, _params(gan.discriminator, "discriminator", y_key, sample))

    return lambda key: draw(check_key("key", key))


def _params(module: nn.Module, name: str, key: jax.Array, example: jax.Array):
    """The parameters of a network, which needs nothing else."""
    variables = module.init(key, example)
    if others := sorted(variables.keys() - {"params"}):
        raise ValueError(
            f"{name} must have parameters alone, and has {', '.join(others)} too. "
            "Statistics of batches would be each worker's own, and nothing averages "
            "them: write nn.GroupNorm or nn.LayerNorm in place of nn.BatchNorm."
        )
    try:
        jax.eval_shape(module.apply, variables, example)
    except errors.InvalidRngError as error:
        raise ValueError(
            f"{name} must draw nothing at random, as samples and logits are functions "
            "of their input: leave nn.Dropout out, or write deterministic=True "
            f"({str(error).partition(' (')[0]})."
        ) from error
    return variables["params"]


def latents(gan: Gan, key: jax.Array, n: int, labels=None) -> jax.Array:
    """Draws n latent vectors, standard normal; the class at the end is uniform.

    The normal entries and the classes of a conditional pair have keys of their own: the
    entries are the same whatever the classes.

    Args: those of this module, and
      labels: classes to take instead of drawn ones, whole numbers [n] from 0 to
        `num_classes` - 1; only for a conditional pair.

    Raises:
      ValueError: if labels are given to a pair without classes, or do not fit.
        Whether they are classes is seen outside `jit` only; inside, a label that is
        none gives a one-hot vector of zeros.
    """
    check_gan(gan)
    check_key("key", key)
    check_count("n", n, minimum=0)
    if not gan.num_classes:
        if labels is not None:
            raise ValueError(
                "labels must be None: the pair of networks has no classes. Build it "
                "with num_classes."
            )
        return jax.random.normal(key, (n, gan.latent_size))
    latent_key, class_key = jax.random.split(key)
    free = jax.random.normal(latent_key, (n, gan.latent_size - gan.num_classes))
    if labels is None:
        labels = jax.random.randint(class_key, (n,), 0, gan.num_classes)
    else:
        labels = _checked(labels, n, gan.num_classes)
    classes = jax.nn.one_hot(labels, gan.num_classes, dtype=free.dtype)
    return jnp.concatenate([free, classes], axis=1)


def _checked(labels, n: int, num_classes: int) -> jax.Array:
    """Labels that are one whole number a vector and, where they are known, classes."""
    known = not isinstance(labels, Tracer)
    labels = check_array("labels", labels, integer=True) if known else labels
    if labels.shape != (n,) or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"labels must be whole numbers of shape ({n},), got {labels.dtype} of "
            f"shape {labels.shape}."
        )
    if known and n and not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(
            f"labels must be from 0 to {num_classes - 1}, got {labels.min()} to "
            f"{labels.max()}."
        )
    return jnp.asarray(labels)


def labels_of(gan: Gan, latents: jax.Array) -> jax.Array:
    """The classes in latent vectors of a conditional pair, int32 [n].

    Raises:
      ValueError: if the pair has no classes.
    """
    _need_classes(gan)
    _check_rows("latents", latents, (gan.latent_size,))
    return jnp.argmax(latents[:, -gan.num_classes :], axis=1).astype(jnp.int32)


def check_gan(gan: Any) -> None:
    """Refuses what is no pair of networks."""
    check_instance("gan", gan, Gan, "a jaxsp.gan.models.Gan, as models.mlp makes")


def _check_rows(name: str, rows: Any, shape: tuple[int, ...]) -> None:
    """Refuses all but a stack of arrays of a shape."""
    if not isinstance(rows, np.ndarray | jax.Array) or rows.shape[1:] != shape:
        refuse(name, f"an array of shape (n, {', '.join(map(str, shape))})", rows)


def _need_classes(gan: Gan) -> None:
    check_gan(gan)
    """Refuses a pair without classes."""
    if not gan.num_classes:
        raise ValueError(
            "gan must have classes, num_classes > 0; this pair of networks has none."
        )


def generate(gan: Gan, x, latents: jax.Array) -> jax.Array:
    """Maps latents `[n, latent_size]` to samples `[n, *sample_shape]`."""
    check_gan(gan)
    _check_rows("latents", latents, (gan.latent_size,))
    return cast(jax.Array, gan.generator.apply({"params": x}, latents))


def sample(gan: Gan, x, key: jax.Array, n: int, labels=None) -> jax.Array:
    """Draws n samples, `[n, *sample_shape]`; labels as in `latents`."""
    return generate(gan, x, latents(gan, key, n, labels))


def discriminate(gan: Gan, y, samples: jax.Array) -> jax.Array:
    """Maps samples `[n, *sample_shape]` to logits [n]: large where they look real."""
    return discriminate_and_classify(gan, y, samples)[0]


def classify(gan: Gan, y, samples: jax.Array) -> jax.Array:
    """Maps samples to class logits [n, num_classes], of a conditional pair.

    Raises:
      ValueError: if the pair has no classes.
    """
    _need_classes(gan)
    return cast(jax.Array, discriminate_and_classify(gan, y, samples)[1])


def discriminate_and_classify(
    gan: Gan, y, samples: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    """What `discriminate` and `classify` return, in one pass; None without classes."""
    check_gan(gan)
    _check_rows("samples", samples, gan.sample_shape)
    said = gan.discriminator.apply({"params": y}, samples)
    if not gan.num_classes:
        return cast(jax.Array, said), None
    return cast(tuple[jax.Array, jax.Array], said)
