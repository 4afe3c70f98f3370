"""Sets prepared without TensorFlow are TFDS's; what goes wrong says so on one line."""

import contextlib
import functools
import gzip
import hashlib
import http.server
import io
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time

import numpy as np
import pytest
from PIL import Image

from jaxsp.gan import data
from jaxsp.gan.data import preparation

CLASSES = ["airplane", "automobile", "bird", "cat", "deer"]
CLASSES += ["dog", "frog", "horse", "ship", "truck"]
IDX = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
SIZES = {"train": 25, "test": 12}


# --- miniatures of the official files ---


def arrays(name, seed=0):
    """Split -> images and labels, in the order of the official files."""
    rng = np.random.default_rng([seed, len(name)])
    shape = (32, 32, 3) if name == "cifar10" else (28, 28)
    return {
        split: (
            rng.integers(0, 256, (size, *shape), np.uint8),
            rng.integers(0, 10, size).astype(np.uint8),
        )
        for split, size in SIZES.items()
    }


def idx(array):
    """The bytes of a gzipped IDX file, as http://yann.lecun.com/exdb/mnist tells."""
    header = bytes([0, 0, 8, array.ndim])
    header += b"".join(size.to_bytes(4, "big") for size in array.shape)
    return gzip.compress(header + array.tobytes(), mtime=0)


def official(name, seed=0):
    """File name -> content."""
    splits = arrays(name, seed)
    if name != "cifar10":
        found = [idx(array) for split in ("train", "test") for array in splits[split]]
        return {f"{stem}-ubyte.gz": content for stem, content in zip(IDX, found)}  # noqa: B905
    records = {
        split: b"".join(
            bytes([label]) + image.transpose(2, 0, 1).tobytes()
            for image, label in zip(*splits[split], strict=True)
        )
        for split in SIZES
    }
    fifth = len(records["train"]) // 5
    files = {"batches.meta.txt": "\n".join([*CLASSES, "", ""]).encode()}
    for i in range(5):
        content = records["train"][i * fifth : (i + 1) * fifth]
        files[f"data_batch_{i + 1}.bin"] = content
    files |= {"readme.html": b"<html>", "test_batch.bin": records["test"]}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        folder = tarfile.TarInfo("cifar-10-batches-bin")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for filename, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{filename}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return {"cifar-10-binary.tar.gz": packed.getvalue()}


def put(files, folder):
    folder.mkdir(parents=True, exist_ok=True)
    for filename, content in files.items():
        (folder / filename).write_bytes(content)
    return folder


def register(monkeypatch, files, url="https://nowhere.invalid/files/"):
    """Makes TFDS believe that these are the official files."""
    from tensorflow_datasets.core.download.checksums import UrlInfo
    from tensorflow_datasets.core.utils import Size

    infos = {
        url + filename: UrlInfo(
            Size(len(content)), hashlib.sha256(content).hexdigest(), filename
        )
        for filename, content in files.items()
    }
    monkeypatch.setattr(preparation, "_url_infos", lambda name: infos)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXSP_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def mnist(monkeypatch):
    """Registered miniatures of MNIST's files."""
    files = official("mnist")
    register(monkeypatch, files)
    return files


@pytest.fixture(autouse=True)
def only_this_machine(monkeypatch):
    """Nothing in this file may leave the machine."""
    connect = socket.socket.connect

    def local(self, address):
        assert address[0] in ("127.0.0.1", "::1"), address
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local)
    for variable in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)


def tfds_order(split):
    """TFDS sorts by the MD5 of the split's name followed by the example's key."""
    keys = [f"{split}{index}".encode() for index in range(SIZES[split])]
    return sorted(range(SIZES[split]), key=lambda i: hashlib.md5(keys[i]).digest())


def left(root):
    """All files and folders, apart from what is prepared."""
    found = {str(path.relative_to(root)) for path in root.rglob("*")}
    return sorted(path for path in found if not re.search(r"/\d+\.\d+\.\d+", path))


# --- what is prepared ---


