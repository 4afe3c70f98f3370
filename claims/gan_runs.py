"""GAN runs for the claims: by the training command's settings, or by a method."""

import atexit
import contextlib
import functools
import io
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from experiment import MissingDataError

import jaxsp
from jaxsp.gan import data, losses, models, scores, step
from jaxsp.gan import train as command
from jaxsp.gan.training import TrainConfig, train

__all__ = ["Run", "by_command", "by_method", "load"]


class Run(NamedTuple):
    """What a run has come to.

    Attributes:
      records: those of `metrics.jsonl`.
      samples: a PNG of samples at the end; it is gone when this program ends.
    """

    records: list[dict[str, Any]]
    samples: pathlib.Path

    def line(self, score: str = "frechet_distance") -> tuple[np.ndarray, np.ndarray]:
        """Steps and scores, where there are any after the start."""
        found = [r for r in self.records if r["step"] and r.get(score) is not None]
        return (
            np.array([r["step"] for r in found]),
            np.array([r[score] for r in found]),
        )

    def end(self, score: str = "frechet_distance", last: int = 1) -> float:
        """The mean of the last scores."""
        return float(self.line(score)[1][-last:].mean())


def load(dataset: str) -> data.Dataset:
    """A data set from $JAXSP_DATA_DIR or TFDS's directory, without a download.

    Raises:
      MissingDataError: if it is not there.
    """
    try:
        return data.load(dataset, os.environ.get("JAXSP_DATA_DIR"), download=False)
    except (OSError, ImportError) as error:
        raise MissingDataError(
            f"needs {dataset}, which is not in $JAXSP_DATA_DIR or $TFDS_DATA_DIR "
            f"({type(error).__name__}); to put it there: python -m jaxsp.gan.train "
            f"--dataset={dataset} --steps=1 --workdir=/tmp/{dataset}"
        ) from None


def by_command(**settings: Any) -> Run:
    """A run of `python -m jaxsp.gan.train` with these flags.

    Raises:
      MissingDataError: if the data are not on this machine.
      jaxsp.gan.training.TrainingDivergedError: if it diverges.
    """
    load(settings.get("dataset", "digits"))
    with tempfile.TemporaryDirectory() as directory:
        workdir = pathlib.Path(directory, "run")
        config = command.Config(
            workdir=str(workdir), data_dir=os.environ.get("JAXSP_DATA_DIR"), **settings
        )
        with contextlib.redirect_stdout(io.StringIO()):
            result: Any = command.run(config, progress=False)
        return _ended(result, workdir)


def by_method(
    dataset: data.Dataset,
    parts: Sequence[np.ndarray],
    make: Callable[[Any], Any],
    config: TrainConfig,
    model: str,
    batch_size: int,
) -> Run:
    """A run of any method on a class-conditional GAN, each worker with both networks.

    Args:
      dataset: what to learn.
      parts: what each worker holds.
      make: `make(axis_name)`, an optax transformation.
      config: how long to train, and when to score.
      model: the networks, as `jaxsp.gan.models.parse` reads them.
      batch_size: examples of a worker's gradient.

    Returns:
      The run. What is scored is the workers' mean generator as it stands, without an
      average over time.
    """
    workers = jaxsp.Workers(len(parts), jax.devices()[:1])
    gan = models.parse(model, dataset.sample_shape, dataset.num_classes)
    program = step.program(
        gan,
        losses.acgan(gan, r1=1.0),
        make(workers.axis_name),
        workers,
        batch_size=batch_size,
        ema_decay=0.0,
    )
    evaluate = scores.evaluator(dataset, progress=False)
    with tempfile.TemporaryDirectory() as directory:
        workdir = pathlib.Path(directory, "run")
        result = train(program, dataset, parts, config, score=evaluate, workdir=workdir)
        return _ended(result, workdir)


def _ended(result, workdir):
    """What a run has come to, with its samples out of its directory."""
    if result.signal is not None:  # which training has kept for itself
        raise KeyboardInterrupt(result.signal.name)
    descriptor, name = tempfile.mkstemp(".png", dir=_directory())
    os.close(descriptor)
    return Run(result.history, pathlib.Path(shutil.copy(workdir / "samples.png", name)))


@functools.cache
def _directory():
    """Where samples are kept until the program ends."""
    directory = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory
