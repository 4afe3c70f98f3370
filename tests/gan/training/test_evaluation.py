"""Samples beside real ones."""

import jax
import numpy as np
import pytest
from flax import linen as nn

from jaxsp.gan import data, models, program
from jaxsp.gan.training import evaluation, plots


class Classes(nn.Module):
    """Images as bright as their class."""

    shape: tuple[int, ...]

    @nn.compact
    def __call__(self, latents):
        label = latents[:, -3:].argmax(-1)
        self.param("none", nn.initializers.zeros, ())
        ones = np.ones((1, *self.shape), np.float32)
        return ones * (label - 1.0).reshape(-1, *[1] * len(self.shape))


def draw(monkeypatch, shape, classes, **given):
    """What `draw_samples` has drawn of data whose images are as bright as theirs."""
    labels = np.array([0, 1, 2, 1, 0, 2] * 4)
    images = (100 * labels).astype(np.uint8).reshape(-1, *[1] * len(shape))
    images = np.broadcast_to(images, (len(labels), *shape))
    dataset = data.Dataset("own", images, labels, images, labels, 3, **given)
    gan = models.Gan(Classes(shape), nn.Dense(1), 5, shape, classes)
    drawn = []
    monkeypatch.setattr(plots, "plot_samples", lambda *args: drawn.append(args))
    x = gan.generator.init(jax.random.key(0), np.zeros((1, 5)))["params"]
    sample = program.sampler(gan)
    key = jax.random.key(1)
    evaluation.draw_samples(gan, sample, x, key, dataset, "a.png", "title")
    return drawn


def test_a_class_has_a_column_with_its_name_and_a_real_image(monkeypatch):
    names = ("cat", "dog", "frog")
    ((shown, _, real, title, columns),) = draw(
        monkeypatch, (4, 4, 1), 3, class_names=names
    )
    assert (title, columns) == ("title", names)
    np.testing.assert_array_equal(shown[:, 0, 0, 0], [-1, 0, 1] * 8)
    np.testing.assert_array_equal(real[:, 0, 0, 0], [0, 100, 200])


def test_without_classes_real_images_come_from_all_over_the_data(monkeypatch):
    ((shown, _, real, _, columns),) = draw(monkeypatch, (4, 4, 3), 0)
    assert (len(shown), len(real), columns) == (64, 8, ())
    assert {0, 100, 200} == set(np.unique(real))


@pytest.mark.parametrize("shape", [(4, 4, 2), (4, 4, 4)])
def test_what_is_no_picture_is_not_drawn(monkeypatch, shape):
    assert draw(monkeypatch, shape, 0) == []
