"""One bit a number."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsp.compressors import packing
from jaxsp.compressors.compressor import (
    Compressor,
    by_eights,
    check_input,
    compute_dtype,
)


class Signs(NamedTuple):
    """What travels.

    Attributes:
      scale: the mean magnitude, a scalar: float32, or float64 for that.
      codes: the signs, 8 a byte.
    """

    scale: jax.Array
    codes: jax.Array


def sign() -> Compressor:
    r"""Scaled sign, $C(v) = \frac{|v|_1}{d}\, \mathrm{sgn}(v)$.

    The sign of zero is 1. $|C(v) - v|^2 = |v|^2 - |v|_1^2/d \le (1 - 1/d)\,|v|^2$,
    attained by a vector with one nonzero number: $\delta = d$. On a Gaussian vector the
    error is $(1 - 2/\pi)|v|^2$ whatever $d$ is.

    Returns:
      The contractive compressor.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxsp import compressors
      >>> v, sign = jnp.array([3.0, -1.0, -2.0]), compressors.sign()
      >>> print(sign.decompress(sign.compress(jax.random.key(0), v), v))
      [ 2. -2. -2.]

    References:
      Bernstein, Wang, Azizzadenesheli, Anandkumar, signSGD: Compressed Optimisation for
      Non-Convex Problems, 2018, arXiv 1802.04434.
      Karimireddy, Rebjock, Stich, Jaggi, Error Feedback Fixes SignSGD and other
      Gradient Compression Schemes, 2019, arXiv 1901.09847.
    """

    def compress(key, x):
        x = check_input(key, x)
        v = x.ravel().astype(compute_dtype(x.dtype))
        # Divided first by a power of 2, exactly, so that the sum does not overflow.
        power = 2.0 ** v.size.bit_length()
        scale = jnp.sum(jnp.abs(packing.tiles(v)) / power) * (power / v.size)
        return Signs(scale, packing.pack(v, 1, lambda v, _: v < 0))

    def values(codes, scales, like):
        def decode(*codes):
            pairs = zip(codes, scales, strict=True)
            values = [jnp.where(c == 0, a, -a) for c, a in pairs]
            return functools.reduce(jnp.add, values).astype(like.dtype)

        d = math.prod(like.shape)
        return packing.unpack(codes, 1, d, decode).reshape(like.shape)

    def decompress(payload, like):
        return values([payload.codes], [payload.scale], like)

    def total(payloads, weights, like):
        return values(list(payloads.codes), list(weights * payloads.scale), like)

    return Compressor(
        "sign()", compress, decompress, delta=float, total=by_eights(total)
    )
