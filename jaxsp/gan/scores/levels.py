"""What the levels of images may be, for every network that judges them."""

import jax.numpy as jnp
import numpy as np

__all__ = ["check_levels"]


def check_levels(images: np.ndarray) -> None:
    """Refuses images that are neither uint8 nor in [-1, 1].

    Args:
      images: an array of images.

    Raises:
      ValueError: if they are of another type, or a number is not finite or farther
        than rounding from [-1, 1].
    """
    if images.dtype == np.uint8:
        return
    floating = jnp.issubdtype(images.dtype, jnp.floating)
    low, high = (images.min(), images.max()) if floating else (0, 0)
    if not (floating and low >= -1.001 and high <= 1.001):
        raise ValueError(
            "images must be uint8, or floating in [-1, 1]; got "
            f"{images.dtype}{f' from {low} to {high}' if floating else ''}. Levels "
            "from 0 to 255 are images.astype(np.uint8)."
        )
