"""Data sets by their sizes alone, without their files: what a plan needs."""

import os
from typing import Any

import numpy as np

from jaxsp.gan.data import datasets, prepared
from jaxsp.gan.data.dataset import Dataset

# Of both splits. TFDS's numbers; those of the official files are the same.
_EXAMPLES = {
    "mnist": (60_000, 10_000),
    "fashion_mnist": (60_000, 10_000),
    "cifar10": (50_000, 10_000),
    "celeb_a": (162_770, 19_962),
    "stacked_mnist": datasets.STACKED_EXAMPLES,
}


def outline(
    name: str, data_dir: str | os.PathLike | None = None
) -> tuple[Dataset, bool]:
    """What `load` gives, as far as it is known without reading any image.

    Nothing is read, decoded, downloaded or written but the labels that `load` has
    cached before. What is small or made anew each time is loaded.

    Args:
      name: as in `load`.
      data_dir: as in `load`.

    Returns:
      A data set of the right shapes, types and numbers, whose images are black, in no
      memory; and whether its labels are the real ones, and not equally many of each
      class.

    Raises:
      ValueError: as `load`.
      ImportError: as `load`.

    Example:
      >>> mnist, _ = outline("mnist")
      >>> mnist.train.shape, mnist.train.strides, mnist.num_classes
      ((60000, 28, 28, 1), (0, 0, 0, 0), 10)
    """
    if name not in _EXAMPLES:
        return datasets.load(name), True
    black = np.uint8(0)
    if name == "stacked_mnist":
        classes, shape, cached = 1000, (28, 28, 3), None
    else:
        classes, shape = datasets.number_of_classes(name), prepared.SHAPES[name]
        cached = datasets.cached_labels(name, data_dir)
    arrays: list[Any] = []
    for i, count in enumerate(_EXAMPLES[name]):
        equal = np.arange(count, dtype=np.int32) % classes
        labels = cached[i] if cached is not None else equal
        arrays += [np.broadcast_to(black, (len(labels), *shape)), labels]
    return Dataset(name, *arrays, num_classes=classes), cached is not None
