"""Step sizes of decentralized methods."""

import math
from typing import NamedTuple

import numpy.typing as npt

from jaxsp.theory.checks import lipschitz, real

__all__ = [
    "DecentralizedStep",
    "TimeVaryingStep",
    "optimal_decentralized",
    "optimal_time_varying",
]


class DecentralizedStep(NamedTuple):
    r"""What to give `jaxsp.methods.optimal_decentralized`.

    Attributes:
      learning_rate: $\eta$.
      dual_learning_rate: $\theta$.
      feedback: $\beta$.
      momentum: $\alpha$.
    """

    learning_rate: float
    dual_learning_rate: float
    feedback: float
    momentum: float


class TimeVaryingStep(NamedTuple):
    r"""What to give `jaxsp.methods.optimal_time_varying`.

    All but the first are those of `jaxsp.transforms.AcceleratedDualSteps`, in its
    order.

    Attributes:
      learning_rate: $\eta_z$.
      dual_learning_rate: $\eta_y$.
      consensus_learning_rate: $\eta_x$.
      gossip_learning_rate: $\theta$.
      momentum: $\alpha$.
      blend: $\tau$.
      regularization: $\nu$.
      dual_feedback: $\gamma$.
      feedback: $\beta$.
      memory: $\rho$.
    """

    learning_rate: float
    dual_learning_rate: float
    consensus_learning_rate: float
    gossip_learning_rate: float
    momentum: float
    blend: float
    regularization: float
    dual_feedback: float
    feedback: float
    memory: float


def optimal_decentralized(L: npt.ArrayLike, mu: float, chi: float) -> DecentralizedStep:
    r"""The optimal decentralized method on a fixed graph.

    $$\eta = \frac1{2 L s}, \qquad \theta = L s, \qquad \beta = \frac3{4 L s}, \qquad
    \alpha = 1, \qquad s = \max\Big\{1, \sqrt{\chi\mu/L}\Big\},$$

    with $L$ the largest $L_m$. Our constants, found by runs: on rings of 8 to 32
    workers, tori, a star, a path and a random graph, $L/\mu$ from 2 to 50, workers
    alike or not, they reached $10^{-8}$ within twice $\sqrt\chi (1 + L/\mu)
    \log(1/\varepsilon)$ exchanges; nothing is promised. The paper's, as public code
    has them, $\eta = 1/(3 L \sqrt\chi)$, $\theta = \min\{L^2/2\mu, L\sqrt\chi/3\}$,
    $\beta = \mu/L^2$ and $\alpha = 1 - \min\{1/(1 + 3 L\sqrt\chi/\mu), 1/2\chi\}$,
    took two to four times as many. On graphs that change half of $\theta$ has held.

    Args:
      L: the Lipschitz constants of the $F_m$: an array with one for each worker, or a
        number that bounds all.
      mu: the strong monotonicity constant of $F$, from 0 to $L$.
      chi: $\chi$, the topology's.

    Returns:
      The step sizes, the feedback and the momentum.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> from jaxsp import theory
      >>> theory.optimal_decentralized(2.0, 0.5, chi=36.0)[1:]
      (6.0, 0.125, 1.0)

    References:
      Kovalev, Beznosikov, Sadiev, Persiianov, Richtárik, Gasnikov, Optimal Algorithms
      for Decentralized Stochastic Variational Inequalities, 2022, arXiv 2202.02771.
    """
    largest = float(lipschitz(L).max())
    required = f"between 0 and the (largest) Lipschitz constant {largest:g}"
    mu = real("mu", mu, lambda m: 0 <= m <= largest * (1 + 1e-12), required)
    chi = real("chi", chi, lambda c: c >= 1, "at least 1")
    scaled = largest * max(1.0, math.sqrt(chi * mu / largest))
    return DecentralizedStep(1 / (2 * scaled), scaled, 3 / (4 * scaled), 1.0)


def optimal_time_varying(L: npt.ArrayLike, mu: float, chi: float) -> TimeVaryingStep:
    r"""The optimal decentralized method on graphs that change.

    $$\eta_z = \min\Big\{\frac{0.47}L, \frac1{\eta_y}\Big\}, \qquad
    \eta_y = 0.17\, L \sqrt\chi, \qquad \eta_x = \frac{L}{10\, \chi^{3/2}}, \qquad
    \theta = 1, \qquad \alpha = 0.15,$$

    $$\tau = \frac{0.08\, \mu}{L \chi^{3/4}}, \qquad \nu = 0.03\, \mu, \qquad
    \gamma = \frac{0.07}{\eta_y}, \qquad \beta = \frac{0.18}{\eta_x}, \qquad
    \rho = 1 - \frac1{20 \chi},$$

    with $L$ the largest $L_m$. Our constants, found by runs on alternating and random
    rings, stars, paths and random graphs of 5 to 16 workers, $L/\mu$ from 2 to 33, with
    $\chi$ up to 40: they reached $10^{-8}$ within 4 to 30 times
    $(L/\mu) \log(1/\varepsilon)$ iterations, with $L/\mu = 2$ on the hardest of these
    within 60 times; nothing is promised. The paper's, as
    public code has them, are $\theta = \alpha = 1/2$, $\nu = \mu/4$,
    $\tau = \mu/(32 L \chi)$, $\gamma = \mu/(16 L^2)$, $\beta = 5\gamma$ and steps to
    match, with which theory bounds the iterations by
    $O(\chi (L/\mu) \log(1/\varepsilon))$. $\rho$ is ours; it is 1 there.

    Args:
      L: the Lipschitz constants of the $F_m$: an array with one for each worker, or a
        number that bounds all.
      mu: the strong monotonicity constant of the $F_m$, above 0, at most $L$.
      chi: $\chi$ of the worst iteration, whose rounds multiply the squared distance
        from consensus by at most $1 - 1/\chi$. For connected members and one round
        `1 / (1 - max(w.lambda2 for w in topology.members) ** 2)`. A topology's own
        `chi` is that of a mean, or of a fixed graph, and may be too small.

    Returns:
      The learning rate, and the constants of `jaxsp.transforms.AcceleratedDualSteps`.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> from jaxsp import theory
      >>> step = theory.optimal_time_varying(2.0, 0.5, chi=4.0)
      >>> round(step.learning_rate, 3), round(step.dual_learning_rate, 3)
      (0.235, 0.68)

    References:
      As `optimal_decentralized` (Algorithm 2).
    """
    largest = float(lipschitz(L).max())
    required = f"above 0, at most the (largest) Lipschitz constant {largest:g}"
    mu = real("mu", mu, lambda m: 0 < m <= largest * (1 + 1e-12), required)
    chi = real("chi", chi, lambda c: c >= 1, "at least 1")
    dual = 0.17 * largest * math.sqrt(chi)
    consensus = largest / (10 * chi**1.5)
    return TimeVaryingStep(
        learning_rate=min(0.47 / largest, 1 / dual),
        dual_learning_rate=dual,
        consensus_learning_rate=consensus,
        gossip_learning_rate=1.0,
        momentum=0.15,
        blend=0.08 * mu / (largest * chi**0.75),
        regularization=0.03 * mu,
        dual_feedback=0.07 / dual,
        feedback=0.18 / consensus,
        memory=1 - 1 / (20 * chi),
    )
