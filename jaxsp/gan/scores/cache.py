"""Arrays computed once and kept in a file, which is there completely or not at all."""

import hashlib
import logging
import pathlib
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxsp.gan import files

__all__ = ["digest", "read", "write"]

_log = logging.getLogger(__name__)


def digest(*trees: Any) -> str:
    """Sixteen hexadecimal digits that change with any array or other leaf.

    Args:
      *trees: pytrees of arrays, numbers and strings.

    Returns:
      The digest, by the leaves' places, types, shapes and content.
    """
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(trees):
        name = jax.tree_util.keystr(path)
        if not hasattr(leaf, "shape"):
            found.update(repr((name, leaf)).encode())
            continue
        array = np.asarray(leaf)
        found.update(repr((name, array.shape, array.dtype.str)).encode())
        found.update(np.ascontiguousarray(array).view(np.uint8).data)
    return found.hexdigest()[:16]


def read(
    path: pathlib.Path, check: Callable[[dict[str, np.ndarray]], None]
) -> dict[str, np.ndarray] | None:
    """The arrays of `write`.

    Args:
      path: the file.
      check: called with the arrays; raises KeyError or ValueError where they are not
        those that are wanted.

    Returns:
      The arrays by name. None where there is no file, and where it is damaged, fails
      the check or holds a number that is not finite, which is logged.
    """
    if not path.exists():
        return None
    try:
        # Opened here: np.load leaves its file open where the archive is spoilt.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = dict(file)
        check(arrays)
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise ValueError("it holds numbers that are not finite")
    except (
        OSError,
        EOFError,
        KeyError,
        TypeError,
        ValueError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        _log.warning("%s cannot be used (%s): making it anew.", path, error)
        return None
    return arrays


def write(path: pathlib.Path, arrays: dict[str, Any]) -> None:
    """Writes the whole file or none; where it cannot, it says so and goes on.

    Args:
      path: the file; its directory is made.
      arrays: arrays by name.
    """
    try:
        with files.replacing(path, parents=True) as temporary:
            np.savez(temporary, **arrays)
    except (OSError, ValueError) as error:
        _log.warning("%s could not be written (%s).", path, error)
