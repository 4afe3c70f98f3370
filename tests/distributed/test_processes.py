"""Every method alike in one process and over several that talk by gloo."""

import jax
import numpy as np
import pytest
from processes import methods_run, start

import jaxsp


def run(count, tmp_path_factory, seconds=300):
    path = tmp_path_factory.mktemp("processes") / "paths.npz"
    code, output = start.launch(count, "methods_run.py", path, seconds=seconds)
    assert code == 0, output
    return dict(np.load(path))


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """The iterates of methods of every kind over four processes."""
    return run(4, tmp_path_factory)


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    return run(8, tmp_path_factory, seconds=3_600)


def check(found, count):
    worst = {}
    for times in (1, 2):
        workers = jaxsp.Workers(times * count, jax.devices()[:1])
        for row in methods_run.rows(times, count):
            ours, theirs = (
                found.pop(f"{row.name}-{times}"),
                methods_run.run(row, workers),
            )
            assert np.abs(theirs[-1] - theirs[0]).max() > 1e-3
            error = np.abs(ours - theirs).max() / np.abs(theirs).max()
            worst[row.name, times] = float(error)
    assert not found
    return {name: error for name, error in worst.items() if not error <= 1e-6}


def test_four_processes_follow_virtual_workers(four):
    """In float32, to 1e-6 of the largest entry."""
    assert check(four, 4) == {}


@pytest.mark.benchmark
def test_eight_processes_follow_virtual_workers(eight):
    assert check(eight, 8) == {}
