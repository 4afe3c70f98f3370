"""A public file of the Inception network becomes the .npz that jaxsp reads."""

import hashlib
import importlib.util
import pathlib

import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxsp.gan.scores import inception

PATH = pathlib.Path(__file__).parents[2] / "tools" / "convert_inception.py"
SPEC = importlib.util.spec_from_file_location("convert_inception", PATH)
script = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(script)

# One name of the public state dictionary for every kind of place in a block; the whole
# list is checked through the shapes, which all must fit.
PLACES = {
    "conv_3": "Conv2d_3b_1x1",
    "mixed_1.tower.conv_1": "Mixed_5c.branch5x5_2",
    "mixed_2.tower_1.conv_1": "Mixed_5d.branch3x3dbl_2",
    "mixed_3.conv": "Mixed_6a.branch3x3",
    "mixed_3.tower.conv_2": "Mixed_6a.branch3x3dbl_3",
    "mixed_5.tower.conv_2": "Mixed_6c.branch7x7_3",
    "mixed_6.tower_1.conv_3": "Mixed_6d.branch7x7dbl_4",
    "mixed_7.tower_2.conv": "Mixed_6e.branch_pool",
    "mixed_8.tower.conv_1": "Mixed_7a.branch3x3_2",
    "mixed_8.tower_1.conv_2": "Mixed_7a.branch7x7x3_3",
    "mixed_9.tower_mixed_conv": "Mixed_7b.branch3x3_2a",
    "mixed_9.tower_mixed_conv_1": "Mixed_7b.branch3x3_2b",
    "mixed_10.tower_1_conv_1": "Mixed_7c.branch3x3dbl_2",
    "mixed_10.tower_1_mixed_conv_1": "Mixed_7c.branch3x3dbl_3b",
}


def torch_names():
    return [b + name for b, line in script._BLOCKS.items() for name in line.split()]


def test_names_of_the_public_state_dictionary():
    pairs = dict(zip(inception.kernel_shapes(), torch_names(), strict=True))
    assert {name: pairs[name] for name in PLACES} == PLACES
    assert len(set(pairs.values())) == 94


@pytest.fixture(scope="module")
def folded():
    """Weights of the network, batch normalization in them."""
    rng = np.random.default_rng(1)
    found = {}
    for name, shape in inception.kernel_shapes().items():
        found[f"{name}.w"] = rng.standard_normal(shape, np.float32)
        found[f"{name}.b"] = rng.standard_normal(shape[-1:], np.float32)
    return found


def unfolded(folded, gamma=None):
    """Kernel (as PyTorch has it), beta, mean, variance and gamma of every convolution.

    PyTorch: gamma (conv(x) - mean) / sqrt(variance + 1e-3) + beta.
    """
    rng = np.random.default_rng(2)
    for name, shape in inception.kernel_shapes().items():
        mean, variance = rng.standard_normal(shape[-1]), rng.uniform(0.01, 2, shape[-1])
        scale = (rng.uniform(0.5, 2, shape[-1]) if gamma is None else gamma) * 1.0
        root = np.sqrt(variance + 1e-3)
        kernel = (folded[f"{name}.w"] * (root / scale)).transpose(3, 2, 0, 1)
        beta = folded[f"{name}.b"] + mean * scale / root
        parts = (kernel, beta, mean, variance, scale * np.ones(shape[-1]))
        yield name, [np.ascontiguousarray(p, np.float32) for p in parts]


def state_dictionary(folded):
    tensors = {}
    parts = ("conv.weight", "bn.bias", "bn.running_mean", "bn.running_var", "bn.weight")
    for stem, (_, arrays) in zip(torch_names(), unfolded(folded), strict=True):
        tensors.update({f"{stem}.{p}": a for p, a in zip(parts, arrays, strict=True)})
    return {**tensors, "fc.bias": np.zeros(1008, np.float32)}


def script_module(folded):
    parts = ("weight", "beta", "mean", "var")
    return {
        f"layers.{name}.{part}": array
        for name, arrays in unfolded(folded, gamma=1)
        for part, array in zip(parts, arrays, strict=False)
    }


