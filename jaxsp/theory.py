"""Step sizes, refresh probabilities and contraction factors from a game's constants.

Notation: worker m has an operator F_m with Lipschitz constant L_m, F = (1/M) Σ F_m is
μ-strongly monotone (μ = 0: monotone), L̃² = (1/M) Σ L_m², and worker m's compressor
is unbiased with E|Q_m(v)|² ≤ q_m |v|², or contractive with
E|C(v) - v|² ≤ (1 - 1/δ)|v|². A refresh is an exchange of uncompressed operators.

Each docstring says whether its constants are proved, follow from a proved bound, or are
this library's choice.

Example:
  >>> from jaxsp import theory
  >>> theory.masha1(1.0, 0.1, q=10.0, workers=40)
  Theory(learning_rate=0.20203..., refresh=0.1, contraction=0.98989...)

References:
  Beznosikov, Richtárik, Diskin, Ryabinin, Gasnikov, *Distributed methods with
  compressed communication for solving variational inequalities, with theoretical
  guarantees*, NeurIPS 2022, arXiv 2110.03313.
"""

import math
import numbers
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = [
    "Theory",
    "extra_step",
    "masha1",
    "masha2",
    "pp_masha1",
    "vr_masha1",
    "vr_masha2",
]


class Theory(NamedTuple):
    """What to give a method, and what it then promises.

    Attributes:
      learning_rate: step size γ.
      refresh: probability 1 - τ of a refresh after an iteration.
      contraction: factor ρ of the promise E V⁺ ≤ ρ V in every iteration; None where
        nothing is promised.
    """

    learning_rate: float
    refresh: float
    contraction: float | None


def extra_step(L: npt.ArrayLike, mu: float, *, multiplier: float = 1.0) -> Theory:
    """Uncompressed extragradient: γ = 1/(4L), ρ = 1 - γμ.

    V = |z - z*|², and L is the mean of the L_m. Proved, for any γ with
    (γL)² + 2γμ ≤ 1:

        |z⁺ - z*|² ≤ (1 - γμ)|z - z*|² - (1 - γ²L² - 2γμ)|z½ - z|²

    Args:
      L: Lipschitz constant of F, or those of all F_m.
      mu: strong monotonicity constant, 0 ≤ μ ≤ L.
      multiplier: factor on the step size; above 1 nothing is promised.

    Returns:
      The step size and contraction; `refresh` is 1, every exchange is uncompressed.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> from jaxsp import theory
      >>> theory.extra_step(2.0, 0.4)
      Theory(learning_rate=0.125, refresh=1.0, contraction=0.95)
    """
    constants = _lipschitz(L)
    mu = _strong_monotonicity(mu, constants)
    gamma = 1 / (4 * float(constants.mean()))
    return _theory(gamma, 1.0, mu, _positive("multiplier", multiplier))


def masha1(
    L: npt.ArrayLike,
    mu: float,
    q: npt.ArrayLike,
    q_server: float = 1.0,
    *,
    workers: int | None = None,
    refresh: float | None = None,
    multiplier: float = 1.0,
) -> Theory:
    """MASHA1: γ = min{(1-τ)/2μ, √((1-τ)/2)/C}, ρ = 1 - γμ/2.

        C² = (q_s/M²) Σ_m (q_m L_m² + (M - 1) L̃²)
        V = τ|z - z*|² + |w - z*|²

    A theorem for τ ≥ 1/2 and compressors independent across workers, proved again for
    this library; the paper's own constants may differ. Without compression (q = 1)
    C = L̃. For Perm-K, whose masks are not independent, give q = 1 and
    refresh = 1/workers: E|(1/M) Σ Q_m(v_m)|² = (1/M) Σ |v_m|², so C = L̃ is right.

    Args:
      L: Lipschitz constants of the F_m: an array with one for each worker, or the
        number all share.
      mu: strong monotonicity constant of F, 0 ≤ μ ≤ mean L.
      q: second-moment constants ≥ 1 of the workers' compressors, as for `L`; Rand-K
        with k of d coordinates has d/k.
      q_server: that of the server's compressor; 1 where it sends uncompressed.
      workers: M; needed where both `L` and `q` are numbers.
      refresh: 1 - τ, at most 1/2. None: min{1/mean q, 1/2}, with which a Rand-K worker
        sends as many numbers in refreshes as in differences. Quantizers have q near 1
        and save bits by other means: give them their share of the 32 bits.
      multiplier: factor on the step size. Above 1 nothing is promised: 4 has been seen
        to hold at μ/L = 0.1, 2 at μ/L = 0.01, where 3 diverged.

    Returns:
      Step size, refresh probability and contraction.

    Raises:
      ValueError: an argument is out of range, or the lengths of arrays differ.

    Example:
      >>> from jaxsp import theory
      >>> theory.masha1([1.0, 1.0], 0.5, q=1.0, refresh=0.5)
      Theory(learning_rate=0.5, refresh=0.5, contraction=0.875)
    """
    constants, q = _per_worker(L, q, workers)
    mu = _strong_monotonicity(mu, constants)
    balanced = min(1 / float(q.mean()), 0.5)
    tau1 = balanced if refresh is None else _refresh(refresh)
    C2 = _at_least_1("q_server", q_server) * _second_moment(constants, q)
    return _theory_masha1(C2, mu, tau1, multiplier)


