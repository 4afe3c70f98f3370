"""Data sets as arrays, where they come from, and which worker holds what."""

from jaxsp.gan.data import partition
from jaxsp.gan.data.datasets import (
    NAMES,
    Dataset,
    cache_dir,
    draw,
    load,
    to_uint8,
    to_unit,
)

__all__ = [
    "NAMES",
    "Dataset",
    "cache_dir",
    "draw",
    "load",
    "partition",
    "to_uint8",
    "to_unit",
]
