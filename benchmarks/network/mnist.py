"""How soon a GAN gets good on a slow network: score against seconds, on MNIST.

    python benchmarks/network/mnist.py --data_dir=$HOME/tensorflow_datasets

trains with one method after the other by `examples/train_gan.py`, every process in a
network namespace of its own whose link lets through `rate` each way. All train the same
networks for as many steps, on i.i.d. shares, one for each worker. Seconds are those of
training as the script records them: without the first call, in which a step is
compiled, and without scores. Interrupted, it goes on where it was. Needs root on Linux.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import namespaces

__all__ = ["METHODS", "main", "reached", "table"]

ROOT = pathlib.Path(__file__).resolve().parents[2]
PORT = 29_500


@dataclasses.dataclass(frozen=True)
class Method:
    """A line of the plot.

    Attributes:
      flags: of the training script.
      server: whether process 0 has no worker.
    """

    flags: tuple[str, ...]
    server: bool = False


METHODS = {
    "CP-OAdam, float32 all-reduce": Method(("--method=cp_oadam",)),
    "DP-OAdam, ring": Method(("--method=dp_oadam", "--topology=ring")),
    "DQGAN (Adam), 4 bits both ways": Method(
        ("--method=dqgan_adam", "--compressor=quantize", "--bits=4", "--down=quantize")
    ),
    "Extra Step Local SGD, H=8": Method(
        ("--method=extra_step_local_sgd", "--sync_every=8")
    ),
    "its ExtraAdam form, H=8": Method(("--method=local_extra_adam", "--sync_every=8")),
    "MD-GAN": Method(("--method=md_gan",), server=True),
    "DQGAN (Adam), 2 bits both ways": Method(
        ("--method=dqgan_adam", "--compressor=quantize", "--bits=2", "--down=quantize")
    ),
}


def train(
    network: namespaces.Network,
    method: Method,
    flags: Sequence[str],
    workdir: pathlib.Path,
    timeout: float,
) -> list[dict[str, Any]]:
    """The records of a run, one process in each namespace.

    Raises:
      RuntimeError: if a process fails, or the run takes longer than `timeout` seconds.
    """
    count = len(network.names)
    environment = dict(os.environ, JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES="1")
    command = [sys.executable, "examples/train_gan.py", *method.flags, *flags]
    command += [f"--workers={count - method.server}", f"--workdir={workdir}"]
    command += [f"--coordinator={network.addresses[0]}:{PORT}"]
    command += [f"--num_processes={count}", "--resume"]
    workdir.parent.mkdir(parents=True, exist_ok=True)
    log = workdir.with_suffix(".log")
    running = []
    try:
        with log.open("w") as output:
            for i in range(count):
                running.append(
                    subprocess.Popen(
                        network.command(i, [*command, f"--process_id={i}"]),
                        cwd=ROOT,
                        env=environment,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
        deadline = time.monotonic() + timeout
        for process in running:
            left = max(1.0, deadline - time.monotonic())
            if process.wait(timeout=left):
                said = log.read_text().splitlines()[-5:]
                raise RuntimeError(f"a process of {workdir} failed: {said}")
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{workdir} took more than {timeout:.0f} s.") from None
    finally:
        for process in running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return read(workdir)


def read(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The records of a run that have a score."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if r.get("frechet_distance") is not None]


def _finished(workdir, steps):
    return (workdir / "metrics.jsonl").exists() and any(
        record["step"] == steps for record in read(workdir)
    )


def reached(records: Sequence[Mapping[str, Any]], score: float) -> float | None:
    """When a score was reached, in seconds of training; None if never.

    Between two scores the line that joins them counts.
    """
    before: Mapping[str, Any] | None = None
    for record in records:
        now = record["frechet_distance"]
        if now <= score:
            if before is None:
                return record["seconds"]
            part = (before["frechet_distance"] - score) / (
                before["frechet_distance"] - now
            )
            return before["seconds"] + part * (record["seconds"] - before["seconds"])
        before = record
    return None


def table(runs: Mapping[str, Sequence[Mapping[str, Any]]], baseline: str) -> str:
    """What each run came to, and how much sooner than the baseline, in Markdown."""
    goal = min(r["frechet_distance"] for r in runs[baseline] if r["step"])
    slow = reached(runs[baseline], goal)
    assert slow is not None
    lines = [
        f"| method | ms a step | MB sent a worker | best score | s to reach {goal:.4g} "
        "| sooner |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, records in runs.items():
        last, when = records[-1], reached(records, goal)
        lines.append(
            f"| {name} | {1000 * last['seconds'] / last['step']:.3g} "
            f"| {last['bits_up'] / 8e6:,.4g} "
            f"| {min(r['frechet_distance'] for r in records):.4g} "
            + (
                "| never | |"
                if not when  # at the start it is no merit
                else f"| {when:.3g} | {slow / when:.2g}x |"
            )
        )
    return "\n".join(lines)


def plot(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], rate: str, path: pathlib.Path
) -> None:
    """Score against seconds of training."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    for name, records in runs.items():
        axes.plot(
            [max(r["seconds"], 1.0) for r in records],
            [r["frechet_distance"] for r in records],
            marker="o",
            markersize=3,
            label=name,
        )
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
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dataset", default="mnist", help="what to learn")
    parser.add_argument("--data_dir", help="TFDS directory")
    parser.add_argument("--model", default="mlp:128", help="the networks")
    parser.add_argument("--loss", default="acgan", help="the game")
    parser.add_argument("--rate", default="100mbit", help="of each link, each way")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--eval_every", type=int, default=150)
    parser.add_argument("--batch_size", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", help="numbers of the lines, from 0, with commas")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds a method")
    parser.add_argument("--workdir", default="runs/network_mnist")
    parser.add_argument("--plot", default="network_mnist.png")
    flags = parser.parse_args(arguments)
    if (why := namespaces.unavailable()) is not None:
        print(f"mnist.py: no slow network here: {why}", file=sys.stderr)
        return 1
    names = list(METHODS)
    if flags.methods:
        names = [names[int(i)] for i in flags.methods.split(",")]
    workdir = pathlib.Path(flags.workdir).absolute()
    shared = [
        f"--dataset={flags.dataset}",
        f"--model={flags.model}",
        f"--loss={flags.loss}",
    ]
    shared += [f"--{n}={getattr(flags, n)}" for n in ("steps", "eval_every", "seed")]
    shared += [f"--batch_size={flags.batch_size}"]
    if flags.data_dir:
        shared += [f"--data_dir={flags.data_dir}"]
    runs = {}
    with namespaces.Network(flags.processes, flags.rate) as network:
        for name in names:
            directory = workdir / str(list(METHODS).index(name))
            if not _finished(directory, flags.steps):
                train(network, METHODS[name], shared, directory, flags.timeout)
            runs[name] = read(directory)
            print(f"{name}: {runs[name][-1]}", flush=True)
    print(table(runs, names[0]))
    plot(runs, flags.rate, pathlib.Path(flags.plot))
    print(f"written: {flags.plot}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
