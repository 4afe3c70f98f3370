"""Arrays on disk as they lie on devices: every process writes its own rows.

Orbax, which commits a checkpoint, writes arrays of its own only where every process
holds a piece of each. Under MD-GAN none does: a server has no discriminator and a
worker no generator. So each array is a Zarr array of TensorStore here, in a directory
of its name, with a chunk for what one device holds and its checksum. The placement, the
devices and the processes that read it may be others than those that wrote it.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from jaxsp import distributed

__all__ = ["Handler", "Restore", "Save", "read"]


class Handler(ocp.CheckpointHandler):
    """Writes and reads a pytree of arrays; all processes must call it.

    Of `jax.Array`s a process writes what its devices hold, and of copies on several
    devices one; of NumPy arrays process 0 writes all. Of a typed key the numbers are
    written that it is made of.
    """

    def save(self, directory: Any, args: "Save") -> None:
        """Write the arrays; they are on disk when this returns.

        Args:
          directory: where; it exists, and nothing is there.
          args: the arrays.
        """
        with distributed.raise_together():  # not committed unless all have written
            opening, writing = [], []
            for name, leaf in _named(args.item):
                raw, pieces = _plain(leaf), []
                if isinstance(raw, jax.Array):
                    shards = raw.addressable_shards
                    pieces = [(s.index, s.data) for s in shards if s.replica_id == 0]
                elif jax.process_index() == 0:
                    pieces = [(..., raw)]
                if pieces:
                    opening.append((_open(directory, name, raw), pieces))
            for opened, pieces in opening:
                array = opened.result()
                writing += [array[i].write(np.asarray(x)) for i, x in pieces]
            for written in writing:
                written.result()

    def restore(self, directory: Any, args: "Restore") -> Any:
        """Read what this process's devices are to hold.

        Args:
          directory: where the arrays lie.
          args: arrays of the same names and shapes, or None for all that are there.

        Returns:
          The arrays, placed as those of `args`; of None NumPy arrays by name.

        Raises:
          ValueError: if an array is not there, or not whole.
        """
        with distributed.raise_together():
            if args.item is not None:
                placed = [
                    _placed(like, _open(directory, name).result())
                    for name, like in _named(args.item)
                ]
                return jax.tree.structure(args.item).unflatten(placed)
            return read(directory)


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
      item: a pytree of arrays like those to read; None reads all, by name, such as
        "params/x/Dense_0/kernel".
    """

    item: Any = None


def read(directory: Any) -> dict[str, np.ndarray]:
    """All arrays in a directory, by name; this process needs no other.

    Raises:
      ValueError: if an array is not there, not whole, or not what was written.
    """
    paths = pathlib.Path(directory).rglob("zarr.json")
    names = [p.parent.relative_to(directory).as_posix() for p in paths]
    opening = {name: _open(directory, name) for name in names}
    return {n: o.result().read().result() for n, o in opening.items()}


def _named(tree: Any) -> list[tuple[str, Any]]:
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def _plain(leaf: Any) -> Any:
    """The array itself; of a typed key the numbers it is made of."""
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def _open(directory: Any, name: str, like: Any = None) -> ts.Future:
    """An array on disk, to wait for; with `like` it is made if it is not there."""
    spec: dict[str, Any] = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{pathlib.Path(directory, name)}/"},
        "store_data_equal_to_fill_value": True,
        "fill_missing_data_reads": False,  # what is missing is no zero
    }
    if like is not None:
        chunks = like.shape
        if isinstance(like, jax.Array):
            chunks = like.sharding.shard_shape(like.shape)
        spec["metadata"] = {
            "shape": like.shape,
            "data_type": np.dtype(like.dtype).name,
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": [max(1, n) for n in chunks]},
            },
            "codecs": [
                {"name": "bytes", "configuration": {"endian": "little"}},
                {"name": "crc32c"},
            ],
        }
    return ts.open(spec, open=True, create=like is not None)


def _placed(like: Any, array: ts.TensorStore) -> Any:
    """The array, placed as `like` is."""
    if not isinstance(like, jax.Array):
        return array.read().result()
    raw = _plain(like)
    # Where this process holds nothing of it only the dtype tells what it is.
    read = jax.make_array_from_callback(
        raw.shape, raw.sharding, lambda i: array[i].read().result(), dtype=raw.dtype
    )
    if raw is like:
        return read
    return jax.random.wrap_key_data(read, impl=jax.random.key_impl(like))
