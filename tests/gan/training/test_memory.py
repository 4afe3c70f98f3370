"""What is left in memory of a run that is over: nothing."""

import ast
import collections
import gc
import pathlib
import weakref

import jax
import numpy as np
import optax
import pytest
from jax.extend import backend

import jaxsp
from jaxsp.gan import data, losses, md_gan, models, step
from jaxsp.gan.training import TrainConfig, train


def transformation(gan, workers):
    key = jax.random.key(0)
    four = jaxsp.compressors.quantize(4)
    channel = jaxsp.channel(workers.axis_name, four, key=key)
    method = jaxsp.methods.dqgan_adam(1e-3, channel)
    return step.program(gan, losses.non_saturating(gan), method, workers, batch_size=4)


def server(gan, workers):
    method = md_gan.MDGan(optax.adam(1e-3), optax.adam(1e-3), swap_every=2)
    return method.program(gan, losses.non_saturating(gan), workers, batch_size=4)


def run(make, devices, width, **options):
    """Train networks of this width; weak references to what it was done with."""
    gan = models.mlp((2,), latent_size=2, width=width)
    workers = jaxsp.Workers(4, jax.devices()[:devices])
    program = make(gan, workers)
    config = TrainConfig(steps=4, log_every=2, eval_every=4, eval_samples=8)
    parts = np.split(np.arange(40), 4)
    train(
        program,
        data.load("mixture_ring"),
        parts,
        config,
        score=lambda samples: {"mean": samples.mean()},
        **options,
    )
    return [weakref.ref(thing) for thing in (gan, workers, program, program.step)]


def compiled():
    """How many programs of each name are held."""
    gc.collect()
    held = backend.get_backend().live_executables()
    return collections.Counter(one.hlo_modules()[0].name for one in held)


def names_of_ours():
    """What programs made of functions of the library are called."""
    files = pathlib.Path(jaxsp.__file__).parent.rglob("*.py")
    nodes = [n for file in files for n in ast.walk(ast.parse(file.read_text()))]
    names = {n.name for n in nodes if isinstance(n, ast.FunctionDef)}
    return {f"jit_{name}" for name in names | {"_lambda", "_lambda_"}}


@pytest.mark.parametrize(("make", "devices"), [(transformation, 1), (server, 4)])
def test_a_run_leaves_nothing_behind(make, devices, tmp_path):
    """Neither arrays, nor programs, nor networks; what JAX keeps is JAX's own.

    The networks of the second run are of another width: of equal ones everything would
    be found again, and be no more than it was.
    """
    run(make, devices, 5)
    before, arrays = compiled(), len(jax.live_arrays())
    used = run(make, devices, 6, workdir=tmp_path / "run")
    more = compiled() - before
    assert [thing() for thing in used] == [None] * 4
    assert len(jax.live_arrays()) == arrays
    assert not set(more) & names_of_ours(), more
