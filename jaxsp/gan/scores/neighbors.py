"""Scores from nearest neighbours: how good the samples are, and how varied."""

from typing import NamedTuple

import numpy as np

from jaxsp._arguments import check_count

__all__ = ["NeighborScores", "neighbor_distances", "neighbor_scores"]

_BLOCK_BYTES = 2**26  # of one block of a matrix of distances
_WIDE = 512  # beyond so many dimensions products are in float32, for the time


class NeighborScores(NamedTuple):
    """Fidelity and diversity of samples.

    Attributes:
      precision: share of the samples that lie in the ball of some real point.
      recall: share of the real points that lie in the ball of some sample.
      density: mean number of real balls that a sample lies in, divided by k; about
        1 for real samples, and may be more.
      coverage: share of the real points whose ball holds a sample.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def neighbor_scores(
    real,
    samples,
    k: int = 3,
    k_coverage: int = 5,
    real_distances: np.ndarray | None = None,
) -> NeighborScores:
    """Precision, recall, density and coverage of samples among real points.

    The ball of a point reaches to its k-th nearest neighbour of its own kind, the
    border included; k is `k` for precision and recall, `k_coverage` for density and
    coverage. Distances are computed in blocks of 64 MiB, so 10,000 points a side fit
    anywhere. All four depend on the number of points: compare like with like.

    Args:
      real: features of real data [n, d].
      samples: features of samples [m, d].
      k: neighbours for precision and recall.
      k_coverage: neighbours for density and coverage.
      real_distances: `neighbor_distances(real, max(k, k_coverage))`, where it is
        known already.

    Returns:
      The four scores.

    Raises:
      ValueError: if shapes do not fit, a number is not finite, k or k_coverage is
        not a whole number of at least 1, or there are not more points than
        neighbours.

    References:
      Kynkäänniemi et al., *Improved Precision and Recall Metric for Assessing
      Generative Models*, 2019, arXiv 1904.06991.
      Naeem et al., *Reliable Fidelity and Diversity Metrics for Generative Models*,
      2020, arXiv 2002.09797.
    """
    k, k_coverage = check_count("k", k), check_count("k_coverage", k_coverage)
    real, samples = np.asarray(real), np.asarray(samples)
    if real.ndim != 2 or samples.ndim != 2 or real.shape[1] != samples.shape[1]:
        raise ValueError(
            "real must be [n, d] and samples [m, d], got shapes "
            f"{real.shape} and {samples.shape}."
        )
    _check_finite("real", real)
    _check_finite("samples", samples)
    most = max(k, k_coverage)
    if real_distances is None:
        real_distances = neighbor_distances(real, most)
    elif real_distances.shape[0] != len(real) or real_distances.shape[1] < most:
        raise ValueError(
            f"real_distances must be of shape [{len(real)}, >= {most}], got "
            f"{real_distances.shape}."
        )
    reach, reach_coverage = real_distances[:, [k - 1, k_coverage - 1]].T ** 2
    reach_samples = neighbor_distances(samples, k)[:, [k - 1]] ** 2

    precise, inside = 0, 0
    recalled, covered = np.zeros((2, len(real)), bool)
    for rows, distances in _blocks(samples, real, slack=8.0):
        precise += (distances <= reach).any(1).sum()
        recalled |= (distances <= reach_samples[rows]).any(0)
        within = distances <= reach_coverage
        inside += within.sum()
        covered |= within.any(0)
    m = len(samples)
    return NeighborScores(
        float(precise / m),
        float(recalled.mean()),
        float(inside / (k_coverage * m)),
        float(covered.mean()),
    )


def neighbor_distances(points, k: int) -> np.ndarray:
    """Distances of every point to its k nearest other points, the nearest first.

    Args:
      points: points [n, d].
      k: how many neighbours.

    Returns:
      Distances [n, k], float64.

    Raises:
      ValueError: if k is not a whole number of at least 1, there are not more than k
        points, or a number is not finite.
    """
    k, points = check_count("k", k), np.asarray(points)
    if points.ndim != 2 or k >= len(points):
        raise ValueError(
            f"points must be of shape [n, d] with more than k = {k} of them, got "
            f"{points.shape}."
        )
    _check_finite("points", points)
    nearest = np.empty((len(points), k))
    for rows, distances in _blocks(points, points):
        np.fill_diagonal(distances[:, rows], np.inf)
        nearest[rows] = np.partition(distances, k - 1, axis=1)[:, :k]
    return np.sqrt(np.maximum(np.sort(nearest, axis=1), 0.0))


def _check_finite(name: str, points: np.ndarray) -> None:
    """Refuses points that have no distances."""
    finite = np.isfinite(points).all(1)
    if not finite.all():
        raise ValueError(
            f"{name} must be finite, got row {finite.argmin()} of {len(points)} that "
            "is not: where samples diverged there are no scores to find."
        )


def _blocks(a, b, slack=0.0):
    """Slices of rows of a, and their squared distances to b.

    The mean of b is taken off, so that little is lost in products. `slack` lessens the
    distances by so many rounding errors: a point on the border is inside.
    """
    dtype = np.float64 if a.shape[1] <= _WIDE else np.float32
    mean = b.mean(0, dtype=np.float64)
    a, b = ((points - mean).astype(dtype) for points in (a, b))
    shrink = dtype(1 - slack * np.finfo(dtype).eps)
    squares_a, squares_b = ((points * points).sum(1) * shrink for points in (a, b))
    height = max(1, _BLOCK_BYTES // (a.itemsize * len(b)))
    for start in range(0, len(a), height):
        rows = slice(start, start + height)
        distances = a[rows] @ b.T
        distances *= -2
        distances += squares_a[rows, None]
        distances += squares_b
        yield rows, distances
