"""Models by name, as a command line gives them."""

import jax.numpy as jnp

from jaxsp.gan.models.convolutional import dcgan, md_gan_cnn
from jaxsp.gan.models.gan import Gan
from jaxsp.gan.models.mlp import md_gan_mlp, mlp
from jaxsp.gan.models.residual import resnet, sagan

__all__ = ["parse"]


def parse(
    text: str,
    sample_shape: tuple[int, ...],
    num_classes: int = 0,
    dtype=jnp.float32,
) -> Gan:
    """Builds the pair of networks that a text names, such as "dcgan" or "dcgan:64".

    Args:
      text: "mlp", "dcgan", "md_gan_mlp", "md_gan_cnn", "resnet" or "sagan"; after a
        colon the width, if it is not to be the model's own.
      sample_shape: shape of one sample.
      num_classes: number of classes; 0 for an unconditional pair.
      dtype: type of the computation.

    Returns:
      The pair of networks.

    Raises:
      ValueError: if there is no such model, or shape and sizes do not fit it.

    Example:
      >>> parse("dcgan:8", (28, 28, 1)).latent_size
      64
    """
    builders = (mlp, dcgan, md_gan_mlp, md_gan_cnn, resnet, sagan)
    models = {build.__name__: build for build in builders}
    name, colon, width = text.partition(":")
    if name not in models:
        raise ValueError(
            f"model must be one of {', '.join(models)}, with a width after a colon "
            f"where wanted, such as dcgan:64; got {text!r}."
        )
    if not colon:
        return models[name](sample_shape, num_classes, dtype=dtype)
    if not (width.isascii() and width.isdigit() and int(width)):
        raise ValueError(
            "the width after a model's name must be a positive whole number, such as "
            f"{name}:64; got {text!r}."
        )
    return models[name](sample_shape, num_classes, width=int(width), dtype=dtype)