def vr_masha1(
    L: npt.ArrayLike,
    mu: float,
    q: npt.ArrayLike,
    q_server: float = 1.0,
    *,
    batch: int,
    samples: int,
    workers: int | None = None,
    refresh: float | None = None,
    multiplier: float = 1.0,
) -> Theory:
    """VR-MASHA1, F_m a mean of r terms: MASHA1 with L_m² = (1/r) Σ_i L_mi².

    The theorem of `masha1` carries over, as E|F_m^S(z) - F_m^S(w)|² ≤ L_m²|z - w|² for
    a minibatch S drawn uniformly, with or without replacement, and independently of
    the other workers. The batch size therefore changes the refresh probability only.
    Our constants.

    Args:
      L: root mean square of the Lipschitz constants of a worker's terms: an array
        with one for each worker, or the number all share.
      mu: strong monotonicity constant of F.
      q: as for `masha1`.
      q_server: as for `masha1`.
      batch: terms b in a minibatch.
      samples: terms r of a worker, at least `batch`.
      workers: as for `masha1`.
      refresh: 1 - τ, at most 1/2. None: min{1/mean q, b/r, 1/2}.
      multiplier: factor on the step size; above 1 nothing is promised.

    Returns:
      Step size, refresh probability and contraction.

    Raises:
      ValueError: an argument is out of range, or the lengths of arrays differ.
    """
    share = _share("batch", batch, "samples", samples)
    _, each = _per_worker(L, q, workers)
    if refresh is None:
        refresh = min(1 / float(each.mean()), share, 0.5)
    return masha1(
        L, mu, q, q_server, workers=workers, refresh=refresh, multiplier=multiplier
    )


def pp_masha1(
    L: npt.ArrayLike,
    mu: float,
    q: npt.ArrayLike,
    q_server: float = 1.0,
    *,
    participants: int,
    workers: int | None = None,
    refresh: float | None = None,
    multiplier: float = 1.0,
) -> Theory:
    """PP-MASHA1, b of M workers drawn with replacement in every iteration.

        γ = min{(1-τ)/2μ, √((1-τ)/2)/C},  ρ = 1 - γμ/2
        C² = (q_s/b) (1/M) Σ q_m L_m² + (1 - 1/b) C_M²,  C_M: the C of `masha1`

    The theorem of `masha1` with the second moment of the mean of b messages; two draws
    of one worker are allowed to be one message. Our constants.

    Args:
      L: as for `masha1`.
      mu: strong monotonicity constant of F.
      q: as for `masha1`.
      q_server: as for `masha1`.
      participants: workers b drawn in an iteration, 1 ≤ b ≤ M.
      workers: as for `masha1`.
      refresh: 1 - τ, at most 1/2. None: min{b/(M mean q), 1/2}; all workers take part
        in a refresh.
      multiplier: factor on the step size; above 1 nothing is promised.

    Returns:
      Step size, refresh probability and contraction.

    Raises:
      ValueError: an argument is out of range, or the lengths of arrays differ.
    """
    constants, q = _per_worker(L, q, workers)
    mu = _strong_monotonicity(mu, constants)
    share = _share("participants", participants, "workers", constants.size)
    balanced = min(share / float(q.mean()), 0.5)
    tau1 = balanced if refresh is None else _refresh(refresh)
    alone = float(np.mean(q * constants**2))
    C2 = alone / participants + (1 - 1 / participants) * _second_moment(constants, q)
    return _theory_masha1(_at_least_1("q_server", q_server) * C2, mu, tau1, multiplier)


