"""The scores of one data set, as a function of samples."""

import dataclasses
import logging
import math
import os
from typing import Any, NamedTuple

import numpy as np

from jaxsp.gan import data
from jaxsp.gan.bars import track
from jaxsp.gan.scores import cache
from jaxsp.gan.scores import inception as network
from jaxsp.gan.scores.batches import BLOCK, blocks
from jaxsp.gan.scores.classes import (
    class_coverage,
    classes_covered,
    classifier_score,
    cover,
    mode_coverage,
    reverse_kl,
)
from jaxsp.gan.scores.classifier import (
    Classifier,
    channel_features,
    features,
    fit_classifier,
)
from jaxsp.gan.scores.distances import (
    expected_frechet_distance,
    frechet_distance,
    kernel_distance,
)
from jaxsp.gan.scores.neighbors import neighbor_scores
from jaxsp.gan.scores.statistics import Moments, Statistics

__all__ = ["Evaluator", "Measurement", "classifier_frechet_distance", "evaluator"]

_VERSION = 2  # part of the cache key: raised where features of the same images change
_log = logging.getLogger(__name__)


def classifier_frechet_distance(
    classifier: Classifier, reference: Moments, samples
) -> float:
    """Classifier Fréchet distance (CFD): `frechet_distance` between features.

    Not the FID: the features are those of `fit_classifier`, so values compare on one
    data set only. As with the FID, few samples bias it upwards
    (`expected_frechet_distance`); compare values of equal numbers of samples.

    Args:
      classifier: from `fit_classifier`.
      reference: moments of the features of real images.
      samples: images [n, height, width, channels], uint8, or float in [-1, 1].

    Returns:
      The distance, at least 0.
    """
    return _distance(reference, Moments.of(features(classifier, samples)[0]))


def _distance(reference: Moments, found: Moments) -> float:
    """`frechet_distance` of two sets of moments."""
    return frechet_distance(
        reference.mean, reference.covariance, found.mean, found.covariance
    )


