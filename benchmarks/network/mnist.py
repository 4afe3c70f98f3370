"""How soon a GAN gets good on a slow network: score against seconds, on MNIST.

    python benchmarks/network/mnist.py --data_dir=$HOME/tensorflow_datasets
    python benchmarks/network/mnist.py --data_dir=... --tune --seeds 0

All methods train the same networks on i.i.d. shares, one for each worker, by
`examples/train_gan.py`; other flags are given to the script. What a link lets through
changes no number of a run, so each is trained once for every seed, with all workers in
one process, and says after how many steps it has a score. What a step takes is measured
at every rate: for `--timed_steps` steps each worker is a process in a network namespace
of its own, whose link lets through so much each way. Seconds to a score are the
product; with as many timed steps as steps whole runs are timed. Seconds are those of
training as the script records them: without the first call, in which a step is
compiled, and without scores.

`--tune` trains every method at all `TRIED` learning rates, and prints what they come
to: that is how the rates of `METHODS` were chosen, with a seed that is none of those
judged. Interrupted, it goes on where it was. Needs root on Linux, but for `--tune`.
"""

import argparse
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import namespaces
import numpy as np
from common import command_line, print_table, save

from jaxsp.gan.training.records import read_metrics

__all__ = ["METHODS", "Curve", "main", "plot", "print_goals", "reached", "tune"]

SCRIPT = pathlib.Path(__file__).parents[2] / "examples/train_gan.py"
SHARED = "--dataset=mnist --model=mlp:128 --loss=acgan --batch_size=20 "
SHARED += "--ema_decay=0.99 --resume"
FOUR_BITS = "--compressor=quantize:4 --down=quantize:4"
# The lines of the plot: flags of the script, and the learning rate. The first is what
# the others are compared with.
METHODS = {
    "CP-OAdam, float32 all-reduce": ("--method=cp_oadam", 0.004),
    "DQGAN (Adam), 4 bits both ways": (f"--method=dqgan_adam {FOUR_BITS}", 0.004),
    "local ExtraAdam, H=8": ("--method=local_extra_adam --sync_every=8", 0.008),
    "the same through 4 bits": (
        f"--method=local_extra_adam --sync_every=8 {FOUR_BITS}",
        0.008,
    ),
    "the same, H=32": (
        f"--method=local_extra_adam --sync_every=32 {FOUR_BITS}",
        0.008,
    ),
}
TRIED = (0.002, 0.004, 0.008, 0.016)


class Curve(NamedTuple):
    """What a run has come to.

    Attributes:
      steps: at which it was scored.
      scores: its Fréchet distances there.
      megabytes: sent by a worker, in the whole run.
    """

    steps: np.ndarray
    scores: np.ndarray
    megabytes: float


def reached(curve: Curve, score: float) -> float:
    """The step at which a score was reached; inf if never.

    Between two scores the line that joins them counts.
    """
    below = np.flatnonzero(curve.scores <= score)
    if not len(below):
        return np.inf
    around = slice(max(below[0] - 1, 0), below[0] + 1)
    scores, steps = curve.scores[around][::-1], curve.steps[around][::-1]
    return float(np.interp(score, scores, steps))


def script(flags: argparse.Namespace, seed: int, name: str, rate: float) -> list[str]:
    """The command that trains with a method."""
    told = [f"--seed={seed}", f"--learning_rate={rate}", f"--workers={flags.processes}"]
    method = METHODS[name][0].split()
    return [sys.executable, str(SCRIPT), *SHARED.split(), *method, *told, *flags.more]


