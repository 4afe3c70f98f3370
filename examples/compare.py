r"""Train with several methods at equal budgets and compare what they reach.

Every method is a run of train_gan.py with the same flags but its own; --budget says
where it ends. --workdir then holds a directory for each run, comparison.png (scores
against steps, bytes and seconds) and plots.md. Ended runs are not repeated with
--resume, interrupted ones go on.

Examples:
  python examples/compare.py --methods=dp_oadam,md_gan,dqgan:bits=4 --dataset=digits
  python examples/compare.py --dataset=mnist --workers=10 --partition=dirichlet:0.1 \
    --methods="md_gan,md_gan:batches_k=log,fl_gan,standalone" --budget=bytes:200MB
"""

import contextlib
import functools
import inspect
import json
import pathlib
import platform
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import train_gan
import train_gan_flags
import train_gan_methods
from absl import app, flags
from train_gan_flags import BadFlagError, known, naming

from jaxsp.gan.files import replacing
from jaxsp.gan.training import loop, plots

# What train_gan.py can be told: its flags, but for `callback`.
PARAMETERS = tuple(inspect.signature(train_gan.run).parameters)
_UNITS = {"": 1, "k": 1e3, "kb": 1e3, "m": 1e6, "mb": 1e6, "g": 1e9, "gb": 1e9}
_MANY = 10**9  # steps, where something else ends a run
_SCORES = ("fid", "frechet_distance", "classifier_score", "modes_covered")
_OWN = ("method", "steps", "workdir", "resume", "dry_run", "progress", "callback")


class Stopped(Exception):  # noqa: N818
    """A signal ended a run, and with it the comparison."""


class Run(NamedTuple):
    """A run to compare.

    Attributes:
      name: as the user wrote it, as "md_gan:batches_k=2".
      method: the method's name.
      options: flags of its own.
    """

    name: str
    method: str
    options: dict[str, str]


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


def parse_runs(text: str) -> list[Run]:
    """Read `--methods`: names between commas, each with options behind colons.

    Args:
      text: as "md_gan,dqgan:compressor=top_k/0.1:learning_rate=0.01"; a slash stands
        for a colon within a value.

    Returns:
      The runs.

    Raises:
      BadFlagError: if there is none, one is there twice, or an option is not name=value
        with the name of a flag.
    """
    runs = []
    for name in filter(None, (word.strip() for word in text.split(","))):
        method, *options = name.split(":")
        read = {}
        for option in options:
            flag, equals, value = option.partition("=")
            if not equals or flag not in PARAMETERS or flag in _OWN:
                raise BadFlagError(
                    f"--methods={text}: {option!r} in {name!r} must be FLAG=VALUE with "
                    "a flag of train_gan.py, such as md_gan:batches_k=2."
                )
            read[flag] = value.replace("/", ":")
        known("method", method, train_gan.METHODS)
        runs.append(Run(name, method, read))
    if not runs:
        raise BadFlagError("--methods is empty: write names between commas.")
    if len({run.name for run in runs}) < len(runs):
        raise BadFlagError(f"--methods={text}: the same run is there twice.")
    return runs


def parse_budget(text: str) -> Budget:
    """Read `--budget`.

    Args:
      text: "steps:2000", "bytes:100MB" or "seconds:60".

    Returns:
      The budget.

    Raises:
      BadFlagError: if it is anything else.
    """
    match = re.fullmatch(r"(steps|bytes|seconds):(\d+(?:\.\d+)?)([a-zA-Z]*)", text)
    unit = match[3].lower() if match else ""
    if not match or unit not in _UNITS or (unit and match[1] != "bytes"):
        raise BadFlagError(
            f"--budget={text}: write steps:2000, bytes:100MB or seconds:60."
        )
    amount = float(match[2]) * _UNITS[unit]
    if amount <= 0:
        raise BadFlagError(f"--budget={text}: must be above 0.")
    return Budget(match[1], amount)


