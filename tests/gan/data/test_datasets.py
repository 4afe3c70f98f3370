"""Data sets are what they are said to be, need no network, and draw uniformly."""

import hashlib
import itertools
import json
import os
import pathlib
import socket
import subprocess
import sys

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from small_tfds import SHAPES, SPLITS, prepare, raw_image

from jaxsp.gan import data
from jaxsp.gan.data import partition

# --- what needs no files ---


def test_digits_are_scikit_learns():
    digits = data.load("digits")
    assert (digits.name, digits.sample_shape) == ("digits", (8, 8, 1))
    assert (len(digits.train), len(digits.test)) == (1500, 297)
    assert digits.train.dtype == digits.test.dtype == np.uint8
    assert digits.train_labels.dtype == digits.test_labels.dtype == np.int32
    assert digits.num_classes == 10
    assert digits.class_names == tuple("0123456789")
    # 0..16 become 17 different levels that span 0..255.
    levels = np.unique(digits.train)
    assert len(levels) == 17
    assert levels[[0, -1]].tolist() == [0, 255]
    # The very first image is a 0 whose second row is 0 0 13 15 10 15 5 0.
    assert digits.test_labels[0] == 0
    second_row = np.round(digits.test[0, 1, :, 0] / 255 * 16)
    assert second_row.tolist() == [0, 0, 13, 15, 10, 15, 5, 0]


def test_digits_split_is_stratified_and_complete():
    from sklearn.datasets import load_digits

    digits = data.load("digits")
    ours = np.concatenate([digits.train, digits.test]).reshape(-1, 64)
    theirs = np.round(load_digits().data * 255 / 16)
    assert sorted(ours.tolist()) == sorted(theirs.tolist())
    share = np.bincount(digits.test_labels) / np.bincount(load_digits().target)
    np.testing.assert_allclose(share, 297 / 1797, atol=1 / 174)


@pytest.mark.parametrize(
    ("name", "modes", "std"),
    [("mixture_ring", 8, 0.02), ("mixture_grid", 25, 0.05), ("mixture", 8, 0.02)],
)
def test_mixture_moments(name, modes, std):
    mixture = data.load(name)
    assert mixture.name == ("mixture_ring" if name == "mixture" else name)
    assert mixture.train.dtype == mixture.centers.dtype == np.float32
    assert mixture.train_labels.dtype == np.int32
    assert mixture.sample_shape == (2,)
    assert len(mixture.train) == len(mixture.train_labels) == 50_000
    assert len(mixture.test) == len(mixture.test_labels) == 10_000
    assert mixture.num_classes == modes
    assert mixture.centers.shape == (modes, 2)
    assert mixture.std == std
    counts = np.bincount(mixture.train_labels, minlength=modes)
    assert (np.abs(counts - 50_000 / modes) < 5 * np.sqrt(50_000 / modes)).all()
    for label in range(modes):
        points = mixture.train[mixture.train_labels == label]
        error = 5 * std / np.sqrt(len(points))
        center, cov = mixture.centers[label], std**2 * np.eye(2)
        np.testing.assert_allclose(points.mean(axis=0), center, atol=error)
        np.testing.assert_allclose(np.cov(points.T), cov, atol=8 * std * error / 5)
    # Every point lies nearest to the mode that labels it.
    distance = np.linalg.norm(mixture.test[:, None] - mixture.centers, axis=-1)
    np.testing.assert_array_equal(distance.argmin(axis=1), mixture.test_labels)
    assert not np.isin(mixture.test[:, 0], mixture.train[:, 0]).all()


