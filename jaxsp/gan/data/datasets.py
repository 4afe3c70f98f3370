"""Data sets as arrays: loaded once on the host, drawn from inside the step.

`digits` comes with scikit-learn, the mixtures are drawn from a fixed seed, and so are
the digits that are stacked. The others are read from a directory that TFDS has
prepared, or from the official files, which are downloaded on first use. Their arrays
are kept in `cache_dir()`, in files that are mapped into memory: a process reads only
what it uses.
"""

import contextlib
import difflib
import importlib.util
import json
import logging
import os
import pathlib
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsp import distributed
from jaxsp._arguments import check_count
from jaxsp.gan import files
from jaxsp.gan.data import official, prepared
from jaxsp.gan.data.dataset import Dataset

NAMES: tuple[str, ...] = ("digits", "mixture_ring", "mixture_grid", "stacked_digits")
NAMES += ("stacked_mnist", *prepared.NAMES)

_CLASSES = {
    "fashion_mnist": "T-shirt/top,trouser,pullover,dress,coat,sandal,shirt,sneaker,"
    "bag,ankle boot",
    "cifar10": "airplane,automobile,bird,cat,deer,dog,frog,horse,ship,truck",
    "celeb_a": "female,male",
}
_STACKED = {"stacked_digits": "digits", "stacked_mnist": "mnist"}
STACKED_EXAMPLES = 50_000, 26_000  # of the splits
_FORMAT = 4  # raised whenever the same files would give other arrays
_PACKAGES = "tensorflow_datasets", "array_record", "importlib_resources", "PIL", "tqdm"
_FILES = "train", "train_labels", "test", "test_labels"
_SUMS = "crc32.json"


def load(
    name: str, data_dir: str | os.PathLike | None = None, *, download: bool = True
) -> Dataset:
    r"""Loads a data set by name, and prepares it first where that is needed.

    Over many processes all must call it. Process 0 prepares and decodes what is not
    yet, and the others then read it; those that do not see its files do the same.

    - `digits`: scikit-learn's 1,797 images 8×8, grey levels 0..16 scaled to 0..255; 297
      of them, spread evenly over the classes, are the test set.
    - `mixture_ring` (or `mixture`): 8 Gaussians of standard deviation 0.02, centred on
      the circle of radius 2. `mixture_grid`: 25 of standard deviation 0.05, centred on
      $\{-4, -2, 0, 2, 4\}^2$. These are the customary constants, so mode counts compare
      with published ones; points are *not* scaled to [-1, 1], so a generator of points
      ends in a linear layer. 50,000 and 10,000 points; the label is the mode.
    - `stacked_digits`, `stacked_mnist`: three images of `digits` or of `mnist`, drawn
      apart, as the channels of one; 1,000 modes, and the label is the number that they
      write. 50,000 of the training split and 26,000 of the test split: the customary
      number of samples from which modes are counted.
    - `mnist`, `fashion_mnist`, `cifar10`: as TFDS has prepared them in `data_dir`; else
      from the official files in `<data_dir>/downloads`, to which those that are missing
      are downloaded. The arrays are the same, in the same order, either way.
    - `celeb_a`: the central 178×178 pixels resized to 64×64 (bilinear, antialiased);
      the label is the attribute "Male" (0 or 1). 2.5 GB, which TFDS must have prepared.

    Args:
      name: one of `NAMES`, or `mixture`.
      data_dir: TFDS directory, which holds `<name>/<version>`. None means
        `$TFDS_DATA_DIR`, or else `~/tensorflow_datasets`.
      download: False reads what is prepared, and neither asks the network nor writes
        into `data_dir`.

    Returns:
      The data set.

    Raises:
      ValueError: if there is no data set of that name.
      FileNotFoundError: if it is not there and cannot be downloaded; says what to do.
      OSError: if a download fails, or a file is not the official one.
      ImportError: if a package of `jaxsp[gan]` is missing.
      distributed.DistributedError: if another process has raised an error.
    """
    found: Any = None
    for turn in (True, False):
        with distributed.raise_together():
            if distributed.is_main() == turn:
                found = _load(name, data_dir, download)
    return found


