"""What a training run tells: a file of metrics, a progress bar and pictures.

Everything here runs on the host, on NumPy arrays and plain numbers. A file is written
under a temporary name and renamed, so that a reader never sees half of one; lines are
appended to the metrics file and flushed one at a time.
"""

import contextlib
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO

import numpy as np
import tqdm
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

__all__ = [
    "MetricsFile",
    "Progress",
    "plot_comparison",
    "plot_curves",
    "plot_samples",
    "read_metrics",
    "replacing",
]

_BLUE, _RED, _GREY = "#1f5fa8", "#c2462e", "#8a8a8a"


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A temporary path that takes the place of `path` once the block has succeeded.

    Args:
      path: the file to write. Its old content stays until the new one is complete.

    Yields:
      The path to write to, in the same directory and with the same suffix.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# ------------------------------------------------------------------ numbers


class MetricsFile:
    """`metrics.jsonl`: one JSON object a line, each with its `"step"`.

    Args:
      path: the file; None keeps the records in memory only.
      keep: which of the records that the file holds to keep, or None for none. The
        others are removed.

    Attributes:
      records: all records so far, as dicts.
    """

    def __init__(
        self,
        path: str | os.PathLike | None,
        keep: Callable[[dict[str, Any]], bool] | None = None,
    ):
        self.records: list[dict[str, Any]] = []
        self._file: TextIO | None = None
        if path is None:
            return
        path = pathlib.Path(path)
        if keep is not None and path.exists():
            self.records = [r for r in read_metrics(path) if keep(r)]
        with replacing(path) as temporary:
            temporary.write_text("".join(map(_line, self.records)))
        self._file = path.open("a")

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record; numbers that are not finite become null."""
        self.records.append(json.loads(_line(record)))
        if self._file is not None:
            self._file.write(_line(record))
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def _line(record):
    finite = {
        k: None if isinstance(v, float) and not math.isfinite(v) else v
        for k, v in record.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`, without what is no whole line.

    Args:
      path: the file.

    Returns:
      The records in the file's order.
    """
    records = []
    for line in pathlib.Path(path).read_text().splitlines():
        # A machine that loses power may leave half a last line.
        with contextlib.suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return records


class Progress:
    """A progress bar on a terminal, a line now and then elsewhere.

    Args:
      total: the step at which training ends.
      start: the step at which it begins.
      enabled: whether to show anything.
      stream: where to; the default is standard error.
    """

    def __init__(
        self,
        total: int,
        start: int = 0,
        enabled: bool = True,
        stream: TextIO | None = None,
    ):
        self._stream = sys.stderr if stream is None else stream
        self._total, self._start, self._step = total, start, start
        self._began = self._said = time.monotonic()
        self._said_step = start
        self._enabled, self._bar = enabled, None
        if enabled and self._stream.isatty():
            self._bar = tqdm.tqdm(
                total=total,
                initial=start,
                file=self._stream,
                unit="step",
                dynamic_ncols=True,
            )

    def update(self, step: int, **numbers: float) -> None:
        """Show that `step` is reached, and the numbers given by name."""
        if self._bar is not None:
            self._bar.set_postfix(
                {k: f"{v:.3f}" for k, v in numbers.items()}, refresh=False
            )
            self._bar.update(step - self._step)
        self._step = step
        if self._enabled and self._bar is None:
            now = time.monotonic()
            tenth = (step - self._said_step) >= (self._total - self._start) / 10
            if tenth or step == self._total or now - self._said >= 30:
                self._say(now, numbers)

    def _say(self, now, numbers):
        elapsed = now - self._began
        left = elapsed * (self._total - self._step) / max(self._step - self._start, 1)
        shown = "".join(f", {k} {v:.3f}" for k, v in numbers.items())
        print(
            f"step {self._step}/{self._total}, {_clock(elapsed)}, "
            f"{_clock(left)} left{shown}",
            file=self._stream,
            flush=True,
        )
        self._said, self._said_step = now, self._step

    def close(self) -> None:
        """Leave the bar as it is and go to the next line."""
        if self._bar is not None:
            self._bar.close()


