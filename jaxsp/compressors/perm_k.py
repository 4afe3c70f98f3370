"""Every worker its own share of the numbers."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsp import _arguments
from jaxsp.compressors import counter_rng, packing
from jaxsp.compressors.compressor import (
    Compressor,
    by_eights,
    check_input,
    compute_dtype,
    nan_unless_finite,
)

_WIDTH = 128  # numbers in a row, as a TPU holds them
_LONG = 64  # a part of so many rows is filled up to a whole row


class Block(NamedTuple):
    """What travels.

    Attributes:
      values: the worker's numbers, one of each group.
      seed: two words from which the receiver draws the shifts again.
      worker: the number of the worker, uint32.
    """

    values: jax.Array
    seed: jax.Array
    worker: jax.Array


def perm_k() -> Compressor:
    r"""Of a partition that all workers draw alike, worker $m$ sends part $m$.

    $$Q_m(v)_i = M v_i \text{ if } i \text{ is in part } m \text{, else } 0.$$

    A number is in a worker's part with probability $1/M$, so each $Q_m$ is unbiased
    with $q = M$. The parts cover the vector: if all workers hold the same $v$, the
    mean of what they send is $v$ itself, and the error of the mean is the smaller, the
    more they agree. If a number is not finite, all that are sent are NaN.

    The paper's parts are blocks of a uniformly random permutation. Here the vector is
    cut into groups of $M$ numbers, one for each worker, which a random shift deals out,
    drawn for each group by itself: number $j$ of a group goes to worker $j - s \bmod
    M$. Second moments are sums over the numbers, to which only the law of a number's
    worker matters, uniform in both: the constants, and the paper's bounds on the error
    of the mean, are the same. Not the same are the joint law of several numbers, and
    with it fourth moments: of a group a worker gets exactly one. The numbers of a group
    stand $\lceil d/M \rceil$ apart, those of a long vector 128. The vector is filled up
    with zeros to a multiple of $M$, a long one to a multiple of $128 M$ (below 1.6 %).
    Nothing is permuted, sorted or drawn at length $d$.

    It needs the worker axis: all workers must compress with the *same* key, which
    `shared_key` tells transformations, and with `perm_k().for_worker(m, M)`, where $m$
    may be traced: `for_worker(comm.worker_index(axis_name),
    comm.worker_count(axis_name))`. Decompression needs the payload and $M$.

    Returns:
      The unbiased compressor, to be bound to a worker.

    Raises:
      ValueError: if it is used unbound.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxsp import compressors
      >>> v, key = jnp.arange(6.0), jax.random.key(0)
      >>> total = jnp.zeros(6)
      >>> for m in range(3):
      ...   perm = compressors.perm_k().for_worker(m, 3)
      ...   total = total + perm.decompress(perm.compress(key, v), v)
      >>> print(total / 3)
      [0. 1. 2. 3. 4. 5.]

    References:
      Szlendak, Tyurin, Richtarik, Permutation Compressors for Provably Faster
      Distributed Nonconvex Optimization, 2022, arXiv 2110.03300.
    """

    def unbound(*_):
        raise ValueError(
            "perm_k() must know which worker of how many compresses, got no worker: "
            "write perm_k().for_worker(index, count)."
        )

    return Compressor(
        "perm_k()", unbound, unbound, q=unbound, shared_key=True, worker=_bound
    )


def _bound(index, count):
    count = _arguments.check_count("count", count)
    if not isinstance(index, jax.Array):
        index = _arguments.check_count("index", index, minimum=0, maximum=count - 1)
    elif index.ndim or not jnp.issubdtype(index.dtype, jnp.integer):
        _arguments.refuse("index", "one integer", index)

    # Which of a group's numbers is whose: `[tiles, M, width]`.
    number = np.arange(count, dtype=np.uint32)[None, :, None]

    def shape(d):
        """Groups, one in each column of a tile."""
        size = -(-d // count)
        width = _WIDTH if size >= _LONG * _WIDTH else size
        return -(-size // width), count, width

    def shifts(seed, d):
        tiles, _, width = shape(d)
        words = counter_rng.words(seed, jnp.arange(tiles * width, dtype=jnp.uint32))
        return (words % np.uint32(count)).reshape(tiles, 1, width)

    def is_mine(worker, shift):
        return number == (shift + worker) % np.uint32(count)

    def compress(key, x):
        v = check_input(key, x).ravel()
        seed, worker = counter_rng.seed(key), jnp.asarray(index, jnp.uint32)
        groups = packing.filled(v, math.prod(shape(v.size))).reshape(shape(v.size))
        mine = is_mine(worker, shifts(seed, v.size))
        values = jnp.sum(jnp.where(mine, groups, jnp.zeros_like(groups)), axis=1)
        return Block(nan_unless_finite(values.ravel(), v), seed, worker)

    def total(payloads, weights, like):
        d = math.prod(like.shape)
        tiles, _, width = shape(d)
        # All workers have drawn the same shifts, which are written once.
        shift = lax.optimization_barrier(shifts(payloads.seed[0], d))
        groups = jnp.zeros(shape(d), like.dtype)
        for worker, weight, values in zip(
            payloads.worker, weights, payloads.values, strict=True
        ):
            scaled = values.astype(like.dtype).reshape(tiles, 1, width) * weight
            groups = jnp.where(is_mine(worker, shift), scaled, groups)
        return groups.ravel()[:d].reshape(like.shape) * count

    def decompress(payload, like):
        wide = jax.ShapeDtypeStruct(like.shape, compute_dtype(like.dtype))
        payloads = jax.tree.map(lambda x: x[None], payload)
        return total(payloads, jnp.ones(1, wide.dtype), wide).astype(like.dtype)

    return Compressor(
        f"perm_k(), one of {count}",
        compress,
        decompress,
        q=lambda d: float(count),
        shared_key=True,
        worker=_bound,
        total=by_eights(total),
    )
