"""Scores from what a classifier says: how sure it is, and how often of which class."""

import numpy as np

__all__ = ["class_coverage", "classes_covered", "classifier_score"]


def classifier_score(probabilities) -> float:
    """exp(E KL(p(y|s) ‖ p(y))): the Inception score's formula on any classifier.

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
    marginal = np.broadcast_to(p.mean(0), p.shape)
    ratio = np.divide(p, marginal, out=np.ones_like(p), where=p > 0)  # 0 log 0 = 0
    divergence = (p * np.log(ratio)).sum(-1)
    return float(np.exp(divergence.mean()))


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
            f"something; got {counts} and {data_counts}."
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
    enough = counts >= 0.1 * counts.sum() / len(counts)
    return int((enough & (counts > 0)).sum())
