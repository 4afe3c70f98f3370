"""The pages of claims as Markdown, their figures, and one HTML file of it all."""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from experiment import Panel
from markdown_it import MarkdownIt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jaxsp.gan.files import replacing

__all__ = [
    "draw",
    "experiment",
    "in_words",
    "paper",
    "summary",
    "verdicts",
    "words",
    "write",
]

# Colours that remain apart for most colour-blind readers (Okabe and Ito, 2008); dashes
# for more lines than there are colours.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_STYLES = [(dash, colour) for dash in ("-", "--", ":") for colour in _COLOURS]
_MARKS = {"held": "✓", "partly held": "≈", "not held": "✗", "not testable here": "–"}
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto;
       padding: 0 1rem; color: #1b1b1b; background: #fff; }
table { border-collapse: collapse; display: block; overflow-x: auto; margin: 1rem 0;
        font-size: .92rem; }
td, th { border-bottom: 1px solid #ccc; padding: .35rem .5rem; text-align: left;
         vertical-align: top; }
code { background: #f2f2f2; padding: .1rem .3rem; overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; }
@media (prefers-color-scheme: dark) {
  body { color: #e8e8e8; background: #161616; } code { background: #2a2a2a; }
  img { background: #fff; } td, th { border-color: #444; }
  a { color: #8ab4ff; }
}
"""


def draw(seeds: Sequence[Sequence[Panel]], stem: pathlib.Path) -> list[str]:
    """Draw an experiment's panels, three in a row, with bands over the seeds.

    Args:
      seeds: for each seed its panels; alike in names.
      stem: the path without suffix, of a PNG and an SVG.

    Returns:
      The name of the PNG, in a list; an empty one if there are no panels.
    """
    panels = seeds[0]
    if not panels:
        return []
    tall, wide = -(-len(panels) // 3), min(3, len(panels))
    figure = Figure(figsize=(6.0 * wide, 4.4 * tall), layout="constrained")
    FigureCanvasAgg(figure)
    axes = np.atleast_1d(figure.subplots(tall, wide)).flat
    for ax in axes[len(panels) :]:
        ax.remove()
    for number, (ax, panel) in enumerate(zip(axes, panels, strict=False)):
        same = [each[number] for each in seeds]
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
    rows, parts = [], []
    for name, (written, recorded) in papers.items():
        paths = {n: output / f"{name}.{n}.json" for n in written["experiments"]}
        found = {n: json.loads(p.read_text()) for n, p in paths.items() if p.exists()}
        judged = [v for n in paths for v in verdicts(written, n, found.get(n))]
        rows.append((f"[{written['title']}](#{name})", judged))
        parts += [f'<section id="{name}">', paper(name, written, recorded, found)]
        parts.append("</section>")
    body = (
        "# The papers' claims, tested\n\nEach claim is judged on every seed: *held* on "
        "all, *partly held* on some, *not held* on none. Numbers are means over seeds "
        f"± standard deviations.\n\n{summary(rows, 'not in this form')}\n"
    )
    markdown = MarkdownIt("commonmark", {"html": True}).enable("table")
    text = markdown.render("\n\n".join([body, *parts]))
    page = output / "index.html"
    with replacing(page) as path:
        path.write_text(
            '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>The '
            'papers\' claims, tested</title><meta name="viewport" content="'
            f'width=device-width"><style>{_STYLE}</style></head><body>{text}</body></html>'
        )
    return page


def summary(rows: Sequence[tuple[str, Sequence[str | None]]], rest: str) -> str:
    """A table of how many claims of each paper have which verdict.

    Args:
      rows: for each paper its title and its verdicts.
      rest: what None stands for.
    """
    kinds = [*_MARKS, None]
    lines = [["paper", *_MARKS, rest], ["---"] * (len(kinds) + 1)]
    lines += [[title, *(str(v.count(k) or "") for k in kinds)] for title, v in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def verdicts(written: Mapping, name: str, found: Mapping | None) -> list[str | None]:
    """The verdicts of an experiment's claims, None of those that it did not judge."""
    claims = written["experiments"][name]["claims"]
    if found is not None:
        return found["verdicts"]
    return ["not testable here" if "untestable" in claim else None for claim in claims]


def paper(
    name: str, written: Mapping, recorded: Mapping, found: Mapping | None = None
) -> str:
    """A paper's page: its claims, and what came out.

    Args:
      name: of its file.
      written: what it claims.
      recorded: by experiment and form, what was recorded.
      found: by experiment what has just come out, to be shown with its figures; None
        for a page of what was recorded alone.
    """
    lines = [f"# {written['title']}", words(written["paper"])]
    lines += [f"- {words(note)}" for note in written.get("notes", ())]
    for one, claimed in written["experiments"].items():
        runs = {
            f"{form} form": recorded[one][form]
            for form in ("short", "long")
            if form in recorded.get(one, {})
        }
        if found is not None:
            runs = {f"recorded, {form}": run for form, run in runs.items()}
            runs |= {"here": found[one]} if one in found else {}
        lines += experiment(f"{name}.{one}", claimed, runs)
        if found is not None and one not in found:
            lines.append("Not run.")
    return "\n\n".join(lines) + "\n"


def experiment(name: str, claimed: Mapping, runs: Mapping[str, Mapping]) -> list[str]:
    """The paragraphs of an experiment: its claims, and a column for each of its runs.

    Args:
      name: as `claims/run.py` takes it.
      claimed: what a paper's file says of it.
      runs: by what heads their columns.
    """
    lines = [f"## {claimed['title']}", words(claimed["setup"])]
    different = [
        f"{i + 1}. {words(d)}" for i, d in enumerate(claimed.get("differences", ()))
    ]
    if different:
        lines += ["Ours and the paper's:", "\n".join(different)]
    short, long = claimed["minutes"]
    only = not claimed["seeds"][0]
    took = (
        f"about {long:g} minutes; there is no short form"
        if only
        else (f"about {short:g} minutes; with `--full` about {long:g}")
    )
    lines.append(f"`python claims/run.py {name}{' --full' if only else ''}` ({took})")
    for run in runs.values():
        for picture in run.get("pictures", ()):
            image = f"![figure of {claimed['title']}]({picture})"
            vector = picture == f"{name}.png"  # samples are no curves
            lines.append(f"[{image}]({name}.svg)" if vector else image)
    table = [["claim", "where", "paper", "asked for", *runs], ["---"] * (4 + len(runs))]
    for index, claim in enumerate(claimed["claims"]):
        said = claim["claim"]
        if "untestable" in claim:
            said += f" (*not testable here*: {claim['untestable']})"
        cells = [said, claim["where"], claim.get("paper", ""), _asked(claim)]
        cells += [_judged(claim, run, index) for run in runs.values()]
        table.append([words(cell).replace("|", r"\|") for cell in cells])
    lines.append("\n".join(f"| {' | '.join(row)} |" for row in table))
    if not runs:
        lines.append("*What came out has not been recorded yet.*")
    for head, run in runs.items():
        form = f"{run['form']} form, " if "form" in run else ""
        seeds = ", ".join(map(str, run["seeds"]))
        lines.append(
            f"*{head}: {form}seeds {seeds}; {run['minutes']:g} minutes; commit "
            f"{run['commit']}, Python {run['python']}, JAX {run['jax']}.*"
        )
    return lines


def _judged(claim, run, index):
    """What one claim came to in one run: its number and the verdict."""
    verdict, value = run["verdicts"][index], run["values"].get(claim.get("value"), "")
    if not isinstance(value, str):  # of every seed; what is recorded is in words
        value = in_words(value)
    said = f"{_MARKS.get(verdict, '')} {verdict or 'in the long form only'}"
    return f"{value} {said}"


def in_words(values: Sequence[float]) -> str:
    """The mean over seeds, with their standard deviation if there are several."""
    if len(values) == 1:
        return f"{values[0]:.3g}"
    mean = np.mean(values)
    deviation = f" ± {np.std(values):.1g}" if math.isfinite(mean) else ""
    return f"{mean:.3g}{deviation}"


def words(text: object) -> str:
    """Text of a file in one line."""
    return " ".join(str(text).split())


def _asked(claim):
    """What a claim asks of its number, in words."""
    if "near" in claim:
        return f"{claim['near']:g}, within a factor of {claim['within']:g}"
    asked = [f"at least {claim['above']:g}"] if "above" in claim else []
    asked += [f"at most {claim['below']:g}"] if "below" in claim else []
    return " and ".join(asked)
