"""Codes of a few bits as bytes, laid out as processors hold the numbers.

A TPU holds a vector in tiles of 8 rows of 128 numbers. A byte holds codes of the same
place in several rows of a tile, so that nothing moves within a tile or between tiles,
and other processors read and write stretches of 128. What is left over after the last
full tile is cut into as many stretches as a byte has codes, or, where that is too small
a part of the vector to matter, filled up to a tile.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_TILE = 1024
_FILLED = 64 * _TILE  # for a vector so long, filling a tile costs below 1.6 %


def chunks(d: int) -> list[tuple[int, int]]:
    """The (start, stop) of the full tiles of a vector and of its rest."""
    middle = d - d % _TILE
    return [(a, b) for a, b in ((0, middle), (middle, d)) if b > a]


def filled(x: jax.Array, size: int) -> jax.Array:
    """A vector filled up with zeros."""
    return x if x.size == size else jnp.pad(x, (0, size - x.size))


def tiles(x: jax.Array) -> jax.Array:
    """A vector of whole tiles as such, of which a TPU reduces blocks where they lie."""
    return x if x.size % _TILE else x.reshape(-1, 8, 128)


def _groups(bits: int) -> tuple[int, int]:
    """How many codes fill how many bytes."""
    return 8 // math.gcd(8, bits), bits // math.gcd(8, bits)


class _Part(NamedTuple):
    """A stretch of the vector as tiles of `g` times `rows` rows of `width` numbers."""

    start: int
    stop: int
    tiles: int
    rows: int
    width: int


def _parts(d: int, g: int) -> list[_Part]:
    parts = []
    for start, stop in chunks(d):
        size = stop - start
        if size % _TILE and (d < _FILLED or g == 1):
            parts.append(_Part(start, stop, 1, 1, -(-size // g)))
        else:
            parts.append(_Part(start, stop, -(-size // _TILE), 8 // g, 128))
    return parts


def pack(
    x: jax.Array, bits: int, encode: Callable[[jax.Array, jax.Array], jax.Array]
) -> jax.Array:
    """Encode a vector and pack the codes.

    Args:
      x: a vector.
      bits: the bits of a code, 1 to 8.
      encode: `encode(numbers, places)` gives the codes (below `2**bits`) of some
        numbers, an array of any shape, whose places in the vector are given as uint32.

    Returns:
      The bytes, a uint8 vector of `packed_size(x.size, bits)`.
    """
    g, count = _groups(bits)
    packed = []
    for part in _parts(x.size, g):
        shape = (part.tiles, g, part.rows, part.width)
        numbers = filled(x[part.start : part.stop], math.prod(shape)).reshape(shape)
        places = jnp.uint32(part.start)
        for axis in range(4):
            step = np.uint32(math.prod(shape[axis + 1 :]))
            places = places + lax.broadcasted_iota(jnp.uint32, shape, axis) * step
        codes = encode(numbers, places)
        packed.append(_join(codes, bits, g, count).ravel())
    return jnp.concatenate(packed) if len(packed) > 1 else packed[0]


def _join(codes, bits, g, count):
    """`g` codes as `count` bytes, along the second axis."""
    if g == 1:
        return codes.astype(jnp.uint8)
    # The codes of a group make one word, or where that has over 32 bits, two.
    h = g if g * bits <= 32 else g // 2
    dtype = jnp.uint8 if count == 1 else jnp.uint32
    shifts = bits * np.arange(h, dtype=dtype)[None, :, None, None]
    words = [
        jnp.sum(codes[:, i : i + h].astype(dtype) << shifts, axis=1, dtype=dtype)
        for i in range(0, g, h)
    ]
    if count == 1:
        return words[0]
    # Written once, and not worked out again for every byte.
    words = lax.optimization_barrier(words)
    return jnp.stack([_byte(words, h * bits, i) for i in range(count)], axis=1)


def _byte(words, width, i):
    """Byte `i` of words of `width` bits, one after another."""
    total = jnp.zeros_like(words[0])
    for j, word in enumerate(words):
        at = 8 * i - j * width
        if -8 < at < width:
            total |= word >> np.uint32(at) if at >= 0 else word << np.uint32(-at)
    return total.astype(jnp.uint8)


def packed_size(d: int, bits: int) -> int:
    """The bytes that `d` codes take: `bits / 8` each, and some to fill up."""
    g, count = _groups(bits)
    return sum(p.tiles * p.rows * p.width * count for p in _parts(d, g))


def unpack(
    packed: Sequence[jax.Array], bits: int, d: int, decode: Callable[..., jax.Array]
) -> jax.Array:
    """Undo `pack`: the vector of `decode(codes, ...)`, of length `d`.

    Args:
      packed: the bytes of one vector, or of several that are decoded into one.
      bits: the bits of a code.
      d: how many codes there are of each.
      decode: makes numbers of codes, an array of any shape of each vector.
    """
    g, count = _groups(bits)
    mask = np.uint8(2**bits - 1)
    parts = _parts(d, g)
    if len(parts) > 1 and parts[1].width == 128:  # one after another, in full tiles
        parts = [parts[0]._replace(stop=d, tiles=parts[0].tiles + 1)]
    numbers, at = [], 0
    for part in parts:
        shape = (part.tiles, count, part.rows, part.width)
        end = at + math.prod(shape)
        codes = [
            _codes(x[at:end].reshape(shape), bits, g, count) & mask for x in packed
        ]
        at = end
        numbers.append(decode(*codes).ravel()[: part.stop - part.start])
    return jnp.concatenate(numbers) if len(numbers) > 1 else numbers[0]


def _codes(data, bits, g, count):
    """Undo `_join`, but for bits above the code's."""
    if count == 1:
        return data >> bits * np.arange(g, dtype=np.uint8)[None, :, None, None]
    codes = []
    for j in range(g):
        code: Any = 0
        for i in range(count):
            shift = 8 * i - j * bits
            if -8 < shift < bits:
                byte = data[:, i]
                code = code | (byte << shift if shift >= 0 else byte >> -shift)
        codes.append(code)
    return jnp.stack(codes, axis=1)
