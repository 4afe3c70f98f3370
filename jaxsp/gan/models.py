"""Generators and discriminators in flax, and the pair of them that is trained.

A discriminator sees each sample alone: no normalization over the batch, so that the
gradient of a logit with respect to its sample, on which gradient penalties stand, is
what it says. Nothing here keeps running statistics: parameters are all there is.

The convolutions (4x4, stride 2, and their transposes) are written as one matrix
product of rearranged pixels. They equal `lax.conv_general_dilated`, and stay one
batched product when `vmap` gives every worker its own kernel, where a convolution
becomes a grouped one, which is slow on CPU.
"""

import dataclasses
import math
from typing import cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxsp.operators import MinMax

__all__ = [
    "ConvDiscriminator",
    "ConvGenerator",
    "Gan",
    "MLPDiscriminator",
    "MLPGenerator",
    "StridedConv",
    "TransposedConv",
    "dcgan",
    "discriminate",
    "generate",
    "init",
    "latents",
    "mlp",
    "sample",
]


def _param_dtype(dtype):
    """Parameters are kept in float32 at least, whatever the computation runs in."""
    return jnp.promote_types(dtype, jnp.float32)


def _he(gain: float = 1.0):
    """He's normal initialization, for ReLU layers; `gain` divides the fan-in."""
    return nn.initializers.variance_scaling(2.0 * gain, "fan_in", "normal")


class StridedConv(nn.Module):
    """4x4 convolution of stride 2 with one pixel of padding: halves height and width.

    Equals `lax.conv_general_dilated(x, kernel, (2, 2), ((1, 1), (1, 1)))` in NHWC and
    HWIO. The padded image is cut into 2x2 blocks; each output is one product of four
    neighbouring blocks with the kernel.

    Args:
        features: Channels out.
        dtype: Type of the computation.
    """

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [n, 2h, 2w, c] to [n, h, w, features]."""
        n, height, width, c = x.shape
        h, w, f = height // 2, width // 2, self.features
        dtype = _param_dtype(self.dtype)
        kernel = self.param("kernel", _he(), (4, 4, c, f), dtype)
        bias = self.param("bias", nn.initializers.zeros, (f,), dtype)
        x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        x = x.reshape(n, h + 1, 2, w + 1, 2, c).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(n, h + 1, w + 1, 4 * c)
        x = jnp.concatenate(
            [x[:, i : h + i, j : w + j] for i in (0, 1) for j in (0, 1)], axis=-1
        )
        # (block row, row in block, block column, column in block, c, f)
        kernel = kernel.reshape(2, 2, 2, 2, c, f).transpose(0, 2, 1, 3, 4, 5)
        return x @ kernel.reshape(16 * c, f) + bias


class TransposedConv(nn.Module):
    """Transpose of `StridedConv`: doubles height and width.

    Equals the derivative of a `StridedConv` with kernel [4, 4, features, c] with
    respect to its input: every pixel in adds a 4x4 patch out, two pixels apart.

    Args:
        features: Channels out.
        dtype: Type of the computation.
    """

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [n, h, w, c] to [n, 2h, 2w, features]."""
        n, h, w, c = x.shape
        f, dtype = self.features, _param_dtype(self.dtype)
        # Each pixel out is reached by 2x2 of the 4x4 taps: a quarter of the fan-in.
        kernel = self.param("kernel", _he(4.0), (4, 4, c, f), dtype)
        bias = self.param("bias", nn.initializers.zeros, (f,), dtype)
        x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        # (c, block row, block column, row in block, column in block, f)
        kernel = kernel.reshape(2, 2, 2, 2, c, f).transpose(4, 0, 2, 1, 3, 5)
        x = (x @ kernel.reshape(c, 16 * f)).reshape(n, h, w, 2, 2, 4 * f)
        blocks = [
            jnp.pad(x[:, :, :, i, j], ((0, 0), (i, 1 - i), (j, 1 - j), (0, 0)))
            for i in (0, 1)
            for j in (0, 1)
        ]
        x = blocks[0] + blocks[1] + blocks[2] + blocks[3]
        x = x.reshape(n, h + 1, w + 1, 2, 2, f).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(n, 2 * h + 2, 2 * w + 2, f)[:, 1:-1, 1:-1] + bias


def halvings(sample_shape: tuple[int, ...]) -> int:
    """How often height and width halve: down to a side of 4, 5, 6 or 7, or an odd."""
    height, width, _ = sample_shape
    count = 0
    while height % 2 == 0 and width % 2 == 0 and min(height, width) >= 8:
        height, width, count = height // 2, width // 2, count + 1
    return count


def _dense(features: int, dtype, name: str | None = None, kernel_init=None):
    """A dense layer with the types and the initialization of this module."""
    return nn.Dense(
        features,
        dtype=dtype,
        param_dtype=_param_dtype(dtype),
        kernel_init=kernel_init or _he(),
        name=name,
    )


