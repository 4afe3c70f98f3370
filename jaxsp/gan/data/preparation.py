"""MNIST, Fashion-MNIST and CIFAR-10 as TFDS prepares them, without TensorFlow.

TFDS's own builders of these three read their sources through TensorFlow. Here each is
subclassed: its name, version, features, URLs, checksums, download manager, hashed order
and writer are kept, and only the reading of the official files is our own. What comes
out is what the TFDS builder writes, in array_record: the same examples in the same
order, and PNG images of the same pixels, if not the same compressed bytes.
"""

import contextlib
import gzip
import hashlib
import importlib
import io
import logging
import os
import pathlib
import shutil
import tarfile
import tempfile
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

__all__ = ["NAMES", "prepare"]

_BUILDERS = {  # data set -> module and class of tensorflow_datasets
    "mnist": ("image_classification.mnist", "MNIST"),
    "fashion_mnist": ("image_classification.mnist", "FashionMNIST"),
    "cifar10": ("image_classification.cifar", "Cifar10"),
}
NAMES: tuple[str, ...] = tuple(_BUILDERS)

_NETWORK_SECONDS = 5.0  # how long the host of a file may take to answer
_SCRATCH = ".preparing-"  # name of unfinished work, in the folder of the data set

_Splits = dict[str, tuple[np.ndarray, np.ndarray]]  # split -> images, labels


def prepare(
    name: str,
    data_dir: str | os.PathLike,
    *,
    manual_dir: str | os.PathLike | None = None,
    progress: bool = True,
) -> pathlib.Path:
    """Downloads, verifies and writes a data set where it is not prepared yet.

    The official files are taken from `manual_dir`, or else from the downloads TFDS
    keeps in `<data_dir>/downloads`, or else from their URLs, and must have the
    checksums registered in TFDS. The result appears in `data_dir` whole or not at all;
    of several processes on one machine, one prepares and the others wait for it.

    Args:
        name: one of `NAMES`.
        data_dir: TFDS directory, to hold `<name>/<version>`.
        manual_dir: directory of files downloaded by hand, under the names they have in
            their URLs. None means `<data_dir>/downloads/manual`.
        progress: whether to draw progress bars, of the download and of the preparation.

    Returns:
        The directory `<data_dir>/<name>/<version>`.

    Raises:
        ValueError: if there is no data set of that name.
        FileNotFoundError: if a file is needed and its host is out of reach, which shows
            within seconds; says which files, from where, and where to put them.
        FileExistsError: if the directory holds something else, say tfrecord files.
        OSError: if a file has a wrong checksum or the directory cannot be written.
            A wrong file is left alone in `manual_dir`, and removed if downloaded.
    """
    if name not in NAMES:
        raise ValueError(f"name must be one of {', '.join(NAMES)}; got {name!r}")
    root = pathlib.Path(data_dir).expanduser()
    manual = root / "downloads" / "manual"
    if manual_dir is not None:
        manual = pathlib.Path(manual_dir).expanduser()
    builder_cls = _genuine(name)
    target = root / name / str(builder_cls.VERSION)
    if _is_prepared(name, target):
        return target
    url_infos = _url_infos(name)
    missing = [
        url
        for url, info in url_infos.items()
        if not (_in_manual(manual, url, info) or _in_downloads(root, name, url, info))
    ]

    def out_of_reach(reason: str) -> FileNotFoundError:
        files = ", ".join(url_infos[url].filename for url in missing)
        return FileNotFoundError(
            f"{name} is not prepared in data_dir={root} and cannot be downloaded "
            f"({reason}). Download {files} from {missing[0].rpartition('/')[0]}/ on a "
            f"machine with a network, put {'it' if len(missing) == 1 else 'them'} into "
            f"{manual}, and run this again; or name the data_dir in which {name} is "
            "prepared."
        )

    if missing and (reason := _unreachable(missing[0])):
        raise out_of_reach(reason)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.parent) as alone:
            if alone:  # then what others left unfinished was interrupted
                for left in target.parent.glob(f"{_SCRATCH}*"):
                    shutil.rmtree(left, ignore_errors=True)
            if not _is_prepared(name, target):
                _build(name, builder_cls, root, target, manual, progress, bool(missing))
    except ConnectionError as error:
        raise out_of_reach(str(error)) from None
    except OSError as error:
        if error.errno is None:  # has its message already
            raise
        reason = f"{error.strerror}: {error.filename or target.parent}"
        raise OSError(
            error.errno, f"{name} cannot be prepared in data_dir={root}: {reason}"
        ) from error
    return target


# ------------------------------------------------------------------ what TFDS knows


def _genuine(name: str) -> Any:
    """The class of TFDS that prepares the data set where TensorFlow is installed."""
    module, cls = _BUILDERS[name]
    return getattr(importlib.import_module(f"tensorflow_datasets.{module}"), cls)


