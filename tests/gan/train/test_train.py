"""The command that trains: what it says to bad flags, and how it ends."""

import dataclasses
import functools
import json
import math
import os
import pathlib
import re
import shlex
import subprocess
import sys
import time
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsp
from jaxsp import distributed
from jaxsp.gan import command, data, fl_gan, md_gan, models, scores, step, train
from jaxsp.gan.data import official, partition
from jaxsp.gan.md_gan import run as md_gan_run
from jaxsp.gan.models.gan import initializer
from jaxsp.gan.train import __main__ as script
from jaxsp.gan.train import experiment, methods
from jaxsp.gan.training import cost, loop, plots, records

ROOT = pathlib.Path(__file__).parents[3]
# The smallest run there is: points need no classifier for their scores.
SMALL = ["--dataset=mixture_ring", "--workers=2", "--batch_size=4"]


@pytest.fixture(autouse=True, scope="module")
def drawn_alike():
    """What draws the parameters of equal networks is compiled once for all runs."""
    once = functools.cache(initializer)
    with (
        mock.patch.object(step, "initializer", once),
        mock.patch.object(md_gan_run, "initializer", once),
    ):
        yield


@pytest.fixture
def no_pictures(monkeypatch):
    for module, name in (
        (plots, "plot_samples"),
        (plots, "plot_curves"),
        (partition, "plot"),
    ):
        monkeypatch.setattr(module, name, lambda *args: None)


class ReachedError(Exception):
    """The training loop has been called, which is all a test wants to know."""


