"""Codes of a few bits as bytes, laid out so that packing reads memory in a line.

The numbers of a vector are cut into `g` equal stretches, and a byte holds codes of the
same place in several stretches, not of neighbours. What is left over after a multiple
of 1,024 numbers is packed by itself in the same way, because the compiler vectorizes
loops of round lengths only.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_CHUNK = 1024


def chunks(d: int) -> list[tuple[int, int]]:
    """The (start, stop) of the long round part of a vector and of its rest."""
    middle = d - d % _CHUNK
    return [(a, b) for a, b in ((0, middle), (middle, d)) if b > a]


def rows(x: jax.Array, start: int, stop: int, count: int) -> jax.Array:
    """A part of a vector as `count` rows, filled up with zeros: `[count, m]`."""
    size = -(-(stop - start) // count) * count
    part = x[start:stop]
    if size != stop - start:
        part = jnp.pad(part, (0, size - (stop - start)))
    return part.reshape(count, -1)


def _groups(bits: int) -> tuple[int, int]:
    """How many codes fill how many bytes."""
    return 8 // math.gcd(8, bits), bits // math.gcd(8, bits)


def pack(
    x: jax.Array, bits: int, encode: Callable[[jax.Array, jax.Array], jax.Array]
) -> jax.Array:
    """Encode a vector and pack the codes.

    Args:
      x: a vector.
      bits: the bits of a code, 1 to 8.
      encode: `encode(stretch, start)` gives the codes (below `2**bits`) of a stretch of
        the vector that begins with number `start`, a uint32 that may be traced.

    Returns:
      The bytes, a uint8 vector of `packed_size(x.size, bits)`.
    """
    g, count = _groups(bits)
    # The codes of a group make one word, or where that has over 32 bits, two.
    h = g if g * bits <= 32 else g // 2
    dtype = jnp.uint8 if g * bits == 8 else jnp.uint32
    parts = []
    for start, stop in chunks(x.size):
        part = rows(x, start, stop, g)
        m = part.shape[1]

        def code(j, part=part, start=start, m=m):
            row = lax.dynamic_index_in_dim(part, j, keepdims=False)
            return encode(row, np.uint32(start) + jnp.uint32(j) * np.uint32(m))

        if g == 1:
            parts.append(code(0).astype(jnp.uint8))
            continue

        def add(j, words, code=code):
            added = [code(j + i).astype(dtype) for i in range(0, g, h)]
            shift = jnp.asarray(bits * j, dtype)
            return [w | a << shift for w, a in zip(words, added, strict=True)]

        # A loop, because the compiler fuses it with nothing: unrolled, it would encode
        # every row again for each byte, and for each number decoded on the same device.
        words = lax.fori_loop(0, h, add, [jnp.zeros(m, dtype)] * (g // h))
        if count == 1:
            parts += words
            continue

        byte = functools.partial(_byte, words, h * bits)
        parts.append(lax.map(byte, jnp.arange(count)).ravel())
    return jnp.concatenate(parts) if len(parts) > 1 else parts[0]


def _byte(words, width, i):
    """Byte `i` of words of `width` bits, one after another."""
    total = jnp.zeros_like(words[0])
    for j, word in enumerate(words):
        at = 8 * i - j * width
        total |= word << _positive(-at) >> _positive(at)
    return total.astype(jnp.uint8)


def _positive(shift):
    return jnp.maximum(shift, 0).astype(jnp.uint32)


def packed_size(d: int, bits: int) -> int:
    """The bytes that `d` codes take: `bits / 8` each, and a few to fill up."""
    g, count = _groups(bits)
    return sum(-(-(stop - start) // g) * count for start, stop in chunks(d))


def unpack(
    packed: jax.Array, bits: int, d: int, decode: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """Undo `pack`: the vector of `decode(codes)`, of length `d`."""
    g, count = _groups(bits)
    parts, at = [], 0
    for start, stop in chunks(d):
        m = -(-(stop - start) // g)
        bytes_ = [packed[at + i * m : at + (i + 1) * m] for i in range(count)]
        at += count * m
        for j in range(g):
            code: Any = 0
            for i, byte in enumerate(bytes_):
                shift = 8 * i - j * bits
                if -8 < shift < bits:
                    code = code | (byte << shift if shift >= 0 else byte >> -shift)
            # The last stretches of a vector that does not fill them are shorter.
            length = min(m, stop - start - j * m)
            if length > 0:
                parts.append(decode((code & np.uint8(2**bits - 1))[:length]))
    return jnp.concatenate(parts) if len(parts) > 1 else parts[0]
