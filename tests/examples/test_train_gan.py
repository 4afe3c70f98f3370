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
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags

from jaxsp.gan import fl_gan, models, scores
from jaxsp.gan.data import official, partition
from jaxsp.gan.training import checkpoint, cost, loop

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "train_gan.py"
# The smallest run there is: points need no classifier for their scores.
SMALL = ["--dataset=mixture_ring", "--workers=2", "--batch_size=4"]


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(SCRIPT.parent))  # as Python does for a script
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


class ReachedError(Exception):
    """The training loop has been called, which is all a test wants to know."""


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
    ("--method=md_gan --workers=1 --swap_epochs=2", "--swap_epochs=2", "no other"),
    ("--learning_rate=0", "--learning_rate=0", "above 0", "0.002"),
    ("--learning_rate=nan", "--learning_rate=nan", "above 0"),
    ("--seed=-1", "--seed=-1", "from 0"),
    ("--devices=two", "--devices=two", "--devices=8"),
    ("--devices=3", "--devices=3", "--workers=8", "1, 2, 4 or 8", "--workers=6 or 9"),
    ("--devices=64 --workers=64", "--devices=64", "shows 8"),
    ("--method=rand_dp_oadam --topology=ring", "rand_dp_oadam", "random_ring"),
    (
        "--method=decentralized_extra_step --topology=one_peer_exponential",
        "--topology=one_peer_exponential",
        "--topology=ring",
    ),
    ("--dataset=celeb_a --data_dir=nowhere", "--data_dir=nowhere", "tfds build"),
    (
        "--dataset=mnist --data_dir=nowhere --dry_run",
        "--dry_run",
        "mnist is not prepared",
    ),
    ("--alpha=0.3 --partition=iid", "--alpha=0.3", "--partition=iid", "one of them"),
    ("--alpha=0", "--alpha=0", "above 0"),
    ("--conditional --loss=hinge", "--loss=hinge", "--loss=acgan"),
    ("--dtype=float16", "--dtype=float16", "did you mean bfloat16?"),
    ("--model=dcgn", "--model=dcgn", "did you mean dcgan?", "sagan"),
    ("--model=mlp:wide", "--model=mlp:wide", "mlp:64"),
    ("--model=md_gan_cnn", "--model=md_gan_cnn", "28"),
    ("--inception=nowhere.npz", "--inception=nowhere.npz", "Download"),
    (
        "--inception=nowhere.npz --dataset=mixture_ring",
        "--inception=nowhere.npz",
        "leave the flag out",
    ),
    (
        "--method=dqgan --compressor=quantise",
        "--compressor=quantise",
        "did you mean quantize?",
        "top_k:0.1",
    ),
    ("--method=dqgan --compressor=top_k", "--compressor=top_k", "top_k:0.1"),
    ("--method=dqgan --compressor=top_k:2", "--compressor=top_k:2", "fraction"),
    ("--method=dqgan --compressor=sign:2", "--compressor=sign:2", "after a colon"),
    ("--method=dqgan --down=dithering:x", "--down=dithering:x", "dithering:8"),
    ("--method=dqgan --bits=9", "--bits=9", "from 2 to 8"),
    (
        "--method=masha1 --compressor=top_k:0.1",
        "--compressor=top_k:0.1",
        "unbiased",
        "rand_k:0.1",
        "masha2",
    ),
    ("--method=masha2 --refresh=1.5", "--refresh=1.5", "at most 1"),
    ("--method=md_gan --batches_k=9", "--batches_k=9", "from 1 to 8"),
    ("--method=md_gan --batches_k=lg", "--batches_k=lg", "write log"),
    ("--method=md_gan --swap_epochs=-1", "--swap_epochs=-1", "at least 0"),
    ("--method=md_gan --moments=travl", "--moments=travl", "did you mean travel?"),
    ("--method=md_gan --crash_every=0", "--crash_every=0", "at least 1"),
    ("--method=fl_gan --participation=0", "--participation=0", "at most 1"),
    (
        "--method=fl_gan --sync_every=3 --sync_epochs=1",
        "--sync_every=3",
        "--sync_epochs=1",
    ),
    ("--method=fl_gan --disc_steps=0", "--disc_steps=0", "at least 1"),
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
    monkeypatch.setattr(official, "read", too_late)
    monkeypatch.setattr(loop, "train", too_late)
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


@pytest.mark.parametrize(
    ("count", "devices", "method", "found"),
    [
        (8, "auto", "dposg", 8),
        (16, "8", "dposg", 8),
        (7, "auto", "md_gan", 7),
        (14, "8", "md_gan", 7),
        (6, "auto", "dposg", "2 processes with 8 devices: .* write --workers=8.$"),
        (8, "auto", "md_gan", "7 devices beside .* server: .* write --workers=7 or 14"),
        (8, "4", "dposg", "--devices=4: in 2 processes all 8 devices are used"),
        (1, "auto", "standalone", "start one process, and not 2"),
    ],
)
def test_in_many_processes_workers_are_on_all_devices(
    script, monkeypatch, count, devices, method, found
):
    class Device:
        def __init__(self, process_index):
            self.process_index = process_index

    two = types.SimpleNamespace(
        process_count=lambda: 2,
        devices=lambda: [Device(0), *(Device(1) for _ in range(7))],
    )
    read = script.train_gan_flags
    monkeypatch.setattr(read, "jax", two)
    monkeypatch.setattr(read.distributed, "is_alone", lambda: False)
    monkeypatch.setattr(read.jaxsp, "Workers", lambda count, devices: (count, devices))
    if isinstance(found, str):
        with pytest.raises(script.BadFlagError, match=found):
            read.read_workers(count, devices, method)
        return
    given, on = read.read_workers(count, devices, method)
    assert (given, len(on)) == (count, found)
    assert (on[0].process_index == 0) == (method != "md_gan")


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

    def reached(*args, **kwargs):
        calls.append((args, kwargs))
        raise ReachedError

    monkeypatch.setattr(loop, "train", reached)
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
    code, out, _ = call(*run, "--steps=3", "--devices=2", "--workers=4", "--dry_run")
    assert code == 0
    assert "4 workers by blocks on 2 cpu devices" in out
    # Nor do workers, but that is said.
    code, out, _ = call(*run, "--resume", "--steps=26", "--workers=3")
    assert code == 0
    assert "--workers=3, and this run had 2 until step 24: " in out
    assert "step 26: Frechet distance" in out
    records = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(r)["step"] for r in records[-3:]] == [24, 24, 26]


FEW = {"dataset": "mixture_ring", "model": "mlp:4", "workers": 3, "batch_size": 4}
# With more than the defaults, where that decides when something travels.
METHODS = {
    "extra_step": {},
    "decentralized_extra_step": {"topology": "path"},
    "dposg": {"topology": "star"},
    "cp_oadam": {},
    "dp_oadam": {"topology": "one_peer_exponential", "workers": 4},
    "rand_dp_oadam": {},
    "extra_step_local_sgd": {"sync_every": 2},
    "local_extra_adam": {"sync_epochs": 1e-4},
    "fl_gan": {"sync_every": 2, "participation": 0.5},
    "md_gan": {"batches_k": "2", "swap_epochs": 1e-4, "moments": "travel"},
    "standalone": {},
    "dqgan": {"compressor": "low_rank:1", "down": "natural"},
    "dqgan_adam": {"bits": 4},
    "cp_oadam_gq": {"compressor": "perm_k"},
    "masha1": {"refresh": 0.5, "down": "dithering:2"},
    "masha2": {"compressor": "ternary"},
    "pp_masha1": {},
    "qsgda": {"compressor": "sign"},
    "diana_sgda": {"compressor": "natural"},
    "ef21_sgda": {},
}


def test_these_are_the_methods(script):
    assert set(METHODS) == set(script.METHODS)


def few_steps(monkeypatch):
    """Training of which the steps are done, and nothing else that `train` does."""

    def trained(gan, losses, method, workers, dataset, parts, config, **kwargs):
        program = loop.make_program(method, gan, losses, workers, config)
        state = program.init(jax.random.key(0))
        shares, sizes = partition.stack(dataset.train, parts)
        for _ in range(config.steps):
            key = jax.random.key(1)
            state, values = program.step(state, shares, sizes, key, 1)
        assert np.isfinite(values).all()
        bits_up, bits_down = program.bits(state)
        record = {"bits_up": bits_up, "bits_down": bits_down, "seconds": 0.0}
        record |= {"step": config.steps, "frechet_distance": 1.0}
        return loop.Result(state, None, [record], config.steps, None, ())

    floor = types.SimpleNamespace(floor={"frechet_distance": 0.0})
    monkeypatch.setattr(loop, "train", trained)
    monkeypatch.setattr(scores, "evaluator", lambda *args, **kwargs: floor)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_and_sends_what_its_plan_says(
    script, monkeypatch, capsys, method
):
    few_steps(monkeypatch)
    tiny = models.mlp((2,), latent_size=2, width=2, depth=1)
    monkeypatch.setattr(models, "parse", lambda *args: tiny)
    plans = []
    monkeypatch.setattr(cost, "_cost", lambda role: cost.Cost(1.0, 1))  # not compiled
    monkeypatch.setattr(cost, "format", lambda found: plans.append(found) or "")
    given = {**FEW, "method": method, "steps": 3, "loss": "hinge", **METHODS[method]}
    assert script.run(**given, dry_run=True) is None
    last = script.run(**given).history[-1]
    sent = plans[0].traffic.get("worker", (None, None))
    assert sent == (last["bits_up"], last["bits_down"])
    assert (sent == (None, None)) == (method == "standalone")


