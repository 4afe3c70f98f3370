"""What is written down while a GAN is trained: metrics, scores and pictures.

Over many processes process 0 writes and scores, and the others help to compute what is
written.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxsp import distributed
from jaxsp.gan import models
from jaxsp.gan.training import plots

__all__ = ["Recorder", "add_bits"]

_SAMPLE_BATCH = 500  # samples generated at once for a score
_GRID = 64  # images shown


class Recorder:
    """Writes a line of metrics, scores and draws the averaged generator's samples.

    Args:
      gan: generator and discriminator.
      dataset: what is learned.
      config: as in `train.train`.
      program: what is trained.
      key: what samples are drawn from, the same every time.
      score: as in `train.train`.
      callback: as in `train.train`.
      workdir: as in `train.train`.
      resumed_step: the step of the checkpoint from which it goes on, or 0. Of a file
        that is there, records that are later than the checkpoint are removed.
    """

    def __init__(
        self, gan, dataset, config, program, key, score, callback, workdir, resumed_step
    ):
        self._gan, self._dataset, self._config = gan, dataset, config
        self._program = program
        self._key, self._score, self._callback = key, score, callback
        self._workdir, self._main = workdir, distributed.is_main()
        self._file = plots.MetricsFile(
            workdir / "metrics.jsonl" if workdir is not None and self._main else None,
            # What a checkpoint knows nothing of is not kept: later steps, and other
            # workers' going on from this one, which is told anew if it is done again.
            keep=lambda r: (
                resumed_step > 0
                and r["step"] <= resumed_step
                and not (r["step"] == resumed_step and "workers" in r)
            ),
        )
        self.headline: dict[str, float] = {}

    @property
    def history(self) -> list[dict[str, Any]]:
        """All records; none but in process 0."""
        return self._file.records

    @property
    def files(self) -> tuple[pathlib.Path, ...]:
        """What the run has written."""
        return () if self._workdir is None else tuple(sorted(self._workdir.iterdir()))

    def close(self) -> None:
        """Close the file of metrics."""
        self._file.close()

    def record(
        self,
        step: int,
        seconds: float,
        losses: np.ndarray | None,
        state: Any,
        scored: bool,
        bits_before: Sequence[int],
        note: Mapping[str, Any],
    ) -> bool:
        """Write one line; pictures too, if `scored`. All processes must call it.

        Args:
          step: the step that is reached.
          seconds: of training.
          losses: of generator and discriminator since the line before.
          state: the state.
          scored: whether to score and draw samples.
          bits_before: bits that other workers sent and received before.
          note: what else to write.

        Returns:
          Whether the callback says that it is enough, in all processes.
        """
        up, down = add_bits(self._program.bits(state), bits_before)
        line = {
            "step": step,
            "seconds": round(seconds, 3),
            "loss_generator": None if losses is None else float(losses[0]),
            "loss_discriminator": None if losses is None else float(losses[1]),
            "bits_up": up,
            "bits_down": down,
            "consensus_distance": self._program.consensus(state),
            **note,
        }
        x = self._program.generator(state) if scored else None
        enough = False
        with distributed.raise_together():
            if self._main:
                enough = self._write(line, x)
        return distributed.anywhere(enough)

    def _write(self, line, x):
        """The line, with scores and pictures of the generator `x`; whether to stop."""
        if x is not None and self._score is not None:
            line |= {k: float(v) for k, v in self._score(self._draw(x)).items()}
        self._file.write(line)
        if "frechet_distance" in line:
            self.headline = {"FD": line["frechet_distance"]}
        enough = self._callback is not None and self._callback(dict(line))
        if x is not None and self._workdir is not None:
            self._draw_pictures(line["step"], x)
        return bool(enough)

    def _draw(self, x):
        """As many samples as asked for, from the same latents every time."""
        total = self._config.eval_samples
        size = min(total, _SAMPLE_BATCH)
        batches = [
            np.asarray(_sample(self._gan, x, jax.random.fold_in(self._key, i), size))
            for i in range(-(-total // size))
        ]
        return np.concatenate(batches)[:total]

    def _draw_pictures(self, step, x):
        points = len(self._gan.sample_shape) == 1
        count, labels = 1000 if points else _GRID, None
        if self._gan.num_classes and not points:  # a column for each class
            columns = min(self._gan.num_classes, 10)
            count, labels = columns**2, np.tile(np.arange(columns), columns)
        shown = np.asarray(_sample(self._gan, x, self._key, count, labels))
        below = np.asarray(self._dataset.train[:2000]) if points else None
        names = ["samples.png", "samples_000000.png"][: 2 if step == 0 else 1]
        for name in names:
            title = f"{self._dataset.name}, step {step}"
            plots.plot_samples(shown, self._workdir / name, below, title)
        plots.plot_curves(
            self.history, self._workdir / "curves.png", self._dataset.name
        )


_sample = jax.jit(models.sample, static_argnums=(0, 3))


def add_bits(
    bits: tuple[int | None, int | None], before: Sequence[int]
) -> list[int | None]:
    """Two counts of bits sent and received, together; None where nothing counts."""
    return [None if n is None else n + m for n, m in zip(bits, before, strict=True)]
