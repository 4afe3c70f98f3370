r"""Train with several methods at equal budgets and compare what they reach.

Every method is a run of train_gan.py with the same flags but its own; --budget says
where it ends. --workdir then holds a directory for each run, comparison.png (scores
against steps, bytes and seconds) and plots.md. Ended runs are not repeated with
--resume, interrupted ones go on.

Examples:
  python examples/compare.py --methods=dp_oadam,md_gan,dqgan:compressor=quantize/4
  python examples/compare.py --dataset=mnist --workers=10 --partition=dirichlet:0.1 \
    --methods="md_gan,md_gan:batches_k=log,fl_gan,standalone" --budget=bytes:200e6
"""

import contextlib
import dataclasses
import functools
import io
import json
import pathlib
import platform
import re
import shlex
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import train_gan

from jaxsp.gan import command
from jaxsp.gan.command import BadFlagError, flag
from jaxsp.gan.files import replacing
from jaxsp.gan.training import loop, plots
from jaxsp.gan.training.records import read_metrics

PROGRAM = "compare.py"
_MANY = 10**9  # steps, where something else ends a run
_SCORES = ("fid", "frechet_distance", "classifier_score", "modes_covered")
_FLAGS = tuple(field.name for field in dataclasses.fields(train_gan.Config))
_NOT_OF_A_RUN = ("method", "steps", "workdir", "resume", "dry_run")


@dataclasses.dataclass(frozen=True)
class Config(train_gan.Config):
    """What to compare: the flags of train_gan.py, and two more."""

    methods: str | None = flag(
        None,
        "Which methods to compare: names between commas, each with flags of its own "
        "behind colons, as md_gan:batches_k=2,dqgan:compressor=top_k/0.1 (a slash "
        "stands for a colon within a value).",
    )
    budget: str | None = flag(
        None,
        "Where every run ends: steps:2000 (of the generator), bytes:100e6 (sent and "
        "received per worker) or seconds:60 (of training, without compilation); looked "
        "at 10 times in --eval_every steps. Default: --steps.",
    )


class StoppedError(Exception):
    """A signal ended a run, and with it the comparison."""


class Budget(NamedTuple):
    """Where a run ends.

    Attributes:
      kind: "steps", "bytes" or "seconds".
      amount: how many; bytes are sent and received together, the mean of the workers.
    """

    kind: str
    amount: float

    def used(self, record: dict[str, Any]) -> float:
        """How much a run with this record has used."""
        if self.kind == "bytes":
            return ((record["bits_up"] or 0) + (record["bits_down"] or 0)) / 8
        return record["step" if self.kind == "steps" else "seconds"]

    def used_up(self, record: dict[str, Any]) -> bool:
        """Whether a run with this record has ended."""
        return self.used(record) >= self.amount


def parse_runs(config: Config) -> dict[str, train_gan.Config]:
    """The runs that --methods names, by what the user wrote, as "md_gan:batches_k=2".

    Raises:
      BadFlagError: if there is none, one is there twice, or a flag cannot be used.
    """
    text = config.methods or ""
    every = {name: getattr(config, name) for name in _FLAGS}
    runs: dict[str, train_gan.Config] = {}
    for name in filter(None, (word.strip() for word in text.split(","))):
        method, *options = name.split(":")
        texts = {"method": method}
        for option in options:
            flag_name, _, value = option.partition("=")
            if not value or flag_name not in _FLAGS or flag_name in _NOT_OF_A_RUN:
                raise BadFlagError(
                    f"--methods={text}: {flag_name!r} in {name!r} must be FLAG=VALUE "
                    "with a flag of train_gan.py, such as md_gan:batches_k=2."
                )
            texts[flag_name] = value.replace("/", ":")
        if name in runs:
            raise BadFlagError(f"--methods={text}: {name} is there twice.")
        runs[name] = command.with_texts(train_gan.Config(**every), texts)
        with contextlib.redirect_stdout(io.StringIO()):  # a run makes its notes itself
            train_gan.read(runs[name])
    if not runs:
        raise BadFlagError("write --methods=dp_oadam,md_gan, names between commas.")
    return runs


def parse_budget(text: str) -> Budget:
    """Read --budget: "steps:2000", "bytes:100e6" or "seconds:60"."""
    match = re.fullmatch(r"(steps|bytes|seconds):(\d[\d.]*(?:e\d+)?)", text)
    if not match or float(match[2]) <= 0:
        raise BadFlagError(
            f"--budget={text}: write steps:2000, bytes:100e6 or seconds:60."
        )
    return Budget(match[1], float(match[2]))


