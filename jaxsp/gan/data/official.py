"""MNIST, Fashion-MNIST and CIFAR-10 from the files that their authors publish.

TFDS knows where the files lie and which checksums they have, and its download manager
fetches and checks them; they are then read straight into arrays. TensorFlow takes no
part.
"""

import gzip
import hashlib
import pathlib
import tarfile
import threading
import zlib
from typing import Any

import numpy as np

from jaxsp.gan import bars

NAMES = ("mnist", "fashion_mnist", "cifar10")

_NETWORK_SECONDS = 4.0  # how long the host of a file may take to answer
_DAMAGED = EOFError, KeyError, ValueError, zlib.error, tarfile.TarError
_DAMAGED += (gzip.BadGzipFile,)


def read(name: str, root: pathlib.Path) -> tuple[np.ndarray, ...]:
    """Reads a data set from its official files, and downloads those that are missing.

    A file is taken from `<root>/downloads/manual`, where it has the name it has in its
    URL, else from what TFDS has downloaded to `<root>/downloads`, else from its URL.

    The examples come in the order in which TFDS stores them: by the MD5 digest of the
    split's name followed by the example's number in the official files, as in
    "train0". So the arrays are those of `prepared.read`, to the last example.

    Args:
      name: one of `NAMES`.
      root: TFDS directory.

    Returns:
      As `prepared.read`.

    Raises:
      FileNotFoundError: if a file is missing and its host does not answer, which shows
        within seconds; says which files to put where.
      OSError: if a download fails, or a file is not the official one.
    """
    paths = _download(name, root)
    try:
        splits = (_read_cifar10 if name == "cifar10" else _read_mnist)(paths)
    except _DAMAGED as error:
        raise OSError(
            f"{name} cannot be read, because a file is damaged ({error}): remove "
            f"{' or '.join(map(str, paths.values()))}, and start again."
        ) from error
    arrays = []
    for split, (images, labels) in splits.items():
        keys = [f"{split}{index}".encode() for index in range(len(labels))]
        order = np.argsort([hashlib.md5(key).hexdigest() for key in keys])
        arrays += [images[order], labels[order].astype(np.int32)]
    return tuple(arrays)


# ------------------------------------------------------------------ files


def _download(name: str, root: pathlib.Path) -> dict[str, pathlib.Path]:
    """Where the official files lie, by name; they have the registered checksums."""
    import tensorflow_datasets as tfds

    urls = {info.filename: url for url, info in _url_infos(name).items()}
    manual = root / "downloads" / "manual"
    missing = {
        filename: url
        for filename, url in urls.items()
        if not (manual / filename).exists() and not _has_downloaded(name, root, url)
    }
    first = next(iter(missing.values()), None)
    if first and (reason := _unreachable(first)):
        raise FileNotFoundError(
            f"{name} is not in data_dir={root} and cannot be downloaded ({reason}). "
            f"Download {', '.join(missing)} from {first.rpartition('/')[0]}/ on a "
            f"machine with a network into {manual}; or set data_dir to where TFDS has "
            f"prepared {name}."
        )
    if missing and not bars.has_bars():  # those of TFDS rewrite their lines
        tfds.disable_progress_bar()
        bars.say(f"downloading {name}: {', '.join(missing)}")
    try:
        manager = tfds.download.DownloadManager(
            download_dir=root / "downloads",
            extract_dir=root / "downloads",  # nothing is extracted
            manual_dir=manual,
            dataset_name=name,
            url_infos=_url_infos(name),
        )
        paths = manager.download(urls)
    except Exception as error:  # TFDS has errors of many kinds, and some are long
        reason = " ".join(str(error).split())
        raise OSError(
            f"{name} could not be fetched for data_dir={root}: {reason}"
        ) from error
    found: Any = paths
    return {filename: pathlib.Path(path) for filename, path in found.items()}


def _url_infos(name: str) -> Any:
    """URL -> size, checksum (SHA-256) and filename, as registered in TFDS."""
    import tensorflow_datasets as tfds

    return tfds.builder_cls(name).url_infos


def _has_downloaded(name: str, root: pathlib.Path, url: str) -> bool:
    """Whether TFDS has the file already: beside it lies `<file>.INFO`, with the URL."""
    folders = root / "downloads", root / "downloads" / name
    return any(
        f'"{url}"' in note.read_text() and note.with_suffix("").exists()
        for folder in folders
        for note in folder.glob("*.INFO")
    )


def _unreachable(url: str) -> str | None:
    """Why the host of a URL gives no answer, or None if it does.

    TFDS would try for minutes. The request goes through the proxies of the environment,
    as the download will, and in a thread, because nothing bounds a look-up of a name.
    """
    import requests

    reasons: list[str | None] = [f"no answer in {_NETWORK_SECONDS:g} s"]

    def ask() -> None:
        try:
            status = requests.head(url, timeout=_NETWORK_SECONDS).status_code
            # TFDS repeats its request after these.
            reasons.append(f"the server answers {status}" if status >= 500 else None)
        except OSError as error:
            reasons.append(f"no connection: {type(error).__name__}")

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_NETWORK_SECONDS)
    return reasons[-1]


# ------------------------------------------------------------------ formats

# Both return images and labels, by split.


def _read_mnist(paths):
    """MNIST and Fashion-MNIST: images and labels of a split in a file each."""

    def split(name):
        images = _read_idx(paths[f"{name}-images-idx3-ubyte.gz"])
        return images[..., None], _read_idx(paths[f"{name}-labels-idx1-ubyte.gz"])

    return {"train": split("train"), "test": split("t10k")}


def _read_idx(path: pathlib.Path) -> np.ndarray:
    """The uint8 array of a gzipped IDX file: 0, 0, type, rank; sizes; values."""
    content = gzip.decompress(path.read_bytes())
    rank = content[3]
    sizes = np.frombuffer(content, ">u4", count=rank, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(sizes)


def _read_cifar10(paths):
    """The binary version: records of a label and 32×32 pixels, plane by plane."""
    files = {}
    with tarfile.open(paths["cifar-10-binary.tar.gz"]) as archive:
        for member in archive:
            if stream := archive.extractfile(member):
                files[pathlib.PurePosixPath(member.name).name] = stream.read()

    def split(*names):
        content = b"".join(files[f"{name}.bin"] for name in names)
        records = np.frombuffer(content, np.uint8).reshape(-1, 1 + 3 * 32 * 32)
        planes = records[:, 1:].reshape(-1, 3, 32, 32)
        return planes.transpose(0, 2, 3, 1), records[:, 0]

    batches = [f"data_batch_{i}" for i in range(1, 6)]
    return {"train": split(*batches), "test": split("test_batch")}
