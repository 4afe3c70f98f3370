"""What a data set is: labelled samples in two splits, and the levels of images."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsp._arguments import check_count

_CHUNK = 2**24  # numbers that are looked at together, for their range


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A labelled data set in host memory, or mapped into it from files, read-only.

    One of your own is made by this class, which refuses what would be trained on or
    scored wrongly. It looks at all labels, and at all samples that are floating, a part
    at a time; of uint8 images in a file that is mapped it reads nothing.

    Attributes:
      name: what it is called; one of `NAMES`, if `load` has read it.
      train: images [n, height, width, channels], uint8, or floating in [-1, 1], which
        is the range of generators; or floating points [n, d] of any range.
      train_labels: int32 [n]; integers of other types are converted. Where there are
        no classes: zeros, and `num_classes` 1.
      test: samples that `train` does not hold.
      test_labels: their labels.
      num_classes: labels are 0, ..., num_classes - 1.
      centers: floating [num_classes, d], the modes of a mixture; else None.
      std: standard deviation of each mode of a mixture; else None.
      data_dir: the TFDS directory that it was sought in; else None.
      class_names: what the classes are called, in pictures; by default their numbers.
      single: of images whose channels are samples of another data set, drawn apart,
        that data set, of one channel; else None. The class is then the number whose
        digits are the channels' classes.

    Raises:
      ValueError: if the splits are of other shapes, lengths do not fit, labels are not
        integers in 0, ..., num_classes - 1, or samples are not finite, or images of
        another range.

    Example:
      >>> points = np.zeros((4, 2), np.float32)
      >>> Dataset("own", points, np.arange(1, 5), points, np.arange(4), num_classes=4)
      Traceback (most recent call last):
        ...
      ValueError: train_labels must be in 0..3 for num_classes=4, got 1..4: write \
train_labels - 1.
    """

    name: str
    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray
    num_classes: int
    centers: np.ndarray | None = None
    std: float | None = None
    data_dir: str | None = None
    class_names: tuple[str, ...] = ()
    single: "Dataset | None" = None

    def __post_init__(self):
        classes = check_count("num_classes", self.num_classes)
        for split in ("train", "test"):
            samples = np.asanyarray(getattr(self, split))  # what is mapped stays so
            _check_samples(split, samples)
            labels = getattr(self, f"{split}_labels")
            labels = _checked_labels(split, labels, len(samples), classes)
            object.__setattr__(self, split, samples)
            object.__setattr__(self, f"{split}_labels", labels)
        names = tuple(self.class_names or map(str, range(classes)))
        if len(names) != classes:
            raise ValueError(
                f"class_names must be {classes} names, one for each class, got "
                f"{len(names)}: {', '.join(map(str, names))}."
            )
        object.__setattr__(self, "class_names", names)
        if self.train.shape[1:] != self.test.shape[1:]:
            raise ValueError(
                "train and test must hold samples of one shape, got "
                f"{self.train.shape[1:]} and {self.test.shape[1:]}."
            )
        if self.single is not None:
            shape, channels = self.single.sample_shape, self.sample_shape[-1]
            stacked = (*shape[:-1], channels), self.single.num_classes**channels
            if shape[-1:] != (1,) or stacked != (self.sample_shape, classes):
                raise ValueError(
                    "single must be images of one channel whose classes, one for each "
                    f"channel, make num_classes={classes} for samples "
                    f"{self.sample_shape}, got {self.single.num_classes} classes of "
                    f"samples {shape}."
                )
        if self.centers is not None or self.std is not None:
            centers, wanted = np.asarray(self.centers), (classes, *self.sample_shape)
            fits = centers.shape == wanted and np.isfinite(centers).all()
            if len(wanted) != 2 or not fits or not 0 < (self.std or 0) < math.inf:
                raise ValueError(
                    "centers must be finite, of shape [num_classes, d] for points "
                    "[n, d], with a positive and finite std, got shape "
                    f"{centers.shape} and std={self.std} for {classes} classes of "
                    f"samples {self.sample_shape}."
                )

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.train.shape[1:]


