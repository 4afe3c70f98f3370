"""The largest numbers, and where they were."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsp.compressors import packing
from jaxsp.compressors.compressor import (
    Compressor,
    check_fraction,
    check_input,
    number_kept,
)


class Sparse(NamedTuple):
    """What travels.

    Attributes:
      values: the numbers, `[k]`.
      indices: their places, `[k]`, in the smallest unsigned type that holds them all.
    """

    values: jax.Array
    indices: jax.Array


def top_k(fraction: float) -> Compressor:
    r"""The $k$ numbers of largest magnitude, the rest zero; exactly, and exactly $k$.

    Those kept have at least the average square, so $|C(v) - v|^2 \le (1 - k/d)|v|^2$:
    $\delta = d/k$. Among equal magnitudes the lower index goes first. NaN counts as
    larger than infinity.

    Nothing is sorted: the $k$-th magnitude is found by bisection on its bits, with one
    count of the larger ones for each bit, and the chosen are gathered in the order of
    their indices.

    Args:
      fraction: the share of the numbers that is sent, in (0, 1]; of $d$ numbers, $k$ is
        `fraction * d`, rounded, and at least 1.

    Returns:
      The contractive compressor.

    Raises:
      ValueError: if `fraction` is not in (0, 1].

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxsp import compressors
      >>> v, top = jnp.array([3.0, -1.0, -4.0, 2.0]), compressors.top_k(0.5)
      >>> print(top.decompress(top.compress(jax.random.key(0), v), v))
      [ 3.  0. -4.  0.]

    References:
      Stich, Cordonnier, Jaggi, Sparsified SGD with Memory, 2018, arXiv 1809.07599.
    """
    fraction = check_fraction(fraction)

    def compress(key, x):
        v = check_input(key, x).ravel()
        k = number_kept(fraction, v.size)
        indices = _places(_magnitudes(v), k)
        return Sparse(v[indices], indices.astype(_index_type(v.size)))

    def decompress(payload, like):
        zeros = jnp.zeros(math.prod(like.shape), like.dtype)
        indices = payload.indices.astype(jnp.uint32)
        full = zeros.at[indices].set(
            payload.values.astype(like.dtype),
            indices_are_sorted=True,
            unique_indices=True,
        )
        return full.reshape(like.shape)

    return Compressor(
        f"top_k({fraction:g})",
        compress,
        decompress,
        delta=lambda d: d / number_kept(fraction, d),
    )


def _index_type(d):
    return np.min_scalar_type(d - 1)


def _magnitudes(v):
    """Unsigned integers in the order of the magnitudes."""
    word = np.dtype(f"uint{8 * v.dtype.itemsize}")
    return lax.bitcast_convert_type(v, word) & word.type(
        2 ** (8 * word.itemsize - 1) - 1
    )


def _places(magnitudes, k):
    """The indices of the `k` largest, in increasing order."""
    threshold = _threshold(magnitudes, k)
    # A bit for each number, those of 32 neighbours in one word.
    larger = _words(magnitudes > threshold)
    equal = _words(magnitudes == threshold)
    needed = np.uint32(k) - jnp.sum(lax.population_count(larger), dtype=jnp.uint32)
    ones = lax.population_count(equal)
    before = jnp.cumsum(ones, dtype=jnp.uint32) - ones
    allowed = jnp.clip(needed - jnp.minimum(before, needed), 0, 32)
    word = larger | _first_ones(equal, allowed)

    ones = lax.population_count(word)
    ends = jnp.cumsum(ones, dtype=jnp.uint32)
    slots = lax.iota(jnp.uint32, k)
    at = jnp.searchsorted(ends, slots, side="right").astype(jnp.uint32)
    return at * np.uint32(32) + _nth_one(word[at], slots - (ends[at] - ones[at]))


def _threshold(magnitudes, k):
    """The `k`-th largest, or if it is quicker, another number that is as good.

    At least `k` are as large as `low`, and fewer as large as `high`; where it is
    exactly `k` the search is over.
    """
    bits = 8 * magnitudes.dtype.itemsize
    word = magnitudes.dtype.type

    def step(carry):
        low, high, _ = carry
        middle = low + (high - low) // word(2)
        count = _count(magnitudes, middle)
        enough = count >= k
        low, high = jnp.where(enough, middle, low), jnp.where(enough, high, middle)
        return low, high, jnp.where(enough, count, carry[2])

    start = (word(0), word(2 ** (bits - 1)), np.uint32(magnitudes.size))
    low, _, _ = lax.while_loop(
        lambda carry: (carry[1] - carry[0] > 1) & (carry[2] > k),
        step,
        jax.tree.map(jnp.asarray, start),
    )
    return low


def _count(magnitudes, threshold):
    """How many are at least as large as a threshold above zero."""
    total = np.uint32(0)
    for start, stop in packing.chunks(magnitudes.size):
        part = packing.rows(magnitudes, start, stop, 32)
        # Down the rows first, in bytes, so that the compiler vectorizes it.
        columns = jnp.sum((part >= threshold).astype(jnp.uint8), 0, dtype=jnp.uint8)
        total = total + jnp.sum(columns, dtype=jnp.uint32)
    return total


def _words(flags):
    """Flags as the bits of uint32 words, the first the lowest bit of the first."""
    flags = jnp.pad(flags, (0, -flags.size % 32)).reshape(-1, 32)
    shifts = np.arange(32, dtype=np.uint32)[None]
    return jnp.sum(flags.astype(jnp.uint32) << shifts, axis=1, dtype=jnp.uint32)


def _nth_one(word, n):
    """Where a word has its bit number `n` that is 1, counted from 0: by halves."""
    at = jnp.zeros_like(word)
    for half in (16, 8, 4, 2, 1):
        below = lax.population_count(word & np.uint32(2**half - 1))
        upper = n >= below
        n = jnp.where(upper, n - below, n)
        word = jnp.where(upper, word >> half, word)
        at = jnp.where(upper, at + np.uint32(half), at)
    return at


def _first_ones(word, n):
    """The word with no more than its `n` lowest ones."""
    all_of_them = lax.population_count(word) <= n
    below = (np.uint32(1) << _nth_one(word, n)) - np.uint32(1)
    return jnp.where(all_of_them, word, word & below)
