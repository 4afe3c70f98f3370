"""Which modes of a Gaussian mixture samples reach."""

from typing import NamedTuple

import numpy as np

__all__ = ["ModeCoverage", "mode_coverage"]


class ModeCoverage(NamedTuple):
    """How samples cover the modes of a mixture.

    Attributes:
      modes_covered: modes that are the nearest of at least one high-quality sample.
      high_quality: share of the samples within `threshold` standard deviations of a
        mode.
      counts: high-quality samples of every mode.
    """

    modes_covered: int
    high_quality: float
    counts: np.ndarray


def mode_coverage(points, centers, std: float, threshold: float = 3.0) -> ModeCoverage:
    """Counts the modes of a Gaussian mixture that samples reach.

    Args:
      points: samples [n, d].
      centers: means of the components [modes, d].
      std: standard deviation of every component, in each direction.
      threshold: a sample is of high quality within this many standard deviations of
        its nearest center.

    Returns:
      Modes covered, share of high-quality samples, and their counts.

    Raises:
      ValueError: if shapes do not fit, or std or threshold is not positive.

    References:
      Srivastava et al., *VEEGAN: Reducing Mode Collapse in GANs using Implicit
      Variational Learning*, 2017, arXiv 1705.07761.
    """
    points, centers = np.asarray(points), np.asarray(centers)
    if points.ndim != 2 or centers.ndim != 2 or points.shape[1] != centers.shape[1]:
        raise ValueError(
            "points must be [n, d] and centers [modes, d]; got shapes "
            f"{points.shape} and {centers.shape}."
        )
    for name, value in (("std", std), ("threshold", threshold)):
        if not value > 0:
            raise ValueError(f"{name} must be positive; got {value}.")
    distances = np.linalg.norm(points[:, None] - centers, axis=-1)
    nearest, distance = distances.argmin(-1), distances.min(-1)
    good = distance <= threshold * std
    counts = np.bincount(nearest[good], minlength=len(centers))
    return ModeCoverage(int((counts > 0).sum()), float(good.mean()), counts)