def _url_infos(name: str) -> Mapping[str, Any]:
    """URL -> size, checksum (SHA-256) and filename, as registered in TFDS."""
    return _genuine(name).url_infos


def _is_prepared(name: str, target: pathlib.Path) -> bool:
    """Whether `target` can be read; an error if it can be neither read nor written."""
    if not target.exists():
        return False
    info = target / "dataset_info.json"
    if info.exists() and any(target.glob(f"{name}-train.array_record-*")):
        return True
    raise FileExistsError(
        f"{target} exists and holds no array_record files of {name}; move it away or "
        "choose another data_dir, where the data set is then prepared."
    )


# ------------------------------------------------------------------ official files


def _in_manual(manual: pathlib.Path, url: str, info: Any) -> bool:
    """Whether the file was put into `manual`; an error if it is another file."""
    path = manual / info.filename
    if not path.exists():
        return False
    if (found := _sha256(path)) != info.checksum:
        raise OSError(
            f"{path} ({path.stat().st_size:,} bytes, SHA-256 {found}) is not the file "
            f"of {url} ({int(info.size):,} bytes, SHA-256 {info.checksum}); download "
            "it anew, or remove it."
        )
    return True


def _in_downloads(root: pathlib.Path, name: str, url: str, info: Any) -> bool:
    """Whether TFDS holds the file; one that has been damaged since is removed."""
    from tensorflow_datasets.core.download import resource

    filename = resource.get_dl_fname(url, info.checksum)
    for folder in (root / "downloads" / name, root / "downloads"):
        path = folder / filename
        if not (path.exists() and (folder / f"{filename}.INFO").exists()):
            continue
        if _sha256(path) == info.checksum:
            return True
        path.unlink()
    return False


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _unreachable(url: str) -> str | None:
    """Why the host of a URL gives no answer, or None if it does.

    TFDS would try for minutes. The question goes the way of the download, through the
    proxies of the environment, in a thread because nothing bounds a look-up of a name.
    """
    import requests

    host = urllib.parse.urlsplit(url).hostname
    reasons = [f"no answer from {host} in {_NETWORK_SECONDS:g} s"]

    def ask() -> None:
        try:
            answer = requests.head(url, timeout=_NETWORK_SECONDS, stream=True)
        except (requests.RequestException, OSError) as error:
            reasons.append(f"no connection to {host}: {type(error).__name__}")
        else:
            with answer:
                status = answer.status_code
            # TFDS repeats its request after these.
            reasons.append(f"{host} answers {status}" if status >= 500 else "")

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_NETWORK_SECONDS)
    return reasons[-1] or None


def _read(name: str, paths: Mapping[str, pathlib.Path]) -> tuple[_Splits, list[str]]:
    """Images and labels of both splits, and the names of the classes if given."""
    if name == "cifar10":
        return _read_cifar10(paths["cifar-10-binary.tar.gz"])
    return {
        split: (
            _read_idx(paths[f"{prefix}-images-idx3-ubyte.gz"]),
            _read_idx(paths[f"{prefix}-labels-idx1-ubyte.gz"]),
        )
        for split, prefix in (("train", "train"), ("test", "t10k"))
    }, []


