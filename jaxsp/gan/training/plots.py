"""Pictures of a training run: samples, curves, and several runs in comparison.

Everything here runs on the host, on NumPy arrays and plain numbers.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jaxsp.gan.files import replacing

__all__ = ["plot_comparison", "plot_curves", "plot_samples"]

_BLUE, _RED, _GREY = "#1f5fa8", "#c2462e", "#8a8a8a"


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
