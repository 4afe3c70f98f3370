"""Numbers at random places, which both sides draw."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsp.compressors import counter_rng
from jaxsp.compressors.compressor import (
    Compressor,
    check_fraction,
    check_input,
    compute_dtype,
    nan_unless_finite,
    number_kept,
    one_by_one,
)


class Drawn(NamedTuple):
    """What travels.

    Attributes:
      values: the numbers, `[k]`.
      seed: two words from which the receiver draws their places again.
    """

    values: jax.Array
    seed: jax.Array


def rand_k(fraction: float) -> Compressor:
    r"""$k$ numbers at random places, times $d/k$, the rest zero.

    A number is sent with probability $k/d$, so $\mathbb E|Q(v)|^2 = (k/d)(d/k)^2|v|^2$:
    $q = d/k$. The places are $k$ different ones of a pseudo-random permutation, drawn
    one by one. They are not sent: the seed is, in 64 bits. If a number is not finite,
    sent or not, all that are sent are NaN.

    Args:
      fraction: the share of the numbers that is sent, in (0, 1]; of $d$ numbers, $k$ is
        `fraction * d`, rounded, and at least 1.

    Returns:
      The unbiased compressor. Workers need different keys: with the same places on
      all of them, the mean over $M$ workers is no better than one.

    Raises:
      ValueError: if `fraction` is not in (0, 1].

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxsp import compressors
      >>> print(compressors.rand_k(0.1).bits(jnp.zeros(1000)))  # 64 for the seed
      3264
    """
    fraction = check_fraction(fraction)

    def places(seeds, d):
        """Those of one payload, or of several, a row each."""
        turns = jnp.arange(number_kept(fraction, d), dtype=jnp.uint32)
        turns = jnp.broadcast_to(turns, (*seeds.shape[:-1], turns.size))
        seeds = jnp.moveaxis(seeds, -1, 0)[..., None]
        return counter_rng.permutation(seeds, turns, d)

    def numbers(payloads, like):
        scale = math.prod(like.shape) / payloads.values.shape[-1]
        values = payloads.values.astype(compute_dtype(like.dtype)) * scale
        return values.astype(like.dtype)

    def compress(key, x):
        v = check_input(key, x).ravel()
        seed = counter_rng.seed(key)
        return Drawn(nan_unless_finite(v[places(seed, v.size)], v), seed)

    def decompress(payload, like):
        d = math.prod(like.shape)
        zeros, at = jnp.zeros(d, like.dtype), places(payload.seed, d)
        full = zeros.at[at].set(numbers(payload, like), unique_indices=True)
        return full.reshape(like.shape)

    def total(payloads, weights, like):
        at = places(payloads.seed, math.prod(like.shape))
        return one_by_one(at, weights[:, None] * numbers(payloads, like), like)

    return Compressor(
        f"rand_k({fraction:g})",
        compress,
        decompress,
        q=lambda d: d / number_kept(fraction, d),
        total=total,
    )
