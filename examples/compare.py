r"""Train with several methods at equal budgets and compare what they reach.

Every method is a run of train_gan.py with the same flags but its own; --budget says
where it ends. --workdir then holds a directory for each run, comparison.png (scores
against examples seen, bytes and seconds) and plots.md. Ended runs are not repeated with
--resume, interrupted ones go on.

In a step all runs see as many examples: standalone, which has one worker, takes batches
of --batch_size x --workers. Each method has the learning rate that suits it, which
plots.md says, unless --learning_rate sets one for all. Every run is scored at least ten
times unless --eval_every says otherwise; there is no knowing with a budget of bytes or
seconds, under which images are scored every 100 steps.

Examples:
  python examples/compare.py --methods=dp_oadam,md_gan,dqgan:compressor=quantize/4
  python examples/compare.py --dataset=mnist --workers=10 --partition=dirichlet:0.1 \
    --methods="md_gan,md_gan:batches_k=log,fl_gan,standalone" --budget=bytes:200e6
"""

import contextlib
import dataclasses
import io
import os
import platform
import re
import shlex
import signal
import sys
from typing import Any

import jax

from jaxsp.gan import command, train
from jaxsp.gan.command import BadFlagError, flag, naming
from jaxsp.gan.files import local_path, replacing
from jaxsp.gan.train import methods
from jaxsp.gan.training import loop, plots
from jaxsp.gan.training.records import read_metrics

PROGRAM = "compare.py"
_SCORES = "fid", "frechet_distance", "classifier_score", "modes_covered"
_SCORES += "modes_reached", "reverse_kl"
_FLAGS = tuple(field.name for field in dataclasses.fields(train.Config))
_NOT_OF_A_RUN = ("method", "steps", "workdir", "resume", "dry_run")


@dataclasses.dataclass(frozen=True)
class Config(train.Config):
    """What to compare: the flags of train_gan.py, and two more."""

    eval_every: int | None = flag(  # pyright: ignore[reportIncompatibleVariableOverride]
        None,
        "Steps between two scores, pictures and checkpoints. Default: a tenth of the "
        "steps, at most 500; with another budget 100, of points 500.",
        bounds=(1, 2**31 - 1),
    )
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


def parse_runs(config: Config) -> dict[str, train.Config]:
    """The runs that --methods names, by what the user wrote, as "md_gan:batches_k=2".

    Raises:
      BadFlagError: if there is none, one is there twice, or a flag cannot be used.
    """
    text = config.methods or ""
    every = {name: getattr(config, name) for name in _FLAGS}
    every["eval_every"] = config.eval_every or _eval_every(config)
    runs: dict[str, train.Config] = {}
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
        run = command.with_texts(train.Config(**every), texts)
        if method == "standalone" and "batch_size" not in texts:
            one = methods.with_defaults(run).batch_size
            run = dataclasses.replace(run, batch_size=one * config.workers)
        runs[name] = run
        with contextlib.redirect_stdout(io.StringIO()):  # a run makes its notes itself
            train.read(runs[name])
    if not runs:
        raise BadFlagError("write --methods=dp_oadam,md_gan, names between commas.")
    return runs


def _budget(config):
    """What --budget says, or else --steps."""
    steps = methods.with_defaults(config).steps
    return parse_budget(config.budget or f"steps:{steps}")


