"""Step sizes of extragradient and of MASHA."""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from jaxsp import _arguments
from jaxsp.theory.checks import (
    at_least_1,
    lipschitz,
    per_worker,
    real,
    refresh_probability,
    strong_monotonicity,
)

__all__ = ["StepSize", "extra_step", "masha1", "masha2", "pp_masha1"]


class StepSize(NamedTuple):
    r"""What to give a method, and what it then promises.

    Attributes:
      learning_rate: the step size $\gamma$.
      refresh: the probability $1 - \tau$ of a refresh after an iteration.
      contraction: the factor $\rho$ of the promise $\mathbb E V^+ \le \rho V$ in every
        iteration; None where nothing is promised.
    """

    learning_rate: float
    refresh: float
    contraction: float | None

    def times(self, factor: float) -> "StepSize":
        """The step size times a factor.

        Args:
          factor: above 0.

        Returns:
          The larger step, of which nothing is promised, or the smaller, whose
          contraction is as much closer to 1.

        Raises:
          ValueError: the factor is out of range.

        Example:
          >>> from jaxsp import theory
          >>> theory.extra_step(2.0, 0.4).times(0.5)
          StepSize(learning_rate=0.0625, refresh=1.0, contraction=0.975)
        """
        factor = real("factor", factor, lambda f: f > 0, "above 0")
        rho = None
        if self.contraction is not None and factor <= 1:
            rho = 1 - factor * (1 - self.contraction)
        return StepSize(factor * self.learning_rate, self.refresh, rho)


def extra_step(L: npt.ArrayLike, mu: float) -> StepSize:
    r"""Uncompressed extragradient.

    $$\gamma = \frac1{4L}, \qquad \rho = 1 - \gamma\mu, \qquad V = |z - z^*|^2,$$

    with $L$ the mean of the $L_m$. Proved, for any $\gamma$ with
    $(\gamma L)^2 + 2\gamma\mu \le 1$:

    $$|z^+ - z^*|^2 \le (1 - \gamma\mu)|z - z^*|^2
    - (1 - \gamma^2 L^2 - 2\gamma\mu)|z^{1/2} - z|^2.$$

    Args:
      L: the Lipschitz constant of $F$, or those of all $F_m$.
      mu: the strong monotonicity constant, $0 \le \mu \le L$.

    Returns:
      The step size and contraction; `refresh` is 1, every exchange is uncompressed.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> from jaxsp import theory
      >>> theory.extra_step(2.0, 0.4)
      StepSize(learning_rate=0.125, refresh=1.0, contraction=0.95)
    """
    constants = lipschitz(L)
    mu = strong_monotonicity(mu, constants)
    gamma = 1 / (4 * float(constants.mean()))
    return StepSize(gamma, 1.0, 1 - gamma * mu)


def masha1(
    L: npt.ArrayLike,
    mu: float,
    q: npt.ArrayLike,
    q_server: float = 1.0,
    *,
    workers: int | None = None,
    batch_share: float = 1.0,
    refresh: float | None = None,
) -> StepSize:
    r"""MASHA1 and VR-MASHA1.

    $$\gamma = \min\Big\{\frac{1-\tau}{2\mu}, \frac1C\sqrt{\frac{1-\tau}2}\Big\},
    \qquad C^2 = \frac{q_s}{M^2} \sum_m \big(q_m L_m^2 + (M - 1) \tilde L^2\big),$$

    $$\rho = 1 - \frac{\gamma\mu}2, \qquad V = \tau|z - z^*|^2 + |w - z^*|^2.$$

    A theorem for $\tau \ge 1/2$ and compressors that are independent across workers,
    proved again for this library; the paper's own constants may differ. Without
    compression ($q = 1$) $C = \tilde L$. The masks of Perm-K are not independent: give
    `q=1` and `refresh=1/workers`, as then
    $\mathbb E|\frac1M \sum_m Q_m(v_m)|^2 = \frac1M \sum_m |v_m|^2$, so that
    $C = \tilde L$ is right. Larger steps have been seen to converge too: 4 times as
    large at $\mu/L = 0.1$, twice at $\mu/L = 0.01$, where 3 times diverged.

    In VR-MASHA1 each $F_m$ is a mean of $r$ terms. The theorem holds with $L_m^2$ the
    mean square of their Lipschitz constants, as
    $\mathbb E|F_m^S(z) - F_m^S(w)|^2 \le L_m^2|z - w|^2$ for a minibatch $S$ that is
    drawn uniformly, with or without replacement, and independently of the other
    workers. So its size $b$ changes the refresh probability alone. Our constants.

    Args:
      L: the Lipschitz constants of the $F_m$: an array with one for each worker, or the
        number that all share.
      mu: the strong monotonicity constant of $F$, from 0 to the mean of the $L_m$.
      q: the constants $q_m \ge 1$ of the workers' compressors, as for `L`; Rand-K with
        $k$ of $d$ coordinates has $d/k$.
      q_server: $q_s$ of the server's compressor; 1 where it sends uncompressed.
      workers: $M$; needed where both `L` and `q` are numbers.
      batch_share: $b/r$ of VR-MASHA1.
      refresh: $1 - \tau$, at most 1/2. None: the smallest of 1/2, $b/r$ and 1 over the
        mean of the $q_m$, with which a Rand-K worker sends as many numbers in refreshes
        as in differences. Quantizers have $q$ near 1 and save bits by other means: give
        them their share of the 32 bits.

    Returns:
      The step size, the refresh probability and the contraction.

    Raises:
      ValueError: an argument is out of range, or the lengths of arrays differ.

    Example:
      >>> from jaxsp import theory
      >>> theory.masha1([1.0, 1.0], 0.5, q=1.0, refresh=0.5)
      StepSize(learning_rate=0.5, refresh=0.5, contraction=0.875)
    """
    constants, q = per_worker(L, q, workers)
    mu = strong_monotonicity(mu, constants)
    tau1 = refresh_probability(refresh, 1 / float(q.mean()), batch_share)
    C2 = at_least_1("q_server", q_server) * _second_moment(constants, q)
    return _masha1_step(C2, mu, tau1)


