"""What a data set may hold: what would be trained on or scored wrongly is refused."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jaxsp.gan import data
from jaxsp.gan.data import dataset

RNG = np.random.default_rng(0)
LEVELS = RNG.integers(0, 256, (20, 4, 4, 1)).astype(np.uint8)
IMAGES = np.asarray(data.to_unit(LEVELS))
POINTS = RNG.normal(0, 9, (20, 2)).astype(np.float32)
LABELS = np.arange(20) % 10


def make(train=LEVELS, train_labels=LABELS, **fields):
    """A data set of ten classes, whose test split is like its training split."""
    fields = {"test": LEVELS, "test_labels": LABELS, "num_classes": 10} | fields
    return data.Dataset("own", train, train_labels, **fields)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (LEVELS / 255, r"float64 from 0 to 1: write 2 \* {} - 1"),
        (LEVELS.astype(np.float32), r"float32 from 0 to 255: write {} / 127.5 - 1"),
        (LEVELS - 128.0, r"from -128 to 127: write 2 \* \({} - \(-128\)\) / 255 - 1"),
        (LEVELS.astype(int), r"{} must be uint8, or floating, got int64"),
        (np.where(LEVELS[3, 2, 1] == LEVELS, np.nan, IMAGES), "{} must be finite"),
        (np.where(LEVELS[3, 2, 1] == LEVELS, -np.inf, IMAGES), "{} must be finite"),
        (LEVELS[:0], r"{} must be images .* of shape \(0, 4, 4, 1\)"),
        (LEVELS[:, 0, 0, 0], r"{} must be images .* of shape \(20,\)"),
    ],
)
def test_samples_that_a_generator_does_not_make_are_refused(
    split, samples, message, monkeypatch
):
    monkeypatch.setattr(dataset, "_CHUNK", 32)  # images are looked at by twos
    with pytest.raises(ValueError, match=message.format(split)):
        make(**{split: samples})


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS + 1, r"0..9 for num_classes=10, got 1..10: write {} - 1\."),
        (LABELS - 1, r"got -1..8: write labels from 0 for {}\."),
        (LABELS + LABELS // 9, r"got 0..10: write num_classes=11\."),
        (LABELS[:-1], r"{} must be integers, one for each of the 20 samples"),
        (LABELS.astype(float), "{} must be integers, .* got float64"),
        (np.eye(10, dtype=int)[LABELS], r"{} must be integers, .* \(20, 10\)"),
        (None, r"{} must be integers, .* got object of shape \(\)"),
    ],
)
def test_labels_that_are_no_classes_are_refused(split, labels, message):
    with pytest.raises(ValueError, match=message.format(f"{split}_labels")):
        make(**{f"{split}_labels": labels})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"test": LEVELS[:, :3]}, r"of one shape, got \(4, 4, 1\) and \(3, 4, 1\)"),
        ({"class_names": ("a", "b")}, "class_names must be 10 names.*got 2: a, b"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"centers": np.zeros((10, 2)), "std": 1.0}, "centers must be .* for points"),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        make(**fields)


def test_stacked_images_are_of_the_data_set_of_one_channel():
    single, three = make(), np.tile(LEVELS, 3)
    given = dict(test=three, num_classes=1000, single=single)
    assert make(three, **given).single is single
    for wrong in ({"num_classes": 100}, {"single": make(three, test=three)}):
        with pytest.raises(ValueError, match="single must be images of one channel"):
            make(three, **given | wrong)


@pytest.mark.parametrize(
    ("centers", "std"),
    [
        (np.zeros((9, 2)), 1.0),
        (np.full((10, 2), np.inf), 1.0),
        (np.zeros((10, 2)), None),
        (np.zeros((10, 2)), 0.0),
        (np.zeros((10, 2)), np.nan),
        (None, 1.0),
    ],
)
def test_modes_that_do_not_fit_are_refused(centers, std):
    points = make(POINTS, test=POINTS, centers=np.zeros((10, 2)), std=1.0)
    with pytest.raises(ValueError, match="centers must be finite, of shape"):
        dataclasses.replace(points, centers=centers, std=std)


@pytest.mark.parametrize(
    "samples",
    [
        LEVELS,
        IMAGES,
        IMAGES * np.float32(1.0005),  # rounding
        jnp.asarray(IMAGES, jnp.bfloat16),
        np.zeros_like(IMAGES),
        np.where(IMAGES.max() > IMAGES, np.abs(IMAGES), -0.01),  # one dark pixel
        POINTS,
        np.abs(POINTS),
    ],
)
def test_what_is_right_is_kept(samples):
    found = make(samples, test=samples)
    np.testing.assert_array_equal(found.train, np.asarray(samples))
    assert found.train.dtype == samples.dtype
    assert found.train_labels.dtype == found.test_labels.dtype == np.int32
    np.testing.assert_array_equal(found.test_labels, LABELS)


def test_what_is_mapped_stays_mapped(tmp_path):
    np.save(tmp_path / "x.npy", IMAGES)
    found = make(np.load(tmp_path / "x.npy", mmap_mode="r"))
    assert isinstance(found.train, np.memmap)
