"""How soon a GAN gets good on a slow network: score against seconds, on MNIST.

    python benchmarks/network/mnist.py --data_dir=$HOME/tensorflow_datasets

trains with one method after the other by `examples/train_gan.py`, every process in a
network namespace of its own whose link lets through `rate` each way. All train the same
networks for as many steps, on i.i.d. shares, one for each worker; other flags are given
to the script. Seconds are those of training as it records them: without the first call,
in which a step is compiled, and without scores. Interrupted, it goes on where it was.
Needs root on Linux.
"""

import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import namespaces
import numpy as np
from common import command_line, print_table

from jaxsp.gan.training.plots import plot_comparison
from jaxsp.gan.training.records import read_metrics

__all__ = ["METHODS", "main", "print_runs", "reached"]

SCRIPT = pathlib.Path(__file__).parents[2] / "examples/train_gan.py"
SHARED = "--dataset=mnist --model=mlp:128 --loss=acgan --steps=1500 --eval_every=150 "
SHARED += "--batch_size=20 --seed=0 --resume"
# The lines of the plot, with flags of the script. MD-GAN's process 0 has no worker.
METHODS = {
    "CP-OAdam, float32 all-reduce": "--method=cp_oadam",
    "DP-OAdam, ring": "--method=dp_oadam --topology=ring",
    "DQGAN (Adam), 4 bits both ways": (
        "--method=dqgan_adam --compressor=quantize:4 --down=quantize:4"
    ),
    "Extra Step Local SGD, H=8": "--method=extra_step_local_sgd --sync_every=8",
    "its ExtraAdam form, H=8": "--method=local_extra_adam --sync_every=8",
    "MD-GAN": "--method=md_gan",
    "DQGAN (Adam), 2 bits both ways": (
        "--method=dqgan_adam --compressor=quantize:2 --down=quantize:2"
    ),
}
PROCESSES = 4


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


def print_runs(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Print what each run came to, and how much sooner than the first, as Markdown."""
    first = next(iter(runs.values()))
    goal = min(r["frechet_distance"] for r in first if r["step"])
    rows = []
    for name, records in runs.items():
        last, when = records[-1], reached(records, goal)
        row = [name, f"{1000 * last['seconds'] / last['step']:.3g}"]
        row += [f"{last['bits_up'] / 8e6:,.4g}"]
        row += [f"{min(r['frechet_distance'] for r in records):.4g}"]
        # Reached at the start it is no merit.
        sooner = (reached(first, goal) or 0) / when if when else 0
        rows.append(
            row + ([f"{when:.3g}", f"{sooner:.2g}x"] if when else ["never", ""])
        )
    head = ["method", "ms a step", "MB sent a worker", "best score"]
    print_table([*head, f"s to reach {goal:.4g}", "sooner"], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line(__doc__)
    parser.add_argument("--rate", default="100mbit", help="of each link, each way")
    parser.add_argument("--methods", help="numbers of the lines, from 0, with commas")
    parser.add_argument("--workdir", default="runs/network_mnist", type=pathlib.Path)
    flags, more = parser.parse_known_args(arguments)
    numbers = flags.methods.split(",") if flags.methods else range(len(METHODS))
    runs, names = {}, list(METHODS)
    with namespaces.Network(PROCESSES) as network:
        network.set_rate(flags.rate)
        for name in (names[int(i)] for i in numbers):
            workdir = flags.workdir / str(names.index(name))
            argv = [sys.executable, str(SCRIPT), *SHARED.split(), *more]
            argv += [*METHODS[name].split(), f"--workdir={workdir}"]
            network.run([*argv, f"--workers={PROCESSES - (name == 'MD-GAN')}"])
            records = read_metrics(workdir / "metrics.jsonl")
            runs[name] = [r for r in records if r.get("frechet_distance") is not None]
            print(f"{name}: {runs[name][-1]}")
    print_runs(runs)
    picture = flags.workdir / "comparison.png"
    plot_comparison(runs, picture, title=f"four processes at {flags.rate}")
    print(f"written: {picture}")


if __name__ == "__main__":
    main()
