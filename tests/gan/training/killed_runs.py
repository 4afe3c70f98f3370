"""Runs that are killed again and again, and one that is not.

    python killed_runs.py DIRECTORY METHOD KILLS SEED

trains in DIRECTORY/whole without interruption, then in DIRECTORY/killed with KILLS
kills by SIGKILL, each a random time after a run has made progress, and the next run
resuming. It prints what it did as JSON. Runs are forks of one process that has imported
everything and not yet used JAX, so that each starts at once.
"""

import dataclasses
import json
import os
import pathlib
import signal
import sys
import time
import traceback

import jax
import numpy as np
import optax

import jaxsp
from jaxsp.gan import data, losses, md_gan, models, step
from jaxsp.gan.data import partition
from jaxsp.gan.training import loop, plots, records

STEPS, EVERY, COUNT = 240, 10, 3


def run(directory, method, seed=0, resume=True):
    """One run to its end; leaves the last state beside the directory."""
    jax.config.update("jax_compilation_cache_dir", str(directory.parent / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    full = data.load("mixture_ring")
    few = dataclasses.replace(
        full, train=full.train[:300], train_labels=full.train_labels[:300]
    )
    workers = jaxsp.Workers(COUNT, jax.devices()[:1])
    axis = workers.axis_name
    gan = models.mlp((2,), latent_size=4, width=8, depth=1)
    adam = optax.adam(1e-2, b1=0.5)
    game = losses.non_saturating(gan)
    dp_oadam = jaxsp.methods.dp_oadam(1e-2, jaxsp.topology.ring(COUNT), axis_name=axis)
    served = md_gan.MDGan(adam, adam, batches_k=2, swap_every=7)
    result = loop.train(
        step.program(gan, game, dp_oadam, workers, batch_size=8)
        if method == "dp_oadam"
        else served.program(gan, game, workers, batch_size=8),
        few,
        partition.iid(few.train_labels, COUNT, seed=0),
        loop.TrainConfig(
            steps=STEPS,
            seed=seed,
            log_every=EVERY // 2,
            eval_every=10 * STEPS,
            checkpoint_every=EVERY,
            eval_samples=100,
            progress=False,
        ),
        workdir=directory,
        resume=resume,
    )
    leaves = map(np.asarray, jax.tree.leaves((result.state.params, result.state.ema)))
    np.savez(directory.with_suffix(".npz"), *leaves)
    (directory.with_suffix(".done")).touch()


def start(directory, method, **kwargs):
    """A run in a process of its own."""
    if pid := os.fork():
        return pid
    try:
        plots.plot_samples = plots.plot_curves = lambda *args: None
        partition.plot = lambda *args: None
        run(directory, method, **kwargs)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def last_step(directory):
    """The last step in the metrics."""
    path = directory / "metrics.jsonl"
    written = records.read_metrics(path) if path.exists() else []
    return written[-1]["step"] if written else 0


def last_checkpoint(directory):
    """The last checkpoint that is whole."""
    found = (directory / "checkpoints").glob("*")
    return max((int(p.name) for p in found if p.name.isdecimal()), default=0)


def main(root, method, kills, seed):
    """One whole run and one that is killed."""
    root, rng = pathlib.Path(root), np.random.default_rng(int(seed))
    assert os.waitpid(start(root / "whole", method), 0)[1] == 0
    directory, killed = root / "killed", []
    targets = np.linspace(0, 0.85 * STEPS, int(kills))  # kills all along the run
    for target in targets:
        pid = start(directory, method)
        while last_step(directory) < target:
            time.sleep(0.002)
            if (ended := os.waitpid(pid, os.WNOHANG)) != (0, 0):
                sys.exit(f"a run ended too early: {ended}")
        time.sleep(rng.uniform(0, 0.05))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            killed.append([last_step(directory), last_checkpoint(directory)])
        elif status:
            sys.exit("a run failed")
    assert os.waitpid(start(directory, method), 0)[1] == 0
    print(json.dumps(killed))


if __name__ == "__main__":
    main(*sys.argv[1:])