def test_classes_and_half_precision_reach_the_networks(script, monkeypatch, capsys):
    seen = []

    def trained(*args, **kwargs):
        seen.append((args, kwargs))
        raise ReachedError

    monkeypatch.setattr(loop, "train", trained)
    for given, classes in [({"conditional": True}, 8), ({"loss": "hinge"}, 0)]:
        with pytest.raises(ReachedError):
            script.run(**FEW, **given, dtype="bfloat16", method="md_gan")
        (gan, *_), kwargs = seen[-1]
        assert gan.num_classes == classes
        assert gan.generator.dtype == jnp.bfloat16
        assert kwargs["description"]["conditional"] == bool(classes)
        assert kwargs["description"]["model"] == "mlp:4"


def test_one_worker_more_is_lost_every_so_many_steps(script, monkeypatch, capsys):
    seen = []

    def trained(*args, **kwargs):
        seen.append(args[2])
        raise ReachedError

    monkeypatch.setattr(loop, "train", trained)
    with pytest.raises(ReachedError):
        script.run(**FEW, method="md_gan", crash_every=10, batches_k="log")
    assert seen[0].batches_k == 2  # log2(3), rounded up
    assert seen[0].swap_every == round(50_000 / 3 / 4)
    alive = [seen[0].living(step, 3).sum() for step in (0, 9, 10, 19, 20, 500)]
    assert alive == [3, 3, 2, 2, 1, 1]


def test_fl_gan_counts_in_epochs_and_weighs_by_shares(script, monkeypatch, capsys):
    seen = []

    def made(*args, **kwargs):
        seen.append((args, kwargs))
        if len(seen) == 2:  # once to see what is wrong, once with the data
            raise ReachedError

    monkeypatch.setattr(fl_gan, "fl_gan", made)
    with pytest.raises(ReachedError):
        script.run(**FEW, method="fl_gan", alpha=0.3, participation=0.6, sync_epochs=2)
    (*_, every), kwargs = seen[-1]
    assert every == round(2 * 50_000 / 3 / 4)
    assert kwargs["participants"] == 2
    assert sum(kwargs["weights"]) == 50_000
    assert max(kwargs["weights"]) > 1.2 * min(kwargs["weights"])


def test_standalone_has_one_worker_with_all_data(script, monkeypatch, capsys):
    def trained(*args, **kwargs):
        raise ReachedError

    monkeypatch.setattr(loop, "train", trained)
    with pytest.raises(ReachedError):
        script.run(**FEW, method="standalone", disc_steps=2)
    out = capsys.readouterr().out
    assert "note: --method=standalone has one worker, which holds all data" in out
    assert "1 worker by vmap" in out
    assert re.search(r"total( +\d+){8} +50000", out)


def test_a_dry_run_tells_and_leaves_nothing(call, tmp_path):
    code, out, err = call(*SMALL, "--dry_run", "--steps=20", "--method=md_gan")
    assert (code, err) == (0, "")
    assert list(tmp_path.iterdir()) == []
    lines = {re.split("  +", line)[0]: line for line in out.splitlines()}
    down, up = 2 * 20 * 2 * 4 * 2 * 32, 20 * 2 * 4 * 2 * 32  # server, both workers
    assert lines["sent in the run"].split()[-2:] == [f"{down / 8000:.3g}", "kB"]
    assert f"{down:,}" in out
    assert f"{up:,}" in out
    assert "FLOP" in lines["operations a step"]


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
        "compressor",
        "batches_k",
        "[no]dry_run",
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
