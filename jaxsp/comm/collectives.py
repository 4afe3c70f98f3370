"""Collectives of trees; each returns what it cost beside what it brought.

Leaves are packed where they travel between devices, into one flat buffer a dtype or one
of bytes, so that a step has as many collectives as its method has rounds, whatever the
number of leaves. Over a `vmap` axis nothing travels, and leaves stay as they are.

Payloads travel as bytes, and long ones of whole words as such, in rows of 128, as a TPU
holds them. Of a vector it would hold the tiles a quarter full and send them so, or,
where its length is no multiple of 128, replace the all-gather by an all-reduce of
everybody's bytes, zeros in the places of the others'. What fills up the last row is not
counted; short messages stay as they are.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsp.comm import gloo
from jaxsp.comm.axis import (
    AxisName,
    all_gather,
    all_mean,
    all_to_all,
    between_devices,
    is_half,
    permute,
    worker_count,
    worker_index,
)
from jaxsp.comm.traffic import Traffic, add_traffic, dense_bits
from jaxsp.topology import TimeVarying, Topology, permutations

__all__ = [
    "all_reduce",
    "buffers",
    "gather",
    "mix",
    "mix_payloads",
    "pack",
    "transpose",
]


_ROW = 128  # unsigned integers
_SHORT = 64 * _ROW  # the filling of a longer message is below 1.6 % of it


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


def buffers(
    tree: Any, axis_name: AxisName
) -> tuple[list[jax.Array], Callable[[Any], Any]]:
    """What travels of a tree: packed between devices, its leaves where none are.

    Args:
      tree: a pytree of arrays.
      axis_name: the worker axis.

    Returns:
      The arrays, and the function that turns arrays like them back into the tree.
    """
    if between_devices(axis_name):
        return pack(tree)
    leaves, treedef = jax.tree.flatten(tree)
    return [jnp.asarray(x) for x in leaves], partial(jax.tree.unflatten, treedef)


def all_reduce(
    tree: Any,
    traffic: Traffic,
    axis_name: AxisName,
    weight: jax.Array | None = None,
) -> tuple[Any, Traffic]:
    r"""The mean over workers, $\frac1M \sum_m w_m x_m$: one all-reduce per dtype.

    It costs each worker $2(M-1)/M$ times the tree, each way. That is the least with
    which every worker can end with the mean, and what a ring all-reduce moves: each
    worker's block goes once around to be added up, and once more to be told. Half
    precision is added up in float32, and travels as it is: an all-to-all and an
    all-gather take the place of the all-reduce, at the same cost.

    Args:
      tree: this worker's arrays.
      traffic: the count so far.
      axis_name: the worker axis.
      weight: $w_m$ of this worker, a scalar; None is 1.

    Returns:
      The mean, of the same shapes and dtypes, alike on all workers; the new count.
    """
    arrays, restore = buffers(tree, axis_name)
    mean = restore([all_mean(x, axis_name, weight) for x in arrays])
    count = worker_count(axis_name)
    kinds = {x.dtype for x in arrays}
    sizes = {t: sum(x.size for x in arrays if x.dtype == t) for t in kinds}
    whole = sum(8 * t.itemsize * n for t, n in sizes.items() if not is_half(t))
    bits = -(-2 * (count - 1) * whole // count)
    for t, n in sizes.items():
        if is_half(t):  # in equal blocks, unless two tell each other all
            numbers = n if count == 2 else 2 * (count - 1) * -(-n // count)
            bits += 8 * t.itemsize * numbers
    return mean, add_traffic(traffic, bits, bits, axis_name)


def gather(tree: Any, traffic: Traffic, axis_name: AxisName) -> tuple[Any, Traffic]:
    """Every worker's tree on every worker, stacked along a new leading axis.

    Between devices the arrays travel as the bits they are: one all-gather, whatever
    their dtypes. No derivative passes. A worker sends and receives $M - 1$ trees.

    Args:
      tree: this worker's arrays, real numbers or bools.
      traffic: the count so far.
      axis_name: the worker axis.

    Returns:
      The arrays, with a leading axis of the number of workers M; the new count.
    """
    if not jax.tree.leaves(tree):
        return tree, traffic
    bits = (worker_count(axis_name) - 1) * dense_bits(tree)
    traffic = add_traffic(traffic, bits, bits, axis_name)
    if not between_devices(axis_name):
        return jax.tree.map(lambda x: all_gather(x, axis_name), tree), traffic
    data, unpack = _pack_bits(tree)
    return jax.vmap(unpack)(all_gather(data, axis_name)), traffic


def transpose(tree: Any, traffic: Traffic, axis_name: AxisName) -> tuple[Any, Traffic]:
    """Row j of this worker's tree goes to worker j: one all-to-all.

    A worker sends and receives $M - 1$ rows; its own stays where it is.

    Args:
      tree: arrays with a leading axis of the number of workers M.
      traffic: the count so far.
      axis_name: the worker axis.

    Returns:
      Arrays of the same shapes, of which row j came from worker j; the new count.
    """
    if not jax.tree.leaves(tree):
        return tree, traffic
    first = jax.tree.map(lambda x: x[0], tree)
    bits = (worker_count(axis_name) - 1) * dense_bits(first)
    traffic = add_traffic(traffic, bits, bits, axis_name)
    if not between_devices(axis_name):
        return jax.tree.map(lambda x: all_to_all(x, axis_name), tree), traffic
    _, unpack = _pack_bits(first)
    rows = jax.vmap(lambda row: _pack_bits(row)[0])(tree)
    return jax.vmap(unpack)(all_to_all(rows, axis_name)), traffic


def _pack_bits(tree):
    """A tree as one array of unsigned integers, and what makes the tree of such one."""
    leaves, treedef = jax.tree.flatten(tree)
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    # The long ones first, where a row begins.
    order = sorted(range(len(leaves)), key=lambda i: -leaves[i].size)
    words = sum(x.size * x.dtype.itemsize for x in leaves) // 4 >= _SHORT
    words = words and all(x.dtype.itemsize % 4 == 0 for x in leaves)
    kind = jnp.uint32 if words else jnp.uint8
    data = [_to_bits(leaves[i], kind).ravel() for i in order]
    ends = np.cumsum([part.size for part in data])
    size = sum(part.size for part in data)
    row = next((n for n in (8 * _ROW, _ROW) if size >= _SHORT // _ROW * n), 1)
    if size % row or not data:
        data.append(jnp.zeros(-size % row, kind))

    def unpack(data):
        parts = jnp.split(data.ravel(), ends)
        restored = [_from_bits(parts[order.index(i)], x) for i, x in enumerate(leaves)]
        return jax.tree.unflatten(treedef, restored)

    packed = jnp.concatenate(data) if len(data) > 1 else data[0]
    return packed if row == 1 else packed.reshape(-1, _ROW), unpack


def _to_bits(leaf, kind):
    if leaf.dtype == bool:
        return leaf.astype(kind)
    return lax.bitcast_convert_type(leaf, kind)


def _from_bits(data, leaf):
    if leaf.dtype == bool:
        return data.reshape(leaf.shape).astype(bool)
    parts = leaf.dtype.itemsize // data.dtype.itemsize
    shape = leaf.shape if parts == 1 else (*leaf.shape, parts)  # an axis of its own
    return lax.bitcast_convert_type(data.reshape(shape), leaf.dtype)


def mix_payloads(
    payload: Any,
    traffic: Traffic,
    decode: Callable[[Any], Any],
    topology: Topology,
    axis_name: AxisName,
) -> tuple[Any, Traffic]:
    r"""`mix` of what payloads stand for, $\sum_j W_{mj}\,\mathrm{decode}(c_j)$.

    The payloads travel, each neighbour's as it is, and are decoded where they arrive.

    Args:
      payload: what this worker sends, a pytree of arrays.
      traffic: the count so far.
      decode: makes a tree of a payload.
      topology: the mixing matrix.
      axis_name: the worker axis, of size `topology.size`.

    Returns:
      This worker's row of the mixed trees; the new count.
    """
    data, unpack = _pack_bits(payload)

    def term(weights, data):
        return jax.tree.map(
            lambda x: _scaled(weights, x, axis_name), decode(unpack(data))
        )

    total = term(topology.self_weights, data)
    for sources, weights in _rounds(topology, axis_name):
        received = permute(data, sources, axis_name)
        total = jax.tree.map(jnp.add, total, term(weights, received))
    return total, _count_messages(traffic, payload, topology, axis_name)


def mix(
    tree: Any,
    traffic: Traffic,
    topology: Topology | TimeVarying,
    axis_name: AxisName,
    member: jax.Array | int = 0,
    apart: bool = False,
) -> tuple[Any, Traffic]:
    r"""One exchange with the neighbours, $x_m \leftarrow \sum_j W_{mj} x_j$.

    $W = \mathrm{diag}(w_0) + \sum_r \mathrm{diag}(w_r) P_r$ is applied as one
    `ppermute` for each full permutation $P_r$ and each dtype. A worker sends the tree
    once for each worker that is sent it, `topology.messages()`.

    Args:
      tree: this worker's arrays.
      traffic: the count so far.
      topology: the mixing matrix.
      axis_name: the worker axis, of size `topology.size`.
      member: which matrix of a time-varying topology; must be the same on all workers.
      apart: whether $\sum_j W_{mj} (x_m - x_j)$ is asked for, `(I − W) x`, which rounds
        by the size of the differences: summed up step by step, `x − W x` drifts.

    Returns:
      This worker's row of `W x`, of the tree's shapes and dtypes; the new count.

    Raises:
      ValueError: if the topology is for another number of workers.
    """
    if worker_count(axis_name) != topology.size:
        raise ValueError(
            f"topology is for {topology.size} workers, but the axis {axis_name!r} has "
            f"{worker_count(axis_name)}: build it for that many."
        )
    arrays, restore = buffers(tree, axis_name)

    def one(topology, arrays, traffic):
        mixed = [_weighted_permutations(topology, x, axis_name, apart) for x in arrays]
        return mixed, _count_messages(traffic, arrays, topology, axis_name)

    def count(topology, traffic):
        return _count_messages(traffic, arrays, topology, axis_name)

    members = topology.members
    if len(members) == 1:
        mixed, traffic = one(members[0], arrays, traffic)
    elif between_devices(axis_name):
        branches = [partial(one, w) for w in members]
        mixed, traffic = lax.switch(member, branches, arrays, traffic)
    else:  # what a branch returns would be written and read once more
        mixed = [_weighted_rows(members, member, x, axis_name, apart) for x in arrays]
        traffic = lax.switch(member, [partial(count, w) for w in members], traffic)
    return restore(mixed), traffic


def _count_messages(traffic, payload, topology, axis_name):
    """One mixing's messages, each of the payload's size, worker by worker."""
    bits = dense_bits(payload)
    sent, received = topology.messages()
    return add_traffic(traffic, bits * sent, bits * received, axis_name)


def _weighted_permutations(topology, x, axis_name, apart):
    """`diag(w_0) x + Σ_r diag(w_r) P_r x`, or `Σ_r diag(w_r) (x − P_r x)`."""
    # In half precision the weights of a row need not sum to 1, and the mean would drift
    # from mixing to mixing: what travels is x, what is added up is wider.
    wide = np.promote_types(x.dtype, np.float32)
    own = x.astype(wide)
    mixed = _scaled(topology.self_weights * (not apart), own, axis_name)
    for sources, weights in _rounds(topology, axis_name):
        received = permute(x, sources, axis_name).astype(wide)  # P_r x
        term = own - received if apart else received
        mixed = mixed + _scaled(weights, term, axis_name)
    return mixed.astype(x.dtype)


def _weighted_rows(members, member, x, axis_name, apart):
    """`_weighted_permutations` of one of several matrices, of what is on one device.

    Who receives from whom is looked up, so that all is one pass over the rows.
    """
    rounds = max(len(w.permutations) for w in members)
    shape = len(members), rounds, members[0].size
    sources = np.broadcast_to(np.arange(shape[2]), shape).copy()
    weights = np.zeros(shape)
    for k, topology in enumerate(members):  # rounds that are missing weigh nothing
        sources[k, : len(topology.permutations)] = topology.permutations
        weights[k, : len(topology.weights)] = topology.weights
    at = member, worker_index(axis_name)
    rows, wide = all_gather(x, axis_name), np.promote_types(x.dtype, np.float32)
    own = x.astype(wide)
    first = np.stack([w.self_weights for w in members]) * (not apart)
    mixed = _scaled(first, own, axis_name, at)
    for r in range(rounds):
        received = rows.at[jnp.asarray(sources[:, r])[at]].get(mode="clip")
        term = own - received.astype(wide) if apart else received.astype(wide)
        mixed += _scaled(weights[:, r], term, axis_name, at)
    return mixed.astype(x.dtype)


def _rounds(topology, axis_name):
    """Who receives from whom with which weight, round by round.

    Between CPU processes the rounds are swaps between partners, if the graph has
    them: then nobody waits for a third one.
    """
    rounds = list(zip(topology.permutations, topology.weights, strict=True))
    if not gloo.in_use(axis_name if isinstance(axis_name, str) else axis_name[0]):
        return rounds
    weight = {
        (m, int(j)): weights[m]
        for sources, weights in rounds
        for m, j in enumerate(sources)
        if j != m and weights[m]
    }
    partners = permutations.matchings(list(weight), topology.size)
    if partners is None:
        return rounds
    return [
        (sources, np.array([weight.get((m, j), 0.0) for m, j in enumerate(sources)]))
        for sources in partners.tolist()
    ]


def _scaled(weights, x, axis_name, at=None):
    """This worker's weight times `x`, and zero where the weight is, whatever `x` is.

    `at` says which of the weights it is, the worker's number if None.
    """
    if np.all(weights == weights.flat[0]):  # circulant: nothing to look up
        return weights.flat[0].item() * x if weights.flat[0] else jnp.zeros_like(x)
    at = worker_index(axis_name) if at is None else at
    weight = jnp.asarray(weights, x.dtype)[at]
    if np.all(weights):
        return weight * x
    return jnp.where(weight == 0, jnp.zeros_like(x), weight * x)
