"""The file of the network's weights, read without running anything of it."""

import logging
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxsp.gan.scores import cache
from jaxsp.gan.scores.cache import digest
from jaxsp.gan.scores.inception.network import Inception, kernel_shapes

__all__ = ["load"]

_log = logging.getLogger(__name__)

_HOW = (
    "Download a public file and convert it with tools/convert_inception.py of jaxsp's "
    "repository; its --help says where the file is."
)
# Checksums of arrays that are known to be right though their file does not hold one.
_KNOWN = {"af0dd7be6db72db3dd5b6d270cf3e36e9bd0702233c06e97e2622f9cfd1e1bf5"}


def load(path: str | os.PathLike, dtype: Any = jnp.float32) -> Inception:
    """Reads and checks the weights.

    Args:
      path: an .npz that `tools/convert_inception.py` has written.
      dtype: in which to compute. Kernels that the file holds in float16 cost a relative
        2e-3 of the features.

    Returns:
      The network.

    Raises:
      FileNotFoundError: if there is no such file; says where to get it.
      ValueError: if it is not such a file, or not as it was written.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no Inception weights. {_HOW}")
    try:
        arrays = cache.load(path)
    except OSError:
        raise
    except Exception as error:
        raise ValueError(
            f"{path} is not an .npz of Inception weights, or is damaged ({error}). "
            f"{_HOW}"
        ) from error
    stated = str(arrays.pop("sha256", ""))
    if problem := _problem(arrays):
        raise ValueError(f"{path} does not hold the Inception weights: {problem}.")
    found = digest(arrays)
    if stated and stated != found:
        raise ValueError(
            f"{path} is damaged: its arrays have the checksum {found}, and it says "
            f"{stated}."
        )
    if not stated and found not in _KNOWN:
        _log.warning("%s holds no checksum: its weights cannot be verified.", path)
    params = {name: jnp.asarray(array, dtype) for name, array in arrays.items()}
    return Inception(params, found)


def _problem(arrays: Mapping[str, np.ndarray]) -> str:
    """What is wrong with the arrays of a file; empty where nothing is."""
    expected = {}
    for name, shape in kernel_shapes().items():
        expected[f"{name}.w"] = shape, ("float16", "float32")
        expected[f"{name}.b"] = shape[-1:], ("float32",)
    if names := sorted(expected.keys() ^ arrays.keys()):
        kind = "lacks" if names[0] in expected else "holds besides"
        return f"it {kind} {names[0]}, and {len(names) - 1} more names differ"
    for name, (shape, dtypes) in expected.items():
        array = arrays[name]
        if array.shape != shape or array.dtype.name not in dtypes:
            wanted = f"{' or '.join(dtypes)} of shape {shape}"
            return f"{name} must be {wanted}, got {array.dtype} of {array.shape}"
        if not np.isfinite(array).all():
            return f"{name} has numbers that are not finite"
    return ""