def _load(name: str, data_dir: str | os.PathLike | None, download: bool) -> Dataset:
    if name == "digits":
        return _digits()
    if name in ("mixture", "mixture_ring"):
        angles = 2 * np.pi * np.arange(8) / 8
        ring = 2 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        return _mixture("mixture_ring", ring, std=0.02)
    if name == "mixture_grid":
        ticks = np.linspace(-4, 4, 5)
        grid = np.stack(np.meshgrid(ticks, ticks, indexing="ij"), axis=-1)
        return _mixture(name, grid.reshape(-1, 2), std=0.05)
    if name in _STACKED:
        return _stacked(name, _load(_STACKED[name], data_dir, download))
    if name in prepared.NAMES:
        return _images(name, data_dir, download)
    near = difflib.get_close_matches(str(name), NAMES, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"name must be one of {', '.join(NAMES)}; got {name!r}{hint}")


def cache_dir() -> pathlib.Path:
    """Directory of what was computed once and is kept between runs.

    Returns:
      `$JAXSP_CACHE_DIR`, else `$XDG_CACHE_HOME/jaxsp`, else `~/.cache/jaxsp`. It need
      not exist yet.
    """
    if path := os.environ.get("JAXSP_CACHE_DIR"):
        return pathlib.Path(path).expanduser()
    parent = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(parent).expanduser() / "jaxsp"


def draw(
    key: jax.Array, share: Any, size: jax.typing.ArrayLike, batch_size: int
) -> Any:
    r"""Draws a batch from one worker's share, inside the step.

    $$i_1, \dots, i_b \sim \mathrm{Uniform}\{0, \dots, \text{size} - 1\},
    \quad \text{independent}$$

    Drawing is with replacement. The batches are then the independent unbiased samples
    that the methods' theory assumes, `batch_size` may exceed `size`, and the time does
    not grow with the share, as it would for a random permutation of it.

    Args:
      key: random key, this worker's own.
      share: array [max_share, ...], or a pytree of such arrays, say (images, labels),
        of which the same rows are drawn.
      size: scalar, how many leading rows of `share` are examples. Later rows are
        padding and are never drawn. At least 1, which `partition.stack` ensures.
      batch_size: number $b$ of examples.

    Returns:
      Like `share`, with leading dimension `batch_size`.

    Raises:
      ValueError: if `batch_size` is not positive.

    Example:
      >>> images, labels = np.arange(8.0).reshape(4, 2), np.arange(4)
      >>> x, label = draw(jax.random.key(0), (images, labels), 3, batch_size=5)
      >>> x.shape, bool((x == 2 * label[:, None] + np.arange(2)).all())
      ((5, 2), True)
    """
    check_count("batch_size", batch_size)
    rows = jax.random.randint(key, (batch_size,), 0, size, jnp.int32)
    return jax.tree.map(lambda leaf: jnp.take(leaf, rows, axis=0, mode="clip"), share)


