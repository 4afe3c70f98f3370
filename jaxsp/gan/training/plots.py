"""Pictures of a training run: samples, curves, and several runs in comparison.

Everything here runs on the host, on NumPy arrays and plain numbers.
"""

import functools
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
from matplotlib.ticker import MaxNLocator

from jaxsp.gan.files import replacing

__all__ = ["plot_comparison", "plot_curves", "plot_samples"]

# Colours that remain apart for most colour-blind readers (Okabe and Ito, 2008), and
# dashes for more runs than there are colours.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_STYLES = [{"ls": d, "color": c} for d in ("-", "--", ":", "-.") for c in _COLOURS]
_BLUE, _RED, _GREY = *_COLOURS[:2], "#8a8a8a"
# Of two curves in a panel the second is dashed: they may lie on each other.
_FIRST: dict[str, Any] = {"color": _BLUE}
_SECOND: dict[str, Any] = {"color": _RED, "ls": (0, (4, 2))}
# What a line of metrics holds beside the scores.
_NO_SCORES = {"step", "seconds", "loss_generator", "loss_discriminator", "bits_up"}
_NO_SCORES |= {"bits_down", "consensus_distance", "consensus_relative", "workers"}
_NO_SCORES |= {"d_real", "d_fake"}
_UNITS = {"high_quality": "share of the samples", "modes_covered": "modes"}
_UNITS |= {"modes_reached": "modes"}
_UNITS |= {"classes_covered": "classes", "precision": "share", "recall": "share"}
_UNITS |= {"coverage": "share", "least_class_coverage": "share"}


def plot_samples(
    samples: np.ndarray,
    path: str | os.PathLike,
    reference: np.ndarray | None = None,
    title: str = "",
    columns: Sequence[str] = (),
) -> None:
    """Draw samples beside real data: a grid of images, or points of the plane.

    Args:
      samples: images (n, height, width, channels) with values from -1 to 1 or uint8, or
        points (n, 2).
      path: the PNG to write.
      reference: real data: images for a row above, as many as there are columns, or
        points to draw below those of `samples`.
      title: a line above.
      columns: names of the columns of images, which are filled row by row; without
        names the grid is as square as can be, or as wide as `reference`.

    Raises:
      ValueError: if `samples` or `reference` is of another shape.
    """
    samples = np.asarray(samples)
    if samples.ndim == 4 and samples.shape[-1] in (1, 3):
        figure = _image_grid(samples, reference, title, columns)
    elif samples.ndim == 2 and samples.shape[-1] == 2:
        figure = _points(samples, reference, title)
    else:
        raise ValueError(
            "samples must be images (n, height, width, 1 or 3) or points (n, 2), got "
            f"shape {samples.shape}."
        )
    _save(figure, path)


def _image_grid(images, real, title, names):
    square = math.ceil(math.sqrt(len(images)))
    wide = len(names) or (square if real is None else len(real))
    if real is not None and np.shape(real) != (wide, *images.shape[1:]):
        raise ValueError(
            f"reference must be {wide} images, one for each column, of shape "
            f"{images.shape[1:]}, got shape {np.shape(real)}."
        )
    sheets = [_sheet(part, wide) for part in (real, images) if part is not None]
    dpi, margin, between = 100, 10, 8  # pixels; one per sheet pixel
    left = margin if real is None else 2 * margin + 8
    head = (20 if title else 0) + (16 if names else 0) + 10
    height = sum(len(sheet) + between for sheet in sheets) - between
    full = (sheets[0].shape[1] + left + margin, height + head + margin)
    figure = Figure(figsize=(full[0] / dpi, full[1] / dpi), dpi=dpi)

    def text(x, y, words, size=10, **where):
        """Words at so many pixels from the left and from above."""
        x, y = x / full[0], 1 - y / full[1]
        figure.text(x, y, words, fontsize=size, **where)

    text(margin, 8, title, va="top")
    tile = (sheets[0].shape[1] + _GAP) / wide
    for i, name in enumerate(names):
        middle = left + i * tile + (tile - _GAP) / 2
        text(middle, head - 3, name, 7, ha="center", va="bottom")
    top = head
    for sheet, name in zip(sheets, ("real", "generated"), strict=False):
        figure.figimage(sheet, left, full[1] - top - len(sheet))
        if real is not None:
            middle = top + len(sheet) / 2
            text(margin, middle, name, 8, ha="left", va="center", rotation=90)
        top += len(sheet) + between
    return figure


