"""The experiments of `md_gan.yaml`: one generator, a discriminator on every worker."""

import functools
import math
from typing import Any

import gan_runs
import jax
import numpy as np
import optax
from experiment import Measured, Panel, benchmark

import jaxsp
from jaxsp.gan import fl_gan, losses, md_gan, models, step

_WORKERS, _SHARE = 10, 6_000  # of MNIST's images
_Y = "Fréchet distance"


# ------------------------------------------------------------- what travels, what works


def traffic(seed: int, full: bool) -> Measured:
    """What the counters say of the paper's settings, beside its table."""
    del seed, full  # nothing is random
    gan = models.md_gan_mlp()
    z: Any = jax.eval_shape(lambda: models.init(gan, jax.random.key(0)))
    w, theta = (sum(leaf.size for leaf in jax.tree.leaves(part)) for part in z)
    d, adam = math.prod(gan.sample_shape), optax.adam(2e-4, b1=0.5)
    workers = jaxsp.Workers(_WORKERS, jax.devices()[:1])
    values: dict[str, float] = {"|w|": w, "|θ|": theta}
    ratios, batches = [], (10, 100)
    for b in batches:
        epoch = _SHARE // b
        steps = 10 * epoch
        for k in (1, math.ceil(math.log2(_WORKERS))):
            method = md_gan.MDGan(adam, adam, batches_k=k, swap_every=epoch)
            found = method.program(gan, losses.acgan(gan), workers, batch_size=b)
            counted = found.traffic(steps)["worker"]
            # An image travels down with its class, which is a number more.
            down = steps * 2 * b * (d + 1) + 10 * theta
            up = steps * b * d + 10 * theta
            pair = counted.received / 32 / down, counted.sent / 32 / up
            values |= {f"down, b = {b}, k = {k}": pair[0]}
            values |= {f"up, b = {b}, k = {k}": pair[1]}
            ratios += pair
        way = fl_gan.fl_gan(adam, adam, epoch, axis_name=workers.axis_name)
        found = step.program(gan, losses.acgan(gan), way, workers, batch_size=b)
        counted = found.traffic(steps)["worker"]
        both = (counted.sent + counted.received) / 32 / 10
        values[f"FL-GAN, b = {b}"] = both / (2 * (w + theta))
    values["largest"], values["smallest"] = max(ratios), min(ratios)
    # An all-reduce moves 2 (N - 1) / N of what goes to a server and back.
    values["FL-GAN"] = both / (2 * (w + theta)) * _WORKERS / (2 * (_WORKERS - 1))
    x = np.geomspace(1, 3_000, 40)
    lines = {
        "MD-GAN, down": (x, 2 * x * d + theta * x / _SHARE),
        "MD-GAN, up": (x, x * d + theta * x / _SHARE),
        "FL-GAN, each way": (x, (w + theta) * x / _SHARE),
    }
    panel = Panel(
        "MNIST, MLP, N = 10, E = 1",
        "batch size b",
        "numbers an iteration",
        lines,
        log="xy",
    )
    return Measured(values, [panel])


def work(seed: int, full: bool) -> Measured:
    """A worker's operations as compiled, of MD-GAN and of FL-GAN."""
    del seed, full  # nothing is random
    md_gan_cost = benchmark("md_gan_cost")
    _, gan, share = md_gan_cost.cases()["mlp"]
    values, lines = {}, {"MD-GAN": [], "FL-GAN": []}
    for b in (10, 100):
        found = md_gan_cost.measure(gan, share, b, _WORKERS)
        operations = found["operations"]
        values[f"b = {b}"] = operations["md_gan"] / operations["fl_gan"]
        memory = found["memory_theory"]
        values["memory, in theory"] = memory["md_gan"] / memory["fl_gan"]
        for name, way in (("MD-GAN", "md_gan"), ("FL-GAN", "fl_gan")):
            lines[name].append(operations[way])
    drawn = {name: ((10, 100), found) for name, found in lines.items()}
    panel = Panel(
        "MNIST, MLP, a worker", "batch size b", "operations a step", drawn, log="xy"
    )
    return Measured(values, [panel])


# ------------------------------------------------------------------------------ scores


@functools.cache
def _trained(seed: int, full: bool, **settings: Any) -> gan_runs.Run:
    """A run of the training command on the data of the form, with ten workers."""
    if full:  # the paper's networks; it makes 50,000 iterations
        task = {"dataset": "mnist", "model": "md_gan_mlp", "batch_size": 10}
        steps = 20_000
    else:
        task, steps = {"dataset": "digits", "model": "mlp", "batch_size": 16}, 600
    task |= {"loss": "acgan", "workers": _WORKERS, "method": "md_gan", "steps": steps}
    return gan_runs.by_command(seed=seed, eval_every=steps // 6, **(task | settings))


def _measured(title, runs, picture):
    lines = {name: run.line() for name, run in runs.items()}
    values = {name: run.end(last=2) for name, run in runs.items()}
    for name, run in runs.items():
        values[f"classifier score {name}"] = run.end("classifier_score", last=2)
    panel = Panel(title, "iterations", _Y, lines)
    return values, [panel], [runs[picture].samples]


def scores(seed: int, full: bool) -> Measured:
    """MD-GAN, FL-GAN and the standalone GAN, at equal iterations."""
    batch = 10 if full else 16
    runs = {
        "MD-GAN, k = 1": _trained(seed, full, batches_k="1"),
        "MD-GAN, k = log N": _trained(seed, full),
        "FL-GAN": _trained(seed, full, method="fl_gan"),
        "standalone, b": _trained(seed, full, method="standalone", workers=1),
        "standalone, N b": _trained(
            seed, full, method="standalone", workers=1, batch_size=_WORKERS * batch
        ),
    }
    values, panels, pictures = _measured("10 workers", runs, "MD-GAN, k = log N")
    ours = values["MD-GAN, k = log N"]
    values["MD-GAN / FL-GAN"] = ours / values["FL-GAN"]
    values["MD-GAN / standalone, b"] = ours / values["standalone, b"]
    values["MD-GAN / standalone, N b"] = ours / values["standalone, N b"]
    values["k = log N / k = 1"] = ours / values["MD-GAN, k = 1"]
    return Measured(values, panels, pictures)


def workers(seed: int, full: bool) -> Measured:
    """One to twenty-five workers with batches of the same size."""
    counts = (1, 5, 10, 25)
    alone = {"swap_epochs": 0.0}
    runs = {
        f"N = {count}": _trained(
            seed, full, workers=count, **(alone if count == 1 else {})
        )
        if count != _WORKERS
        else _trained(seed, full)
        for count in counts
    }
    values, panels, pictures = _measured("MD-GAN, k = log N", runs, "N = 25")
    values["N = 25 / N = 1"] = values["N = 25"] / values["N = 1"]
    values["N = 10 / N = 1"] = values["N = 10"] / values["N = 1"]
    return Measured(values, panels, pictures)


def crashes(seed: int, full: bool) -> Measured:
    """One worker more is lost every tenth of the iterations, with its data."""
    steps = 20_000 if full else 600
    runs = {
        "all stay": _trained(seed, full),
        "one lost every tenth": _trained(seed, full, crash_every=steps // 10),
    }
    values, panels, pictures = _measured(
        "10 workers, in the end 1", runs, "one lost every tenth"
    )
    values["lost / stay"] = values["one lost every tenth"] / values["all stay"]
    return Measured(values, panels, pictures)
