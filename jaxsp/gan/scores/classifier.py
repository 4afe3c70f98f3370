"""A small classifier, trained once per data set, whose hidden layer gives features."""

import functools
import os
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import traverse_util

from jaxsp.gan import data
from jaxsp.gan.bars import track
from jaxsp.gan.models import halvings, strided_conv
from jaxsp.gan.scores import cache
from jaxsp.gan.scores.batches import apply_to_images

__all__ = ["Classifier", "channel_features", "features", "fit_classifier"]

# Part of the cache key: a change of anything below that changes the weights changes it.
_VERSION = 1
_WIDTH, _FEATURES = 16, 64
_STEPS, _BATCH, _LEARNING_RATE = 1500, 128, 2e-3


class _Network(nn.Module):
    """Strided convolutions and a dense layer: its features, and log-probabilities."""

    num_classes: int

    @nn.compact
    def __call__(self, images):
        h = images
        for level in range(halvings(images.shape[1:])):
            layer = strided_conv(_WIDTH << level, name=f"StridedConv_{level}")
            h = nn.relu(layer(h))
        h = nn.relu(nn.Dense(_FEATURES)(h.reshape(h.shape[0], -1)))
        return h, nn.log_softmax(nn.Dense(self.num_classes)(h))


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


@functools.partial(jax.jit, static_argnames="num_classes")
def _apply(params, images, num_classes: int) -> tuple[jax.Array, jax.Array]:
    """Features and log-probabilities of one batch, of uint8 or in [-1, 1]."""
    out = _Network(num_classes).apply({"params": params}, data.to_unit(images))
    return cast(tuple[jax.Array, jax.Array], out)


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
    params, num_classes, _ = classifier
    network = functools.partial(_apply, params, num_classes=num_classes)
    hidden, found = apply_to_images(network, images, 500)
    return hidden, np.exp(found)


def channel_features(classifier: Classifier, images) -> tuple[np.ndarray, np.ndarray]:
    """Features and class of images of which every channel is judged by itself.

    Args:
      classifier: from `fit_classifier`, of images of one channel.
      images: [n, height, width, channels], uint8, or float in [-1, 1].

    Returns:
      The channels' features one after another [n, channels d], float32, and the number
      [n] whose digits are the channels' classes, the first channel's first.

    Raises:
      ValueError: if images are not of these kinds.
    """
    found = [
        features(classifier, images[..., c : c + 1]) for c in range(images.shape[-1])
    ]
    number = np.zeros(len(images), int)
    for _, probabilities in found:
        number = number * classifier.num_classes + probabilities.argmax(-1)
    return np.concatenate([hidden for hidden, _ in found], axis=-1), number


def fit_classifier(
    dataset: data.Dataset,
    cache_dir: str | os.PathLike | None = None,
    progress: bool = True,
) -> Classifier:
    """Trains the classifier of a data set, or reads it from the cache.

    Deterministic: the seed is fixed, and the cache file is named after the data set,
    the content of its splits, and the recipe. A damaged file is reported and replaced.

    Args:
      dataset: images with labels.
      cache_dir: where to keep it; None for `data.cache_dir()`.
      progress: whether to show a progress bar while training.

    Returns:
      The classifier.

    Raises:
      ValueError: if the data set has no images.
    """
    if dataset.train.ndim != 4:
        raise ValueError(
            "dataset must have images [n, height, width, channels], got "
            f"{dataset.name!r} with samples of shape {dataset.sample_shape}: points "
            "need no classifier, evaluator(dataset) judges them directly."
        )
    recipe = (_VERSION, _WIDTH, _FEATURES, _STEPS, _BATCH, _LEARNING_RATE)
    num_classes = int(dataset.num_classes)
    splits = (dataset.train, dataset.train_labels, dataset.test, dataset.test_labels)

    def make():
        init, image = _Network(num_classes).init, jnp.zeros((1, *dataset.sample_shape))
        params = jax.jit(init)(jax.random.key(0), image)["params"]
        params = _train(params, dataset, progress)
        _, probabilities = features(Classifier(params, num_classes, 0), dataset.test)
        hits = probabilities.argmax(-1) == np.asarray(dataset.test_labels)
        flat = cast(dict, traverse_util.flatten_dict(params, sep="/"))
        return {"test_accuracy": hits.mean(), **flat}

    content = cache.digest((recipe, num_classes, splits))[:16]
    found = cache.cached(cache_dir, f"classifier-{dataset.name}-{content}", make)
    accuracy = float(found.pop("test_accuracy"))
    params = traverse_util.unflatten_dict(found, sep="/")
    return Classifier(jax.tree.map(jnp.asarray, params), num_classes, accuracy)


def _train(params, dataset, progress):
    """Adam on the cross-entropy, the learning rate falling along a cosine."""
    num_classes = int(dataset.num_classes)
    optimizer = optax.adam(optax.cosine_decay_schedule(_LEARNING_RATE, _STEPS))

    def loss(params, images, labels):
        _, found = _apply(params, images, num_classes)
        return optax.softmax_cross_entropy_with_integer_labels(found, labels).mean()

    @jax.jit
    def step(params, state, images, labels):
        updates, state = optimizer.update(jax.grad(loss)(params, images, labels), state)
        return optax.apply_updates(params, updates), state

    state, rng = optimizer.init(params), np.random.default_rng(0)
    title = f"training the classifier of {dataset.name} (once)"
    for _ in track(range(_STEPS), title, enabled=progress):
        batch = rng.integers(len(dataset.train), size=_BATCH)
        images, labels = dataset.train[batch], dataset.train_labels[batch]
        params, state = step(params, state, images, labels)
    return params