def compare(
    methods: str,
    budget: str = "steps:2000",
    workdir: str = "runs/comparison",
    resume: bool = False,
    progress: bool = True,
    command: str = "",
    **options: Any,
) -> dict[str, list[dict[str, Any]]]:
    """Train with each method and write the comparison.

    Args:
      methods: see `parse_runs`.
      budget: see `parse_budget`.
      workdir: where the runs and the report go.
      resume: whether to go on with the runs that are there.
      progress: whether to show progress on standard error.
      command: the command line, for the report.
      **options: arguments of `train_gan.run` for all runs.

    Returns:
      The records of each run by its name; of a run that diverged, until it did.

    Raises:
      BadFlagError: if a flag cannot be used.
      Stopped: if a signal ended a run.
    """
    runs, limit = parse_runs(methods), parse_budget(budget)
    silent = [r.name for r in runs if r.method == "standalone"]
    if silent and limit.kind == "bytes":
        raise BadFlagError(
            f"--budget={budget}: {silent[0]} sends nothing and would never end; write "
            "steps:2000 or seconds:60."
        )
    directory = pathlib.Path(workdir).expanduser()
    if (directory / "plots.md").exists() and not resume:
        raise BadFlagError(
            f"--workdir={workdir} holds another comparison: choose another directory, "
            "or go on with it by --resume."
        )
    given = {run.name: _arguments(run, options) for run in runs}
    records, ends = {}, {}
    for i, run in enumerate(runs, 1):
        print(f"--- {i} of {len(runs)}: {run.name}")
        where = directory / re.sub(r"[^\w.=-]+", "_", run.name)
        metrics = where / "metrics.jsonl"
        if resume and metrics.exists():
            records[run.name] = plots.read_metrics(metrics)
            if _has_ended(where, records[run.name], limit):
                ends[run.name] = "was there"
                continue
        arguments = given[run.name]
        by_steps = limit.kind == "steps"
        try:
            result = train_gan.run(
                method=run.method,
                steps=int(limit.amount) if by_steps else _MANY,
                workdir=str(where),
                resume=resume,
                progress=progress and by_steps,
                callback=functools.partial(_watch, limit, progress and not by_steps),
                **arguments,
            )
            ends[run.name] = "ended"
            if result is not None and result.signal is not None:
                raise Stopped(result.signal)
        except loop.TrainingDivergedError as error:
            print(f"{run.name} diverged: {error}", file=sys.stderr)
            ends[run.name] = f"diverged at step {error.step}"
        records[run.name] = plots.read_metrics(metrics)
        # After each run: what there is can be looked at while the next one trains.
        _write(directory, records, ends, limit, options, command)
    _write(directory, records, ends, limit, options, command)
    print(f"written: {directory / 'plots.md'}, {directory / 'comparison.png'}")
    return records


def _arguments(run: Run, options: dict[str, Any]) -> dict[str, Any]:
    """What `train_gan.run` is called with, if its flags can be read."""
    arguments = options | {k: _typed(k, v) for k, v in run.options.items()}
    known = train_gan_methods.METHODS[run.method].flags
    train_gan_methods.read(
        run.method,
        {name: arguments.get(name) for name in known},
        1 if run.method == "standalone" else arguments.get("workers", 8),
        arguments.get("seed", 0),
    )
    return arguments


def _has_ended(where: pathlib.Path, records: list[dict[str, Any]], limit) -> bool:
    """Whether a run has come to its end, its score and its checkpoint."""
    if not records or not limit.used_up(records[-1]):
        return False
    saved = [int(p.name) for p in where.glob("checkpoints/*") if p.name.isdecimal()]
    scored = any(name in records[-1] for name in _SCORES)
    return scored and max(saved, default=-1) >= records[-1]["step"]