def pp_masha1(
    L: npt.ArrayLike,
    mu: float,
    q: npt.ArrayLike,
    q_server: float = 1.0,
    *,
    participants: int,
    workers: int | None = None,
    refresh: float | None = None,
) -> StepSize:
    r"""PP-MASHA1: $b$ of $M$ workers are drawn with replacement in every iteration.

    As `masha1`, with

    $$C^2 = \frac{q_s}b \frac1M \sum_m q_m L_m^2 + \Big(1 - \frac1b\Big) C_M^2,$$

    where $C_M$ is the $C$ of `masha1`: its theorem with the second moment of the mean
    of $b$ messages. Two draws of one worker may be one message. Our constants.

    Args:
      L: as for `masha1`.
      mu: the strong monotonicity constant of $F$.
      q: as for `masha1`.
      q_server: as for `masha1`.
      participants: $b$, the workers drawn in an iteration, from 1 to $M$.
      workers: as for `masha1`.
      refresh: $1 - \tau$, at most 1/2. None: the smaller of 1/2 and $b / M$ over the
        mean of the $q_m$; all workers take part in a refresh.

    Returns:
      The step size, the refresh probability and the contraction.

    Raises:
      ValueError: an argument is out of range, or the lengths of arrays differ.
    """
    constants, q = per_worker(L, q, workers)
    mu = strong_monotonicity(mu, constants)
    if _arguments.check_count("participants", participants) > constants.size:
        raise ValueError(
            f"participants must be at most workers = {constants.size}, got "
            f"{participants}."
        )
    share = participants / constants.size
    tau1 = refresh_probability(refresh, share / float(q.mean()))
    alone = float(np.mean(q * constants**2))
    C2 = alone / participants + (1 - 1 / participants) * _second_moment(constants, q)
    return _masha1_step(at_least_1("q_server", q_server) * C2, mu, tau1)


def masha2(
    L: npt.ArrayLike,
    mu: float,
    delta: float,
    delta_server: float = 1.0,
    *,
    batch_share: float = 1.0,
    refresh: float | None = None,
) -> StepSize:
    r"""MASHA2 and VR-MASHA2, for contractive compressors.

    $$\gamma = \min\Big\{\frac{1-\tau}{2\mu},
    \frac{\sqrt{1-\tau}}{\delta\, \delta_s \tilde L}\Big\}.$$

    Our constants, a safe start and not the paper's: nothing is promised, so
    `contraction` is None. With Top-K ($\delta = d/k$) steps 4 and 8 times as large have
    been seen to converge on every game tried. Where $\delta$ is not the worst case but
    what a compressor does on typical vectors ($\pi/2$ for scaled sign) even 4 times as
    large diverges.

    Args:
      L: the Lipschitz constants of the $F_m$, as for `masha1`.
      mu: the strong monotonicity constant of $F$.
      delta: $\delta \ge 1$ of the workers' compressor; $d/k$ for Top-K with $k$ of $d$
        coordinates.
      delta_server: $\delta_s$ of the server's; 1 where it sends uncompressed.
      batch_share: $b/r$ of VR-MASHA2, as for `masha1`.
      refresh: $1 - \tau$, at most 1/2. None: the smallest of 1/2, $b/r$ and $1/\delta$.

    Returns:
      The step size and the refresh probability; no contraction.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> from jaxsp import theory
      >>> theory.masha2(2.0, 0.01, delta=4.0)
      StepSize(learning_rate=0.0625, refresh=0.25, contraction=None)
    """
    constants = lipschitz(L)
    mu = strong_monotonicity(mu, constants)
    delta = at_least_1("delta", delta)
    tau1 = refresh_probability(refresh, 1 / delta, batch_share)
    both = delta * at_least_1("delta_server", delta_server)
    gamma = math.sqrt(tau1) / (both * math.sqrt(float(np.mean(constants**2))))
    return StepSize(min(gamma, _limit(tau1, mu)), tau1, None)


def _second_moment(L: np.ndarray, q: np.ndarray) -> float:
    r"""$\frac1{M^2} \sum_m (q_m L_m^2 + (M - 1) \tilde L^2)$: $C^2$ for $q_s = 1$."""
    M = L.size
    return float(np.sum(q * L**2 + (M - 1) * np.mean(L**2))) / M**2


def _masha1_step(C2: float, mu: float, tau1: float) -> StepSize:
    """The theorem of MASHA1 for a second-moment constant $C^2$."""
    gamma = min(math.sqrt(tau1 / 2 / C2), _limit(tau1, mu))
    return StepSize(gamma, tau1, 1 - gamma * mu / 2)


def _limit(tau1: float, mu: float) -> float:
    r"""$(1 - \tau)/2\mu$."""
    return tau1 / (2 * mu) if mu > 0 else math.inf
