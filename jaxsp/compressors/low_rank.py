"""A matrix as the product of two thin ones."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxsp import _arguments
from jaxsp.compressors.compressor import Compressor, check_input, compute_dtype


class Factors(NamedTuple):
    r"""What travels.

    Attributes:
      left: $P$, orthonormal columns, `[n, r]`.
      right: $V^\top P$, `[m, r]`.
    """

    left: jax.Array
    right: jax.Array


def low_rank(rank: int) -> Compressor:
    r"""PowerSGD: one step of subspace iteration, $C(V) = P P^\top V$.

    $$P = \mathrm{orthonormal}(V \Omega), \qquad \Omega \in \mathbb R^{m \times r}
    \text{ Gaussian, or the last } V^\top P \text{ in } \texttt{warm}.$$

    An array of two or more dimensions is the matrix with its last axis as columns; one
    of less is cut into a matrix as square as can be. Where the factors would be larger
    than the array, the array itself travels. Low rank is a property of single layers,
    so `per_leaf` is True.

    With the Gaussian start, $\mathbb E|C(V) - V|^2 \le (1 - r/\min(n, m))\,|V|^2$, the
    bound of the singular value decomposition. For, in the coordinates of the right
    singular vectors, restricted to the first $p = \min(n, m)$, what is kept is
    $$\mathrm{tr}\,(\Omega^\top S^2\Omega)(\Omega^\top S\Omega)^{-1} \ge
    \mathrm{tr}\,(\Omega^\top S\Omega)(\Omega^\top\Omega)^{-1}, \qquad
    S = \mathrm{diag}(\sigma_1^2, \dots, \sigma_p^2),$$
    by Cauchy-Schwarz for matrices, and the mean of the right side is $\frac rp
    \mathrm{tr}\,S$, because $\Omega$ spans a uniformly random subspace. So $\delta =
    \sqrt d/r$, never below 1, holds for every shape of $d$ numbers. With the warm start
    it is not proved, and false in the worst case: if the rows of $V$ are orthogonal to
    the last ones, only $|C(V) - V| \le |V|$ holds. For matrices that change slowly it
    tends to the singular vectors, and is the better one.

    Args:
      rank: $r$, at least 1.

    Returns:
      The contractive compressor, with `warm(key, x, previous_payload)`.

    Raises:
      ValueError: if `rank` is not a positive integer.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxsp import compressors
      >>> print(compressors.low_rank(2).bits(jnp.zeros((100, 50))) / 32)
      300.0

    References:
      Vogels, Karimireddy, Jaggi, PowerSGD: Practical Low-Rank Gradient Compression for
      Distributed Optimization, 2019, arXiv 1905.13727.
    """
    rank = _arguments.check_count("rank", rank)

    def compress(key, x):
        x = check_input(key, x, math.inf)
        n, m = _shape(x.shape)
        if rank * (n + m) >= x.size:
            return x
        return _factors(x, jax.random.normal(key, (m, rank), compute_dtype(x.dtype)))

    def warm(key, x, previous):
        x = check_input(key, x, math.inf)
        n, m = _shape(x.shape)
        if rank * (n + m) >= x.size:
            return x
        random = jax.random.normal(key, (m, rank), compute_dtype(x.dtype))
        start = previous.right.astype(random.dtype)
        # A column that is zero would stay zero, and one that is not finite too.
        usable = jnp.all(jnp.isfinite(start), axis=0) & jnp.any(start != 0, axis=0)
        return _factors(x, jnp.where(usable, start, random))

    def decompress(payload, like):
        if not isinstance(payload, Factors):
            return payload.reshape(like.shape).astype(like.dtype)
        dtype = compute_dtype(like.dtype)
        return _product(payload.left.astype(dtype), payload.right.astype(dtype), like)

    def total(payloads, weights, like):
        if not isinstance(payloads, Factors):
            weights = weights.reshape(-1, *[1] * len(like.shape))
            return jnp.sum(weights * payloads.astype(like.dtype), axis=0)
        # The factors side by side: one product of matrices of M r columns.
        left = weights[:, None, None] * payloads.left.astype(like.dtype)
        right = payloads.right.astype(like.dtype)
        n, m = _shape(like.shape)
        left = jnp.moveaxis(left, 0, 1).reshape(n, -1)
        right = jnp.moveaxis(right, 0, 1).reshape(m, -1)
        return _product(left, right, like)

    return Compressor(
        f"low_rank({rank})",
        compress,
        decompress,
        delta=lambda d: max(1.0, math.sqrt(d) / rank),
        per_leaf=True,
        warm=warm,
        total=total,
    )


def _product(left, right, like):
    matrix = jnp.matmul(left, right.T, precision=lax.Precision.HIGHEST)
    d = math.prod(like.shape)
    return matrix.ravel()[:d].reshape(like.shape).astype(like.dtype)


def _shape(shape):
    """Rows and columns of the matrix that an array is taken for."""
    d = math.prod(shape)
    if len(shape) >= 2:
        return d // shape[-1], shape[-1]
    m = math.isqrt(d)
    return -(-d // m), m


def _factors(x, start):
    n, m = _shape(x.shape)
    v = x.ravel().astype(start.dtype)
    matrix = jnp.pad(v, (0, n * m - v.size)).reshape(n, m)
    # Scaled, so that neither the squares nor the products overflow.
    largest = jnp.max(jnp.abs(matrix))
    unit = matrix / jnp.where(largest == 0, jnp.ones_like(largest), largest)
    product = jnp.matmul(unit, start, precision=lax.Precision.HIGHEST)
    left, _ = jnp.linalg.qr(product)
    right = jnp.matmul(matrix.T, left, precision=lax.Precision.HIGHEST)
    return Factors(left.astype(x.dtype), right.astype(x.dtype))
