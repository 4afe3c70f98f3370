"""Running one worker's function on all workers: virtual ones, or one a device."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

__all__ = ["Workers"]

_AXIS = "workers"


class Workers:
    """`count` workers that run the same per-worker function.

    Where at least `count` devices are visible each worker has a device of its own and
    functions run under `shard_map`; otherwise the workers are virtual and functions run
    under `vmap` on one device. The trajectories are the same. Every array that belongs
    to workers is stacked: its leading axis has one entry a worker.

    Args:
      count: the number of workers, at least 1.
      devices: the devices to use: one for virtual workers on it, or `count` for one
        worker each. The default is as above.

    Attributes:
      count: the number of workers.
      axis_name: the name of the worker axis inside mapped functions, for `axis_name=`.
      mode: `"vmap"` or `"shard_map"`.
      devices: the devices in use.

    Raises:
      ValueError: if `count` is not a positive integer, or is not the number of devices.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxsp
      >>> workers = jaxsp.Workers(4)
      >>> mean = workers.map(lambda x: jaxsp.comm.mean(x, workers.axis_name))
      >>> print(mean(jnp.array([1.0, 2.0, 3.0, 6.0])))
      [3. 3. 3. 3.]
    """

    def __init__(self, count: int, devices: Sequence[Any] | None = None):
        if isinstance(count, bool) or not isinstance(count, int | np.integer):
            raise ValueError(f"count must be an integer, got {count!r}.")
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}.")
        if devices is None:
            devices = jax.devices()
            devices = devices[: count if len(devices) >= count else 1]
        devices = list(devices)
        if len(devices) not in (1, count):
            raise ValueError(
                f"devices must be one device or one for each worker, got "
                f"{len(devices)} for count={count}: give 1 or {count} devices, or "
                f"write Workers({len(devices)})."
            )
        self.count = int(count)
        self.axis_name = _AXIS
        self.devices = devices
        self.mode = "shard_map" if len(devices) > 1 else "vmap"
        # Auto axes: with the Explicit ones of `jax.make_mesh`, `shard_map` refuses
        # arguments that are not sharded yet.
        self._mesh = Mesh(np.array(devices), (_AXIS,), axis_types=(AxisType.Auto,))

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
            are more or fewer arguments than `in_axes` has entries, or an argument's
            leading axis is not `count`.
        """
        if not (in_axes is None or in_axes == 0):
            if isinstance(in_axes, int) or any(a not in (0, None) for a in in_axes):
                raise ValueError(
                    "in_axes must be 0 (stacked) or None (shared), or a tuple of them "
                    f"with one for each argument, got {in_axes!r}."
                )
            in_axes = tuple(in_axes)

        def mapped(*args):
            axes = in_axes if isinstance(in_axes, tuple) else (in_axes,) * len(args)
            if len(axes) != len(args):
                raise ValueError(
                    f"in_axes has {len(axes)} entries, but the function was called "
                    f"with {len(args)} arguments: write one entry for each."
                )
            for i, (arg, axis) in enumerate(zip(args, axes, strict=True)):
                if axis == 0:
                    self._check_stacked(arg, f"argument {i}")
            run = self._vmap if self.mode == "vmap" else self._shard_map
            return run(fn, axes)(*args)

        return mapped

    def replicate(self, tree: Any) -> Any:
        """Stack one copy of `tree` for each worker, on the workers' devices."""

        def stack(x):
            x = jnp.asarray(x)
            return jnp.broadcast_to(x, (self.count, *x.shape))

        return self.shard(jax.tree.map(stack, tree))

    def shard(self, tree: Any) -> Any:
        """Put a stacked tree where it is used: each worker's slice on its device.

        Raises:
          ValueError: if a leaf's leading axis is not `count`.
        """
        self._check_stacked(tree, "tree")
        spec = PartitionSpec(_AXIS) if self.mode == "shard_map" else PartitionSpec()
        # A copy, always: the training loop donates its buffers, and must not give away
        # arrays that the caller still holds.
        return jax.device_put(tree, NamedSharding(self._mesh, spec), may_alias=False)

    def permute(self, tree: Any, rows: Sequence[int] | np.ndarray) -> Any:
        """A stacked tree whose row m is what row `rows[m]` was.

        Only rows that change place travel, each straight from one device to the other:
        a function of all workers with the same effect would gather every row on every
        device, and a collective permute would be compiled for each permutation.

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
        rows = np.asarray(rows)
        within = rows.shape == (self.count,) and np.issubdtype(rows.dtype, np.integer)
        if not within or rows.min() < 0 or rows.max() >= self.count:
            raise ValueError(
                f"rows must be {self.count} integers from 0 to {self.count - 1}, one "
                f"for each worker, got {rows.tolist()}."
            )
        self._check_stacked(tree, "tree")
        if self.mode == "vmap":
            return _take(tree, rows)
        sharding = NamedSharding(self._mesh, PartitionSpec(_AXIS))

        def one(x):
            x = jax.device_put(x, sharding)
            held = {shard.device: shard.data for shard in x.addressable_shards}
            placed = [
                jax.device_put(held[self.devices[row]], device)
                for row, device in zip(rows, self.devices, strict=True)
            ]
            return jax.make_array_from_single_device_arrays(x.shape, sharding, placed)

        return jax.tree.map(one, tree)

    def _check_stacked(self, tree, what):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            shape = jnp.shape(leaf)
            if not shape or shape[0] != self.count:
                raise ValueError(
                    f"{what}{jax.tree_util.keystr(path)} must be stacked, with a "
                    f"leading axis of {self.count} workers, got shape {shape}: use "
                    "Workers.replicate, or in_axes=None for what all workers share."
                )

    def _vmap(self, fn, axes):
        # vmap wants a mapped leaf, and the arguments may have none: it gets one that
        # the function never sees.
        inner = jax.vmap(lambda _, *args: fn(*args), (0, *axes), axis_name=_AXIS)
        return lambda *args: inner(jnp.arange(self.count), *args)

    def _shard_map(self, fn, axes):
        def one_worker(*args):
            args = [
                jax.tree.map(lambda x: x[0], arg) if axis == 0 else arg
                for arg, axis in zip(args, axes, strict=True)
            ]
            return jax.tree.map(lambda x: jnp.asarray(x)[None], fn(*args))

        # Without check_vma=False `jax.grad` of what is replicated comes out already
        # summed over workers, unlike under vmap, and several optax states do not scan.
        return jax.shard_map(
            one_worker,
            mesh=self._mesh,
            in_specs=tuple(
                PartitionSpec(_AXIS) if axis == 0 else PartitionSpec() for axis in axes
            ),
            out_specs=PartitionSpec(_AXIS),
            check_vma=False,
        )


@jax.jit
def _take(tree, rows):
    return jax.tree.map(lambda x: jnp.take(x, rows, axis=0), tree)
