"""What is written down while a GAN is trained: metrics, scores and pictures.

Over many processes process 0 writes and scores, and the others help to compute what is
written. Lines are appended to the file of metrics one at a time.
"""

import contextlib
import json
import logging
import math
import os
import pathlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxsp import distributed
from jaxsp.gan import data
from jaxsp.gan.data import partition
from jaxsp.gan.files import replacing, sync
from jaxsp.gan.program import Program
from jaxsp.gan.training import plots
from jaxsp.gan.training.directory import METRICS, WorkdirError
from jaxsp.gan.training.evaluation import Evaluation, draw_samples
from jaxsp.gan.training.progress import Progress

__all__ = [
    "Recorder",
    "keep_records",
    "read_metrics",
    "write_record",
]

_log = logging.getLogger(__name__)

# Of these scores the first two that there are stand beside the losses, so called.
_HEADLINE = {"modes_covered": "modes", "high_quality": "HQ", "modes_reached": "modes"}
_HEADLINE |= {"fid": "FID", "frechet_distance": "FD"}


class Recorder:
    """Writes lines of metrics, scores and draws the averaged generator's samples.

    Over many processes all must call its methods.

    Training goes on from `progress`: later records in the file in `workdir`, if any,
    are removed.

    Attributes:
      history: all records; none but in process 0.
      headline: the last scores to show beside the losses, by name.
    """

    def __init__(
        self,
        program: Program,
        dataset: data.Dataset,
        evaluation: Evaluation,
        callback: Callable[[dict[str, Any]], Any] | None,
        workdir: str | os.PathLike | None,
        progress: Progress,
    ):
        self._program, self._dataset = program, dataset
        self._evaluation, self._callback = evaluation, callback
        self._workdir: pathlib.Path | None = None  # where this process writes
        self.history: list[dict[str, Any]] = []
        self.headline: dict[str, float] = {}
        with distributed.raise_together():
            if workdir is not None and distributed.is_main():
                self._workdir = pathlib.Path(workdir)
                # What a checkpoint knows nothing of goes: later steps, and that other
                # workers go on from this one, which is written again if they do again.
                start = progress.step
                self.history = keep_records(
                    self._workdir / METRICS,
                    lambda r: (r["step"], "workers" in r) < (start, start > 0),
                    progress.metrics_crc32 if start else None,
                )
        self._crc32 = _checksum(self.history)

    def keep(self, progress: Progress) -> Progress:
        """The progress for a checkpoint; the metrics until then are on the disk."""
        with distributed.raise_together():
            if self._workdir is not None:
                sync(self._workdir / METRICS)
        return progress._replace(metrics_crc32=self._crc32)

    def draw_partition(self, parts: Sequence[np.ndarray]) -> None:
        """Draw which of the indices each worker holds."""
        with distributed.raise_together():
            if self._workdir is not None:
                counts = partition.table(self._dataset.train_labels, parts)
                partition.plot(counts, self._workdir / "partition.png")

    def record(
        self,
        progress: Progress,
        state: Any,
        scored: bool,
        restarted: str | None = None,
    ) -> bool:
        """Write one line; scores and pictures too, if `scored`.

        Of a line that says that other workers go on, `restarted` says who. Returns
        whether the callback finds that it is enough: then, if this line has no scores,
        another follows that has.
        """
        up, down = progress.with_bits(self._program.bits(state)).bits
        losses, count = progress.losses, progress.losses_steps
        known = count > 0 and not restarted
        distance, relative = self._program.consensus(state)
        line = {
            "step": progress.step,
            "seconds": round(progress.seconds, 3),
            "loss_generator": losses[0] / count if known else None,
            "loss_discriminator": losses[1] / count if known else None,
            "bits_up": up,
            "bits_down": down,
            "consensus_distance": distance,
            "consensus_relative": relative,
            **({"workers": restarted} if restarted else {}),
            **(self._evaluation.judgement(state) if scored else {}),
        }
        x = self._program.generator(state) if scored else None
        enough = False
        with distributed.raise_together():
            if distributed.is_main():
                enough = self._write(line, x)
        enough = distributed.anywhere(enough)
        if enough and not scored:
            self.record(progress, state, True)
        return enough

    def _write(self, line, x):
        """The line, with scores and pictures of the generator `x`; whether to stop."""
        if x is not None:
            line |= self._evaluation.scores(x)
        path = self._workdir and self._workdir / METRICS
        self.history.append(write_record(path, line))
        self._crc32 = _checksum(self.history[-1:], self._crc32)
        known = [name for name in _HEADLINE if line.get(name) is not None]
        found = {_HEADLINE[name]: line[name] for name in known[:2]}
        self.headline = found or self.headline
        enough = self._callback is not None and self._callback(dict(line))
        if x is not None and self._workdir is not None:
            self._draw_pictures(self._workdir, line["step"], x)
        return bool(enough)

    def _draw_pictures(self, directory, step, x):
        name, key = self._dataset.name, self._evaluation.key
        sample = self._evaluation.sample
        gan, title = self._program.gan, f"{name}, step {step}"
        for file in ["samples.png", "samples_000000.png"][: 2 if step == 0 else 1]:
            draw_samples(gan, sample, x, key, self._dataset, directory / file, title)
        plots.plot_curves(
            self.history,
            directory / "curves.png",
            name,
            self._evaluation.floor,
            self._program.probabilities,
        )


def write_record(
    path: pathlib.Path | None, record: Mapping[str, Any]
) -> dict[str, Any]:
    """Append a record to a file, if any, as one line; the record as it can be read.

    Numbers that are not finite become null.
    """
    line = _line(record)
    if path is not None:
        with path.open("a") as file:
            file.write(line)
    return json.loads(line)


def keep_records(
    path: pathlib.Path, keep: Callable[[dict[str, Any]], bool], crc32: int | None = None
) -> list[dict[str, Any]]:
    """Remove from a file, which need not exist, what is not to be kept; the rest.

    Raises:
      WorkdirError: if there is a checksum of the rest, and that is another.
    """
    records = [r for r in read_metrics(path) if keep(r)] if path.exists() else []
    if crc32 not in (None, _checksum(records)):
        if path.exists():
            raise WorkdirError(
                f"{path} is damaged: put back a copy of it, or move it away to go on "
                "without the records until now."
            )
        _log.warning("%s is gone, and its records with it.", path)
    with replacing(path) as temporary:
        temporary.write_text("".join(map(_line, records)))
    return records


def _checksum(records, before=0):
    """A checksum of the lines of records, or of more that follow."""
    return zlib.crc32("".join(map(_line, records)).encode(), before)


def _line(record):
    finite = {
        k: None if isinstance(v, float) and not math.isfinite(v) else v
        for k, v in record.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`, in order, without what is no whole line."""
    records = []
    for line in pathlib.Path(path).read_bytes().splitlines():
        # A machine that loses power may leave half a last line.
        with contextlib.suppress(ValueError):
            records.append(json.loads(line))
    return [r for r in records if isinstance(r, dict) and type(r.get("step")) is int]
