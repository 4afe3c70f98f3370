"""What is kept of features: enough for the scores, whatever their number.

A Fréchet distance needs the moments, which are gathered as the features come; kernel
distance and nearest neighbours need features, of which at most `KEPT` are kept. So the
memory does not grow with the samples: for the 2,048 features of Inception a set of
statistics takes 116 MB, and all scores of one beside another at most 0.6 GB.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterator

import numpy as np
from tqdm import tqdm

from jaxsp.gan.scores import cache
from jaxsp.gan.scores.moments import Moments
from jaxsp.gan.scores.neighbors import neighbor_distances

__all__ = ["KEPT", "NEIGHBORS", "Gatherer", "Statistics", "blocks", "of_images"]

KEPT = 10_000  # features for kernel distance and neighbours
NEIGHBORS = 5  # the most that a score asks for
_BLOCK = 250  # images at once
_MERGE = 1000  # features whose moments are taken at once
_FORMAT = 1  # raised whenever the features of the same images change


@dataclasses.dataclass(frozen=True, eq=False)
class Statistics:
    """Moments of all features, and some of the features.

    Attributes:
      moments: moments of all.
      kept: at most `KEPT` of the features [n, d].
    """

    moments: Moments
    kept: np.ndarray

    @functools.cached_property
    def distances(self) -> np.ndarray:
        """Distances of what is kept to its nearest neighbours, found once."""
        return neighbor_distances(self.kept, NEIGHBORS)


class Gatherer:
    """Gathers statistics from features that come in parts of any size.

    Args:
      total: how many features will come, where that is known: those kept are then
        spread evenly over all. None keeps the first.
    """

    def __init__(self, total: int | None = None):
        self._total = total
        self._waiting: list[np.ndarray] = []
        self._kept: list[np.ndarray] = []
        self._moments: Moments | None = None
        self._seen = 0

    def add(self, features: np.ndarray) -> None:
        """Take features [n, d]."""
        features = np.asarray(features)
        index = np.arange(self._seen, self._seen + len(features))
        if self._total is None or self._total <= KEPT:
            keep = index < KEPT
        else:
            keep = index * KEPT // self._total < (index + 1) * KEPT // self._total
        self._kept.append(features[keep])
        self._seen += len(features)
        self._waiting.append(features)
        if sum(map(len, self._waiting)) >= _MERGE:
            self._merge()

    def _merge(self):
        """Move what waits into the moments, by `_MERGE` at once, however it came."""
        waiting = np.concatenate(self._waiting)
        whole = len(waiting) // _MERGE * _MERGE
        for start in range(0, whole, _MERGE):
            self._take(waiting[start : start + _MERGE])
        self._waiting = [waiting[whole:]]

    def _take(self, features):
        found = Moments.of(features)
        self._moments = found if self._moments is None else self._moments.merge(found)

    def statistics(self) -> Statistics:
        """The statistics of all features so far.

        Raises:
          ValueError: if there were none.
        """
        rest = np.concatenate(self._waiting) if self._waiting else np.empty((0, 0))
        if len(rest):
            self._take(rest)
        self._waiting = []
        if self._moments is None:
            raise ValueError("there must be at least one sample; got none.")
        return Statistics(self._moments, np.concatenate(self._kept))


def blocks(samples, size: int = _BLOCK) -> Iterator[np.ndarray]:
    """Samples in blocks of equal size, but for the last.

    Args:
      samples: an array, or an iterable of arrays (batches of any size).
      size: how many in a block.

    Yields:
      Arrays.
    """
    if hasattr(samples, "shape"):
        for start in range(0, len(samples), size):
            yield np.asarray(samples[start : start + size])
        return
    waiting: list[np.ndarray] = []
    for batch in samples:
        waiting.append(np.asarray(batch))
        while sum(map(len, waiting)) >= size:
            joined = np.concatenate(waiting)
            yield joined[:size]
            waiting = [joined[size:]]
    if sum(map(len, waiting)):
        yield np.concatenate(waiting)


def of_images(
    images: np.ndarray,
    extract: Callable[[np.ndarray], np.ndarray],
    path: str | os.PathLike,
    title: str,
    progress: bool = True,
) -> Statistics:
    """Statistics of the features of images, from the cache if they are there.

    Args:
      images: images [n, height, width, channels].
      extract: makes features [n, d] of images.
      path: the cache file, whose name must change with images and extractor.
      title: what the progress bar says.
      progress: whether to show it.

    Returns:
      The statistics.
    """
    path = pathlib.Path(path)
    arrays = cache.read(path, functools.partial(_check, len(images)))
    if arrays is not None:
        moments = Moments(int(arrays["count"]), arrays["mean"], arrays["scatter"])
        return Statistics(moments, arrays["kept"])
    gatherer = Gatherer(len(images))
    with tqdm(
        total=len(images), desc=title, unit="image", disable=not progress, delay=1
    ) as bar:
        for part in blocks(images):
            gatherer.add(extract(part))
            bar.update(len(part))
    found = gatherer.statistics()
    cache.write(path, {**found.moments._asdict(), "kept": found.kept})
    return found


def cache_name(name: str, images: np.ndarray, extractor: str) -> str:
    """Name of the cache file of the features of images.

    Args:
      name: name of the data set, for people.
      images: the images.
      extractor: digest of the extractor.

    Returns:
      The file's name.
    """
    return f"features-{name}-{cache.digest(_FORMAT, images)}-{extractor}.npz"


def _check(count, arrays):
    """Whether the arrays of a file are statistics of so many features."""
    (d,) = arrays["mean"].shape
    wanted = {
        "count": (),
        "mean": (d,),
        "scatter": (d, d),
        "kept": (min(count, KEPT), d),
    }
    if wanted != {name: array.shape for name, array in arrays.items()}:
        raise ValueError("it holds other arrays")
    if int(arrays["count"]) != count:
        raise ValueError(f"it holds statistics of {int(arrays['count'])} images")
