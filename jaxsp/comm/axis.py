r"""The collectives themselves, over one worker a device or over blocks of workers.

With several workers on each device the worker axis is a pair (device axis, axis within
a device): a mapped axis inside a device axis, as worker $m = dB + b$ is row $b$ of the
block of $B$ workers of device $d$. JAX has no collective over such a pair that sends
only what must travel: each function here first looks at its own block, which costs
nothing, and then sends between devices what the others have not got.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsp import _arguments
from jaxsp.comm import gloo
from jaxsp.topology import permutations

__all__ = [
    "AxisName",
    "all_gather",
    "all_mean",
    "all_to_all",
    "anywhere",
    "between_devices",
    "check_unchecked",
    "inside_workers",
    "is_half",
    "permute",
    "send",
    "shared_index",
    "sum_of_rows",
    "worker_count",
    "worker_index",
    "worker_key",
]

AxisName = str | tuple[str, str]
"""The worker axis: its name, or the pair (device axis, axis within a device)."""


# ------------------------------------------------------------------ who and how many


def worker_index(axis_name: AxisName) -> jax.Array:
    """The number of the worker who asks, from 0: an int32 scalar."""
    if isinstance(axis_name, str):
        if lax.axis_size(axis_name) == 1 and not between_devices(axis_name):
            return jnp.zeros((), jnp.int32)  # that of `vmap` would have a dimension
        return lax.axis_index(axis_name)
    devices, block = axis_name
    return lax.axis_index(devices) * lax.axis_size(block) + lax.axis_index(block)


def worker_count(axis_name: AxisName) -> int:
    """The number of workers on the axis, a Python integer."""
    names = (axis_name,) if isinstance(axis_name, str) else axis_name
    try:
        return math.prod(map(lax.axis_size, names))
    except NameError:
        raise ValueError(
            f"axis_name {axis_name!r} is not the axis of anything that runs here: call "
            "this in a function given to Workers.map, or to a vmap, pmap or shard_map "
            "that names the axis."
        ) from None


def inside_workers() -> bool:
    """Whether a function runs that `Workers.map` maps."""
    try:
        return bool(lax.axis_size("workers"))
    except NameError:
        return False


def between_devices(axis_name: AxisName) -> bool:
    """Whether workers of the axis live on several devices, or all on one by `vmap`."""
    worker_count(axis_name)  # or an error that says what to write
    name = axis_name if isinstance(axis_name, str) else axis_name[0]
    return name in jax.sharding.get_abstract_mesh().manual_axes


def check_unchecked(axis_name: AxisName) -> None:
    """Refuse a `shard_map` that checks what varies between workers.

    It would have the loops and branches here declare it of everything that they carry,
    which `vmap` does not understand.
    """
    name = axis_name if isinstance(axis_name, str) else axis_name[0]
    if not between_devices(axis_name):
        return
    index, constant = lax.axis_index(name), jnp.zeros((), jnp.int32)
    if jax.typeof(index) != jax.typeof(constant):
        raise ValueError(
            "check_vma must be False in a jax.shard_map of compressed messages or "
            "snapshots, got its default, True: write jax.shard_map(..., "
            "check_vma=False), or use jaxsp.Workers."
        )


def worker_key(key: jax.Array, axis_name: AxisName) -> jax.Array:
    """A key of the worker's own, made from a key that all share.

    What all workers must draw alike (a coin, a graph) is drawn from the shared key;
    what each draws for itself (a batch, a rounding) from this one. It is a key of
    Threefry, whatever the type of `key`, so that a worker draws the same numbers alone
    on a device as under `vmap`.
    """
    key = _arguments.check_key("key", key)
    return jax.random.fold_in(key, worker_index(axis_name))


def anywhere(fact: jax.Array, axis_name: AxisName) -> jax.Array:
    """Whether it is so on any worker: one bool, which all workers hold alike."""
    for name in (axis_name,) if isinstance(axis_name, str) else axis_name[::-1]:
        fact = lax.pmax(fact.astype(jnp.int32), name).astype(bool)
    return fact


def shared_index(index: jax.Array, axis_name: AxisName) -> jax.Array:
    """A number or bool that all workers hold alike, made one rather than one a worker.

    Under `vmap` a `lax.switch` or `lax.cond` over a value that has a worker dimension
    runs every branch, and a collective in a branch that is not taken is sent; over this
    one only the branch taken runs. Nothing travels for it.
    """
    for name in (axis_name,) if isinstance(axis_name, str) else axis_name:
        if not between_devices(name):  # a `vmap`
            index = lax.pmax(jnp.asarray(index).astype(jnp.int32), name).astype(
                jnp.result_type(index)
            )
    return index


# ------------------------------------------------------------------ collectives


def all_mean(
    x: jax.Array, axis_name: AxisName, weight: jax.Array | None = None
) -> jax.Array:
    """The mean over workers; a block is averaged before anything is sent.

    Numbers of half precision travel as they are and are added up in float32: worker m
    adds up block m of all, and tells the others its mean; two tell each other all. That
    is as many bytes as an all-reduce, whose sums would overflow and be rounded at every
    addition.

    Args:
      x: this worker's array.
      axis_name: the worker axis.
      weight: what to multiply this worker's array with; None is 1.
    """
    half = is_half(x.dtype)
    wide = x.astype(jnp.float32) if half else x
    if weight is not None:
        wide = weight.astype(wide.dtype) * wide
    devices, *blocks = (axis_name,) if isinstance(axis_name, str) else axis_name
    for name in blocks if between_devices(devices) else (*blocks, devices):
        rows = lax.all_gather(wide, name)  # of a `vmap`: they are all here
        wide = sum_of_rows(rows) / len(rows)
    if not between_devices(devices):
        return wide.astype(x.dtype)
    if not half:
        return lax.pmean(wide, devices)
    count = lax.axis_size(devices)
    if weight is not None:  # a part of the mean: a weight may be large
        wide = wide / count
    mine = wide.astype(x.dtype)

    def mean(rows):
        total = sum_of_rows(rows)
        return (total if weight is not None else total / count).astype(x.dtype)

    if count == 2:  # as many bytes, and one round
        return mean(all_gather(mine, devices))
    size = -(-x.size // count)
    rows = jnp.pad(mine.ravel(), (0, size * count - x.size)).reshape(count, size)
    told = all_gather(mean(all_to_all(rows, devices)), devices)
    return told.ravel()[: x.size].reshape(x.shape)


@functools.partial(jax.jit, static_argnames="dtype", inline=True)
def sum_of_rows(rows: jax.Array, dtype: Any = None) -> jax.Array:
    """The sum over the leading axis: on a CPU a product with ones.

    In `dtype`; None is that of the rows, or float32 where they are of half precision.
    XLA's reduction there takes the rows' numbers one at a time, which for some long
    rows is ten to forty times slower.
    """
    dtype = dtype or (jnp.float32 if is_half(rows.dtype) else rows.dtype)

    def reduced(rows):
        return jnp.sum(rows, axis=0, dtype=dtype)

    def product(rows):
        ones = jnp.ones(len(rows), dtype)
        return jnp.tensordot(ones, rows.astype(dtype), 1, precision="highest")

    if len(rows) == 1:
        return rows[0].astype(dtype)
    if rows.size < 16 * 1024:  # either is quick
        return reduced(rows)
    return lax.platform_dependent(rows, cpu=product, default=reduced)


def is_half(dtype: Any) -> bool:
    """Whether sums of such numbers need a wider type."""
    return jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4


def all_gather(x: jax.Array, axis_name: AxisName) -> jax.Array:
    """All workers' arrays, stacked; each crosses once from device to device."""
    if isinstance(axis_name, str):
        return lax.all_gather(x, axis_name)
    devices, block = axis_name
    rows = lax.all_gather(lax.all_gather(x, block), devices)
    return rows.reshape(-1, *x.shape)


