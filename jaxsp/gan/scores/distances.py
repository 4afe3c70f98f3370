"""Distances between sets of features: of their Gaussians, and by a kernel."""

from typing import NamedTuple

import numpy as np
import scipy.integrate
import scipy.optimize

from jaxsp._arguments import check_count

__all__ = [
    "KernelDistance",
    "expected_frechet_distance",
    "frechet_distance",
    "kernel_distance",
]


def frechet_distance(mean1, cov1, mean2, cov2) -> float:
    r"""Squared Fréchet (2-Wasserstein) distance of two Gaussians.

    $$\|m_1 - m_2\|^2 + \mathrm{tr}\, C_1 + \mathrm{tr}\, C_2
    - 2\, \mathrm{tr} \big(C_1^{1/2} C_2 C_1^{1/2}\big)^{1/2}$$

    The last trace is the sum of the singular values of $C_1^{1/2} C_2^{1/2}$. Taken so,
    nothing is lost to the square root of a small eigenvalue, singular covariances need
    no added diagonal, and the value is symmetric in its arguments.

    Args:
      mean1: mean [d] of the first.
      cov1: covariance [d, d] of the first, symmetric positive semidefinite.
      mean2: mean of the second.
      cov2: covariance of the second.

    Returns:
      The distance, in float64, at least 0.

    Raises:
      ValueError: if shapes do not fit or a number is not finite.

    Example:
      >>> import numpy as np
      >>> frechet_distance(np.zeros(2), np.eye(2), np.ones(2), 4 * np.eye(2))
      4.0

    References:
      Dowson, Landau, *The Fréchet Distance between Multivariate Normal
      Distributions*, Journal of Multivariate Analysis 12, 1982.
      Heusel et al., *GANs Trained by a Two Time-Scale Update Rule Converge to a Local
      Nash Equilibrium*, 2017, arXiv 1706.08500.
    """
    arrays = [np.asarray(a, np.float64) for a in (mean1, cov1, mean2, cov2)]
    (d,) = arrays[0].shape if arrays[0].ndim == 1 else (-1,)
    names = ("mean1", "cov1", "mean2", "cov2")
    for name, array, shape in zip(names, arrays, [(d,), (d, d)] * 2, strict=True):
        if array.shape != shape or not np.isfinite(array).all():
            wanted = "[d]" if name.startswith("mean") else "[d, d]"
            raise ValueError(
                f"{name} must be finite, of shape {wanted} with d the length of mean1, "
                f"got shape {array.shape}."
            )
    mean1, cov1, mean2, cov2 = arrays
    cross = np.linalg.norm(_square_root(cov1) @ _square_root(cov2), "nuc")
    apart = ((mean1 - mean2) ** 2).sum() + np.trace(cov1 + cov2)
    return max(float(apart - 2 * cross), 0.0)


def _square_root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric square root; eigenvalues below rounding are zero."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    floor = len(values) * np.finfo(np.float64).eps * np.abs(values).max()
    return vectors * np.sqrt(np.where(values > floor, values, 0.0)) @ vectors.T


