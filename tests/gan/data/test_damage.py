"""Damaged files give the right data or an error that names them, never other data."""

import collections
import dataclasses
import json
import pathlib
import sys

import numpy as np
import pytest
import small_tfds

from jaxsp.gan import data

FIELDS = "train", "train_labels", "test", "test_labels"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXSP_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module", params=["mnist", "celeb_a"])
def prepared(request, tmp_path_factory):
    """The directory of a small data set that TFDS has prepared."""
    return small_tfds.prepare(request.param, tmp_path_factory.mktemp("tfds"))


def load(directory):
    return data.load(directory.parent.name, directory.parents[1], download=False)


def same(one, other):
    return all(np.array_equal(getattr(one, f), getattr(other, f)) for f in FIELDS)


def damaged(content, rng, count):
    """Copies that are cut short, or have a bit turned over where they are not zero."""
    places = np.flatnonzero(np.frombuffer(content, np.uint8))
    for at in rng.choice(places, count):
        yield content[:at]
        yield (
            content[:at]
            + bytes([content[at] ^ 1 << rng.integers(8)])
            + content[at + 1 :]
        )


def test_a_prepared_directory_is_read_rightly_or_named(prepared, tmp_path, monkeypatch):
    whole, rng, refused = load(prepared), np.random.default_rng(0), []
    for path in sorted(prepared.iterdir()):
        content = path.read_bytes()
        for number, other in enumerate(damaged(content, rng, 15)):
            path.write_bytes(other)
            cache = tmp_path / f"{path.name}-{number}"
            monkeypatch.setenv("JAXSP_CACHE_DIR", str(cache))
            try:
                found = load(prepared)
            except FileNotFoundError as error:  # its format is not known any more
                refused.append(
                    (path.name, f"data_dir={prepared.parents[1]}", str(error))
                )
            except OSError as error:
                refused.append((path.name, str(path), str(error)))
            else:
                assert same(found, whole), (path, other)
                continue
            assert not cache.exists()
        path.write_bytes(content)
    for _, wanted, message in refused:
        assert wanted in message
    counts = collections.Counter(name for name, *_ in refused)
    assert len(counts) == 4
    assert min(counts.values()) > 10


def test_fewer_examples_than_the_description_tells_of_are_named(prepared):
    info = prepared / "dataset_info.json"
    content = info.read_text()
    for length in (6, 8):
        info.write_text(content.replace('"7"', f'"{length}"'))
        with pytest.raises(OSError, match=f"7 examples in the one, {length}") as found:
            load(prepared)
        assert str(info) in str(found.value)
    info.write_text(content)


def test_damaged_cached_arrays_are_made_anew(prepared, own_cache):
    whole, rng = load(prepared), np.random.default_rng(1)
    whole = dataclasses.replace(whole, **{f: getattr(whole, f).copy() for f in FIELDS})
    (cache,) = own_cache.iterdir()
    for path in sorted(cache.iterdir()):
        content = path.read_bytes()
        others = list(damaged(content, rng, 8))
        if path.suffix == ".npy":  # other types of the same size, in a whole file
            for kind in (np.int8, np.float32):
                array = np.load(path)
                array = array.view(kind) if kind == np.int8 else array.astype(kind)
                np.save(path, array)
                others.append(path.read_bytes())
        for other in others:
            path.unlink()  # arrays that are mapped stay as they are
            path.write_bytes(other)
            assert same(load(prepared), whole)
            assert path.read_bytes() == content


EVIL = {"pythonClassName": "planted.Feature", "json": {"json": "{}"}}
LEGACY = {"type": "planted.Feature", "content": {}}
LISTS = "tensorflow_datasets.core.features.sequence_feature.Sequence"
TEXT = json.dumps({"feature": LEGACY})


@pytest.mark.parametrize(
    "label",
    [
        EVIL,
        {"python_class_name": "planted.Feature", "json": {"json": "{}"}},
        {"pythonClassName": LISTS, "sequence": {"feature": EVIL}},
        {"pythonClassName": LISTS, "json": {"json": TEXT}},
        LEGACY,
    ],
)
def test_modules_that_a_directory_names_are_not_imported(label, tmp_path, monkeypatch):
    file = small_tfds.prepare("mnist", tmp_path) / "features.json"
    found = json.loads(file.read_text())
    found["featuresDict"]["features"]["label"] = label
    if label == LEGACY:
        found = {"type": found["pythonClassName"], "content": {"label": label}}
    file.write_text(json.dumps(found))
    (tmp_path / "planted.py").write_text(
        f"open({str(tmp_path / 'written')!r}, 'w').write('by the module')"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    with pytest.raises(OSError, match="not imported") as error:
        data.load("mnist", pathlib.Path())
    assert str(file) in str(error.value)
    assert "planted.Feature" in str(error.value)
    assert not (tmp_path / "written").exists()
    assert "planted" not in sys.modules
