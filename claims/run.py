"""Test what the papers claim, and write a page with figures and verdicts.

    python claims/run.py                      all claims in their short form
    python claims/run.py --full               in their long form, which takes hours
    python claims/run.py esl masha.bilinear   one paper, or one experiment
    python claims/run.py --record             and note what came out in the YAML files
    python claims/run.py --jobs=1             one after the other, in this process

A paper is one YAML file here: what it claims, where, what we do otherwise, and, after
the line of three dashes, what came out when it was recorded last. The experiments of
`esl.yaml` are functions of `esl.py`, called with a seed and whether the long form is
wanted. Everything goes to `--output`: `index.html`, a figure of each experiment as PNG
and SVG, and its numbers as JSON.
"""

import argparse
import functools
import importlib
import json
import multiprocessing
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

import jax
import numpy as np
import page
import yaml
from experiment import Measured, MissingDataError

from jaxsp.gan.command import keep_memory
from jaxsp.gan.files import replacing

HERE = pathlib.Path(__file__).parent
HELD, PARTLY, NOT = "held", "partly held", "not held"


def read(paper: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a paper claims, and what came out when it was recorded."""
    documents = list(yaml.safe_load_all((HERE / f"{paper}.yaml").read_text()))
    return documents[0], (documents[1] if len(documents) > 1 else None) or {}


def satisfied(claim: Mapping[str, Any], value: float) -> bool:
    """Whether a number is what a claim says; one that is not finite is above all.

    A claim has `below`, `above`, or `near` with a factor `within`.
    """
    if not np.isfinite(value):
        value = np.inf
    if "near" in claim:
        factor = claim["within"]
        return claim["near"] / factor <= value <= claim["near"] * factor
    return claim.get("above", -np.inf) <= value <= claim.get("below", np.inf)


def judge(claim: Mapping[str, Any], values: Sequence[float]) -> str:
    """The verdict over the seeds: all, some or none of them."""
    share = np.mean([satisfied(claim, value) for value in values])
    return HELD if share == 1 else PARTLY if share > 0 else NOT


def run(paper: str, name: str, full: bool, seeds, output: pathlib.Path) -> dict:
    """Run one experiment, write its figure and numbers, and return these.

    Returns:
      `values`, by name those of every seed; `verdicts`, one a claim, None of what this
      form does not judge; `minutes`, `seeds`, `pictures`.
    """
    experiment = read(paper)[0]["experiments"][name]
    seeds = experiment["seeds"][full] if seeds is None else seeds
    measure = getattr(importlib.import_module(paper), name)
    start = time.monotonic()
    measured: list[Measured] = [measure(seed, full) for seed in seeds]
    values = {
        key: [float(one.values[key]) for one in measured] for key in measured[0].values
    }
    verdicts = [
        claim["untestable"] and "not testable here"
        if "untestable" in claim
        else None
        if claim.get("full") and not full
        else judge(claim, values[claim["value"]])
        for claim in experiment["claims"]
    ]
    stem = output / f"{paper}.{name}"
    pictures = page.draw([one.panels for one in measured], stem)
    for number, picture in enumerate(measured[0].pictures):
        copy = stem.with_name(f"{stem.name}.{number}{picture.suffix}")
        copy.write_bytes(picture.read_bytes())
        pictures.append(copy.name)
    found = {
        "form": "long" if full else "short",
        "seeds": list(seeds),
        "minutes": round((time.monotonic() - start) / 60, 2),
        "values": values,
        "verdicts": verdicts,
        "pictures": pictures,
        **versions(),
    }
    with replacing(stem.with_name(stem.name + ".json")) as path:
        path.write_text(json.dumps(found, indent=1))
    return found


def versions() -> dict[str, str]:
    """What the numbers belong to."""

    def git(*words):
        told = ["git", "-C", str(HERE), *words]
        run = subprocess.run(told, capture_output=True, text=True, check=False)
        return run.stdout.strip()

    # Not what is being recorded itself.
    changed = git("status", "--porcelain", "--", ":/", ":(exclude,top)claims/*.yaml")
    commit = git("rev-parse", "--short", "HEAD") or "unknown"
    return {
        "commit": f"{commit}-dirty" if changed else commit,
        "python": sys.version.split()[0],
        "jax": jax.__version__,
    }


def record(paper: str, found: Mapping[str, Mapping[str, Any]]) -> None:
    """Note in a paper's YAML file what came out; what a person wrote stays."""
    path = HERE / f"{paper}.yaml"
    written, _, _ = path.read_text().partition("\n---\n")
    before = read(paper)[1]
    for name, one in found.items():
        kept = {
            key: one[key] for key in ("seeds", "minutes", "commit", "python", "jax")
        }
        kept["values"] = {k: page.in_words(v) for k, v in one["values"].items()}
        kept["verdicts"] = one["verdicts"]
        before.setdefault(name, {})[one["form"]] = kept
    text = yaml.safe_dump(before, sort_keys=False, allow_unicode=True, width=88)
    with replacing(path) as temporary:
        temporary.write_text(
            f"{written.rstrip()}\n---\n"
            f"# Written by: python claims/run.py --record\n{text}"
        )


def chosen(names: Sequence[str]) -> list[tuple[str, str]]:
    """Papers and experiments by name: all, those of a paper, or single ones.

    Raises:
      ValueError: if there is no such paper or experiment.
    """
    everything = [
        (path.stem, name)
        for path in sorted(HERE.glob("*.yaml"))
        for name in read(path.stem)[0]["experiments"]
    ]
    if not names:
        return everything
    known = {paper for paper, _ in everything} | {".".join(one) for one in everything}
    for name in names:
        if name not in known:
            raise ValueError(
                f"there is no {name}; write one of {', '.join(sorted(known))}."
            )
    return [one for one in everything if one[0] in names or ".".join(one) in names]


def begin(directory: str) -> None:
    """Begin a process, which takes from a directory what others have compiled."""
    keep_memory()
    jax.config.update("jax_compilation_cache_dir", directory)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def finished(
    calls: Mapping[str, Callable[[], dict]], jobs: int
) -> Iterator[tuple[str, Callable[[], dict]]]:
    """Make all calls, so many at a time, each in a process of its own.

    Yields:
      The name, and what returns or raises as its call has done, as they end.
    """
    if jobs == 1:
        yield from calls.items()
        return
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as executables,
        futures.ProcessPoolExecutor(
            jobs, context, begin, (executables,), max_tasks_per_child=1
        ) as pool,
    ):
        names = {pool.submit(call): name for name, call in calls.items()}
        try:
            for done in futures.as_completed(names):
                yield names[done], done.result
        finally:  # Ctrl-C begins no other
            pool.shutdown(cancel_futures=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line names; 1 if an experiment could not be run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="papers, or experiments: esl.bilinear")
    parser.add_argument("--full", action="store_true", help="the long form")
    parser.add_argument("--seeds", type=int, nargs="+", help="others than the usual")
    parser.add_argument(
        "--jobs", type=int, default=min(2, os.cpu_count() or 1), help="how many at once"
    )
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("out/papers")
    )
    parser.add_argument(
        "--record", action="store_true", help="write into the YAML files"
    )
    arguments = parser.parse_args(argv)
    try:
        experiments = chosen(arguments.names)
    except ValueError as error:
        parser.error(str(error))
    if arguments.jobs < 1:
        parser.error(f"--jobs must be at least 1; got {arguments.jobs}.")
    arguments.output.mkdir(parents=True, exist_ok=True)
    full = arguments.full
    experiments = [
        one
        for one in experiments
        if arguments.seeds or read(one[0])[0]["experiments"][one[1]]["seeds"][full]
    ]
    if not experiments:
        parser.error("this has a long form alone: add --full.")
    # Those that take longest come first, so that the last ones end together.
    experiments.sort(
        key=lambda one: -read(one[0])[0]["experiments"][one[1]]["minutes"][full]
    )
    calls = {
        f"{paper}.{name}": functools.partial(
            run, paper, name, full, arguments.seeds, arguments.output
        )
        for paper, name in experiments
    }
    failed, jobs = 0, min(arguments.jobs, len(calls))
    print(f"{len(calls)} experiments, {jobs} at a time", flush=True)
    for index, (label, result) in enumerate(finished(calls, jobs)):
        said = f"{index + 1}/{len(calls)} {label}"
        try:
            found = result()
        except MissingDataError as error:
            print(f"{said} not run: {error}", flush=True)
            failed += 1
            continue
        except Exception:
            print(f"{said} failed:", flush=True)
            traceback.print_exc()
            failed += 1
            continue
        verdicts = [verdict for verdict in found["verdicts"] if verdict]
        print(f"{said} {found['minutes']:.1f} min: {', '.join(verdicts)}", flush=True)
        if arguments.record:
            paper, _, name = label.partition(".")
            record(paper, {name: found})
    papers = {path.stem: read(path.stem) for path in sorted(HERE.glob("*.yaml"))}
    print(f"written: {page.write(papers, arguments.output)}")
    return 1 if failed else 0


if __name__ == "__main__":
    keep_memory()
    sys.exit(main())