def test_stacked_digits_are_three_digits_each():
    """Every channel is an image of the split; the label is the number they write."""
    stacked, digits = data.load("stacked_digits"), data.load("digits")
    assert (stacked.name, stacked.sample_shape) == ("stacked_digits", (8, 8, 3))
    assert (len(stacked.train), len(stacked.test)) == (50_000, 26_000)
    assert stacked.train.dtype == np.uint8
    assert (stacked.num_classes, stacked.class_names[42]) == (1000, "042")
    np.testing.assert_array_equal(stacked.single.train, digits.train)
    for split in ("train", "test"):
        known = {
            image.tobytes(): label
            for image, label in zip(
                getattr(digits, split), getattr(digits, f"{split}_labels"), strict=True
            )
        }
        images = getattr(stacked, split)[:500]
        labels = getattr(stacked, f"{split}_labels")[:500]
        for image, label in zip(images, labels, strict=True):
            channels = np.ascontiguousarray(np.moveaxis(image, -1, 0))
            digit = [known[channel.tobytes()] for channel in channels]
            assert 100 * digit[0] + 10 * digit[1] + digit[2] == label
    counts = np.bincount(stacked.train_labels, minlength=1000)
    assert counts.min() > 0
    channels = stacked.train[:, :, :, 0] != stacked.train[:, :, :, 1]
    assert channels.any(axis=(1, 2)).mean() > 0.99  # drawn apart


def test_mixture_centers():
    ring = data.load("mixture_ring").centers
    np.testing.assert_allclose(np.linalg.norm(ring, axis=1), 2, rtol=1e-6)
    np.testing.assert_allclose(ring[[0, 2]], [[2, 0], [0, 2]], atol=1e-6)
    grid = data.load("mixture_grid").centers
    wanted = itertools.product((-4, -2, 0, 2, 4), repeat=2)
    assert set(map(tuple, grid.tolist())) == set(wanted)


def test_loading_twice_gives_the_same():
    for name in ("digits", "mixture_ring", "mixture_grid"):
        np.testing.assert_equal(vars(data.load(name)), vars(data.load(name)))


# --- pixels ---


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32, jnp.float64])
def test_every_level_survives_the_round_trip(dtype, x64):
    levels = np.arange(256, dtype=np.uint8)
    unit = data.to_unit(levels, dtype)
    assert unit.dtype == dtype
    assert unit[0] == -1
    assert unit[255] == 1
    assert (jnp.diff(unit) > 0).all()
    np.testing.assert_array_equal(data.to_uint8(unit), levels)
    assert data.to_uint8(unit).dtype == jnp.uint8


def test_to_uint8_rounds_and_clips():
    samples = np.array([-9, -1.001, 1.001, 9, 0.0039, 0.0], np.float32)
    assert data.to_uint8(samples).tolist() == [0, 0, 255, 255, 128, 128]


def test_to_unit_keeps_points_and_refuses_integers():
    points = data.load("mixture_grid").train[:100]
    np.testing.assert_array_equal(data.to_unit(points), points)
    with pytest.raises(ValueError, match="uint8 or floating, got int32"):
        data.to_unit(np.arange(3, dtype=np.int32))


# --- batches ---


def test_draw_is_uniform_over_the_share_and_never_draws_padding():
    # A very unequal partition of 100 examples, whose rows tell their own index.
    index = np.arange(1, 101, dtype=np.int32)
    parts = [np.arange(1), np.arange(1, 4), np.arange(4, 100)]
    shares, sizes = partition.stack(index, parts)
    keys = jax.random.split(jax.random.key(0), 3)
    draw = jax.jit(jax.vmap(lambda *args: data.draw(*args, 10_000)))
    drawn = draw(keys, shares, sizes)
    for batch, part in zip(np.asarray(drawn), parts, strict=True):
        counts = np.bincount(batch, minlength=101)
        assert counts[index[part]].sum() == 10_000
        # Chi-square with k − 1 degrees of freedom: mean k − 1, variance 2 (k − 1).
        expected = 10_000 / len(part)
        chi2 = ((counts[index[part]] - expected) ** 2 / expected).sum()
        assert abs(chi2 - (len(part) - 1)) <= 4 * np.sqrt(2 * (len(part) - 1))


