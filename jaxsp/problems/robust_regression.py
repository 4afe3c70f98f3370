r"""Linear regression against an adversary who shifts the features."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsp import _arguments, projections
from jaxsp.operators import MinMax, saddle
from jaxsp.problems.problem import Problem

_MAX_ITERATIONS = 200_000


class Samples(NamedTuple):
    """The samples of one worker, or stacked.

    Attributes:
      features: of shape `[..., samples, dim]`.
      targets: of shape `[..., samples]`.
    """

    features: jax.Array
    targets: jax.Array


def robust_regression(
    workers: int,
    samples: int,
    dim: int,
    *,
    radius: float = 0.5,
    bound: float = 2.0,
    lam: float = 0.1,
    beta: float = 5.0,
    noise: float = 0.1,
    heterogeneity: float = 0.0,
    seed: int,
) -> Problem:
    r"""Robust linear regression, with one shift of the features for all samples.

    $$\min_{|w| \le D} \max_{|r| \le R} \frac1M \sum_m \frac1n \sum_i
    \tfrac12 \big(w^\top (a_{mi} + r) - b_{mi}\big)^2
    + \tfrac\lambda2 |w|^2 - \tfrac\beta2 |r|^2$$

    for workers with $n$ samples each; `x` is $w$ and `y` is $r$. The Hessian in $r$ is
    $w w^\top - \beta I$, so the game is strongly concave there only while
    $|w|^2 < \beta$: this is what the bound $D$ is for, and $D^2 < \beta$ is required.
    Features and a true $w$ of norm 1 are Gaussian, and the targets have a constant that
    no $w$ explains, which gives the adversary something to gain.

    Every $F_m$ is $\mu$-strongly monotone on the feasible set with
    $\mu = \min(\lambda, \beta - D^2)$. There also, with $\bar a, \bar b$ the means and
    $X$ the features of worker $m$, its Jacobian has diagonal blocks bounded by
    $h = (|X|_2 / \sqrt n + R)^2 + \lambda$ and by $\beta$, and opposite off-diagonal
    ones bounded by $c = |\bar b| + 2 D (|\bar a| + R)$, so that the norm of the matrix
    $(h, c; c, \beta)$ is a Lipschitz constant; `L` is the largest, an upper bound that
    is not attained.

    The solution is computed in float64 by projected extragradient with backtracking,
    until $|z - P(z - \gamma F(z))| \le 10^{-13} \gamma$.

    Args:
      workers: M.
      samples: $n$, of each worker.
      dim: the dimension of $w$ and of $r$.
      radius: $R$, above 0.
      bound: $D$, above 0 and with $D^2 < \beta$.
      lam: $\lambda$, above 0.
      beta: $\beta$.
      noise: the standard deviation of the targets' noise.
      heterogeneity: the size of the workers' own shifts of their features; 0 draws all
        samples alike.
      seed: seeds NumPy's generator.

    Returns:
      The problem, with `project`.

    Raises:
      ValueError: for arguments out of range, or so badly conditioned that the solution
        is not found.

    Example:
      >>> import jaxsp
      >>> problem = jaxsp.problems.robust_regression(4, 20, 3, seed=0)
      >>> z = problem.z_star
      >>> field = problem.mean_operator(z)
      >>> back = problem.project(jaxsp.MinMax(z.x - field.x, z.y - field.y))
      >>> bool(jaxsp.metrics.distance(back, z) < 1e-5)
      True

    References:
      Beznosikov, Richtárik, Diskin, Ryabinin, Gasnikov, Distributed Methods with
      Compressed Communication for Solving Variational Inequalities, with Theoretical
      Guarantees, 2022, arXiv 2110.03313.
    """
    workers = _arguments.check_count("workers", workers)
    samples = _arguments.check_count("samples", samples)
    dim = _arguments.check_count("dim", dim)
    for name, value in dict(radius=radius, bound=bound, lam=lam, beta=beta).items():
        _arguments.check_positive(name, value)
    _arguments.check_nonnegative("noise", noise)
    _arguments.check_nonnegative("heterogeneity", heterogeneity)
    if not bound**2 < beta:
        raise ValueError(
            f"beta must be above bound ** 2 = {bound**2}, so that the game is concave "
            f"in the shift, got {beta!r}: make beta larger or bound smaller."
        )
    rng = np.random.default_rng(_arguments.check_seed(seed))

    true = rng.normal(size=dim)
    true /= np.linalg.norm(true)
    own = rng.normal(size=(workers, 1, dim)) / math.sqrt(dim)
    features = rng.normal(size=(workers, samples, dim))
    features += heterogeneity * (own - own.mean(0))
    targets = features @ true + 1.0 + noise * rng.normal(size=(workers, samples))

    def loss(w, r, data):
        residual = (data.features + r[None]) @ w - data.targets
        fit = 0.5 * jnp.mean(jnp.square(residual))
        return fit + lam / 2 * (w @ w) - beta / 2 * (r @ r)

    def project(z):
        return MinMax(projections.ball(z.x, bound), projections.ball(z.y, radius))

    lipschitz = max(
        _lipschitz(X, b, radius, bound, lam, beta)
        for X, b in zip(features, targets, strict=True)
    )
    w, r = _solve(
        features.reshape(-1, dim), targets.ravel(), radius, bound, lam, beta, lipschitz
    )
    return Problem(
        saddle(loss),
        Samples(jnp.asarray(features), jnp.asarray(targets)),
        MinMax(jnp.asarray(w), jnp.asarray(r)),
        lipschitz,
        min(lam, beta - bound**2),
        project,
    )


def _lipschitz(X, b, radius, bound, lam, beta):
    h = (np.linalg.norm(X, 2) / math.sqrt(len(X)) + radius) ** 2 + lam
    # ∇ᵣ∇_w f = ē I + w (ā + r)ᵀ with the mean error ē = wᵀ(ā + r) - b̄.
    c = abs(b.mean()) + 2 * bound * (np.linalg.norm(X.mean(0)) + radius)
    return float(np.linalg.norm([[h, c], [c, beta]], 2))


def _solve(X, b, radius, bound, lam, beta, lipschitz):
    """The solution for all samples, from their moments."""
    covariance, correlation = X.T @ X / len(X), X.T @ b / len(X)
    mean, target = X.mean(0), b.mean()

    def operator(z):
        w, r = z
        error, shift = w @ mean - target, w @ r
        grad_w = covariance @ w - correlation + (error + shift) * r + shift * mean
        return np.stack([grad_w + lam * w, beta * r - (error + shift) * w])

    def project(z):
        norms = np.linalg.norm(z, axis=1)
        return z * np.minimum(1, [bound, radius] / np.maximum(norms, 1e-300))[:, None]

    z, step = np.zeros((2, X.shape[1])), 1 / lipschitz
    for _ in range(_MAX_ITERATIONS):
        field = operator(z)
        while True:
            half = project(z - step * field)
            half_field, moved = operator(half), np.linalg.norm(half - z)
            if step * np.linalg.norm(half_field - field) <= 0.7 * moved:
                break
            step /= 2
        if moved <= 1e-13 * step:
            return z
        z, step = project(z - step * half_field), 1.1 * step
    raise ValueError(
        f"lam={lam!r} and beta={beta!r} leave the problem too badly conditioned, with "
        f"L / mu = {lipschitz / min(lam, beta - bound**2):.0f}: make them larger."
    )