def _eval_every(config):
    """The steps between two scores where the user has not said."""
    kind, amount = _budget(config)
    if kind == "steps":
        return min(500, max(1, int(amount) // 10))
    return 500 if config.dataset.startswith("mixture") else 100


def _facts(run):
    """What a run says of its step: the learning rate, and how many examples it sees."""
    with contextlib.redirect_stdout(io.StringIO()):
        read, workers, _ = train.read(run)
    rate = f"{read.learning_rate:g}"
    rate += f", from 0 in {read.warmup_steps} steps" if read.warmup_steps else ""
    rate += f", to 0 at step {read.decay_steps}" if read.decay_steps else ""
    return rate, (read.batch_size or 0) * workers.count


def parse_budget(text: str) -> tuple[str, float]:
    """Read --budget: "steps:2000", "bytes:100e6" or "seconds:60"."""
    match = re.fullmatch(r"(steps|bytes|seconds):(\d+\.?\d*(?:e\d\d?)?)", text)
    if not match or float(match[2]) <= 0:
        raise BadFlagError(
            f"--budget={text}: write steps:2000, bytes:100e6 or seconds:60."
        )
    return match[1], float(match[2])


def compare(
    config: Config, progress: bool = True
) -> tuple[dict[str, list[dict[str, Any]]], signal.Signals | None]:
    """Train with each method and write the comparison.

    Args:
      config: what to compare.
      progress: whether to show progress on standard error.

    Returns:
      The records of each run by its name; of a run that diverged, until it did. And the
      signal that ended a run, and with it the comparison, or None.

    Raises:
      BadFlagError: if a flag cannot be used.
    """
    kind, amount = _budget(config)
    runs, by_steps = parse_runs(config), kind == "steps"
    facts = {name: _facts(run) for name, run in runs.items()}
    if kind == "bytes" and "standalone" in (run.method for run in runs.values()):
        raise BadFlagError(
            f"--budget={config.budget}: standalone sends nothing and would never end; "
            "write steps:2000 or seconds:60."
        )
    directory = "runs/comparison" if config.workdir is None else config.workdir
    with naming("workdir", config.workdir, ValueError):
        directory = local_path("workdir", directory)
    if (directory / "plots.md").exists() and not config.resume:
        raise BadFlagError(
            f"--workdir={directory} holds another comparison: choose another "
            "directory, or go on with it by --resume."
        )

    def over(record):
        used = record["step" if by_steps else "seconds"]
        if kind == "bytes":
            used = ((record["bits_up"] or 0) + (record["bits_down"] or 0)) / 8
        if progress and not by_steps:  # there is no bar
            step = record["step"]
            print(f"step {step}, {used:.4g} of {amount:.4g} {kind}", file=sys.stderr)
        return used >= amount

    records, ends = {}, {}
    for i, (name, run) in enumerate(runs.items(), 1):
        print(f"--- {i} of {len(runs)}: {name}")
        where = directory / re.sub(r"[^\w.=-]+", "_", name)
        steps, ends[name] = int(amount) if by_steps else 10**9, ""
        run = dataclasses.replace(run, steps=steps, workdir=str(where))
        if not (config.resume and _has_ended(where, over)):
            try:
                result = train.run(run, progress and by_steps, over)
                if result is not None and result.signal is not None:
                    return records, result.signal
            except loop.TrainingDivergedError as error:
                print(f"{name} diverged: {error}", file=sys.stderr)
                ends[name] = f"diverged at step {error.step}"
        records[name] = read_metrics(where / "metrics.jsonl")
        # After each run: what there is can be looked at while the next one trains.
        title = f"{config.dataset}, {config.workers} workers, {kind} equal"
        known = {name: (*facts[name], ends[name]) for name in records}
        _write(directory, records, known, title, f"{amount:g} {kind}")
    print(f"written: {directory / 'plots.md'}, {directory / 'comparison.png'}")
    return records, None


def _has_ended(where, over):
    """Whether a run has come to its end, its score and its checkpoint."""
    metrics = where / "metrics.jsonl"
    records = read_metrics(metrics) if metrics.exists() else []
    if not records or not over(records[-1]) or not {*records[-1]} & {*_SCORES}:
        return False
    return (where / "checkpoints" / str(records[-1]["step"])).exists()


def _write(directory, records, known, title, budget):
    """The picture and the report of the runs so far."""
    shown = [n for n in _SCORES if any(n in r for rs in records.values() for r in rs)]
    seen = {name: examples for name, (_, examples, _) in known.items()}
    plots.plot_comparison(records, directory / "comparison.png", shown[:2], title, seen)
    rows = [["method", "learning rate", "examples a step"]]
    rows[0] += [f"{n.replace('_', ' ')} (last / best)" for n in shown]
    rows[0] += ["steps", "MB sent", "MB received", "seconds", "ms a step", ""]
    rows += [["---"] * len(rows[0])]
    for name, found in records.items():
        rate, examples, end = known[name]
        last, cells = found[-1], [f"`{name}`", rate, str(examples)]
        for score in shown:
            values = [r[score] for r in found if r.get(score) is not None]
            best = min if score in ("fid", "frechet_distance") else max
            cells += [f"{values[-1]:.4g} / {best(values):.4g}" if values else ""]
        cells += [str(last["step"])]
        for bits in (last["bits_up"], last["bits_down"]):
            cells += ["" if bits is None else f"{bits / 8e6:.4g}"]
        seconds = last["seconds"]
        cells += [f"{seconds:.4g}", f"{1e3 * seconds / max(last['step'], 1):.3g}"]
        rows += [[*cells, end]]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    devices = jax.devices()
    report = f"""# {title}

```
{shlex.join(["python", *sys.argv])}
```

Budget: {budget} a run. Learning rates are those that suit the method, where no flag has
set one. Examples are the real ones of one gradient, of all workers; standalone takes as
many as all workers together. MB are per worker, the mean of the workers; seconds are of
training alone, without compilation, on {len(devices)} {devices[0].platform} device(s)
of a machine of type {platform.machine()}, JAX {jax.__version__}.

{table}

![scores against examples seen, bytes and seconds](comparison.png)
"""
    with replacing(directory / "plots.md") as path:
        path.write_text(report)


def main(config: Config) -> int:
    """Compare as the flags say; the exit code."""
    for name in ("coordinator", "num_processes", "process_id"):
        given = os.environ.get(f"JAXSP_{name.upper()}")
        given = given if getattr(config, name) is None else getattr(config, name)
        if given is not None:
            raise BadFlagError(
                f"--{name}={given}: comparisons are made in one process; start "
                "compare.py without it and without jaxsp.launch."
            )
    if config.dry_run:
        for name, run in parse_runs(config).items():
            print(f"--- {name}")
            train.run(run)
        return 0
    _, stopped = compare(config)
    if stopped is None:
        return 0
    again = [word for word in sys.argv if word != "--resume"] + ["--resume"]
    print(f"stopped by {stopped.name}; go on with\n  python {shlex.join(again)}")
    return 128 + stopped


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        command.run(PROGRAM, Config, main)
