"""The scores of one data set, as a function of samples."""

import dataclasses
import logging
import os
import pathlib
from typing import Any, NamedTuple, cast

import numpy as np

from jaxsp.gan import data
from jaxsp.gan.scores import cache, statistics
from jaxsp.gan.scores import inception as network
from jaxsp.gan.scores.classes import class_coverage, classes_covered, classifier_score
from jaxsp.gan.scores.classifier import Classifier, features, fit_classifier
from jaxsp.gan.scores.frechet import expected_frechet_distance, frechet_distance
from jaxsp.gan.scores.kernel import kernel_distance
from jaxsp.gan.scores.modes import mode_coverage
from jaxsp.gan.scores.moments import Moments
from jaxsp.gan.scores.neighbors import neighbor_scores
from jaxsp.gan.scores.statistics import Gatherer, Statistics

__all__ = ["Evaluator", "Measurement", "classifier_frechet_distance", "evaluator"]

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
    found = Moments.of(features(classifier, samples)[0])
    return _distance(reference, found)


def _distance(reference: Moments, found: Moments) -> float:
    """`frechet_distance` of two sets of moments."""
    return frechet_distance(
        reference.mean, reference.covariance, found.mean, found.covariance
    )


def _expected(reference: Moments, count: int) -> float:
    """Fréchet distance of so many samples of what the reference is a sample of."""
    covariance = reference.covariance
    return sum(
        expected_frechet_distance(covariance, n) for n in (count, reference.count)
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


class _Gathered(NamedTuple):
    """What is kept of samples while they come."""

    statistics: Statistics  # of the classifier's features, or of points
    inception: Statistics | None
    counts: np.ndarray
    shares: dict[str, float]  # scores that need every sample alone


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluator:
    """Judges samples of one data set; call it with samples.

    The reference is the training split. `floor` is what the real test split gets from
    the same code: about the best a generator can be asked for, with as many samples.
    The Fréchet distance is biased upwards, the more the fewer samples there are, so
    10,000 samples may come out below the floor of a small split (digits has 297 images
    to test); the training split being finite adds to it as well, the same for all
    samples. `bias` says how much both make together, and where there are not more
    samples than features it is logged, once.

    Images: `frechet_distance` (of the classifier's features, CFD), `classifier_score`,
    `classes_covered` (classes that at least a tenth of their uniform share of samples
    are assigned to). With `inception` also `fid`, `kid` and `kid_std`. If `full`, also
    `precision`, `recall`, `density` and `coverage` on Inception features, or on the
    classifier's where there is no Inception, and then `kernel_distance` and
    `kernel_distance_std` too; and `least_class_coverage`, the smallest entry of
    `class_coverage`. Mixtures: `frechet_distance` of the points, `modes_covered`,
    `high_quality`, and if `full` the four of neighbours. Samples that are not finite,
    from a diverged run, score NaN throughout.

    Samples may come as one array or as an iterable of batches, of any number: moments
    are gathered on the way, and kernel distances and neighbours see at most 10,000
    features a side, of an array evenly spaced, of an iterable the first.

    Attributes:
      dataset: what the samples imitate.
      classifier: the classifier of images; None for points.
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
    _warned: set[str] = dataclasses.field(default_factory=set, repr=False)

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
            none, or for the scores of `full` fewer than 4.
        """
        return self.measure(samples).scores

    def measure(self, samples) -> Measurement:
        """As a call, with the samples of each class or mode beside the scores."""
        gathered = self._gather(samples)
        if gathered is None:
            return Measurement(dict.fromkeys(self.floor, float("nan")), None)
        return Measurement(self._scores(gathered), gathered.counts)

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
        return {
            name: _expected(found.moments, count)
            for name, found in self._references().items()
        }

    def _references(self) -> dict[str, Statistics]:
        """Statistics of the training split by the name of their Fréchet distance."""
        found = {"frechet_distance": self.statistics}
        if self.inception_statistics is not None:
            found["fid"] = self.inception_statistics
        return found

    def _checked(self, samples):
        """Blocks of samples of the right shape."""
        shape = self.dataset.train.shape[1:]
        whole = [samples] if hasattr(samples, "shape") else samples

        def batches():
            for batch in whole:
                batch = batch if hasattr(batch, "shape") else np.asarray(batch)
                if batch.shape[1:] != shape or len(batch) == 0:
                    raise ValueError(
                        f"samples must be of shape {('n', *shape)} with n >= 1, as "
                        f"{self.dataset.name!r} is, or an iterable of such arrays; got "
                        f"{batch.shape}."
                    )
                yield from statistics.blocks(batch)

        return statistics.blocks(batches())

    def _gather(self, samples, inception: Statistics | None = None) -> _Gathered | None:
        """One pass over the samples; None if any is not finite.

        `inception`: what is known of their Inception features already.
        """
        total = len(samples) if hasattr(samples, "shape") else None
        found, inner = Gatherer(total), Gatherer(total)
        classes: Any = self.classifier and []
        inside, counts = 0, 0
        for block in self._checked(samples):
            if not np.isfinite(block).all():
                return None
            if self.classifier is None:
                std = float(self.dataset.std or 0)
                seen = mode_coverage(block, self.dataset.centers, std)
                counts, inside = counts + seen.counts, inside + seen.counts.sum()
                found.add(block)
                continue
            hidden, probabilities = features(self.classifier, block)
            found.add(hidden)
            classes.append(probabilities)
            if self.inception is not None and inception is None:
                inner.add(network.features(self.inception, block))
        whole = found.statistics()
        if self.classifier is None:
            shares = {
                "modes_covered": float((np.asarray(counts) > 0).sum()),
                "high_quality": float(inside / whole.moments.count),
            }
            return _Gathered(whole, None, np.asarray(counts), shares)
        probabilities = np.concatenate(classes)
        count = self.classifier.num_classes
        counts = np.bincount(probabilities.argmax(-1), minlength=count)
        shares = {
            "classifier_score": classifier_score(probabilities),
            "classes_covered": float(classes_covered(counts)),
        }
        if self.inception is not None and inception is None:
            inception = inner.statistics()
        return _Gathered(whole, inception, counts, shares)

    def _scores(self, gathered: _Gathered) -> dict[str, float]:
        """The scores of what was gathered."""
        self._warn(gathered.statistics.moments.count)
        reference, found = self.statistics, gathered.statistics
        distance = _distance(reference.moments, found.moments)
        result = {"frechet_distance": distance, **gathered.shares}
        kernel = "kernel_distance" if self.full and self.classifier else None
        if gathered.inception is not None:
            reference = cast(Statistics, self.inception_statistics)
            found, kernel = gathered.inception, "kid"
            result["fid"] = _distance(reference.moments, found.moments)
        if kernel is not None:
            mean, std = kernel_distance(reference.kept, found.kept)
            result |= {kernel: mean, f"{kernel}_std": std}
        if self.full:
            near = neighbor_scores(
                reference.kept, found.kept, real_distances=reference.distances
            )
            result |= near._asdict()
            if self.classifier is not None:
                labels = np.bincount(
                    self.dataset.train_labels, minlength=len(gathered.counts)
                )
                ratios = class_coverage(gathered.counts, labels)
                result["least_class_coverage"] = float(np.nanmin(ratios))
        return result

    def _warn(self, count: int) -> None:
        """Log, once, that there are too few samples for a covariance."""
        for name, found in self._references().items():
            d = len(found.moments.mean)
            if count > d or name in self._warned:
                continue
            self._warned.add(name)
            here, more = (_expected(found.moments, n) for n in (count, statistics.KEPT))
            _log.warning(
                "%s of %d samples in %d dimensions is far too large: their covariance "
                "is singular. As many samples of the data's own distribution would "
                "score about %.3g against the %d of the training split, and %d of them "
                "%.3g.",
                name,
                count,
                d,
                here,
                found.moments.count,
                statistics.KEPT,
                more,
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
      dataset: labelled images, or a mixture with `centers` and `std`.
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
      ValueError: if the data are neither labelled images nor a mixture.
    """
    if dataset.centers is not None:
        if inception is not None:
            raise ValueError(
                f"inception scores images, and {dataset.name!r} holds points: leave it "
                "out."
            )
        whole = Gatherer(len(dataset.train))
        whole.add(dataset.train)
        evaluate = Evaluator(dataset, None, whole.statistics(), full=full)
        return dataclasses.replace(
            evaluate, floor=evaluate(dataset.test), _warned=set()
        )

    classifier = fit_classifier(dataset, cache_dir, progress)
    directory = pathlib.Path(data.cache_dir() if cache_dir is None else cache_dir)

    def of_split(split, images, extract, digest):
        path = directory / statistics.cache_name(dataset.name, images, digest)
        title = f"features of {dataset.name} {split} (once)"
        return statistics.of_images(images, extract, path, title, progress)

    digest = cache.digest(classifier.params)
    found = of_split(
        "train", dataset.train, lambda i: features(classifier, i)[0], digest
    )
    evaluate = Evaluator(dataset, classifier, found, full=full)
    inner = None
    if inception is not None:
        digest = "inception-" + cache.digest(inception)

        def extract(images):
            return network.features(inception, images)

        evaluate = dataclasses.replace(
            evaluate,
            inception=inception,
            inception_statistics=of_split("train", dataset.train, extract, digest),
        )
        inner = of_split("test", dataset.test, extract, digest)
    gathered = evaluate._gather(dataset.test, inner)
    floor = evaluate._scores(cast(_Gathered, gathered))
    return dataclasses.replace(evaluate, floor=floor, _warned=set())