BAD = [
    ("--method=dposgg", "--method=dposgg", "did you mean dposg?", "extra_step"),
    ("--topology=rng", "--topology=rng", "did you mean ring?", "erdos_renyi"),
    ("--dataset=minst", "--dataset=minst", "did you mean mnist?", "mixture_grid"),
    ("--loss=hing", "--loss=hing", "did you mean hinge?", "wasserstein"),
    ("--partition=dirichlt:1", "--partition=dirichlt:1", "did you mean 'dirichlet'"),
    ("--partition=dirichlet:-1", "--partition=dirichlet:-1", "positive"),
    ("--workers=7 --topology=torus", "--topology=torus --workers=7", "rows x", "ring"),
    ("--topology=torus:3x3", "--topology=torus:3x3 --workers=8", "torus:2x4"),
    ("--topology=torus:3", "--topology=torus:3", "torus:2x4"),
    ("--topology=ring:3", "--topology=ring:3", "nothing after a colon"),
    ("--topology=erdos_renyi:2", "--topology=erdos_renyi:2", "at most 1"),
    ("--topology=erdos_renyi:x", "--topology=erdos_renyi:x", "such as 0.5"),
    ("--workers=0", "--workers=0", "at least 1"),
    ("--method=md_gan --workers=1 --swap_epochs=2", "--swap_epochs=2", "no other"),
    ("--learning_rate=0", "--learning_rate=0", "1e-12"),
    ("--learning_rate=nan", "--learning_rate=nan", "finite"),
    ("--method=md_gan --swap_epochs=inf", "--swap_epochs=inf", "finite"),
    ("--method=pp_masha1 --participation=nan", "--participation=nan", "at most 1"),
    ("--heartbeat_timeout=nan", "--heartbeat_timeout=nan", "at least 1"),
    ("--method=dposg:x", "--method=dposg:x", "did you mean dposg?"),
    ("--devices=3", "--workers=8 --devices=3", "--workers=9, or --devices=1 or 2"),
    ("--devices=64 --workers=64", "--devices=64", "there are 8"),
    ("--method=rand_dp_oadam --topology=ring", "rand_dp_oadam", "random_ring"),
    (
        "--method=decentralized_extra_step --topology=one_peer_exponential",
        "--topology=one_peer_exponential",
        "one fixed mixing matrix",
    ),
    ("--dataset=celeb_a --data_dir=nowhere", "--data_dir=nowhere", "tfds build"),
    ("--dtype=float16", "--dtype=float16", "did you mean bfloat16?"),
    ("--model=dcgn", "--model=dcgn", "did you mean dcgan?", "sagan"),
    ("--model=mlp:wide", "--model=mlp:wide", "dcgan:64"),
    ("--model=md_gan_cnn", "--model=md_gan_cnn", "28"),
    ("--inception=nowhere.npz", "--inception=nowhere.npz", "Download"),
    (
        "--method=dqgan --compressor=quantise",
        "--compressor=quantise",
        "did you mean quantize?",
        "top_k",
    ),
    ("--method=dqgan --compressor=top_k:2", "--compressor=top_k:2", "fraction"),
    ("--method=dqgan --compressor=sign:2", "--compressor=sign:2", "after a colon"),
    ("--method=dqgan --down=dithering:x", "--down=dithering:x", "such as 8"),
    ("--method=dqgan --compressor=quantize:9", "quantize:9", "at most 8"),
    (
        "--method=masha1 --compressor=top_k:0.1",
        "--method=masha1 --compressor=top_k:0.1",
        "unbiased",
        "rand_k",
        "masha2",
    ),
    ("--method=md_gan --batches_k=9", "--batches_k=9", "from 1 to 8"),
    ("--method=md_gan --batches_k=lg", "--batches_k=lg", "write log"),
    ("--method=md_gan --moments=travl", "--moments=travl", "did you mean travel?"),
    ("--method=fl_gan --sync_every=3 --sync_epochs=1", "--sync_every=3", "one of"),
    ("--method=md_gan --skip_not_finite=3", "--skip_not_finite=3", "no transf"),
    ("--workers=1501", "--workers=1501", "1500"),
    ("--batch_size=188", "--batch_size=188", "--batch_size=187"),
    ("--workdir=file", "--workdir", "file is a file"),
    ("--workdir=file/a", "--workdir", "file is a file"),
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
    code, out, err = call(script, *arguments.split())
    assert time.monotonic() - began < 10
    assert code == 2
    assert out == ""
    assert err.startswith("jaxsp.gan.train: ")
    assert err.count("\n") == 1
    for part in expected:
        assert part in err
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "given", [{"workers": 0}, {"learning_rate": float("nan")}, {"method": "dpsog"}]
)
def test_flags_from_python_are_checked_too(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    (name,) = given
    with pytest.raises(command.BadFlagError, match=f"^--{name}="):
        train.run(train.Config(**given))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("count", "devices", "method", "found"),
    [
        (8, None, "dposg", 8),
        (16, 8, "dposg", 8),
        (7, None, "md_gan", 7),
        (14, 8, "md_gan", 7),
        (8, 4, "dposg", "--devices=4: there are 8"),
    ],
)
def test_in_many_processes_workers_are_on_all_devices(
    monkeypatch, count, devices, method, found
):
    class Device:
        platform = "cpu"

        def __init__(self, process_index):
            self.process_index = process_index

    all_devices = [Device(0), *(Device(1) for _ in range(7))]
    monkeypatch.setattr(jax, "devices", lambda: all_devices)
    monkeypatch.setattr(distributed, "is_alone", lambda: False)
    monkeypatch.setattr(jaxsp, "Workers", lambda *arguments: arguments)
    config = train.Config(workers=count, devices=devices, method=method)
    if isinstance(found, str):
        with pytest.raises(command.BadFlagError, match=found):
            experiment._workers(config)
        return
    given, on = experiment._workers(config)
    assert (given, len(on)) == (count, found)
    assert (on[0].process_index == 0) == (method != "md_gan")


def test_what_a_method_does_not_read_is_noted(capsys):
    config = train.Config(method="cp_oadam", topology="ring", sync_every=3)
    assert train.read(config)[0] == dataclasses.replace(
        config,
        topology=None,
        sync_every=None,
        learning_rate=2e-3,
        compressor="none",
        down="none",
        penalty=1.0,
        steps=2_000,
        batch_size=16,
        b1=0.5,
        b2=0.9,
    )
    assert sorted(capsys.readouterr().out.splitlines()) == [
        "note: --sync_every has no effect with --method=cp_oadam",
        "note: --topology has no effect with --method=cp_oadam",
    ]