def _output(h: jax.Array, sample_shape: tuple[int, ...], dtype) -> jax.Array:
    """Images in [-1, 1], points anywhere; in the type of the parameters."""
    h = h.reshape(h.shape[0], *sample_shape).astype(_param_dtype(dtype))
    return jnp.tanh(h) if len(sample_shape) == 3 else h


class MLPGenerator(nn.Module):
    """Fully connected generator with ReLU; tanh at the end where samples are images.

    Args:
        sample_shape: Shape of one sample, (height, width, channels) or (size,).
        width: Units of a hidden layer.
        depth: Hidden layers.
        dtype: Type of the computation.
    """

    sample_shape: tuple[int, ...]
    width: int = 256
    depth: int = 2
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, latents: jax.Array) -> jax.Array:
        """Maps latents [n, latent_size] to samples [n, *sample_shape]."""
        h = latents
        for _ in range(self.depth):
            h = nn.relu(_dense(self.width, self.dtype)(h))
        init = nn.initializers.lecun_normal()
        h = _dense(math.prod(self.sample_shape), self.dtype, kernel_init=init)(h)
        return _output(h, self.sample_shape, self.dtype)


class MLPDiscriminator(nn.Module):
    """Fully connected discriminator with leaky ReLU; one logit a sample.

    Args:
        width: Units of a hidden layer.
        depth: Hidden layers.
        dtype: Type of the computation.
    """

    width: int = 256
    depth: int = 2
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, samples: jax.Array) -> jax.Array:
        """Maps samples [n, ...] to logits [n]."""
        h = samples.reshape(samples.shape[0], -1)
        for _ in range(self.depth):
            h = nn.leaky_relu(_dense(self.width, self.dtype)(h), 0.2)
        h = _dense(1, self.dtype, kernel_init=nn.initializers.lecun_normal())(h)
        return h[:, 0].astype(_param_dtype(self.dtype))


class ConvGenerator(nn.Module):
    """DCGAN generator: a dense layer to a coarse grid, then transposed convolutions.

    The grid is the image's size halved while it is even and its side at least 8
    (8 -> 4, 28 -> 7, 32 -> 4, 64 -> 4). `width` channels are before the image;
    every halving doubles them. Layer normalization over the channels of a pixel keeps
    the scale, sample by sample.

    Args:
        sample_shape: Shape of one image, (height, width, channels).
        width: Channels of the finest hidden grid.
        norm: Whether to normalize hidden layers.
        dtype: Type of the computation.
    """

    sample_shape: tuple[int, ...]
    width: int = 32
    norm: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, latents: jax.Array) -> jax.Array:
        """Maps latents [n, latent_size] to images [n, *sample_shape]."""
        height, width, channels = self.sample_shape
        count = halvings(self.sample_shape)
        grid = (height >> count, width >> count, self.width << (count - 1))
        h = _dense(math.prod(grid), self.dtype)(latents)
        h = self._activate(h.reshape(-1, *grid))
        for level in reversed(range(count - 1)):
            h = TransposedConv(self.width << level, self.dtype)(h)
            h = self._activate(h)
        h = TransposedConv(channels, self.dtype)(h)
        return _output(h, self.sample_shape, self.dtype)

    def _activate(self, h):
        """ReLU, after the normalization where there is one."""
        if self.norm:
            dtype = _param_dtype(self.dtype)
            h = nn.LayerNorm(dtype=self.dtype, param_dtype=dtype)(h)
        return nn.relu(h)


class ConvDiscriminator(nn.Module):
    """DCGAN discriminator: strided convolutions with leaky ReLU, no normalization.

    Args:
        width: Channels after the first convolution; every halving doubles them.
        dtype: Type of the computation.
    """

    width: int = 32
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, samples: jax.Array) -> jax.Array:
        """Maps images [n, height, width, channels] to logits [n]."""
        h = samples
        for level in range(halvings(samples.shape[1:])):
            h = nn.leaky_relu(StridedConv(self.width << level, self.dtype)(h), 0.2)
        h = h.reshape(h.shape[0], -1)
        h = _dense(1, self.dtype, kernel_init=nn.initializers.lecun_normal())(h)
        return h[:, 0].astype(_param_dtype(self.dtype))


@dataclasses.dataclass(frozen=True)
class Gan:
    """A generator, a discriminator, and the shapes between them.

    Any two flax modules do: `generator` maps latents [n, latent_size] to samples
    [n, *sample_shape], `discriminator` maps samples to logits [n]. Hashable, so it may
    be a static argument of `jax.jit`.

    Attributes:
        generator: Module with the parameters x.
        discriminator: Module with the parameters y.
        latent_size: Length of a latent vector, drawn from a standard normal.
        sample_shape: Shape of one sample.
    """

    generator: nn.Module
    discriminator: nn.Module
    latent_size: int
    sample_shape: tuple[int, ...]


