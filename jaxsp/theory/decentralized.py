"""Step sizes of decentralized methods."""

import math
from typing import NamedTuple

import numpy.typing as npt

from jaxsp.theory.checks import lipschitz, real

__all__ = ["DecentralizedStep", "optimal_decentralized"]


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