@pytest.mark.parametrize("name", preparation.NAMES)
def test_what_tfds_reads(name, tmp_path, monkeypatch, own_cache, capsys):
    import tensorflow_datasets as tfds

    files = official(name)
    register(monkeypatch, files)
    manual = put(files, tmp_path / "manual")
    root = tmp_path / "tfds"
    path = preparation.prepare(name, root, manual_dir=manual)
    assert path == root / name / tfds.builder_cls(name).VERSION.__str__()
    assert capsys.readouterr().out == ""

    loaded = data.load(name, root, download=False)
    for split, (images, labels) in arrays(name).items():
        order = tfds_order(split)
        assert order != sorted(order)
        source = tfds.data_source(name, split=split, data_dir=root, download=False)
        assert len(source) == len(images)
        for example, index in zip(source, order, strict=True):
            shown = images[index].reshape(example["image"].shape)
            np.testing.assert_array_equal(example["image"], shown)
            assert example["label"] == labels[index]
            if name == "cifar10":
                assert example["id"] == f"{split}_{index:05d}".encode()
        read, read_labels = (
            (loaded.train, loaded.train_labels)
            if split == "train"
            else (loaded.test, loaded.test_labels)
        )
        np.testing.assert_array_equal(read, images[order].reshape(read.shape))
        np.testing.assert_array_equal(read_labels, labels[order])


@pytest.mark.parametrize("name", preparation.NAMES)
def test_metadata_is_tfds_own(name, tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    files = official(name)
    register(monkeypatch, files)
    path = preparation.prepare(
        name, tmp_path, manual_dir=put(files, tmp_path / "manual")
    )
    genuine = tfds.builder_cls(name)
    info = json.loads((path / "dataset_info.json").read_text())
    assert info["name"] == name
    assert info["version"] == str(genuine.VERSION) == path.name
    assert info["moduleName"] == genuine.__module__
    assert info["fileFormat"] == "array_record"
    assert int(info["downloadSize"]) == sum(map(len, files.values()))
    assert [(split["name"], split["shardLengths"]) for split in info["splits"]] == [
        ("train", ["25"]),
        ("test", ["12"]),
    ]
    # Description, citation and features come from TFDS's class, unprepared.
    class_info = genuine(data_dir=tmp_path / "none", file_format="array_record").info
    assert info["description"] == class_info.description
    assert info["citation"] == class_info.citation
    read = tfds.builder_from_directory(path).info
    assert repr(read.features) == repr(class_info.features)
    assert read.supervised_keys == ("image", "label")
    names = {
        "mnist": [str(i) for i in range(10)],
        "fashion_mnist": class_info.features["label"].names,
        "cifar10": CLASSES,
    }
    assert read.features["label"].names == names[name]
    raw = tfds.builder_from_directory(path).as_data_source(
        "train", decoders={"image": tfds.decode.SkipDecoding()}
    )
    assert all(example["image"].startswith(b"\x89PNG\r\n\x1a\n") for example in raw)


LABEL = re.compile(rb"\n\x05label\x12\x05\x1a\x03\n\x01(.)", re.DOTALL)  # protobuf


def records(path):
    """Pixels and label of each example in a file of MNIST; faster than through TFDS."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    with ArrayRecordDataSource([str(path)]) as source:
        found = source.__getitems__(range(len(source)))
    for record in found:
        start, end = record.index(b"\x89PNG"), record.rindex(b"IEND") + 8
        label = LABEL.search(record[:start] + record[end:])
        yield np.asarray(Image.open(io.BytesIO(record[start:end]))), label[1]


def test_real_mnist_is_tfds_to_the_last_example(tfds_dir, tmp_path):
    folder = os.environ.get("JAXSP_MNIST_GZ")
    if not folder or tfds_dir is None:
        pytest.skip("JAXSP_MNIST_GZ or JAXSP_DATA_DIR is not set")
    ours = preparation.prepare("mnist", tmp_path, manual_dir=folder)
    theirs = tfds_dir / "mnist" / "3.0.1"
    assert ours.name == theirs.name
    names = sorted(path.name for path in ours.iterdir())
    assert names == sorted(path.name for path in theirs.iterdir())
    assert (ours / "features.json").read_bytes() == (
        theirs / "features.json"
    ).read_bytes()
    infos = [json.loads((p / "dataset_info.json").read_text()) for p in (ours, theirs)]
    for info in infos:
        for split in info["splits"]:
            del split["numBytes"]  # TensorFlow compresses PNG images a bit differently
    assert infos[0] == infos[1]
    for name in names[2:]:
        count = 0
        for (one, label), (other, same) in zip(
            records(ours / name), records(theirs / name), strict=True
        ):
            assert np.array_equal(one, other)
            assert label == same
            count += 1
        assert count == (60_000 if "train" in name else 10_000)


# --- when it is prepared ---


def test_prepared_data_set_is_left_alone(tmp_path, mnist):
    manual = put(mnist, tmp_path / "manual")
    path = preparation.prepare("mnist", tmp_path, manual_dir=manual)
    before = {file: file.stat().st_mtime_ns for file in path.iterdir()}
    for filename in mnist:
        (manual / filename).unlink()
    assert preparation.prepare("mnist", tmp_path) == path
    assert {file: file.stat().st_mtime_ns for file in path.iterdir()} == before


def test_load_prepares_from_files_put_there_by_hand(tmp_path, mnist, own_cache):
    root = tmp_path / "tfds"
    put(mnist, root / "downloads" / "manual")
    before = left(root)
    with pytest.raises(FileNotFoundError, match="download=True"):
        data.load("mnist", root, download=False)
    assert left(root) == before
    assert data.load("mnist", root).train.shape == (25, 28, 28, 1)
    assert sorted({*left(root)} - {*before}) == ["mnist"]


def test_something_else_in_the_way_is_not_touched(tmp_path, mnist):
    path = tmp_path / "mnist" / "3.0.1"
    put({"mnist-train.tfrecord-00000-of-00001": b"", "dataset_info.json": b"{}"}, path)
    put(mnist, tmp_path / "downloads" / "manual")
    with pytest.raises(FileExistsError, match=f"{path} exists and holds no array_rec"):
        preparation.prepare("mnist", tmp_path)
    assert len(list(path.iterdir())) == 2


def test_unknown_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match="mnist, fashion_mnist, cifar10; got 'celeb_a"):
        preparation.prepare("celeb_a", tmp_path)


# --- download ---


@pytest.fixture
def server(tmp_path):
    """Serves `server.folder`, notes `server.asked`; `server.status` replaces 200."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            serving.asked.append(self.path)
            if serving.status:
                return self.send_error(serving.status)
            return super().do_GET()

        def do_HEAD(self):
            if serving.status:
                return self.send_error(serving.status)
            return super().do_HEAD()

    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        serving.folder, serving.asked, serving.status = folder, [], None
        serving.url = f"http://127.0.0.1:{serving.server_port}/"
        thread = threading.Thread(target=serving.serve_forever, args=(0.01,))
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


@pytest.fixture
def served(server, monkeypatch):
    """MNIST's miniatures, registered and to be had from a server."""
    files = official("mnist")
    register(monkeypatch, files, server.url)
    put(files, server.folder)
    return files


def test_download_is_kept_and_used_again(tmp_path, server, served, capsys):
    root = tmp_path / "tfds"
    path = preparation.prepare("mnist", root)
    assert sorted(server.asked) == sorted(f"/{filename}" for filename in served)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Dl Size" in printed.err
    content = (path / "features.json").read_bytes()
    for file in path.iterdir():
        file.unlink()
    path.rmdir()
    server.status = 503  # as if there were no network
    assert preparation.prepare("mnist", root) == path
    assert (path / "features.json").read_bytes() == content
    assert len(server.asked) == 4


def test_only_what_is_missing_is_downloaded(tmp_path, server, served, capsys):
    images = {name: content for name, content in served.items() if "images" in name}
    manual = put(images, tmp_path / "manual")
    preparation.prepare("mnist", tmp_path / "tfds", manual_dir=manual, progress=False)
    assert sorted(server.asked) == sorted(f"/{name}" for name in {*served} - {*images})
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("progress", [True, False])
def test_bar_counts_the_examples(tmp_path, mnist, monkeypatch, progress):
    import tqdm

    bars = []

    class Noted(tqdm.tqdm):
        def __init__(self, *args, **kwargs):
            # It would appear only after a second.
            file = io.StringIO()
            super().__init__(*args, **(kwargs | {"delay": 0, "file": file}))
            bars.append((self, self.disable, file))

    monkeypatch.setattr(tqdm, "tqdm", Noted)
    manual = put(mnist, tmp_path / "manual")
    preparation.prepare("mnist", tmp_path, manual_dir=manual, progress=progress)
    assert [disabled for _, disabled, _ in bars] == [not progress] * 2
    if progress:
        assert [(bar.n, bar.total) for bar, _, _ in bars] == [(25, 25), (12, 12)]
        assert all("preparing mnist" in file.getvalue() for _, _, file in bars)


def test_damaged_download_is_fetched_anew(tmp_path, server, served):
    root = tmp_path / "tfds"
    path = preparation.prepare("mnist", root)
    path.rename(tmp_path / "first")
    (kept,) = (root / "downloads").rglob("*train-images*.gz")
    kept.write_bytes(kept.read_bytes()[:-100])
    preparation.prepare("mnist", root)
    assert server.asked[4:] == ["/train-images-idx3-ubyte.gz"]
    for file in path.iterdir():
        assert file.read_bytes() == (tmp_path / "first" / file.name).read_bytes()


def one_line(message):
    assert "\n" not in message
    return message


def test_wrong_download_is_removed(tmp_path, server, served):
    root = tmp_path / "tfds"
    wrong = server.folder / "t10k-labels-idx1-ubyte.gz"
    wrong.write_bytes(b"<html>please log in</html>")
    with pytest.raises(OSError, match="not the official file and was removed") as info:
        preparation.prepare("mnist", root)
    message = one_line(str(info.value))
    assert f"{server.url}{wrong.name}" in message
    assert hashlib.sha256(wrong.read_bytes()).hexdigest() in message
    assert hashlib.sha256(served[wrong.name]).hexdigest() in message
    kept = [path.read_bytes() for path in root.rglob("*") if path.is_file()]
    assert wrong.read_bytes() not in kept
    assert list((root / "mnist").iterdir()) == []
    put(served, server.folder)
    assert preparation.prepare("mnist", root).exists()


@pytest.mark.parametrize("status", [404, 503])
def test_refusal_tells_what_to_do(tmp_path, server, served, status):
    server.status = status
    began = time.monotonic()
    with pytest.raises(FileNotFoundError, match=f"cannot be downl.*{status}") as info:
        preparation.prepare("mnist", tmp_path / "tfds")
    assert time.monotonic() - began < 5
    assert str(tmp_path / "tfds" / "downloads" / "manual") in one_line(str(info.value))
    assert not any((tmp_path / "tfds").glob("mnist/*"))


# --- no network ---


def check_message(info, root, mnist):
    message = one_line(str(info.value))
    for filename in mnist:
        assert filename in message
    assert "from https://nowhere.invalid/files/ " in message
    assert f"into {root / 'downloads' / 'manual'}," in message
    assert not root.exists()  # nothing has begun


def test_look_up_that_hangs_takes_seconds(tmp_path, mnist, monkeypatch):
    over = threading.Event()

    def hang(*args, **kwargs):
        over.wait(60)
        raise socket.gaierror("at last")

    assert preparation._NETWORK_SECONDS <= 6
    monkeypatch.setattr(preparation, "_NETWORK_SECONDS", 0.5)
    monkeypatch.setattr(socket, "getaddrinfo", hang)
    began = time.monotonic()
    with pytest.raises(FileNotFoundError, match="no answer from nowhere") as info:
        data.load("mnist", tmp_path / "tfds")
    assert time.monotonic() - began < 3
    check_message(info, tmp_path / "tfds", mnist)
    over.set()


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "all_proxy"])
def test_dead_proxy_takes_seconds(tmp_path, mnist, monkeypatch, name):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
    began = time.monotonic()
    with pytest.raises(FileNotFoundError, match="no connection to nowhere") as info:
        data.load("mnist", tmp_path / "tfds")
    assert time.monotonic() - began < 5
    assert "ProxyError" in str(info.value)
    check_message(info, tmp_path / "tfds", mnist)