def masha2(
    L: npt.ArrayLike,
    mu: float,
    delta: float,
    delta_server: float = 1.0,
    *,
    refresh: float | None = None,
    multiplier: float = 1.0,
) -> Theory:
    """MASHA2: γ = min{(1-τ)/2μ, √(1-τ)/(δ δ_s L̃)}, contractive compressors.

    Our constants, a safe start and not the paper's: nothing is promised, so
    `contraction` is None. With Top-K (δ = d/k) multipliers of 4 and 8 have been seen to
    hold on every game tried. Where δ is not the worst case but what a compressor
    does on typical vectors (π/2 for scaled sign) even 4 diverges.

    Args:
      L: Lipschitz constants of the F_m, as for `masha1`.
      mu: strong monotonicity constant of F.
      delta: δ ≥ 1 of the workers' compressor; Top-K with k of d coordinates has d/k.
      delta_server: δ_s of the server's compressor; 1 where it sends uncompressed.
      refresh: 1 - τ, at most 1/2. None: min{1/δ, 1/2}, as for `masha1` with Top-K.
      multiplier: factor on the step size.

    Returns:
      Step size and refresh probability; no contraction.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> from jaxsp import theory
      >>> theory.masha2(2.0, 0.01, delta=4.0)
      Theory(learning_rate=0.0625, refresh=0.25, contraction=None)
    """
    constants = _lipschitz(L)
    mu = _strong_monotonicity(mu, constants)
    delta = _at_least_1("delta", delta)
    tau1 = min(1 / delta, 0.5) if refresh is None else _refresh(refresh)
    both = delta * _at_least_1("delta_server", delta_server)
    gamma = math.sqrt(tau1) / (both * _root_mean_square(constants))
    gamma = _positive("multiplier", multiplier) * min(gamma, _half(tau1, mu))
    return Theory(gamma, tau1, None)


def vr_masha2(
    L: npt.ArrayLike,
    mu: float,
    delta: float,
    delta_server: float = 1.0,
    *,
    batch: int,
    samples: int,
    refresh: float | None = None,
    multiplier: float = 1.0,
) -> Theory:
    """VR-MASHA2: `masha2` with the L_m of `vr_masha1`, 1 - τ = min{1/δ, b/r, 1/2}.

    Our constants: nothing is promised.

    Args:
      L: root mean squares of the Lipschitz constants of the workers' terms.
      mu: strong monotonicity constant of F.
      delta: as for `masha2`.
      delta_server: as for `masha2`.
      batch: terms b in a minibatch.
      samples: terms r of a worker, at least `batch`.
      refresh: 1 - τ, at most 1/2; None for the value above.
      multiplier: factor on the step size.

    Returns:
      Step size and refresh probability; no contraction.

    Raises:
      ValueError: an argument is out of range.
    """
    share = _share("batch", batch, "samples", samples)
    if refresh is None:
        refresh = min(1 / _at_least_1("delta", delta), share, 0.5)
    return masha2(L, mu, delta, delta_server, refresh=refresh, multiplier=multiplier)


def _second_moment(L: np.ndarray, q: np.ndarray) -> float:
    """(1/M²) Σ_m (q_m L_m² + (M - 1) L̃²), for q_s = 1."""
    M = L.size
    return float(np.sum(q * L**2 + (M - 1) * np.mean(L**2))) / M**2


def _theory_masha1(C2: float, mu: float, tau1: float, multiplier: float) -> Theory:
    """The theorem of MASHA1 for a second-moment constant C²."""
    gamma = min(math.sqrt(tau1 / 2 / C2), _half(tau1, mu))
    return _theory(gamma, tau1, mu / 2, _positive("multiplier", multiplier))