@pytest.mark.parametrize("method", methods.METHODS)
def test_methods_of_plain_steps_name_their_adam_form(method, capsys):
    plain = "b1" not in methods.METHODS[method]
    train.read(train.Config(method=method, workers=1 if method == "standalone" else 8))
    out = capsys.readouterr().out
    assert ("steps of Adam" in out) == plain
    if plain:
        named = re.search(r"--method=(\w+) makes steps of Adam", out)
        assert named is not None
        assert "b1" in methods.METHODS[named[1]]


@pytest.mark.parametrize(("method", "calls"), [("cp_oadam", 1), ("md_gan", 3)])
def test_the_learning_rate_warms_up_and_falls_to_zero(method, calls):
    """Of a discriminator that makes three steps, by the steps of the generator."""
    given = dict(method=method, learning_rate=0.4, warmup_steps=4, decay_steps=12)
    turns = {"disc_steps": 3} if method == "md_gan" else {}
    config = train.read(train.Config(**given, **turns, b2=0.0, b1=0.0))[0]
    workers = jaxsp.Workers(8, jax.devices()[:1])
    made = methods.make(config, workers, np.full(8, 100), 10)
    rate = [0.1, 0.2, 0.3, 0.4]
    rate += [0.2 * (1 + math.cos(math.pi * t / 8)) for t in range(10)]
    if method == "md_gan":
        made = made.discriminator_optimizer
        rate = np.repeat(rate, 3)
        update = made.update
    else:
        update = workers.map(made.update)
    z = jnp.zeros((8, 1))
    state = made.init(z) if method == "md_gan" else workers.map(made.init)(z)
    sizes = []
    for _ in range(10 * calls):
        u, state = update(jnp.ones_like(z), state, z)
        sizes.append(-float(u[0, 0]))
    expected = np.array(rate[: 10 * calls])
    if method == "cp_oadam":  # twice the step, less the step before
        expected = np.concatenate([[2], np.ones(9)]) * expected
    np.testing.assert_allclose(sizes, expected, rtol=1e-5)


def test_defaults_follow_the_data(reached):
    """Points take other rates, batches and networks than images."""
    *_, points = reached(dataset="mixture_grid", method="md_gan", loss="acgan")
    *_, images = reached(dataset="digits", method="md_gan")
    (seen, also) = (config.description for config in (points, images))
    assert (points.steps, images.steps) == (30_000, 2_000)
    names = "learning_rate", "batch_size", "penalty", "latent_size", "decay_steps"
    assert [seen[name] for name in names] == [5e-3, 64, 0.05, 4 + 25, 30_000]
    assert [also.get(name) for name in names] == [1e-3, 16, 1.0, None, None]
    assert points.eval_samples == 10_000
    assert images.eval_samples == 297  # as many as there are to test


@pytest.fixture
def reached(monkeypatch):
    """Run a configuration up to the training loop; what that is called with."""

    def reach(**given):
        calls = []

        def trained(*args, **kwargs):
            calls.append(args)
            raise ReachedError

        monkeypatch.setattr(loop, "train", trained)
        with pytest.raises(ReachedError):
            train.run(train.Config(**given))
        return calls[0]

    return reach


