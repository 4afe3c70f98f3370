"""The GAN experiment of `esl.yaml`: how often local methods should average."""

import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import gan_runs
import jax.numpy as jnp
import optax
from experiment import Measured, Panel

import jaxsp
from jaxsp import methods
from jaxsp.gan.data import partition
from jaxsp.gan.training import TrainConfig

__all__ = ["DATASET", "gan"]

DATASET = "JAXSP_CLAIMS_DATASET"  # the variable that names another data set
_WORKERS, _BETAS = 4, (0.5, 0.9)


class _Task(NamedTuple):
    """The networks, the examples of a gradient, and the epochs of a worker's share."""

    model: str
    batch_size: int
    epochs: int


_TASKS = {
    "digits": _Task("mlp", 16, 60),
    "mnist": _Task("mlp:128", 64, 60),
    "cifar10": _Task("dcgan", 64, 150),  # the paper's, for who has an accelerator
}


def _local_adam(every, axis):
    return optax.chain(optax.adam(1e-3, *_BETAS), jaxsp.sync(every, axis))


def _local_extra_adam(every, axis):
    return methods.local_extra_adam(1e-3, every, axis, *_BETAS)


def _extra_step_local_sgd(every, axis):
    return methods.extra_step_local_sgd(0.01, every, axis)


def _rarely_first(epoch, epochs) -> Callable[[Any], Any]:
    """Every 10, 5 and 1 epochs, each for a third of the epochs."""

    def every(count):
        third = count * 3 // (epochs * epoch)
        return epoch * jnp.array([10, 5, 1])[jnp.minimum(third, 2)]

    return every


def gan(seed: int, full: bool) -> Measured:
    """Local methods on unlike shares, for several frequencies of averages."""
    name = os.environ.get(DATASET) or ("mnist" if full else "digits")
    if name not in _TASKS:
        raise ValueError(f"{DATASET}={name}: write one of {', '.join(_TASKS)}.")
    task, dataset = _TASKS[name], gan_runs.load(name)
    parts = partition.major_classes(dataset.train_labels, _WORKERS, seed=seed)
    epoch = round(sum(map(len, parts)) / _WORKERS / task.batch_size)
    fixed = {f"every {n}": n * epoch for n in (1, 5, 10)}
    often: dict[str, Any] = fixed | {"10, 5, 1": _rarely_first(epoch, task.epochs)}
    made = {("local Adam", when): _local_adam for when in often}
    some = often if full else {"every 5": None}
    made |= {("local ExtraAdam", when): _local_extra_adam for when in some}
    made |= {("Extra Step Local SGD", when): _extra_step_local_sgd for when in some}
    config = TrainConfig(
        steps=task.epochs * epoch,
        seed=seed,
        log_every=10 * epoch,
        eval_every=10 * epoch,  # when all have just averaged
        checkpoint_every=task.epochs * epoch,
        progress=False,
    )
    lines, values, runs = {}, {}, {}
    for (method, when), make in made.items():
        run = gan_runs.by_method(
            dataset,
            parts,
            functools.partial(make, often[when]),
            config,
            task.model,
            task.batch_size,
        )
        label = f"{method}, {when}"
        steps, scores = run.line()
        lines[label], runs[label] = (steps / epoch, scores), run
        values[label] = run.end(last=2)
        values[f"classifier score {label}"] = run.end("classifier_score", last=2)
    others = [values["local Adam, every 1"], values["local Adam, every 10"]]
    values["5 / best of 1 and 10"] = values["local Adam, every 5"] / min(others)
    least = min(values[f"local Adam, {when}"] for when in fixed)
    values["10, 5, 1 / best"] = values["local Adam, 10, 5, 1"] / least
    values["ExtraAdam / Adam"] = (
        values["local ExtraAdam, every 5"] / values["local Adam, every 5"]
    )
    panel = Panel(f"{name}, 4 workers", "epochs of a share", "Fréchet distance", lines)
    return Measured(values, [panel], [runs["local Adam, every 5"].samples])
