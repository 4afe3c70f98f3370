"""The official files give TFDS's arrays; what goes wrong says so on one line."""

import contextlib
import functools
import gzip
import hashlib
import http.server
import io
import os
import pathlib
import socket
import subprocess
import sys
import tarfile
import threading
import time

import numpy as np
import pytest

from jaxsp.gan import data
from jaxsp.gan.data import official

IDX = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
SIZES = {"train": 25, "test": 12}


# --- miniatures of the official files ---


def arrays(name):
    """Split -> images and labels, in the order of the official files."""
    rng = np.random.default_rng(len(name))
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


def miniatures(name):
    """File name -> content."""
    splits = arrays(name)
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
    files = {"batches.meta.txt": b"", "test_batch.bin": records["test"]}
    for i in range(5):
        content = records["train"][i * fifth : (i + 1) * fifth]
        files[f"data_batch_{i + 1}.bin"] = content
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
    monkeypatch.setattr(official, "_url_infos", lambda name: infos)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXSP_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def mnist(monkeypatch):
    """Registered miniatures of MNIST's files."""
    files = miniatures("mnist")
    register(monkeypatch, files)
    return files


@pytest.fixture
def root(tmp_path):
    return tmp_path / "tfds"


def manual(root):
    return root / "downloads" / "manual"


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


def check(name, dataset):
    """The arrays are those of the miniatures, in the order of TFDS."""
    for split, (images, labels) in arrays(name).items():
        order = tfds_order(split)
        assert order != sorted(order)
        found = getattr(dataset, split)
        found_labels = getattr(dataset, f"{split}_labels")
        assert found.dtype == np.uint8
        assert found_labels.dtype == np.int32
        np.testing.assert_array_equal(found, images[order].reshape(found.shape))
        np.testing.assert_array_equal(found_labels, labels[order])


# --- what is read ---


@pytest.mark.parametrize("name", official.NAMES)
def test_files_put_there_by_hand_are_read(name, root, monkeypatch, capsys):
    files = miniatures(name)
    register(monkeypatch, files)
    put(files, manual(root))
    with pytest.raises(FileNotFoundError, match="download=True"):
        data.load(name, root, download=False)
    check(name, data.load(name, root))
    assert capsys.readouterr().out == ""
    assert sorted(path.name for path in root.rglob("*") if path.is_file()) == sorted(
        files
    )
    # From now on the cache is enough, wherever the files are.
    monkeypatch.setattr(official, "read", None)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    check(name, data.load(name, root / "elsewhere", download=False))


def test_read_only_directory_will_do(root, mnist):
    put(mnist, manual(root))
    for folder in (root / "downloads", root):
        folder.chmod(0o555)
    check("mnist", data.load("mnist", root))
    for folder in (root, root / "downloads"):
        folder.chmod(0o755)


def test_real_mnist_is_tfds_to_the_last_example(tfds_dir, root):
    folder = os.environ.get("JAXSP_MNIST_GZ")
    if not folder or tfds_dir is None:
        pytest.skip("JAXSP_MNIST_GZ or JAXSP_DATA_DIR is not set")
    manual(root).parent.mkdir(parents=True)
    manual(root).symlink_to(folder)
    ours, theirs = data.load("mnist", root), data.load("mnist", tfds_dir)
    assert len(ours.train) == 60_000
    for name in ("train", "train_labels", "test", "test_labels"):
        one, other = getattr(ours, name), getattr(theirs, name)
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


# --- download ---