def test_trains_resumes_and_refuses_another_run(call, tmp_path):
    run = [*SMALL, "--workdir=run", "--eval_every=20", "--model=mlp:4"]
    code, out, err = call(script, *run, "--steps=20", "--resume")
    assert code == 0
    assert "nothing to resume in run: starting at step 0" in out
    assert "step 20: Frechet distance" in out
    assert "step 20/20" in err

    def contents():  # but for who has looked last
        files = (p for p in tmp_path.rglob("*") if p.is_file() and p.name != ".lock")
        return {p: p.read_bytes() for p in files}

    files = contents()
    for change, message in [
        ([], "run holds another run"),
        (["--resume", "--seed=1"], "seed is 1 now and 0 there"),
        (["--resume", "--learning_rate=0.5"], "learning_rate is 0.5 now and 0.005"),
        (["--resume", "--steps=10"], "steps must be at least 20"),
    ]:
        code, _, err = call(script, *run, *change)
        assert code == 2
        assert err.startswith("jaxsp.gan.train: --workdir: ")
        assert err.count("\n") == 1
        assert message in err
        assert contents() == files
    # Devices do not make a run another one.
    code, out, _ = call(script, *run, "--resume", "--steps=24", "--devices=2")
    assert code == 0
    assert "2 workers by shard_map on 2 cpu devices" in out
    assert "step 24: Frechet distance" in out
    more = ["--steps=3", "--devices=2", "--workers=4", "--dry_run"]
    code, out, _ = call(script, *run, *more)
    assert code == 0
    assert "4 workers by blocks on 2 cpu devices" in out
    # Nor do workers.
    code, out, _ = call(script, *run, "--resume", "--steps=26", "--workers=3")
    assert code == 0
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
    "tracked_dp_oadam": {"topology": "path", "rounds": 2},
    "extra_step_local_sgd": {"sync_every": 2, "compressor": "quantize:4"},
    "local_extra_adam": {"sync_epochs": 1e-4, "outer_momentum": 0.5},
    "fl_gan": {"sync_every": 2, "participation": 0.5},
    "md_gan": {"batches_k": "2", "swap_epochs": 1e-4, "moments": "travel"},
    "standalone": {},
    "dqgan": {"compressor": "low_rank:1", "down": "natural"},
    "dqgan_adam": {"compressor": "quantize:4"},
    "cp_oadam_gq": {"compressor": "perm_k"},
    "masha1": {"refresh": 0.5, "down": "dithering:2"},
    "masha2": {"compressor": "ternary"},
    "pp_masha1": {},
    "vr_masha1": {"refresh": 0.5, "compressor": "quantize:8"},
    "vr_masha2": {},
    "compressed_extragradient": {"second_sample": "same"},
    "error_feedback_extragradient": {"compressor": "sign"},
    "qsgda": {"compressor": "sign"},
    "diana_sgda": {"compressor": "natural"},
    "ef21_sgda": {},
}


def test_these_are_the_methods():
    assert set(METHODS) == set(methods.METHODS)


def few_steps(monkeypatch):
    """Training of which the steps are done, and nothing else that `train` does.

    Returns the descriptions to resume by.
    """
    described = []

    def trained(program, dataset, parts, config, **kwargs):
        state = program.init(jax.random.key(0))
        shares, sizes = partition.stack(dataset.train, parts)
        for _ in range(config.steps):
            key = jax.random.key(1)
            state, values = program.step(state, shares, sizes, key, 1)
        assert np.isfinite(values).all()
        described.append(config.description)
        bits_up, bits_down = program.bits(state)
        record = {"bits_up": bits_up, "bits_down": bits_down, "seconds": 0.0}
        record |= {"step": config.steps, "frechet_distance": 1.0}
        return loop.Result(state, None, [record], config.steps, None, ())

    floor = types.SimpleNamespace(floor={"frechet_distance": 0.0})
    monkeypatch.setattr(loop, "train", trained)
    monkeypatch.setattr(scores, "evaluator", lambda *args, **kwargs: floor)
    return described


@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_and_sends_what_its_plan_says(monkeypatch, capsys, method):
    described = few_steps(monkeypatch)
    tiny = models.mlp((2,), latent_size=2, width=2, depth=1)
    monkeypatch.setattr(models, "parse", lambda *args: tiny)
    plans = []
    free = cost.StepCost(1.0, 1)
    monkeypatch.setattr(cost, "_step_cost", lambda role: free)  # not compiled
    monkeypatch.setattr(cost, "format", lambda found: plans.append(found) or "")
    given = {**FEW, "method": method, "steps": 3, "loss": "hinge", **METHODS[method]}
    config = train.Config(**given)
    assert train.run(dataclasses.replace(config, dry_run=True)) is None
    last = train.run(config).history[-1]
    sent = plans[0].traffic.get("worker", (None, None))
    assert sent == (last["bits_up"], last["bits_down"])
    assert (sent == (None, None)) == (method == "standalone")
    out = capsys.readouterr().out
    assert described[0]["method"] == method
    assert described[0]["learning_rate"] == 0.005
    if method != "standalone":
        count = given["workers"]
        assert f"{count} workers by vmap on 1 cpu device\n" in out
        assert re.search(r"total( +\d+){8} +50000", out)
    if "topology" in described[0]:
        assert re.search(rf"topology {described[0]['topology']}, gap (0\.|1)", out)


