"""Kernel distance (the KID, where the features are Inception's)."""

from typing import NamedTuple

import numpy as np

from jaxsp._arguments import check_count

__all__ = ["KernelDistance", "kernel_distance"]


class KernelDistance(NamedTuple):
    """An estimate of the squared maximum mean discrepancy.

    Attributes:
      mean: mean of the estimates of the subsets; unbiased, so it can be below 0.
      std: standard deviation of such estimates: that of one subset, not of the mean.
        The subsets are smaller where those of the mean would be nearly alike.
    """

    mean: float
    std: float


def kernel_distance(
    x, y, subsets: int = 100, size: int = 1000, seed: int = 0
) -> KernelDistance:
    r"""Squared MMD between two sets of features with a polynomial kernel.

    $$k(a, b) = \left(\frac{a^\top b}d + 1\right)^3, \qquad
    \mathrm{MMD}^2 = \operatorname*{mean}_{i \ne j} k(x_i, x_j)
    + \operatorname*{mean}_{i \ne j} k(y_i, y_j)
    - 2 \operatorname*{mean}_{i, j} k(x_i, y_j)$$

    Unlike the Fréchet distance it has no bias for few samples. Each subset takes `size`
    rows of x and of y, without replacement. Products are in the features' own
    precision, sums in float64.

    Subsets of more than half the rows are much alike, and those of all rows are the
    same: their spread says nothing of the error, and falls to 0. There the standard
    deviation is that of further subsets of half the rows of the smaller set: about that
    of the estimate from all rows (the jackknife that deletes half), up to twice it
    where x and y are samples of the same.

    Args:
      x: features [n, d].
      y: features [m, d].
      subsets: how many subsets.
      size: rows of a subset; fewer where x or y has fewer.
      seed: what the subsets follow from.

    Returns:
      Mean and standard deviation over the subsets; of fewer than 4 rows the latter is
      NaN.

    Raises:
      ValueError: if shapes do not fit, there are fewer than 2 rows, or subsets or
        size is out of range.

    References:
      Bińkowski, Sutherland, Arbel, Gretton, *Demystifying MMD GANs*, 2018, arXiv
      1801.01401.
    """
    x, y = (a.astype(np.result_type(a, np.float32)) for a in map(np.asarray, (x, y)))
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(
            f"x must be [n, d] and y [m, d], got shapes {x.shape} and {y.shape}."
        )
    if min(len(x), len(y)) < 2:
        raise ValueError(
            f"x and y must have at least 2 rows, got {len(x)} and {len(y)}."
        )
    check_count("subsets", subsets)
    check_count("size", size, minimum=2)
    fewer, rng = min(len(x), len(y)), np.random.default_rng(seed)

    def estimates(size):
        for _ in range(subsets):
            a = x[rng.choice(len(x), size, replace=False)]
            b = y[rng.choice(len(y), size, replace=False)]
            own = _kernel(a, a) + _kernel(b, b)
            np.fill_diagonal(own, 0)
            within = own.sum(dtype=np.float64) / (size * (size - 1))
            yield within - 2 * _kernel(a, b).sum(dtype=np.float64) / size**2

    found = list(estimates(min(size, fewer)))
    mean, half = float(np.mean(found)), fewer // 2
    if half < 2:
        return KernelDistance(mean, float("nan"))
    if size > half:
        found = list(estimates(half))
    return KernelDistance(mean, float(np.std(found)))


def _kernel(a, b):
    base = a @ b.T
    base /= a.shape[1]
    base += 1
    return base * base * base
