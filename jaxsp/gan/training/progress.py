"""How far a run has come, as one tuple."""

from typing import NamedTuple

import numpy as np

__all__ = ["Progress"]


class Progress(NamedTuple):
    """How far a run has come: saved beside the state, and restored as it is.

    Attributes:
      step: how many steps are done.
      seconds: of training.
      losses: of generator and discriminator, means over the workers, summed over the
        steps since the last line of metrics.
      losses_steps: how many steps these are.
      bits_before: bits that other workers sent and received before these went on, means
        over workers.
      bits: the same until this step, with those of these workers; None where nothing
        counts them.
      workers: how many workers.
      data_crc32: a checksum of their data.
      metrics_crc32: a checksum of the metrics until this step, of a checkpoint.
    """

    step: int = 0
    seconds: float = 0.0
    losses: tuple[float, float] = (0.0, 0.0)
    losses_steps: int = 0
    bits_before: tuple[int | None, int | None] = (0, 0)
    bits: tuple[int | None, int | None] = (0, 0)
    workers: int = 0
    data_crc32: int = 0
    metrics_crc32: int | None = None

    def after(self, losses: np.ndarray, seconds: float) -> "Progress":
        """The progress after steps with such losses, (workers, steps, 2)."""
        sums, done = np.array(self.losses), losses.shape[1]
        means = losses.mean(axis=0, dtype=np.float64)
        means = means[np.isfinite(means).all(axis=1)]  # the others were left out
        # One by one: the sum does not depend on how many came together.
        for mean in means:
            sums += mean
        return self._replace(
            step=self.step + done,
            seconds=self.seconds + seconds,
            losses=tuple(sums.tolist()),
            losses_steps=self.losses_steps + len(means),
        )

    def with_bits(self, bits: tuple[int | None, int | None]) -> "Progress":
        """The progress with what these workers have sent and received added."""
        total = (
            None if n is None else n + (before or 0)
            for n, before in zip(bits, self.bits_before, strict=True)
        )
        return self._replace(bits=tuple(total))
