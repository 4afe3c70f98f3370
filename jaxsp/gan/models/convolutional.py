"""GANs of two convolutional networks."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxsp._arguments import check_flag
from jaxsp.gan.models.arguments import check, check_image, halvings
from jaxsp.gan.models.gan import Gan
from jaxsp.gan.models.layers import (
    conv,
    dense,
    heads,
    layer_norm,
    output,
    strided_conv,
    transposed_conv,
    wide_transposed_conv,
)


class ConvGenerator(nn.Module):
    """DCGAN generator: a dense layer to a coarse grid, then transposed convolutions.

    The grid is the image's size halved while it is even and its side at least 8
    (8 -> 4, 28 -> 7, 32 -> 4, 64 -> 4). Layer normalization over the channels of a
    pixel keeps the scale, sample by sample.

    Args: those of `dcgan`.
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
        h = dense(math.prod(grid), self.dtype)(latents)
        h = h.reshape(-1, *grid)
        widths = [self.width << level for level in reversed(range(count - 1))]
        for i, features in enumerate([*widths, channels]):
            h = nn.relu(layer_norm(h, self.dtype) if self.norm else h)
            h = transposed_conv(features, self.dtype, name=f"TransposedConv_{i}")(h)
        return output(h, self.sample_shape, self.dtype)


class ConvDiscriminator(nn.Module):
    """DCGAN discriminator: strided convolutions with leaky ReLU, no normalization.

    Args: those of `dcgan`.
    """

    width: int = 32
    dtype: jnp.dtype = jnp.float32
    num_classes: int = 0

    @nn.compact
    def __call__(self, samples: jax.Array):
        """Maps images [n, h, w, c] to logits [n], and class logits [n, classes]."""
        h = samples
        for level in range(halvings(samples.shape[1:])):
            name = f"StridedConv_{level}"
            h = strided_conv(self.width << level, self.dtype, name=name)(h)
            h = nn.leaky_relu(h, 0.2)
        return heads(h.reshape(h.shape[0], -1), self.num_classes, self.dtype)


class MDGanGenerator(nn.Module):
    """Generator of MD-GAN's CNNs: dense, then 5x5 transposed convolutions of stride 2.

    Args: those of `md_gan_cnn`.
    """

    sample_shape: tuple[int, ...]
    width: int = 16
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, latents: jax.Array) -> jax.Array:
        """Maps latents [n, latent_size] to images [n, *sample_shape]."""
        side, hidden = (4, (24, 12, 6)) if self.sample_shape[0] == 32 else (7, (8, 2))
        first, *others = (self.width * factor for factor in hidden)
        h = dense(side * side * first, self.dtype)(latents)
        h = h.reshape(-1, side, side, first)
        for i, features in enumerate([*others, self.sample_shape[-1]]):
            name = f"WideTransposedConv_{i}"
            h = wide_transposed_conv(features, self.dtype, name=name)(nn.relu(h))
        return output(h, self.sample_shape, self.dtype)


class MDGanDiscriminator(nn.Module):
    """Discriminator of MD-GAN's CNNs: six 3x3 convolutions with leaky ReLU.

    Args: those of `md_gan_cnn`.
    """

    width: int = 16
    dtype: jnp.dtype = jnp.float32
    num_classes: int = 0

    @nn.compact
    def __call__(self, samples: jax.Array):
        """Maps images [n, h, w, c] to logits [n], and class logits [n, classes]."""
        h = samples
        for level in range(6):
            stride = 2 if level % 2 == 0 and h.shape[1] % 2 == 0 else 1
            h = conv(self.width << level, self.dtype, strides=stride)(h)
            h = nn.leaky_relu(h, 0.2)
        return heads(h.reshape(h.shape[0], -1), self.num_classes, self.dtype)


def dcgan(
    sample_shape: tuple[int, ...],
    num_classes: int = 0,
    *,
    latent_size: int = 64,
    width: int = 32,
    norm: bool = True,
    dtype=jnp.float32,
) -> Gan:
    """A GAN of two convolutional networks, for images of 8x8, 28x28, 32x32, 64x64, ...

    Args: those of every builder, see `jaxsp.gan.models`, and
      sample_shape: (height, width, channels); height and width even and at least 8.
      width: channels of the finest hidden grid; every halving doubles them.
      norm: whether the generator normalizes its hidden layers.

    References:
      Radford, Metz, Chintala, *Unsupervised Representation Learning with Deep
      Convolutional Generative Adversarial Networks*, 2016, arXiv 1511.06434.
    """
    shape = check_image(sample_shape, width, dtype)
    check_flag("norm", norm)
    generator = ConvGenerator(shape, width, norm, dtype)
    discriminator = ConvDiscriminator(width, dtype, num_classes)
    return Gan(generator, discriminator, latent_size, shape, num_classes)


def md_gan_cnn(
    sample_shape: tuple[int, ...] = (28, 28, 1),
    num_classes: int = 10,
    *,
    latent_size: int = 100,
    width: int = 16,
    dtype=jnp.float32,
) -> Gan:
    """The convolutional networks of MD-GAN's experiments on MNIST and CIFAR-10.

    On MNIST the paper's generator is a dense layer of 6,272 units and transposed
    convolutions of 32 and 1 kernels of 5x5; on CIFAR-10, 6,144 units and 192, 96 and 3
    kernels. The discriminator is convolutions of 16, 32, 64, 128, 256 and 512 kernels
    of 3x3, minibatch discrimination, and a dense layer of 1 + 10 units.

    The paper counts 628,058 and 286,048 parameters (MNIST), 628,110 and 100,203
    (CIFAR-10): with one channel in for every kernel, without minibatch discrimination,
    and on MNIST without biases of dense layers. The counts imply the strides: the
    first, third and (CIFAR-10) fifth convolution halve. Counted in full there are
    736,705 and 1,848,459 parameters (MNIST), 2,932,035 and 1,662,891 (CIFAR-10).

    The leaky ReLU is ours. Minibatch discrimination is left out, since with it a logit
    depends on other samples. The paper mentions neither normalization nor dropout.

    Args: those of every builder, see `jaxsp.gan.models`, and
      sample_shape: (28, 28, channels) or (32, 32, channels).
      width: channels after the discriminator's first convolution; all others are to it
        as above.

    References:
      Hardy, Le Merrer, Sericola, *MD-GAN: Multi-Discriminator Generative Adversarial
      Networks for Distributed Datasets*, 2019, arXiv 1811.03850.
    """
    shape = check(sample_shape, (3,), dtype, width=width)
    if shape[:2] not in ((28, 28), (32, 32)):
        raise ValueError(
            "sample_shape must be (28, 28, channels) or (32, 32, channels), got "
            f"{shape}. For other sizes there is dcgan(sample_shape)."
        )
    generator = MDGanGenerator(shape, width, dtype)
    discriminator = MDGanDiscriminator(width, dtype, num_classes)
    return Gan(generator, discriminator, latent_size, shape, num_classes)
