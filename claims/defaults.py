"""The experiments of `defaults.yaml`: training by the command, told little."""

from typing import Any

import gan_runs
from experiment import Measured, Panel

from jaxsp.gan.training import TrainingDivergedError

_METHODS = {"dp_oadam": "DP-OAdam", "dqgan_adam": "DQGAN-Adam", "md_gan": "MD-GAN"}


def mixtures(seed: int, full: bool) -> Measured:
    """The ring of 8 and the grid of 25 Gaussians, with the defaults of points."""
    told: dict[str, Any] = {"eval_every": 3_000}
    names, methods = ("ring", "grid"), tuple(_METHODS)
    if not full:  # fewer steps, in which the rate falls to 0 all the same
        told = {"steps": 10_000, "decay_steps": 10_000, "eval_every": 1_000}
        names, methods = ("ring",), ("dqgan_adam",)
    panels, values, pictures = [], {}, []
    for name in names:
        lines = {}
        for method in methods:
            run = gan_runs.by_command(
                dataset=f"mixture_{name}", method=method, seed=seed, **told
            )
            lines[_METHODS[method]] = run.line("high_quality")
            label = f"{name}, {_METHODS[method]}"
            values[f"share, {label}"] = run.end("high_quality")
            values[f"modes, {label}"] = run.end("modes_covered")
            pictures.append(run.samples)
        for what in ("share", "modes"):
            found = [v for k, v in values.items() if k.startswith(f"{what}, {name}, ")]
            values[f"lowest {what}, {name}"] = min(found)
        panels.append(Panel(name, "steps", "share on a mode", lines, log=""))
    return Measured(values, panels, pictures)


def digits(seed: int, full: bool) -> Measured:
    """The command of `make demo`."""
    del full
    run = gan_runs.by_command(dataset="digits", steps=4_000, batch_size=32, seed=seed)
    panel = Panel("make demo", "steps", "Fréchet distance", {"DP-OAdam": run.line()})
    values = {
        "distance": run.end(),
        "classifier score": run.end("classifier_score"),
        "classes": run.end("classes_covered"),
    }
    return Measured(values, [panel], [run.samples])


def mnist(seed: int, full: bool) -> Measured:
    """The documented command for MNIST, which has no short form."""
    del full
    run = gan_runs.by_command(
        dataset="mnist",
        method="dqgan_adam",
        loss="acgan",
        steps=4_000,
        decay_steps=4_000,
        seed=seed,
    )
    panel = Panel("MNIST", "steps", "Fréchet distance", {"DQGAN-Adam": run.line()})
    values = {
        "distance": run.end(),
        "classifier score": run.end("classifier_score"),
        "classes": run.end("classes_covered"),
        "minutes": run.records[-1]["seconds"] / 60,
    }
    return Measured(values, [panel], [run.samples])


def first_steps(seed: int, full: bool) -> Measured:
    """The documented commands, for 150 steps."""
    commands: list[dict[str, Any]] = [
        {"dataset": "mixture_ring", "method": method, "topology": graph}
        for method in ("dposg", "dp_oadam")
        for graph in ("star", "ring")
    ]
    if full:
        commands += [
            {"method": method}
            for method in ("dp_oadam", "md_gan", "fl_gan", "standalone", "dqgan")
        ]
        commands += [{"method": "dqgan_adam", "compressor": "quantize:4"}]
        commands += [{"dataset": "mixture_grid", "method": "md_gan"}]
    values = {}
    for command in commands:
        try:
            gan_runs.by_command(seed=seed, steps=150, eval_every=150, **command)
            diverged = 0
        except TrainingDivergedError:
            diverged = 1
        values[", ".join(command.values())] = diverged
    values["diverged"] = sum(values.values())
    return Measured(values)