def _digits() -> Dataset:
    """Scikit-learn's digits, split by position within the class."""
    _require("sklearn")
    from sklearn.datasets import load_digits

    pixels, labels = map(np.asarray, load_digits(return_X_y=True))
    images = np.round(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = labels.astype(np.int32)
    # Every sixth or so of the examples ordered by class, hence stratified.
    by_class = np.argsort(labels, kind="stable")
    test = np.zeros(len(labels), bool)
    test[by_class[np.arange(297) * len(labels) // 297]] = True
    arrays = images[~test], labels[~test], images[test], labels[test]
    return Dataset("digits", *arrays, num_classes=10)


def _mixture(name: str, centers: np.ndarray, std: float) -> Dataset:
    """Points of an equal mixture of isotropic Gaussians in the plane."""
    rng = np.random.default_rng(0)
    labels = rng.integers(len(centers), size=60_000).astype(np.int32)
    points = centers[labels] + std * rng.standard_normal((len(labels), 2))
    points = points.astype(np.float32)
    train, test = slice(50_000), slice(50_000, None)
    arrays = points[train], labels[train], points[test], labels[test]
    return Dataset(name, *arrays, len(centers), centers.astype(np.float32), std)


def _stacked(name: str, single: Dataset) -> Dataset:
    """Images whose three channels are images of another data set, drawn apart."""
    rng, arrays = np.random.default_rng(0), []
    splits = (single.train, single.train_labels), (single.test, single.test_labels)
    for (images, labels), count in zip(splits, STACKED_EXAMPLES, strict=True):
        rows = rng.integers(len(images), size=(count, 3))
        channels = [images[rows[:, c]] for c in range(3)]
        numbers = labels[rows] @ np.array([100, 10, 1])  # the digits that one reads
        arrays += [np.concatenate(channels, axis=-1), numbers]
    own: Any = {"data_dir": single.data_dir, "single": single}
    names = tuple(f"{number:03}" for number in range(1000))
    return Dataset(name, *arrays, num_classes=1000, class_names=names, **own)


def _images(name: str, data_dir: str | os.PathLike | None, download: bool) -> Dataset:
    """A data set of real images, from the cache if it was read from there before."""
    root, directory, cache = _places(name, data_dir)
    if directory is None and name not in official.NAMES:
        raise FileNotFoundError(prepared.how_to_prepare(name, root))
    arrays = _read_cache(cache)
    if arrays is None:
        if directory is None and not download:
            raise FileNotFoundError(
                f"{name} is not in data_dir={root}. If it lies elsewhere, pass "
                "--data_dir=DIR (in Python: data_dir=DIR) or set TFDS_DATA_DIR; with "
                "download=True it would be downloaded now."
            )
        _require(*_PACKAGES)
        reader = prepared.read if directory else official.read
        read = reader(name, directory or root)
        arrays = _map(cache) if _write_cache(cache, read) else read
    names = tuple(_CLASSES[name].split(",")) if name in _CLASSES else ()
    own: Any = {"data_dir": str(root), "class_names": names}
    return Dataset(name, *arrays, num_classes=number_of_classes(name), **own)


def number_of_classes(name: str) -> int:
    """Of a data set of real images."""
    return 2 if name == "celeb_a" else 10


def cached_labels(
    name: str, data_dir: str | os.PathLike | None
) -> tuple[np.ndarray, np.ndarray] | None:
    """The labels of both splits of real images, if they have been read before."""
    with contextlib.suppress(OSError, EOFError, ValueError):
        *_, cache = _places(name, data_dir)
        train, test = (
            np.load(cache / f"{n}.npy") for n in ("train_labels", "test_labels")
        )
        return train, test
    return None


def _places(name, data_dir):
    """The TFDS directory, where the data set lies there, if it does, and its cache."""
    named = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    root = files.local_path("data_dir", named).absolute()
    directory = prepared.find(name, root)
    source = prepared.fingerprint(directory) if directory else "official"
    return root, directory, cache_dir() / f"{name}-{source}-{_FORMAT}"


def _read_cache(directory: pathlib.Path) -> tuple[np.ndarray, ...] | None:
    """The arrays of `_write_cache`; None where they are not all there, or damaged.

    They are mapped: what is not used is not read, and processes share the memory. But
    process 0 reads all of them, for their checksums.
    """
    try:
        sums = distributed.is_main() and (directory / _SUMS).read_text()
        if sums and json.loads(sums) != _checksums(directory):
            raise ValueError("other checksums")
        return _map(directory)
    except FileNotFoundError:
        return None
    except (OSError, EOFError, ValueError) as error:
        logging.getLogger(__name__).warning(
            "%s is damaged (%s): it is made anew", directory, error
        )
        return None


def _map(directory: pathlib.Path) -> tuple[np.ndarray, ...]:
    return tuple(np.load(directory / f"{n}.npy", mmap_mode="r") for n in _FILES)


def _checksums(directory: pathlib.Path) -> dict[str, int]:
    """The CRC-32 of each file of a cache."""
    found = {}
    for name in _FILES:
        content: Any = np.memmap(directory / f"{name}.npy", np.uint8, "r")
        found[name] = zlib.crc32(content)
    return found


def _write_cache(directory: pathlib.Path, arrays: tuple[np.ndarray, ...]) -> bool:
    """Whether it could write the arrays; each is there completely or not at all."""
    try:
        for name, array in zip(_FILES, arrays, strict=True):
            with files.replacing(directory / f"{name}.npy", parents=True) as path:
                np.save(path, array)
        with files.replacing(directory / _SUMS) as path:
            path.write_text(json.dumps(_checksums(directory)))
    except (OSError, ValueError) as error:
        logging.getLogger(__name__).warning(
            "the images cannot be kept in %s for the next run: %s", directory, error
        )
        return False
    return True


def _require(*modules: str) -> None:
    """Raises an ImportError that names the missing modules and the extra."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"this data set needs {', '.join(missing)}, which is not installed: "
            'pip install "jaxsp[gan]"'
        )
