"""Scores of generated samples that need no download.

Images are judged by a small classifier trained here, once per data set, and cached.
The Fréchet distance between its features is called **classifier Fréchet distance**:
same formula as the FID, but not the Inception network, so its numbers compare runs on
one data set with one another and never with a published FID. Two-dimensional points
are judged directly, without features.
"""

import dataclasses
import functools
import hashlib
import logging
import os
import pathlib
import tempfile
import zipfile
import zlib
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import traverse_util
from tqdm import tqdm

from jaxsp.gan import data
from jaxsp.gan.models import StridedConv, halvings

__all__ = [
    "Classifier",
    "Evaluator",
    "ModeCoverage",
    "Moments",
    "classifier_frechet_distance",
    "classifier_score",
    "evaluator",
    "features",
    "fit_classifier",
    "frechet_distance",
    "mode_coverage",
]

_log = logging.getLogger(__name__)

# Part of the cache key: a change of anything below that changes the weights changes it.
_VERSION = 1
_WIDTH, _FEATURES = 16, 64
_STEPS, _BATCH, _LEARNING_RATE = 1500, 128, 2e-3
_CHUNK = 500


class _Network(nn.Module):
    """Strided convolutions and a dense layer; returns its features and its logits."""

    num_classes: int

    @nn.compact
    def __call__(self, images):
        h = images
        for level in range(halvings(images.shape[1:])):
            h = nn.relu(StridedConv(_WIDTH << level)(h))
        h = nn.relu(nn.Dense(_FEATURES)(h.reshape(h.shape[0], -1)))
        return h, nn.Dense(self.num_classes)(h)


class Classifier(NamedTuple):
    """A trained classifier whose hidden layer serves as features.

    Attributes:
        params: Parameters of the network.
        num_classes: Number of classes.
        test_accuracy: Share of the test split that it classifies rightly.
    """

    params: dict
    num_classes: int
    test_accuracy: float


def _forward(params, images, num_classes: int) -> tuple[jax.Array, jax.Array]:
    """Features and logits of one batch."""
    out = _Network(num_classes).apply({"params": params}, images)
    return cast(tuple[jax.Array, jax.Array], out)


@functools.partial(jax.jit, static_argnums=2)
def _apply(params, images, num_classes):
    """Features and probabilities of one batch."""
    hidden, logits = _forward(params, images, num_classes)
    return hidden, jax.nn.softmax(logits)


def _unit(images) -> np.ndarray:
    """Images as float32 in [-1, 1], from those or from uint8."""
    return np.asarray(data.to_unit(images), np.float32)


def features(classifier: Classifier, images) -> tuple[np.ndarray, np.ndarray]:
    """Features and class probabilities of images.

    Args:
        classifier: From `fit_classifier`.
        images: [n, height, width, channels], uint8, or float in [-1, 1].

    Returns:
        Features [n, d] and probabilities [n, classes], float32.
    """
    hidden, probabilities = [], []
    for start in range(0, len(images), _CHUNK):
        chunk = _unit(images[start : start + _CHUNK])
        size = len(chunk)
        if len(images) > _CHUNK:  # one shape, one compilation
            chunk = np.pad(chunk, [(0, _CHUNK - size)] + [(0, 0)] * (chunk.ndim - 1))
        h, p = _apply(classifier.params, chunk, classifier.num_classes)
        hidden.append(np.asarray(h)[:size])
        probabilities.append(np.asarray(p)[:size])
    return np.concatenate(hidden), np.concatenate(probabilities)


