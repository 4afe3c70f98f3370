"""GANs of two convolutional networks."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxsp.gan.models.arguments import check, check_image
from jaxsp.gan.models.gan import Gan
from jaxsp.gan.models.layers import (
    conv,
    dense,
    halvings,
    heads,
    output,
    param_dtype,
    strided_conv,
    transposed_conv,
    wide_transposed_conv,
)

__all__ = [
    "ConvDiscriminator",
    "ConvGenerator",
    "MDGanDiscriminator",
    "MDGanGenerator",
    "dcgan",
    "md_gan_cnn",
]


class ConvGenerator(nn.Module):
    """DCGAN generator: a dense layer to a coarse grid, then transposed convolutions.

    The grid is the image's size halved while it is even and its side at least 8
    (8 -> 4, 28 -> 7, 32 -> 4, 64 -> 4). `width` channels are before the image;
    every halving doubles them. Layer normalization over the channels of a pixel keeps
    the scale, sample by sample.

    Args:
      sample_shape: shape of one image, (height, width, channels).
      width: channels of the finest hidden grid.
      norm: whether to normalize hidden layers.
      dtype: type of the computation.
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
            h = self._activate(h)
            h = transposed_conv(features, self.dtype, name=f"TransposedConv_{i}")(h)
        return output(h, self.sample_shape, self.dtype)

    def _activate(self, h):
        """ReLU, after the normalization where there is one."""
        if self.norm:
            dtype = param_dtype(self.dtype)
            h = nn.LayerNorm(dtype=self.dtype, param_dtype=dtype)(h)
        return nn.relu(h)


class ConvDiscriminator(nn.Module):
    """DCGAN discriminator: strided convolutions with leaky ReLU, no normalization.

    Args:
      width: channels after the first convolution; every halving doubles them.
      dtype: type of the computation.
      num_classes: number of class logits beside the logit.
    """

    width: int = 32
    dtype: jnp.dtype = jnp.float32
    num_classes: int = 0

    @nn.compact
    def __call__(self, samples: jax.Array):
        """Maps images [n, h, w, c] to logits [n], and class logits [n, classes]."""
        h = samples
        for level in range(halvings(samples.shape[1:])):
            layer = strided_conv(
                self.width << level, self.dtype, name=f"StridedConv_{level}"
            )
            h = nn.leaky_relu(layer(h), 0.2)
        h = h.reshape(h.shape[0], -1)
        return heads(h, self.num_classes, self.dtype)


class MDGanGenerator(nn.Module):
    """Generator of MD-GAN's CNNs: dense, then 5x5 transposed convolutions of stride 2.

    Args:
      sample_shape: shape of one image, (28, 28, channels) or (32, 32, channels).
      width: 16 gives the paper's layers; all channels grow with it.
      dtype: type of the computation.
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

    Args:
      width: channels after the first convolution; each of the others doubles them.
      dtype: type of the computation.
      num_classes: number of class logits beside the logit.
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

    Args:
      sample_shape: (height, width, channels); height and width even and at least 8.
      num_classes: number of classes, of a conditional pair; see `Gan`.
      latent_size: length of a latent vector, its class included.
      width: channels of the finest hidden grid; every halving doubles them.
      norm: whether the generator normalizes its hidden layers.
      dtype: type of the computation, such as `jnp.bfloat16` on an accelerator;
        parameters, samples and logits stay in float32 at least.

    Returns:
      The pair of networks.

    Raises:
      ValueError: if a shape or a size does not fit.

    References:
      Radford, Metz, Chintala, *Unsupervised Representation Learning with Deep
      Convolutional Generative Adversarial Networks*, 2016, arXiv 1511.06434.
    """
    shape = check_image(sample_shape, latent_size=latent_size, width=width)
    return Gan(
        ConvGenerator(shape, width, norm, dtype),
        ConvDiscriminator(width, dtype, num_classes),
        latent_size,
        shape,
        num_classes,
    )


def md_gan_cnn(
    sample_shape: tuple[int, ...] = (28, 28, 1),
    num_classes: int = 10,
    *,
    latent_size: int = 100,
    width: int = 16,
    dtype=jnp.float32,
) -> Gan:
    """The convolutional networks of MD-GAN's experiments on MNIST and CIFAR-10.

    The generator is, in the paper's words, a dense layer of 6,272 units and transposed
    convolutions of 32 and 1 kernels of 5x5 (MNIST), or of 6,144 units and 192, 96 and 3
    kernels (CIFAR-10); the discriminator has convolutions of 16, 32, 64, 128, 256 and
    512 kernels of 3x3, minibatch discrimination, and a dense layer of 1 + 10 units.

    The paper counts 628,058 and 286,048 parameters (MNIST) and 628,110 and 100,203
    (CIFAR-10). These are the sums over the layers above with every kernel counted for
    one channel in, minibatch discrimination left out, and on MNIST the dense layers
    without a bias. From the size that this gives the last dense layer, 7x7x512 or
    4x4x512, follow the strides: the first, third and (CIFAR-10) fifth convolution
    halve. Counted in full the networks have 736,705 and 1,848,459 parameters (MNIST),
    2,932,035 and 1,662,891 (CIFAR-10). Ours are the leaky ReLU, and what is left out:
    minibatch discrimination, which lets a logit depend on other samples, and
    normalization over the batch and dropout, which the paper does not mention.

    Args:
      sample_shape: (28, 28, channels) or (32, 32, channels).
      num_classes: number of classes; 0 for an unconditional pair.
      latent_size: length of a latent vector, its class included.
      width: channels after the discriminator's first convolution; the others, and the
        generator's, are to it as above.
      dtype: type of the computation, such as `jnp.bfloat16` on an accelerator;
        parameters, samples and logits stay in float32 at least.

    Returns:
      The pair of networks.

    Raises:
      ValueError: if a shape or a size does not fit.

    References:
      Hardy, Le Merrer, Sericola, *MD-GAN: Multi-Discriminator Generative Adversarial
      Networks for Distributed Datasets*, 2019, arXiv 1811.03850.
    """
    shape = check(sample_shape, (3,), latent_size=latent_size, width=width)
    if shape[:2] not in ((28, 28), (32, 32)):
        raise ValueError(
            "sample_shape must be (28, 28, channels) or (32, 32, channels); got "
            f"{shape}. For other sizes there is dcgan(sample_shape)."
        )
    return Gan(
        MDGanGenerator(shape, width, dtype),
        MDGanDiscriminator(width, dtype, num_classes),
        latent_size,
        shape,
        num_classes,
    )
