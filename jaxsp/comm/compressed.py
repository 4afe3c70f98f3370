"""The mean over the workers, or another aggregate, through what a channel has on it."""

import dataclasses
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
        dtype, or each leaf if a compressor of the channel is `per_leaf`.
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
      ValueError: for weights, and a channel with an aggregate; for a compressor that
        does not fit the tree.
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
    leafwise = _leafwise(channel)
    vectors, restore = _vectors(leafwise, tree)
    if not vectors:
        return Exchange(tree, tree, residual, previous), traffic
    channels = [
        dataclasses.replace(channel, up=up, down=down)
        for up, down in zip(
            _each(_up(channel), tree, vectors),
            _each(channel.down, tree, vectors),
            strict=True,
        )
    ]
    for x, each in zip(vectors, channels, strict=True):
        check_round_trip(_up(each).for_worker(0, count), x.shape, x.dtype)
        if each.down is not None:
            check_round_trip(each.down, x.shape, x.dtype)
    if jax.tree.leaves(residual):
        remainders = _vectors(leafwise, residual)[0]
    else:
        remainders = [jnp.zeros_like(x) for x in vectors]
    run = _gathered
    if not previous and cheapest(channels, vectors, count) == "sharded":
        run = _sharded
    means, sent, remainders, payloads, traffic = run(
        vectors, remainders, channels, weights, previous, traffic
    )
    left = () if channel.down is None else restore(remainders)
    return Exchange(restore(means), restore(sent), left, payloads), traffic


def encode(compressor: Compressor, key: jax.Array, tree: Any) -> list[Any]:
    """A tree's payloads: of the packed model, or of each leaf."""
    vectors, _ = _vectors(compressor.per_leaf, tree)
    pairs = list(zip(_each(compressor, tree, vectors), vectors, strict=True))
    for codec, x in pairs:
        check_round_trip(codec, x.shape, x.dtype)
    return [
        codec.compress(jax.random.fold_in(key, i), x)
        for i, (codec, x) in enumerate(pairs)
    ]


def decode(compressor: Compressor, payloads: list[Any], like: Any) -> Any:
    """The tree that payloads of `encode` stand for."""
    vectors, restore = _vectors(compressor.per_leaf, like)
    all_of = zip(_each(compressor, like, vectors), payloads, vectors, strict=True)
    return restore([codec.decompress(payload, x) for codec, payload, x in all_of])


def no_residual(channel: Channel, tree: Any) -> Any:
    """The server's residual before the first exchange."""
    return () if channel.down is None else jax.tree.map(jnp.zeros_like, tree)


def first_payloads(channel: Channel, tree: Any) -> Any:
    """Payloads of zeros, from which a warm start starts; `()` without one."""
    if channel.up is None or channel.up.warm is None or channel.route == "sharded":
        return ()
    up = dataclasses.replace(channel.up, per_leaf=_leafwise(channel))
    if up.worker is not None:  # beside what starts warm
        up = up.for_worker(0, worker_count(channel.axis_name))
    shapes = jax.eval_shape(lambda t: encode(up, jax.random.key(0), t), tree)
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)


def cheapest(channels: list[Channel], vectors: list[jax.Array], count: int) -> Route:
    """The route, or the one that moves fewer bits for vectors over channels of each."""
    route, aggregate = channels[0].route, channels[0].aggregate
    if route is not None:
        return route
    if aggregate is not None and not aggregate.coordinatewise:
        return "gather"
    gathered = sharded = 0
    for x, channel in zip(vectors, channels, strict=True):
        mine = _up(channel).for_worker(0, count)
        back = dense_bits if channel.down is None else channel.down.bits
        block = jax.ShapeDtypeStruct((_block_size(x.size, count),), x.dtype)
        gathered += mine.bits(x)
        sharded += mine.bits(block) + back(block)
    return "gather" if gathered <= sharded else "sharded"


def _up(channel):
    return channel.up or compressors.identity()


def _leafwise(channel):
    """Whether each leaf is compressed by itself, both ways."""
    return any(c is not None and c.per_leaf for c in (channel.up, channel.down))