class Measurement(NamedTuple):
    """What an evaluator finds.

    Attributes:
      scores: scores by name.
      counts: samples that the classifier assigns to each class [classes]; of a
        mixture, the samples near each mode. None where samples are not finite.
    """

    scores: dict[str, float]
    counts: np.ndarray | None


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluator:
    """Judges samples of one data set; call it with samples.

    The reference is the training split. `floor` is what the real test split gets from
    the same code: about the best that a generator can reach with as many samples. The
    Fréchet distance is biased upwards, the more the fewer samples there are: 10,000
    samples may score less than the floor of a small split (digits has 297 images to
    test). That the training split is finite adds to the bias, the same for all samples.
    `bias` says how much both make together; it is logged, once, where there are not
    more samples than features.

    Images: `frechet_distance` (of the classifier's features, CFD), `classifier_score`,
    `classes_covered` (classes that at least a tenth of their uniform share of samples
    are assigned to). With `inception` also `fid`, `kid` and `kid_std`. If `full`, also
    `precision`, `recall`, `density` and `coverage` on Inception features, or on the
    classifier's where there is no Inception, and then `kernel_distance` and
    `kernel_distance_std` too; and `least_class_coverage`, the smallest entry of
    `class_coverage`. Mixtures: `high_quality` and `modes_covered` of `mode_coverage`,
    which see what the `frechet_distance` of the points does not, that a blob is no
    ring; and if `full` the four of neighbours. Stacked images (`Dataset.single`) are
    judged channel by channel: `modes_reached`, the modes of which there is a sample, as
    it is published of 26,000, and `reverse_kl` of their shares, in the place of the
    classifier's own scores. Samples that are not finite,
    from a diverged run, score NaN throughout.

    Samples may come as one array or as an iterable of batches, of any number. Moments
    are gathered on the way. Kernel distances and neighbours see at most 10,000 features
    a side: of an array evenly spaced, of an iterable the first.

    Attributes:
      dataset: what the samples imitate.
      classifier: the classifier of images, of stacked ones that of a channel; None for
        points.
      statistics: of the training split: of the classifier's features or of points.
      inception: the Inception network, or None.
      inception_statistics: of the training split's Inception features, or None.
      full: whether to find the costlier scores too.
      floor: the scores of the test split.
    """

    dataset: data.Dataset
    classifier: Classifier | None
    statistics: Statistics
    inception: Any = None
    inception_statistics: Statistics | None = None
    full: bool = False
    floor: dict[str, float] = dataclasses.field(default_factory=dict)
    _warned: set[str] = dataclasses.field(init=False, repr=False, default_factory=set)

    @property
    def reference(self) -> Moments:
        """Moments of the training split, of the classifier's features or of points."""
        return self.statistics.moments

    def __call__(self, samples) -> dict[str, float]:
        """The scores of samples: images in [-1, 1] (or uint8), or points.

        Args:
          samples: an array, or an iterable of batches.

        Returns:
          Scores by name.

        Raises:
          ValueError: if the samples are of another shape than the data, there are
            none, or for `full` or kernel distances (`kid`) fewer than 4.
        """
        return self.measure(samples).scores

    def measure(self, samples, known: Statistics | None = None) -> Measurement:
        """As a call, with the samples of each class or mode beside the scores.

        Args:
          samples: an array, or an iterable of batches.
          known: the statistics of their Inception features, where they are known.

        Returns:
          Scores and counts.
        """
        total = len(samples) if hasattr(samples, "shape") else None
        found, inner = Statistics(total), known or Statistics(total)
        answers = []
        for block in blocks(samples, self.dataset.sample_shape):
            if not np.isfinite(block).all():
                return Measurement(dict.fromkeys(self.floor, math.nan), None)
            if self.classifier is None:
                hidden, std = block, float(self.dataset.std or 0)
                answer = mode_coverage(block, self.dataset.centers, std).counts
            else:
                if self.dataset.single is None:
                    hidden, answer = features(self.classifier, block)
                else:
                    hidden, modes = channel_features(self.classifier, block)
                    answer = np.bincount(modes, minlength=self.dataset.num_classes)
                if self.inception is not None and known is None:
                    inner.add(network.features(self.inception, block))
            found.add(hidden)
            answers.append(answer)

        self._warn(found.moments.count)
        reference = self.statistics
        scores = {"frechet_distance": _distance(reference.moments, found.moments)}
        if self.classifier is None:
            modes, share, counts = cover(np.sum(answers, 0), found.moments.count)
            on_modes = {"high_quality": share, "modes_covered": float(modes)}
            scores = on_modes | scores  # of a mixture they come first
        elif self.dataset.single is not None:
            counts = np.sum(answers, 0)
            reached = float((counts > 0).sum())
            divergence = reverse_kl(counts, self._data_counts)
            scores = {"modes_reached": reached, "reverse_kl": divergence} | scores
        else:
            probabilities = np.concatenate(answers)
            classes = self.classifier.num_classes
            counts = np.bincount(probabilities.argmax(-1), minlength=classes)
            scores["classifier_score"] = classifier_score(probabilities)
            scores["classes_covered"] = float(classes_covered(counts))
        kernel = "kernel_distance" if self.full and self.classifier else None
        if self.inception_statistics is not None:
            reference, found, kernel = self.inception_statistics, inner, "kid"
            scores["fid"] = _distance(reference.moments, found.moments)
        if kernel:
            mean, std = kernel_distance(reference.kept, found.kept)
            scores |= {kernel: mean, f"{kernel}_std": std}
        if self.full:
            near = neighbor_scores(
                reference.kept, found.kept, real_distances=reference.distances
            )
            scores |= near._asdict()
        if self.full and self.classifier is not None:
            least = np.nanmin(class_coverage(counts, self._data_counts))
            scores["least_class_coverage"] = float(least)
        return Measurement(scores, counts)

    @property
    def _data_counts(self) -> np.ndarray:
        """How many examples of each class the training split has."""
        classes = self.dataset.num_classes
        return np.bincount(self.dataset.train_labels, minlength=classes)

    def bias(self, count: int) -> dict[str, float]:
        """What so many samples of the data's own distribution would score.

        Both sides of the comparison are finite: it is `expected_frechet_distance` of
        `count` samples and that of as many as the training split has, added. Features
        are taken for Gaussian, with the covariance of the training split. The sum is
        then within 5 % of simulation where one of the two numbers is ten times that of
        the features or more; where both are at most that of the features it is too
        large, by a tenth to three quarters.

        Args:
          count: number of samples.

        Returns:
          The expected distance for each of the Fréchet distances, by name.

        Raises:
          ValueError: if count is below 1.
        """
        found = {}
        for name, moments in self._references().items():
            counts, covariance = (count, moments.count), moments.covariance
            found[name] = sum(expected_frechet_distance(covariance, n) for n in counts)
        return found

    def _references(self) -> dict[str, Moments]:
        """Moments of the training split by the name of their Fréchet distance."""
        found = {"frechet_distance": self.statistics.moments}
        if self.inception_statistics is not None:
            found["fid"] = self.inception_statistics.moments
        return found

    def _warn(self, count: int) -> None:
        """Logs, once, that there are too few samples for a covariance."""
        for name, moments in self._references().items():
            if count <= len(moments.mean) and name not in self._warned:
                self._warned.add(name)
                score = self.bias(count)[name]
                _log.warning(
                    f"{name} of {count} samples in {len(moments.mean)} dimensions is "
                    "far too large, their covariance is singular: draw more. As many "
                    f"samples of the data's own distribution would score about "
                    f"{score:.3g} against the {moments.count} of the training split."
                )


