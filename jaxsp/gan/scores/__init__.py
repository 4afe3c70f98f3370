"""Scores of generated samples.

Images are judged by a small classifier trained here, once per data set, and cached. The
Fréchet distance between its features is called **classifier Fréchet distance**: same
formula as the FID, but not the Inception network, so its numbers compare runs on one
data set with one another and never with a published FID. Where the weights of the
Inception network are given, FID and KID are found as they are published.
Two-dimensional points are judged directly, without features. Nothing is downloaded.
"""

from jaxsp.gan.scores import inception
from jaxsp.gan.scores.classes import (
    ModeCoverage,
    class_coverage,
    classes_covered,
    classifier_score,
    mode_coverage,
    reverse_kl,
)
from jaxsp.gan.scores.classifier import Classifier, features, fit_classifier
from jaxsp.gan.scores.distances import (
    KernelDistance,
    expected_frechet_distance,
    frechet_distance,
    kernel_distance,
)
from jaxsp.gan.scores.evaluate import (
    Evaluator,
    Measurement,
    classifier_frechet_distance,
    evaluator,
)
from jaxsp.gan.scores.neighbors import (
    NeighborScores,
    neighbor_distances,
    neighbor_scores,
)
from jaxsp.gan.scores.statistics import Moments

__all__ = [
    "Classifier",
    "Evaluator",
    "KernelDistance",
    "Measurement",
    "ModeCoverage",
    "Moments",
    "NeighborScores",
    "class_coverage",
    "classes_covered",
    "classifier_frechet_distance",
    "classifier_score",
    "evaluator",
    "expected_frechet_distance",
    "features",
    "fit_classifier",
    "frechet_distance",
    "inception",
    "kernel_distance",
    "mode_coverage",
    "neighbor_distances",
    "neighbor_scores",
    "reverse_kl",
]
