"""One of several processes is killed: the others end, and the run goes on."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from jaxsp.gan.training import checkpoint
from jaxsp.gan.training.records import read_metrics

ROOT = pathlib.Path(__file__).parents[3]
COUNT, STEPS, EVERY = 3, 60, 20
LIMIT = 18.0  # seconds, less than a heartbeat; an idle machine takes one or two


def start(workdir):
    """The processes of a run, without a launcher that might end them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "examples/train_gan.py", "--dataset=mixture_ring"]
    command += [f"--workers={COUNT}", "--model=mlp:8", f"--steps={STEPS}"]
    command += [f"--eval_every={EVERY}", f"--workdir={workdir}", "--resume"]
    command += [f"--coordinator=127.0.0.1:{port}", f"--num_processes={COUNT}"]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "MPLBACKEND": "Agg"}
    return [
        subprocess.Popen(
            [*command, f"--process_id={i}"],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(COUNT)
    ]


def last_step(workdir):
    path = workdir / "metrics.jsonl"
    written = read_metrics(path) if path.exists() else []
    return written[-1]["step"] if written else -1


def ends(processes, seconds):
    """What the processes wrote and how they ended; all are gone afterwards."""
    try:
        deadline = time.monotonic() + seconds
        texts = [
            p.communicate(timeout=max(0.1, deadline - time.monotonic()))
            for p in processes
        ]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.communicate()
    return [(p.returncode, *text) for p, text in zip(processes, texts, strict=True)]


def finish(workdir):
    for code, _, error in ends(start(workdir), 200):
        assert code == 0, error


def kill_one(workdir, victim, step):
    """Kill a process when the run is past a step; the seconds until all are gone."""
    processes = start(workdir)
    deadline = time.monotonic() + 200
    while last_step(workdir) < step and time.monotonic() < deadline:
        time.sleep(0.005)
    processes[victim].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    found = ends(processes, LIMIT)
    took = time.monotonic() - killed
    for i, (code, _, error) in enumerate(found):
        if i == victim:
            assert code == -signal.SIGKILL
            continue
        if code == -signal.SIGABRT:
            continue  # JAX's client was quicker
        assert code == 75, error
        line = error.splitlines()[-1]
        assert f"another process is gone, so process {i} ends as well" in line
        assert "--resume" in line
    return took


def records_of(workdir):
    """The metrics, but for the seconds."""
    written = read_metrics(workdir / "metrics.jsonl")
    return [record | {"seconds": None} for record in written]


@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.benchmark)])
def test_the_rest_end_in_time_and_the_run_goes_on(tmp_path, kills, capsys):
    rng = np.random.default_rng(kills)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(whole)
    took = [
        kill_one(killed, int(rng.integers(COUNT)), step)
        for step in np.linspace(EVERY, 0.8 * STEPS, kills)
    ]
    with capsys.disabled():
        print(f"\nseconds from a kill to the end of all: {np.round(took, 2)}")
    finish(killed)
    assert records_of(whole) == records_of(killed)
    (at, generator, _), (_, theirs, _) = map(checkpoint.read_generator, (whole, killed))
    assert at == STEPS
    jax.tree.map(np.testing.assert_array_equal, generator, theirs)
