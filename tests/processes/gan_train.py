"""The trainer in several processes: what test_gan_processes.py compares.

    python gan_train.py DIRECTORY

is one of four processes of `jaxsp.launch`. What a process saw is left in
DIRECTORY/saw-PROCESS.json, states in DIRECTORY/states.npz. The test calls `fit` in its
own process too.
"""

import dataclasses
import functools
import json
import os
import pathlib
import signal
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxsp
from jaxsp.gan import data, fl_gan, losses, md_gan, models, step
from jaxsp.gan.data import partition
from jaxsp.gan.training import checkpoint, loop, plots

COUNT, STEPS = 4, 12
GAN = models.mlp((2,), latent_size=4, width=8, depth=1)
LOSSES = losses.non_saturating(GAN)
CONFIG = loop.TrainConfig(
    steps=STEPS,
    log_every=3,
    eval_every=6,
    checkpoint_every=6,
    eval_samples=100,
    progress=False,
)
HALF = dataclasses.replace(CONFIG, steps=STEPS // 2)


@functools.cache
def gossip(workers):
    ring = jaxsp.topology.ring(workers.count)
    return jaxsp.methods.dp_oadam(1e-2, ring, axis_name=workers.axis_name)


def average(workers):
    return jaxsp.methods.cp_oadam(1e-2, workers.axis_name)


def compressed(workers):
    eight_bits, key = jaxsp.compressors.quantize(8), jax.random.key(3)
    channel = jaxsp.channel(workers.axis_name, eight_bits, key=key)
    return jaxsp.methods.dqgan(1e-2, channel)


def federated(workers):
    adam = optax.adam(1e-2, b1=0.5)
    return fl_gan.fl_gan(
        adam,
        adam,
        3,
        participants=2,
        key=jax.random.key(3),
        axis_name=workers.axis_name,
    )


def served(workers):
    del workers
    adam = optax.adam(1e-2, b1=0.5)
    return md_gan.MDGan(adam, adam, batches_k=2, swap_every=4)


def diverging(workers):
    del workers
    return optax.sgd(lambda count: jnp.where(count == 4, jnp.nan, 1e-2))


METHODS = {f.__name__: f for f in (gossip, average, compressed, federated)}


def score(samples):
    return {"frechet_distance": float(np.mean(samples)), "size": len(samples)}


@functools.cache
def program_of(method, workers, batch_size=8):
    """The program of a method; equal steps are compiled once."""
    made, options = method(workers), {"batch_size": batch_size}
    if isinstance(made, md_gan.MDGan):
        return made.program(GAN, LOSSES, workers, **options)
    return step.program(GAN, LOSSES, made, workers, **options)


def fit(method, workers, program=None, **kwargs):
    """`loop.train` on shares of different sizes."""
    full = data.load("mixture_ring")
    few = dataclasses.replace(
        full, train=full.train[:300], train_labels=full.train_labels[:300]
    )
    parts = partition.dirichlet(few.train_labels, workers.count, alpha=1.0, seed=0)
    kwargs = {"config": CONFIG, "score": score, **kwargs}
    return loop.train(program or program_of(method, workers), few, parts, **kwargs)


def everything(workers, result):
    """The whole state of all workers, and the generator, as NumPy arrays."""
    found = jax.tree.leaves(workers.fetch(result.state))
    return [*found, *jax.tree.leaves(result.generator)]


def quickly():
    """Without pictures, which take most of the time."""
    plots.plot_samples = plots.plot_curves = lambda *args: None
    partition.plot = lambda *args: None


def caught(call):
    """The error of a call."""
    try:
        call()
    except Exception as error:
        return [type(error).__name__, str(error)]
    return None


def signalled(program, process):
    """The program, which sends itself SIGTERM in one process."""
    calls = []

    def step(*args):
        calls.append(1)
        if len(calls) == 5 and jaxsp.distributed.process_index() == process:
            os.kill(os.getpid(), signal.SIGTERM)
        return program.step(*args)

    return dataclasses.replace(program, step=step)


def main(directory):
    directory = pathlib.Path(directory)
    jaxsp.distributed.initialize()
    quickly()
    mine = jaxsp.distributed.process_index()
    workers, blocks = jaxsp.Workers(COUNT), jaxsp.Workers(2 * COUNT)
    assert workers.local == (mine,)
    saw: dict[str, Any] = {}
    states = {}

    def keep(name, workers, result):
        found = everything(workers, result)
        states.update({f"{name}/{i}": leaf for i, leaf in enumerate(found)})
        saw[name] = {"step": result.step, "history": result.history}
        return result

    for name, method in METHODS.items():
        keep(name, workers, fit(method, workers))
    keep("blocks", blocks, fit(gossip, blocks))

    # Begun here, to go on in one process; and the other way round.
    begun = directory / "begun_by_many"
    keep("half", workers, fit(gossip, workers, config=HALF, workdir=begun))
    for name in ("begun_by_one", "begun_by_two"):
        kwargs = {"workdir": directory / name, "resume": True}
        keep(f"half_{name}", workers, fit(gossip, workers, config=HALF, **kwargs))
        keep(name, workers, fit(gossip, workers, **kwargs))

    # A server in process 0 and workers in the others.
    apart = jaxsp.Workers(COUNT - 1, jax.devices()[1:])
    resumed = {"workdir": directory / "served_by_one", "resume": True}
    for name, kwargs in (("served", {}), ("served_by_one", resumed)):
        result = fit(served, apart, **kwargs)
        states |= {
            f"{name}/{i}": x for i, x in enumerate(jax.tree.leaves(result.generator))
        }
        saw[name] = {"step": result.step, "history": result.history}

    # A signal that reaches one process only.
    workdir = directory / "signalled"
    stopping = signalled(program_of(gossip, workers), 2)
    result = fit(gossip, workers, stopping, workdir=workdir)
    with checkpoint.Checkpoints(workdir) as checkpoints:
        saw["signalled"] = [result.step, result.signal, checkpoints.latest]
    keep("continued", workers, fit(gossip, workers, workdir=workdir, resume=True))

    lost = directory / "lost"

    def lose(record):
        """Takes away the directory of checkpoints half-way."""
        if record["step"] == 3:
            (lost / "checkpoints").rename(lost / "gone")
            (lost / "checkpoints").touch()

    # What ends it ends it everywhere, and what is wrong is said everywhere.
    stopped = fit(gossip, workers, callback=lambda record: record["step"] == 3)
    other = program_of(gossip, workers, 7 if mine == 3 else 8)
    saw |= {
        "stopped": stopped.step,
        "diverged": caught(lambda: fit(diverging, workers)),
        "failed": caught(lambda: fit(gossip, workers, score=lambda samples: 1 / 0)),
        "unequal": caught(lambda: fit(gossip, workers, other)),
        "taken": caught(lambda: fit(gossip, workers, workdir=workdir)),
        "lost": caught(lambda: fit(gossip, workers, workdir=lost, callback=lose)),
        "own": caught(lambda: fit(gossip, workers, workdir=directory / f"own-{mine}")),
    }
    (directory / f"saw-{mine}.json").write_text(json.dumps(saw))
    if mine == 0:
        np.savez(directory / "states.npz", **states)


if __name__ == "__main__":
    main(*sys.argv[1:])
