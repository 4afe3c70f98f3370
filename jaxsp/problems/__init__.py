r"""Games with a known solution, as operators of the workers.

Each worker $m$ has an operator $F_m$ of its own, and the problem is
$F = \frac1M \sum_m F_m$. Everything is computed in float64 NumPy, from a seed where it
is random.
"""

from jaxsp.problems.affine import Affine, bilinear, definite_bilinear, quadratic
from jaxsp.problems.lower_bound_chain import (
    calls_lower_bound,
    chain_q,
    distance_lower_bound,
    lower_bound_chain,
    max_nonzero,
    rounds_lower_bound,
)
from jaxsp.problems.matrix_game import matrix_game
from jaxsp.problems.problem import Problem
from jaxsp.problems.robust_regression import Samples, robust_regression

__all__ = [
    "Affine",
    "Problem",
    "Samples",
    "bilinear",
    "calls_lower_bound",
    "chain_q",
    "definite_bilinear",
    "distance_lower_bound",
    "lower_bound_chain",
    "matrix_game",
    "max_nonzero",
    "quadratic",
    "robust_regression",
    "rounds_lower_bound",
]
