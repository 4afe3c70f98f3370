"""Samples in parts of equal size, for whatever judges them."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsp.gan.bars import track

__all__ = ["BLOCK", "apply_to_images", "blocks"]

BLOCK = 500


def blocks(samples: Any, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Samples of one shape, an array or an iterable of arrays, in blocks of `BLOCK`."""
    waiting: list[np.ndarray] = []
    for batch in [samples] if hasattr(samples, "shape") else samples:
        batch = batch if hasattr(batch, "shape") else np.asarray(batch)
        if batch.shape[1:] != shape or len(batch) == 0:
            raise ValueError(
                f"samples must be of shape {('n', *shape)} with n >= 1, as the data "
                f"are, or an iterable of such arrays, got {batch.shape}."
            )
        for start in range(0, len(batch), BLOCK):
            waiting.append(np.asarray(batch[start : start + BLOCK]))
            if sum(map(len, waiting)) >= BLOCK:
                joined = np.concatenate(waiting)
                yield joined[:BLOCK]
                waiting = [joined[BLOCK:]]
    if not waiting:
        raise ValueError("samples must hold at least one sample, got none.")
    if sum(map(len, waiting)):
        yield np.concatenate(waiting)


def apply_to_images(
    network: Callable[[np.ndarray], Any],
    images: Any,
    size: int,
    title: str = "",
    progress: bool = False,
) -> Any:
    """What a network makes of images, in batches of equal shape for one compilation.

    Images are [n, height, width, channels], uint8, or float in [-1, 1]. The network
    maps a batch to an array, or a tuple of arrays, with a row an image.
    """
    size, found = min(size, len(images)), []
    for start in track(range(0, len(images), size), title, enabled=progress):
        batch = np.asarray(images[start : start + size])
        _check_levels(batch)
        spare = [(0, size - len(batch))] + [(0, 0)] * (batch.ndim - 1)
        rows, batch = len(batch), np.pad(batch, spare)
        found.append(jax.tree.map(lambda a, n=rows: np.asarray(a)[:n], network(batch)))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *found)


def _check_levels(images: np.ndarray) -> None:
    """Refuses images that are neither uint8 nor, up to rounding, in [-1, 1]."""
    if images.dtype == np.uint8:
        return
    floating = jnp.issubdtype(images.dtype, jnp.floating)
    low, high = (images.min(), images.max()) if floating else (0, 0)
    if not (floating and low >= -1.001 and high <= 1.001):
        raise ValueError(
            "images must be uint8, or floating in [-1, 1], got "
            f"{images.dtype}{f' from {low} to {high}' if floating else ''}: levels "
            "from 0 to 255 are images.astype(np.uint8)."
        )