@pytest.fixture
def server(tmp_path):
    """Serves `server.folder`, notes `server.asked`; `server.status` replaces 200."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def send_head(self):  # of GET, which sends the file then, and of HEAD
            if self.command == "GET":
                serving.asked.append(self.path)
            if serving.status:
                return self.send_error(serving.status)
            return super().send_head()

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
    files = miniatures("mnist")
    register(monkeypatch, files, server.url)
    put(files, server.folder)
    return files


def test_download_is_kept_and_used_again(root, own_cache, server, served, capsys):
    import tensorflow_datasets as tfds

    tfds.enable_progress_bar()  # other tests may have switched it off
    check("mnist", data.load("mnist", root))
    assert sorted(server.asked) == sorted(f"/{filename}" for filename in served)
    names = ", ".join(served)  # no bar, which would rewrite its line
    assert capsys.readouterr().err == f"downloading mnist: {names}\n"
    own_cache.rename(own_cache.with_name("first"))
    server.status = 503  # as if there were no network
    check("mnist", data.load("mnist", root))
    assert len(server.asked) == 4


def test_only_what_is_missing_is_downloaded(root, server, served):
    images = {name: content for name, content in served.items() if "images" in name}
    put(images, manual(root))
    check("mnist", data.load("mnist", root))
    assert sorted(server.asked) == sorted(f"/{name}" for name in {*served} - {*images})


def one_line(message):
    assert "\n" not in message
    return message


@contextlib.contextmanager
def seconds(most):
    began = time.monotonic()
    yield
    assert time.monotonic() - began < most


def test_damaged_download_is_named(root, server, served, own_cache):
    data.load("mnist", root)
    own_cache.rename(own_cache.with_name("first"))
    (kept,) = (root / "downloads").rglob("*train-images*.gz")
    for content in (kept.read_bytes()[:-100], kept.read_bytes()[:-20] + bytes(20)):
        kept.write_bytes(content)
        with pytest.raises(OSError, match="a file is damaged") as info:
            data.load("mnist", root)
        assert str(kept) in one_line(str(info.value))
        assert not own_cache.exists()
    kept.unlink()
    check("mnist", data.load("mnist", root))
    assert server.asked[4:] == ["/train-images-idx3-ubyte.gz"]


def test_wrong_download_is_not_used(root, server, served):
    wrong = server.folder / "t10k-labels-idx1-ubyte.gz"
    wrong.write_bytes(b"<html>please log in</html>")
    with pytest.raises(OSError, match="wrong checksum") as info:
        data.load("mnist", root)
    message = one_line(str(info.value))
    assert f"{server.url}{wrong.name}" in message
    assert hashlib.sha256(wrong.read_bytes()).hexdigest() in message
    assert hashlib.sha256(served[wrong.name]).hexdigest() in message
    put(served, server.folder)
    check("mnist", data.load("mnist", root))


@pytest.mark.parametrize("status", [404, 503])
def test_refusal_takes_one_line(root, server, served, status):
    server.status = status
    with seconds(5), pytest.raises(OSError, match=f"mnist .* {status}") as info:
        data.load("mnist", root)
    one_line(str(info.value))


# --- no network ---


def check_message(info, root, mnist):
    message = one_line(str(info.value))
    for filename in mnist:
        assert filename in message
    assert "from https://nowhere.invalid/files/ " in message
    assert f"into {manual(root)};" in message
    assert not root.exists()  # nothing has begun


def test_look_up_that_hangs_takes_seconds(root, mnist, monkeypatch):
    over = threading.Event()

    def hang(*args, **kwargs):
        over.wait(60)
        raise socket.gaierror("at last")

    assert official._NETWORK_SECONDS <= 5
    monkeypatch.setattr(official, "_NETWORK_SECONDS", 0.5)
    monkeypatch.setattr(socket, "getaddrinfo", hang)
    with seconds(3), pytest.raises(FileNotFoundError, match="no answer in") as info:
        data.load("mnist", root)
    check_message(info, root, mnist)
    over.set()


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "all_proxy"])
def test_dead_proxy_takes_seconds(root, mnist, monkeypatch, name):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
    refused = pytest.raises(FileNotFoundError, match="no connection: ProxyError")
    with seconds(5), refused as info:
        data.load("mnist", root)
    check_message(info, root, mnist)


def test_missing_file_is_named_alone(root, mnist, monkeypatch):
    monkeypatch.setattr(official, "_unreachable", lambda url: "no network")
    labels = "train-labels-idx1-ubyte.gz"
    put({k: v for k, v in mnist.items() if k != labels}, manual(root))
    with pytest.raises(FileNotFoundError, match=f"Download {labels} from "):
        data.load("mnist", root)


# --- wrong files, interruptions, other processes, disks ---


def test_wrong_manual_file_is_kept(root, mnist):
    wrong = put(mnist, manual(root)) / "train-images-idx3-ubyte.gz"
    wrong.write_bytes(wrong.read_bytes() + b"\0")
    with pytest.raises(OSError, match=f"{wrong}, has wrong checksum") as info:
        data.load("mnist", root)
    assert hashlib.sha256(wrong.read_bytes()).hexdigest() in one_line(str(info.value))
    assert wrong.exists()


def test_directory_that_cannot_be_written_takes_one_line(tmp_path, server, served):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="could not be fetched for data_dir=") as info:
        data.load("mnist", tmp_path / "file" / "tfds")
    assert "Not a directory" in one_line(str(info.value))


def test_killed_first_use_leaves_nothing_in_the_way(root, own_cache, mnist):
    put(mnist, manual(root))
    code = """
import pathlib, sys, time
import numpy as np
from jaxsp.gan import data
from jaxsp.gan.data import official
from tensorflow_datasets.core.download.checksums import compute_url_info
root = pathlib.Path(sys.argv[1])
infos = {f"https://nowhere.invalid/{path.name}": compute_url_info(path)
         for path in (root / "downloads" / "manual").iterdir()}
official._url_infos = lambda name: infos
save = np.save
def save_slowly(path, array):
    if "test" in path.name:
        path.write_bytes(b"half")
        print("half", flush=True)
        time.sleep(100)
    save(path, array)
np.save = save_slowly
data.load("mnist", root)
"""
    command = [sys.executable, "-c", code, str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "half\n"
            check("mnist", data.load("mnist", root))  # two at once
        finally:
            process.kill()
    check("mnist", data.load("mnist", root))
    (cache,) = own_cache.iterdir()
    for path in cache.glob("[!.]*"):
        path.unlink()
    check("mnist", data.load("mnist", root))


def test_full_disk_is_no_error(root, own_cache, mnist, monkeypatch, caplog):
    def fill(path, array):
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    put(mnist, manual(root))
    monkeypatch.setattr(np, "save", fill)
    check("mnist", data.load("mnist", root))
    (cache,) = own_cache.iterdir()
    assert f"the images cannot be kept in {cache} for the next run: no" in caplog.text
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("name", official.NAMES)
def test_registered_files_are_known(name):
    """The names by which the files are looked for are those of TFDS's checksums."""
    infos = official._url_infos(name)
    assert {info.filename for info in infos.values()} == {*miniatures(name)}
    assert {pathlib.PurePosixPath(url).name for url in infos} == {*miniatures(name)}
    if name == "cifar10":
        (info,) = infos.values()
        assert int(info.size) == 170_052_171
