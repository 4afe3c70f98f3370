"""The command that trains, in several processes: who tells what, and how it ends."""

import os
import pathlib
import re
import shlex
import signal
import socket
import subprocess
import sys
import time

import pytest
from processes import start

from jaxsp.gan.train import __main__ as script
from jaxsp.gan.training import checkpoint, records

ROOT = pathlib.Path(__file__).parents[3]
MODULE = ["-m", "jaxsp.gan.train"]
SMALL = ["--dataset=mixture_ring", "--model=mlp:8", "--workers=2", "--batch_size=4"]


def without_gloo(text):
    """What was written, but for what gloo tells of itself."""
    return [line for line in text.splitlines() if "[Gloo]" not in line]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            "--workers=3",
            "--workers=3 --devices=2: each device must have the same number of "
            "workers; write --workers=4.",
        ),
        (
            "--mehod=dposg",
            "--mehod: there is no flag of this name; did you mean --method? --help "
            "shows all.",
        ),
    ],
)
def test_what_is_wrong_is_said_once(arguments, said):
    script = "../../examples/train_gan.py"
    code, output = start.launch(2, script, *SMALL, *arguments.split(), seconds=120)
    assert without_gloo(output) == [f"[0] jaxsp.gan.train: {said}"]
    assert code == 2


def test_a_signal_leaves_a_run_that_goes_on_in_one_process(call, tmp_path):
    """A signal to one of two is a signal to both."""
    run = [*SMALL, "--eval_every=500"]
    argv = [sys.executable, *MODULE, *run, "--workdir=stopped", "--steps=1000000"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = f"127.0.0.1:{server.getsockname()[1]}"
    argv += [f"--coordinator={place}", "--num_processes=2", "--process_id=0"]
    started = [
        subprocess.Popen(
            [*argv[:-1], argv[-1].replace("id=0", f"id={process}")],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    metrics = tmp_path / "stopped" / "metrics.jsonl"
    try:
        deadline = time.monotonic() + 120
        while not metrics.exists() or len(metrics.read_text().splitlines()) < 2:
            assert [process.poll() for process in started] == [None] * 2
            assert time.monotonic() < deadline
            time.sleep(0.02)
        started[-1].send_signal(signal.SIGTERM)
        (out, err), *others = [process.communicate(timeout=60) for process in started]
    finally:
        for process in started:
            process.kill()
    codes = [process.returncode for process in started]
    assert codes == [128 + signal.SIGTERM] * 2, err
    assert "Traceback" not in err
    step = int(re.search(r"stopped by SIGTERM at step (\d+), which is saved", out)[1])
    assert out.splitlines()[-1] == f"  {shlex.join([*argv, '--resume'])}"
    assert "2 workers by shard_map on 2 cpu devices of 2 processes" in out
    assert [without_gloo(text) for pair in others for text in pair] == [[], []]
    assert checkpoint.read_generator(tmp_path / "stopped")[0] == step >= 50

    end = f"--steps={50 * (step // 50 + 1)}"
    assert call(script, *run, "--workdir=stopped", end, "--resume")[0] == 0
    assert call(script, *run, "--workdir=whole", end)[0] == 0
    one, other = (
        records.read_metrics(tmp_path / name / "metrics.jsonl")
        for name in ("stopped", "whole")
    )
    assert [r["step"] for r in one] == [r["step"] for r in other]
    for a, b in zip(one[1:], other[1:], strict=True):
        assert a.keys() == b.keys()
        # The devices are others: equal to rounding.
        for name in ("loss_generator", "loss_discriminator", "bits_up"):
            assert a[name] == pytest.approx(b[name], rel=1e-3)
    assert one[-1]["frechet_distance"] == pytest.approx(
        other[-1]["frechet_distance"], rel=1e-3
    )


def test_md_gan_has_its_server_in_process_0_and_can_be_planned(tmp_path):
    """Also where one process has all the workers."""
    command = [sys.executable, "-m", "jaxsp.launch", "-n", "2", *MODULE, *SMALL]
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