def evaluator(
    dataset: data.Dataset,
    cache_dir: str | os.PathLike | None = None,
    progress: bool = True,
    inception: Any = None,
    full: bool = False,
) -> Evaluator:
    """Makes the scores of a data set, out of what is cached as far as it is.

    Trains the classifier once, and computes once the statistics of the features of both
    splits; with Inception on CPU that takes long. A damaged file is reported and made
    anew.

    Args:
      dataset: images, or a mixture with `centers` and `std`.
      cache_dir: where all that is kept; None for `data.cache_dir()`.
      progress: whether to show progress bars meanwhile.
      inception: from `inception.load`, for FID and KID; None leaves them out. On a
        CPU 10,000 samples then take many minutes.
      full: also find kernel distance, precision, recall, density, coverage and the
        coverage of classes, which take seconds more at 10,000 samples.

    Returns:
      A function from samples to scores, with the scores of the test split as
      `floor`.

    Raises:
      ValueError: if the data are neither images nor a mixture.
    """

    def of_split(split, extractor, extract):
        images = getattr(dataset, split)
        title, number = f"features of {dataset.name} {split}", -(-len(images) // BLOCK)

        def make():
            found, parts = Statistics(len(images)), blocks(images, images.shape[1:])
            for part in track(parts, title, number, progress):
                found.add(extract(part))
            _, mean, scatter = found.moments
            return {"mean": mean, "scatter": scatter, "kept": found.kept}

        content = cache.digest((_VERSION, images))[:16]
        name = f"features-{dataset.name}-{split}-{content}-{extractor}"
        arrays = cache.cached(cache_dir, name, make)
        moments = Moments(len(images), arrays["mean"], arrays["scatter"])
        return Statistics(None, moments, [arrays["kept"]])

    inner = known = None
    if dataset.centers is not None:
        if inception is not None:
            raise ValueError(
                f"inception scores images, got the points of {dataset.name!r}: leave "
                "it out."
            )
        classifier, whole = None, Statistics(len(dataset.train))
        whole.add(dataset.train)
    else:
        single, hidden = dataset.single, features
        if single is not None:
            hidden = channel_features
        classifier = fit_classifier(single or dataset, cache_dir, progress)
        extractor = cache.digest(classifier.params)[:16]
        whole = of_split("train", extractor, lambda i: hidden(classifier, i)[0])
        if inception is not None:
            extractor = f"inception-{cache.digest(inception)[:16]}"
            inner, known = (
                of_split(split, extractor, lambda i: network.features(inception, i))
                for split in ("train", "test")
            )
    evaluate = Evaluator(dataset, classifier, whole, inception, inner, full)
    floor = evaluate.measure(dataset.test, known).scores
    return dataclasses.replace(evaluate, floor=floor)
