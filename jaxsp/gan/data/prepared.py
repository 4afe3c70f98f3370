"""Data sets that TFDS has prepared, as array_record files, read without TensorFlow."""

import hashlib
import io
import json
import pathlib
from typing import Any

import numpy as np

_SHAPES = {
    "mnist": (28, 28, 1),
    "fashion_mnist": (28, 28, 1),
    "cifar10": (32, 32, 3),
    "celeb_a": (64, 64, 3),
}
NAMES: tuple[str, ...] = tuple(_SHAPES)


def find(name: str, root: pathlib.Path) -> pathlib.Path | None:
    """The newest `<root>/<name>/<version>` that is prepared as array_record, if any."""
    ready = {}  # version -> directory
    for path in root.glob(f"{name}/*.*.*/dataset_info.json"):
        info = json.loads(path.read_text())
        formats = [info.get("fileFormat"), *info.get("alternativeFileFormats", [])]
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
    """
    import tensorflow_datasets as tfds
    from tqdm import tqdm

    # Reads this directory and nothing else: unlike `tfds.data_source(name)`, it has no
    # code that might download, and any version will do.
    builder: Any = tfds.builder_from_directory(directory)
    skip = {"image": tfds.decode.SkipDecoding()}
    arrays = []
    for split in ("train", "test"):
        source = builder.as_data_source(
            split=split, decoders=skip, file_format="array_record"
        )
        for path in builder.info.splits[split].filepaths:
            if not path.exists():
                raise FileNotFoundError(f"{name} is incomplete: {path} is missing")
        images = np.empty((len(source), *_SHAPES[name]), np.uint8)
        labels = np.empty(len(source), np.int32)
        title = f"{name} {split}"
        with tqdm(total=len(source), desc=title, delay=1, mininterval=1) as bar:
            for start in range(0, len(source), 1000):
                rows = range(start, min(start + 1000, len(source)))
                for row, example in zip(rows, source.__getitems__(rows), strict=True):
                    images[row] = _pixels(name, example["image"])
                    male = name == "celeb_a" and example["attributes"]["Male"]
                    labels[row] = example.get("label", male)
                bar.update(len(rows))
        arrays += [images, labels]
    return tuple(arrays)


def _pixels(name: str, encoded: bytes) -> np.ndarray:
    """The pixels of one PNG or JPEG file."""
    from PIL import Image

    shape = _SHAPES[name]
    image = Image.open(io.BytesIO(encoded)).convert("L" if shape[-1] == 1 else "RGB")
    if name == "celeb_a":  # 178 wide, 218 high
        image = image.crop((0, 20, 178, 198))
        image = image.resize((64, 64), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(shape)
