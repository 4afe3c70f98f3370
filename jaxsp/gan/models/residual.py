"""GANs of two residual networks, without and with self-attention."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxsp.gan.models.arguments import check_image, halvings
from jaxsp.gan.models.attention import SelfAttention
from jaxsp.gan.models.gan import Gan
from jaxsp.gan.models.layers import (
    conv,
    dense,
    layer_norm,
    output,
    param_dtype,
)


class ResNetGenerator(nn.Module):
    r"""A dense layer to a coarse grid, then a residual block for every doubling.

    The grids are those of `dcgan`; a grid that was halved $l$ times has
    $\min(2^l, 4)$ · `width` channels. A block is normalization, ReLU, doubling, 3x3
    convolution, normalization, ReLU, 3x3 convolution, added to its doubled input (after
    a 1x1 convolution where the channels change). Layer normalization over the channels
    of a pixel takes the place of the papers' batch normalization.

    Args: those of `resnet`, and
      spectral: whether to normalize all kernels by their spectral norm.
      attention: whether there is self-attention on the grid of half the size.
    """

    sample_shape: tuple[int, ...]
    width: int = 64
    spectral: bool = False
    attention: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, latents: jax.Array) -> jax.Array:
        """Maps latents [n, latent_size] to images [n, *sample_shape]."""
        height, width, channels = self.sample_shape
        count = halvings(self.sample_shape)
        grid = (height >> count, width >> count, _channels(self.width, count))
        h = dense(math.prod(grid), self.dtype, spectral=self.spectral)(latents)
        h = h.reshape(-1, *grid)
        for level in reversed(range(count)):
            if self.attention and level == 0:
                h = SelfAttention(self.spectral, self.dtype)(h)
            h = self._block(h, _channels(self.width, level))
        h = self._normal_conv(h, channels)
        return output(h, self.sample_shape, self.dtype)

    def _block(self, x, features):
        """[n, h, w, c] to [n, 2h, 2w, features]."""
        h = self._normal_conv(x, features, double=True)
        h = self._normal_conv(h, features)
        if x.shape[-1] != features:  # commutes with the doubling
            x = dense(features, self.dtype, spectral=self.spectral)(x)
        return _double(x) + h

    def _normal_conv(self, h, features, double=False):
        """Normalization, ReLU, doubling where asked for, 3x3 convolution."""
        h = nn.relu(layer_norm(h, self.dtype))
        h = _double(h) if double else h
        return conv(features, self.dtype, spectral=self.spectral)(h)


class ResNetDiscriminator(nn.Module):
    r"""Residual blocks that halve down to the coarse grid, one more, a sum over pixels.

    A grid that was halved $l$ times has $\min(2^{l - 1}, 4)$ · `width` channels. Blocks
    are ReLU, 3x3 convolution, ReLU, 3x3 convolution, 2x2 mean, added to the 2x2 mean of
    the input (after a 1x1 convolution where the channels change). The first block does
    without the first ReLU, the last without the mean. Every kernel is normalized by its
    spectral norm, those of logit and class logits apart.

    Args: those of `resnet`, and
      attention: whether there is self-attention after the first block.
    """

    width: int = 64
    attention: bool = False
    dtype: jnp.dtype = jnp.float32
    num_classes: int = 0

    @nn.compact
    def __call__(self, samples: jax.Array):
        """Maps images [n, h, w, c] to logits [n], and class logits [n, classes]."""
        count = halvings(samples.shape[1:])
        h = samples.astype(self.dtype)
        for level in range(count):
            h = self._block(h, _channels(self.width, level), first=level == 0)
            if self.attention and level == 0:
                h = SelfAttention(True, self.dtype)(h)
        h = nn.relu(self._block(h, h.shape[-1], halve=False)).sum(axis=(1, 2))

        def head(features, name):
            said = dense(features, self.dtype, spectral=True, name=name)(h)
            return said.astype(param_dtype(self.dtype))

        logits = head(1, "logit")[:, 0]
        return (
            (logits, head(self.num_classes, "classes")) if self.num_classes else logits
        )

    def _block(self, x, features, first=False, halve=True):
        """[n, 2h, 2w, c] to [n, h, w, features], or the same size."""
        h = conv(features, self.dtype, spectral=True)(x if first else nn.relu(x))
        h = conv(features, self.dtype, spectral=True)(nn.relu(h))
        if halve:
            x, h = _halve(x), _halve(h)
        if x.shape[-1] != features:  # commutes with the mean
            x = dense(features, self.dtype, spectral=True)(x)
        return x + h


def _channels(width: int, level: int) -> int:
    """Channels of a grid: twice as many for each halving, up to four times."""
    return width * min(1 << level, 4)


def _double(x):
    """Every pixel as a 2x2 block."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


def _halve(x):
    """The mean of every 2x2 block."""
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def resnet(
    sample_shape: tuple[int, ...],
    num_classes: int = 0,
    *,
    latent_size: int = 128,
    width: int = 64,
    dtype=jnp.float32,
) -> Gan:
    """A GAN of two residual networks, with spectral normalization in the discriminator.

    In the manner of SNGAN, which has 256 and 128 channels on all grids of 32x32 images
    and up to 1024 for 64x64. Here the channels grow from `width` on the finest grid to
    four times as many.

    Args: those of every builder, see `jaxsp.gan.models`, and
      sample_shape: (height, width, channels); height and width even and at least 8.
      width: channels of the finest grid.

    References:
      Miyato, Kataoka, Koyama, Yoshida, *Spectral Normalization for Generative
      Adversarial Networks*, 2018, arXiv 1802.05957.
    """
    shape = check_image(sample_shape, width, dtype)
    generator = ResNetGenerator(shape, width, dtype=dtype)
    discriminator = ResNetDiscriminator(width, dtype=dtype, num_classes=num_classes)
    return Gan(generator, discriminator, latent_size, shape, num_classes)


def sagan(
    sample_shape: tuple[int, ...],
    num_classes: int = 0,
    *,
    latent_size: int = 128,
    width: int = 64,
    dtype=jnp.float32,
) -> Gan:
    """`resnet` with self-attention, and spectral normalization in both networks.

    In the manner of SAGAN, with the attention on the grid of half the image's size.

    Args: those of `resnet`.

    References:
      Zhang, Goodfellow, Metaxas, Odena, *Self-Attention Generative Adversarial
      Networks*, 2019, arXiv 1805.08318.
    """
    shape = check_image(sample_shape, width, dtype)
    generator = ResNetGenerator(shape, width, True, True, dtype)
    discriminator = ResNetDiscriminator(width, True, dtype, num_classes)
    return Gan(generator, discriminator, latent_size, shape, num_classes)
