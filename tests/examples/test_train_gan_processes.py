"""The training script in several processes: who tells what, and how it ends."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from processes import start

from jaxsp.gan.training import checkpoint

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "train_gan.py"
SMALL = ["--dataset=mixture_ring", "--model=mlp:8", "--workers=2", "--batch_size=4"]


def without_gloo(text):
    """What was written, but for what gloo tells of itself."""
    return [line for line in text.splitlines() if "[Gloo]" not in line]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            "--workers=3",
            "--workers=3 --devices=2: all devices must have as many workers; write "
            "--workers=4.",
        ),
        ("--mehod=dposg", "Unknown command line flag 'mehod'. Did you mean: method ?"),
    ],
)
def test_what_is_wrong_is_said_once(arguments, said):
    script = f"../../{SCRIPT.relative_to(ROOT)}"
    code, output = start.launch(2, script, *SMALL, *arguments.split(), seconds=120)
    assert without_gloo(output) == [f"[0] train_gan.py: {said}"]
    assert code == 2


def one_of_two(process, port, *arguments, cwd):
    """A process of two, started as on machines of their own."""
    place = [f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
    return subprocess.Popen(
        [sys.executable, SCRIPT, *arguments, *place, f"--process_id={process}"],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_signal_to_one_of_two_leaves_a_run_that_goes_on_in_one(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    run = [*SMALL, "--workdir=stopped", "--eval_every=500", "--steps=1000000"]
    two = [one_of_two(process, port, *run, cwd=tmp_path) for process in (0, 1)]
    metrics = tmp_path / "stopped" / "metrics.jsonl"
    try:
        deadline = time.monotonic() + 120
        while not metrics.exists() or len(metrics.read_text().splitlines()) < 2:
            assert [process.poll() for process in two] == [None, None]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        two[1].send_signal(signal.SIGTERM)
        (out, err), (other_out, other_err) = (
            process.communicate(timeout=60) for process in two
        )
    finally:
        for process in two:
            process.kill()
    assert [process.returncode for process in two] == [128 + signal.SIGTERM] * 2, err
    assert "Traceback" not in err
    step = int(re.search(r"stopped by SIGTERM at step (\d+), which is saved", out)[1])
    assert out.splitlines()[-1].endswith("--process_id=0 --resume")
    assert "2 workers by shard_map on 2 cpu devices of 2 processes" in out
    assert without_gloo(other_out) == []
    assert without_gloo(other_err) == []
    assert checkpoint.read_generator(tmp_path / "stopped")[0] == step

    end = f"--steps={50 * (step // 50 + 1)}"
    for name, more in (("stopped", ["--resume"]), ("whole", [])):
        command = [*SMALL, f"--workdir={name}", "--eval_every=500", end, *more]
        subprocess.run(
            [sys.executable, SCRIPT, *command],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            check=True,
            capture_output=True,
            timeout=120,
        )
    whole = records(tmp_path / "whole" / "metrics.jsonl")
    found = [r for r in records(metrics) if r["step"] % 50 == 0]
    assert [r["step"] for r in found] == [r["step"] for r in whole]
    for a, b in zip(found[1:], whole[1:], strict=True):
        for name in ("loss_generator", "loss_discriminator", "bits_up"):
            assert a[name] == pytest.approx(b[name], rel=1e-3)


def test_md_gan_has_its_server_in_process_0_and_can_be_planned(tmp_path):
    """Also where one process has all the workers."""
    command = [sys.executable, "-m", "jaxsp.launch", "-n", "2", SCRIPT, *SMALL]
    command += ["--method=md_gan", "--workdir=run", "--steps=3"]
    for more, said in (
        (["--dry_run"], "sent a step"),
        ([], "step 3: Frechet distance"),
    ):
        done = subprocess.run(
            [*command, *more],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr
        assert said in done.stdout
