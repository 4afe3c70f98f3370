"""Data sets that TFDS has prepared, as array_record files, read without TensorFlow."""

import contextlib
import hashlib
import io
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxsp.gan import bars

SHAPES = {
    "mnist": (28, 28, 1),
    "fashion_mnist": (28, 28, 1),
    "cifar10": (32, 32, 3),
    "celeb_a": (64, 64, 3),
}
NAMES: tuple[str, ...] = tuple(SHAPES)
_OWN = "tensorflow_datasets.core.features."  # where TFDS's own features are


def find(name: str, root: pathlib.Path) -> pathlib.Path | None:
    """The newest `<root>/<name>/<version>` that is prepared as array_record, if any."""
    ready = {}  # version -> directory
    for path in root.glob(f"{name}/*.*.*/dataset_info.json"):
        info = _read_json(path)
        formats = [info.get("fileFormat"), *(info.get("alternativeFileFormats") or [])]
        if "array_record" in formats and path.parent.name.replace(".", "").isdigit():
            ready[tuple(map(int, path.parent.name.split(".")))] = path.parent
    return ready[max(ready)] if ready else None


def how_to_prepare(name: str, root: pathlib.Path) -> str:
    """What to do about a data set that is not prepared and must be."""
    return (
        f"{name} is not prepared as array_record in data_dir={root} (no "
        f"{root / name}/<version>/dataset_info.json says so). If it lies elsewhere, "
        "pass --data_dir=DIR (in Python: data_dir=DIR) or set TFDS_DATA_DIR. "
        "Otherwise, on a machine with a network and TensorFlow:\n"
        "  pip install tensorflow tensorflow-datasets array_record "
        "importlib_resources pillow beautifulsoup4\n"
        f"  tfds build {name} --file_format=array_record --data_dir={root}\n"
        "or, where it is prepared as tfrecord already,\n"
        f"  tfds convert_format --dataset_version_dir={root / name}/<version> "
        "--out_file_format=array_record\n"
        "Where Google Drive refuses the download, fetch img_align_celeba.zip, "
        "list_eval_partition.txt, list_attr_celeba.txt, "
        "list_landmarks_align_celeba.txt and identity_CelebA.txt from the pages of "
        f"CelebA, put them into {root / 'downloads' / 'manual'}, and build again."
    )


def fingerprint(directory: pathlib.Path) -> str:
    """Digits that change with a directory's place, its files and their times."""
    files = sorted(path for path in directory.iterdir() if path.is_file())
    stats = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    info = (directory / "dataset_info.json").read_text()
    identity = repr((str(directory.resolve()), stats, info))
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def read(name: str, directory: pathlib.Path) -> tuple[np.ndarray, ...]:
    """Both splits of a prepared data set, in the order of TFDS.

    Args:
      name: one of `NAMES`.
      directory: of `find`.

    Returns:
      uint8 training images [N, height, width, channels], their int32 labels, and the
      same of the test split.

    Raises:
      FileNotFoundError: if a file is missing.
      OSError: if a file is damaged, or names features that are not TFDS's own.
    """
    import tensorflow_datasets as tfds

    _check_features(directory / "features.json")
    # Reads this directory and nothing else: unlike `tfds.data_source(name)`, it has no
    # code that might download, and any version will do.
    with _blaming(directory / "dataset_info.json", directory / "features.json"):
        builder: Any = tfds.builder_from_directory(directory)
        splits = {split: builder.info.splits[split] for split in ("train", "test")}
        shards = {  # the format is another than the first one in converted sets
            split: dict(
                zip(
                    info.filename_template.replace(
                        filetype_suffix="array_record"
                    ).sharded_filepaths(info.num_shards),
                    info.shard_lengths,
                    strict=True,
                )
            )
            for split, info in splits.items()
        }
    return tuple(
        array
        for split in shards
        for array in _read_split(name, split, builder, shards[split])
    )


def _read_split(name, split, builder, shards: dict[Any, int]):
    """Images and labels of a split that lies in shards of such lengths."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    for path, length in shards.items():
        if not path.exists():
            raise FileNotFoundError(f"{name} is incomplete: {path} is missing")
        with _blaming(path), ArrayRecordDataSource(str(path)) as records:
            held = len(records)
        with _blaming(path, path.with_name("dataset_info.json")):
            if held != length:
                raise ValueError(f"{held} examples in the one, {length} in the other")
    skip = {"image": tfds.decode.SkipDecoding()}
    source = builder.as_data_source(
        split=split, decoders=skip, file_format="array_record"
    )
    images = np.empty((len(source), *SHAPES[name]), np.uint8)
    labels = np.empty(len(source), np.int32)
    bar = bars.ProgressBar(len(source), f"{name} {split}")
    with contextlib.closing(bar):
        start = 0
        for path, length in shards.items():
            for first in range(start, start + length, 1000):
                rows = range(first, min(first + 1000, start + length))
                with _blaming(path):
                    examples = source.__getitems__(rows)
                    for row, example in zip(rows, examples, strict=True):
                        images[row] = _pixels(name, example["image"])
                        found = example["attributes"] if name == "celeb_a" else example
                        labels[row] = found["Male" if name == "celeb_a" else "label"]
                bar.update(rows.stop)
            start += length
    return images, labels


# ------------------------------------------------------------------ damage


@contextlib.contextmanager
def _blaming(*paths: pathlib.Path) -> Iterator[None]:
    """Names the files that are to blame for an error, of which there are many kinds."""
    try:
        yield
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise OSError(
            f"{' or '.join(map(str, paths))} is damaged ({reason}): prepare the data "
            "set again, or copy it again from where it is whole."
        ) from error


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    with _blaming(path):
        found = json.loads(path.read_text())
        if not isinstance(found, dict):
            raise ValueError("it holds no object")
    return found


def _check_features(path: pathlib.Path) -> None:
    """Refuses classes that are not TFDS's own: it would import their modules."""
    todo: list[Any] = [_read_json(path)]
    while todo:
        for key, value in todo.pop().items():
            # As TFDS writes it now, as protocol buffers may, and as TFDS once did.
            names = key in ("pythonClassName", "python_class_name", "type")
            if isinstance(value, str) and names and not value.startswith(_OWN):
                raise OSError(
                    f"{path} names the class {value!r}, which is not one of TFDS's own "
                    f"features ({_OWN}...); its module is not imported. Prepare the "
                    "data set again."
                )
            todo += _objects(value)


def _objects(value: Any) -> list[dict]:
    """The JSON objects in a value that are not inside one another."""
    if isinstance(value, str):  # TFDS puts JSON into strings of JSON
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    if isinstance(value, list):
        return [found for item in value for found in _objects(item)]
    return [value] if isinstance(value, dict) else []


def _pixels(name: str, encoded: bytes) -> np.ndarray:
    """The pixels of one PNG or JPEG file."""
    from PIL import Image

    shape = SHAPES[name]
    image = Image.open(io.BytesIO(encoded)).convert("L" if shape[-1] == 1 else "RGB")
    if name == "celeb_a":  # 178 wide, 218 high
        image = image.crop((0, 20, 178, 198))
        image = image.resize((64, 64), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(shape)