@hypothesis.given(st.integers(0, 2**32 - 1), st.integers(1, 7))
def test_draw_takes_the_same_rows_of_each_array(seed, size):
    labels = np.arange(7, dtype=np.int32)
    images = np.broadcast_to(labels[:, None, None], (7, 2, 3)).astype(np.uint8)
    key = jax.random.key(seed)
    x, label = data.draw(key, (images, labels), size, batch_size=9)
    assert x.shape == (9, 2, 3)
    assert x.dtype == jnp.uint8
    assert label.dtype == jnp.int32
    assert (x == label[:, None, None]).all()
    assert ((label >= 0) & (label < size)).all()
    np.testing.assert_array_equal(data.draw(key, labels, size, batch_size=9), label)


def test_draw_gives_the_same_batch_with_float64_on():
    labels = np.arange(1000, dtype=np.int32)
    narrow = data.draw(jax.random.key(3), labels, 900, batch_size=16)
    with jax.enable_x64(True):
        wide = data.draw(jax.random.key(3), labels, 900, batch_size=16)
    np.testing.assert_array_equal(narrow, wide)


def test_draw_refuses_an_empty_batch():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        data.draw(jax.random.key(0), np.arange(3), 3, batch_size=0)


# --- TFDS directories ---


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A directory with the four data sets, a few images each."""
    root = tmp_path_factory.mktemp("tfds")
    for name in SHAPES:
        prepare(name, root)
    return root


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Nothing in this file may open a connection."""

    def refuse(*args, **kwargs):
        raise AssertionError("a test of local data tried to use the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    path = tmp_path / "cache"
    monkeypatch.setenv("JAXSP_CACHE_DIR", str(path))
    return path


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_tfds_images_and_labels(name, prepared, own_cache):
    dataset = data.load(name, prepared)
    assert dataset.name == name
    assert dataset.num_classes == len(dataset.class_names) == 10
    assert dataset.sample_shape == SHAPES[name]
    for split in SPLITS:
        images = getattr(dataset, split)
        labels = getattr(dataset, f"{split}_labels")
        assert images.dtype == np.uint8
        assert labels.dtype == np.int32
        assert sorted(labels.tolist()) == list(range(SPLITS[split]))
        for image, label in zip(images, labels, strict=True):
            expected = np.asarray(raw_image(name, split, int(label)))
            np.testing.assert_array_equal(image, expected.reshape(SHAPES[name]))


def test_celeb_a_is_cropped_resized_and_labelled(prepared, own_cache):
    dataset = data.load("celeb_a", prepared)
    assert dataset.train.shape == (7, 64, 64, 3)
    assert dataset.test.shape == (4, 64, 64, 3)
    assert dataset.num_classes == len(dataset.class_names) == 2
    found = []
    for image, label in zip(dataset.train, dataset.train_labels, strict=True):
        # The mean of 178 / 64 pixels a side is near the value at the centre.
        errors = []
        for number in range(SPLITS["train"]):
            raw = np.asarray(raw_image("celeb_a", "train", number), float)
            at = np.round((np.arange(64) + 0.5) * 178 / 64 - 0.5).astype(int)
            errors.append(np.abs(raw[20:198][at][:, at] - image).mean())
        found.append(int(np.argmin(errors)))
        assert min(errors) < 2
        assert label == found[-1] % 2
    assert sorted(found) == list(range(7))


def test_second_load_reads_the_cache_alone(prepared, own_cache, monkeypatch):
    first = data.load("mnist", prepared)
    (cache,) = own_cache.iterdir()
    assert {path.suffix for path in cache.iterdir()} == {".npy", ".json"}
    assert isinstance(first.train, np.memmap)  # what is not used is not read
    # Neither TFDS nor a decoder is needed now.
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    monkeypatch.setattr(data.prepared, "read", None)
    np.testing.assert_equal(vars(data.load("mnist", prepared)), vars(first))


def test_cache_is_not_used_for_other_files(tmp_path, own_cache, monkeypatch):
    before = data.load("mnist", prepare("mnist", tmp_path / "a").parents[1])
    other = prepare("mnist", tmp_path / "b")  # same name and version, other place
    assert len(data.load("mnist", tmp_path / "b").train) == 7
    monkeypatch.setitem(SPLITS, "train", 3)
    prepare("mnist", tmp_path / "c")
    for path in (tmp_path / "c/mnist/3.0.1").iterdir():  # prepared anew in place
        os.replace(path, other / path.name)
    assert len(data.load("mnist", tmp_path / "b").train) == 3
    again = data.load("mnist", tmp_path / "a")
    np.testing.assert_array_equal(again.train, before.train)


def test_damaged_cache_is_replaced(prepared, own_cache):
    first = data.load("mnist", prepared)
    (cache,) = own_cache.iterdir()
    images = np.array(first.train)
    whole = (cache / "train.npy").read_bytes()
    flipped = whole[:-1] + bytes([whole[-1] ^ 16])
    for damaged in (whole[:1000], flipped, b"", b"no array", None):
        (cache / "train.npy").unlink()
        if damaged is not None:
            (cache / "train.npy").write_bytes(damaged)
        np.testing.assert_array_equal(data.load("mnist", prepared).train, images)
        np.testing.assert_array_equal(np.load(cache / "train.npy"), images)
        assert list(own_cache.iterdir()) == [cache]
        assert len(list(cache.iterdir())) == 5


def test_unwritable_cache_is_no_error(prepared, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JAXSP_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert len(data.load("mnist", prepared).train) == 7
    assert "cannot be kept in" in caplog.text


def test_data_dir_comes_from_the_environment(prepared, own_cache, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    assert len(data.load("mnist").train) == 7
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(own_cache.parent))
    (own_cache.parent / "tensorflow_datasets").symlink_to(prepared)
    assert len(data.load("mnist").train) == 7


def test_newest_array_record_version_is_read(tmp_path, own_cache, monkeypatch):
    for version, size in (("3.0.9", 2), ("3.0.10", 3), ("3.1.0", 4)):
        monkeypatch.setitem(SPLITS, "train", size)
        path = prepare("mnist", tmp_path, version)
    assert len(data.load("mnist", tmp_path).train) == 4
    set_formats(path, "tfrecord")
    assert len(data.load("mnist", tmp_path).train) == 3


def set_formats(path, file_format, *alternative):
    info = json.loads((path / "dataset_info.json").read_text())
    info |= {"fileFormat": file_format, "alternativeFileFormats": list(alternative)}
    (path / "dataset_info.json").write_text(json.dumps(info))


def test_converted_data_set_is_read(tmp_path, own_cache):
    # `tfds convert_format` leaves the old files and notes the new format.
    set_formats(prepare("mnist", tmp_path), "tfrecord", "array_record")
    assert len(data.load("mnist", tmp_path).train) == 7


# --- errors ---


def test_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"digits, mixture_ring, .*celeb_a") as info:
        data.load("minst")
    assert "did you mean 'mnist'?" in str(info.value)
    with pytest.raises(ValueError, match="name must be one of") as info:
        data.load("imagenet_2012")
    assert "did you mean" not in str(info.value)


def test_unprepared_data_set_says_where_it_was_sought(tmp_path):
    with pytest.raises(FileNotFoundError) as info:
        data.load("cifar10", tmp_path, download=False)
    message = str(info.value)
    assert "\n" not in message
    assert f"data_dir={tmp_path}" in message
    assert "--data_dir" in message
    assert "download=True" in message
    assert "tensorflow" not in message
    assert not list(tmp_path.iterdir())


def test_unprepared_celeb_a_says_how_to_get_it(tmp_path):
    import tensorflow_datasets as tfds

    with pytest.raises(FileNotFoundError) as info:
        data.load("celeb_a", tmp_path)
    message = str(info.value)
    assert f"data_dir={tmp_path}" in message
    assert "pip install tensorflow" in message
    assert "beautifulsoup4" in message  # reads the pages of Google Drive
    build = "tfds build celeb_a --file_format=array_record --data_dir="
    assert f"{build}{tmp_path}" in message
    assert f"into {tmp_path / 'downloads' / 'manual'}," in message
    assert not list(tmp_path.iterdir())  # TFDS has not begun to prepare anything
    for url_info in tfds.builder_cls("celeb_a").url_infos.values():
        assert url_info.filename in message


def test_tfrecord_says_how_to_convert(tmp_path):
    path = prepare("celeb_a", tmp_path)
    set_formats(path, "tfrecord")
    with pytest.raises(FileNotFoundError, match="not prepared as array_record") as info:
        data.load("celeb_a", tmp_path)
    assert "tfds convert_format --dataset_version_dir=" in str(info.value)


def test_incomplete_copy_is_refused(tmp_path, own_cache):
    path = prepare("mnist", tmp_path)
    missing = path / "mnist-test.array_record-00000-of-00001"
    missing.unlink()
    with pytest.raises(FileNotFoundError, match=f"incomplete: {missing} is missing"):
        data.load("mnist", tmp_path)
    assert not own_cache.exists()


@pytest.mark.parametrize(
    "module", ["tensorflow_datasets", "array_record", "PIL", "sklearn"]
)
def test_missing_package_names_the_extra(module, prepared, own_cache, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"{module}.*jaxsp\[gan\]"):
        data.load("digits" if module == "sklearn" else "mnist", prepared)


# --- places and imports ---


def test_cache_dir(monkeypatch):
    monkeypatch.setenv("JAXSP_CACHE_DIR", "/one")
    monkeypatch.setenv("XDG_CACHE_HOME", "/two")
    monkeypatch.setenv("HOME", "/three")
    assert data.cache_dir() == pathlib.Path("/one")
    monkeypatch.delenv("JAXSP_CACHE_DIR")
    assert data.cache_dir() == pathlib.Path("/two/jaxsp")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data.cache_dir() == pathlib.Path("/three/.cache/jaxsp")


def in_subprocess(code, *args):
    command = [sys.executable, "-W", "error", "-c", code, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_import_is_light():
    code = """
import json, sys
import jaxsp.gan.data, jaxsp.gan.data.partition
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""
    loaded = set(in_subprocess(code))
    assert "jax" in loaded
    assert not loaded & {"tensorflow", "tensorflow_datasets", "sklearn"}


def test_real_mnist_is_read_without_tensorflow(tfds_dir, own_cache):
    if tfds_dir is None:
        pytest.skip("JAXSP_DATA_DIR is not set")
    code = """
import json, sys
from jaxsp.gan import data
data.load("mnist", sys.argv[1])
print(json.dumps("tensorflow" in sys.modules))
"""
    assert not in_subprocess(code, tfds_dir)
    mnist = data.load("mnist", tfds_dir)
    assert mnist.train.shape == (60_000, 28, 28, 1)
    assert mnist.test.shape == (10_000, 28, 28, 1)
    assert mnist.train.dtype == mnist.test.dtype == np.uint8
    assert mnist.train_labels.dtype == mnist.test_labels.dtype == np.int32
    assert np.bincount(mnist.train_labels).tolist() == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949,
    ]  # fmt: skip
    # The published mean of the training set is 0.1307, of the test set 0.1325.
    means = mnist.train.mean() / 255, mnist.test.mean() / 255
    np.testing.assert_allclose(means, [0.1307, 0.1325], atol=1e-4)
    first = [hashlib.sha256(a[0]).hexdigest()[:16] for a in (mnist.train, mnist.test)]
    assert first == ["3c1b849efd9cc03f", "c068df8f3598d7bf"]
    assert mnist.train_labels[:5].tolist() == [4, 1, 0, 7, 8]
    assert mnist.test_labels[:5].tolist() == [2, 0, 4, 8, 7]