def all_to_all(x: jax.Array, axis_name: AxisName) -> jax.Array:
    """Row j of a worker's array goes to worker j; row j of the result came from j."""
    if isinstance(axis_name, str):
        if gloo.in_use(axis_name):
            return gloo.all_to_all(x, axis_name)
        if between_devices(axis_name):
            return lax.all_to_all(x, axis_name, 0, 0, tiled=True)
        # Under `vmap` an all-to-all of what all workers hold alike has a wrong shape.
        rows = lax.all_gather(x, axis_name)  # [sender, receiver, ...]
        return jnp.take(rows, worker_index(axis_name), axis=1)
    devices, block = axis_name
    count, size = lax.axis_size(devices), lax.axis_size(block)
    rows = lax.all_gather(x, block)  # [sender in block, receiver, ...]
    rows = rows.reshape(size, count, size, *x.shape[1:])
    rows = jnp.swapaxes(rows, 0, 1)  # [receiver's device, sender, receiver, ...]
    rows = all_to_all(rows, devices)  # [sender's device, sender, receiver, ...]
    mine = jnp.take(rows, lax.axis_index(block), axis=2)
    return mine.reshape(x.shape)


def permute(x: jax.Array, sources: Sequence[int], axis_name: AxisName) -> jax.Array:
    """The array of worker `sources[m]` on worker m, for a permutation of all workers.

    With blocks, only rows that cross a device border travel, each once: the rows that
    the same pairs of devices exchange go in one collective permute, and there are as
    few rounds as the busiest device has rows to send. A row may then also go to several
    workers.

    Args:
      x: this worker's array.
      sources: for each worker the one whose array it gets, known when tracing.
      axis_name: the worker axis.

    Returns:
      The array that has arrived.
    """
    if isinstance(axis_name, str):
        pairs = [(int(source), m) for m, source in enumerate(sources)]
        return _send(x, pairs, axis_name)
    devices, block = axis_name
    size, me = lax.axis_size(block), lax.axis_index(devices)
    swaps = gloo.in_use(devices)
    plan = _crossings(tuple(int(source) for source in sources), size, swaps)
    own = lax.all_gather(x, block)  # this device's block, of every worker in it alike
    pool = [own]
    for crossing in plan.crossings:
        rows = _entry(crossing.rows, me)
        pool.append(_send(own[rows], crossing.pairs, devices))
    place = jnp.asarray(_entry(plan.places, me))[lax.axis_index(block)]
    return jnp.concatenate(pool)[place]


