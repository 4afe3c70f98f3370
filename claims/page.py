"""The page of claims: figures, and one HTML file without anything from elsewhere."""

import html
import json
import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from experiment import Panel
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jaxsp.gan.files import replacing

__all__ = ["draw", "in_words", "write"]

# Colours that remain apart for most colour-blind readers (Okabe and Ito, 2008); dashes
# for more lines than there are colours.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_STYLES = [(dash, colour) for dash in ("-", "--", ":") for colour in _COLOURS]
_MARKS = {"held": "✓", "partly held": "≈", "not held": "✗", "not testable here": "–"}
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto;
       padding: 0 1rem; color: #1b1b1b; background: #fff; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; font-size: .92rem; }
td, th { border-bottom: 1px solid #ccc; padding: .35rem .5rem; text-align: left;
         vertical-align: top; }
code { background: #f2f2f2; padding: .1rem .3rem; overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; }
.scroll { overflow-x: auto; }
.held { color: #00664b; } .not { color: #a33c00; font-weight: 600; }
.partly { color: #8a5a00; } .none { color: #666; }
@media (prefers-color-scheme: dark) {
  body { color: #e8e8e8; background: #161616; } code { background: #2a2a2a; }
  img { background: #fff; } td, th { border-color: #444; }
  .held { color: #5fd3b3; } .not { color: #ff9d66; } .partly { color: #f0c060; }
  .none { color: #aaa; } a { color: #8ab4ff; }
}
"""


def draw(seeds: Sequence[Sequence[Panel]], stem: pathlib.Path) -> list[str]:
    """Draw an experiment's panels side by side, with bands over the seeds.

    Args:
      seeds: for each seed its panels; alike in names.
      stem: the path without suffix, of a PNG and an SVG.

    Returns:
      The name of the PNG, in a list; an empty one if there are no panels.
    """
    panels = seeds[0]
    if not panels:
        return []
    figure = Figure(figsize=(6.0 * len(panels), 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = np.atleast_1d(figure.subplots(1, len(panels)))
    for column, (ax, panel) in enumerate(zip(axes, panels, strict=True)):
        same = [each[column] for each in seeds]
        for (dash, colour), (name, (x, y)) in zip(
            _STYLES, panel.lines.items(), strict=False
        ):
            rows = [np.asarray(each.lines[name][1], float) for each in same]
            mark = "o" if len(y) < 12 else None
            if len({len(row) for row in rows}) == 1:
                mean = (
                    np.exp(np.log(rows).mean(0))
                    if "y" in panel.log
                    else np.mean(rows, 0)
                )
                ax.fill_between(
                    x, np.min(rows, 0), np.max(rows, 0), color=colour, alpha=0.15
                )
            else:
                mean = y
            ax.plot(x, mean, dash, color=colour, label=name, marker=mark, ms=4)
        for index, (name, level) in enumerate(panel.levels.items()):
            dash = ("--", ":", "-.")[index % 3]
            ax.axhline(level, color="#777", lw=1, ls=dash, label=name)
        ax.set(title=panel.title, xlabel=panel.x, ylabel=panel.y)
        if "x" in panel.log:
            ax.set_xscale("log")
        if "y" in panel.log:
            ax.set_yscale("log")
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
    for suffix in ("png", "svg"):
        with replacing(stem.with_name(f"{stem.name}.{suffix}")) as path:
            figure.savefig(path, dpi=130, format=suffix)
    return [f"{stem.name}.png"]


def write(
    papers: Mapping[str, tuple[dict, dict]], output: pathlib.Path
) -> pathlib.Path:
    """Write `index.html` from the papers' files and the JSON files in `output`.

    Args:
      papers: by name, what a paper claims, and what was recorded.
      output: where figures and numbers are.

    Returns:
      The page.
    """
    summary, parts = [], []
    for paper, (written, recorded) in papers.items():
        parts.append(f'<h2 id="{paper}">{_text(written["title"])}</h2>')
        parts.append(f"<p>{_text(written['paper'])}</p>")
        parts += [f"<p>{_text(line)}</p>" for line in written.get("notes", ())]
        counts = dict.fromkeys([*_MARKS, "not run"], 0)
        for name, experiment in written["experiments"].items():
            path = output / f"{paper}.{name}.json"
            found = json.loads(path.read_text()) if path.exists() else None
            before = recorded.get(name, {})
            parts += _experiment(f"{paper}.{name}", experiment, found, before, output)
            none = [None] * len(experiment["claims"])
            for verdict in found["verdicts"] if found else none:
                counts[verdict or "not run"] += 1
        cells = "".join(f"<td>{count or ''}</td>" for count in counts.values())
        title = _text(written["title"])
        summary.append(f'<tr><td><a href="#{paper}">{title}</a></td>{cells}</tr>')
    heads = "".join(f"<th>{name}</th>" for name in [*_MARKS, "not in this form"])
    body = (
        "<h1>The papers' claims, tested</h1><p>Each claim is judged on every seed: "
        "<i>held</i> on all, <i>partly held</i> on some, <i>not held</i> on none. "
        "Numbers are means over seeds ± standard deviations.</p>"
        f'<div class="scroll"><table><tr><th>paper</th>{heads}</tr>{"".join(summary)}'
        f"</table></div>{''.join(parts)}"
    )
    page = output / "index.html"
    with replacing(page) as path:
        path.write_text(
            '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>The '
            'papers\' claims, tested</title><meta name="viewport" content="'
            f'width=device-width"><style>{_STYLE}</style></head><body>{body}</body></html>'
        )
    return page


def _experiment(name, experiment, found, recorded, output):
    """The lines of one experiment: what has just come out, and what was recorded."""
    yield f'<h3 id="{name}">{_text(experiment["title"])}</h3>'
    yield f"<p>{_text(experiment['setup'])}</p>"
    differences = experiment.get("differences", ())
    if differences:
        items = "".join(f"<li>{_text(line)}</li>" for line in differences)
        yield f"<p>Ours and the paper's:</p><ol>{items}</ol>"
    full = " --full" if found and found["form"] == "long" else ""
    short, long = experiment["minutes"]
    form = f"{short:g} minutes; in the long form {long:g}"
    if not experiment["seeds"][0]:
        full, form = " --full", f"{long:g} minutes; there is no short form"
    yield f"<p><code>python claims/run.py {name}{full}</code> (about {form})</p>"
    for picture in found["pictures"] if found else ():
        vector = picture.removesuffix(".png") + ".svg"
        target = vector if (output / vector).exists() else picture
        yield (
            f'<a href="{target}"><img src="{picture}" '
            f'alt="figure of {_text(experiment["title"])}"></a>'
        )
    runs = {"here": found} if found else {}
    runs |= {f"recorded, {form} form": recorded[form] for form in recorded}
    if found is None:
        yield '<p class="none">Not run.</p>'
    heads = "".join(f"<th>{_text(head)}</th>" for head in runs)
    yield (
        '<div class="scroll"><table><tr><th>claim</th><th>where</th><th>paper</th>'
        f"<th>asked for</th>{heads}</tr>"
    )
    for index, claim in enumerate(experiment["claims"]):
        cells = [claim["claim"], claim["where"], claim.get("paper", ""), _asked(claim)]
        tds = "".join(f"<td>{_text(str(cell))}</td>" for cell in cells)
        judged = "".join(_judged(claim, run, index) for run in runs.values())
        yield f"<tr>{tds}{judged}</tr>"
    yield "</table></div>"
    for head, run in runs.items():
        form = f"{run['form']} form, " if "form" in run else ""
        yield (
            f'<p class="none">{head}: {form}seeds {run["seeds"]}, '
            f"{run['minutes']:g} minutes, commit {run['commit']}, Python "
            f"{run['python']}, JAX {run['jax']}</p>"
        )


def _judged(claim, run, index):
    """The cell of one claim in one run: its number and the verdict."""
    verdict, value = run["verdicts"][index], run["values"].get(claim.get("value"), "")
    if not isinstance(value, str):  # of every seed; what is recorded is in words
        value = in_words(value)
    kind = (verdict or "none").partition(" ")[0]
    kind = "none" if verdict == "not testable here" else kind
    said = f"{_MARKS.get(verdict, '')} {verdict or 'in the long form only'}"
    reason = f"<br>{_text(claim['untestable'])}" if "untestable" in claim else ""
    return f'<td class="{kind}">{value} {said}{reason}</td>'


def in_words(values: Sequence[float]) -> str:
    """The mean over seeds, with their standard deviation if there are several."""
    if len(values) == 1:
        return f"{values[0]:.3g}"
    mean = np.mean(values)
    deviation = f" ± {np.std(values):.1g}" if math.isfinite(mean) else ""
    return f"{mean:.3g}{deviation}"


def _asked(claim):
    """What a claim asks of its number, in words."""
    if "near" in claim:
        return f"{claim['near']:g}, within a factor of {claim['within']:g}"
    words = [f"at least {claim['above']:g}"] if "above" in claim else []
    words += [f"at most {claim['below']:g}"] if "below" in claim else []
    return " and ".join(words)


def _text(words):
    return html.escape(" ".join(words.split()))
