"""Levels on a line, and stochastic rounding between them: QSGD and its like."""

import functools
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
)


class Levels(NamedTuple):
    """What travels.

    Attributes:
      scale: the value of the highest level, a scalar: float32, or float64 for that.
      codes: sign and level of every number, packed.
    """

    scale: jax.Array
    codes: jax.Array


def dithering(levels: int) -> Compressor:
    r"""QSGD: stochastic rounding to `levels` parts of the Euclidean norm.

    $$Q(v)_i = |v|\, \mathrm{sgn}(v_i)\, \frac{\lfloor y_i \rfloor + b_i}{s}, \qquad
    y_i = \frac{s |v_i|}{|v|}, \quad b_i \sim \mathrm{Bernoulli}(y_i - \lfloor y_i
    \rfloor).$$

    With $f$ the fractional part, $\mathbb E|Q(v)|^2 - |v|^2 = (|v|/s)^2 \sum_i f_i (1 -
    f_i)$; and $f(1-f) \le \min(1, y)$, $\sum_i y_i \le s\sqrt d$: so
    $q = 1 + \min(d/s^2, \sqrt d/s)$, the constant of the paper. It is not contractive:
    at $s = 4$ the relative error on a long Gaussian vector is above 1.

    Args:
      levels: $s$, from 1 to 127. A code, of $2s+1$ values, takes as many bits as it
        needs: 2 for 1 level, 3 for 3, 4 for 7, 8 for 127.

    Returns:
      The unbiased compressor.

    Raises:
      ValueError: if `levels` is not an integer from 1 to 127.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxsp import compressors
      >>> print(compressors.dithering(7).bits(jnp.zeros(1000)))  # 32 for the norm
      4032

    References:
      Alistarh, Grubic, Li, Tomioka, Vojnovic, QSGD: Communication-Efficient SGD via
      Gradient Quantization and Encoding, 2017, arXiv 1610.02132.
    """
    # A byte with a sign holds no more.
    levels = _arguments.check_count("levels", levels, maximum=127)
    return _stochastic(
        f"dithering({levels})",
        levels,
        _norm,
        lambda d: 1 + min(d / levels**2, math.sqrt(d) / levels),
    )


def ternary() -> Compressor:
    r"""TernGrad: $0$ or $\pm|v|_\infty$, that is `quantize(2)`.

    $\mathbb E|Q(v)|^2 = |v|_\infty |v|_1$, a quadratic form with largest eigenvalue
    $q = (1 + \sqrt d)/2$, which is attained.

    Returns:
      The unbiased compressor; 2 bits a number.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxsp import compressors
      >>> print(compressors.ternary().bits(jnp.zeros(1000)))
      2032

    References:
      Wen, Xu, Yan, Wu, Wang, Chen, Li, TernGrad: Ternary Gradients to Reduce
      Communication in Distributed Deep Learning, 2017, arXiv 1705.07878.
    """
    return _stochastic("ternary()", 1, _largest, lambda d: (1 + math.sqrt(d)) / 2)


def quantize(bits: int) -> Compressor:
    r"""Stochastic rounding to levels from minus to plus the largest magnitude.

    $$Q(v)_i = |v|_\infty\, \mathrm{sgn}(v_i)\, \frac{\lfloor y_i \rfloor + b_i}{L},
    \qquad y_i = \frac{L |v_i|}{|v|_\infty}, \quad b_i \sim \mathrm{Bernoulli}(y_i -
    \lfloor y_i \rfloor), \qquad L = 2^{b-1} - 1.$$

    The excess $\mathbb E|Q(v)|^2 - |v|^2 = (|v|_\infty/L)^2 \sum_i f_i(1-f_i)$ stays
    and $|v|$ shrinks if all but the largest number lose their whole levels. What is
    left has $\mathbb E|Q(v)|^2 = |v|_\infty^2 + |v|_\infty \sum_i |v_i|/L$ over the
    others, a quadratic form with largest eigenvalue $q = (1 + \sqrt{1 + (d-1)/L^2})/2$.
    It is not contractive: at 2 bits the relative error on a long Gaussian vector is
    above 1.

    Args:
      bits: $b$, the bits of a code, from 2 to 8.

    Returns:
      The unbiased compressor.

    Raises:
      ValueError: if `bits` is not an integer from 2 to 8.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxsp import compressors
      >>> print(compressors.quantize(4).bits(jnp.zeros(1000)))  # 32 for the largest
      4032
    """
    bits = _arguments.check_count("bits", bits, minimum=2, maximum=8)
    L = 2 ** (bits - 1) - 1
    return _stochastic(
        f"quantize({bits})",
        L,
        _largest,
        lambda d: (1 + math.sqrt(1 + (d - 1) / L**2)) / 2,
    )


def _largest(x):
    return jnp.max(jnp.abs(x))


def _norm(x):
    """The Euclidean norm, without overflow, and never below the largest magnitude."""
    largest = _largest(x)
    return largest * jnp.sqrt(jnp.sum(jnp.square(x / _nonzero(largest))))


def _nonzero(scale):
    return jnp.where(scale == 0, jnp.ones_like(scale), scale)


def _stochastic(name, levels, scale_of, q):
    """Codes are the level, negative where the number is, in two's complement."""
    bits = levels.bit_length() + 1
    mask, unused = np.uint8(2**bits - 1), np.uint8(8 - bits)

    def compress(key, x):
        x = check_input(key, x)
        v = x.ravel().astype(compute_dtype(x.dtype))
        seed = counter_rng.seed(key)
        scale = scale_of(packing.tiles(v))

        def encode(v, places):
            y = jnp.abs(v) / _nonzero(scale) * levels  # at most `levels`
            whole = jnp.floor(y)
            up = counter_rng.bernoulli(y - whole, counter_rng.words(seed, places))
            level = whole.astype(jnp.uint8) + up.astype(jnp.uint8)
            return jnp.where(v < 0, -level, level) & mask

        return Levels(scale, packing.pack(v, bits, encode))

    def value(codes, step):
        # A scale that is not finite makes every number so: 0 times it is NaN.
        signed = lax.bitcast_convert_type(codes << unused, np.int8)
        return (signed >> unused.astype(np.int8)).astype(step.dtype) * step

    def values(codes, scales, like):
        steps = [scale * (1 / levels) for scale in scales]

        def decode(*codes):
            return functools.reduce(jnp.add, map(value, codes, steps)).astype(
                like.dtype
            )

        d = math.prod(like.shape)
        return packing.unpack(codes, bits, d, decode).reshape(like.shape)

    def decompress(payload, like):
        return values([payload.codes], [payload.scale], like)

    def total(payloads, weights, like):
        return values(list(payloads.codes), list(weights * payloads.scale), like)

    return Compressor(name, compress, decompress, q=q, total=by_eights(total))