def compare(config: Config, progress: bool = True) -> dict[str, list[dict[str, Any]]]:
    """Train with each method and write the comparison.

    Args:
      config: what to compare.
      progress: whether to show progress on standard error.

    Returns:
      The records of each run by its name; of a run that diverged, until it did.

    Raises:
      BadFlagError: if a flag cannot be used.
      StoppedError: if a signal ended a run.
    """
    budget = parse_budget(config.budget or f"steps:{config.steps}")
    runs = parse_runs(config)
    silent = [name for name, run in runs.items() if run.method == "standalone"]
    if silent and budget.kind == "bytes":
        raise BadFlagError(
            f"--budget={config.budget}: {silent[0]} sends nothing and would never end; "
            "write steps:2000 or seconds:60."
        )
    directory = pathlib.Path(config.workdir or "runs/comparison").expanduser()
    if (directory / "plots.md").exists() and not config.resume:
        raise BadFlagError(
            f"--workdir={directory} holds another comparison: choose another "
            "directory, or go on with it by --resume."
        )
    by_steps = budget.kind == "steps"
    steps = int(budget.amount) if by_steps else _MANY
    watch = functools.partial(_watch, budget, progress and not by_steps)
    records, ends = {}, {}
    for i, (name, run) in enumerate(runs.items(), 1):
        print(f"--- {i} of {len(runs)}: {name}")
        where = directory / re.sub(r"[^\w.=-]+", "_", name)
        metrics, ends[name] = where / "metrics.jsonl", ""
        run = dataclasses.replace(run, steps=steps, workdir=str(where))
        if not (config.resume and _has_ended(where, budget)):
            try:
                result = train_gan.run(run, progress and by_steps, watch)
                if result is not None and result.signal is not None:
                    raise StoppedError(result.signal)
            except loop.TrainingDivergedError as error:
                print(f"{name} diverged: {error}", file=sys.stderr)
                ends[name] = f"diverged at step {error.step}"
        records[name] = read_metrics(metrics)
        # After each run: what there is can be looked at while the next one trains.
        _write(directory, records, ends, budget, config)
    print(f"written: {directory / 'plots.md'}, {directory / 'comparison.png'}")
    return records


def _has_ended(where: pathlib.Path, budget: Budget) -> bool:
    """Whether a run has come to its end, its score and its checkpoint."""
    metrics = where / "metrics.jsonl"
    records = read_metrics(metrics) if metrics.exists() else []
    if not records or not budget.used_up(records[-1]):
        return False
    saved = [int(p.name) for p in where.glob("checkpoints/*") if p.name.isdecimal()]
    scored = any(name in records[-1] for name in _SCORES)
    return scored and max(saved, default=-1) >= records[-1]["step"]


def _watch(budget: Budget, progress: bool, record: dict[str, Any]) -> bool:
    """Whether a run has ended; a line of progress where there can be no bar."""
    if progress:
        used = budget.used(record)
        print(
            f"step {record['step']}, {used:.4g} of {budget.amount:.4g} {budget.kind}",
            file=sys.stderr,
        )
    return budget.used_up(record)


# ------------------------------------------------------------------ telling


def _write(directory, records, ends, budget, config):
    """The picture and the report of the runs so far."""
    shown = [n for n in _SCORES if any(n in r for rs in records.values() for r in rs)]
    title = f"{config.dataset}, {config.workers} workers, {budget.kind} equal"
    plots.plot_comparison(records, directory / "comparison.png", shown[:2], title)
    with replacing(directory / "plots.md") as path:
        path.write_text(_report(records, ends, budget, shown, config, title))


def _report(records, ends, budget, shown, config, title):
    """The report as Markdown."""
    heads = ["method", *(f"{n.replace('_', ' ')} (last / best)" for n in shown)]
    heads += ["steps", "MB sent", "MB received", "seconds", "ms a step", ""]
    rows = []
    for name, found in records.items():
        last = found[-1]
        cells = [f"`{name}`"]
        for score in shown:
            values = [r[score] for r in found if r.get(score) is not None]
            best: Callable = min if score in ("fid", "frechet_distance") else max
            cells.append(f"{values[-1]:.4g} / {best(values):.4g}" if values else "")
        sent, received = last["bits_up"], last["bits_down"]
        cells += [str(last["step"])]
        cells += ["" if n is None else f"{n / 8e6:.4g}" for n in (sent, received)]
        cells += [f"{last['seconds']:.4g}"]
        cells += [f"{1e3 * last['seconds'] / max(last['step'], 1):.3g}"]
        rows.append([*cells, ends[name]])
    given = dataclasses.asdict(config)
    given = {n: v for n, v in given.items() if v not in (None, False)}
    lines = [
        *(f"# {title}", "", "```", shlex.join(["python", *sys.argv]), "```", ""),
        f"Budget: {budget.amount:g} {budget.kind} a run. MB are per worker, the mean "
        "of the workers; seconds are of training alone, without compilation, on "
        f"{len(jax.devices())} {jax.devices()[0].platform} device(s) of a "
        f"{platform.machine()} machine, JAX {jax.__version__}.",
        "",
        "| " + " | ".join(heads) + " |",
        "|" + " --- |" * len(heads),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        "![scores against steps, bytes and seconds](comparison.png)",
        "",
        f"Flags of all runs: {json.dumps(given, sort_keys=True)}.",
        "",
    ]
    return "\n".join(lines)


def main(config: Config) -> int:
    """Compare as the flags say; the exit code."""
    if config.dry_run:
        for name, run in parse_runs(config).items():
            print(f"--- {name}")
            train_gan.run(run)
        return 0
    try:
        compare(config)
    except StoppedError as stopped:
        (number,) = stopped.args
        again = [word for word in sys.argv if word != "--resume"] + ["--resume"]
        print(f"stopped by {number.name}; go on with\n  python {shlex.join(again)}")
        return 128 + number
    return 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        command.run(PROGRAM, Config, main)
