"""Pictures of a training run: samples, curves, and several runs in comparison.

Everything here runs on the host, on NumPy arrays and plain numbers.
"""

import itertools
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
# Colours that remain apart for most colour-blind readers (Okabe and Ito, 2008), and
# dashes for more runs than there are colours.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_STYLES = [{"ls": d, "color": c} for d in ("-", "--", ":", "-.") for c in _COLOURS]
# What a line of metrics holds beside the scores.
_NO_SCORES = {"step", "seconds", "loss_generator", "loss_discriminator", "bits_up"}
_NO_SCORES |= {"bits_down", "consensus_distance", "workers"}


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
    zoom, gap = max(1, round(64 / max(height, width))), 2  # 8×8 digits become visible
    images = images.repeat(zoom, axis=1).repeat(zoom, axis=2)
    tile = (images.shape[1] + gap, images.shape[2] + gap, channels)
    sheet = np.full((rows * columns, *tile), 255, np.uint8)
    sheet[:count, :-gap, :-gap] = images
    sheet = sheet.reshape(rows, columns, *tile).swapaxes(1, 2)
    sheet = sheet.reshape(rows * tile[0], columns * tile[1], channels)[:-gap, :-gap]
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
        low, high = centre - 0.75 * spread, centre + 0.75 * spread
        axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
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
    names = dict.fromkeys(name for record in records for name in record)
    scores = [name for name in names if name not in _NO_SCORES]
    rows = 1 + math.ceil(len(scores) / 3)
    figure = Figure(figsize=(12, 2.9 * rows), dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=11)
    panel = iter(figure.subplots(rows, 3).ravel())

    axes = next(panel)
    _curve(axes, records, "loss_generator", color=_BLUE, label="generator")
    _curve(axes, records, "loss_discriminator", color=_RED, label="discriminator")
    axes.set_title("loss (mean over workers)")
    axes.legend(frameon=False)
    for name in scores:
        axes = next(panel)
        values = _curve(axes, records, name, color=_BLUE, marker="o", ms=3)
        axes.set(title=_title(name), yscale=_scale(values))
    axes, dashes = next(panel), (0, (2, 2))
    _curve(axes, records, "bits_up", 1 / 8e6, color=_BLUE, label="sent")
    _curve(axes, records, "bits_down", 1 / 8e6, color=_RED, label="received", ls=dashes)
    axes.set_title("communication per worker, MB")
    axes.legend(frameon=False)
    # Of step 0 it is rounding errors.
    later = [r for r in records if r["step"] > 0]
    if not later or any(r.get("consensus_distance") is not None for r in later):
        axes = next(panel)
        values = _curve(axes, later, "consensus_distance", color=_BLUE)
        axes.set_title("consensus distance")
        if sum(value > 0 for value in values) > 1:
            axes.set_yscale("log", nonpositive="mask")
    for axes in panel:
        axes.set_axis_off()
    _save(figure, path)


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
    styles: dict[str, Any] = dict(zip(runs, itertools.cycle(_STYLES), strict=False))
    figure = Figure(
        figsize=(13, 0.8 + 3.4 * len(scores)), dpi=110, layout="constrained"
    )
    figure.suptitle(title, fontsize=11)
    panels = figure.subplots(len(scores), 3, squeeze=False)
    for row, score in zip(panels, scores, strict=True):
        every, sent = [], []
        for axes, (label, x) in zip(row, xs.items(), strict=True):
            for name, records in runs.items():
                points = [(x(r), r[score]) for r in records if r.get(score) is not None]
                every += [value for _, value in points]
                if points and axes is row[1]:
                    # What is sent differs by orders of magnitude: no 0 on this axis.
                    points = [point for point in points if point[0] > 0]
                    if not points:
                        colour = styles[name]["color"]
                        axes.axhline(every[-1], color=colour, ls=":", lw=1)
                        continue
                    sent.append(points[-1][0])
                axes.plot(*np.array(points).reshape(-1, 2).T, lw=1.5, **styles[name])
            _label(axes, label)
        row[0].set_ylabel(_title(score))
        row[1].set_xscale(_scale(sent))
        for axes in row:
            axes.set_yscale(_scale(every))
    handles = [Line2D([], [], label=name, **style) for name, style in styles.items()]
    figure.legend(handles=handles, loc="outside right upper", frameon=False)
    _save(figure, path)


def _curve(axes: Axes, records, name, scale=1.0, **style):
    points = [(r["step"], r[name]) for r in records if r.get(name) is not None]
    values = [scale * value for _, value in points]
    axes.plot([step for step, _ in points], values, lw=1.5, **style)
    _label(axes, "step")
    return values


def _label(axes: Axes, label):
    axes.set_xlabel(label)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _title(score):
    return score.replace("_", " ").replace("frechet", "Fréchet")


def _scale(values):
    wide = len(values) and 0 < 10 * min(values) < max(values)
    return "log" if wide else "linear"


def _save(figure: Figure, path):
    FigureCanvasAgg(figure)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
