"""Data sets as arrays, where they come from, and which worker holds what."""

from jaxsp.gan.data import partition
from jaxsp.gan.data.dataset import Dataset, to_uint8, to_unit
from jaxsp.gan.data.datasets import NAMES, cache_dir, draw, load
from jaxsp.gan.data.outline import outline

__all__ = [
    "NAMES",
    "Dataset",
    "cache_dir",
    "draw",
    "load",
    "outline",
    "partition",
    "to_uint8",
    "to_unit",
]
