"""Scores from classes and modes: how sure a classifier is, and which are reached."""

from typing import NamedTuple

import numpy as np
import scipy.special

__all__ = [
    "ModeCoverage",
    "class_coverage",
    "classes_covered",
    "classifier_score",
    "mode_coverage",
    "reverse_kl",
]


def classifier_score(probabilities) -> float:
    r"""The Inception score's formula on any classifier.

    $$\exp \mathrm{E}_s \mathrm{KL}\big(p(y \mid s) \,\|\, p(y)\big)$$

    1 where every sample gets the same answer, the number of classes where every answer
    is certain and all classes are equally frequent.

    Args:
      probabilities: class probabilities of the samples, [n, classes].

    Returns:
      The score, between 1 and the number of classes.

    References:
      Salimans et al., *Improved Techniques for Training GANs*, 2016, arXiv
      1606.03498.
    """
    p = np.asarray(probabilities, np.float64)
    divergence = scipy.special.rel_entr(p, p.mean(0)).sum(-1).mean()
    return float(np.exp(max(divergence, 0)))  # rounding may take it below 0


def class_coverage(counts, data_counts) -> np.ndarray:
    """How frequent each class is among samples, relative to the data.

    Args:
      counts: samples of each class [classes].
      data_counts: data of each class [classes].

    Returns:
      Ratio of the two shares [classes]: 1 where a class is as frequent as in the
      data, 0 where it is missing; NaN for a class that the data have not.

    Raises:
      ValueError: if shapes do not fit, or either counts nothing.

    Example:
      >>> class_coverage([10, 0, 30], [50, 25, 25])
      array([0.5, 0. , 3. ])
    """
    counts, data_counts = np.asarray(counts), np.asarray(data_counts)
    fits = counts.ndim == 1 and counts.shape == data_counts.shape
    if not fits or min(counts.sum(), data_counts.sum()) <= 0:
        raise ValueError(
            "counts and data_counts must be of the same shape [classes] and count "
            f"something, got {counts} and {data_counts}."
        )
    share, wanted = counts / counts.sum(), data_counts / data_counts.sum()
    nothing = np.full(len(share), np.nan)
    return np.divide(share, wanted, out=nothing, where=wanted > 0)


def classes_covered(counts) -> int:
    """Classes that get at least a tenth of their uniform share of samples.

    Args:
      counts: samples of each class [classes].

    Returns:
      How many.
    """
    counts = np.asarray(counts)
    return int((counts >= max(0.1 * counts.mean(), 1)).sum())


def reverse_kl(counts, data_counts) -> float:
    r"""How far the classes of samples are from those of the data.

    $$\mathrm{KL}(p \,\|\, q) = \sum_c p_c \log \frac{p_c}{q_c}$$

    with the classes' shares $p$ of the samples and $q$ of the data. It is reverse, of
    samples to data: a class that samples lack costs what the others have too much of.
    Of a few samples it is above 0 though their distribution be right: by about
    $(k - 1)/2n$ for $n$ samples of $k$ classes.

    Args:
      counts: samples of each class [classes].
      data_counts: data of each class [classes].

    Returns:
      The divergence, 0 where the shares are equal; infinite where samples are of a
      class that the data have not.

    Raises:
      ValueError: as `class_coverage`.

    Example:
      >>> round(reverse_kl([10, 0, 30], [50, 25, 25]), 4)
      0.6507
    """
    coverage = class_coverage(counts, data_counts)  # p / q, NaN where q is 0
    share = np.asarray(counts) / np.sum(counts)
    if np.any(share[np.isnan(coverage)] > 0):
        return float("inf")
    return float(scipy.special.xlogy(share, np.nan_to_num(coverage, nan=1.0)).sum())


class ModeCoverage(NamedTuple):
    """How samples cover the modes of a mixture.

    Attributes:
      modes_covered: modes that hold at least a fifth of an equal share of all samples
        as high-quality ones; a smear over the modes covers none.
      high_quality: share of the samples within `threshold` standard deviations of a
        mode.
      counts: high-quality samples of every mode.
    """

    modes_covered: int
    high_quality: float
    counts: np.ndarray


def mode_coverage(points, centers, std: float, threshold: float = 3.0) -> ModeCoverage:
    r"""Counts the modes of a Gaussian mixture that samples reach.

    A sample is of high quality within `threshold` standard deviations of its nearest
    center, and belongs to that mode. A mode is covered if of $n$ samples at least
    $n / (5 \cdot \text{modes})$, and one at least, are high-quality ones of it.

    Args:
      points: samples [n, d].
      centers: means of the components [modes, d].
      std: standard deviation of every component, in each direction.
      threshold: the distance of a high-quality sample, in standard deviations.

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
            "points must be [n, d] and centers [modes, d], got shapes "
            f"{points.shape} and {centers.shape}."
        )
    for name, value in (("std", std), ("threshold", threshold)):
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}.")
    distances = np.linalg.norm(points[:, None] - centers, axis=-1)
    good = distances.min(-1) <= threshold * std
    counts = np.bincount(distances.argmin(-1)[good], minlength=len(centers))
    return cover(counts, len(points))


def cover(counts: np.ndarray, n: int) -> ModeCoverage:
    """How `n` samples cover modes of which so many are high-quality samples."""
    covered = counts >= max(1, n / (5 * len(counts)))
    return ModeCoverage(int(covered.sum()), float(counts.sum() / n), counts)
