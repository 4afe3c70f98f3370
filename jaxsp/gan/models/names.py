"""Models by name, as a command line gives them."""

import re
from typing import Any

import jax.numpy as jnp

from jaxsp._arguments import check_instance
from jaxsp.gan.models.convolutional import dcgan, md_gan_cnn
from jaxsp.gan.models.gan import Gan
from jaxsp.gan.models.mlp import md_gan_mlp, mlp
from jaxsp.gan.models.residual import resnet, sagan

_MODELS = {f.__name__: f for f in (mlp, dcgan, md_gan_mlp, md_gan_cnn, resnet, sagan)}
NAMES = tuple(_MODELS)


def parse(
    text: str,
    sample_shape: tuple[int, ...],
    num_classes: int = 0,
    dtype=jnp.float32,
    latent_size: int | None = None,
) -> Gan:
    """Builds the pair of networks that a text names, such as "dcgan" or "dcgan:64".

    Args:
      text: "mlp", "dcgan", "md_gan_mlp", "md_gan_cnn", "resnet" or "sagan"; after a
        colon the width, if it is not to be the model's own.
      sample_shape: as of every builder, see `jaxsp.gan.models`.
      num_classes: the same.
      dtype: the same.
      latent_size: the same; None is the model's own.

    Returns:
      The pair of networks.

    Raises:
      ValueError: if there is no such model, or shape and sizes do not fit it.

    Example:
      >>> parse("dcgan:8", (28, 28, 1)).latent_size
      64
    """
    models = _MODELS
    check_instance("text", text, str, "a text, such as mlp")
    match = re.fullmatch(r"(\w+)(?::0*([1-9][0-9]*))?", text)
    if not match or match[1] not in models:
        raise ValueError(
            f"model must be one of {', '.join(models)}, with a width after a colon "
            f"where wanted, a positive whole number as in dcgan:64; got {text!r}."
        )
    options: dict[str, Any] = {"width": int(match[2])} if match[2] else {}
    options |= {} if latent_size is None else {"latent_size": latent_size}
    return models[match[1]](sample_shape, num_classes, dtype=dtype, **options)