@pytest.mark.parametrize(("loss", "classes"), [("acgan", 8), ("hinge", 0)])
def test_classes_and_half_precision_reach_the_networks(reached, loss, classes):
    args = reached(**FEW, loss=loss, dtype="bfloat16", method="md_gan")
    assert args[0].gan.num_classes == classes
    assert args[0].gan.generator.dtype == jnp.bfloat16
    assert args[3].description["model"] == "mlp:4"


def test_one_worker_more_is_lost_every_so_many_steps(reached, monkeypatch):
    seen = []
    monkeypatch.setattr(
        md_gan.MDGan, "program", lambda self, *_, **__: seen.append(self)
    )
    reached(**FEW, method="md_gan", crash_every=10, batches_k="log")
    method = seen[-1]
    assert method.batches_k == 2  # log2(3), rounded up
    assert method.swap_every == round(50_000 / 3 / 4)
    alive = [method.living(step, 3).sum() for step in (0, 9, 10, 19, 20, 500)]
    assert alive == [3, 3, 2, 2, 1, 1]


def test_fl_gan_counts_in_epochs_and_weighs_by_shares(reached, monkeypatch):
    seen = []

    @functools.wraps(fl_gan.fl_gan)
    def made(**given):
        seen.append(given)
        return optax.sgd(0.1)

    monkeypatch.setitem(methods.BUILDERS, "fl_gan", made)
    parts = {"partition": "dirichlet:0.3", "participation": 0.6}
    reached(**FEW, **parts, method="fl_gan", sync_epochs=2.0)
    given = seen[-1]
    assert given["sync_every"] == round(2 * 50_000 / 3 / 4)
    assert given["participants"] == 2
    assert sum(given["weights"]) == 50_000
    assert max(given["weights"]) > 1.2 * min(given["weights"])


def test_standalone_has_one_worker_with_all_data(reached, capsys):
    reached(**FEW, method="standalone", disc_steps=2)
    out = capsys.readouterr().out
    assert "note: --method=standalone has one worker, which holds all data" in out
    assert "1 worker by vmap" in out
    assert re.search(r"total( +\d+){8} +50000", out)


def test_a_dry_run_tells_and_leaves_nothing(call, tmp_path):
    code, out, err = call(script, *SMALL, "--dry_run", "--steps=20", "--method=md_gan")
    assert (code, err) == (0, "")
    assert list(tmp_path.iterdir()) == []
    lines = {re.split("  +", line)[0]: line for line in out.splitlines()}
    down, up = 2 * 20 * 2 * 4 * 2 * 32, 20 * 2 * 4 * 2 * 32  # server, both workers
    assert lines["sent in the run"].split()[-2:] == [f"{down / 8000:.3g}", "kB"]
    assert f"{down:,}" in out
    assert f"{up:,}" in out
    assert "FLOP" in lines["operations a step"]


@pytest.mark.parametrize("split", ["iid", "by_label", "dirichlet:0.1"])
def test_a_dry_run_needs_no_data(call, tmp_path, monkeypatch, split):
    monkeypatch.setattr(data.datasets, "_images", None)  # would read or download
    few = ["--dataset=mnist", "--model=mlp:4", f"--partition={split}", "--dry_run"]
    code, out, err = call(script, *few, "--workers=2", "--data_dir=nowhere")
    assert (code, err) == (0, "")
    assert "an epoch             1,875 steps" in out  # 60,000 / 2 / 16
    noted = "note: mnist has not been read here, so shares are those of equally many"
    assert (noted in out) == (split != "iid")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seed", range(3))
def test_every_share_holds_a_batch(reached, seed):
    given = dict(dataset="digits", workers=16, seed=seed, batch_size=20)
    _, _, parts, _ = reached(partition="dirichlet:0.1", **given)
    assert min(map(len, parts)) == 20
    _, _, parts, _ = reached(partition="dirichlet:0.1:40", **given)
    assert min(map(len, parts)) == 40


