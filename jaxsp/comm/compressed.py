"""The mean over the workers, or another aggregate, through what a channel has on it."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsp import compressors
from jaxsp.comm.axis import (
    AxisName,
    check_unchecked,
    worker_count,
    worker_index,
    worker_key,
)
from jaxsp.comm.channels import Channel, Route, as_channel, check_mean
from jaxsp.comm.collectives import all_reduce, gather, pack, transpose
from jaxsp.comm.traffic import Traffic, dense_bits
from jaxsp.compressors import Compressor
from jaxsp.compressors.compressor import check_round_trip

__all__ = [
    "Exchange",
    "cheapest",
    "decode",
    "encode",
    "exchange",
    "first_payloads",
    "mean",
    "no_residual",
]


class Exchange(NamedTuple):
    """What a worker has after an exchange.

    Attributes:
      mean: the mean of what all workers sent, or the channel's aggregate, as it
        arrived; the same on all workers.
      sent: what this worker's payload stands for.
      residual: what the server's compressor left out, in parts whose mean over workers
        it is: all of it on every worker that forms the whole mean, M times a block on
        the server of the block. `()` without a compressor on the way down.
      payloads: what this worker's compressor made, for its next warm start; `()` if it
        has none.
    """

    mean: Any
    sent: Any
    residual: Any
    payloads: Any


def mean(
    tree: Any, traffic: Traffic, channel: Channel | AxisName
) -> tuple[Any, Traffic]:
    r"""The mean over workers, $\frac1M \sum_m x_m$, and the bits that it cost.

    Nothing is remembered of what compressors leave out; see `exchange`.

    Args:
      tree: this worker's arrays.
      traffic: the count so far.
      channel: how it travels, or the worker axis alone; `channel.at(step)` draws anew
        in every step.

    Returns:
      The mean, of the same shapes and dtypes, alike on all workers; the new count.
    """
    made, traffic = exchange(tree, traffic, channel)
    return made.mean, traffic


def exchange(
    tree: Any,
    traffic: Traffic,
    channel: Channel | AxisName,
    *,
    residual: Any = (),
    weights: jax.Array | None = None,
    previous: Any = (),
) -> tuple[Exchange, Traffic]:
    r"""The mean over workers, with all that feedback of errors needs.

    Args:
      tree: this worker's arrays; what is compressed is the packed model, one vector a
        dtype, or each leaf if the compressor is `per_leaf`.
      traffic: the count so far.
      channel: how it travels.
      residual: this worker's part of the server's residual $e$, as the exchange before
        returned it, for $C_s(\frac1M \sum_m c_m + e)$; `()` for none.
      weights: what each worker's vector counts, `[M]`, known to all; None is 1 each.
      previous: the payloads of the exchange before, for a compressor with a warm start,
        which then takes the route `"gather"`; `()` for none.

    Returns:
      The mean, what this worker sent, the server's new residual; the new count.

    Raises:
      ValueError: for weights, and a channel with an aggregate.
    """
    channel = as_channel(channel)
    count = worker_count(channel.axis_name)
    if weights is not None:
        check_mean(channel)
    if channel.plain:
        mine = None
        if weights is not None:
            mine = weights[worker_index(channel.axis_name)]
        mean, traffic = all_reduce(tree, traffic, channel.axis_name, mine)
        return Exchange(mean, tree, (), previous), traffic
    check_unchecked(channel.axis_name)
    weights = jnp.ones(count) if weights is None else weights
    up = _up(channel)
    vectors, restore = _vectors(up, tree)
    if not vectors:
        return Exchange(tree, tree, residual, previous), traffic
    for x in vectors:
        check_round_trip(up.for_worker(0, count), x.shape, x.dtype)
        if channel.down is not None:
            check_round_trip(channel.down, x.shape, x.dtype)
    if jax.tree.leaves(residual):
        remainders = _vectors(up, residual)[0]
    else:
        remainders = [jnp.zeros_like(x) for x in vectors]
    run = _gathered
    if not previous and cheapest(channel, vectors, count) == "sharded":
        run = _sharded
    means, sent, remainders, payloads, traffic = run(
        vectors, remainders, channel, weights, previous, traffic
    )
    left = () if channel.down is None else restore(remainders)
    return Exchange(restore(means), restore(sent), left, payloads), traffic


def encode(compressor: Compressor, key: jax.Array, tree: Any) -> list[Any]:
    """A tree's payloads: of the packed model, or of each leaf."""
    vectors, _ = _vectors(compressor, tree)
    for x in vectors:
        check_round_trip(compressor, x.shape, x.dtype)
    return [
        compressor.compress(jax.random.fold_in(key, i), x)
        for i, x in enumerate(vectors)
    ]