def train(flags: argparse.Namespace, seed: int, name: str, rate: float) -> Curve:
    """Train with a method, all workers in one process."""
    which = f"{list(METHODS).index(name)}-{rate:g}-{seed}"
    workdir = flags.workdir / f"scores-{flags.processes}" / which
    command = [*script(flags, seed, name, rate), f"--workdir={workdir}"]
    command += [f"--steps={flags.steps}", f"--eval_every={flags.eval_every}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    records = read_metrics(workdir / "metrics.jsonl")
    scored = [r for r in records if r.get("frechet_distance") is not None]
    return Curve(
        np.array([r["step"] for r in scored]),
        np.array([r["frechet_distance"] for r in scored]),
        scored[-1]["bits_up"] / 8e6,
    )


def seconds(
    flags: argparse.Namespace, network: namespaces.Network, limit: str, name: str
) -> float:
    """Seconds of a step, every worker a process with a link of its own."""
    which = f"{limit}-{list(METHODS).index(name)}"
    workdir = flags.workdir / f"steps-{flags.processes}-{flags.timed_steps}" / which
    command = script(flags, flags.seeds[0], name, METHODS[name][1])
    command += [f"--workdir={workdir}", f"--steps={flags.timed_steps}"]
    network.run([*command, f"--eval_every={flags.timed_steps}"])
    last = read_metrics(workdir / "metrics.jsonl")[-1]
    return last["seconds"] / last["step"]


def tune(flags: argparse.Namespace) -> None:
    """Print the best score of every method at every rate tried, as Markdown."""
    rows = []
    for name in flags.methods:
        runs = [
            [train(flags, seed, name, rate) for seed in flags.seeds] for rate in TRIED
        ]
        best = [np.mean([run.scores.min() for run in some]) for some in runs]
        rows.append([name, *(f"{score:.3g}" for score in best)])
    print_table(["method", *map(str, TRIED)], rows)


def print_goals(
    curves: Mapping[str, Sequence[Curve]],
    took: Mapping[str, Mapping[str, float]],
    score: float,
) -> None:
    """Print seconds to a score on every link, as Markdown.

    Args:
      curves: by method those of all seeds.
      took: by link, and by method, the seconds of a step.
      score: the goal.
    """
    rows, first, links = [], next(iter(curves)), list(took)
    when = {
        name: np.array([reached(curve, score) for curve in some])
        for name, some in curves.items()
    }
    for name, some in curves.items():
        mb = np.mean([1e3 * curve.megabytes / curve.steps[-1] for curve in some])
        row = [name, f"{np.mean([curve.scores.min() for curve in some]):.3g}"]
        row += [f"{mb:.3g}", " ".join(f"{step:,.0f}" for step in when[name])]
        row += [f"{1e3 * took[link][name]:.3g}" for link in links]
        for link in links:
            slow = when[name].mean() * took[link][name]
            free = slow / (when[first].mean() * took[links[0]][first])
            same = when[first].mean() * took[link][first] / slow
            compared = f"{slow:.3g} ({free:.2g}, {same:.2g}x)"
            row.append(compared if np.isfinite(slow) else "never")
        rows.append(row)
    head = ["method", "best score", "kB a step", f"steps to {score:.3g}"]
    head += [f"ms a step, {link}" for link in links]
    head += [f"s, {link} (of {links[0]}, sooner)" for link in links]
    print_table(head, rows)


def plot(
    curves: Mapping[str, Sequence[Curve]],
    took: Mapping[str, Mapping[str, float]],
    path: pathlib.Path,
) -> None:
    """Draw score against seconds, a panel for each link, a line for each method.

    Lines are means over the seeds; behind them stands each seed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(took), 4.6), layout="constrained")
    axes = figure.subplots(1, len(took), sharey=True, squeeze=False)[0]
    for axis, (link, times) in zip(axes, took.items(), strict=True):
        for i, (name, some) in enumerate(curves.items()):
            steps = some[0].steps[1:] * times[name]
            for curve in some:
                axis.plot(steps, curve.scores[1:], color=f"C{i}", alpha=0.25, lw=1)
            mean = np.mean([curve.scores[1:] for curve in some], axis=0)
            axis.plot(steps, mean, color=f"C{i}", label=name)
        title = "links without a limit" if link == "none" else f"links of {link}"
        axis.set(xscale="log", yscale="log", title=title, xlabel="seconds of training")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("Fréchet distance")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncol=3, frameon=False)
    save(figure, path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line(__doc__)
    parser.add_argument("--rates", nargs="+", default=["100mbit", "10mbit"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--methods", help="numbers of the lines, from 0, with commas")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--score", type=float, default=60.0, help="the goal")
    parser.add_argument("--eval_every", type=int, default=150)
    parser.add_argument("--timed_steps", type=int, default=128)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--tune", action="store_true", help="try learning rates")
    parser.add_argument("--workdir", default="runs/network_mnist", type=pathlib.Path)
    flags, flags.more = parser.parse_known_args(arguments)
    names = list(METHODS)
    numbers = flags.methods.split(",") if flags.methods else range(len(names))
    flags.methods = [names[int(i)] for i in numbers]
    if flags.tune:
        tune(flags)
        return
    took: dict[str, dict[str, float]] = {}
    with namespaces.Network(flags.processes) as network:
        for link in ("none", *flags.rates):
            if link != "none":
                network.set_rate(link)
            took[link] = {n: seconds(flags, network, link, n) for n in flags.methods}
    curves = {
        name: [train(flags, seed, name, METHODS[name][1]) for seed in flags.seeds]
        for name in flags.methods
    }
    print_goals(curves, took, flags.score)
    picture = flags.workdir / "comparison.png"
    plot(curves, took, picture)
    print(f"written: {picture}")


if __name__ == "__main__":
    main()
