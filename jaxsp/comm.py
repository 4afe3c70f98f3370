r"""What workers say to each other: the only module that calls a collective.

A transformation sees one worker. Everything it learns of the others comes through the
functions here, which take the name of the worker axis that `jaxsp.Workers` (or the
user's own `vmap`, `shard_map`, `pmap`) binds. Leaves travel packed, one flat buffer a
dtype, so that a step has as many collectives as the method has rounds, whatever the
number of leaves of the model.

What travels is counted in `Traffic`, exactly: a 32-bit integer overflows after 512 MiB
and a float drifts, so a count is two 32-bit limbs.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsp.topology import TimeVarying, Topology

__all__ = [
    "AxisName",
    "Traffic",
    "add_mixing",
    "add_traffic",
    "dense_bits",
    "gather",
    "mean",
    "mean_bits",
    "mix",
    "mix_payloads",
    "no_traffic",
    "pack",
    "shared_index",
    "transpose",
    "worker_count",
    "worker_index",
    "worker_key",
]

AxisName = str | tuple[str, str]
"""The worker axis: its name, or the pair (device axis, axis within a device)."""


# ------------------------------------------------------------------ who and how many


def worker_index(axis_name: AxisName) -> jax.Array:
    """The number of the worker who asks, from 0: an int32 scalar."""
    return lax.axis_index(axis_name)


def worker_count(axis_name: AxisName) -> int:
    """The number of workers on the axis, a Python integer."""
    return lax.axis_size(axis_name)


def worker_key(key: jax.Array, axis_name: AxisName) -> jax.Array:
    """A key of the worker's own, made from a key that all share.

    What all workers must draw alike (a coin, a graph) is drawn from the shared key;
    what each draws for itself (a batch, a rounding) from this one.
    """
    return jax.random.fold_in(key, worker_index(axis_name))


def shared_index(index: jax.Array, axis_name: AxisName) -> jax.Array:
    """An index that all workers hold alike, made one number rather than one a worker.

    Under `vmap` a `lax.switch` over an index that has a worker dimension runs every
    branch; over this one it runs the branch taken. Between devices it costs an
    all-reduce of 4 bytes.
    """
    return lax.pmax(index, axis_name)


# ------------------------------------------------------------------ packed collectives


def pack(tree: Any) -> tuple[list[jax.Array], Callable[[Any], Any]]:
    """Flatten a tree into one vector per dtype.

    Args:
      tree: a pytree of arrays.

    Returns:
      The vectors, in order of the dtypes' first appearance, and the function that turns
      vectors of the same sizes back into the tree.
    """
    leaves, treedef = jax.tree.flatten(tree)
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    groups: dict[Any, list[int]] = {}
    for i, leaf in enumerate(leaves):
        groups.setdefault(leaf.dtype, []).append(i)
    members = list(groups.values())
    buffers = [
        jnp.concatenate([leaves[i].ravel() for i in group])
        if len(group) > 1
        else leaves[group[0]].ravel()
        for group in members
    ]

    def unpack(buffers):
        restored: list[Any] = [None] * len(leaves)
        for group, buffer in zip(members, buffers, strict=True):
            ends = np.cumsum([leaves[i].size for i in group])[:-1]
            for i, part in zip(group, jnp.split(buffer, ends), strict=True):
                restored[i] = part.reshape(leaves[i].shape)
        return jax.tree.unflatten(treedef, restored)

    return buffers, unpack


def mean(tree: Any, axis_name: AxisName) -> Any:
    r"""The mean over workers, $\frac1M \sum_m x_m$: one all-reduce per dtype."""
    buffers, unpack = pack(tree)
    return unpack([lax.pmean(buffer, axis_name) for buffer in buffers])


def gather(tree: Any, axis_name: AxisName) -> Any:
    """Every worker's tree on every worker, stacked along a new leading axis.

    The arrays travel as the bytes they are: one all-gather, whatever their dtypes.
    """
    data, unpack = _pack_bytes(tree)
    return jax.vmap(unpack)(lax.all_gather(data, axis_name))


def transpose(tree: Any, axis_name: AxisName) -> Any:
    """Row j of this worker's tree goes to worker j: one all-to-all of bytes.

    Args:
      tree: arrays with a leading axis of the number of workers M.
      axis_name: the worker axis.

    Returns:
      Arrays of the same shapes, of which row j came from worker j.
    """
    _, unpack = _pack_bytes(jax.tree.map(lambda x: x[0], tree))
    rows = jax.vmap(lambda row: _pack_bytes(row)[0])(tree)
    return jax.vmap(unpack)(lax.all_to_all(rows, axis_name, 0, 0, tiled=True))


def _pack_bytes(tree):
    """A tree as one vector of bytes, and what makes the tree of such a vector."""
    leaves, treedef = jax.tree.flatten(tree)
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    data = [lax.bitcast_convert_type(leaf, jnp.uint8).ravel() for leaf in leaves]
    ends = np.cumsum([part.size for part in data])[:-1]

    def unpack(data):
        return jax.tree.unflatten(
            treedef,
            [
                lax.bitcast_convert_type(
                    part.reshape(_byte_shape(leaf)), leaf.dtype
                ).reshape(leaf.shape)
                for leaf, part in zip(leaves, jnp.split(data, ends), strict=True)
            ],
        )

    return jnp.concatenate(data) if data else jnp.zeros(0, jnp.uint8), unpack


def _byte_shape(leaf):
    """The shape of an array's bytes: a number of several has an axis of its own."""
    size = leaf.dtype.itemsize
    return leaf.shape if size == 1 else (*leaf.shape, size)


