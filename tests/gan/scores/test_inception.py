import io
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsp.gan import data
from jaxsp.gan.scores import cache, inception


@pytest.fixture(scope="module")
def arrays():
    """Random weights that keep the size of what passes through."""
    rng = np.random.default_rng(0)
    found = {}
    for name, shape in inception.kernel_shapes().items():
        std = np.sqrt(2 / np.prod(shape[:3]))
        kernel = rng.standard_normal(shape, np.float32) * np.float32(std)
        found[f"{name}.w"] = kernel
        found[f"{name}.b"] = 0.1 * rng.standard_normal(shape[-1:], np.float32)
    return found


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A network of two convolutions, as a file: its arrays, and how to write them."""
    shapes = {"conv": (3, 3, 3, 4), "mixed.tower.conv_1": (1, 7, 4, 5)}
    monkeypatch.setattr(inception, "kernel_shapes", lambda: shapes)
    rng = np.random.default_rng(2)
    found = {}
    for name, shape in shapes.items():
        found[f"{name}.w"] = rng.standard_normal(shape).astype(np.float16)
        found[f"{name}.b"] = rng.standard_normal(shape[-1:]).astype(np.float32)

    def write(**more):
        path, arrays = tmp_path / "small.npz", {**found, **more}
        np.savez(path, **{n: a for n, a in arrays.items() if a is not None})
        return path

    return found, write


# The network, once more in NumPy, from the description of the graph


class Reference:
    """The graph in NumPy, a function for every kind of block."""

    def __init__(self, arrays):
        self.arrays = arrays

    def conv(self, x, name, stride=1, pad=(0, 0)):
        kernel, bias = self.arrays[f"{name}.w"], self.arrays[f"{name}.b"]
        x = np.pad(x, [(0, 0), (pad[0],) * 2, (pad[1],) * 2, (0, 0)])
        windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], (1, 2))
        windows = windows[:, ::stride, ::stride]  # [n, rows, columns, in, h, w]
        n, rows, columns = windows.shape[:3]
        flat = windows.transpose(0, 1, 2, 4, 5, 3).reshape(n * rows * columns, -1)
        h = flat @ kernel.reshape(-1, kernel.shape[-1]) + bias
        return np.maximum(h, 0).reshape(n, rows, columns, -1)

    def max_pool(self, x, stride=2, pad=0):
        x = np.pad(x, [(0, 0), (pad, pad), (pad, pad), (0, 0)], constant_values=-np.inf)
        windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))
        return windows[:, ::stride, ::stride].max((-1, -2))

    def average_pool(self, x):
        x = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], constant_values=np.nan)
        windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))
        return np.nanmean(windows, (-1, -2), dtype=np.float32)

    def chain(self, x, prefix, *sizes):
        """Convolutions conv, conv_1, ... of a tower, at stride 1."""
        for i, (height, width) in enumerate(sizes):
            name = f"{prefix}.conv" + (f"_{i}" if i else "")
            x = self.conv(x, name, pad=(height // 2, width // 2))
        return x

    def a(self, x, name):
        return [
            self.conv(x, f"{name}.conv"),
            self.chain(x, f"{name}.tower", (1, 1), (5, 5)),
            self.chain(x, f"{name}.tower_1", (1, 1), (3, 3), (3, 3)),
            self.conv(self.average_pool(x), f"{name}.tower_2.conv"),
        ]

    def b(self, x, name):
        tower = self.chain(x, f"{name}.tower", (1, 1), (3, 3))
        return [
            self.conv(x, f"{name}.conv", 2),
            self.conv(tower, f"{name}.tower.conv_2", 2),
            self.max_pool(x),
        ]

    def c(self, x, name):
        wide, high = (1, 7), (7, 1)
        return [
            self.conv(x, f"{name}.conv"),
            self.chain(x, f"{name}.tower", (1, 1), wide, high),
            self.chain(x, f"{name}.tower_1", (1, 1), high, wide, high, wide),
            self.conv(self.average_pool(x), f"{name}.tower_2.conv"),
        ]

    def d(self, x, name):
        tower = self.chain(x, f"{name}.tower", (1, 1))
        other = self.chain(x, f"{name}.tower_1", (1, 1), (1, 7), (7, 1))
        return [
            self.conv(tower, f"{name}.tower.conv_1", 2),
            self.conv(other, f"{name}.tower_1.conv_3", 2),
            self.max_pool(x),
        ]

    def e(self, x, name):
        pooled = self.average_pool(x) if name[-1] == "9" else self.max_pool(x, 1, 1)
        tower = self.conv(x, f"{name}.tower_conv")
        other = self.conv(x, f"{name}.tower_1_conv")
        other = self.conv(other, f"{name}.tower_1_conv_1", pad=(1, 1))
        return [
            self.conv(x, f"{name}.conv"),
            self.conv(tower, f"{name}.tower_mixed_conv", pad=(0, 1)),
            self.conv(tower, f"{name}.tower_mixed_conv_1", pad=(1, 0)),
            self.conv(other, f"{name}.tower_1_mixed_conv", pad=(0, 1)),
            self.conv(other, f"{name}.tower_1_mixed_conv_1", pad=(1, 0)),
            self.conv(pooled, f"{name}.tower_2_conv"),
        ]

    def __call__(self, x):
        x = self.conv(self.conv(x, "conv", 2), "conv_1")
        x = self.max_pool(self.conv(x, "conv_2", pad=(1, 1)))
        x = self.max_pool(self.conv(self.conv(x, "conv_3"), "conv_4"))
        for i, kind in enumerate("aaabccccdee"):
            branches = getattr(self, kind)(x, f"mixed_{i}" if i else "mixed")
            x = np.concatenate(branches, -1)
        assert x.shape[1:] == (8, 8, 2048)
        return x.mean((1, 2))


def test_the_network_has_the_public_number_of_parameters():
    shapes = inception.kernel_shapes()
    assert len(shapes) == 94
    assert sum(np.prod(shape) for shape in shapes.values()) == 21_751_136


def test_features_are_those_of_the_graph(arrays):
    net = inception.Inception({name: jnp.asarray(a) for name, a in arrays.items()})
    images = np.random.default_rng(1).integers(256, size=(3, 32, 32, 3))
    images[2] = images[0]
    found = inception.features(net, images.astype(np.uint8), batch_size=2)
    assert found.shape == (3, 2048)
    assert found.dtype == np.float32
    enlarged = jax.image.resize(
        images[:1].astype(np.float32), (1, 299, 299, 3), "linear", antialias=False
    )
    (expected,) = Reference(arrays)(np.asarray(enlarged) / np.float32(127.5) - 1)
    assert np.linalg.norm(found[0] - expected) < 1e-5 * np.linalg.norm(expected)
    # An image alone in the last batch, filled up to two, scores as it does in company.
    np.testing.assert_allclose(found[2], found[0], rtol=1e-4, atol=1e-5)
    assert np.linalg.norm(found[1] - expected) > 1e-2 * np.linalg.norm(expected)


def test_features_are_float32_whatever_is_computed_in(arrays):
    images = jnp.zeros((2, 299, 299, 3))
    for dtype in (jnp.float16, jnp.bfloat16):
        params = {n: jax.ShapeDtypeStruct(a.shape, dtype) for n, a in arrays.items()}
        found = jax.eval_shape(inception._pool3, params, images)
        assert (found.shape, found.dtype) == ((2, 2048), np.float32)


def test_grey_and_floating_images_are_brought_to_levels():
    grey = np.random.default_rng(2).integers(256, size=(2, 9, 8, 1)).astype(np.uint8)
    expected = np.repeat(grey, 3, -1)
    np.testing.assert_array_equal(inception._levels(grey), expected)
    np.testing.assert_array_equal(inception._levels(expected), expected)
    floating = np.asarray(data.to_unit(grey))
    for dtype in (np.float16, np.float32, np.float64):
        np.testing.assert_array_equal(
            inception._levels(floating.astype(dtype)), expected
        )
    # What is less than half of a level changes nothing.
    near = (floating + np.float32(0.4 / 127.5)).clip(-1, 1)
    np.testing.assert_array_equal(inception._levels(near), expected)


@pytest.mark.parametrize("shape", [(5, 32, 1), (401, 299, 3)])
def test_pytorch_resizing_has_half_pixel_centers(shape):
    levels = np.random.default_rng(3).integers(256, size=(1, *shape)).astype(np.uint8)
    found = inception._resize(levels, "pytorch")
    size = (1, 299, 299, shape[-1])
    linear = jax.image.resize(
        levels.astype(np.float32), size, "linear", antialias=False
    )
    np.testing.assert_allclose(found, linear / 127.5 - 1, atol=1e-4)


def test_tensorflow_resizing_starts_at_the_corner():
    levels = np.random.default_rng(4).integers(256, size=(32, 401)).astype(np.uint8)
    found = inception._resize(levels[None, :, :, None], "tensorflow")[0, :, :, 0]
    padded = np.pad(levels.astype(np.float64), 1, mode="edge")[1:, 1:]
    rows, columns = np.arange(299) * 32 / 299, np.arange(299) * 401 / 299
    for i, j in [(0, 0), (1, 298), (298, 298), (298, 0), (150, 77), (290, 295)]:
        (top, y), (left, x) = divmod(rows[i], 1), divmod(columns[j], 1)
        corner = padded[int(top) : int(top) + 2, int(left) : int(left) + 2]
        value = np.array([1 - y, y]) @ corner @ np.array([1 - x, x])
        np.testing.assert_allclose(found[i, j], (value - 128) / 128, atol=1e-4)


def test_features_agree_with_the_original_graph():
    names = ("JAXSP_INCEPTION", "JAXSP_INCEPTION_REFERENCE")
    if not all(os.environ.get(name) for name in names):
        pytest.skip(" and ".join(names) + " are not set")
    net = inception.load(os.environ["JAXSP_INCEPTION"])
    with np.load(os.environ["JAXSP_INCEPTION_REFERENCE"]) as file:
        images, expected, resized = (
            file[name] for name in ("images", "pool3", "resized_first")
        )
    found = inception._resize(images[:1], "pytorch")
    np.testing.assert_allclose(found, resized, atol=1e-5)
    found = inception.features(net, images[:8], batch_size=2)
    error = np.linalg.norm(found - expected[:8])
    assert error < 2e-3 * np.linalg.norm(expected[:8])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": np.zeros((2, 8, 8), np.uint8)}, "images must be of shape"),
        ({"images": np.zeros((2, 8, 8, 4), np.uint8)}, "1 or 3 channels"),
        ({"images": np.zeros((0, 8, 8, 3), np.uint8)}, "n >= 1"),
        ({"images": np.full((1, 8, 8, 3), 255.0)}, r"in \[-1, 1\], got float64"),
        ({"images": np.full((1, 8, 8, 3), np.nan)}, "from nan to nan"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"preprocessing": "tf"}, 'must be "pytorch" or "tensorflow", got \'tf\''),
    ],
)
def test_features_say_what_they_cannot_take(arguments, message):
    net = inception.Inception({})
    arguments = {"images": np.zeros((1, 8, 8, 3), np.uint8), **arguments}
    with pytest.raises(ValueError, match=message):
        inception.features(net, **arguments)


# The file of weights


def test_load_reads_what_was_written(small, caplog):
    arrays, write = small
    net = inception.load(write(sha256=cache.digest(arrays)))
    assert net.params.keys() == arrays.keys()
    for name, array in arrays.items():
        assert net.params[name].dtype == np.float32
        np.testing.assert_array_equal(net.params[name], array)
    assert net.digest == cache.digest(arrays)
    assert not caplog.records
    half = inception.load(write(), dtype=jnp.bfloat16)
    assert {p.dtype.name for p in half.params.values()} == {"bfloat16"}


def test_a_file_without_a_checksum_is_told_unless_it_is_known(
    small, caplog, monkeypatch
):
    arrays, write = small
    inception.load(write())
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "cannot be verified" in caplog.text
    caplog.clear()
    monkeypatch.setattr(inception, "_KNOWN", {cache.digest(arrays)})
    inception.load(write())
    assert not caplog.records


@pytest.mark.parametrize("name", ["conv.w", "mixed.tower.conv_1.b"])
def test_a_changed_number_is_found(small, name):
    arrays, write = small
    digest = cache.digest(arrays)
    changed = arrays[name].copy()
    changed.flat[0] = np.nextafter(changed.flat[0], np.inf, dtype=changed.dtype)
    with pytest.raises(ValueError, match=f"is damaged: .* {digest}") as error:
        inception.load(write(**{name: changed, "sha256": digest}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv.w": np.zeros((3, 3, 4, 3), np.float16)}, r"\(3, 3, 3, 4\), got"),
        (
            {"conv.b": np.zeros(4, np.float64)},
            "conv.b must be .* got float64",
        ),
        ({"conv.b": np.array([0, 0, np.inf, 0], np.float32)}, "conv.b must be finite"),
        ({"more": np.zeros(1)}, "holds besides more"),
        ({"conv.b": None}, "lacks conv.b"),
    ],
)
def test_a_file_with_other_arrays_is_refused(small, change, message):
    _, write = small
    with pytest.raises(ValueError, match=message):
        inception.load(write(**change))


ARRAY = io.BytesIO()
np.save(ARRAY, np.zeros(3))


@pytest.mark.parametrize(
    "content", [b"", b"not an archive", b"PK\x03\x04 cut off", ARRAY.getvalue()]
)
def test_other_files_are_refused_in_one_line(tmp_path, content):
    path = tmp_path / "weights.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"is not an \.npz of") as error:
        inception.load(path)
    assert "\n" not in str(error.value)


def test_an_absent_file_says_where_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        inception.load(tmp_path / "none.npz")
    assert f"{tmp_path / 'none.npz'}: no Inception weights" in str(error.value)
    assert "tools/convert_inception.py" in str(error.value)
