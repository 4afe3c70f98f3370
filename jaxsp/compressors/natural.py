"""Nothing but the sign and the exponent."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsp.compressors import counter_rng, packing
from jaxsp.compressors.compressor import (
    Compressor,
    by_eights,
    check_input,
    compute_dtype,
)

_BIAS = 127  # of float32


class Powers(NamedTuple):
    """What travels.

    Attributes:
      exponents: float32's eight bits of exponent, one byte a number.
      signs: the signs, 8 a byte.
    """

    exponents: jax.Array
    signs: jax.Array


def natural() -> Compressor:
    r"""Natural compression: stochastic rounding to a power of two, in 9 bits.

    $$Q(v)_i = \mathrm{sgn}(v_i)\, 2^{e_i + b_i}, \qquad |v_i| = 2^{e_i} (1 + f_i),
    \quad b_i \sim \mathrm{Bernoulli}(f_i).$$

    $\mathbb E Q_i^2 / v_i^2 = (1 + 3f)/(1+f)^2 \le 9/8$, attained at $f = 1/3$: $q =
    9/8$ whatever $d$ is. What travels is the sign and exponent of a float32, truly 9
    bits, for all types of array. Beyond its range the constant ends: a magnitude below
    $2^{-126}$ becomes 0 or $2^{-126}$ (unbiased, if the processor does not take float32
    numbers so small for zero), and one above the largest power of two of its type
    ($2^{127}$, in float16 $2^{15}$) becomes that; infinity and NaN become infinity.

    Returns:
      The unbiased compressor.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxsp import compressors
      >>> print(compressors.natural().bits(jnp.zeros(1000)))
      9000

    References:
      Horvath, Ho, Horvath, Sahu, Canini, Richtarik, Natural Compression for Distributed
      Deep Learning, 2022, arXiv 1905.10988.
    """

    def compress(key, x):
        x = check_input(key, x)
        v = x.ravel().astype(compute_dtype(x.dtype))
        highest = min(int(jnp.finfo(x.dtype).maxexp) - 1, 127) + _BIAS
        seed = counter_rng.seed(key)

        def exponents(v, places):
            exponent, fraction = _split(jnp.abs(v))
            up = counter_rng.bernoulli(fraction, counter_rng.words(seed, places))
            rounded = jnp.minimum(exponent + up, highest)
            return jnp.where(jnp.isfinite(v), rounded, 255).astype(jnp.uint8)

        return Powers(
            packing.pack(v, 8, exponents), packing.pack(v, 1, lambda v, _: v < 0)
        )

    def decompress(payload, like):
        d = math.prod(like.shape)
        signs = packing.unpack([payload.signs], 1, d, lambda codes: codes)
        word = (
            signs.astype(jnp.uint32) << 31 | payload.exponents.astype(jnp.uint32) << 23
        )
        value = lax.bitcast_convert_type(word, jnp.float32)
        return value.astype(like.dtype).reshape(like.shape)

    def total(payloads, weights, like):
        each = [
            jax.tree.map(lambda x, m=m: x[m], payloads) for m in range(len(weights))
        ]
        values = [w * decompress(p, like) for w, p in zip(weights, each, strict=True)]
        return functools.reduce(jnp.add, values)

    return Compressor(
        "natural()", compress, decompress, q=lambda d: 9 / 8, total=by_eights(total)
    )


def _split(magnitude):
    """float32's biased exponent of the power of two below, and how far above it is."""
    info = jnp.finfo(magnitude.dtype)
    word = np.uint64 if info.bits == 64 else np.uint32
    shift = word(info.nmant)
    bits = lax.bitcast_convert_type(magnitude, word)
    exponent = (bits >> shift).astype(jnp.int32) + (_BIAS + int(info.minexp) - 1)
    mantissa = bits & ((word(1) << shift) - word(1))
    fraction = mantissa.astype(magnitude.dtype) * 2.0 ** -int(info.nmant)
    small = exponent < 1  # below 2^-126: between 0, whose exponent is 0, and that
    fraction = jnp.where(small, magnitude * 2.0**126, fraction)
    return jnp.where(small, 0, exponent), fraction