def fit_classifier(
    dataset: data.Dataset,
    cache_dir: str | os.PathLike | None = None,
    progress: bool = True,
) -> Classifier:
    """Trains the classifier of a data set, or reads it from the cache.

    Deterministic: the seed is fixed, and the cache file is named after the data set,
    the shape and content of its training split, and the version of the recipe. A file
    that cannot be read is reported and replaced.

    Args:
        dataset: Images with labels.
        cache_dir: Where to keep it; None for `data.cache_dir()`.
        progress: Whether to show a progress bar while training.

    Returns:
        The classifier.

    Raises:
        ValueError: If the data set has no images or no labels.
    """
    if dataset.train.ndim != 4 or dataset.train_labels is None:
        raise ValueError(
            "dataset must have images [n, height, width, channels] with labels; got "
            f"{dataset.name!r} with samples of shape {dataset.train.shape[1:]}. Points "
            "need no classifier: evaluator(dataset) judges them directly."
        )
    directory = pathlib.Path(data.cache_dir() if cache_dir is None else cache_dir)
    path = directory / f"classifier-{dataset.name}-{_digest(dataset)}.npz"
    num_classes, shape = int(dataset.num_classes), (1, *dataset.train.shape[1:])
    like = jax.eval_shape(lambda: _init(num_classes, shape))
    classifier = _read(path, like, num_classes)
    if classifier is None:
        params = _train(_init(num_classes, shape), dataset, progress)
        classifier = Classifier(params, num_classes, 0.0)
        _, probabilities = features(classifier, dataset.test)
        hits = probabilities.argmax(-1) == np.asarray(dataset.test_labels)
        classifier = classifier._replace(test_accuracy=float(hits.mean()))
        _write(path, classifier)
    return classifier


@functools.partial(jax.jit, static_argnums=(0, 1))
def _init(num_classes, shape):
    """The parameters that training starts from."""
    network, images = _Network(num_classes), jnp.zeros(shape)
    return network.init(jax.random.key(0), images)["params"]


def _digest(dataset: data.Dataset) -> str:
    """What the weights depend on, as sixteen hexadecimal digits."""
    recipe = (_VERSION, _WIDTH, _FEATURES, _STEPS, _BATCH, _LEARNING_RATE)
    digest = hashlib.sha256(repr((recipe, dataset.num_classes)).encode())
    for array in (dataset.train, dataset.train_labels):
        array = np.ascontiguousarray(array)
        digest.update(repr((array.shape, array.dtype.str)).encode())
        digest.update(array.data)
    return digest.hexdigest()[:16]


def _train(params, dataset, progress):
    """Adam on the cross-entropy, the learning rate falling along a cosine."""
    num_classes, images = int(dataset.num_classes), _unit(dataset.train)
    labels = np.asarray(dataset.train_labels, np.int32)
    optimizer = optax.adam(optax.cosine_decay_schedule(_LEARNING_RATE, _STEPS))

    def loss(params, images, labels):
        _, logits = _forward(params, images, num_classes)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean()

    @jax.jit
    def step(params, state, images, labels):
        updates, state = optimizer.update(jax.grad(loss)(params, images, labels), state)
        return optax.apply_updates(params, updates), state

    state, rng = optimizer.init(params), np.random.default_rng(0)
    title = f"training the classifier of {dataset.name} (once)"
    for _ in tqdm(range(_STEPS), title, disable=not progress, mininterval=1.0):
        batch = rng.integers(len(images), size=_BATCH)
        params, state = step(params, state, images[batch], labels[batch])
    return params


def _flat(params) -> dict[str, Any]:
    """Parameters by name, as the file holds them."""
    return cast(dict[str, Any], traverse_util.flatten_dict(params, sep="/"))