def _each(compressor, tree, vectors):
    """The compressor of each of a tree's vectors."""
    if compressor is None or compressor.layers is None:
        return [compressor] * len(vectors)
    return compressor.for_leaves(tree)


def _vectors(leafwise, tree):
    """What is compressed one by one, and how to restore the tree."""
    if not leafwise:
        return pack(tree)
    leaves, treedef = jax.tree.flatten(tree)
    return leaves, partial(jax.tree.unflatten, treedef)


def _keys(channels):
    """For each vector a key of this worker's compressor, and the server's."""
    pairs = []
    for i, channel in enumerate(channels):
        # Nothing is drawn without a key.
        key = jax.random.key(0) if channel.key is None else channel.key
        up, down = jax.random.split(jax.random.fold_in(key, i))
        if not _up(channel).shared_key:
            up = worker_key(up, channel.axis_name)
        pairs.append((up, down))
    return pairs


def _combined(channels, received, weights, likes):
    """What the server makes of all payloads, vector by vector."""
    aggregate = channels[0].aggregate
    all_of = list(zip(map(_up, channels), received, likes, strict=True))
    if aggregate is None:
        return [_weighted_mean(up, some, weights, like) for up, some, like in all_of]
    stacks = [
        jax.vmap(partial(_decoded, up, _wide(like)))(some) for up, some, like in all_of
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


def _gathered(vectors, remainders, channels, weights, previous, traffic):
    """Payloads go to everyone, and everyone forms the mean."""
    axis_name, keys = channels[0].axis_name, _keys(channels)
    count, me = worker_count(axis_name), worker_index(axis_name)
    mine = [_up(channel).for_worker(me, count) for channel in channels]
    payloads = [
        up.warm(key, x, previous[i]) if previous and up.warm else up.compress(key, x)
        for i, (up, (key, _), x) in enumerate(zip(mine, keys, vectors, strict=True))
    ]
    received, traffic = gather(payloads, traffic, axis_name)
    means, left = [], []
    for channel, (_, down_key), e, average in zip(
        channels,
        keys,
        remainders,
        _combined(channels, received, weights, vectors),
        strict=True,
    ):
        if (down := channel.down) is not None:  # C_s(mean + e), and what it leaves out
            wanted = average + e
            average = down.decompress(down.compress(down_key, wanted), wanted)
            e = wanted - average
        means.append(average)
        left.append(e)
    sent = [
        up.decompress(payload, x)
        for up, payload, x in zip(mine, payloads, vectors, strict=True)
    ]
    return means, sent, left, payloads if previous else previous, traffic


def _sharded(vectors, remainders, channels, weights, previous, traffic):
    """Worker m receives everyone's block m, and sends its mean to everyone."""
    axis_name, keys = channels[0].axis_name, _keys(channels)
    count, me = worker_count(axis_name), worker_index(axis_name)
    mine = [_up(channel).for_worker(me, count) for channel in channels]
    downs = [channel.down for channel in channels]
    cut = [_blocks(x, count) for x in vectors]
    likes = [blocks[0] for blocks, _ in cut]
    payloads = [
        jax.vmap(up.compress)(jax.random.split(key, count), blocks)
        for up, (key, _), (blocks, _) in zip(mine, keys, cut, strict=True)
    ]
    received, traffic = transpose(payloads, traffic, axis_name)
    left, answers = [], []  # of my block of every vector
    combined = _combined(channels, received, weights, likes)
    for down, (_, down_key), (_, join), like, e, average in zip(
        downs, keys, cut, likes, remainders, combined, strict=True
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
    for down, (_, join), like, answer in zip(downs, cut, likes, told, strict=True):
        if down is not None:
            answer = jax.vmap(partial(_decoded, down, like))(answer)
        means.append(join(answer))
    sent = [
        join(jax.vmap(partial(_decoded, up, like))(payload))
        for up, (_, join), like, payload in zip(mine, cut, likes, payloads, strict=True)
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