def _theory(gamma: float, tau1: float, rate: float, multiplier: float) -> Theory:
    """γ times the multiplier; 1 - γ rate is promised up to a multiplier of 1."""
    gamma *= multiplier
    return Theory(gamma, tau1, 1 - gamma * rate if multiplier <= 1 else None)


def _half(tau1: float, mu: float) -> float:
    """(1 - τ)/2μ."""
    return tau1 / (2 * mu) if mu > 0 else math.inf


def _root_mean_square(L: np.ndarray) -> float:
    """L̃."""
    return math.sqrt(float(np.mean(L**2)))


def _number(name: str, value: Any) -> float:
    """A finite Python float."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}.")
    return float(value)


def _positive(name: str, value: Any) -> float:
    """A finite number above zero."""
    number = _number(name, value)
    if number <= 0:
        raise ValueError(f"{name} must be above 0, got {value!r}.")
    return number


def _at_least_1(name: str, value: Any) -> float:
    """The constant of a compressor."""
    number = _number(name, value)
    if number < 1:
        raise ValueError(
            f"{name} must be at least 1, got {value!r}: 1 means no compression."
        )
    return number


def _array(name: str, value: npt.ArrayLike, minimum: float, strict: bool) -> np.ndarray:
    """A nonempty vector of finite numbers from `minimum` on; a number has length 1."""
    array = np.atleast_1d(np.asarray(value))
    numeric = array.dtype.kind in "iuf" and array.ndim == 1 and array.size > 0
    if not numeric or not np.isfinite(array).all():
        raise ValueError(
            f"{name} must be a finite number or an array of one for each worker, "
            f"got {value!r}."
        )
    if (array <= minimum).any() if strict else (array < minimum).any():
        bound = f"above {minimum:g}" if strict else f"at least {minimum:g}"
        raise ValueError(f"{name} must be {bound} everywhere, got {value!r}.")
    return array.astype(np.float64)


def _lipschitz(L: npt.ArrayLike) -> np.ndarray:
    """The L_m."""
    return _array("L", L, 0.0, strict=True)


def _per_worker(
    L: npt.ArrayLike, q: npt.ArrayLike, workers: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """The L_m and the q_m, one of each for each worker."""
    lipschitz, constants = _lipschitz(L), _array("q", q, 1.0, strict=False)
    if workers is not None:
        counts = {"workers": _count("workers", workers)}
    elif np.ndim(L) == 0 and np.ndim(q) == 0:
        raise ValueError(
            "workers must be given where L and q are numbers: pass workers=M, or L as "
            "an array of one constant for each worker."
        )
    else:
        counts = {}
    counts |= {"L": lipschitz.size} if np.ndim(L) else {}
    counts |= {"q": constants.size} if np.ndim(q) else {}
    if len(set(counts.values())) > 1:
        raise ValueError(f"L, q and workers must agree in length, got {counts}.")
    M = next(iter(counts.values()))
    return np.broadcast_to(lipschitz, M), np.broadcast_to(constants, M)


def _strong_monotonicity(mu: float, L: np.ndarray) -> float:
    """0 ≤ μ ≤ mean L_m."""
    number, largest = _number("mu", mu), float(L.mean())
    if not 0 <= number <= largest * (1 + 1e-12):
        raise ValueError(
            f"mu must be between 0 and the (mean) Lipschitz constant {largest:g}, "
            f"got {mu!r}."
        )
    return number


def _refresh(refresh: Any) -> float:
    """A probability of at most 1/2."""
    number = _number("refresh", refresh)
    if not 0 < number <= 0.5:
        raise ValueError(
            "refresh must be above 0 and at most 1/2, where the theorem holds, got "
            f"{refresh!r}: for refresh = 1 (extragradient) use theory.extra_step."
        )
    return number


def _count(name: str, value: Any) -> int:
    """A positive integer."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}.")
    return int(value)


def _share(name: str, part: Any, whole_name: str, whole: Any) -> float:
    """part/whole for 1 ≤ part ≤ whole."""
    part, whole = _count(name, part), _count(whole_name, whole)
    if part > whole:
        raise ValueError(f"{name} must be at most {whole_name} = {whole}, got {part}.")
    return part / whole
