"""Checks of the constants that step sizes are computed from."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from jaxsp import _arguments


def real(name: str, value: Any, valid: Callable[[float], bool], required: str) -> float:
    """A finite number, as a Python float, that is as required."""
    _arguments.check_number(name, value, valid, required, False)
    return float(value)


def at_least_1(name: str, value: Any) -> float:
    """The constant of a compressor."""
    return real(name, value, lambda c: c >= 1, "at least 1, which is no compression")


def strong_monotonicity(mu: float, L: np.ndarray) -> float:
    r"""$0 \le \mu \le$ the mean of the $L_m$."""
    largest = float(L.mean())
    required = f"between 0 and the (mean) Lipschitz constant {largest:g}"
    return real("mu", mu, lambda m: 0 <= m <= largest * (1 + 1e-12), required)


def refresh_probability(refresh: Any, balanced: float, batch_share: Any = 1.0) -> float:
    """The probability of a refresh, as given or by default."""
    required = "above 0 and at most 1"
    share = real("batch_share", batch_share, lambda p: 0 < p <= 1, required)
    if refresh is None:
        return min(balanced, share, 0.5)
    required = (
        "above 0 and at most 1/2, where the theorem holds (for refresh=1, which is "
        "extragradient, use theory.extra_step)"
    )
    return real("refresh", refresh, lambda p: 0 < p <= 0.5, required)


def array(
    name: str, value: npt.ArrayLike, valid: Callable[[np.ndarray], Any], required: str
) -> np.ndarray:
    """A nonempty vector of finite numbers as required; a number has length 1."""
    array = np.atleast_1d(_arguments.check_array(name, value)).astype(np.float64)
    if array.ndim != 1 or not array.size or not valid(array).all():
        required = f"{required}, a number or an array of one for each worker"
        _arguments.refuse(name, required, value)
    return array


def lipschitz(L: npt.ArrayLike) -> np.ndarray:
    """The $L_m$."""
    return array("L", L, lambda L: L > 0, "above 0")


def per_worker(
    L: npt.ArrayLike, q: npt.ArrayLike, workers: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """The $L_m$ and the $q_m$, one of each for each worker."""
    given = {"L": lipschitz(L), "q": array("q", q, lambda q: q >= 1, "at least 1")}
    counts = {
        name: given[name].size for name, value in (("L", L), ("q", q)) if np.ndim(value)
    }
    if workers is not None:
        counts["workers"] = _arguments.check_count("workers", workers)
    if not counts:
        raise ValueError(
            "workers must be given where L and q are numbers: pass workers=M, or L as "
            "an array of one constant for each worker."
        )
    if len(set(counts.values())) > 1:
        raise ValueError(f"L, q and workers must agree in length, got {counts}.")
    M = next(iter(counts.values()))
    return np.broadcast_to(given["L"], M), np.broadcast_to(given["q"], M)