def _read(path: pathlib.Path, like, num_classes: int) -> Classifier | None:
    """The cached classifier; None where there is none, or none that can be used."""
    if not path.exists():
        return None
    try:
        # Opened here: np.load leaves its file open where the archive is spoilt.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = dict(file)
        accuracy = float(arrays.pop("test_accuracy"))
        expected = {name: leaf.shape for name, leaf in _flat(like).items()}
        if expected != {name: array.shape for name, array in arrays.items()}:
            raise ValueError("it holds other parameters")
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise ValueError("it holds numbers that are not finite")
    except (
        OSError,
        EOFError,
        KeyError,
        TypeError,
        ValueError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        _log.warning("%s cannot be used (%s): training anew.", path, error)
        return None
    params = traverse_util.unflatten_dict(
        {name: jnp.asarray(array) for name, array in arrays.items()}, sep="/"
    )
    return Classifier(params, num_classes, accuracy)


def _write(path: pathlib.Path, classifier: Classifier) -> None:
    """Puts the classifier in the cache whole, or says why it could not."""
    arrays: dict[str, Any] = jax.tree.map(np.asarray, _flat(classifier.params))
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=path.parent, suffix=".part", delete=False
        ) as file:
            temporary = file.name
            np.savez(file, test_accuracy=classifier.test_accuracy, **arrays)
        os.replace(temporary, path)
    except OSError as error:
        _log.warning("%s could not be written (%s).", path, error)
        if temporary is not None:
            pathlib.Path(temporary).unlink(missing_ok=True)


class Moments(NamedTuple):
    """Mean and covariance of points, gathered in parts and merged in any order.

    Attributes:
        count: Number of points.
        mean: Mean [d].
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


def frechet_distance(mean1, cov1, mean2, cov2) -> float:
    """Squared Fréchet (2-Wasserstein) distance of two Gaussians.

        |m₁ − m₂|² + tr C₁ + tr C₂ − 2 tr (C₁^½ C₂ C₁^½)^½

    The last trace is the sum of the singular values of C₁^½ C₂^½. Taken so, nothing is
    lost to the square root of a small eigenvalue, singular covariances need no added
    diagonal, and the value is symmetric in its arguments.

    Args:
        mean1: Mean [d] of the first.
        cov1: Covariance [d, d] of the first, symmetric positive semidefinite.
        mean2: Mean of the second.
        cov2: Covariance of the second.

    Returns:
        The distance, in float64, at least 0.

    Raises:
        ValueError: If shapes do not fit or a number is not finite.

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
                f"{name} must be finite, of shape {wanted} with d the length of mean1; "
                f"got shape {array.shape}."
            )
    mean1, cov1, mean2, cov2 = arrays
    cross = np.linalg.svd(_square_root(cov1) @ _square_root(cov2), compute_uv=False)
    shift = mean1 - mean2
    distance = shift @ shift + np.trace(cov1) + np.trace(cov2) - 2 * cross.sum()
    return max(float(distance), 0.0)


def _square_root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric square root; eigenvalues below rounding are zero."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    floor = len(values) * np.finfo(np.float64).eps * np.abs(values).max()
    return vectors * np.sqrt(np.where(values > floor, values, 0.0)) @ vectors.T


def classifier_frechet_distance(
    classifier: Classifier, reference: Moments, samples
) -> float:
    """Classifier Fréchet distance (CFD): `frechet_distance` between features.

    Not the FID: the features are those of `fit_classifier`, so values compare on one
    data set only. As with the FID, few samples bias it upwards; compare values of equal
    numbers of samples.

    Args:
        classifier: From `fit_classifier`.
        reference: Moments of the features of real images.
        samples: Images [n, height, width, channels], uint8, or float in [-1, 1].

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


def classifier_score(probabilities) -> float:
    """exp(E KL(p(y|s) ‖ p(y))): the Inception score's formula on any classifier.

    1 where every sample gets the same answer, the number of classes where every answer
    is certain and all classes are equally frequent.

    Args:
        probabilities: Class probabilities of the samples, [n, classes].

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


class ModeCoverage(NamedTuple):
    """How samples cover the modes of a mixture.

    Attributes:
        modes_covered: Modes that are the nearest of at least one high-quality sample.
        high_quality: Share of the samples within `threshold` standard deviations of a
            mode.
        counts: High-quality samples of every mode.
    """

    modes_covered: int
    high_quality: float
    counts: np.ndarray