def _read_idx(path: pathlib.Path) -> np.ndarray:
    """The uint8 array of a gzipped IDX file: 0, 0, type, rank; sizes; values."""
    content = gzip.decompress(path.read_bytes())
    rank = content[3]
    sizes = np.frombuffer(content, ">u4", count=rank, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(sizes)


def _read_cifar10(path: pathlib.Path) -> tuple[_Splits, list[str]]:
    """The binary version: records of a label and 32×32 pixels, plane by plane."""
    files = {}
    with tarfile.open(path) as archive:
        for member in archive:
            if stream := archive.extractfile(member):
                files[pathlib.PurePosixPath(member.name).name] = stream.read()

    def split(*names: str) -> tuple[np.ndarray, np.ndarray]:
        content = b"".join(files[f"{name}.bin"] for name in names)
        records = np.frombuffer(content, np.uint8).reshape(-1, 1 + 3 * 32 * 32)
        planes = records[:, 1:].reshape(-1, 3, 32, 32)
        return planes.transpose(0, 2, 3, 1), records[:, 0]

    classes = files["batches.meta.txt"].decode().split("\n")
    batches = [f"data_batch_{i}" for i in range(1, 6)]
    return (
        {"train": split(*batches), "test": split("test_batch")},
        [label for label in classes if label],
    )


# ------------------------------------------------------------------ writing


def _build(
    name: str,
    builder_cls: Any,
    root: pathlib.Path,
    target: pathlib.Path,
    manual: pathlib.Path,
    progress: bool,
    downloads: bool,
) -> None:
    """Prepares in a scratch directory beside `target` and moves the result there."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import download_manager

    with tempfile.TemporaryDirectory(
        prefix=_SCRATCH, dir=target.parent, ignore_cleanup_errors=True
    ) as scratch:
        builder = _subclass(name, builder_cls, progress, downloads)(
            data_dir=scratch, file_format="array_record"
        )
        config = tfds.download.DownloadConfig(
            manual_dir=manual,
            extract_dir=f"{scratch}/extracted",
            try_download_gcs=False,
            # What the sizes of the images that TensorFlow writes come to.
            num_shards=1,
        )
        try:
            with _tfds_bars(False):
                builder.download_and_prepare(
                    download_dir=root / "downloads", download_config=config
                )
        except download_manager.NonMatchingChecksumError as error:
            raise OSError(_remove_wrong(str(error))) from None
        except tfds.download.DownloadError as error:
            raise ConnectionError(" ".join(str(error).split())) from None
        except RuntimeError as error:  # how array_record says that a disk is full
            raise OSError(
                f"{name} cannot be prepared in data_dir={root}: "
                f"{' '.join(str(error).split())}"
            ) from None
        try:
            pathlib.Path(builder.data_dir).rename(target)
        except OSError:
            if not _is_prepared(name, target):  # else another machine was faster
                raise


def _subclass(name: str, builder_cls: Any, progress: bool, downloads: bool) -> Any:
    """TFDS's builder with another way to read the official files."""
    import requests
    import tensorflow_datasets as tfds
    from PIL import Image
    from tensorflow_datasets.core import registered
    from tqdm import tqdm

    infos = _url_infos(name)

    with registered.skip_registration():

        class Builder(builder_cls):
            __module__ = builder_cls.__module__  # dataset_info.json tells it
            name = builder_cls.name
            url_infos = infos

            def _split_generators(
                self, dl_manager: tfds.download.DownloadManager
            ) -> Any:
                urls = {info.filename: url for url, info in infos.items()}
                try:
                    with _tfds_bars(progress and downloads):
                        paths: Any = dl_manager.download(urls)
                except requests.RequestException as error:
                    raise ConnectionError(
                        f"the download broke off: {type(error).__name__}"
                    ) from None
                splits, classes = _read(name, paths)
                if classes:
                    self.info.features["label"].names = classes
                return {
                    split: self._generate_examples(split, *arrays)
                    for split, arrays in splits.items()
                }

            def _generate_examples(
                self, split: str, images: np.ndarray, labels: np.ndarray
            ) -> Iterator[tuple[int, dict]]:
                bar = tqdm(
                    total=len(images),
                    desc=f"preparing {name} {split}",
                    disable=not progress,
                    delay=1,
                    mininterval=1,
                )
                with bar:
                    # TFDS orders the examples by a hash of split and index.
                    pairs = zip(images, labels, strict=True)
                    for index, (image, label) in enumerate(pairs):
                        png = io.BytesIO()
                        Image.fromarray(image).save(png, "PNG")
                        example = {"image": png.getvalue(), "label": int(label)}
                        if "id" in self.info.features:
                            example["id"] = f"{split}_{index:05d}"
                        yield index, example
                        bar.update()

            def _log_download_bytes(self) -> None:  # would go to standard output
                pass

            def _log_download_done(self) -> None:
                pass

    return Builder


def _remove_wrong(message: str) -> str:
    """Removes the download that TFDS complains of, and says so on one line."""
    # Artifact URL, downloaded to PATH, has wrong checksum:\n* Expected: ...\n* Got: ...
    first, *details = message.splitlines()
    url, _, rest = first.removeprefix("Artifact ").partition(", downloaded to ")
    folder = pathlib.Path(rest.rpartition(", has wrong")[0]).parent
    if ".tmp." in folder.name:  # TFDS makes one for each download
        shutil.rmtree(folder, ignore_errors=True)
    why = "; ".join(line.removeprefix("* ") for line in details[:2])
    return f"what came from {url} is not the official file and was removed ({why})"


@contextlib.contextmanager
def _tfds_bars(shown: bool) -> Iterator[None]:
    """TFDS's progress bars on or off, and afterwards as they were."""
    from tensorflow_datasets.core.utils import tqdm_utils

    before = getattr(tqdm_utils, "_active", True)
    tqdm_utils.display_progress_bar(shown)
    try:
        yield
    finally:
        tqdm_utils.display_progress_bar(before)


@contextlib.contextmanager
def _locked(directory: pathlib.Path) -> Iterator[bool]:
    """Holds a lock on the directory; gives False where there are no such locks."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield False
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = True
        except BlockingIOError:
            logging.getLogger(__name__).warning(
                "waiting for another process, which prepares in %s", directory
            )
            fcntl.flock(handle, fcntl.LOCK_EX)
            alone = True
        except OSError:  # some network file systems
            alone = False
        yield alone
    finally:
        os.close(handle)