_GAP = 2  # pixels between images


def _sheet(images, columns):
    """Images in rows, each pixel as a square, uint8 (height, width, 3)."""
    images = np.asarray(images)
    count, height, width, channels = images.shape
    rows = math.ceil(count / columns)
    if images.dtype != np.uint8:
        unit = np.clip((images.astype(np.float64) + 1) / 2, 0, 1)
        images = np.round(255 * unit).astype(np.uint8)
    zoom = max(1, round(64 / max(height, width)))  # 8×8 digits become visible
    images = images.repeat(zoom, axis=1).repeat(zoom, axis=2)
    tile = (images.shape[1] + _GAP, images.shape[2] + _GAP, channels)
    sheet = np.full((rows * columns, *tile), 255, np.uint8)
    sheet[:count, :-_GAP, :-_GAP] = images
    sheet = sheet.reshape(rows, columns, *tile).swapaxes(1, 2)
    sheet = sheet.reshape(rows * tile[0], columns * tile[1], channels)[:-_GAP, :-_GAP]
    return sheet.repeat(3 // channels, axis=-1)


def _points(points, reference, title):
    figure = Figure(figsize=(5, 5), dpi=120, layout="constrained")
    axes = figure.add_subplot(aspect="equal", title=title)
    if reference is not None:
        axes.scatter(*np.asarray(reference).T, s=8, color=_GREY, alpha=0.4, lw=0)
    axes.scatter(*points.T, s=8, color=_BLUE, alpha=0.6, lw=0)
    names = ["generated"] if reference is None else ["real", "generated"]
    axes.legend(names, loc="upper right", markerscale=2)
    if reference is not None:  # a generator that runs away must not shrink the data
        centre, spread = np.mean(reference, 0), np.ptp(reference, 0).max()
        low, high = centre - 0.75 * spread, centre + 0.75 * spread
        axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    return figure


def plot_curves(
    records: Sequence[Mapping[str, Any]],
    path: str | os.PathLike,
    title: str = "",
    floor: Mapping[str, float] | None = None,
    probabilities: bool = False,
) -> None:
    """Draw what `metrics.jsonl` holds against the step, one panel a quantity.

    Steps per second are of the steps and the seconds between two lines, without the
    first two, between which the step was compiled.

    Args:
      records: the records, with `"step"` and, where known, the losses, what the
        discriminators say, bits, consensus distance relative to the parameters' norm
        and any scores (every other number).
      path: the PNG to write.
      title: a line above.
      floor: the scores of real data by name, for a line in their panels.
      probabilities: whether what the discriminators say are probabilities.
    """
    names = dict.fromkeys(name for record in records for name in record)
    scores = [name for name in names if name not in _NO_SCORES]
    # Of step 0 the consensus distance is rounding errors.
    later = [r for r in records if r["step"] > 0]
    panels: list[Callable[[Axes], None]] = [
        lambda axes: _draw_losses(axes, records),
        lambda axes: _draw_outputs(axes, records, probabilities),
        *(functools.partial(_draw_score, records, n, floor or {}) for n in scores),
        lambda axes: _draw_traffic(axes, records),
        lambda axes: _draw_speed(axes, records),
    ]
    if "d_real" not in names:
        del panels[1]
    if not later or any(r.get("consensus_relative") is not None for r in later):
        panels.append(lambda axes: _draw_consensus(axes, later))
    rows = math.ceil(len(panels) / 3)
    figure = Figure(figsize=(12, 2.9 * rows), dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=11)
    for i, draw in enumerate(panels):
        axes = figure.add_subplot(rows, 3, i + 1)
        draw(axes)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    _save(figure, path)


def _draw_losses(axes, records):
    _curve(axes, records, "loss_generator", label="generator", **_FIRST)
    _curve(axes, records, "loss_discriminator", label="discriminator", **_SECOND)
    axes.set(title="loss", ylabel="mean over workers")


def _draw_outputs(axes, records, probabilities):
    dots = {"marker": "o", "ms": 3}
    _curve(axes, records, "d_real", label="D(real)", **_FIRST, **dots)
    _curve(axes, records, "d_fake", label="D(generated)", **_SECOND, **dots)
    axes.set(title="what the discriminators say", ylabel="mean output")
    if probabilities:
        axes.set(ylabel="mean probability of being real", ylim=(-0.03, 1.03))
        axes.axhline(0.5, color=_GREY, ls=":", lw=1, label="undecided")


def _draw_score(records, name, floor, axes):
    values = _curve(axes, records, name, marker="o", ms=3, label="generated", **_FIRST)
    if (real := floor.get(name)) is not None and math.isfinite(real):
        axes.axhline(real, color="black", ls=":", lw=1.2, label="real test data")
        values = [*values, real]
    unit = _UNITS.get(name)
    axes.set(title=_title(name), ylabel=unit or "score")
    if unit is None:
        axes.set_yscale(_scale(values))
    elif unit in ("modes", "classes"):
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_traffic(axes, records):
    _curve(axes, records, "bits_up", 1 / 8e6, label="sent", **_FIRST)
    _curve(axes, records, "bits_down", 1 / 8e6, label="received", **_SECOND)
    axes.set(title="communication", ylabel="MB per worker")


def _draw_speed(axes, records):
    known = [r for r in records if "workers" not in r]
    pairs = list(itertools.pairwise(known))[1:]
    took = [(a, b["seconds"] - a["seconds"], b) for a, b in pairs]
    found = [(b["step"], (b["step"] - a["step"]) / s) for a, s, b in took if s > 0]
    axes.plot(*np.array(found).reshape(-1, 2).T, lw=1.5, **_FIRST)
    axes.set(title="speed", ylabel="steps per second")
    axes.set_ylim(bottom=0)
    _label(axes, "step")


def _draw_consensus(axes, records):
    values = _curve(axes, records, "consensus_relative", **_FIRST)
    axes.set(title="consensus distance", ylabel="share of the parameters' norm")
    axes.set_yscale(_scale([value for value in values if value > 0]))


def plot_comparison(
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    path: str | os.PathLike,
    scores: Sequence[str] = ("frechet_distance",),
    title: str = "",
    examples: Mapping[str, int] | None = None,
) -> None:
    """Draw the scores of several runs against steps, bytes and seconds.

    What sends nothing has no curve against bytes, but a dotted line at its last score.

    Args:
      runs: the records of each run (`metrics.jsonl`) by the name to show.
      path: the PNG to write.
      scores: the names of the scores, one row of three panels each.
      title: a line above.
      examples: how many examples each run sees in a step, by its name; then the scores
        are drawn against examples seen in place of steps.

    Raises:
      ValueError: if no run has any of the scores.
    """
    found = {r for records in runs.values() for record in records for r in record}
    if not (scores := [name for name in scores if name in found]):
        raise ValueError(
            "scores must name a score that a run has recorded, got none of these: "
            f"{', '.join(sorted(found))}."
        )
    count = examples or dict.fromkeys(runs, 1)
    xs: dict[str, Callable[[Mapping[str, Any], str], float]] = {
        "examples seen by all workers" if examples else "step": lambda r, name: (
            r["step"] * count[name]
        ),
        "MB sent and received per worker": lambda r, _: (
            ((r.get("bits_up") or 0) + (r.get("bits_down") or 0)) / 8e6
        ),
        "seconds of training": lambda r, _: r["seconds"],
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
                found = [r for r in records if r.get(score) is not None]
                points = [(x(r, name), r[score]) for r in found]
                every += [value for _, value in points]
                if points and axes is row[1]:
                    # What is sent differs by orders of magnitude: no 0 on this axis.
                    points = [point for point in points if point[0] > 0]
                    if not points:
                        nothing = f"{name}, which sends nothing"
                        style = {**styles[name], "ls": ":", "lw": 1.5}
                        axes.axhline(every[-1], label=nothing, **style)
                        axes.legend(frameon=False, fontsize=8)
                        continue
                    sent.append(points[-1][0])
                style = {"lw": 1.5, "marker": "o", "ms": 3, **styles[name]}
                axes.plot(*np.array(points).reshape(-1, 2).T, **style)
            _label(axes, label)
        row[0].set_ylabel(_title(score))
        row[1].set_xscale(_scale(sent))
        for axes in row:
            axes.set_yscale(_scale(every))
    handles = [Line2D([], [], label=name, **style) for name, style in styles.items()]
    figure.legend(handles=handles, loc="outside right upper", frameon=False)
    _save(figure, path)


def _curve(axes: Axes, records, name, scale: float = 1.0, **style: Any):
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
