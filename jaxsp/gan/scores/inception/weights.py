"""The weights: the .npz that holds them, and what it is made from."""

import hashlib
import logging
import os
import pathlib
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxsp.gan.scores import torch_weights
from jaxsp.gan.scores.inception.network import Inception, kernel_shapes

__all__ = ["SOURCES", "convert", "load"]

_log = logging.getLogger(__name__)

# The names of the same convolutions, in the same order, in the public state dictionary.
_TORCH_A = "1x1 5x5_1 5x5_2 3x3dbl_1 3x3dbl_2 3x3dbl_3 _pool"
_TORCH_B = "3x3 3x3dbl_1 3x3dbl_2 3x3dbl_3"
_TORCH_C = "1x1 7x7_1 7x7_2 7x7_3 7x7dbl_1 7x7dbl_2 7x7dbl_3 7x7dbl_4 7x7dbl_5 _pool"
_TORCH_D = "3x3_1 3x3_2 7x7x3_1 7x7x3_2 7x7x3_3 7x7x3_4"
_TORCH_E = "1x1 3x3_1 3x3_2a 3x3_2b 3x3dbl_1 3x3dbl_2 3x3dbl_3a 3x3dbl_3b _pool"
_TORCH_BLOCKS = {
    "Conv2d_": "1a_3x3 2a_3x3 2b_3x3 3b_1x1 4a_3x3",
    "Mixed_5b.branch": _TORCH_A,
    "Mixed_5c.branch": _TORCH_A,
    "Mixed_5d.branch": _TORCH_A,
    "Mixed_6a.branch": _TORCH_B,
    "Mixed_6b.branch": _TORCH_C,
    "Mixed_6c.branch": _TORCH_C,
    "Mixed_6d.branch": _TORCH_C,
    "Mixed_6e.branch": _TORCH_C,
    "Mixed_7a.branch": _TORCH_D,
    "Mixed_7b.branch": _TORCH_E,
    "Mixed_7c.branch": _TORCH_E,
}

_EPSILON = 1e-3  # of batch normalization, in every public file
_STATE_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
_SCRIPT_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
_SOURCES = {
    "pt_inception-2015-12-05-6726825d.pth": _STATE_SHA256,
    "weights-inception-2015-12-05-6726825d.pth": _STATE_SHA256,
    "inception-2015-12-05.pt": _SCRIPT_SHA256,
}
SOURCES = f"""\
Download one of these two public files:
  https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/\
pt_inception-2015-12-05-6726825d.pth
    sha256 {_STATE_SHA256}
  https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/\
inception-2015-12-05.pt
    sha256 {_SCRIPT_SHA256}
and convert it:
  python -m jaxsp.gan.scores.inception convert SOURCE DEST.npz"""
# Checksums of arrays that are known to be right though their file does not hold one.
_DIGESTS = {"af0dd7be6db72db3dd5b6d270cf3e36e9bd0702233c06e97e2622f9cfd1e1bf5"}


def load(path: str | os.PathLike, dtype: Any = jnp.float32) -> Inception:
    """Reads and checks the weights.

    Args:
        path: The .npz of `convert`.
        dtype: In which to compute. Kernels that the file holds in float16 cost a
            relative 2e-3 of the features.

    Returns:
        The network.

    Raises:
        FileNotFoundError: If there is no such file; says where to get it.
        ValueError: If it is not such a file, or not as it was written.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no Inception weights. {SOURCES}")
    try:
        # Opened here: np.load leaves its file open where the archive is spoilt.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = dict(file)
    except (
        AttributeError,  # np.load gives an array, not an archive
        EOFError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise ValueError(
            f"{path} is not an .npz of Inception weights, or is damaged ({error}). "
            "A file of PyTorch is converted first: python -m "
            "jaxsp.gan.scores.inception convert SOURCE DEST.npz"
        ) from error
    stated = str(arrays.pop("sha256", ""))
    problem = _problem(arrays)
    if problem:
        raise ValueError(f"{path} does not hold the Inception weights: {problem}.")
    digest = _digest(arrays)
    if stated and stated != digest:
        raise ValueError(
            f"{path} is damaged: its arrays have the checksum {digest}, and it says "
            f"{stated}."
        )
    if not stated and digest not in _DIGESTS:
        _log.warning("%s holds no checksum: its weights cannot be verified.", path)
    params = {name: jnp.asarray(a, dtype) for name, a in arrays.items()}
    return Inception(params, digest)


def _problem(arrays: Mapping[str, np.ndarray]) -> str:
    """What is wrong with the arrays of a file; empty where nothing is."""
    expected: dict[str, tuple[tuple[int, ...], str]] = {}
    for name, shape in kernel_shapes().items():
        expected[f"{name}.w"] = shape, "float16 float32"
        expected[f"{name}.b"] = shape[-1:], "float32"
    for kind, names in (
        ("lacks", expected.keys() - arrays.keys()),
        ("holds besides", arrays.keys() - expected.keys()),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            return f"it {kind} {', '.join(sorted(names)[:3])}{more}"
    for name, (shape, dtypes) in expected.items():
        array = arrays[name]
        if array.shape != shape or str(array.dtype) not in dtypes.split():
            wanted = f"{dtypes.replace(' ', ' or ')} of shape {shape}"
            return f"{name} must be {wanted}; it is {array.dtype} of {array.shape}"
        if not np.isfinite(array).all():
            return f"{name} has numbers that are not finite"
    return ""


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    """The sha256 of arrays with their names, types and shapes."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()


