"""Running one worker's function on all workers: virtual ones, or on many devices."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxsp import _arguments, _devices, comm

__all__ = ["Workers"]

_AXIS = "workers"
_BLOCKS = ("devices", "workers")


class Workers:
    """`count` workers that run the same per-worker function.

    Where at least `count` devices are visible each worker has a device of its own and
    functions run under `shard_map`; where fewer are, each device has a block of equally
    many workers, which run under `vmap` inside of `shard_map`; on one device all
    workers are virtual and run under `vmap`. The trajectories are the same. Every array
    that belongs to workers is stacked: its leading axis has one entry a worker.

    After `jax.distributed.initialize` the devices are those of all processes. Each
    process then makes the same `Workers`, calls the same functions in the same order,
    and holds the rows of its own workers.

    Args:
      count: the number of workers, at least 1.
      devices: the devices to use: one for virtual workers on it, `count` for one worker
        each, or a number that divides `count` for blocks. The default is all visible
        devices or the first `count` of them; in several processes as many of each.
        On a slice of TPUs neighbours among them are neighbours there, in a ring.

    Attributes:
      count: the number of workers.
      axis_name: the name of the worker axis inside mapped functions, for `axis_name=`;
        the pair (device axis, axis within a device) for blocks.
      mode: `"vmap"`, `"shard_map"` or `"blocks"`.
      devices: the devices in use, in the order of the workers.
      local: the numbers of the workers that live in this process.
      spans_processes: whether some live in another.

    Raises:
      ValueError: if `count` is not a positive integer, or does not fit the devices.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxsp
      >>> workers = jaxsp.Workers(4)
      >>> mean = workers.map(lambda x: jax.lax.pmean(x, workers.axis_name))
      >>> print(mean(jnp.array([1.0, 2.0, 3.0, 6.0])))
      [3. 3. 3. 3.]
    """

    def __init__(self, count: int, devices: Sequence[Any] | None = None):
        count = _arguments.check_workers("count", count)
        devices = _devices.chosen(count, devices)
        self.count = count
        self.devices = devices
        self._block = self.count // len(devices)
        # What is compiled is these workers' own, and goes with them.
        self._permutation = functools.lru_cache(maxsize=64)(self._permutation)
        self._of_leaves = functools.cache(_of_leaves)
        self._take = jax.jit(lambda tree, rows: _take(tree, rows))
        if len(devices) == 1:
            self.mode = "vmap"
        else:
            self.mode = "shard_map" if self._block == 1 else "blocks"
        self.axis_name = _BLOCKS if self.mode == "blocks" else _AXIS
        here = jax.process_index()
        self.local = tuple(
            m
            for m in range(self.count)
            if devices[m // self._block].process_index == here
        )
        self.spans_processes = len(self.local) < self.count
        # Auto axes: with the Explicit ones of `jax.make_mesh`, `shard_map` refuses
        # arguments that are not sharded yet.
        axis = "devices" if self.mode == "blocks" else _AXIS
        self._mesh = Mesh(np.array(devices), (axis,), axis_types=(AxisType.Auto,))
        self._sharding = NamedSharding(
            self._mesh, PartitionSpec() if self.mode == "vmap" else PartitionSpec(axis)
        )

    def __repr__(self) -> str:
        return f"Workers({self.count}, mode={self.mode!r})"

    def map(
        self, fn: Callable[..., Any], in_axes: int | Sequence[int | None] | None = 0
    ) -> Callable[..., Any]:
        """Make a function of all workers from a function of one.

        Args:
          fn: a function of one worker's pytrees, which may use collectives over
            `axis_name`.
          in_axes: for each positional argument 0 if it is stacked, or None if all
            workers share it; one value stands for all arguments.

        Returns:
          A function of stacked (or shared) pytrees with a stacked result, to be called
          as it is or under `jax.jit`, `jax.lax.scan` and so on.

        Raises:
          ValueError: if `in_axes` holds anything but 0 and None; when called, if there
            are more or fewer arguments than `in_axes` has entries, an argument's
            leading axis is not `count`, or `jax.set_mesh` has set another mesh.
        """
        _arguments.check_callable("fn", fn)
        several = tuple(in_axes) if isinstance(in_axes, tuple | list) else None
        for axis in (in_axes,) if several is None else several:
            if not (axis is None or (type(axis) is int and axis == 0)):
                required = "0 (stacked) or None (shared), or a tuple of one for each "
                _arguments.refuse("in_axes", f"{required}argument", in_axes)

        def mapped(*args):
            context = jax.sharding.get_abstract_mesh()
            if not context.empty and context != self._mesh.abstract_mesh:
                raise ValueError(
                    f"{self} has a mesh of its own, and here jax.set_mesh has set "
                    f"another, {context}: call the mapped function outside of it."
                )
            axes = (in_axes,) * len(args) if several is None else several
            if len(axes) != len(args):
                raise ValueError(
                    f"in_axes has {len(axes)} entries, but the function was called "
                    f"with {len(args)} arguments: write one entry for each."
                )
            for i, (arg, axis) in enumerate(zip(args, axes, strict=True)):
                if axis == 0:
                    self._check_stacked(arg, f"argument {i}")
            if self.mode == "vmap":
                return _vmap(fn, axes, self.count, _AXIS)(*args)
            return self._shard_map(fn, axes)(*args)

        return mapped

    def replicate(self, tree: Any) -> Any:
        """Stack one copy of `tree` for each worker, on the workers' devices.

        Args:
          tree: arrays, or what becomes an array.

        Returns:
          The tree, with a leading axis of `count`.
        """
        _arguments.check_arrays("tree", tree, _arguments.ANY_ARRAY)

        def stack(x):
            x = jnp.asarray(x)
            return jnp.broadcast_to(x, (self.count, *x.shape))

        return self.shard(jax.tree.map(stack, tree))

    def shard(self, tree: Any) -> Any:
        """Put a stacked tree where it is used: each worker's slice on its device.

        Over several processes each passes the same tree, and keeps its own rows.

        Args:
          tree: a stacked tree.

        Returns:
          A copy, on the workers' devices.

        Raises:
          ValueError: if a leaf's leading axis is not `count`.
        """
        self._check_stacked(tree, "tree")
        if self.spans_processes:
            return jax.tree.map(lambda x: self._place(x, range(self.count)), tree)
        # A copy, always: the training loop donates its buffers, and must not give away
        # arrays that the caller still holds.
        return jax.device_put(tree, self._sharding, may_alias=False)

    def shard_local(self, tree: Any) -> Any:
        """As `shard`, of a tree that is stacked over the workers of this process alone.

        What other processes hold need not be known here, nor fit into this memory.

        Args:
          tree: row i belongs to worker `local[i]`; in a process without workers the
            leading axis is 0.

        Returns:
          The stacked tree of all workers, on their devices.

        Raises:
          ValueError: if a leaf's leading axis is not the number of local workers.
        """
        self._check_stacked(tree, "tree", len(self.local))
        if self.spans_processes:
            return jax.tree.map(lambda x: self._place(x, self.local), tree)
        return self.shard(tree)

    def fetch(self, tree: Any) -> Any:
        """A stacked tree as NumPy arrays.

        Over several processes every one with a worker must call it, and gets all rows.

        Args:
          tree: a stacked tree of numbers, on the workers' devices.

        Returns:
          The tree, of NumPy arrays.

        Raises:
          ValueError: if a leaf's leading axis is not `count`, or if no worker lives in
            this process.
        """
        self._check_stacked(tree, "tree")
        if self.spans_processes:
            return jax.tree.map(_to_host, self._everywhere(_same, tree))
        return jax.tree.map(np.asarray, tree)

    def fetch_mean(self, tree: Any) -> Any:
        """The mean over workers of a stacked tree, as NumPy arrays of its dtypes.

        Over several processes every one with a worker must call it. What travels is an
        all-reduce, not the rows.

        Args:
          tree: a stacked tree of numbers, on the workers' devices.

        Returns:
          The tree without its leading axis, of NumPy arrays.

        Raises:
          ValueError: as `fetch`.
        """
        self._check_stacked(tree, "tree")
        if self.spans_processes:
            return jax.tree.map(_to_host, self._everywhere(_mean, tree))
        return jax.tree.map(lambda x: _mean(np.asarray(x)), tree)

    def permute(self, tree: Any, rows: Sequence[int] | np.ndarray) -> Any:
        """A stacked tree whose row m is what row `rows[m]` was.

        Only rows that change place travel, each straight from one device to the other:
        a function of all workers with the same effect would gather every row on every
        device. Over several processes the program is compiled for each `rows`.

        Args:
          tree: a stacked tree, on the workers' devices.
          rows: for each worker the one whose row it gets, known on the host.

        Returns:
          The tree, on the workers' devices. Rows that stay where they are may share
          memory with `tree`.

        Raises:
          ValueError: if `rows` is not one worker's number for each, or `tree` is not
            stacked.
        """
        rows = _arguments.check_array("rows", rows, ndim=1, integer=True)
        if rows.shape != (self.count,) or rows.min() < 0 or rows.max() >= self.count:
            required = f"{self.count} integers from 0 to {self.count - 1}, one for each"
            _arguments.refuse("rows", f"{required} worker", rows.tolist())
        self._check_stacked(tree, "tree")
        if self.mode == "vmap":
            return self._take(tree, rows)
        if self.spans_processes:
            return self._permutation(tuple(rows.tolist()))(tree)
        size = self._block

        def one(x):
            x = jax.device_put(x, self._sharding)
            held = {shard.device: shard.data for shard in x.addressable_shards}

            def row(m, device):
                block, i = held[self.devices[m // size]], m % size
                return jax.device_put(block if size == 1 else block[i : i + 1], device)

            placed = []
            for d, device in enumerate(self.devices):
                mine = [row(m, device) for m in rows[d * size : (d + 1) * size]]
                placed.append(mine[0] if size == 1 else jnp.concatenate(mine))
            return jax.make_array_from_single_device_arrays(
                x.shape, self._sharding, placed
            )

        return jax.tree.map(one, tree)

    def _check_stacked(self, tree, what, count=None):
        count = self.count if count is None else count
        for path, leaf in _arguments.check_arrays(what, tree, _arguments.ANY_ARRAY):
            shape = jnp.shape(leaf)
            if not shape or shape[0] != count:
                raise ValueError(
                    f"{what}{path} must be stacked, with a "
                    f"leading axis of {count} workers, got shape {shape}: use "
                    "Workers.replicate, or in_axes=None for what all workers share."
                )

    def _shard_map(self, fn, axes, pair=False):
        devices = self._mesh.axis_names[0]

        def one_device(*args):
            if self._block > 1 or pair:
                return _vmap(fn, axes, self._block, "block" if pair else _AXIS)(*args)
            out = fn(*_first_rows(args, axes))
            return jax.tree.map(lambda x: jnp.asarray(x)[None], out)

        # Without check_vma=False `jax.grad` of what is replicated comes out already
        # summed over workers, unlike under vmap, and several optax states do not scan.
        return jax.shard_map(
            one_device,
            mesh=self._mesh,
            in_specs=tuple(
                PartitionSpec(devices) if axis == 0 else PartitionSpec()
                for axis in axes
            ),
            out_specs=PartitionSpec(devices),
            check_vma=False,
        )

    # ------------------------------------------------------------ many processes

    def _place(self, x, rows):
        """An array of all workers from what this process knows of it: some rows."""
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return jax.device_put(x, self._sharding, may_alias=False)
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            data = self._place(jax.random.key_data(x), rows)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
        x, at = np.asarray(x), {m: i for i, m in enumerate(rows)}
        dtype = jax.dtypes.canonicalize_dtype(x.dtype)

        def block(index):  # a copy, as in `shard`
            if not rows:  # of one device alone JAX asks all processes
                return np.zeros((self.count, *x.shape[1:]), dtype)
            return x[[at[m] for m in range(self.count)[index[0]]]].astype(dtype)

        shape = (self.count, *x.shape[1:])
        return jax.make_array_from_callback(shape, self._sharding, block, dtype=dtype)

    def _everywhere(self, fn, tree):
        """`fn` of every leaf, on all devices alike."""
        if not self.local:
            raise ValueError(
                "fetch is for the processes that have a worker, and this one has none: "
                f"process {jax.process_index()}."
            )
        whole = NamedSharding(self._mesh, PartitionSpec())
        return self._of_leaves(fn, whole)(tree)

    def _permutation(self, rows):
        """What permutes between processes, compiled once for the same rows."""
        axis = (self._mesh.axis_names[0], "block")

        def one(x):
            if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
                return comm.permute(x, rows, axis)
            data = comm.permute(jax.random.key_data(x), rows, axis)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))

        return jax.jit(self._shard_map(lambda t: jax.tree.map(one, t), (0,), True))


def _vmap(fn, axes, count, axis_name):
    # Of one worker a dimension would make every product a batch of products.
    inside = axes if count > 1 else (None,) * len(axes)
    # vmap wants a mapped leaf, and the arguments may have none: it gets one that
    # the function never sees.
    inner = jax.vmap(lambda _, *args: fn(*args), (0, *inside), axis_name=axis_name)
    first = _first_rows if count == 1 else lambda args, axes: args
    return lambda *args: inner(jnp.arange(count), *first(args, axes))


def _first_rows(args, axes):
    pairs = zip(args, axes, strict=True)
    return [a if axis is None else jax.tree.map(lambda x: x[0], a) for a, axis in pairs]


def _to_host(x):
    """What every device has alike."""
    return np.asarray(x.addressable_data(0))


def _of_leaves(fn, sharding):
    """`fn` of every leaf of a tree, compiled."""
    return jax.jit(lambda tree: jax.tree.map(fn, tree), out_shardings=sharding)


def _same(x):
    return x


def _mean(x):
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return x.mean(axis=0, dtype=wide).astype(x.dtype)


def _take(tree, rows):
    return jax.tree.map(lambda x: jnp.take(x, rows, axis=0), tree)