def mix_payloads(
    payload: Any,
    decode: Callable[[Any], Any],
    topology: Topology,
    axis_name: AxisName,
) -> Any:
    r"""`mix` of what payloads stand for, $\sum_j W_{mj}\,\mathrm{decode}(c_j)$.

    The payloads travel, each neighbour's as it is, and are decoded where they arrive.
    """
    data, unpack = _pack_bytes(payload)

    def term(weights, data):
        return jax.tree.map(
            lambda x: _scaled(weights, x, axis_name), decode(unpack(data))
        )

    total = term(topology.self_weights, data)
    for sources, weights in zip(topology.permutations, topology.weights, strict=True):
        received = _permuted(data, sources, axis_name)
        total = jax.tree.map(jnp.add, total, term(weights, received))
    return total


def _permuted(x, sources, axis_name):
    pairs = [(int(source), m) for m, source in enumerate(sources)]
    return lax.ppermute(x, axis_name, pairs)


def mix(
    tree: Any,
    topology: Topology | TimeVarying,
    axis_name: AxisName,
    member: jax.Array | int = 0,
) -> Any:
    r"""One exchange with the neighbours, $x_m \leftarrow \sum_j W_{mj} x_j$.

    $W = \mathrm{diag}(w_0) + \sum_r \mathrm{diag}(w_r) P_r$ is applied as one
    `ppermute` for each full permutation $P_r$ and each dtype.

    Args:
      tree: this worker's arrays.
      topology: the mixing matrix.
      axis_name: the worker axis, of size `topology.size`.
      member: which matrix of a time-varying topology; must be the same on all workers.

    Returns:
      This worker's row of `W x`, of the tree's shapes and dtypes.

    Raises:
      ValueError: if the topology is for another number of workers.
    """
    if worker_count(axis_name) != topology.size:
        raise ValueError(
            f"topology is for {topology.size} workers, but the axis {axis_name!r} has "
            f"{worker_count(axis_name)}: build it for that many."
        )
    buffers, unpack = pack(tree)

    def one(topology, buffers):
        return [_weighted_permutations(topology, b, axis_name) for b in buffers]

    members = topology.members
    if len(members) == 1:
        return unpack(one(members[0], buffers))
    return unpack(lax.switch(member, [partial(one, w) for w in members], buffers))


def _weighted_permutations(topology, x, axis_name):
    """`diag(w_0) x + Σ_r diag(w_r) P_r x` for one vector."""
    # In half precision the weights of a row need not sum to 1, and the mean would drift
    # from mixing to mixing: what travels is x, what is added up is wider.
    wide = jnp.promote_types(x.dtype, jnp.float32)
    mixed = _scaled(topology.self_weights, x.astype(wide), axis_name)
    for sources, weights in zip(topology.permutations, topology.weights, strict=True):
        received = _permuted(x, sources, axis_name)  # P_r x
        mixed = mixed + _scaled(weights, received.astype(wide), axis_name)
    return mixed.astype(x.dtype)


def _scaled(weights, x, axis_name):
    """This worker's weight times `x`, and zero where the weight is, whatever `x` is."""
    if np.all(weights == weights[0]):  # circulant: one number, nothing to look up
        return weights[0].item() * x if weights[0] else jnp.zeros_like(x)
    weight = jnp.asarray(weights, x.dtype)[worker_index(axis_name)]
    if np.all(weights):
        return weight * x
    return jnp.where(weight == 0, jnp.zeros_like(x), weight * x)


# ------------------------------------------------------------------ what it costs


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


def dense_bits(tree: Any) -> int:
    """The size of a tree's arrays in bits, as they travel uncompressed."""
    return sum(8 * x.dtype.itemsize * x.size for x in jax.tree.leaves(tree))


def mean_bits(tree: Any, axis_name: AxisName) -> int:
    r"""What `mean` makes each worker send, and receive: $2(M-1)/M$ times the tree.

    That is the least with which every worker can end with the mean, what a ring
    all-reduce moves: each worker's block goes once around to be added up, and once
    more to be told.
    """
    count = worker_count(axis_name)
    return -(-2 * (count - 1) * dense_bits(tree) // count)


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


def add_mixing(
    traffic: Traffic,
    tree: Any,
    topology: Topology | TimeVarying,
    axis_name: AxisName,
    member: jax.Array | int = 0,
) -> Traffic:
    """Count what `mix` with the same arguments sends and receives, worker by worker."""
    bits = dense_bits(tree)

    def count(topology, traffic):
        sent, received = topology.messages()
        return add_traffic(traffic, bits * sent, bits * received, axis_name)

    members = topology.members
    if len({tuple(np.concatenate(w.messages())) for w in members}) == 1:
        return count(members[0], traffic)
    return lax.switch(member, [partial(count, w) for w in members], traffic)


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