def _watch(limit: Budget, progress: bool, record: dict[str, Any]) -> bool:
    """Whether a run has ended; a line of progress where there can be no bar."""
    if progress:
        used = limit.used(record)
        print(
            f"step {record['step']}, {used:.4g} of {limit.amount:.4g} {limit.kind}",
            file=sys.stderr,
        )
    return limit.used_up(record)


def _typed(flag: str, value: str) -> Any:
    """A flag's value from text, as absl would read it."""
    values = flags.FlagValues()
    train_gan.define_flags(values)
    with naming("methods", f"{flag}={value}", flags.Error):
        values(["compare.py", f"--{flag}={value}"])
    return values[flag].value


# ------------------------------------------------------------------ telling


def _write(directory, records, ends, limit, options, command):
    """The picture and the report of the runs so far."""
    shown = [n for n in _SCORES if any(n in r for rs in records.values() for r in rs)]
    dataset = options.get("dataset", "digits")
    title = f"{dataset}, {options.get('workers', 8)} workers, {limit.kind} equal"
    plots.plot_comparison(records, directory / "comparison.png", shown[:2], title)
    with replacing(directory / "plots.md") as path:
        path.write_text(_report(records, ends, limit, shown, options, command, title))


def _report(records, ends, limit, shown, options, command, title):
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
        ended = ends.get(name, "")
        cells += ["" if ended in ("ended", "was there") else ended]
        rows.append(cells)
    given = {name: value for name, value in options.items() if value is not None}
    lines = [f"# {title}", ""]
    if command:
        lines += ["```", command, "```", ""]
    lines += [
        f"Budget: {limit.amount:g} {limit.kind} a run. MB are per worker, the mean of "
        "the workers; seconds are of training alone, without compilation, on "
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


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Define the flags: those of train_gan.py, and which runs to compare."""
    train_gan.define_flags(values)
    flags.DEFINE_string(
        "methods",
        None,
        "Which methods to compare: names between commas, each with flags of its own "
        "behind colons, as md_gan:batches_k=2,dqgan:compressor=top_k/0.1 (a slash "
        "stands for a colon within a value).",
        flag_values=values,
    )
    flags.DEFINE_string(
        "budget",
        None,
        "Where every run ends: steps:2000 (of the generator), bytes:100MB (sent and "
        "received per worker) or seconds:60 (of training, without compilation); looked "
        "at 10 times in --eval_every steps. Default: --steps.",
        flag_values=values,
    )


def main(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> int:
    """Compare as the flags say; the exit code."""
    try:
        if len(argv) > 1:
            raise BadFlagError(f"unexpected {argv[1]!r}: flags are --name=value.")
        if values["method"].present or not values["methods"].value:
            raise BadFlagError("write --methods=dp_oadam,md_gan, names between commas.")
        options: dict[str, Any] = {
            name: values[name].value
            for name in PARAMETERS
            if name in values and name not in _OWN
        }
        if values["dry_run"].value:
            for run in parse_runs(values["methods"].value):
                print(f"--- {run.name}")
                arguments = _arguments(run, options | {"dry_run": True})
                arguments["steps"] = values["steps"].value
                train_gan.run(run.method, **arguments)
            return 0
        compare(
            values["methods"].value,
            values["budget"].value or f"steps:{values['steps'].value}",
            values["workdir"].value or "runs/comparison",
            bool(values["resume"].value),
            command=shlex.join(["python", *sys.argv]),
            **options,
        )
    except BadFlagError as error:
        print(f"compare.py: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        (number,) = stopped.args
        again = [word for word in sys.argv if word != "--resume"] + ["--resume"]
        print(f"stopped by {number.name}; go on with\n  python {shlex.join(again)}")
        return 128 + number
    return 0


if __name__ == "__main__":
    define_flags()
    flags.adopt_module_key_flags(train_gan)
    flags.adopt_module_key_flags(train_gan_flags)
    with contextlib.suppress(KeyboardInterrupt):
        app.run(main, flags_parser=train_gan.parse_flags)
