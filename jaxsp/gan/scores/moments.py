"""Mean and covariance of points that come in parts."""

from typing import NamedTuple

import numpy as np

__all__ = ["Moments"]


class Moments(NamedTuple):
    """Mean and covariance of points, gathered in parts and merged in any order.

    Attributes:
      count: number of points.
      mean: mean [d].
      scatter: Σ (p − mean)(p − mean)ᵀ, [d, d].

    Example:
      >>> import numpy as np
      >>> points = np.arange(8.0).reshape(4, 2)
      >>> both = Moments.of(points[:1]).merge(Moments.of(points[1:]))
      >>> np.allclose(both.covariance, np.cov(points.T))
      True
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def of(cls, points) -> "Moments":
        """The moments of points [n, d], in float64."""
        points = np.asarray(points, np.float64)
        if points.ndim != 2 or len(points) == 0:
            raise ValueError(
                f"points must be of shape [n, d] with n >= 1; got {points.shape}."
            )
        mean = points.mean(0)
        centered = points - mean
        return cls(len(points), mean, centered.T @ centered)

    def merge(self, other: "Moments") -> "Moments":
        """The moments of both sets of points together (Chan, Golub, LeVeque 1979)."""
        count = self.count + other.count
        shift = other.mean - self.mean
        mean = self.mean + shift * (other.count / count)
        between = np.outer(shift, shift) * (self.count * other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + between)

    @property
    def covariance(self) -> np.ndarray:
        """The unbiased covariance [d, d]; zero for a single point."""
        return self.scatter / max(self.count - 1, 1)
