"""Small things that the processes of a run do together; all work with one process."""

import zlib
from typing import Any

import jax
import numpy as np

from jaxsp.distributed.rendezvous import DistributedError

__all__ = ["barrier", "is_main", "process_count", "process_index", "process_max"]


def process_index() -> int:
    """The number of this process, from 0; JAX's devices are looked for if need be."""
    return jax.process_index()


def process_count() -> int:
    """How many processes there are; JAX's devices are looked for if need be."""
    return jax.process_count()


def is_main() -> bool:
    """Whether this is process 0, which writes what is written once."""
    return process_index() == 0


def process_max(values: Any) -> np.ndarray:
    """The elementwise maximum over all processes, every one of which must call this.

    Args:
      values: integers, a number or an array of the same shape in every process.

    Returns:
      The maximum as an int64 array, the same in every process.

    Raises:
      ValueError: if `values` are not integers.

    Example:
      >>> import jaxsp
      >>> from jaxsp.distributed import process_max
      >>> process_max([3, 1])
      array([3, 1])
    """
    array = np.asarray(values)
    if array.dtype.kind not in "biu":
        raise ValueError(f"values must be integers, got {array.dtype}.")
    array = array.astype(np.int64)
    return _gathered(array).max(axis=0)


def barrier(name: str) -> None:
    """Wait until every process has called this with the same name.

    Args:
      name: which barrier it is, for example what has just been done.

    Raises:
      DistributedError: if processes came with different names.
    """
    own = zlib.crc32(name.encode())
    if (_gathered(np.array(own, np.int64)) != own).any():
        raise DistributedError(
            f"process {process_index()} is at barrier {name!r}, another one at a "
            "different barrier: all processes must do the same in the same order."
        )


def _gathered(array: np.ndarray) -> np.ndarray:
    """Every process's int64 array, stacked."""
    if process_count() == 1:
        return array[np.newaxis]
    from jax.experimental import multihost_utils

    # As bytes, because JAX makes int32 of int64.
    buffer = np.frombuffer(array.tobytes(), np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(buffer))
    return rows.view(np.int64).reshape(-1, *array.shape)
