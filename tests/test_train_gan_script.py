"""The training script: what it says to bad flags, and how it ends."""

import importlib.util
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import pytest
from absl import flags

from jaxsp.gan import checkpoint, scores, train

ROOT = pathlib.Path(__file__).parent.parent
SCRIPT = ROOT / "examples" / "train_gan.py"
# The smallest run there is: points need no classifier for their scores.
SMALL = ["--dataset=mixture_ring", "--workers=2", "--batch_size=4"]


@pytest.fixture(scope="module")
def script():
    jax.devices()  # there are eight from now on, whatever --devices says
    spec = importlib.util.spec_from_file_location("train_gan", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_gan"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def call(script, tmp_path, monkeypatch, capsys):
    """Call the script as from a shell; its exit code and what it wrote."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        values = flags.FlagValues()
        script.define_flags(values)
        rest = values(["train_gan.py", *arguments])
        code = script.main(rest, values)
        out, err = capsys.readouterr()
        return code, out, err

    return call


BAD = [
    ("--method=dposgg", "--method=dposgg", "did you mean dposg?", "extra_step"),
    ("--topology=rng", "--topology=rng", "did you mean ring?", "erdos_renyi"),
    ("--dataset=minst", "--dataset=minst", "did you mean mnist?", "mixture_grid"),
    ("--loss=hing", "--loss=hing", "did you mean hinge?", "wasserstein"),
    ("--partition=dirichlt:1", "--partition=dirichlt:1", "did you mean 'dirichlet'"),
    ("--partition=dirichlet:-1", "--partition=dirichlet:-1", "positive"),
    ("--workers=7 --topology=torus", "--workers=7", "rows x", "write --workers=6"),
    ("--workers=8 --topology=torus:3x3", "--workers=8", "torus:3x3", "--workers=8"),
    ("--topology=torus:3", "--topology=torus:3", "torus:2x4"),
    ("--topology=ring:3", "--topology=ring:3", "nothing after a colon"),
    ("--topology=erdos_renyi:2", "--topology=erdos_renyi:2", "(0, 1]"),
    ("--topology=erdos_renyi:x", "--topology=erdos_renyi:x", "erdos_renyi:0.3"),
    ("--workers=0", "--workers=0", "at least 1"),
    ("--steps=0", "--steps=0", "at least 1"),
    ("--rounds=0", "--rounds=0", "at least 1"),
    ("--learning_rate=0", "--learning_rate=0", "above 0", "0.002"),
    ("--learning_rate=nan", "--learning_rate=nan", "above 0"),
    ("--seed=-1", "--seed=-1", "from 0"),
    ("--devices=two", "--devices=two", "--devices=8"),
    ("--devices=3", "--devices=3", "--workers=8", "--devices=1"),
    ("--devices=64 --workers=64", "--devices=64", "shows 8"),
    ("--method=rand_dp_oadam --topology=ring", "rand_dp_oadam", "random_ring"),
    (
        "--method=decentralized_extra_step --topology=one_peer_exponential",
        "--topology=one_peer_exponential",
        "--topology=ring",
    ),
    ("--dataset=mnist --data_dir=nowhere", "--data_dir=nowhere", "tfds build mnist"),
    ("--workers=1501", "--workers=1501", "1500"),
    ("--batch_size=188", "--batch_size=188", "--batch_size=187"),
    ("--workdir=file", "--workdir", "file is a file"),
    ("--workdir=file/a", "--workdir", "file is a file"),
    ("false", "unexpected 'false'", "--name=value"),
]


@pytest.mark.parametrize("case", BAD, ids=[case[0] for case in BAD])
def test_bad_flags_take_one_line(call, tmp_path, monkeypatch, case):
    def too_late(*args, **kwargs):
        raise AssertionError("work has begun")

    monkeypatch.setattr(scores, "evaluator", too_late)
    monkeypatch.setattr(train, "train", too_late)
    (tmp_path / "file").write_text("a file")
    arguments, *expected = case
    began = time.monotonic()
    code, out, err = call(*arguments.split())
    assert time.monotonic() - began < 10
    assert code == 2
    assert out == ""
    assert err.startswith("train_gan.py: ")
    assert err.count("\n") == 1
    for part in expected:
        assert part in err
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_what_a_method_does_not_read_is_noted(script, capsys):
    with pytest.raises(script.BadFlagError, match="--seed"):
        script.run(method="cp_oadam", topology="ring", sync_every=3, seed=-1)
    out = capsys.readouterr().out
    assert out.splitlines() == [
        "note: --topology has no effect with --method=cp_oadam",
        "note: --sync_every has no effect with --method=cp_oadam",
    ]


@pytest.mark.parametrize(
    ("method", "topology"),
    [
        ("dposg", "torus"),
        ("dposg", "random_ring"),
        ("cp_oadam", None),
        ("dp_oadam", "one_peer_exponential"),
        ("rand_dp_oadam", None),
        ("extra_step", None),
        ("decentralized_extra_step", "star"),
        ("extra_step_local_sgd", None),
    ],
)
def test_every_method_reaches_the_loop(
    script, monkeypatch, tmp_path, capsys, method, topology
):
    """With the transformation that belongs to it, and a description to resume by."""
    calls = []

    class ReachedError(Exception):
        pass

    def reached(*args, **kwargs):
        calls.append((args, kwargs))
        raise ReachedError

    monkeypatch.setattr(train, "train", reached)
    with pytest.raises(ReachedError):
        script.run(
            method=method,
            topology=topology,
            dataset="mixture_ring",
            workdir=str(tmp_path / "run"),
        )
    args, kwargs = calls[0]
    assert hasattr(args[2], "update")
    assert kwargs["description"]["method"] == method
    rate = 2e-3 if "oadam" in method else 0.02 if method == "dposg" else 0.01
    assert kwargs["description"]["learning_rate"] == rate
    out = capsys.readouterr().out
    assert method in out
    assert "8 workers by vmap on 1 cpu device\n" in out
    assert re.search(r"total( +\d+){8} +50000", out)
    if topology:
        assert f"topology {topology}, gap 0." in out or "gap 1" in out


def test_trains_resumes_and_refuses_another_run(call, tmp_path):
    run = [*SMALL, "--workdir=run", "--eval_every=20"]
    code, out, err = call(*run, "--steps=20", "--resume")
    assert code == 0
    assert "nothing to resume in run: starting at step 0" in out
    assert "step 20: Frechet distance" in out
    assert "step 20/20" in err
    files = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for change, message in [
        ([], "run holds another run"),
        (["--resume", "--seed=1"], "seed is 1 now and 0 there"),
        (["--resume", "--learning_rate=0.5"], "learning_rate is 0.5 now and 0.002"),
        (["--resume", "--steps=10"], "steps must be at least 20"),
    ]:
        code, _, err = call(*run, *change)
        assert code == 2
        assert err.startswith("train_gan.py: --workdir: ")
        assert err.count("\n") == 1
        assert message in err
        assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == files
    # Devices do not make a run another one.
    code, out, _ = call(*run, "--resume", "--steps=24", "--devices=2")
    assert code == 0
    assert "2 workers by shard_map on 2 cpu devices" in out
    assert "step 24: Frechet distance" in out


def test_divergence_takes_one_line(call, tmp_path):
    code, _, err = call(
        *SMALL, "--learning_rate=1e30", "--steps=50", "--method=extra_step"
    )
    assert code == 1
    last = err.splitlines()[-1]
    assert re.match(r"train_gan.py: training diverged: .* at step \d+; the last", last)
    kept = tmp_path / "runs" / "mixture_ring-extra_step" / "checkpoints" / "0"
    assert str(kept) in last
    assert kept.is_dir()


# ------------------------------------------------------------------ as a program


def start(*arguments, cwd):
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_as_a_program_sigterm_leaves_a_run_that_goes_on(call, tmp_path):
    run = [*SMALL, "--workdir=stopped", "--eval_every=500"]
    process = start(*run, "--steps=1000000", cwd=tmp_path)
    metrics = tmp_path / "stopped" / "metrics.jsonl"
    try:
        deadline = time.monotonic() + 120
        while not metrics.exists() or len(metrics.read_text().splitlines()) < 2:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "Traceback" not in err
    step = int(re.search(r"stopped by SIGTERM at step (\d+), which is saved", out)[1])
    assert f"{SCRIPT} " in out.splitlines()[-1]
    assert out.splitlines()[-1].endswith("--steps=1000000 --resume")
    with checkpoint.Checkpoints(tmp_path / "stopped") as checkpoints:
        assert checkpoints.latest == step >= 50

    end = f"--steps={50 * (step // 50 + 1)}"
    assert call(*run, end, "--resume")[0] == 0
    whole = [*SMALL, "--workdir=whole", "--eval_every=500"]
    assert call(*whole, end)[0] == 0
    one, other = (
        list(
            map(
                json.loads,
                (tmp_path / name / "metrics.jsonl").read_text().split("\n")[:-1],
            )
        )
        for name in ("stopped", "whole")
    )
    assert [r["step"] for r in one] == [r["step"] for r in other]
    numbers = ("loss_generator", "loss_discriminator", "bits_up", "frechet_distance")
    for a, b in zip(one[1:], other[1:], strict=True):
        assert a.keys() == b.keys()
        # The program sees one device, the tests eight: equal to rounding.
        for name in a.keys() & set(numbers):
            assert a[name] == pytest.approx(b[name], rel=1e-3)


def test_as_a_program_it_says_what_flags_there_are(tmp_path):
    process = start("--helpshort", cwd=tmp_path)
    out, _ = process.communicate(timeout=60)
    assert "Train a GAN on several workers" in out
    for name in (
        "method",
        "topology",
        "data_dir",
        "partition",
        "sync_every",
        "devices",
    ):
        assert f"--{name}: " in out


def test_as_a_program_an_unknown_flag_takes_one_line(tmp_path):
    process = start("--mehod=dposg", cwd=tmp_path)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err == (
        "train_gan.py: Unknown command line flag 'mehod'. Did you mean: method ?\n"
    )
