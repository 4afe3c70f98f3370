"""GANs of two fully connected networks."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxsp._arguments import check_unrolled
from jaxsp.gan.models.arguments import check
from jaxsp.gan.models.gan import Gan
from jaxsp.gan.models.layers import dense, heads, output


class MLPGenerator(nn.Module):
    """Fully connected generator with ReLU; tanh at the end where samples are images.

    Args: those of `mlp`.
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
            h = nn.relu(dense(self.width, self.dtype)(h))
        init = nn.initializers.lecun_normal()
        h = dense(math.prod(self.sample_shape), self.dtype, kernel_init=init)(h)
        return output(h, self.sample_shape, self.dtype)


class MLPDiscriminator(nn.Module):
    """Fully connected discriminator with leaky ReLU.

    Args: those of `mlp`.
    """

    width: int = 256
    depth: int = 2
    dtype: jnp.dtype = jnp.float32
    num_classes: int = 0

    @nn.compact
    def __call__(self, samples: jax.Array):
        """Maps samples [n, ...] to logits [n], and class logits [n, num_classes]."""
        h = samples.reshape(samples.shape[0], -1)
        for _ in range(self.depth):
            h = nn.leaky_relu(dense(self.width, self.dtype)(h), 0.2)
        return heads(h, self.num_classes, self.dtype)


def mlp(
    sample_shape: tuple[int, ...],
    num_classes: int = 0,
    *,
    latent_size: int = 64,
    width: int = 256,
    depth: int = 2,
    dtype=jnp.float32,
) -> Gan:
    """A GAN of two fully connected networks: for points, and for very small images.

    Args: those of every builder, see `jaxsp.gan.models`, and
      sample_shape: (size,) for points, (height, width, channels) for images.
      width: units of a hidden layer.
      depth: hidden layers.
    """
    shape = check(sample_shape, (1, 3), dtype, width=width)
    check_unrolled("depth", depth)
    generator = MLPGenerator(shape, width, depth, dtype)
    discriminator = MLPDiscriminator(width, depth, dtype, num_classes)
    return Gan(generator, discriminator, latent_size, shape, num_classes)


def md_gan_mlp(
    sample_shape: tuple[int, ...] = (28, 28, 1),
    num_classes: int = 10,
    *,
    latent_size: int = 100,
    width: int = 512,
    dtype=jnp.float32,
) -> Gan:
    """The fully connected networks of MD-GAN's experiments on MNIST.

    The generator has layers of 512, 512 and 784 units, 716,560 parameters. The
    discriminator has layers of 512, 512 and 1 + 10 units, 670,219 parameters. The first
    number tells that the class is a part of the 100 latent entries. The paper names no
    activations: these are those of `mlp`.

    Args: those of `mlp`.

    References:
      Hardy, Le Merrer, Sericola, *MD-GAN: Multi-Discriminator Generative Adversarial
      Networks for Distributed Datasets*, 2019, arXiv 1811.03850.
    """
    return mlp(
        sample_shape, num_classes, latent_size=latent_size, width=width, dtype=dtype
    )
