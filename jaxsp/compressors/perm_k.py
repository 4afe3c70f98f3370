"""Every worker its own share of the numbers."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsp import _arguments
from jaxsp.compressors import counter_rng
from jaxsp.compressors.compressor import (
    Compressor,
    check_input,
    compute_dtype,
    nan_unless_finite,
)


class Block(NamedTuple):
    """What travels.

    Attributes:
      values: the worker's numbers, `[ceil(d / M)]`.
      seed: two words from which the receiver draws the permutation again.
      worker: the number of the worker, uint32.
    """

    values: jax.Array
    seed: jax.Array
    worker: jax.Array


def perm_k() -> Compressor:
    r"""Of a permutation that all workers draw alike, worker $m$ sends block $m$.

    $$Q_m(v)_i = M v_i \text{ if } i \text{ is in block } m \text{, else } 0.$$

    A number is in a worker's block with probability $1/M$, so each $Q_m$ is unbiased
    with $q = M$. The blocks cover the vector: if all workers hold the same $v$, the
    mean of what they send is $v$ itself, and the error of the mean is the smaller, the
    more they agree. If $M$ does not divide $d$, the vector is filled up with zeros.
    If a number is not finite, all that are sent are NaN.

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

    def places(seed, worker, d):
        """The worker's indices in the vector filled up to a multiple of `count`."""
        size = -(-d // count)
        positions = worker * np.uint32(size) + jnp.arange(size, dtype=jnp.uint32)
        return counter_rng.permutation(seed, positions, size * count)

    def compress(key, x):
        v = check_input(key, x).ravel()
        seed, worker = counter_rng.seed(key), jnp.asarray(index, jnp.uint32)
        values = v.at[places(seed, worker, v.size)].get(mode="fill", fill_value=0)
        return Block(nan_unless_finite(values, v), seed, worker)

    def decompress(payload, like):
        d = math.prod(like.shape)
        at = places(payload.seed, payload.worker, d)
        values = payload.values.astype(compute_dtype(like.dtype)) * count
        values = values.astype(like.dtype)
        return (
            jnp.zeros(d, like.dtype).at[at].set(values, mode="drop").reshape(like.shape)
        )

    return Compressor(
        f"perm_k(), one of {count}",
        compress,
        decompress,
        q=lambda d: float(count),
        shared_key=True,
        worker=_bound,
    )
