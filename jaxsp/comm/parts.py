"""A tree in parts, each of which belongs to some of the workers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsp.comm.axis import AxisName, sum_of_rows, worker_count, worker_index
from jaxsp.comm.collectives import all_reduce, gather, pack
from jaxsp.comm.traffic import Traffic

__all__ = ["mean_of_owners", "owners"]


def owners(parts: int, count: int) -> np.ndarray:
    """To whom parts belong: neighbours share one, or one worker has several.

    Args:
      parts: their number n.
      count: the number of workers M.

    Returns:
      For each worker which parts are its own, bool [M, n]: the same number of each, as
      far as M and n allow.
    """
    few = min(parts, count)
    workers, kinds = np.arange(count) * few // count, np.arange(parts) * few // parts
    return workers[:, None] == kinds


def mean_of_owners(
    parts: list[Any], traffic: Traffic, axis_name: AxisName
) -> tuple[list[Any], Traffic]:
    r"""Each part as the workers have it to whom it belongs, or their mean.

    What travels is a worker's own part, filled up to the longest, in one all-gather; or
    all parts, zeros in the place of the others', in one all-reduce of each dtype,
    whichever sends less. With as many workers as parts, of one size, it is the former.

    Args:
      parts: this worker's trees, of floating arrays; they belong to `owners`.
      traffic: the count so far.
      axis_name: the worker axis.

    Returns:
      The parts, alike on all workers; the new count.
    """
    count, me = worker_count(axis_name), worker_index(axis_name)
    own = owners(len(parts), count)
    packed = [pack(part) for part in parts]
    longest: dict[Any, int] = {}
    whole: dict[Any, int] = {}
    for x in (x for vectors, _ in packed for x in vectors):
        longest[x.dtype] = max(longest.get(x.dtype, 0), x.size)
        whole[x.dtype] = whole.get(x.dtype, 0) + x.size
    one = sum(t.itemsize * n for t, n in longest.items())
    every = sum(t.itemsize * n for t, n in whole.items())
    if len(parts) > count or 2 * every < count * one:
        mine, alike = jnp.asarray(own)[me], own.sum(axis=0)[own.argmax(axis=1)]
        masked = [
            jax.tree.map(lambda x, i=i: jnp.where(mine[i], x, jnp.zeros_like(x)), part)
            for i, part in enumerate(parts)
        ]
        return all_reduce(masked, traffic, axis_name, jnp.asarray(count / alike)[me])

    def rows(kind, size):
        """The parts' vectors of one dtype, filled up, [n, size]."""
        found = [
            next((x for x in vectors if x.dtype == kind), jnp.zeros(0, kind))
            for vectors, _ in packed
        ]
        return jnp.stack([jnp.pad(x, (0, size - x.size)) for x in found])

    which = jnp.asarray(own.argmax(axis=1))[me]
    mine = {kind.name: rows(kind, size)[which] for kind, size in longest.items()}
    received, traffic = gather(mine, traffic, axis_name)  # [M, size] each

    def told(i, x):
        wide = np.promote_types(x.dtype, np.float32)
        of_owners = received[x.dtype.name][np.flatnonzero(own[:, i]), : x.size]
        total = sum_of_rows(of_owners, wide)
        return (total / len(of_owners)).astype(x.dtype)

    told_parts = [
        unpack([told(i, x) for x in vectors])
        for i, (vectors, unpack) in enumerate(packed)
    ]
    return told_parts, traffic