def decode(compressor: Compressor, payloads: list[Any], like: Any) -> Any:
    """The tree that payloads of `encode` stand for."""
    vectors, restore = _vectors(compressor, like)
    pairs = zip(payloads, vectors, strict=True)
    return restore([compressor.decompress(payload, x) for payload, x in pairs])


def no_residual(channel: Channel, tree: Any) -> Any:
    """The server's residual before the first exchange."""
    return () if channel.down is None else jax.tree.map(jnp.zeros_like, tree)


def first_payloads(channel: Channel, tree: Any) -> Any:
    """Payloads of zeros, from which a warm start starts; `()` without one."""
    if channel.up is None or channel.up.warm is None or channel.route == "sharded":
        return ()
    up = channel.up
    shapes = jax.eval_shape(lambda t: encode(up, jax.random.key(0), t), tree)
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)


def cheapest(channel: Channel, vectors: list[jax.Array], count: int) -> Route:
    """The channel's route, or the one that moves fewer bits for such vectors."""
    if channel.route is not None:
        return channel.route
    if channel.aggregate is not None and not channel.aggregate.coordinatewise:
        return "gather"
    mine = _up(channel).for_worker(0, count)
    back = dense_bits if channel.down is None else channel.down.bits
    blocks = [
        jax.ShapeDtypeStruct((_block_size(x.size, count),), x.dtype) for x in vectors
    ]
    gathered = sum(mine.bits(x) for x in vectors)
    sharded = sum(mine.bits(x) + back(x) for x in blocks)
    return "gather" if gathered <= sharded else "sharded"


def _up(channel):
    return channel.up or compressors.identity()


def _vectors(compressor, tree):
    """What is compressed one by one, and how to restore the tree."""
    if not compressor.per_leaf:
        return pack(tree)
    leaves, treedef = jax.tree.flatten(tree)
    return leaves, partial(jax.tree.unflatten, treedef)


def _keys(channel, vectors):
    """For each vector a key of this worker's compressor, and the server's."""
    key = jax.random.key(0) if channel.key is None else channel.key  # nothing is drawn
    pairs = [jax.random.split(jax.random.fold_in(key, i)) for i in range(len(vectors))]
    if _up(channel).shared_key:
        return pairs
    return [(worker_key(up, channel.axis_name), down) for up, down in pairs]


def _combined(channel, received, weights, likes):
    """What the server makes of all payloads, vector by vector."""
    up, aggregate = _up(channel), channel.aggregate
    pairs = list(zip(received, likes, strict=True))
    if aggregate is None:
        return [_weighted_mean(up, some, weights, like) for some, like in pairs]
    stacks = [
        jax.vmap(partial(_decoded, up, _wide(like)))(some) for some, like in pairs
    ]
    found = aggregate.combine(stacks)
    if [jnp.shape(x) for x in found] != [x.shape for x in likes]:
        raise ValueError(
            f"the aggregator {aggregate} must combine stacks of shapes "
            f"{[x.shape for x in stacks]} to shapes {[x.shape for x in likes]}, got "
            f"{[jnp.shape(x) for x in found]}."
        )
    return [x.astype(like.dtype) for x, like in zip(found, likes, strict=True)]


def _wide(like):
    """The shape, in a type in which numbers of half precision are added up."""
    return jax.ShapeDtypeStruct(like.shape, np.promote_types(like.dtype, np.float32))


def _weighted_mean(compressor, payloads, weights, like):
    """`(1/M) Σ w_m C_m` of payloads that are stacked over workers."""
    count, wide = len(weights), _wide(like)

    total = compressor.for_worker(0, count).total
    if total is not None:
        weights = weights.astype(wide.dtype)
        return (total(payloads, weights, wide) / count).astype(like.dtype)

    def add(total, received):
        m, payload = received
        arrived = compressor.for_worker(m, count).decompress(payload, wide)
        return total + weights[m].astype(wide.dtype) * arrived, None

    start = jnp.zeros(wide.shape, wide.dtype)
    added, _ = jax.lax.scan(add, start, (jnp.arange(count), payloads))
    return (added / count).astype(like.dtype)