def convert(
    source: str | os.PathLike, dest: str | os.PathLike, dtype: Any = np.float32
) -> str:
    """Converts a public PyTorch file of the network, without PyTorch.

    With the statistics of batch normalization, γ being 1 where the file has none:

        w ← w γ / √(var + 1e-3),    b = β − mean γ / √(var + 1e-3)

    A file under one of the public names must have the public checksum. Checked on files
    that PyTorch 2.13 wrote with the names and shapes of the public ones, in all formats
    they could have; the public files themselves were out of reach.

    Args:
        source: The state dictionary that pytorch-fid and torch-fidelity use
            (`pt_inception-2015-12-05-6726825d.pth`), or the TorchScript module that
            StyleGAN2-ADA and its successors use (`inception-2015-12-05.pt`).
        dest: The .npz to write.
        dtype: Of the kernels: float32, or float16 for half the size.

    Returns:
        The checksum of the arrays, which the file holds too.

    Raises:
        FileNotFoundError: If there is no such source.
        ValueError: If the source is not such a file, or has another checksum than the
            public file of its name; nothing is written then.
    """
    source, dest = pathlib.Path(source), pathlib.Path(dest)
    if dest.suffix != ".npz":
        raise ValueError(f"dest must end in .npz; got {dest}.")
    if str(np.dtype(dtype)) not in ("float16", "float32"):
        raise ValueError(f"dtype must be float16 or float32; got {dtype}.")
    if not source.is_file():
        raise FileNotFoundError(f"{source}: no such file. {SOURCES}")
    with source.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    wanted = _SOURCES.get(source.name)
    if wanted not in (None, found):
        raise ValueError(
            f"{source} has the sha256 {found}; the public file of that name has "
            f"{wanted}. Download it again."
        )
    known = "the public file" if found in _SOURCES.values() else "no public file known"
    _log.info("%s: sha256 %s, %s.", source, found, known)
    tensors = torch_weights.read(source)
    try:
        arrays = _fold(tensors, np.dtype(dtype))
    except ValueError as error:
        raise ValueError(
            f"{source} does not hold the Inception weights: {error}."
        ) from error
    problem = _problem(arrays)
    if problem:
        raise ValueError(f"{source}, folded, is not of use: {problem}.")
    digest = _digest(arrays)
    dest.parent.mkdir(parents=True, exist_ok=True)
    temporary = dest.with_name(f"{dest.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            np.savez(file, sha256=digest, **arrays)  # pyright: ignore[reportArgumentType]
        os.replace(temporary, dest)
    finally:
        temporary.unlink(missing_ok=True)
    return digest


def _fold(tensors: Mapping[str, np.ndarray], dtype: np.dtype) -> dict[str, np.ndarray]:
    """The arrays of our format from the tensors of either public file."""
    script = "layers.conv.weight" in tensors
    if script:
        parts = ["weight", "beta", "mean", "var"]
        stems = [f"layers.{name}." for name in kernel_shapes()]
    else:
        parts = ["conv.weight", "bn.bias", "bn.running_mean", "bn.running_var"]
        parts += ["bn.weight"] * ("Conv2d_1a_3x3.bn.weight" in tensors)
        stems = [
            f"{block}{name}."
            for block, line in _TORCH_BLOCKS.items()
            for name in line.split()
        ]
    arrays = {}
    for (name, shape), stem in zip(kernel_shapes().items(), stems, strict=True):
        height, width, into, out = shape
        found = []
        for part in parts:
            tensor = tensors.get(stem + part)
            wanted = (out,) if found else (out, into, height, width)
            if tensor is None or tensor.shape != wanted:
                has = "is missing" if tensor is None else f"is of shape {tensor.shape}"
                raise ValueError(f"{stem}{part}, of shape {wanted}, {has}")
            found.append(tensor.astype(np.float64))
        kernel, beta, mean, variance, *gamma = found
        with np.errstate(all="ignore"):  # what is not finite is found later
            scale = (gamma[0] if gamma else 1.0) / np.sqrt(variance + _EPSILON)
            arrays[f"{name}.w"] = (kernel.transpose(2, 3, 1, 0) * scale).astype(dtype)
            arrays[f"{name}.b"] = (beta - mean * scale).astype(np.float32)
    return arrays
