"""How soon a GAN gets good on a slow network: score against seconds, on MNIST.

    python benchmarks/network/mnist.py --data_dir=$HOME/tensorflow_datasets

trains with one method after the other by `examples/train_gan.py`, every process in a
network namespace of its own whose link lets through `rate` each way. All train the same
networks for as many steps, on i.i.d. shares, one for each worker. Seconds are those of
training as the script records them: without the first call, in which a step is
compiled, and without scores. Interrupted, it goes on where it was. Needs root on Linux.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import children
import namespaces
import numpy as np
import report

__all__ = ["METHODS", "main", "reached", "table"]

PORT = 29_500
SCRIPT = pathlib.Path(__file__).parents[2] / "examples/train_gan.py"


def _dqgan(bits):
    return f"--method=dqgan_adam --compressor=quantize:{bits} --down=quantize:{bits}"


# The lines of the plot, with flags of the script. MD-GAN's process 0 has no worker.
METHODS = {
    "CP-OAdam, float32 all-reduce": "--method=cp_oadam",
    "DP-OAdam, ring": "--method=dp_oadam --topology=ring",
    "DQGAN (Adam), 4 bits both ways": _dqgan(4),
    "Extra Step Local SGD, H=8": "--method=extra_step_local_sgd --sync_every=8",
    "its ExtraAdam form, H=8": "--method=local_extra_adam --sync_every=8",
    "MD-GAN": "--method=md_gan",
    "DQGAN (Adam), 2 bits both ways": _dqgan(2),
}
# Its flags for all methods.
SHARED = {"dataset": "mnist", "data_dir": "", "model": "mlp:128", "loss": "acgan"}
SHARED |= {"steps": 1500, "eval_every": 150, "batch_size": 20, "seed": 0}


def train(
    network: namespaces.Network,
    name: str,
    flags: Sequence[str],
    workdir: pathlib.Path,
    limit: float,
) -> None:
    """Train by one of `METHODS`, one process in each namespace.

    Args:
      network: the namespaces.
      name: of the method.
      flags: of the training script, for all methods.
      workdir: where the run and what its processes say are written.
      limit: seconds that it may take.

    Raises:
      RuntimeError: if a process fails, or the run takes longer.
    """
    count = len(network.names)
    argv = [sys.executable, str(SCRIPT), *METHODS[name].split(), *flags, "--resume"]
    argv += [f"--workers={count - (name == 'MD-GAN')}", f"--workdir={workdir}"]
    argv += [f"--coordinator={network.addresses[0]}:{PORT}", f"--num_processes={count}"]
    children.run(
        [network.command(i, [*argv, f"--process_id={i}"]) for i in range(count)],
        workdir.with_suffix(".logs"),
        limit,
    )


def read(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The records of a run that have a score; none if it has not begun."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [r for r in map(json.loads, lines) if r.get("frechet_distance") is not None]


def reached(records: Sequence[Mapping[str, Any]], score: float) -> float | None:
    """When a score was reached, in seconds of training; None if never.

    Between two scores the line that joins them counts.
    """
    scores = [record["frechet_distance"] for record in records]
    below = [i for i, found in enumerate(scores) if found <= score]
    if not below:
        return None
    around = slice(max(below[0] - 1, 0), below[0] + 1)
    seconds = [record["seconds"] for record in records[around]]
    return float(np.interp(score, scores[around][::-1], seconds[::-1]))


def table(runs: Mapping[str, Sequence[Mapping[str, Any]]], baseline: str) -> str:
    """What each run came to, and how much sooner than the baseline, in Markdown."""
    goal = min(r["frechet_distance"] for r in runs[baseline] if r["step"])
    slow = reached(runs[baseline], goal)
    assert slow is not None
    head = ["method", "ms a step", "MB sent a worker", "best score"]
    head += [f"s to reach {goal:.4g}", "sooner"]
    rows = []
    for name, records in runs.items():
        last, when = records[-1], reached(records, goal)
        row = [name, f"{1000 * last['seconds'] / last['step']:.3g}"]
        row += [f"{last['bits_up'] / 8e6:,.4g}"]
        row += [f"{min(r['frechet_distance'] for r in records):.4g}"]
        # Reached at the start it is no merit.
        rows += [
            row + ([f"{when:.3g}", f"{slow / when:.2g}x"] if when else ["never", ""])
        ]
    return report.table(head, rows)


def plot(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], rate: str, path: pathlib.Path
) -> None:
    """Draw score against seconds of training."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name, records in runs.items():
        seconds = [max(r["seconds"], 1.0) for r in records]
        scores = [r["frechet_distance"] for r in records]
        axes.plot(seconds, scores, marker="o", markersize=3, label=name)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel=f"seconds of training at {rate}",
        ylabel="classifier Fréchet distance",
        title="A GAN on MNIST, four processes on a slow network",
    )
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rate", default="100mbit", help="of each link, each way")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--methods", help="numbers of the lines, from 0, with commas")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds a method")
    parser.add_argument("--workdir", default="runs/network_mnist")
    parser.add_argument("--plot", default="network_mnist.png")
    for name, value in SHARED.items():
        parser.add_argument(f"--{name}", default=value, type=type(value))
    flags = parser.parse_args(arguments)
    if (why := namespaces.unavailable()) is not None:
        print(f"mnist.py: no slow network here: {why}", file=sys.stderr)
        return 1
    names = list(METHODS)
    numbers = flags.methods.split(",") if flags.methods else range(len(names))
    given = {name: getattr(flags, name) for name in SHARED}
    shared = [f"--{name}={value}" for name, value in given.items() if value != ""]
    runs = {}
    with (
        children.leaving_on_signals(),
        namespaces.Network(flags.processes, flags.rate) as network,
    ):
        for i in map(int, numbers):
            directory = pathlib.Path(flags.workdir).absolute() / str(i)
            if not any(r["step"] == flags.steps for r in read(directory)):
                train(network, names[i], shared, directory, flags.timeout)
            runs[names[i]] = read(directory)
            print(f"{names[i]}: {runs[names[i]][-1]}", flush=True)
    print(table(runs, next(iter(runs))))
    plot(runs, flags.rate, pathlib.Path(flags.plot))
    print(f"written: {flags.plot}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