def test_missing_file_is_named_alone(tmp_path, mnist, monkeypatch):
    monkeypatch.setattr(preparation, "_unreachable", lambda url: "no network")
    labels = "train-labels-idx1-ubyte.gz"
    manual = put({k: v for k, v in mnist.items() if k != labels}, tmp_path / "manual")
    with pytest.raises(FileNotFoundError, match=f"Download {labels} from .* put it "):
        preparation.prepare("mnist", tmp_path / "tfds", manual_dir=manual)


# --- interruptions, other processes, disks ---


def test_wrong_manual_file_is_kept(tmp_path, mnist):
    manual = put(mnist, tmp_path / "manual")
    wrong = manual / "train-images-idx3-ubyte.gz"
    wrong.write_bytes(wrong.read_bytes() + b"\0")
    with pytest.raises(OSError, match=f"{wrong} .* is not the file of https") as info:
        preparation.prepare("mnist", tmp_path / "tfds", manual_dir=manual)
    assert hashlib.sha256(wrong.read_bytes()).hexdigest() in one_line(str(info.value))
    assert wrong.exists()
    assert not (tmp_path / "tfds").exists()


def prepare_in_subprocess(root, before):
    """Starts to prepare the miniatures in `root`/downloads/manual, after some code."""
    put(official("mnist"), root / "downloads" / "manual")
    code = """
import hashlib, importlib.util, pathlib, sys
# The module alone: JAX is not needed and takes long to import.
spec = importlib.util.spec_from_file_location("prepare", sys.argv[2])
prepare = importlib.util.module_from_spec(spec)
spec.loader.exec_module(prepare)
from tensorflow_datasets.core.download.checksums import compute_url_info
root = pathlib.Path(sys.argv[1])
infos = {f"https://nowhere.invalid/{path.name}": compute_url_info(path)
         for path in (root / "downloads" / "manual").iterdir()}
prepare._url_infos = lambda name: infos
exec(sys.argv[3])
try:
    print(prepare.prepare("mnist", root, progress=False))
except OSError as error:
    print(error)
"""
    return subprocess.Popen(
        [sys.executable, "-c", code, str(root), preparation.__file__, before],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_killed_preparation_leaves_nothing_in_the_way(tmp_path, mnist):
    slow = """
import time
class Slow(list):
    def __iter__(self):
        yield from self[:5]
        print("half", flush=True)
        time.sleep(100)
read = preparation._read
def read_slowly(*args):
    splits, classes = read(*args)
    splits["test"] = (Slow(splits["test"][0]), splits["test"][1])
    return splits, classes
preparation._read = read_slowly
"""
    with prepare_in_subprocess(tmp_path, slow) as process:
        try:
            assert process.stdout.readline() == "half\n"
            (scratch,) = (tmp_path / "mnist").iterdir()
            # Another process waits, and prepares when this one is gone.
            with prepare_in_subprocess(tmp_path, "") as other:
                assert any("waiting for another" in line for line in other.stderr)
                assert list((tmp_path / "mnist").iterdir()) == [scratch]
                process.send_signal(signal.SIGKILL)
                out, _ = other.communicate(timeout=60)
        finally:
            process.kill()
    assert out == f"{tmp_path / 'mnist' / '3.0.1'}\n"
    assert [path.name for path in (tmp_path / "mnist").iterdir()] == ["3.0.1"]
    assert len(data.load("mnist", tmp_path, download=False).train) == 25


def test_full_disk_takes_one_line(tmp_path):
    limit = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
"""
    with prepare_in_subprocess(tmp_path, limit) as process:
        out, err = process.communicate(timeout=60)
    assert out.startswith(f"mnist cannot be prepared in data_dir={tmp_path}: "), err
    assert "File too large" in out
    assert out.count("\n") == 1
    assert list((tmp_path / "mnist").iterdir()) == []


def test_directory_that_cannot_be_written_takes_one_line(tmp_path, mnist):
    manual = put(mnist, tmp_path / "manual")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="mnist cannot be prepared in data_dir=") as info:
        preparation.prepare("mnist", tmp_path / "file" / "tfds", manual_dir=manual)
    assert isinstance(info.value, NotADirectoryError)
    assert "Not a directory" in one_line(str(info.value))


def test_of_two_threads_one_prepares(tmp_path, mnist, monkeypatch):
    manual = put(mnist, tmp_path / "manual")
    build, built = preparation._build, []
    at_once = threading.Barrier(2)
    lock = preparation._locked

    def locked(directory):
        at_once.wait(30)  # neither has seen the other's result
        return lock(directory)

    def counted(*args):
        built.append(args)
        return build(*args)

    monkeypatch.setattr(preparation, "_locked", locked)
    monkeypatch.setattr(preparation, "_build", counted)
    found = []
    threads = [
        threading.Thread(
            target=lambda: found.append(
                preparation.prepare("mnist", tmp_path, manual_dir=manual)
            )
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [tmp_path / "mnist" / "3.0.1"] * 2
    assert len(built) == 1


def test_without_locks_the_first_to_finish_wins(tmp_path, mnist, monkeypatch):
    manual = put(mnist, tmp_path / "manual")
    read = preparation._read

    @contextlib.contextmanager
    def no_lock(directory):
        yield False

    def read_while_another_prepares(*args):
        monkeypatch.setattr(preparation, "_read", read)
        path = preparation.prepare("mnist", tmp_path, manual_dir=manual)
        first.extend((path, path.stat().st_ino))
        return read(*args)

    first = []
    monkeypatch.setattr(preparation, "_locked", no_lock)
    monkeypatch.setattr(preparation, "_read", read_while_another_prepares)
    path = preparation.prepare("mnist", tmp_path, manual_dir=manual)
    assert [path, path.stat().st_ino] == first
    assert [p.name for p in (tmp_path / "mnist").iterdir()] == ["3.0.1"]


def test_registered_files_are_known():
    # The names by which the files are looked for are those of TFDS's checksums.
    for name in ("mnist", "fashion_mnist"):
        infos = preparation._url_infos(name)
        assert {info.filename for info in infos.values()} == {*official(name)}
        assert {pathlib.PurePosixPath(url).name for url in infos} == {*official(name)}
    (info,) = preparation._url_infos("cifar10").values()
    assert info.filename == "cifar-10-binary.tar.gz"
    assert int(info.size) == 170_052_171
