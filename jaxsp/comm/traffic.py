"""What travels, counted exactly.

A 32-bit integer overflows after 512 MiB and a float drifts, so a count is two 32-bit
limbs. Messages are counted from worker to worker, wherever the workers live: those that
share a device exchange without a network, and what a network carries is less then.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsp.comm.axis import AxisName, worker_index

__all__ = [
    "Traffic",
    "add_traffic",
    "dense_bits",
    "find_traffic",
    "no_traffic",
]


class Traffic(NamedTuple):
    """Bits a worker has sent to others and received from them since `init`, exactly.

    Attributes:
      up: bits sent, as uint32 limbs `[high, low]`.
      down: bits received, likewise.
    """

    up: jax.Array
    down: jax.Array


def no_traffic() -> Traffic:
    """A counter at zero."""
    return Traffic(up=jnp.zeros(2, jnp.uint32), down=jnp.zeros(2, jnp.uint32))


def find_traffic(state: Any) -> list[Traffic]:
    """What counts in a state, wherever it is, known by its type.

    Args:
      state: a pytree, such as the state of a transformation.

    Returns:
      The counters, in the order of the tree.

    Raises:
      ValueError: if one is inside of `optax.MultiSteps`, which sends at every step and
        keeps the count of the last alone.
    """

    def counts(x):
        return isinstance(x, Traffic)

    def several(x):
        return isinstance(x, optax.MultiStepsState)

    for found in jax.tree.leaves(state, is_leaf=several):
        if several(found) and find_traffic(found.inner_opt_state):
            raise ValueError(
                "state must not count inside of optax.MultiSteps, which sends at every "
                "step and keeps one count of several: write optax.chain("
                "jaxsp.average(...), optax.MultiSteps(optimizer, k)"
                ".gradient_transformation()), or draw larger batches."
            )
    return [x for x in jax.tree.leaves(state, is_leaf=counts) if counts(x)]


def dense_bits(tree: Any) -> int:
    """The size of a tree's arrays in bits, as they travel uncompressed."""
    return sum(8 * x.dtype.itemsize * x.size for x in jax.tree.leaves(tree))


def add_traffic(
    traffic: Traffic,
    up: int | np.ndarray,
    down: int | np.ndarray,
    axis_name: AxisName,
) -> Traffic:
    """Count one more message.

    Args:
      traffic: the count so far.
      up: bits sent, known when tracing: one number, or an integer array with one for
        each worker.
      down: bits received, likewise.
      axis_name: the worker axis, to find this worker's entry of an array.

    Returns:
      The new count.
    """
    return Traffic(
        up=_add(traffic.up, up, axis_name), down=_add(traffic.down, down, axis_name)
    )


def _add(limbs, bits, axis_name):
    bits = np.asarray(bits, np.uint64)
    if bits.ndim and np.all(bits == bits[0]):
        bits = bits[0]
    high, low = (bits >> np.uint64(32)), (bits & np.uint64(0xFFFFFFFF))
    added = jnp.stack([jnp.asarray(x, jnp.uint32) for x in (high, low)], axis=-1)
    if bits.ndim:
        added = added[worker_index(axis_name)]
    low = limbs[1] + added[1]
    carry = (low < added[1]).astype(jnp.uint32)
    return jnp.stack([limbs[0] + added[0] + carry, low])