def _clock(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


# ------------------------------------------------------------------ pictures


def plot_samples(
    samples: np.ndarray,
    path: str | os.PathLike,
    reference: np.ndarray | None = None,
    title: str = "",
) -> None:
    """Draw samples: a grid of images, or points of the plane.

    Args:
      samples: images (n, height, width, channels) with values from -1 to 1 or uint8, or
        points (n, 2).
      path: the PNG to write.
      reference: points to draw below those of the plane, such as real data.
      title: a line above.

    Raises:
      ValueError: if `samples` is of another shape.
    """
    samples = np.asarray(samples)
    if samples.ndim == 4 and samples.shape[-1] in (1, 3):
        figure = _image_grid(samples, title)
    elif samples.ndim == 2 and samples.shape[-1] == 2:
        figure = _points(samples, reference, title)
    else:
        raise ValueError(
            "samples must be images (n, height, width, 1 or 3) or points (n, 2), got "
            f"shape {samples.shape}."
        )
    _save(figure, path)


def _image_grid(images, title):
    count, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    if images.dtype != np.uint8:
        unit = np.clip((images.astype(np.float64) + 1) / 2, 0, 1)
        images = np.round(255 * unit).astype(np.uint8)
    zoom = max(1, round(64 / max(height, width)))  # 8×8 digits become visible
    images = images.repeat(zoom, axis=1).repeat(zoom, axis=2)
    gap, (height, width) = 2, images.shape[1:3]
    sheet = np.full(
        (rows * (height + gap) - gap, columns * (width + gap) - gap, channels),
        255,
        np.uint8,
    )
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        top, left = row * (height + gap), column * (width + gap)
        sheet[top : top + height, left : left + width] = image
    dpi, margin, head = 100, 10, 30 if title else 10  # pixels; one per sheet pixel
    full = np.array([sheet.shape[1] + 2 * margin, sheet.shape[0] + margin + head])
    figure = Figure(figsize=tuple(full / dpi), dpi=dpi)
    figure.figimage(sheet.repeat(3 // channels, axis=-1), margin, margin)
    figure.text(margin / full[0], 1 - 8 / full[1], title, va="top", fontsize=10)
    return figure


def _points(points, reference, title):
    figure = Figure(figsize=(5, 5), dpi=120, layout="constrained")
    axes = figure.add_subplot(aspect="equal", title=title)
    if reference is not None:
        axes.scatter(*np.asarray(reference).T, s=8, color=_GREY, alpha=0.4, lw=0)
    axes.scatter(*points.T, s=8, color=_BLUE, alpha=0.6, lw=0)
    names = ["generated"] if reference is None else ["data", "generated"]
    axes.legend(names, loc="upper right", markerscale=2)
    if reference is not None:  # a generator that runs away must not shrink the data
        centre, spread = np.mean(reference, 0), np.ptp(reference, 0).max()
        axes.set(
            xlim=centre[0] + 0.75 * spread * np.array([-1, 1]),
            ylim=centre[1] + 0.75 * spread * np.array([-1, 1]),
        )
    return figure


def plot_curves(
    records: Sequence[Mapping[str, Any]], path: str | os.PathLike, title: str = ""
) -> None:
    """Draw what `metrics.jsonl` holds against the step, one panel a quantity.

    Args:
      records: the records, with `"step"` and, where known, the losses, bits, consensus
        distance and any scores (every other number).
      path: the PNG to write.
      title: a line above.
    """
    known = (
        "step",
        "seconds",
        "loss_generator",
        "loss_discriminator",
        "bits_up",
        "bits_down",
        "consensus_distance",
        "workers",
    )
    names = list(dict.fromkeys(name for record in records for name in record))
    scores = [name for name in names if name not in known]
    panels = 3 + len(scores)
    columns = min(panels, 3)
    rows = math.ceil(panels / columns)
    figure = Figure(figsize=(4 * columns, 2.9 * rows), dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=11)
    panel = iter(figure.subplots(rows, columns, squeeze=False).ravel())

    axes = next(panel)
    _curve(axes, records, "loss_generator", _BLUE, label="generator")
    _curve(axes, records, "loss_discriminator", _RED, label="discriminator")
    axes.set_title("loss (mean over workers)")
    axes.legend(frameon=False)
    for name in scores:
        axes = next(panel)
        values = _curve(axes, records, name, _BLUE, marker="o", ms=3)
        axes.set_title(name.replace("_", " ").replace("frechet", "Fréchet"))
        if len(values) > 1 and min(values) > 0 and max(values) > 10 * min(values):
            axes.set_yscale("log")
    axes = next(panel)
    _curve(axes, records, "bits_up", _BLUE, scale=1 / 8e6, label="sent")
    _curve(
        axes,
        records,
        "bits_down",
        _RED,
        scale=1 / 8e6,
        label="received",
        ls=(0, (2, 2)),
    )
    axes.set_title("communication per worker, MB")
    axes.legend(frameon=False)
    # Of step 0 it is rounding errors.
    later = [r for r in records if r["step"] > 0]
    if not later or any(r.get("consensus_distance") is not None for r in later):
        axes = next(panel)
        values = _curve(axes, later, "consensus_distance", _BLUE)
        axes.set_title("consensus distance")
        if sum(value > 0 for value in values) > 1:
            axes.set_yscale("log", nonpositive="mask")
    for axes in panel:
        axes.set_axis_off()
    _save(figure, path)


# Colours that remain apart for most colour-blind readers (Okabe and Ito, 2008), and
# dashes for more runs than there are colours.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_DASHES = ("-", "--", ":", "-.")


def plot_comparison(
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    path: str | os.PathLike,
    scores: Sequence[str] = ("frechet_distance",),
    title: str = "",
) -> None:
    """Draw the scores of several runs against steps, bytes and seconds.

    Args:
      runs: the records of each run (`metrics.jsonl`) by the name to show.
      path: the PNG to write.
      scores: the names of the scores, one row of three panels each.
      title: a line above.

    Raises:
      ValueError: if no run has any of the scores.
    """
    found = {r for records in runs.values() for record in records for r in record}
    if not (scores := [name for name in scores if name in found]):
        raise ValueError(
            "scores must name a score that a run has recorded, got none of these: "
            f"{', '.join(sorted(found))}."
        )
    xs: dict[str, Callable[[Mapping[str, Any]], float]] = {
        "step": lambda r: r["step"],
        "MB sent and received per worker": lambda r: (
            ((r.get("bits_up") or 0) + (r.get("bits_down") or 0)) / 8e6
        ),
        "seconds of training": lambda r: r["seconds"],
    }
    figure = Figure(
        figsize=(13, 0.8 + 3.4 * len(scores)), dpi=110, layout="constrained"
    )
    figure.suptitle(title, fontsize=11)
    panels = figure.subplots(len(scores), 3, squeeze=False)
    for row, score in zip(panels, scores, strict=True):
        every, sent = [], []
        for axes, (label, x) in zip(row, xs.items(), strict=True):
            for i, records in enumerate(runs.values()):
                points = [(x(r), r[score]) for r in records if r.get(score) is not None]
                every += [value for _, value in points]
                colour = _COLOURS[i % len(_COLOURS)]
                dash = _DASHES[i // len(_COLOURS) % len(_DASHES)]
                if points and axes is row[1]:
                    # What is sent differs by orders of magnitude: no 0 on this axis.
                    points = [point for point in points if point[0] > 0]
                    if not points:
                        axes.axhline(every[-1], color=colour, ls=":", lw=1)
                        continue
                    sent.append(points[-1][0])
                x_and_y = np.array(points).reshape(-1, 2).T
                axes.plot(*x_and_y, dash, color=colour, lw=1.5)
            axes.set_xlabel(label)
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
        if len(sent) > 1 and max(sent) > 10 * min(sent):
            row[1].set_xscale("log")
        row[0].set_ylabel(score.replace("_", " ").replace("frechet", "Fréchet"))
        if every and min(every) > 0 and max(every) > 10 * min(every):
            for axes in row:
                axes.set_yscale("log")
    handles = [
        Line2D(
            [],
            [],
            color=_COLOURS[i % len(_COLOURS)],
            ls=_DASHES[i // len(_COLOURS) % len(_DASHES)],
            label=name,
        )
        for i, name in enumerate(runs)
    ]
    figure.legend(handles=handles, loc="outside right upper", frameon=False)
    _save(figure, path)


def _curve(axes: Axes, records, name, color, scale=1.0, **style):
    points = [(r["step"], r[name]) for r in records if r.get(name) is not None]
    values = [scale * value for _, value in points]
    axes.plot([step for step, _ in points], values, color=color, lw=1.5, **style)
    axes.set_xlabel("step")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return values


def _save(figure: Figure, path):
    FigureCanvasAgg(figure)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
