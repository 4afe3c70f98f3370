"""MD-GAN over processes, and in blocks of workers: what one process does on one device.

The four processes are started once, for all tests here.
"""

import functools
import sys
import tempfile

import jax
import numpy as np
import pytest
from processes import md_gan_run, start

import jaxsp


@functools.cache
def expected(name):
    """What virtual workers of this process leave."""
    case = md_gan_run.CASES[name]
    workers = jaxsp.Workers(case["count"], jax.devices()[:1])
    with tempfile.TemporaryDirectory() as path:
        return md_gan_run.run_case(workers, path, **case)


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """What each of four processes found, process 0 the server."""
    path = tmp_path_factory.mktemp("md_gan")
    code, output = start.launch(4, "md_gan_run.py", path)
    assert code == 0, output
    return [dict(np.load(path / f"{process}.npz")) for process in range(4)]


def assert_alike(found, name):
    """To 1e-6 of the largest number; what is no float to the bit."""
    assert found.keys() == expected(name).keys()
    for key, value in expected(name).items():
        if key == "held":  # of one process, all
            continue
        if value.dtype.kind == "f":
            assert np.isfinite(value).all()
            error = np.abs(found[key] - value).max() / np.abs(value).max()
            assert error <= 1e-6, key
        else:
            np.testing.assert_array_equal(found[key], value, key)


@pytest.mark.parametrize("name", md_gan_run.CASES)
def test_processes_do_what_one_does(four, name):
    """With a worker that leaves and comes back; with two workers in each process."""
    prefix = f"{name}: "
    found = {k.removeprefix(prefix): v for k, v in four[0].items() if prefix in k}
    assert_alike(found, name)
    assert found["finite"]
    assert found["resumed"]
    assert not found["finite without x"]
    assert not found["finite without y"]


def test_all_processes_know_the_same(four):
    for other in four[1:]:
        for name in other:
            if "held" in name or "written" in name:
                continue
            np.testing.assert_array_equal(four[0][name], other[name], name)


def test_the_server_holds_no_discriminator_and_workers_no_generator(four):
    for process, found in enumerate(four):
        assert found["blocks: held"].tolist() == [process == 0, process > 0]


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux counts a process's bytes"
)
def test_what_is_sent_is_what_is_counted(four):
    """Batches by the server, feedback and swapped discriminators by workers, to 5 %."""
    for process, found in enumerate(four):
        sent, counted = found["written"]
        if process == 2:  # its worker is gone: a word now and then, to all
            assert counted == 0
            assert sent < 0.02 * four[0]["written"][1]
        else:
            assert counted <= sent <= 1.05 * counted


def test_a_server_without_a_device_is_refused(four):
    said = str(four[0]["refused"])
    assert "workers must leave a device of process 0" in said
    assert (
        "Workers(3, devices=[d for d in jax.devices() if d.process_index > 0])" in said
    )


def test_blocks_of_workers_do_what_virtual_ones_do(tmp_path):
    """Two workers on each of three devices, and the server on the next one."""
    workers = jaxsp.Workers(6, jax.devices()[:3])
    assert workers.mode == "blocks"
    program, *_ = md_gan_run.program_of(workers, count=6, moments="stay")
    for leaf in jax.tree.leaves(program.init(jax.random.key(0)).params.x):
        assert leaf.devices() == {jax.devices()[3]}
    case = md_gan_run.CASES["blocks"]
    assert_alike(md_gan_run.run_case(workers, tmp_path, **case), "blocks")