def mode_coverage(points, centers, std: float, threshold: float = 3.0) -> ModeCoverage:
    """Counts the modes of a Gaussian mixture that samples reach.

    Args:
        points: Samples [n, d].
        centers: Means of the components [modes, d].
        std: Standard deviation of every component, in each direction.
        threshold: A sample is of high quality within this many standard deviations of
            its nearest center.

    Returns:
        Modes covered, share of high-quality samples, and their counts.

    Raises:
        ValueError: If shapes do not fit, or std or threshold is not positive.

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


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Judges samples of one data set; call it with samples.

    The reference is the training split. `floor` is what the real test split gets from
    the same code: about the best a generator can be asked for, with as many samples.
    The Fréchet distance of few samples is biased upwards, so 10,000 samples may come
    out below the floor of a small split (digits has 297 images to test). Images:
    `frechet_distance` (CFD), `classifier_score`, `classes_covered` (classes that at
    least a tenth of their uniform share of samples are assigned to). Mixtures:
    `frechet_distance` of the points, `modes_covered`, `high_quality`. Samples that are
    not finite, from a diverged run, score NaN throughout.

    Attributes:
        dataset: What the samples imitate.
        classifier: The classifier of images; None for points.
        reference: Moments of the training split, of features or of points.
        floor: The scores of the test split.
    """

    dataset: data.Dataset
    classifier: Classifier | None
    reference: Moments
    floor: dict[str, float] = dataclasses.field(default_factory=dict)

    def __call__(self, samples) -> dict[str, float]:
        """The scores of samples: images in [-1, 1] (or uint8), or points."""
        samples = np.asarray(samples)
        if samples.shape[1:] != self.dataset.train.shape[1:] or len(samples) == 0:
            raise ValueError(
                f"samples must be of shape {('n', *self.dataset.train.shape[1:])} with "
                f"n >= 1, as {self.dataset.name!r} is; got {samples.shape}."
            )
        finite = bool(np.isfinite(samples).all())
        if not finite:
            samples = np.zeros_like(samples)
        points = self.classifier is None
        found = self._points(samples) if points else self._images(samples)
        return found if finite else {name: float("nan") for name in found}

    def _points(self, samples) -> dict[str, float]:
        """Scores of points."""
        std = float(self.dataset.std or 0)
        modes, quality, _ = mode_coverage(samples, self.dataset.centers, std)
        return {
            "frechet_distance": _distance(self.reference, Moments.of(samples)),
            "modes_covered": float(modes),
            "high_quality": quality,
        }

    def _images(self, samples) -> dict[str, float]:
        """Scores of images."""
        classifier = cast(Classifier, self.classifier)
        hidden, probabilities = features(classifier, samples)
        classes = classifier.num_classes
        counts = np.bincount(probabilities.argmax(-1), minlength=classes)
        covered = (counts > 0) & (counts >= 0.1 * len(samples) / classes)
        return {
            "frechet_distance": _distance(self.reference, Moments.of(hidden)),
            "classifier_score": classifier_score(probabilities),
            "classes_covered": float(covered.sum()),
        }


def evaluator(
    dataset: data.Dataset,
    cache_dir: str | os.PathLike | None = None,
    progress: bool = True,
) -> Evaluator:
    """Makes the scores of a data set; trains its classifier if it is not cached.

    Args:
        dataset: Labelled images, or a mixture with `centers` and `std`.
        cache_dir: Where the classifier is kept; None for `data.cache_dir()`.
        progress: Whether to show a progress bar while training it.

    Returns:
        A function from samples to scores, with the scores of the test split as
        `floor`.
    """
    if dataset.centers is not None:
        judge = Evaluator(dataset, None, Moments.of(dataset.train))
    else:
        classifier = fit_classifier(dataset, cache_dir, progress)
        reference = Moments.of(features(classifier, dataset.train)[0])
        judge = Evaluator(dataset, classifier, reference)
    return dataclasses.replace(judge, floor=judge(dataset.test))
