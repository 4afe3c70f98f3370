r"""The workers' mean through compressors, in the manner of a parameter server.

Worker $m$ compresses its vector, $c_m = C(x_m)$; the server has the mean and may
compress it again on the way back, $c = C_s(\frac1M \sum_m c_m + e)$ with a residual $e$
of its own. There is no server: two schedules have the workers do its work.

* *gather*: all payloads go to everyone, and everyone forms the same mean by the same
  arithmetic. A worker receives $M - 1$ payloads. The way down costs nothing, since a
  server's compressor is applied alike by all.
* *sharded*: worker $m$ is the server of block $m$. One all-to-all takes each block's
  payloads to its server, one all-gather takes the blocks' means, or what the server's
  compressor makes of them, back: $2(M-1)/M$ payloads, whatever $M$ is. Compression is
  then per block: top-k keeps the largest of every block, a scale belongs to one block.
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxsp import _arguments, comm
from jaxsp.compressors import Compressor

__all__ = [
    "Exchange",
    "Schedule",
    "cheapest",
    "check_compressor",
    "check_contractive",
    "check_exchange",
    "check_unbiased",
    "cold",
    "compressed_mean",
    "decode",
    "encode",
]

Schedule = Literal["gather", "sharded"]


class Exchange(NamedTuple):
    """What a worker has after an exchange.

    Attributes:
      mean: the mean of what all workers sent, as it arrived; the same on all workers.
      sent: what this worker's payload stands for.
      residual: what the server's compressor left out, in parts whose mean over workers
        it is: all of it on every worker that forms the whole mean, M times a block on
        the server of the block.
      bits: bits sent and received by a worker, a Python integer: as many both ways.
      payloads: what this worker's compressor made, for its next warm start; `()` if it
        has none.
    """

    mean: Any
    sent: Any
    residual: Any
    bits: int
    payloads: Any = ()


def encode(compressor: Compressor, key: jax.Array, tree: Any) -> list[Any]:
    """A tree's payloads: of the packed model, or of each leaf."""
    vectors, _ = _vectors(compressor, tree)
    return [
        compressor.compress(jax.random.fold_in(key, i), x)
        for i, x in enumerate(vectors)
    ]


def decode(compressor: Compressor, payloads: list[Any], like: Any) -> Any:
    """The tree that payloads of `encode` stand for."""
    vectors, restore = _vectors(compressor, like)
    pairs = zip(payloads, vectors, strict=True)
    return restore([compressor.decompress(payload, x) for payload, x in pairs])


def compressed_mean(
    tree: Any,
    compressor: Compressor,
    down: Compressor | None = None,
    *,
    key: jax.Array,
    axis_name: comm.AxisName,
    schedule: Schedule | None = None,
    residual: Any = None,
    weights: jax.Array | None = None,
    previous: Any = (),
) -> Exchange:
    r"""The mean over workers of compressed vectors.

    Args:
      tree: this worker's arrays; what is compressed is the packed model, one vector a
        dtype, or each leaf if the compressor is `per_leaf`.
      compressor: what workers send through.
      down: what the server sends through; None sends the mean as it is.
      key: a key that all workers share; each draws with its own, made from it.
      axis_name: the worker axis.
      schedule: `"gather"`, `"sharded"`, or None for whichever moves fewer bits.
      residual: this worker's part of the server's residual, as the exchange before
        returned it, to be added to the mean before `down`; None for none.
      weights: what each worker's vector counts, `[M]`, known to all; None is 1 each.
      previous: the payloads of the exchange before, for a compressor with a warm start,
        which is then gathered whole.

    Returns:
      The mean, what this worker sent, the server's new residual, and the bits.
    """
    count = comm.worker_count(axis_name)
    weights = jnp.ones(count) if weights is None else weights
    vectors, restore = _vectors(compressor, tree)
    if not vectors:
        return Exchange(tree, tree, tree, 0)
    if residual is None:
        remainders = [jnp.zeros_like(x) for x in vectors]
    else:
        remainders = _vectors(compressor, residual)[0]
    if compressor.warm is not None and previous:
        return _warm(
            vectors,
            restore,
            remainders,
            compressor,
            down,
            weights,
            key,
            axis_name,
            previous,
        )
    chosen = schedule or cheapest(compressor, down, vectors, count)
    run, bits = {
        "gather": (_gathered, _gather_bits),
        "sharded": (_sharded, _shard_bits),
    }[chosen]
    mean, sent, remainders = run(
        vectors, remainders, compressor, down, weights, key, axis_name
    )
    moved = bits(compressor, down, vectors, count)
    return Exchange(restore(mean), restore(sent), restore(remainders), moved)


