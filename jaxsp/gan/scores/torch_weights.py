"""Reads the tensors of PyTorch files, without PyTorch and without running their code.

Three formats: `torch.save` before version 1.6 (pickles followed by raw storages),
`torch.save` since then (a zip archive), and `torch.jit.save` (the same archive, whose
pickle builds modules of the file's own classes). A pickle may call anything that it
names; the reader here knows a short list of names, none of which does more than to put
numbers together, and refuses every other.
"""

import collections
import math
import os
import pickle
import struct
import types
import zipfile
import zlib
from typing import Any, BinaryIO, NamedTuple

import numpy as np

__all__ = ["read"]

_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file in the older format
_DTYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}


class _Storage(NamedTuple):
    """A flat array that the file holds under a key."""

    dtype: np.dtype
    key: str
    size: int


class _Tensor(NamedTuple):
    """A strided view of a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def view(self, flat: np.ndarray) -> np.ndarray:
        """A copy of the tensor out of its storage, which it must not leave."""
        numbers = (self.offset, *self.shape, *self.strides)
        if len(self.shape) != len(self.strides) or min(numbers) < 0:
            raise ValueError("a tensor's shape and strides do not fit")
        last = self.offset + sum(
            (n - 1) * s for n, s in zip(self.shape, self.strides, strict=True)
        )
        # The number of entries too: a stride of 0 would make any from one.
        if math.prod(self.shape) and max(last + 1, math.prod(self.shape)) > len(flat):
            raise ValueError("a tensor is larger than its storage")
        if not math.prod(self.shape):
            return np.zeros(self.shape, flat.dtype)
        strides = [s * flat.itemsize for s in self.strides]
        start = flat[self.offset :]
        return np.lib.stride_tricks.as_strided(start, self.shape, strides).copy()


class _Module:
    """A module of TorchScript: its attributes, whatever its class."""

    __slots__ = ("state",)

    def __init__(self):
        self.state: Any = {}

    def __setstate__(self, state):
        self.state = state


def _tensor(storage, offset, shape, strides, *_) -> _Tensor:
    """What stands for `torch._utils._rebuild_tensor_v2`."""
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor without a storage")
    return _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(strides))


def _first(value, *_):
    """What stands for functions that dress a value up."""
    return value


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch.jit._pickle", "build_boollist"): _first,
    ("torch.jit._pickle", "build_doublelist"): _first,
    ("torch.jit._pickle", "build_intlist"): _first,
    ("torch.jit._pickle", "build_tensorlist"): _first,
    ("torch.jit._pickle", "restore_type_tag"): _first,
    **{("torch", name): np.dtype(code) for name, code in _DTYPES.items()},
}


class _Call:
    """A function as a file gets it: what the file does to it ends with it.

    A pickle can set attributes of all that it names, so it gets no function itself.
    """

    __slots__ = ("_function",)

    def __init__(self, function):
        self._function = function

    def __call__(self, *args):
        return self._function(*args)


class _Unpickler(pickle.Unpickler):
    """Unpickles what weights need, and nothing else."""

    def find_class(self, module, name):
        if (module, name) in _KNOWN:
            known = _KNOWN[module, name]
            return _Call(known) if isinstance(known, types.FunctionType) else known
        if module.partition(".")[0] == "__torch__":
            return _Module
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid):
        kind, dtype, key, _, size, *view = pid
        if kind != "storage" or not isinstance(dtype, np.dtype) or any(view):
            raise pickle.UnpicklingError(f"it asks for a {kind} of an unknown kind")
        return _Storage(dtype, str(key), int(size))


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads every tensor of a PyTorch file.

    Checked on files written by PyTorch 2.13 in the three formats: state dictionaries
    by `torch.save`, with and without the zip format, and scripted modules by
    `torch.jit.save`.

    Args:
        path: A file of `torch.save` that holds a dictionary of tensors (dictionaries
            may nest), or a file of `torch.jit.save`. Storages of float16, float32,
            float64, integers and booleans.

    Returns:
        Tensors by name; the names of nested parts are joined with dots, as in
        `Module.state_dict`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not one of the three formats, is damaged, or asks
            for anything besides tensors and dictionaries of them.
    """
    try:
        with open(path, "rb") as stream:
            archive = stream.read(4) == b"PK\x03\x04"
            stream.seek(0)
            return _read_archive(stream) if archive else _read_legacy(stream)
    except (
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        ArithmeticError,
        AttributeError,
        EOFError,
        LookupError,
        MemoryError,
        RuntimeError,
        TypeError,
        ValueError,
        struct.error,
        zlib.error,
    ) as error:
        reason = str(error) or type(error).__name__
        raise ValueError(
            f"{os.fspath(path)} is not a file of weights by torch.save or "
            f"torch.jit.save, or is damaged: {reason}."
        ) from error


def _read_archive(stream: BinaryIO) -> dict[str, np.ndarray]:
    """Reads the zip format: NAME/data.pkl, and storage k in NAME/data/k."""
    with zipfile.ZipFile(stream) as archive:
        names = [n for n in archive.namelist() if n.endswith("/data.pkl")]
        if len(names) != 1:
            raise ValueError("the archive holds no data.pkl")
        folder = names[0].removesuffix("data.pkl")
        order = f"{folder}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise ValueError("its numbers are not little-endian")
        with archive.open(names[0]) as file:
            tensors = dict(_named(_Unpickler(file).load()))
        storages = {
            s: np.frombuffer(archive.read(f"{folder}data/{s.key}"), s.dtype)
            for s in {tensor.storage for tensor in tensors.values()}
        }
    return {name: t.view(storages[t.storage]) for name, t in tensors.items()}


def _read_legacy(stream: BinaryIO) -> dict[str, np.ndarray]:
    """Reads the older format: five pickles, and every storage after its length."""

    def load():
        return _Unpickler(stream).load()

    if load() != _MAGIC:
        raise ValueError("it does not begin as such a file does")
    _, system = load(), load()
    if not system["little_endian"]:
        raise ValueError("its numbers are not little-endian")
    tensors = dict(_named(load()))
    dtypes = {t.storage.key: t.storage.dtype for t in tensors.values()}
    flats = {}
    for key in load():
        if key not in dtypes:
            raise ValueError(f"storage {key} belongs to no tensor")
        header = stream.read(8)
        size = int.from_bytes(header, "little") * dtypes[key].itemsize
        data = stream.read(size)
        if len(header) != 8 or len(data) != size:
            raise ValueError("it ends early")
        flats[key] = np.frombuffer(data, dtypes[key])
    return {name: t.view(flats[t.storage.key]) for name, t in tensors.items()}


def _named(node, prefix: str = ""):
    """The tensors in dictionaries and modules, with their dotted names."""
    if isinstance(node, _Tensor):
        yield prefix.removesuffix("."), node
    elif isinstance(node, _Module):
        yield from _named(node.state, prefix)
    elif isinstance(node, dict):
        for name, child in node.items():
            yield from _named(child, f"{prefix}{name}.")
