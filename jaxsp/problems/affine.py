r"""Random games with affine operators, $F_m(z) = H_m z + h_m$ for worker $m$."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsp import _arguments
from jaxsp.operators import MinMax, saddle
from jaxsp.problems.problem import Problem


class Affine(NamedTuple):
    r"""The data of $f(x, y) = \frac\mu2 |x|^2 + x^\top B y - \frac\mu2 |y|^2
    + p^\top x - q^\top y$, of one worker or stacked.

    Attributes:
      coupling: $B$, of shape `[..., dim, dim]`.
      p: of shape `[..., dim]`.
      q: of shape `[..., dim]`.
      mu: $\mu$, of shape `[...]`.
    """  # noqa: D205

    coupling: jax.Array
    p: jax.Array
    q: jax.Array
    mu: jax.Array


def bilinear(
    workers: int, dim: int, *, L: float = 1.0, heterogeneity: float = 0.0, seed: int
) -> Problem:
    r"""The game $\min_x \max_y \frac1M \sum_m x^\top B_m y + p_m^\top x - q_m^\top y$.

    It is monotone but not strongly so: plain descent leaves its solution in a spiral,
    methods that look ahead converge.

    Args:
      workers: M.
      dim: the dimension of `x` and of `y`.
      L: the largest $\|B_m\|_2$. The singular values of the common part lie between
        0.4 and 1 of its norm, so that the solution is well conditioned.
      heterogeneity: how far the workers' data differ; 0 makes them identical.
      seed: seeds NumPy's generator.

    Returns:
      The problem, with `mu=0`.

    Raises:
      ValueError: for arguments out of range.

    Example:
      >>> import jaxsp
      >>> problem = jaxsp.problems.bilinear(4, 3, seed=0)
      >>> residual = jaxsp.metrics.residual(problem.mean_operator, problem.z_star)
      >>> bool(residual < 1e-5)
      True
    """
    return _affine(workers, dim, L, 0.0, heterogeneity, seed)


def quadratic(
    workers: int,
    dim: int,
    *,
    L: float,
    mu: float,
    heterogeneity: float = 0.0,
    seed: int,
) -> Problem:
    r"""A strongly convex, strongly concave quadratic game with given constants.

    $$\min_x \max_y \frac1M \sum_m \tfrac\mu2 |x|^2 + x^\top B_m y - \tfrac\mu2 |y|^2
    + p_m^\top x - q_m^\top y,$$

    where the largest $\|B_m\|_2$ is $\sqrt{L^2 - \mu^2}$, so that every $F_m$ is
    $\mu$-strongly monotone and $L$-Lipschitz and the constants are attained.

    Args:
      workers: M.
      dim: the dimension of `x` and of `y`.
      L: the Lipschitz constant, at least `mu`.
      mu: the strong monotonicity, above 0.
      heterogeneity: how far the workers' data differ; 0 makes them identical. It is
        the root mean square of $|F_m(z^*)|$ over workers, and the scale, next to the
        common part, of what is their own in $B_m$.
      seed: seeds NumPy's generator.

    Returns:
      The problem.

    Raises:
      ValueError: for arguments out of range.

    Example:
      >>> import jaxsp
      >>> problem = jaxsp.problems.quadratic(4, 3, L=2.0, mu=0.5, seed=0)
      >>> residual = jaxsp.metrics.residual(problem.mean_operator, problem.z_star)
      >>> bool(residual < 1e-5)
      True
    """
    required = "finite and above 0 (for mu = 0 use bilinear)"
    _arguments.check_number("mu", mu, lambda mu: mu > 0, required)
    _arguments.check_positive("L", L)
    if not mu <= L:
        _arguments.refuse("L", f"at least mu={mu!r}", L)
    return _affine(workers, dim, L, mu, heterogeneity, seed)


def definite_bilinear(
    workers: int,
    dim: int,
    *,
    L: float = 1_000.0,
    mu: float = 0.0,
    linear: float = 1_000.0,
    seed: int,
) -> Problem:
    r"""A bilinear game whose matrices are positive definite and unlike each other.

    $$\min_x \max_y \frac1M \sum_m x^\top A_m y + b_m^\top x + c_m^\top y
    + \tfrac\mu2 |x|^2 - \tfrac\mu2 |y|^2.$$

    Each $A_m = Q \Lambda Q^\top$ has a random orthogonal $Q$ of its own, one eigenvalue
    `L` and the others uniform on $[0, L]$; $b_m$ and $c_m$ are uniform on
    $[-\ell, \ell]^n$ with $\ell$ = `linear`. It is the game of two papers'
    experiments, which leave the spectrum open (uniform is our choice): on
    $[-1, 1]^n$ with 100 workers, `dim=100` and the defaults, where the solution lies
    inside; and with `mu` = `L` / 10⁵.

    Args:
      workers: M.
      dim: the dimension $n$ of `x` and of `y`.
      L: the largest eigenvalue of every $A_m$; the problem's `L` is
        $\sqrt{L^2 + \mu^2}$.
      mu: $\mu$, at least 0.
      linear: $\ell$, at least 0.
      seed: seeds NumPy's generator.

    Returns:
      The problem.

    Raises:
      ValueError: for arguments out of range.

    Example:
      >>> import jaxsp
      >>> problem = jaxsp.problems.definite_bilinear(4, 3, seed=0)
      >>> residual = jaxsp.metrics.residual(problem.mean_operator, problem.z_star)
      >>> bool(residual < 1e-2)  # of operators of size 1,000, in float32
      True

    References:
      Beznosikov, Samokhin, Gasnikov, Distributed Saddle-Point Problems: Lower Bounds,
      Near-Optimal and Robust Algorithms, 2020, arXiv 2010.13112.
      Beznosikov, Richtárik, Diskin, Ryabinin, Gasnikov, Distributed Methods with
      Compressed Communication for Solving Variational Inequalities, with Theoretical
      Guarantees, 2022, arXiv 2110.03313.
    """
    _arguments.check_workers("workers", workers)
    _arguments.check_count("dim", dim)
    _arguments.check_positive("L", L)
    _arguments.check_nonnegative("mu", mu)
    _arguments.check_nonnegative("linear", linear)
    rng = np.random.default_rng(_arguments.check_seed(seed))

    basis = np.linalg.qr(rng.normal(size=(workers, dim, dim)))[0]
    eigenvalues = rng.uniform(0, L, size=(workers, 1, dim))
    eigenvalues[..., 0] = L
    coupling = (basis * eigenvalues) @ basis.transpose(0, 2, 1)
    b, c = rng.uniform(-linear, linear, size=(2, workers, dim))
    A, one = coupling.mean(0), mu * np.eye(dim)
    z = np.linalg.solve(  # mu x + A y = -b,  mu y - A x = c
        np.block([[one, A], [-A, one]]), np.concatenate([-b.mean(0), c.mean(0)])
    )
    data = Affine(*map(jnp.asarray, (coupling, b, -c, np.full(workers, mu))))
    z_star = MinMax(jnp.asarray(z[:dim]), jnp.asarray(z[dim:]))
    return Problem(saddle(payoff), data, z_star, math.hypot(L, mu), mu)


def _affine(workers, dim, L, mu, heterogeneity, seed):
    _arguments.check_workers("workers", workers)
    _arguments.check_count("dim", dim)
    _arguments.check_positive("L", L)
    _arguments.check_nonnegative("heterogeneity", heterogeneity)
    rng = np.random.default_rng(_arguments.check_seed(seed))

    left, right = (np.linalg.qr(rng.normal(size=(dim, dim)))[0] for _ in range(2))
    common = left @ np.diag(np.linspace(0.4, 1.0, dim)) @ right
    own = rng.normal(size=(workers, dim, dim)) / math.sqrt(dim)
    own -= own.mean(0)  # the mean problem keeps its common part
    coupling = common + heterogeneity * own
    norm = np.linalg.norm(coupling, 2, axis=(1, 2)).max()
    coupling *= math.sqrt(L**2 - mu**2) / norm

    x, y = rng.normal(size=(2, dim))
    # The field at z* is heterogeneity times deviations with mean 0 and mean square 1.
    deviation = rng.normal(size=(workers, 2, dim))
    deviation -= deviation.mean(0)
    size = math.sqrt(np.mean(np.sum(deviation**2, axis=(1, 2))))
    deviation *= heterogeneity / size if size > 0 else 0.0
    p = deviation[:, 0] - (mu * x + coupling @ y)
    q = deviation[:, 1] - (mu * y - coupling.transpose(0, 2, 1) @ x)
    # z* solves the mean operator because the deviations cancel.
    data = Affine(*map(jnp.asarray, (coupling, p, q, np.full(workers, mu))))
    operator = saddle(payoff)
    return Problem(operator, data, MinMax(jnp.asarray(x), jnp.asarray(y)), L, mu)


def payoff(x, y, data):
    """The $f$ of `Affine`, for one worker's data."""
    return (
        data.mu / 2 * (x @ x - y @ y) + x @ data.coupling @ y + data.p @ x - data.q @ y
    )
