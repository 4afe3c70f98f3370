"""Readers of PyTorch's files, on files put together here byte by byte."""

import contextlib
import hashlib
import pickle
import struct
import zipfile
from typing import NamedTuple

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxsp.gan.scores import inception, torch_weights
from jaxsp.gan.scores.inception import network, weights
from jaxsp.gan.scores.inception.__main__ import main

STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "int64": "LongStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}


class Tensor(NamedTuple):
    """A strided view of a flat array."""

    flat: np.ndarray
    offset: int
    shape: tuple
    strides: tuple


class Module(dict):
    """Attributes of a TorchScript module."""


class Raw(bytes):
    """Opcodes, to be put in as they are."""


def contiguous(array):
    strides = tuple(s // array.itemsize for s in array.strides)
    return Tensor(array.ravel(), 0, array.shape, strides)


class Writer:
    """Pickles as PyTorch does, with the standard opcodes of protocol 2."""

    def __init__(self, legacy=False):
        self.legacy = legacy
        self.storages = {}

    def pickle(self, value):
        return b"\x80\x02" + self.of(value) + b"."

    def of(self, value):
        if isinstance(value, Raw):
            return bytes(value)
        if isinstance(value, np.ndarray):
            value = contiguous(value)
        if isinstance(value, Tensor):
            return self.tensor(value)
        if isinstance(value, Module):
            name = "c__torch__.torch.nn.modules.___torch_mangle_7\nSequential\n"
            return name.encode() + b")\x81}(" + self.items(value) + b"ub"
        if isinstance(value, dict):
            return b"ccollections\nOrderedDict\n)R(" + self.items(value) + b"u"
        if isinstance(value, tuple):
            return b"(" + b"".join(map(self.of, value)) + b"t"
        if isinstance(value, list):
            return b"](" + b"".join(map(self.of, value)) + b"e"
        if isinstance(value, str):
            text = value.encode()
            return b"X" + struct.pack("<I", len(text)) + text
        if value is None or isinstance(value, bool):
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        return b"J" + struct.pack("<i", value)

    def items(self, value):
        return b"".join(self.of(k) + self.of(v) for k, v in value.items())

    def tensor(self, tensor):
        keys = [k for k, flat in self.storages.items() if flat is tensor.flat]
        key = keys[0] if keys else f"{len(self.storages) + (1 << 40) * self.legacy}"
        self.storages[key] = tensor.flat
        kind = Raw(f"ctorch\n{STORAGES[tensor.flat.dtype.name]}\n".encode())
        pid = ("storage", kind, key, "cpu", tensor.flat.size)
        pid += (None,) * self.legacy
        arguments = (Raw(self.of(pid) + b"Q"), *tensor[1:], False, {})
        return b"ctorch._utils\n_rebuild_tensor_v2\n" + self.of(arguments) + b"R"


def write_legacy(path, tree, little_endian=True):
    """As torch.save did before version 1.6."""
    writer = Writer(legacy=True)
    body = writer.pickle(tree)
    with open(path, "wb") as file:
        pickle.dump(0x1950A86A20F9469CFC6C, file, 2)
        pickle.dump(1001, file, 2)
        system = {"protocol_version": 1001, "little_endian": little_endian}
        pickle.dump(system, file, 2)
        file.write(body)
        pickle.dump(list(writer.storages), file, 2)
        for flat in writer.storages.values():
            file.write(struct.pack("<q", flat.size))
            file.write(flat.tobytes())


def write_zip(path, tree, byteorder="little"):
    """As torch.save does, and torch.jit.save where the tree is a `Module`."""
    writer = Writer()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("name/data.pkl", writer.pickle(tree))
        archive.writestr("name/byteorder", byteorder)
        for key, flat in writer.storages.items():
            archive.writestr(f"name/data/{key}", flat.tobytes())
        archive.writestr("name/version", "3\n")


WRITERS = pytest.mark.parametrize("write", [write_legacy, write_zip])


@pytest.fixture
def tree():
    rng = np.random.default_rng(0)
    return {
        "layers": {
            "conv.weight": rng.standard_normal((4, 3, 2, 2)).astype(np.float32),
            "half": rng.standard_normal(5).astype(np.float16),
        },
        "double": rng.standard_normal((2, 3)),
        "bytes": rng.integers(256, size=7).astype(np.uint8),
        "num_batches_tracked": np.array(3),
        "mask": np.array([True, False]),
        "empty": np.zeros((0, 3), np.float32),
    }


def check(found, tree):
    expected = {**tree, **{f"layers.{k}": v for k, v in tree["layers"].items()}}
    del expected["layers"]
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@WRITERS
def test_dictionaries_are_read(tmp_path, tree, write):
    write(tmp_path / "weights.pth", tree)
    check(torch_weights.read(tmp_path / "weights.pth"), tree)


def test_modules_are_read(tmp_path, tree):
    sizes = Raw(b"ctorch.jit._pickle\nbuild_intlist\n(](J\x00\x00\x00\x00et" + b"R")
    attributes = {"training": False, "padding": sizes, "name": "x", "hook": None}
    layers = Module(tree["layers"], **attributes)
    write_zip(tmp_path / "a.pt", Module({**attributes, **tree, "layers": layers}))
    check(torch_weights.read(tmp_path / "a.pt"), tree)


@WRITERS
@hypothesis.settings(max_examples=30)
@hypothesis.given(seed=st.integers(0, 2**32 - 1))
def test_views_of_one_storage(tmp_path_factory, write, seed):
    rng = np.random.default_rng(seed)
    base = rng.standard_normal((4, 5, 6)).astype(np.float32)
    flat, expected, tree = base.ravel(), {}, {}
    for name in "abc":
        starts, steps = rng.integers(3, size=3), rng.integers(1, 4, size=3)
        slices = tuple(slice(a, None, s) for a, s in zip(starts, steps, strict=True))
        expected[name] = view = base[slices].transpose(rng.permutation(3))
        offset = np.ravel_multi_index(starts, base.shape)
        strides = tuple(s // base.itemsize for s in view.strides)
        tree[name] = Tensor(flat, int(offset), view.shape, strides)
    path = tmp_path_factory.mktemp("views") / "views.pth"
    write(path, tree)
    for name, array in torch_weights.read(path).items():
        np.testing.assert_array_equal(array, expected[name])


@WRITERS
@pytest.mark.parametrize(
    "view",
    [
        Tensor(np.zeros(6, np.float32), 1, (2, 3), (3, 1)),
        Tensor(np.zeros(6, np.float32), 0, (2, 3), (4, 1)),
        Tensor(np.zeros(6, np.float32), 5, (2,), (-1,)),
        Tensor(np.zeros(6, np.float32), -1, (2,), (1,)),
        Tensor(np.zeros(6, np.float32), 0, (2, 3), (1,)),
        Tensor(np.zeros(6, np.float32), 0, (7,), (0,)),
        Tensor(np.zeros(6, np.float32), 0, (2**15, 2**15), (0, 0)),
    ],
)
def test_a_tensor_cannot_leave_its_storage(tmp_path, write, view):
    write(tmp_path / "weights.pth", {"a": view})
    with pytest.raises(ValueError, match="or is damaged: a tensor"):
        torch_weights.read(tmp_path / "weights.pth")


@WRITERS
@pytest.mark.parametrize("function", ["builtins\nopen", "os\nmkdir", "posix\nmkdir"])
def test_nothing_of_the_file_is_run(tmp_path, write, function):
    target = tmp_path / "made"
    path = Writer().of((str(target), *(["w"] if "open" in function else [])))
    call = Raw(f"c{function}\n".encode() + path + b"R")
    write(tmp_path / "weights.pth", {"a": np.zeros(3, np.float32), "b": call})
    with pytest.raises(ValueError, match="asks for " + function.replace("\n", ".")):
        torch_weights.read(tmp_path / "weights.pth")
    assert not target.exists()


@WRITERS
def test_no_function_is_reached_through_a_known_one(tmp_path, write):
    # A name with dots in it, as protocol 4 allows, and an attribute of a known class.
    tricks = (
        Raw(b"ccollections\nOrderedDict.fromkeys\n"),
        Raw(b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n"),
        Raw(b"cjaxsp.gan.scores.torch_weights\nos\n"),
    )
    for trick in tricks:
        write(tmp_path / "weights.pth", {"a": trick})
        with pytest.raises(ValueError, match="asks for"):
            torch_weights.read(tmp_path / "weights.pth")


@WRITERS
def test_what_a_file_sets_on_a_name_is_lost_with_it(tmp_path, write):
    names = [
        *(f"torch._utils\n{n}" for n in ("_rebuild_tensor_v2", "_rebuild_parameter")),
        "torch.jit._pickle\nbuild_intlist",
        "collections\nOrderedDict",
        "__torch__\nModule",
        "torch\nFloatStorage",
    ]
    functions = {f for f in torch_weights._KNOWN.values() if hasattr(f, "__code__")}
    assert len(functions) == 2

    def state():
        return [
            (f.__defaults__, f.__kwdefaults__, f.__dict__.copy()) for f in functions
        ]

    before = state()
    for name in names:
        for change in ("__defaults__", "_function", "__init__"):
            # BUILD sets the attributes of the second dictionary, as of slots
            pair = (None, {change: (1, 2, 3)})
            trick = Raw(f"c{name}\n".encode() + Writer().of(pair) + b"b")
            write(tmp_path / "weights.pth", {"a": np.zeros(3, np.float32), "b": trick})
            with contextlib.suppress(ValueError):
                torch_weights.read(tmp_path / "weights.pth")
            assert state() == before
            write(tmp_path / "good.pth", Module(a=np.ones(3, np.float32)))
            found = torch_weights.read(tmp_path / "good.pth")
            np.testing.assert_array_equal(found["a"], np.ones(3))


@WRITERS
def test_damaged_files_are_refused(tmp_path, tree, write):
    path = tmp_path / "weights.pth"
    write(path, tree)
    whole = path.read_bytes()
    for end in (0, 3, 30, 200, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match="pth is not a file of weights"):
            torch_weights.read(path)


def test_numbers_of_other_machines_are_refused(tmp_path, tree):
    write_legacy(tmp_path / "a.pth", tree, little_endian=False)
    write_zip(tmp_path / "b.pth", tree, byteorder="big")
    for name in "ab":
        with pytest.raises(ValueError, match="not little-endian"):
            torch_weights.read(tmp_path / f"{name}.pth")


def test_other_files_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("a.txt", "text")
    (tmp_path / "b.pth").write_bytes(pickle.dumps({"a": 1}))
    (tmp_path / "c.pth").write_text("text")
    for name in "abc":
        with pytest.raises(ValueError, match=f"{name}.pth is not a file of weights"):
            torch_weights.read(tmp_path / f"{name}.pth")
    with pytest.raises(FileNotFoundError):
        torch_weights.read(tmp_path / "none.pth")


# From a public file to ours


@pytest.fixture(scope="module")
def folded():
    """Weights of the network, batch normalization in them."""
    rng = np.random.default_rng(1)
    found = {}
    for name, shape in network.kernel_shapes().items():
        found[f"{name}.w"] = rng.standard_normal(shape, np.float32)
        found[f"{name}.b"] = rng.standard_normal(shape[-1:], np.float32)
    return found


def unfolded(folded, gamma=None):
    """Kernel (as PyTorch has it), β, mean, variance and γ of every convolution.

    PyTorch: γ (conv(x) − mean) / √(variance + 1e-3) + β.
    """
    rng = np.random.default_rng(2)
    for name, shape in network.kernel_shapes().items():
        mean, variance = rng.standard_normal(shape[-1]), rng.uniform(0.01, 2, shape[-1])
        scale = (rng.uniform(0.5, 2, shape[-1]) if gamma is None else gamma) * 1.0
        root = np.sqrt(variance + 1e-3)
        kernel = (folded[f"{name}.w"] * (root / scale)).transpose(3, 2, 0, 1)
        beta = folded[f"{name}.b"] + mean * scale / root
        parts = (kernel, beta, mean, variance, scale * np.ones(shape[-1]))
        yield name, [np.ascontiguousarray(p, np.float32) for p in parts]


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
    return [
        block + name
        for block, line in weights._TORCH_BLOCKS.items()
        for name in line.split()
    ]


def test_names_of_the_public_state_dictionary():
    pairs = dict(zip(network.kernel_shapes(), torch_names(), strict=True))
    assert {name: pairs[name] for name in PLACES} == PLACES
    assert len(set(pairs.values())) == 94


def state_dictionary(folded):
    tree = {}
    parts = ("conv.weight", "bn.bias", "bn.running_mean", "bn.running_var", "bn.weight")
    for stem, (_, tensors) in zip(torch_names(), unfolded(folded), strict=True):
        tree.update({f"{stem}.{p}": t for p, t in zip(parts, tensors, strict=True)})
        tree[f"{stem}.bn.num_batches_tracked"] = np.array(0)
    return {**tree, "fc.bias": np.zeros(1008, np.float32)}


def script_module(folded):
    root = Module(output=Module(bias=np.zeros(1008, np.float32)), layers=Module())
    for name, tensors in unfolded(folded, gamma=1):
        *path, last = name.split(".")
        node = root["layers"]
        for part in path:
            node = node.setdefault(part, Module(training=False))
        parts = ("weight", "beta", "mean", "var")
        node[last] = Module(zip(parts, tensors, strict=False), stride=1)
    return root


@pytest.mark.parametrize(
    ("write", "make", "dtype"),
    [
        (write_legacy, state_dictionary, "float32"),
        (write_zip, script_module, "float16"),
    ],
)
def test_convert_folds_batch_normalization(
    tmp_path, folded, write, make, dtype, capsys
):
    source, dest = tmp_path / "source.pth", tmp_path / "new" / "dest.npz"
    write(source, make(folded))
    assert main(["convert", str(source), str(dest), f"--dtype={dtype}"]) == 0
    assert [p.name for p in dest.parent.iterdir()] == ["dest.npz"]
    net = inception.load(dest)
    assert net.digest in capsys.readouterr().out
    assert net.params.keys() == folded.keys()
    with np.load(dest) as file:
        assert file["conv.w"].dtype == dtype
    for name, array in folded.items():
        rounding = 1e-3 if name.endswith("w") and dtype == "float16" else 1e-6
        np.testing.assert_allclose(net.params[name], array, rtol=rounding, atol=1e-5)


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A source of one convolution, and how to convert it."""
    monkeypatch.setattr(weights, "kernel_shapes", lambda: {"conv": (1, 1, 3, 2)})
    tree = {"layers.conv.weight": np.ones((2, 3, 1, 1), np.float32)}
    for part in ("beta", "mean", "var"):
        tree[f"layers.conv.{part}"] = np.ones(2, np.float32)

    def convert(name="source.pt", dest="dest.npz", **change):
        write_legacy(tmp_path / name, {**tree, **change})
        return inception.convert(tmp_path / name, tmp_path / dest)

    return convert


def test_a_public_name_asks_for_the_public_checksum(
    tiny, tmp_path, monkeypatch, caplog
):
    with pytest.raises(ValueError, match="Download it again"):
        tiny("inception-2015-12-05.pt")
    assert not list(tmp_path.glob("dest*"))
    caplog.set_level("INFO")
    tiny()
    assert "no public file known" in caplog.text
    digest = hashlib.sha256((tmp_path / "source.pt").read_bytes()).hexdigest()
    monkeypatch.setattr(weights, "_SOURCES", {"inception-2015-12-05.pt": digest})
    tiny("inception-2015-12-05.pt")
    assert "the public file" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers.conv.var": np.ones(3, np.float32)}, r"var, of shape \(2,\), is of"),
        ({"layers.conv.mean": "text"}, "layers.conv.mean, of shape .*, is missing"),
        ({"layers.conv.weight": np.ones(6, np.float32)}, r"weight, .* \(2, 3, 1, 1\)"),
        ({"layers.conv.var": -np.ones(2, np.float32)}, "not finite"),
        ({"layers.conv.beta": np.full(2, np.nan, np.float32)}, "not finite"),
        ({"dest": "dest.pth"}, "dest must end in .npz"),
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
    arguments = [str(tmp_path / "none.pth"), str(tmp_path / "dest.npz")]
    assert main(["convert", *arguments]) == 1
    assert "none.pth: no such file. Download one" in capsys.readouterr().err
    (tmp_path / "none.pth").write_text("text")
    assert main(["convert", *arguments]) == 1
    assert "is not a file of weights" in capsys.readouterr().err
