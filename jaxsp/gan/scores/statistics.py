"""What is kept of features: enough for the scores, whatever their number.

A Fréchet distance needs the moments, which are gathered as the features come. Kernel
distance and nearest neighbours need features, of which at most `KEPT` are kept. So the
memory does not grow with the samples: for the 2,048 features of Inception a set of
statistics takes 116 MB, and all scores of one beside another at most 0.6 GB.
"""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from jaxsp.gan.scores.neighbors import neighbor_distances

__all__ = ["KEPT", "Moments", "Statistics"]

KEPT = 10_000  # features for kernel distance and neighbours
_NEIGHBORS = 5  # the most that a score asks for


class Moments(NamedTuple):
    r"""Mean and covariance of points, gathered in parts and merged in any order.

    Attributes:
      count: number of points.
      mean: mean $\bar p$ [d].
      scatter: $\sum_i (p_i - \bar p)(p_i - \bar p)^\top$, [d, d].

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
                f"points must be of shape [n, d] with n >= 1, got {points.shape}."
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


_NOTHING = Moments(0, np.zeros(()), np.zeros(()))


@dataclasses.dataclass(eq=False)
class Statistics:
    """Moments of features that come in parts, and some of the features.

    Attributes:
      total: how many will come, where that is known: those kept are then spread evenly
        over all. None keeps the first.
      moments: moments of all.
      parts: at most `KEPT` of the features, in arrays [n, d].
    """

    total: int | None = None
    moments: Moments = _NOTHING
    parts: list[np.ndarray] = dataclasses.field(default_factory=list)

    def add(self, features: np.ndarray) -> None:
        """Take features [n, d]."""
        index = self.moments.count + np.arange(len(features))
        keep = index < KEPT
        if self.total is not None and self.total > KEPT:
            keep = index * KEPT // self.total < (index + 1) * KEPT // self.total
        self.parts.append(features[keep])
        self.moments = self.moments.merge(Moments.of(features))

    @property
    def kept(self) -> np.ndarray:
        """The features that are kept [n, d]."""
        return np.concatenate(self.parts)

    @functools.cached_property
    def distances(self) -> np.ndarray:
        """Distances of all that is kept to its nearest neighbours, found once."""
        return neighbor_distances(self.kept, _NEIGHBORS)