def init(gan: Gan, key: jax.Array) -> MinMax:
    """Draws the parameters of both players.

    Args:
        gan: The pair of networks.
        key: A typed random key.

    Returns:
        `MinMax(x, y)`: parameters of the generator and of the discriminator.

    Example:
        >>> import jax
        >>> gan = mlp((2,), latent_size=4, width=8)
        >>> z = init(gan, jax.random.key(0))
        >>> sample(gan, z.x, jax.random.key(1), 5).shape
        (5, 2)
    """
    x_key, y_key = jax.random.split(key)
    latent = jnp.zeros((1, gan.latent_size))
    x = gan.generator.init(x_key, latent)["params"]
    y = gan.discriminator.init(y_key, jnp.zeros((1, *gan.sample_shape)))["params"]
    return MinMax(x, y)


def latents(gan: Gan, key: jax.Array, n: int) -> jax.Array:
    """Draws n standard normal latent vectors, [n, latent_size]."""
    return jax.random.normal(key, (n, gan.latent_size))


def generate(gan: Gan, x, latents: jax.Array) -> jax.Array:
    """Maps latents [n, latent_size] to samples [n, *sample_shape].

    Args:
        gan: The pair of networks.
        x: Parameters of the generator.
        latents: Latent vectors.

    Returns:
        Samples; images lie in [-1, 1].
    """
    return cast(jax.Array, gan.generator.apply({"params": x}, latents))


def sample(gan: Gan, x, key: jax.Array, n: int) -> jax.Array:
    """Draws n samples of the generator, [n, *sample_shape].

    Args:
        gan: The pair of networks.
        x: Parameters of the generator.
        key: A typed random key.
        n: Number of samples.

    Returns:
        Samples; images lie in [-1, 1].
    """
    return generate(gan, x, latents(gan, key, n))


def discriminate(gan: Gan, y, samples: jax.Array) -> jax.Array:
    """Maps samples [n, *sample_shape] to logits [n]: large where they look real.

    Args:
        gan: The pair of networks.
        y: Parameters of the discriminator.
        samples: Real or generated samples.

    Returns:
        One logit a sample.
    """
    return cast(jax.Array, gan.discriminator.apply({"params": y}, samples))


def _check(sample_shape, ranks, **sizes) -> tuple[int, ...]:
    """Refuses shapes and sizes that are no positive whole numbers."""
    shape = tuple(sample_shape)
    if len(shape) not in ranks or any(int(s) != s or s < 1 for s in shape):
        wanted = " or ".join(
            {1: "(size,)", 3: "(height, width, channels)"}[r] for r in ranks
        )
        raise ValueError(
            f"sample_shape must be {wanted}, in positive whole numbers; got {shape}."
        )
    for name, size in sizes.items():
        if size < 1 or int(size) != size:
            raise ValueError(f"{name} must be a positive whole number; got {size}.")
    return tuple(int(s) for s in shape)


def mlp(
    sample_shape: tuple[int, ...],
    *,
    latent_size: int = 64,
    width: int = 256,
    depth: int = 2,
    dtype=jnp.float32,
) -> Gan:
    """A GAN of two fully connected networks: for points, and for very small images.

    Args:
        sample_shape: (size,) for points, (height, width, channels) for images.
        latent_size: Length of a latent vector.
        width: Units of a hidden layer.
        depth: Hidden layers.
        dtype: Type of the computation, such as `jnp.bfloat16` on an accelerator;
            parameters, samples and logits stay in float32 at least.

    Returns:
        The pair of networks.

    Raises:
        ValueError: If a shape or a size is not positive.
    """
    shape = _check(
        sample_shape, (1, 3), latent_size=latent_size, width=width, depth=depth
    )
    return Gan(
        MLPGenerator(shape, width, depth, dtype),
        MLPDiscriminator(width, depth, dtype),
        latent_size,
        shape,
    )


def dcgan(
    sample_shape: tuple[int, ...],
    *,
    latent_size: int = 64,
    width: int = 32,
    norm: bool = True,
    dtype=jnp.float32,
) -> Gan:
    """A GAN of two convolutional networks, for images of 8x8, 28x28, 32x32, 64x64, ...

    Args:
        sample_shape: (height, width, channels); height and width even and at least 8.
        latent_size: Length of a latent vector.
        width: Channels of the finest hidden grid; every halving doubles them.
        norm: Whether the generator normalizes its hidden layers.
        dtype: Type of the computation, such as `jnp.bfloat16` on an accelerator;
            parameters, samples and logits stay in float32 at least.

    Returns:
        The pair of networks.

    Raises:
        ValueError: If a shape or a size does not fit.

    References:
        Radford, Metz, Chintala, *Unsupervised Representation Learning with Deep
        Convolutional Generative Adversarial Networks*, 2016, arXiv 1511.06434.
    """
    shape = _check(sample_shape, (3,), latent_size=latent_size, width=width)
    if halvings(shape) == 0:
        raise ValueError(
            "sample_shape must have an even height and width of at least 8 to be "
            f"halved; got {shape}. Pad the images, or use mlp(sample_shape)."
        )
    return Gan(
        ConvGenerator(shape, width, norm, dtype),
        ConvDiscriminator(width, dtype),
        latent_size,
        shape,
    )