def _gathered(vectors, remainders, channel, weights, previous, traffic):
    """Payloads go to everyone, and everyone forms the mean."""
    up, down, axis_name = _up(channel), channel.down, channel.axis_name
    count, me = worker_count(axis_name), worker_index(axis_name)
    mine, keys = up.for_worker(me, count), _keys(channel, vectors)
    if previous:
        warm: Any = up.warm
        payloads = [
            warm(key, x, before)
            for (key, _), x, before in zip(keys, vectors, previous, strict=True)
        ]
    else:
        pairs = zip(keys, vectors, strict=True)
        payloads = [mine.compress(key, x) for (key, _), x in pairs]
    received, traffic = gather(payloads, traffic, axis_name)
    means, left = [], []
    for (_, down_key), e, average in zip(
        keys, remainders, _combined(channel, received, weights, vectors), strict=True
    ):
        if down is not None:  # C_s(mean + e), and what it leaves out
            wanted = average + e
            average = down.decompress(down.compress(down_key, wanted), wanted)
            e = wanted - average
        means.append(average)
        left.append(e)
    sent = [mine.decompress(p, x) for p, x in zip(payloads, vectors, strict=True)]
    return means, sent, left, payloads if previous else previous, traffic


def _sharded(vectors, remainders, channel, weights, previous, traffic):
    """Worker m receives everyone's block m, and sends its mean to everyone."""
    up, down, axis_name = _up(channel), channel.down, channel.axis_name
    count, me = worker_count(axis_name), worker_index(axis_name)
    mine, keys = up.for_worker(me, count), _keys(channel, vectors)
    cut = [_blocks(x, count) for x in vectors]
    likes = [blocks[0] for blocks, _ in cut]
    payloads = [
        jax.vmap(mine.compress)(jax.random.split(key, count), blocks)
        for (key, _), (blocks, _) in zip(keys, cut, strict=True)
    ]
    received, traffic = transpose(payloads, traffic, axis_name)
    left, answers = [], []  # of my block of every vector
    combined = _combined(channel, received, weights, likes)
    for (_, down_key), (_, join), like, e, average in zip(
        keys, cut, likes, remainders, combined, strict=True
    ):
        if down is None:
            answers.append(average)
            left.append(e)
            continue
        mine_of_e = jax.lax.dynamic_slice_in_dim(
            _filled(e, count), me * like.size, like.size
        )
        wanted = average + mine_of_e / count
        answer = down.compress(worker_key(down_key, axis_name), wanted)
        missed = wanted - down.decompress(answer, like)
        answers.append(answer)
        is_mine = jnp.arange(count)[:, None] == me
        left.append(join(jnp.where(is_mine, count * missed, jnp.zeros_like(missed))))
    told, traffic = gather(answers, traffic, axis_name)
    means = []
    for (_, join), like, answer in zip(cut, likes, told, strict=True):
        if down is not None:
            answer = jax.vmap(partial(_decoded, down, like))(answer)
        means.append(join(answer))
    sent = [
        join(jax.vmap(partial(_decoded, mine, like))(payload))
        for (_, join), like, payload in zip(cut, likes, payloads, strict=True)
    ]
    return means, sent, left, previous, traffic


def _decoded(compressor, like, payload):
    return compressor.decompress(payload, like)


def _block_size(d, count):
    """An equal part, of a long vector in whole tiles of a TPU: at most 1.6 % more."""
    size = -(-d // count)
    return size if size < 64 * 1024 else -(-size // 1024) * 1024


def _blocks(x, count):
    """`count` equal blocks of a vector, the last filled with zeros, and their join."""
    blocks = _filled(x, count).reshape(count, -1)
    return blocks, lambda b: b.ravel()[: x.size].reshape(x.shape)


def _filled(x, count):
    """The vector, and zeros after it to the end of the last block."""
    size = _block_size(x.size, count) * count
    return jnp.pad(x.ravel(), (0, size - x.size))