def send(x: jax.Array, source: int, target: int, axis_name: str) -> jax.Array:
    """The array of one device on one other, zeros elsewhere; nothing else travels.

    Not under `vmap`, which knows no permutation of some.

    Args:
      x: the array, of the same shape everywhere; of the source it is sent.
      source: who sends, a position on the axis.
      target: who receives.
      axis_name: a device axis.

    Returns:
      What has arrived.
    """
    return lax.ppermute(x, axis_name, [(source, target)])


def _send(x, pairs, devices):
    if gloo.in_use(devices):
        return gloo.send(x, pairs, devices)
    return lax.ppermute(x, devices, pairs)


def _entry(table, me):
    """A device's row of a table that is known when tracing; static if all are alike."""
    return table[0] if np.all(table == table[0]) else jnp.asarray(table)[me]


class _Crossing(NamedTuple):
    """One collective permute between devices.

    Attributes:
      pairs: who sends to whom, (device, device).
      rows: for each device the rows of its block that it sends, int [devices, rows].
    """

    pairs: tuple[tuple[int, int], ...]
    rows: np.ndarray


class _Plan(NamedTuple):
    """A permutation of workers as collective permutes between devices.

    Attributes:
      crossings: what travels.
      places: for each device and each worker in its block, which row to take of the
        block itself followed by all that has arrived, int [devices, block].
    """

    crossings: tuple[_Crossing, ...]
    places: np.ndarray


@functools.cache
def _crossings(sources: tuple[int, ...], size: int, swaps: bool) -> _Plan:
    """What must travel for a permutation of workers in blocks of `size`.

    With `swaps` devices exchange rows in pairs, if the permutation can be done so.
    """
    count = len(sources) // size
    edges = [
        (m // size, source // size)
        for m, source in enumerate(sources)
        if m // size != source // size
    ]
    waiting: dict[tuple[int, int], list[int]] = {}  # (receiver, sender) -> workers
    for m, source in enumerate(sources):
        waiting.setdefault((m // size, source // size), []).append(m)
    colours = permutations.matchings(edges, count) if swaps else None
    if colours is None:
        colours = permutations.colour(edges, count)  # [round, device] -> device
    rounds: dict[tuple[int, ...], int] = {}  # equal ones are one, of several rows
    for permutation in colours.tolist():
        rounds[tuple(permutation)] = rounds.get(tuple(permutation), 0) + 1
    places = np.array(sources).reshape(count, size) % size
    crossings, arrived = [], size
    for permutation, width in rounds.items():
        rows = np.full((count, width), -1)
        pairs = []
        for device, sender in enumerate(permutation):
            due = waiting.get((device, sender), []) if sender != device else []
            for k, m in enumerate(due[:width]):
                rows[sender, k] = sources[m] % size
                places[device, m % size] = arrived + k
            if due:
                pairs.append((sender, device))
                del due[:width]
        # Who sends nothing may name any rows: those of another, for one table of all.
        rows = np.where(rows < 0, rows.max(axis=0), rows)
        crossings.append(_Crossing(tuple(pairs), rows))
        arrived += width
    return _Plan(tuple(crossings), places)
