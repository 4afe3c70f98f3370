"""Data sets by their sizes alone."""

import numpy as np
import pytest

from jaxsp.gan import data
from jaxsp.gan.data import datasets, official


@pytest.fixture(autouse=True)
def no_data(tmp_path, monkeypatch):
    """Neither prepared data nor a network, and a cache of one's own."""
    monkeypatch.setenv("JAXSP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(official, "read", None)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))


@pytest.mark.parametrize("name", data.NAMES)
def test_an_outline_needs_no_files_and_no_memory(name, tmp_path):
    found, real = data.outline(name)
    assert list(tmp_path.iterdir()) == []
    assert found.name == name
    assert len(found.train) == len(found.train_labels) >= 1500
    counts = np.bincount(found.train_labels)
    assert len(counts) == found.num_classes
    small = ("digits", "mixture_ring", "mixture_grid", "stacked_digits")
    assert real == (name in small)
    if not real:
        assert counts.max() - counts.min() <= 1
        assert not any(found.train.strides)
        assert found.train.dtype == np.uint8


def test_labels_that_were_read_once_are_taken(tmp_path):
    root, _, cache = datasets._places("mnist", None)
    assert root == tmp_path / "tfds"
    labels = np.repeat(np.arange(10, dtype=np.int32), [55, *[5] * 9]), np.arange(10)
    images = (np.zeros((len(found), 28, 28, 1), np.uint8) for found in labels)
    (train, test), (train_labels, test_labels) = images, labels
    assert datasets._write_cache(cache, (train, train_labels, test, test_labels))
    found, real = data.outline("mnist")
    assert real
    assert found.train.shape == (100, 28, 28, 1)
    assert not any(found.train.strides)
    np.testing.assert_array_equal(found.train_labels, train_labels)
    (tmp_path / "cache" / cache.name / "test_labels.npy").write_bytes(b"damaged")
    assert not data.outline("mnist")[1]
