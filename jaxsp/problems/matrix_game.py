r"""A matrix game with an equilibrium that is known."""

import math

import jax.numpy as jnp
import numpy as np

from jaxsp import _arguments, projections
from jaxsp.operators import MinMax, saddle
from jaxsp.problems.problem import Problem


def matrix_game(
    workers: int,
    rows: int,
    columns: int,
    *,
    L: float = 1.0,
    heterogeneity: float = 0.0,
    support: int | None = None,
    seed: int,
) -> Problem:
    r"""The game $\min_{x \in \Delta} \max_{y \in \Delta} \frac1M \sum_m x^\top A_m y$.

    $\Delta$ are the probability simplices; `data` are the payoffs $A_m$, of shape
    `[M, rows, columns]`, and the mean payoff is $A$ = `data.mean(0)`. It is drawn
    around its equilibrium: $x^*$ and $y^*$ are positive on their first `support`
    entries, $A y^* = v$ on those rows and $v$ plus something positive on the others,
    $A^\top x^* = v$ on those columns and $v$ minus something positive on the others.
    The equilibrium is the only one. Outside of it `residual` is no measure, because
    $F(z^*) \ne 0$: use `jaxsp.metrics.duality_gap(A, z)`.

    Args:
      workers: M.
      rows: the dimension of `x`.
      columns: the dimension of `y`.
      L: the largest $\|A_m\|_2$.
      heterogeneity: how far the workers' payoffs differ, next to their mean; 0 makes
        them identical.
      support: the strategies that each player uses; None for as many as possible, the
        smaller of `rows` and `columns`.
      seed: seeds NumPy's generator.

    Returns:
      The problem, with `mu=0` and `project`.

    Raises:
      ValueError: for arguments out of range.

    Example:
      >>> import jaxsp
      >>> game = jaxsp.problems.matrix_game(4, 3, 5, seed=0)
      >>> gap = jaxsp.metrics.duality_gap(game.data.mean(0), game.z_star)
      >>> bool(abs(gap) < 1e-6)
      True
    """
    workers = _arguments.check_count("workers", workers)
    rows = _arguments.check_count("rows", rows)
    columns = _arguments.check_count("columns", columns)
    _arguments.check_nonnegative("heterogeneity", heterogeneity)
    _arguments.check_positive("L", L)
    most = min(rows, columns)
    k = _arguments.check_count(
        "support", most if support is None else support, maximum=most
    )
    rng = np.random.default_rng(_arguments.check_seed(seed))

    x, y = np.zeros(rows), np.zeros(columns)
    for strategy in (x, y):
        strategy[:k] = rng.uniform(0.5, 1.5, size=k)
        strategy /= strategy.sum()
    size = 1 / math.sqrt(max(rows, columns))
    payoff = size * rng.normal(size=(rows, columns))
    # On the support neither player gains by moving: both means are 0 there. Of the
    # moves that keep the sum 1, none changes the payoffs by less than 0.4 of it.
    left, right = (_moves(rng, k) for _ in range(2))
    core = left @ np.diag(np.linspace(1.0, 0.4, k - 1)) @ right.T
    core -= x[:k] @ core
    payoff[:k, :k] = core - (core @ y[:k])[:, None]
    # Rows outside of it cost more, columns pay less.
    more, less = (size * rng.uniform(0.5, 1.5, n - k) for n in (rows, columns))
    payoff[k:] += (more - payoff[k:] @ y)[:, None]
    payoff[:, k:] -= less + x @ payoff[:, k:]
    payoff += rng.uniform(-0.5, 0.5) / math.sqrt(rows * columns)  # v

    own = size * rng.normal(size=(workers, rows, columns))
    payoffs = payoff + heterogeneity * (own - own.mean(0))
    payoffs *= L / np.linalg.norm(payoffs, 2, axis=(1, 2)).max()
    operator = saddle(lambda x, y, payoff: x @ payoff @ y)
    z_star = MinMax(jnp.asarray(x), jnp.asarray(y))
    return Problem(
        operator, jnp.asarray(payoffs), z_star, L, 0.0, project=projections.simplex
    )


def _moves(rng, k):
    """A random orthonormal basis of the vectors of k entries with sum 0, as columns."""
    columns = np.column_stack([np.ones(k), rng.normal(size=(k, k - 1))])
    return np.linalg.qr(columns)[0][:, 1:]
