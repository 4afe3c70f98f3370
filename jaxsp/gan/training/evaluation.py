"""What is found out about a generator: its scores, and samples beside real ones."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxsp.gan import data, models
from jaxsp.gan.program import Program
from jaxsp.gan.training import plots

__all__ = ["Evaluation", "draw_samples"]

_SAMPLE_BATCH = 500  # samples generated at once for a score
_SIDE = 8  # images shown in a row and in a column
_MOST_CLASSES = 10  # shown


class Evaluation:
    """What is found out about the states of a program, every time on the same draws.

    Args:
      program: what is run.
      score: what `score(samples)` says by name of `count` samples; None for nothing.
      count: how many samples.
      key: what samples are drawn from.
      data_of_workers: shares and sizes, on the workers' devices.

    Attributes:
      sample: that of the program.
      floor: the scores of real data by name, where `score.floor` has them.
    """

    def __init__(
        self,
        program: Program,
        score: Callable[[Any], Mapping[str, float]] | None,
        count: int,
        key: jax.Array,
        data_of_workers: Any,
    ):
        self._program, self._score, self._count = program, score, count
        self.sample = program.sample
        self.key, self._data = key, data_of_workers
        self.floor: Mapping[str, float] = getattr(score, "floor", {})

    def judgement(self, state: Any) -> dict[str, float]:
        """What the discriminators say of real and generated samples, by name.

        All processes must call it.
        """
        if self._program.judge is None:
            return {}
        said = self._program.judge(state, *self._data, self.key)
        return dict(zip(("d_real", "d_fake"), said, strict=True))

    def scores(self, x: Any) -> dict[str, float]:
        """The scores of the generator `x` by name."""
        if self._score is None:
            return {}
        size = min(self._count, _SAMPLE_BATCH)
        keys = [jax.random.fold_in(self.key, i) for i in range(-(-self._count // size))]
        batches = [np.asarray(self.sample(x, k, size)) for k in keys]
        found = self._score(np.concatenate(batches)[: self._count])
        return {name: float(value) for name, value in found.items()}


def draw_samples(
    gan: models.Gan,
    sample: Callable[..., jax.Array],
    x: Any,
    key: jax.Array,
    dataset: data.Dataset,
    path: str | os.PathLike,
    title: str,
) -> None:
    """Draw samples of a generator beside real ones; of a conditional one by class.

    Samples that are neither points of the plane nor grey or coloured images are not.

    Args:
      gan: generator and discriminator.
      sample: the `program.sampler` of the GAN.
      x: the generator's parameters.
      key: what samples are drawn from.
      dataset: where real ones come from.
      path: the PNG to write.
      title: a line above.
    """
    train = dataset.train
    if gan.sample_shape == (2,):
        points = np.asarray(sample(x, key, 1000))
        plots.plot_samples(points, path, np.asarray(train[:2000]), title)
        return
    if len(gan.sample_shape) != 3 or gan.sample_shape[-1] not in (1, 3):
        return
    if gan.num_classes:  # a column for each class
        names = dataset.class_names[:_MOST_CLASSES]
        labels = np.tile(np.arange(len(names)), _SIDE)
        white = 255 if train.dtype == np.uint8 else 1
        real = np.full((len(names), *train.shape[1:]), white, train.dtype)
        held, first = np.unique(dataset.train_labels, return_index=True)
        for label, row in zip(held, first, strict=True):
            real[label : label + 1] = train[row]  # none of a class that is not shown
    else:
        names, labels = (), None
        # From all over the data, which may be in order.
        real = train[np.linspace(0, len(train) - 1, _SIDE).astype(int)]
    shown = np.asarray(sample(x, key, _SIDE * len(real), labels))
    plots.plot_samples(shown, path, real, title, names)