def cheapest(
    compressor: Compressor,
    down: Compressor | None,
    vectors: list[jax.Array],
    count: int,
) -> Schedule:
    """The schedule that moves fewer bits for such vectors."""
    gathered = _gather_bits(compressor, down, vectors, count)
    sharded = _shard_bits(compressor, down, vectors, count)
    return "gather" if gathered <= sharded else "sharded"


def _vectors(compressor, tree):
    """What is compressed one by one, and how to restore the tree."""
    if not compressor.per_leaf:
        return comm.pack(tree)
    leaves, treedef = jax.tree.flatten(tree)
    return leaves, partial(jax.tree.unflatten, treedef)


def _gather_bits(compressor, down, vectors, count):
    del down  # all apply it alike, and nothing travels
    mine = compressor.for_worker(0, count)
    return (count - 1) * sum(mine.bits(x) for x in vectors)


def _shard_bits(compressor, down, vectors, count):
    mine = compressor.for_worker(0, count)
    blocks = [jax.ShapeDtypeStruct((-(-x.size // count),), x.dtype) for x in vectors]
    back = comm.dense_bits if down is None else down.bits
    return (count - 1) * sum(mine.bits(x) + back(x) for x in blocks)


def _own_key(compressor, key, axis_name):
    return key if compressor.shared_key else comm.worker_key(key, axis_name)


def _weighted_sum(compressor, payloads, weights, like):
    """`Σ w_m C_m` of payloads that are stacked over workers."""
    count = len(weights)

    def add(total, received):
        m, payload = received
        arrived = compressor.for_worker(m, count).decompress(payload, like)
        return total + weights[m].astype(like.dtype) * arrived, None

    start = jnp.zeros(like.shape, like.dtype)
    return jax.lax.scan(add, start, (jnp.arange(count), payloads))[0]


def cold(compressor: Compressor, tree: Any) -> Any:
    """Payloads of zeros, from which a warm start starts; `()` without one."""
    if compressor.warm is None:
        return ()
    shapes = jax.eval_shape(lambda t: encode(compressor, jax.random.key(0), t), tree)
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)


def _warm(
    vectors, restore, remainders, compressor, down, weights, key, axis_name, previous
):
    """`_gathered` of payloads that start from the ones before."""
    count = comm.worker_count(axis_name)
    pairs = [jax.random.split(jax.random.fold_in(key, i)) for i in range(len(vectors))]
    payloads = [
        compressor.warm(_own_key(compressor, up_key, axis_name), x, before)
        for (up_key, _), x, before in zip(pairs, vectors, previous, strict=True)
    ]
    mean, sent, remainders = _exchanged(
        vectors, remainders, compressor, down, weights, pairs, payloads, axis_name
    )
    moved = _gather_bits(compressor, down, vectors, count)
    return Exchange(restore(mean), restore(sent), restore(remainders), moved, payloads)


def _gathered(vectors, remainders, compressor, down, weights, key, axis_name):
    count, me = comm.worker_count(axis_name), comm.worker_index(axis_name)
    mine = compressor.for_worker(me, count)
    pairs = [jax.random.split(jax.random.fold_in(key, i)) for i in range(len(vectors))]
    payloads = [
        mine.compress(_own_key(compressor, up_key, axis_name), x)
        for (up_key, _), x in zip(pairs, vectors, strict=True)
    ]
    return _exchanged(
        vectors, remainders, compressor, down, weights, pairs, payloads, axis_name
    )


def _exchanged(
    vectors, remainders, compressor, down, weights, pairs, payloads, axis_name
):
    """Payloads go to everyone, and everyone forms the mean."""
    count, me = comm.worker_count(axis_name), comm.worker_index(axis_name)
    mine = compressor.for_worker(me, count)
    means, left = [], []
    for (_, down_key), x, e, received in zip(
        pairs, vectors, remainders, comm.gather(payloads, axis_name), strict=True
    ):
        mean = _weighted_sum(compressor, received, weights, x) / count
        if down is not None:  # C_s(mean + e), and what it leaves out
            wanted = mean + e
            mean = down.decompress(down.compress(down_key, wanted), wanted)
            e = wanted - mean
        means.append(mean)
        left.append(e)
    sent = [mine.decompress(p, x) for p, x in zip(payloads, vectors, strict=True)]
    return means, sent, left


def _sharded(vectors, remainders, compressor, down, weights, key, axis_name):
    count, me = comm.worker_count(axis_name), comm.worker_index(axis_name)
    mine = compressor.for_worker(me, count)
    pairs = [jax.random.split(jax.random.fold_in(key, i)) for i in range(len(vectors))]
    cut = [_blocks(x, count) for x in vectors]
    likes = [blocks[0] for blocks, _ in cut]
    payloads = [
        jax.vmap(mine.compress)(
            jax.random.split(_own_key(compressor, up_key, axis_name), count), blocks
        )
        for (up_key, _), (blocks, _) in zip(pairs, cut, strict=True)
    ]
    means, left, answers = [], [], []  # of my block of every vector
    for (_, down_key), like, e, received in zip(
        pairs, likes, remainders, comm.transpose(payloads, axis_name), strict=True
    ):
        mean = _weighted_sum(compressor, received, weights, like) / count
        if down is None:
            answers.append(mean)
            left.append(e)
            continue
        blocks, join = _blocks(e, count)
        wanted = mean + blocks[me] / count
        answer = down.compress(comm.worker_key(down_key, axis_name), wanted)
        missed = wanted - down.decompress(answer, like)
        answers.append(answer)
        left.append(join(jnp.zeros_like(blocks).at[me].set(count * missed)))
    for (_, join), like, answer in zip(
        cut, likes, comm.gather(answers, axis_name), strict=True
    ):
        if down is not None:
            answer = jax.lax.map(partial(_decoded, down, like), answer)
        means.append(join(answer))
    sent = [
        join(jax.vmap(partial(_decoded, mine, like))(payload))
        for (_, join), like, payload in zip(cut, likes, payloads, strict=True)
    ]
    return means, sent, left


def _decoded(compressor, like, payload):
    return compressor.decompress(payload, like)


def _blocks(x, count):
    """`count` equal blocks of a vector, the last filled with zeros, and their join."""
    size = -(-x.size // count)
    blocks = jnp.pad(x.ravel(), (0, size * count - x.size)).reshape(count, size)
    return blocks, lambda b: b.ravel()[: x.size].reshape(x.shape)


# ------------------------------------------------------------------ arguments


def check_compressor(name: str, compressor: Any, optional: bool = False) -> None:
    """Accept what `jaxsp.compressors` makes, and None if it is optional."""
    if optional and compressor is None:
        return
    if not isinstance(compressor, Compressor):
        raise ValueError(
            f"{name} must come from jaxsp.compressors, such as "
            f"jaxsp.compressors.top_k(0.1), got {compressor!r}."
        )


def check_unbiased(name: str, compressor: Any) -> None:
    """Refuse a biased compressor where errors must average out; None is none."""
    if compressor is not None and compressor.q is None:
        raise ValueError(
            f"{name} must be unbiased, and {compressor.name} is not: write "
            "jaxsp.compressors.rand_k, natural, dithering or quantize, or use a method "
            "with error feedback, such as masha2 or dqgan."
        )


def check_contractive(name: str, compressor: Any) -> None:
    """Refuse a compressor whose errors may grow where they are fed back."""
    if compressor is not None and compressor.delta is None:
        raise ValueError(
            f"{name} must be contractive, and {compressor.name} is not: write "
            f"jaxsp.compressors.scaled({compressor.name}), or contractive(...), or "
            "top_k or sign."
        )


def check_exchange(
    compressor: Any, down: Any, key: Any, axis_name: Any, schedule: Any
) -> None:
    """Accept the arguments of a compressed mean."""
    check_compressor("compressor", compressor)
    check_compressor("down", down, optional=True)
    _arguments.check_key("key", key)
    _arguments.check_axis_name(axis_name)
    if schedule not in (None, "gather", "sharded"):
        raise ValueError(
            f'schedule must be None, "gather" or "sharded", got {schedule!r}.'
        )
