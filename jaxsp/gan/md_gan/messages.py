"""The arrays of messages: what goes from device to device, and what arrives."""

import functools
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, PartitionSpec

from jaxsp import comm

__all__ = [
    "ENDS",
    "carrier",
    "divided",
    "finite",
    "first_axis",
    "mesh",
    "opened",
    "piece",
    "scattered",
    "spread",
    "taken",
    "zeros",
]

ENDS = "ends"  # the axis of the devices between which a message goes


def mesh(devices: Sequence[Any]) -> Mesh:
    """The devices in a row, as one axis."""
    return Mesh(np.array(devices), (ENDS,), axis_types=(AxisType.Auto,))


def piece(tree: Any, device: Any) -> Any:
    """What of a tree lies on a device."""

    def one(leaf):
        return next(s.data for s in leaf.addressable_shards if s.device == device)

    return jax.tree.map(one, tree)


def first_axis(tree: Any, size: int) -> Any:
    """Shapes with another length of the first axis."""

    def one(leaf):
        return jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype)

    return jax.tree.map(one, tree)


@functools.cache
def zeros(device: Any, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Zeros on a device, made once."""
    return jax.device_put(np.zeros(shape, dtype), device)


@functools.cache
def carrier(ends: tuple[Any, Any], down: bool) -> Any:
    """The program that carries the first half of each array to the second device.

    Or, if not `down`, the second half to the first.
    """
    source, target = (0, 1) if down else (1, 0)

    def carry(tree):
        return jax.tree.map(lambda x: comm.send(x, source, target, ENDS), tree)

    spec = PartitionSpec(ENDS)
    return jax.jit(
        jax.shard_map(
            carry, mesh=mesh(ends), in_specs=spec, out_specs=spec, check_vma=False
        )
    )


@functools.partial(jax.jit, static_argnums=1)
def divided(fakes: Any, living: tuple[tuple[int, ...], ...]) -> list[Any]:
    """For each device what its living workers get: X^d and X^g, [2, rows, ...]."""
    size = len(jax.tree.leaves(fakes)[0]) // len(living)

    def of(device, rows):
        index = np.array(rows, int) + device * size
        return jax.tree.map(lambda d, g: jnp.stack([d[index], g[index]]), *fakes)

    return [of(device, rows) for device, rows in enumerate(living)]


@jax.jit
def opened(message: Any) -> list[Any]:
    """X^d and X^g from a message of both, [2, rows, ...]."""
    return [jax.tree.map(operator.itemgetter(which), message) for which in range(2)]


@functools.partial(jax.jit, static_argnums=(1, 2))
def spread(message: Any, rows: tuple[int, ...], size: int) -> list[Any]:
    """As `opened`, for `size` workers of which only `rows` got something."""

    def one(leaf):
        nothing = jnp.zeros((2, size, *leaf.shape[2:]), leaf.dtype)
        return nothing.at[:, np.array(rows)].set(leaf)

    return opened(jax.tree.map(one, message))


@functools.partial(jax.jit, static_argnums=1)
def taken(tree: Any, rows: tuple[int, ...]) -> Any:
    """Some rows of a stacked tree."""
    return jax.tree.map(lambda leaf: leaf[np.array(rows)], tree)


@functools.partial(jax.jit, static_argnums=(1, 2))
def scattered(trees: list[Any], rows: tuple[int, ...], count: int) -> Any:
    """Stacked trees together, as `rows` of stacked trees of `count`."""

    def one(*leaves):
        nothing = jnp.zeros((count, *leaves[0].shape[1:]), leaves[0].dtype)
        return nothing.at[np.array(rows)].set(jnp.concatenate(leaves))

    return jax.tree.map(one, *trees)


@jax.jit
def finite(tree: Any) -> jax.Array:
    """Whether every number is finite."""
    return jnp.array([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]).all()
