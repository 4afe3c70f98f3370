"""Arrays on disk as they lie on devices: every process writes its own rows.

Orbax, which commits a checkpoint, writes arrays of its own only where every process
holds a piece of each. Under MD-GAN none does: a server has no discriminator and a
worker no generator. Here a process writes what its devices hold, `N.bin` with an index
`N.json`, and reads what its devices are to hold, wherever the pieces come from: the
placement, the devices and the processes may be others than when they were written.
"""

import dataclasses
import functools
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxsp import distributed

__all__ = ["Handler", "Restore", "Save"]


class _Piece(NamedTuple):
    """A block of an array in a file."""

    path: pathlib.Path
    offset: int
    start: tuple[int, ...]
    shape: tuple[int, ...]


class Handler(ocp.CheckpointHandler):
    """Writes and reads a pytree of `jax.Array`s; all processes must call it."""

    def save(self, directory: Any, args: "Save") -> None:
        """Write what this process's devices hold.

        Args:
          directory: where; it exists, and no process has written there.
          args: the arrays.
        """
        with distributed.raise_together():  # not committed unless all have written
            self._save(pathlib.Path(directory), jax.process_index(), args.item)

    def _save(self, directory, number, item):
        index: dict[str, Any] = {}
        with (directory / f"{number}.bin").open("wb") as file:
            for name, leaf in _named(item):
                pieces = []
                for start, block in _held(leaf):
                    pieces.append([file.tell(), list(start), list(block.shape)])
                    file.write(np.ascontiguousarray(block).reshape(-1).view(np.uint8))
                raw = _plain(leaf)
                index[name] = {
                    "dtype": raw.dtype.name,
                    "shape": list(raw.shape),
                    "pieces": pieces,
                }
            _flush(file)
        with (directory / f"{number}.json").open("w") as file:
            json.dump(index, file)
            _flush(file)

    def restore(self, directory: Any, args: "Restore") -> Any:
        """Read what this process's devices are to hold.

        Args:
          directory: where the arrays lie.
          args: a pytree of arrays of the same names, shapes, dtypes; none is changed.

        Returns:
          The arrays, placed as those of `args`.

        Raises:
          ValueError: if an array is not there, or not whole.
        """
        with distributed.raise_together():
            found = _read_index(pathlib.Path(directory))
            names = [name for name, _ in _named(args.item)]
            leaves, treedef = jax.tree.flatten(args.item)
            return treedef.unflatten(
                [
                    _placed(like, name, found.get(name, []))
                    for name, like in zip(names, leaves, strict=True)
                ]
            )


@ocp.args.register_with_handler(Handler, for_save=True)
@dataclasses.dataclass
class Save(ocp.args.CheckpointArgs):
    """What to save.

    Attributes:
      item: a pytree of arrays.
    """

    item: Any


@ocp.args.register_with_handler(Handler, for_restore=True)
@dataclasses.dataclass
class Restore(ocp.args.CheckpointArgs):
    """What to read, and where it goes.

    Attributes:
      item: a pytree of arrays like those to read.
    """

    item: Any


def _named(tree: Any) -> Iterator[tuple[str, Any]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path), leaf


def _plain(leaf: Any) -> Any:
    """The array itself; of a typed key the numbers it is made of."""
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def _held(leaf: Any) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """The blocks that this process writes, with where each begins in the array.

    Of copies on several devices one is written, by whoever holds it.
    """
    if not isinstance(leaf, jax.Array):  # every process has it whole
        if jax.process_index() == 0:
            yield (0,) * np.ndim(leaf), np.asarray(leaf)
        return
    for shard in _plain(leaf).addressable_shards:
        if shard.replica_id == 0:
            yield tuple(s.start or 0 for s in shard.index), np.asarray(shard.data)


def _flush(file: Any) -> None:
    """On disk before the checkpoint is committed: a machine may go down right after."""
    file.flush()
    os.fsync(file.fileno())


def _read_index(directory: pathlib.Path) -> dict[str, list[_Piece]]:
    found: dict[str, list[_Piece]] = {}
    for path in sorted(directory.glob("*.json")):
        for name, leaf in json.loads(path.read_text()).items():
            found.setdefault(name, []).extend(
                _Piece(path.with_suffix(".bin"), offset, tuple(start), tuple(shape))
                for offset, start, shape in leaf["pieces"]
            )
    return found


def _placed(like: Any, name: str, pieces: list[_Piece]) -> jax.Array | np.ndarray:
    """The array made of `pieces`, placed as `like` is."""
    if not isinstance(like, jax.Array):
        whole = (slice(None),) * np.ndim(like)
        return _block(like.shape, like.dtype, name, pieces, whole)
    raw = _plain(like)
    dtype = np.dtype(raw.dtype)
    return _made(like, functools.partial(_block, raw.shape, dtype, name, pieces))


def _made(like: Any, block: Callable[[Any], np.ndarray]) -> jax.Array:
    """An array of blocks, placed as `like` is."""
    raw = _plain(like)
    # Where this process holds nothing of it only the dtype tells what it is.
    array = jax.make_array_from_callback(
        raw.shape, raw.sharding, block, dtype=raw.dtype
    )
    if raw is like:
        return array
    return jax.random.wrap_key_data(array, impl=jax.random.key_impl(like))


def _block(
    shape: tuple[int, ...], dtype: np.dtype, name: str, pieces: list[_Piece], index: Any
) -> np.ndarray:
    """The block `index` of an array, put together from the pieces it lies in."""
    ranges = [s.indices(n)[:2] for s, n in zip(index, shape, strict=True)]
    block = np.empty([stop - start for start, stop in ranges], dtype)
    filled = 0
    for piece in pieces:
        low = [max(a, b) for (a, _), b in zip(ranges, piece.start, strict=True)]
        ends = [b + n for b, n in zip(piece.start, piece.shape, strict=True)]
        high = [min(a, b) for (_, a), b in zip(ranges, ends, strict=True)]
        if any(a >= b for a, b in zip(low, high, strict=True)):
            continue
        inside = tuple(
            slice(a - c, b - c) for a, b, (c, _) in zip(low, high, ranges, strict=True)
        )
        source = tuple(
            slice(a - c, b - c) for a, b, c in zip(low, high, piece.start, strict=True)
        )
        block[inside] = _mapped(piece, dtype)[source]
        filled += math.prod(b - a for a, b in zip(low, high, strict=True))
    if filled != block.size:
        raise ValueError(
            f"the checkpoint must hold all of {name}, and {block.size - filled} of "
            f"{block.size} numbers are missing: a file of it has been removed."
        )
    return block


def _mapped(piece: _Piece, dtype: np.dtype) -> np.ndarray:
    """A piece in its file, of which only what is used is read."""
    count = math.prod(piece.shape)
    if not count:
        return np.empty(piece.shape, dtype)
    raw = np.memmap(piece.path, np.uint8, "r", piece.offset, (count * dtype.itemsize,))
    return raw.view(dtype).reshape(piece.shape)
