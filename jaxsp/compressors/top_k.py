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
    one_by_one,
)

_LONG = 2**18  # so many numbers are taken as a TPU holds them, in squares


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

    Nothing is sorted: the $k$-th magnitude is found bit by bit, three with each count
    of the larger ones, and the chosen are gathered in the order of their indices.

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

    def total(payloads, weights, like):
        values = weights[:, None] * payloads.values.astype(like.dtype)
        return one_by_one(payloads.indices, values, like, in_order=True)

    return Compressor(
        f"top_k({fraction:g})",
        compress,
        decompress,
        delta=lambda d: d / number_kept(fraction, d),
        total=total,
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
    # In groups of squares, with zeros after the last, which are never needed.
    square = (32, 128) if magnitudes.size >= _LONG else (1, 32)
    squares = -(-magnitudes.size // math.prod(square))
    group = min(15, squares)
    size = -(-squares // group) * group * math.prod(square)
    magnitudes = packing.filled(magnitudes, size).reshape(-1, group, *square)
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
    # In the word that as many as end before or at a number's turn come before.
    ended = jnp.zeros(k, jnp.uint32).at[ends]
    at = jnp.cumsum(ended.add(1, mode="drop", indices_are_sorted=True))
    turn = lax.iota(jnp.uint32, k) - (ends[at] - ones[at])
    return at * np.uint32(32) + _nth_one(word[at], turn)


def _threshold(magnitudes, k):
    """The `k`-th largest, of which every step finds three bits.

    At least `k` are as large as `low`, and fewer as large as `low` and what the bits
    still to be found are together.
    """
    word, bits = magnitudes.dtype.type, 8 * magnitudes.dtype.itemsize - 1
    steps = -(-bits // 3)

    def step(i, low):
        shift = (3 * (steps - 1 - i)).astype(word)
        enough = _counts(magnitudes, low, shift) >= k
        return low + (jnp.sum(enough).astype(word) << shift)

    return lax.fori_loop(0, steps, step, word(0))


def _counts(magnitudes, low, shift):
    """How many are at least `low + (j << shift)`, for j from 1 to 7."""
    digit = jnp.minimum((jnp.maximum(magnitudes, low) - low) >> shift, 7)
    # Eight counts in a word, of up to 15 in four bits each.
    ones = np.uint32(1) << 4 * digit.astype(jnp.uint32)
    counts = jnp.sum(ones, axis=1, dtype=jnp.uint32).reshape(1, -1)
    each = counts >> np.arange(4, 32, 4, dtype=np.uint32)[:, None] & np.uint32(15)
    return jnp.cumsum(jnp.sum(each, axis=1, dtype=jnp.uint32)[::-1])[::-1]


def _words(flags):
    """Flags as the bits of words, the first the lowest bit of the first.

    Of `[groups, squares, 32, 128]` flags, 32 neighbours are the bits of a word. Rows
    are added up first, where they stand, and the words are then turned. Those of
    `[groups, squares, 1, 32]` are added up at once.
    """
    number = np.arange(32, dtype=np.uint32)
    if flags.shape[2] == 1:
        bits = flags.astype(jnp.uint32) << number[None, None, None]
        return jnp.sum(bits, axis=3, dtype=jnp.uint32).ravel()
    rows = flags.astype(jnp.uint32) << number[None, None, :, None]
    columns = jnp.sum(rows, axis=2, dtype=jnp.uint32).reshape(-1, 128)
    # Bit r of column 32 q + b is of row r: `[b, q, square]`, and `[r, b, q, square]`.
    columns = jnp.swapaxes(columns.T.reshape(4, 32, -1), 0, 1)[None]
    bits = columns >> number[:, None, None, None] & np.uint32(1)
    words = jnp.sum(bits << number[None, :, None, None], axis=1, dtype=jnp.uint32)
    return words.reshape(128, -1).T.ravel()


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
