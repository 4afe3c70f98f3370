"""Step sizes of the methods that send what like workers differ in."""

import math
from typing import NamedTuple

import numpy.typing as npt

from jaxsp import _arguments
from jaxsp.theory.checks import lipschitz, real, strong_monotonicity

__all__ = ["OptimisticStep", "ServerStep", "optimistic_masha", "three_pillars"]


class OptimisticStep(NamedTuple):
    r"""What to give `jaxsp.methods.optimistic_masha`.

    Attributes:
      learning_rate: $\eta$.
      refresh: $\gamma$.
      momentum: $\alpha$.
    """

    learning_rate: float
    refresh: float
    momentum: float


class ServerStep(NamedTuple):
    r"""What to give `jaxsp.methods.three_pillars`.

    Attributes:
      learning_rate: $\gamma$.
      refresh: $\tau$.
      local_steps: $H$.
      local_learning_rate: $\eta$.
    """

    learning_rate: float
    refresh: float
    local_steps: int
    local_learning_rate: float


def optimistic_masha(
    L: npt.ArrayLike,
    mu: float,
    delta: float,
    *,
    workers: int | None = None,
    refresh: float | None = None,
) -> OptimisticStep:
    r"""Optimistic MASHA with `perm_k`, for workers that differ by $\delta$.

    $$\eta = \min\Big\{\frac1{2L}, \frac{\sqrt\gamma}{2\delta},
    \frac\gamma{4\mu}\Big\}, \qquad \alpha = \max\Big\{1 - \frac{\eta\mu}2,
    1 - \frac\gamma4\Big\},$$

    with $L$ the mean of the $L_m$, and $\gamma = 1/M$. The listing is the paper's, the
    constants were found by runs on min-max games with $\delta$ from 0.01 to 1 times
    $L$: nothing is promised. $\eta = 1/L$ diverges.

    Args:
      L: the Lipschitz constant of $F$, or those of all $F_m$.
      mu: the strong monotonicity constant of $F$, $0 \le \mu \le L$.
      delta: $\delta$, a Lipschitz constant of every $F_m - F$; at least 0.
      workers: $M$; needed where `L` is a number and there is no `refresh`.
      refresh: $\gamma$; None is $1/M$, with which the messages of `perm_k` cost as much
        as the snapshots.

    Returns:
      The step size, the probability of a new snapshot, and the momentum.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> from jaxsp import theory
      >>> theory.optimistic_masha(2.0, 0.1, 0.2, workers=4)
      OptimisticStep(learning_rate=0.25, refresh=0.25, momentum=0.9875)

    References:
      Beznosikov, Gasnikov, Compression and Data Similarity: Combination of Two
      Techniques for Communication-Efficient Solving of Distributed Variational
      Inequalities, 2022, arXiv 2206.09446.
    """
    largest, mu, delta, gamma = _constants(L, mu, delta, workers, refresh)
    eta = min(
        1 / (2 * largest),
        math.sqrt(gamma) / (2 * delta) if delta else math.inf,
        gamma / (4 * mu) if mu else math.inf,
    )
    return OptimisticStep(eta, gamma, max(1 - eta * mu / 2, 1 - gamma / 4))


def three_pillars(
    L: npt.ArrayLike,
    mu: float,
    delta: float,
    *,
    workers: int | None = None,
    refresh: float | None = None,
    local_steps: int | None = None,
) -> ServerStep:
    r"""Three Pillars with `perm_k`, for workers that differ by $\delta$.

    $$\gamma = \min\Big\{\frac\tau\mu, \frac{\sqrt\tau}{2\delta}, \frac HL\Big\},
    \qquad \eta = \frac1{2 (L + 1/\gamma)}, \qquad
    H = \Big\lceil \frac{L \sqrt\tau}\delta \Big\rceil,$$

    with $L$ the mean of the $L_m$, and $\tau = 1/M$. The listing is the paper's, the
    constants were found by runs on min-max games: nothing is promised. Where $\delta$
    is as large as $L$ one local step is left, and nothing to gain.

    Args:
      L: the Lipschitz constant of $F$, or those of all $F_m$.
      mu: the strong monotonicity constant of $F$, $0 \le \mu \le L$.
      delta: $\delta$, a Lipschitz constant of every $F_m - F$; above 0.
      workers: $M$; needed where `L` is a number and there is no `refresh`.
      refresh: $\tau$; None is $1/M$, with which the messages of `perm_k` cost as much
        as the snapshots.
      local_steps: $H$; None is the above.

    Returns:
      The step sizes of an iteration and of a local step, the probability of a new
      snapshot, and the number of local steps.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> from jaxsp import theory
      >>> step = theory.three_pillars(2.0, 0.1, 0.25, workers=4)
      >>> step.learning_rate, step.refresh, step.local_steps
      (1.0, 0.25, 4)

    References:
      Beznosikov, Takáč, Gasnikov, Similarity, Compression and Local Steps: Three
      Pillars of Efficient Communications for Distributed Variational Inequalities,
      2023, arXiv 2302.07615.
    """
    largest, mu, delta, tau = _constants(L, mu, delta, workers, refresh)
    if local_steps is None:
        delta = real("delta", delta, lambda d: d > 0, "above 0 without local_steps")
        local_steps = math.ceil(largest * math.sqrt(tau) / delta)
    H = _arguments.check_count("local_steps", local_steps)
    gamma = min(
        tau / mu if mu else math.inf,
        math.sqrt(tau) / (2 * delta) if delta else math.inf,
        H / largest,
    )
    return ServerStep(gamma, tau, H, 1 / (2 * (largest + 1 / gamma)))


def _constants(L, mu, delta, workers, refresh):
    r"""The mean of the $L_m$, $\mu$, $\delta$, and the probability, or $1/M$."""
    constants = lipschitz(L)
    mu = strong_monotonicity(mu, constants)
    delta = real("delta", delta, lambda d: d >= 0, "at least 0")
    if workers is not None:
        workers = _arguments.check_count("workers", workers)
    elif constants.size > 1:
        workers = constants.size
    if refresh is None:
        if workers is None:
            raise ValueError(
                "workers must be given where L is a number: pass workers=M, or L as an "
                "array of one constant for each worker, or refresh."
            )
        refresh = 1 / workers
    required = "above 0 and at most 1"
    refresh = real("refresh", refresh, lambda p: 0 < p <= 1, required)
    return float(constants.mean()), mu, delta, refresh