def expected_frechet_distance(covariance, count: int) -> float:
    r"""What `count` samples of a Gaussian score against that Gaussian: the bias.

    $$\mathrm{E}\, d(m, C; \hat m, \hat C) = \tfrac1n \mathrm{tr}\, C
    + 2\, \mathrm{tr}\, C
    - 2\, \mathrm{E}\, \mathrm{tr} \big(C^{1/2} \hat C C^{1/2}\big)^{1/2}$$

    A perfect generator scores this much instead of 0 where the Gaussian itself is
    known. Against $m$ other samples in its place it scores nearly the sum of the values
    for $n$ and for $m$, unless both are few for the dimension. The last trace is its
    deterministic equivalent for large matrices (Silverstein 1995): with $N = n - 1$ and
    the eigenvalues $\lambda$ of $C$,

    $$\mathrm{tr}\, C - \mathrm{E}\, \mathrm{tr} \big(C^{1/2} \hat C C^{1/2}\big)^{1/2}
    \approx \frac2\pi \int_0^\infty D(s^2) - D(\kappa)\, ds, \qquad
    D(\kappa) = \sum_\lambda \frac{\lambda^2}{\lambda^2 + \kappa}, \qquad
    \kappa = s^2 + \frac{\kappa D(\kappa)}N,$$

    with the correction for small ones, $\mathrm{tr}\, C / 4N$, which is exact for large
    $n$. It holds for $n$ below the dimension too, where the usual expansion in $1/n$ is
    off by a factor of up to ten. Against simulation it is within 3 % from 10 samples
    on, and within 10 % from 3 on, in 1 to 200 dimensions.

    Args:
      covariance: covariance [d, d] of the Gaussian.
      count: number of samples $n$.

    Returns:
      The expected distance.

    Raises:
      ValueError: if covariance is not a square matrix or count is below 1.

    Example:
      >>> import numpy as np
      >>> round(expected_frechet_distance(np.eye(64), 10_000), 3)
      0.11
      >>> round(expected_frechet_distance(np.eye(64), 50), 1)
      29.7

    References:
      Chong, Forsyth, *Effectively Unbiased FID and Inception Score and Where to Find
      Them*, 2019, arXiv 1911.07023 (on the bias).
      Silverstein, *Strong Convergence of the Empirical Distribution of Eigenvalues of
      Large Dimensional Random Matrices*, Journal of Multivariate Analysis 55, 1995.
    """
    covariance = np.asarray(covariance, np.float64)
    if covariance.ndim != 2 or len(covariance) != covariance.shape[-1]:
        raise ValueError(f"covariance must be of shape [d, d], got {covariance.shape}.")
    check_count("count", count)
    values = np.linalg.eigvalsh(covariance)
    trace, largest = values.sum(), np.abs(values).max()
    values = values[values > len(values) * np.finfo(np.float64).eps * largest]
    if count == 1 or len(values) == 0:  # a covariance of zero
        return float(max(trace, 0.0) * (1 + 1 / count))
    free = count - 1
    lost = _shrinkage(values, free)
    return max(float(trace / count + 2 * lost + trace / (4 * free)), 0.0)


def _shrinkage(values: np.ndarray, free: int) -> float:
    r"""$(2/\pi) \int D(s^2) - D(\kappa) ds$, along a grid of $\kappa$."""
    squares = values**2

    def degrees(kappa):  # D falls from the number of dimensions to 0
        return (squares / (squares + np.expand_dims(kappa, -1))).sum(-1)

    least = 0.0  # where s = 0
    if free < len(values):
        most = squares.sum() / free  # D(κ) <= Σ λ² / κ
        least = scipy.optimize.brentq(lambda k: degrees(k) - free, 0, most)
    steps = np.geomspace(values.min() * 1e-4, values.max() * 1e4, 1000) ** 2
    kappa = least + np.concatenate([[0.0], steps])
    square = np.maximum(kappa * (1 - degrees(kappa) / free), 0)  # s²
    lost = degrees(square) - degrees(kappa)
    return float(2 / np.pi * scipy.integrate.trapezoid(lost, np.sqrt(square)))


class KernelDistance(NamedTuple):
    """An estimate of the squared maximum mean discrepancy (KID, on Inception features).

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
      Mean and standard deviation over the subsets.

    Raises:
      ValueError: if shapes do not fit, there are fewer than 4 rows, of which there is
        no standard deviation, or subsets or size is out of range.

    References:
      Bińkowski, Sutherland, Arbel, Gretton, *Demystifying MMD GANs*, 2018, arXiv
      1801.01401.
    """
    x, y = (a.astype(np.result_type(a, np.float32)) for a in map(np.asarray, (x, y)))
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(
            f"x must be [n, d] and y [m, d], got shapes {x.shape} and {y.shape}."
        )
    if min(len(x), len(y)) < 4:
        raise ValueError(
            f"x and y must have at least 4 rows, got {len(x)} and {len(y)}."
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
    if size > half:
        found = list(estimates(half))
    return KernelDistance(mean, float(np.std(found)))


def _kernel(a, b):
    base = a @ b.T
    base /= a.shape[1]
    base += 1
    return base * base * base
