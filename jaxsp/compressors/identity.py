"""No compression."""

import math

from jaxsp.compressors.compressor import Compressor, check_input


def identity() -> Compressor:
    r"""The array itself, $Q(v) = v$: $q = \delta = 1$.

    Returns:
      The compressor, unbiased and contractive.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxsp import compressors
      >>> print(compressors.identity().bits(jnp.zeros(10)))
      320
    """
    return Compressor(
        name="identity()",
        compress=lambda key, x: check_input(key, x, math.inf),
        decompress=lambda payload, like: payload.reshape(like.shape).astype(like.dtype),
        q=lambda d: 1.0,
        delta=lambda d: 1.0,
    )