@pytest.mark.parametrize("method", ["dp_oadam", "md_gan"])
def test_a_run_is_repeated_from_its_settings(call, tmp_path, method, no_pictures):
    """The second one gets nothing but the first one's file."""
    run = [*SMALL, "--steps=4", "--eval_every=2", f"--method={method}", "--loss=acgan"]
    assert call(script, *run, "--workdir=one", "--model=mlp:4", "--seed=3")[0] == 0
    assert call(script, "--config=one", "--workdir=other")[0] == 0
    one, other = (tmp_path / name / "config.json" for name in ("one", "other"))
    assert one.read_text() == other.read_text()
    one, other = (
        records.read_metrics(tmp_path / name / "metrics.jsonl")
        for name in ("one", "other")
    )
    assert [r | {"seconds": 0} for r in one] == [r | {"seconds": 0} for r in other]


@pytest.mark.parametrize("method", ["dp_oadam", "fl_gan"])
def test_a_bad_batch_of_one_worker_is_skipped_by_all(
    monkeypatch, tmp_path, method, no_pictures
):
    """Every second example of the first worker overflows."""
    whole = data.load("mixture_ring")
    train_ = whole.train[:200].copy()
    train_[:50:2] = 3e38
    labels = whole.train_labels[:200]
    few = dataclasses.replace(whole, train=train_, train_labels=labels)
    parts = [np.arange(50), np.arange(50, 200)]
    monkeypatch.setattr(data, "load", lambda *args: few)
    monkeypatch.setattr(partition, "parse", lambda *args: lambda *a, **k: parts)
    monkeypatch.setattr(scores, "evaluator", lambda *args, **kwargs: None)
    given = dict(method=method, dataset="mixture_ring", model="mlp:4", workers=2)
    given |= dict(batch_size=1, steps=12, eval_every=6, workdir=str(tmp_path / "run"))
    config = train.Config(**given)
    with pytest.raises(loop.TrainingDivergedError):
        train.run(config, progress=False)
    config = dataclasses.replace(
        config, skip_not_finite=12, workdir=str(tmp_path / "skipped")
    )
    result = train.run(config, progress=False)
    assert result.step == 12
    skipped = np.asarray(result.state.opt_state.skipped)
    assert 0 < skipped[0] < 12
    assert (skipped == skipped[0]).all()
    for leaf in jax.tree.leaves(result.state.params):
        assert np.isfinite(leaf).all()
    taken = [r["loss_generator"] is not None for r in result.history[1:]]
    assert sum(taken) == 12 - skipped[0]  # of a step that was left out there is none


def test_divergence_takes_one_line(call, tmp_path):
    wild = ["--learning_rate=1e30", "--steps=50", "--method=extra_step"]
    wild += ["--model=mlp:4"]
    code, _, err = call(script, *SMALL, *wild)
    assert code == 1
    last = err.splitlines()[-1]
    assert re.match(
        r"jaxsp.gan.train: training diverged: .* at step \d+; the last", last
    )
    kept = tmp_path / "runs" / "mixture_ring-extra_step" / "checkpoints" / "0"
    assert str(kept) in last
    assert kept.is_dir()


WAYS = {
    "module": ["-m", "jaxsp.gan.train"],
    "script": [str(ROOT / "examples" / "train_gan.py")],
    "console": ["-c", "from jaxsp.gan.train.__main__ import console; console()"],
}


@pytest.mark.parametrize("way", WAYS)
def test_as_a_program_it_says_what_flags_there_are(tmp_path, way):
    out = subprocess.run(
        [sys.executable, *WAYS[way], "--helpshort"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    ).stdout
    assert "Train a GAN on several workers" in out
    for name in ("method", "sync_every", "compressor", "[no]dry_run", "process_id"):
        assert f"--{name}: " in out


@pytest.mark.parametrize("typed", ["python -m jaxsp.gan.train", "./bin/jaxsp-train"])
@pytest.mark.parametrize("launched", [True, False])
def test_the_command_to_go_on_is_the_one_that_was_typed(monkeypatch, typed, launched):
    typed += " '--workdir=two words'"
    monkeypatch.delenv("JAXSP_LAUNCH_COMMAND", raising=False)
    monkeypatch.setattr(sys, "orig_argv", shlex.split(f"{typed} --resume"))
    if launched:
        typed = f"python -m jaxsp.launch -n 2 {typed}"
        monkeypatch.setenv("JAXSP_LAUNCH_COMMAND", typed)
    assert script.resume_command() == f"{typed} --resume"
