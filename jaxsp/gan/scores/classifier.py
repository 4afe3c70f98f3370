"""A small classifier, trained once per data set, whose hidden layer gives features."""

import functools
import os
import pathlib
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import traverse_util
from tqdm import tqdm

from jaxsp.gan import data
from jaxsp.gan.models import halvings, strided_conv
from jaxsp.gan.scores import cache
from jaxsp.gan.scores.levels import check_levels

__all__ = ["Classifier", "features", "fit_classifier"]

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
            layer = strided_conv(_WIDTH << level, name=f"StridedConv_{level}")
            h = nn.relu(layer(h))
        h = nn.relu(nn.Dense(_FEATURES)(h.reshape(h.shape[0], -1)))
        return h, nn.Dense(self.num_classes)(h)


class Classifier(NamedTuple):
    """A trained classifier whose hidden layer serves as features.

    Attributes:
      params: parameters of the network.
      num_classes: number of classes.
      test_accuracy: share of the test split that it classifies rightly.
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
    images = np.asarray(images)
    check_levels(images)
    return np.asarray(data.to_unit(images), np.float32)


def features(classifier: Classifier, images) -> tuple[np.ndarray, np.ndarray]:
    """Features and class probabilities of images.

    Args:
      classifier: from `fit_classifier`.
      images: [n, height, width, channels], uint8, or float in [-1, 1].

    Returns:
      Features [n, d] and probabilities [n, classes], float32.

    Raises:
      ValueError: if images are not of these kinds.
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
    the shape and content of its splits, and the version of the recipe. A file that
    cannot be read is reported and replaced.

    Args:
      dataset: images with labels.
      cache_dir: where to keep it; None for `data.cache_dir()`.
      progress: whether to show a progress bar while training.

    Returns:
      The classifier.

    Raises:
      ValueError: if the data set has no images or no labels, or its images are
        neither uint8 nor in [-1, 1].
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
        arrays = jax.tree.map(np.asarray, _flat(classifier.params))
        cache.write(path, {"test_accuracy": classifier.test_accuracy, **arrays})
    return classifier


@functools.partial(jax.jit, static_argnums=(0, 1))
def _init(num_classes, shape):
    """The parameters that training starts from."""
    network, images = _Network(num_classes), jnp.zeros(shape)
    return network.init(jax.random.key(0), images)["params"]


def _digest(dataset: data.Dataset) -> str:
    """What weights and accuracy depend on, as sixteen hexadecimal digits."""
    recipe = (_VERSION, _WIDTH, _FEATURES, _STEPS, _BATCH, _LEARNING_RATE)
    classes = int(dataset.num_classes)
    splits = (dataset.train, dataset.train_labels, dataset.test, dataset.test_labels)
    return cache.digest(recipe, classes, splits)


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
    expected = {name: leaf.shape for name, leaf in _flat(like).items()}
    expected["test_accuracy"] = ()

    def check(arrays):
        if expected != {name: array.shape for name, array in arrays.items()}:
            raise ValueError("it holds other parameters")

    arrays = cache.read(path, check)
    if arrays is None:
        return None
    accuracy = float(arrays.pop("test_accuracy"))
    params = traverse_util.unflatten_dict(
        {name: jnp.asarray(array) for name, array in arrays.items()}, sep="/"
    )
    return Classifier(params, num_classes, accuracy)
