"""A compressor block by block, and what makes a contraction of an unbiased one."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxsp import _arguments
from jaxsp.compressors.compressor import (
    Compressor,
    check_compressor,
    compute_dtype,
)
from jaxsp.compressors.layers import per_leaf

# A contraction needs q < 2. Half of the way there it loses half of a vector at most.
_TARGET_Q = 1.5
_LEAST_BLOCK = 32  # a float32 scale then costs one more bit a number


def blockwise(compressor: Compressor, size: int) -> Compressor:
    r"""The same compressor, for every `size` numbers by themselves.

    Its constants are then those of dimension `size`, whatever the length of the vector,
    for a scale of its own in every block: `blockwise(quantize(4), 128)` has $q = 1.45$,
    where `quantize(4)` on a million numbers has $q = 72$, and costs 4.25 bits a number.
    A shorter vector is one block of its own length; else the last is filled with zeros.

    Args:
      compressor: any compressor but `perm_k`.
      size: the numbers in a block.

    Returns:
      The compressor; contractive also if it is unbiased with $q < 2$ in a block, with
      $\delta = 1/(2 - q)$, because $\mathbb E|Q(v) - v|^2 \le (q - 1)|v|^2$.

    Raises:
      ValueError: for arguments that are not of the above.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxsp import compressors
      >>> four = compressors.blockwise(compressors.quantize(4), 128)
      >>> print(four.bits(jnp.zeros(1280)), round(four.q(10**6), 2))
      5440 1.45
    """
    check_compressor("compressor", compressor)
    size = _arguments.check_count("size", size)
    if compressor.layers is not None:
        each = functools.partial(blockwise, size=size)
        return per_leaf(jax.tree.map(each, compressor.layers))
    if compressor.worker is not None:
        raise ValueError(
            f"compressor must not depend on the worker, and {compressor.name} does: "
            "use it without blocks."
        )

    def blocks_of(x):
        width = min(size, x.size)
        count = -(-x.size // width)
        padded = jnp.pad(x.ravel(), (0, count * width - x.size))
        return padded.reshape(count, width)

    def compress(key, x):
        blocks = blocks_of(x)
        return jax.vmap(compressor.compress)(jax.random.split(key, len(blocks)), blocks)

    def joined(decompress, payload, like, axis=0):
        d = math.prod(like.shape)
        block = jax.ShapeDtypeStruct((min(size, d),), like.dtype)
        blocks = jax.vmap(lambda p: decompress(p, block), axis)(payload)
        return blocks.ravel()[:d].reshape(like.shape)

    def decompress(payload, like):
        return joined(compressor.decompress, payload, like)

    total_of_block: Any = compressor.total

    def total(payloads, weights, like):
        def of_block(payloads, like):
            return total_of_block(payloads, weights, like)

        return joined(of_block, payloads, like, axis=1)

    q, delta = compressor.q, compressor.delta
    if delta is None and q is not None and q(size) < 2:
        delta = _delta_of(q)
    return dataclasses.replace(
        compressor,
        name=f"blockwise({compressor.name}, {size})",
        compress=compress,
        decompress=decompress,
        q=None if q is None else lambda d: q(min(d, size)),
        delta=None if delta is None else lambda d: delta(min(d, size)),
        warm=None,
        total=total_of_block and total,
    )


def scaled(unbiased: Compressor) -> Compressor:
    r"""The contraction $Q/q$ of an unbiased compressor $Q$, with $\delta = q$.

    $\mathbb E|Q(v)/q - v|^2 = \mathbb E|Q(v)|^2/q^2 - 2|v|^2/q + |v|^2
    \le (1 - 1/q)|v|^2$.

    Args:
      unbiased: a compressor that states its `q`.

    Returns:
      The contractive compressor, with the payload of `unbiased`.

    Raises:
      ValueError: if `unbiased` is not unbiased.

    Example:
      >>> from jaxsp import compressors
      >>> print(compressors.scaled(compressors.rand_k(0.1)).delta(1000))
      10.0
    """
    check_compressor("unbiased", unbiased)
    if unbiased.layers is not None:
        return per_leaf(jax.tree.map(scaled, unbiased.layers))
    q = unbiased.q
    if q is None:
        raise ValueError(
            f"unbiased must be an unbiased compressor, got {unbiased}, which states no "
            f"q: it is contractive as it is, write {unbiased} alone."
        )

    def divided(decompress, *arguments):
        *arguments, like = arguments
        wide = jax.ShapeDtypeStruct(like.shape, compute_dtype(like.dtype))
        x = decompress(*arguments, wide) / q(math.prod(like.shape))
        return x.astype(like.dtype)

    worker = unbiased.worker
    return dataclasses.replace(
        unbiased,
        name=f"scaled({unbiased.name})",
        decompress=functools.partial(divided, unbiased.decompress),
        total=unbiased.total and functools.partial(divided, unbiased.total),
        q=None,
        delta=q,
        worker=None if worker is None else lambda i, count: scaled(worker(i, count)),
    )


def contractive(compressor: Compressor) -> Compressor:
    r"""The compressor as a contraction, changed as little as that takes.

    A contractive one is returned as it is. An unbiased one with $q \le 3/2$ in every
    dimension (`natural`) is one already, with $\delta = 1/(2 - q)$; one that has
    $q \le 3/2$ in blocks of 32 numbers or more (`quantize` from 4 bits on) is applied
    in the largest such blocks, a power of two; any other (`rand_k`, `ternary`) is
    divided by its $q$, as by `scaled`.

    Args:
      compressor: a compressor that states its `q` or its `delta`.

    Returns:
      The contractive compressor.

    Raises:
      ValueError: if `compressor` is not a compressor.

    Example:
      >>> from jaxsp import compressors
      >>> for c in (compressors.natural(), compressors.quantize(4)):
      ...   print(compressors.contractive(c))
      natural()
      blockwise(quantize(4), 128)
    """
    check_compressor("compressor", compressor)
    if compressor.layers is not None:
        return per_leaf(jax.tree.map(contractive, compressor.layers))
    q = compressor.q
    if compressor.delta is not None or q is None:
        return compressor
    if compressor.worker is not None:  # q is M, which only a worker knows
        return scaled(compressor)
    if q(2**62) <= _TARGET_Q:
        return dataclasses.replace(compressor, delta=_delta_of(q))
    sizes = [2**i for i in range(20) if q(2**i) <= _TARGET_Q]
    if sizes and sizes[-1] >= _LEAST_BLOCK:
        return blockwise(compressor, sizes[-1])
    return scaled(compressor)


def _delta_of(q):
    return lambda d: 1 / (2 - q(d))
