"""Arrays that are computed once and kept in a file, whole or not at all."""

import hashlib
import logging
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxsp.gan import data, files

__all__ = ["cached", "digest", "load"]

_log = logging.getLogger(__name__)


def digest(tree: Any) -> str:
    """The sha256 of a pytree's leaves: of names, types, shapes and content."""
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        found.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
        found.update(array.view(np.uint8).data)
    return found.hexdigest()


def load(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz; a damaged one raises errors of many kinds."""
    # Opened here: np.load leaves its file open where the archive is damaged.
    with path.open("rb") as stream, np.load(stream) as file:
        return dict(file)


def cached(
    cache_dir: str | os.PathLike | None,
    name: str,
    make: Callable[[], Mapping[str, Any]],
) -> dict[str, np.ndarray]:
    """Arrays by name from the cache, or from `make`, and then they are kept there.

    The file's name must change with whatever the arrays follow from. A file that is not
    as it was written is reported and replaced; that none can be written is reported.
    """
    directory = pathlib.Path(data.cache_dir() if cache_dir is None else cache_dir)
    path = directory / f"{name}.npz"
    if path.exists():
        try:
            arrays = load(path)
            if str(arrays.pop("sha256", "")) == digest(arrays):
                return arrays
            fault = "its checksum is another"
        except Exception as error:
            fault = error
        _log.warning("%s cannot be used (%s): making it anew.", path, fault)
    arrays = {key: np.asarray(array) for key, array in make().items()}
    try:
        with files.replacing(path, parents=True) as temporary:
            content: dict[str, Any] = {**arrays, "sha256": digest(arrays)}
            np.savez(temporary, **content)
    except (OSError, ValueError) as error:
        _log.warning("%s could not be written (%s).", path, error)
    return arrays