@pytest.mark.parametrize(
    ("make", "dtype"), [(state_dictionary, "float32"), (script_module, "float16")]
)
def test_batch_normalization_is_folded(
    tmp_path, monkeypatch, folded, make, dtype, capsys
):
    source, dest = tmp_path / "source.pth", tmp_path / "new" / "dest.npz"
    source.write_text("what `read` would read")
    monkeypatch.setattr(script, "read", lambda path: make(folded))
    assert script.main([str(source), str(dest), f"--dtype={dtype}"]) == 0
    assert [p.name for p in dest.parent.iterdir()] == ["dest.npz"]
    net = inception.load(dest)
    assert net.digest in capsys.readouterr().out
    assert net.params.keys() == folded.keys()
    with np.load(dest) as file:
        assert file["conv.w"].dtype == dtype
    for name, array in folded.items():
        rounding = 1e-3 if name.endswith("w") and dtype == "float16" else 1e-6
        np.testing.assert_allclose(net.params[name], array, rtol=rounding, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_files_of_torch_are_read(tmp_path):
    torch = pytest.importorskip("torch")

    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(2, 3))
            self.register_buffer("beta", torch.arange(2.0))
            self.mean = torch.full((2,), 3.0)

        def forward(self, x):
            return x

    root = torch.nn.Module()
    root.layers = torch.nn.Module()
    root.layers.conv = torch.nn.Module()
    layer = root.layers.conv.tower = Layer()
    torch.save(layer.state_dict(), tmp_path / "a.pth")
    found = script.read(tmp_path / "a.pth")
    assert found.keys() == {"weight", "beta"}
    np.testing.assert_array_equal(found["beta"], [0, 1])
    torch.jit.script(root).save(tmp_path / "b.pt")
    found = script.read(tmp_path / "b.pt")
    stem = "layers.conv.tower."
    assert found.keys() == {stem + part for part in ("weight", "beta", "mean")}
    np.testing.assert_array_equal(found[stem + "weight"], np.ones((2, 3)))
    np.testing.assert_array_equal(found[stem + "mean"], [3, 3])


def test_safetensors_are_read(tmp_path):
    save_file({"a": np.arange(3.0)}, tmp_path / "a.safetensors")
    found = script.read(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(found["a"], [0, 1, 2])


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A source of one convolution, and how to convert it."""
    monkeypatch.setattr(script, "kernel_shapes", lambda: {"conv": (1, 1, 3, 2)})
    tensors = {"layers.conv.weight": np.ones((2, 3, 1, 1), np.float32)}
    for part in ("beta", "mean", "var"):
        tensors[f"layers.conv.{part}"] = np.ones(2, np.float32)

    def convert(name="source.pt", dest="dest.npz", **change):
        (tmp_path / name).write_text("what `read` would read")
        monkeypatch.setattr(script, "read", lambda path: {**tensors, **change})
        return script.convert(tmp_path / name, tmp_path / dest)

    return convert


def test_a_public_name_asks_for_the_public_checksum(tiny, tmp_path, monkeypatch):
    tiny()
    (tmp_path / "dest.npz").unlink()
    with pytest.raises(ValueError, match="download it again"):
        tiny("inception-2015-12-05.pt")
    assert not list(tmp_path.glob("dest*"))
    checksum = hashlib.sha256((tmp_path / "source.pt").read_bytes()).hexdigest()
    monkeypatch.setattr(script, "_SHA256", {"inception-2015-12-05.pt": checksum})
    tiny("inception-2015-12-05.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers.conv.var": np.ones(3, np.float32)}, r"var, of shape \(2,\), is of"),
        ({"layers.conv.mean": None}, "layers.conv.mean, of shape .*, is missing"),
        ({"layers.conv.weight": np.ones(6, np.float32)}, r"weight, .* \(2, 3, 1, 1\)"),
        ({"layers.conv.var": -np.ones(2, np.float32)}, "not finite"),
        ({"layers.conv.beta": np.full(2, np.nan, np.float32)}, "not finite"),
        ({"dest": "dest.pth"}, "DEST must end in .npz"),
    ],
)
def test_convert_refuses_what_it_cannot_use(tiny, tmp_path, change, message):
    (tmp_path / "dest.npz").write_text("what was there")
    with pytest.raises(ValueError, match=message) as error:
        tiny(**change)
    assert "\n" not in str(error.value)
    assert (tmp_path / "dest.npz").read_text() == "what was there"
    assert len(list(tmp_path.iterdir())) <= 2


def test_the_command_says_what_is_wrong(tmp_path, capsys):
    source = tmp_path / "none.pth"
    assert script.main([str(source), str(tmp_path / "dest.npz")]) == 1
    assert "none.pth: [Errno 2] No such file" in capsys.readouterr().err