def _check_samples(split: str, samples: np.ndarray) -> None:
    """Refuses what a generator could not imitate."""
    if samples.ndim < 2 or samples.size == 0:
        raise ValueError(
            f"{split} must be images [n, height, width, channels] or points [n, d], at "
            f"least one, got an array of shape {samples.shape}."
        )
    if samples.dtype == np.uint8:
        return
    if not jnp.issubdtype(samples.dtype, jnp.floating):
        raise ValueError(
            f"{split} must be uint8, or floating, got {samples.dtype}: levels from 0 "
            f"to 255 are {split}.astype(np.uint8)."
        )
    step = max(1, _CHUNK // samples[0].size)
    parts = (samples[i : i + step] for i in range(0, len(samples), step))
    ends = np.array([(part.min(), part.max()) for part in parts], np.float64)
    low, high = float(ends[:, 0].min()), float(ends[:, 1].max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{split} must be finite, got values from {low} to {high}.")
    if samples.ndim == 2:
        return
    if low < -1.001 or high > 1.001 or 0 <= low < high:  # images have dark pixels
        scale = f"2 * ({split} - ({low:g})) / {high - low:g} - 1"
        if low >= 0:
            scale = f"2 * {split} - 1" if high <= 1.001 else f"{split} / 127.5 - 1"
        raise ValueError(
            f"{split} must be uint8, or floating in [-1, 1] with -1 for black, which "
            f"is the range of generators, got {samples.dtype} from {low:g} to "
            f"{high:g}: write {scale}."
        )


def _checked_labels(split: str, labels: Any, count: int, classes: int) -> np.ndarray:
    """The labels of a split as int32."""
    labels, name = np.asanyarray(labels), f"{split}_labels"
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{name} must be integers, one for each of the {count} samples of {split}, "
            f"got {labels.dtype} of shape {labels.shape}."
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        hint = f"num_classes={high + 1}" if low >= 0 else f"labels from 0 for {name}"
        if low > 0 and high - low < classes:
            hint = f"{name} - {low}"
        raise ValueError(
            f"{name} must be in 0..{classes - 1} for num_classes={classes}, got "
            f"{low}..{high}: write {hint}."
        )
    return labels.astype(np.int32, copy=False)


def to_unit(images: jax.typing.ArrayLike, dtype: Any = jnp.float32) -> jax.Array:
    """Maps uint8 images to [-1, 1] and leaves floating samples as they are.

    $$x = v / 127.5 - 1$$

    It is cheap enough for the device in every step, so that shares stay uint8.

    Args:
      images: uint8 array, or a floating array, whose values are kept: points, or images
        in [-1, 1] already.
      dtype: floating dtype of the result.

    Returns:
      Array of the same shape, of type `dtype`.

    Raises:
      ValueError: if `images` is neither uint8 nor floating.
    """
    images = jnp.asarray(images)
    if jnp.issubdtype(images.dtype, jnp.floating):
        return images.astype(dtype)
    if images.dtype != jnp.uint8:
        raise ValueError(f"images must be uint8 or floating, got {images.dtype}.")
    return (images.astype(jnp.float32) / 127.5 - 1).astype(dtype)


def to_uint8(samples: jax.typing.ArrayLike) -> jax.Array:
    r"""Maps samples in [-1, 1] to uint8: the inverse of `to_unit`.

    $$v = \mathrm{round}(127.5 (x + 1)), \quad \text{clipped to } 0, \dots, 255$$

    All 256 values survive the round trip through float16, float32 and float64; bfloat16
    has too few digits.

    Args:
      samples: floating array.

    Returns:
      uint8 array of the same shape.
    """
    levels = jnp.round((jnp.asarray(samples).astype(jnp.float32) + 1) * 127.5)
    return jnp.clip(levels, 0, 255).astype(jnp.uint8)
