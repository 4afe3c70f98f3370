"""TFDS directories of a few images, prepared by TFDS itself."""

import io
import pathlib

import numpy as np
from PIL import Image

SHAPES = {  # as TFDS stores them
    "mnist": (28, 28, 1),
    "fashion_mnist": (28, 28, 1),
    "cifar10": (32, 32, 3),
    "celeb_a": (218, 178, 3),
}
SPLITS = {"train": 7, "test": 4}


def raw_image(name, split, label):
    """An image that its split and label determine, smooth for the sake of JPEG."""
    height, width, channels = SHAPES[name]
    rng = np.random.default_rng([label, split == "train"])
    small = Image.fromarray(rng.integers(0, 255, (5, 4, 3), np.uint8))
    image = small.resize((width, height), Image.Resampling.BICUBIC)
    return image.convert("L") if channels == 1 else image


def prepare(name, root, version="3.0.1"):
    """Prepares a few images as TFDS's own builder does; one label to each image."""
    import tensorflow_datasets as tfds

    coding = "jpeg" if name == "celeb_a" else "png"
    image = tfds.features.Image(shape=SHAPES[name], encoding_format=coding)
    features = {"image": image, "label": tfds.features.ClassLabel(num_classes=10)}
    if name == "celeb_a":
        features["attributes"] = {"Male": np.bool_, "Young": np.bool_}
        del features["label"]

    def example(split, label):
        file = io.BytesIO()
        raw_image(name, split, label).save(file, coding, quality=95)
        file.seek(0)
        attributes = {"Male": label % 2 == 1, "Young": True}
        found = {"image": file, "label": label, "attributes": attributes}
        return {feature: found[feature] for feature in features}

    with tfds.core.registered.skip_registration():

        class Small(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version(version)

            def _info(self):
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(features)
                )

            def _split_generators(self, dl_manager):
                return {split: self._generate_examples(split) for split in SPLITS}

            def _generate_examples(self, split):
                for label in range(SPLITS[split]):
                    yield label, example(split, label)

        Small.name = name

    tfds.disable_progress_bar()
    Small(data_dir=root, file_format="array_record").download_and_prepare()
    return pathlib.Path(root) / name / version
