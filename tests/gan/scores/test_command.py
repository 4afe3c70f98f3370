"""`python -m jaxsp.gan.scores`, on checkpoints of generators that nobody trained."""

import dataclasses
import json
import logging
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import small_tfds

import jaxsp
from jaxsp.gan import command, data, losses, models, program, scores, step
from jaxsp.gan.scores import __main__ as score
from jaxsp.gan.training import checkpoint, directory, loop
from jaxsp.gan.training.progress import Progress

ROOT = pathlib.Path(__file__).parents[3]
POINTS = {"dataset": "mixture_ring", "model": "mlp:8", "conditional": False}


def write_run(path, settings, gan, step=7, shift=0.0):
    """A run directory with one checkpoint of an untrained generator."""
    path.mkdir(parents=True, exist_ok=True)
    directory.write_config(path, settings, {})
    z = models.init(gan, jax.random.key(1))
    x = jax.tree.map(lambda p: np.asarray(p) + np.float32(shift), z.x)
    with checkpoint.Checkpoints(path) as checkpoints:
        checkpoints.save({"none": np.zeros(1)}, program.Summary(x, z), Progress(step))
    return x


@pytest.fixture(autouse=True)
def few_neighbours(monkeypatch):
    """10,000 points a side take seconds."""
    monkeypatch.setattr(scores.statistics, "KEPT", 300)


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    """A run on points, and its generator."""
    path = tmp_path_factory.mktemp("run")
    gan = models.parse("mlp:8", (2,))
    return path, gan, write_run(path, POINTS, gan)


def call(*arguments):
    """The exit code of the command, run in this process."""
    return command.call(score.PROGRAM, score.Config, score.main, *arguments)


def test_scores_are_those_of_the_generators_samples(points, tmp_path, capsys):
    path, gan, x = points
    output, picture = tmp_path / "scores.json", tmp_path / "samples.png"
    config = score.Config(
        str(path),
        samples=50,
        batch_size=20,
        seed=3,
        output=str(output),
        samples_png=str(picture),
    )
    found = score.score(config, progress=False)
    assert json.loads(output.read_text()) == found
    assert (found["step"], found["dataset"]) == (7, "mixture_ring")
    assert picture.read_bytes().startswith(b"\x89PNG")
    key = jax.random.key(3)
    samples = np.concatenate(
        [models.sample(gan, x, jax.random.fold_in(key, i), 20) for i in range(3)]
    )[:50]
    evaluate = scores.evaluator(data.load("mixture_ring"), full=True)
    wanted = evaluate(samples)
    assert wanted.keys() == found["scores"].keys() >= {"frechet_distance", "recall"}
    for name, value in wanted.items():
        np.testing.assert_allclose(found["scores"][name], value, rtol=1e-5, atol=1e-9)
    assert found["floor"] == evaluate.floor
    assert found["bias"] == evaluate.bias(50)
    table = capsys.readouterr().out
    for name in wanted:
        assert f"{wanted[name]:.4g}" in table.split(name)[1].split("\n")[0]


def test_the_command_writes_beside_the_run(points, capsys):
    path = points[0]
    one = path / "checkpoints" / "7"
    assert call(f"--checkpoint={one}", "--samples=4", "--batch_size=6") == 0
    found = json.loads((path / "scores_7_samples=4_batch_size=6.json").read_text())
    assert (found["samples"], found["floor_samples"]) == (4, 10_000)
    assert "written: " in capsys.readouterr().out


def test_images_of_a_conditional_generator(tmp_path, monkeypatch, capsys):
    """With a stand-in for the Inception network, and few data."""
    digits = data.load("digits")
    few = dataclasses.replace(
        digits,
        train=digits.train[:60],
        train_labels=digits.train_labels[:60],
        test=digits.test[:30],
        test_labels=digits.test_labels[:30],
    )
    monkeypatch.setattr(data, "load", lambda name, data_dir: few)
    monkeypatch.setattr(scores.classifier, "_STEPS", 5)
    projection = np.random.default_rng(0).standard_normal((64, 9))

    def features(inception, images, batch_size=50, progress=False):
        return np.asarray(data.to_unit(images)).reshape(len(images), -1) @ inception

    monkeypatch.setattr(scores.inception, "load", lambda path: projection)
    monkeypatch.setattr(scores.inception, "features", features)
    gan = models.parse("mlp:8", (8, 8, 1), 10)
    settings = {"dataset": "digits", "model": "mlp:8", "conditional": True}
    x = write_run(tmp_path / "run", settings, gan)
    run = str(tmp_path / "run")
    config = score.Config(run, samples=40, batch_size=40, inception="weights.npz")
    found = score.score(config, str(tmp_path / "cache"), progress=False)
    # conditional and not have parameters of the same shapes, but not the same samples
    samples = models.sample(gan, x, jax.random.fold_in(jax.random.key(0), 0), 40)
    inner = [features(projection, i) for i in (few.train, np.asarray(samples))]
    wanted = scores.kernel_distance(*inner).mean
    assert found["scores"]["kid"] == pytest.approx(wanted, rel=1e-3)
    assert found["scores"].keys() >= {"fid", "kid", "classifier_score", "coverage"}
    assert found["bias"].keys() == {"frechet_distance", "fid"}
    assert sum(found["counts"]) == 40
    shares = np.array(found["counts"]) / 40
    wanted = shares / (np.bincount(few.train_labels, minlength=10) / 60)
    np.testing.assert_allclose(found["class_coverage"], wanted)
    assert found["features"] == "inception"
    assert "relative to the data" in capsys.readouterr().out


def test_a_diverged_generator_has_no_scores(tmp_path, capsys):
    gan = models.parse("mlp:8", (2,))
    write_run(tmp_path, POINTS, gan, shift=np.inf)
    assert call(f"--checkpoint={tmp_path}", "--samples=10", "--batch_size=10") == 1
    assert "not finite" in capsys.readouterr().err
    (file,) = tmp_path.glob("scores_7_*.json")
    found = json.loads(file.read_text())
    assert set(found["scores"].values()) == {None}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--samples=3"], "--samples=3 must be at least 4"),
        (["--batch_size=0"], "--batch_size=0 must be at least 1"),
        ([f"--batch_size={10**11}"], f"--batch_size={10**11} must be at least 1 and"),
        ([f"--samples={10**18}"], f"--samples={10**18} must be at least 4 and at most"),
        (["--seed=-1"], "--seed=-1 must be at least 0"),
        (["--checkpoint=/nowhere"], "--checkpoint=/nowhere: /nowhere is neither"),
        (["--dataset=mnits"], "--dataset=mnits: there is no mnits; did you mean"),
        (["--dataset=mnist", "--data_dir=/nowhere"], "--data_dir=/nowhere: mnist is"),
        (["--model=mlp:9"], "--model=mlp:9: the run was of --model=mlp:8; leave"),
        (["--conditional"], "--conditional=True: the run was of --conditional=False;"),
        (["--inception=w.npz"], "--inception=w.npz: w.npz: no Inception weights."),
        (
            ["--output=/nowhere/a.json"],
            "--output=/nowhere/a.json: write the",
        ),
        (["--samples_png=/"], "--samples_png=/: it is a directory; write"),
        (["--output=a", "--samples_png=a"], "--samples_png=a: another flag names it"),
        (["--output=w.npz", "--inception=w.npz"], "--output=w.npz: another flag names"),
        (["more"], "unexpected 'more'"),
    ],
)
def test_a_bad_flag_takes_one_line(points, arguments, message, capsys, monkeypatch):
    def too_late(*args, **kwargs):
        raise AssertionError("it was to be seen before anything is computed")

    monkeypatch.setattr(scores, "evaluator", too_late)
    assert call(f"--checkpoint={points[0]}", *arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"jaxsp.gan.scores: {message}")
    assert err.count("\n") == 1


@pytest.mark.parametrize("flag", ["output", "samples_png"])
def test_nothing_that_is_needed_is_overwritten(tmp_path, flag, capsys, monkeypatch):
    monkeypatch.setattr(data, "load", None)  # it is to be seen before any work
    run = tmp_path / "run"
    write_run(run, POINTS, models.parse("mlp:8", (2,)))
    (run / "metrics.jsonl").write_text("")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link.json").symlink_to(run / "config.json")
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    (note,) = run.glob("checkpoints/7/note/metadata")
    new = run / "checkpoints" / "new.json"
    ours = [run / "config.json", run / "metrics.jsonl", note, new, run / "curves.png"]
    ours += [tmp_path / "link.json", run / "damaged_3" / "note"]
    for path in (*ours, tmp_path / "pipe", run, tmp_path / "no" / "a.json"):
        assert call(f"--checkpoint={run}", f"--{flag}={path}") == 2
        err = capsys.readouterr().err
        assert err.startswith(f"jaxsp.gan.scores: --{flag}={path}: ")
        assert err.count("\n") == 1
        own = "a file of a run" in err or "can be written in" in err
        assert own == (path in ours or not path.parent.exists())
    assert before == {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    assert (tmp_path / "pipe").is_fifo()


def test_calls_that_make_other_scores_write_other_files(points, monkeypatch):
    path = points[0]
    monkeypatch.setattr(scores.evaluate, "_log", logging.getLogger("quiet"))
    few = (f"--checkpoint={path}", "--samples=8")
    for flags in ((), ("--seed=1",), ("--batch_size=8",), ("--dataset=mixture_ring",)):
        assert call(*few, *flags) == 0
    names = {p.name for p in path.glob("scores_7_samples=8*.json")}
    more = ("", "_seed=1", "_batch_size=8")
    assert names == {f"scores_7_samples=8{words}.json" for words in more}
    name = score._file_name(score.Config(inception="w/inception.npz"), 7, POINTS)
    assert name == "scores_7_inception=inception.json"
    name = score._file_name(score.Config(dataset="digits"), 7, POINTS)
    assert name == "scores_7_dataset=digits.json"


def test_the_latent_size_is_that_of_the_run(tmp_path):
    gan = models.parse("mlp:8", (2,), latent_size=3)
    write_run(tmp_path, POINTS | {"latent_size": 3}, gan)
    assert call(f"--checkpoint={tmp_path}", "--samples=9", "--batch_size=9") == 0


def test_data_are_sought_where_the_run_found_them(tmp_path, monkeypatch):
    small_tfds.prepare("mnist", tmp_path / "tfds")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    dataset = data.load("mnist", "tfds")
    gan, workers = models.parse("mlp:4", (28, 28, 1)), jaxsp.Workers(1)
    method = jaxsp.methods.cp_oadam(1e-3, workers.axis_name)
    loop.train(
        step.program(gan, losses.hinge(gan), method, workers, batch_size=2),
        dataset,
        [np.arange(7)],
        loop.TrainConfig(
            1, description={"dataset": "mnist", "model": "mlp:4"}, progress=False
        ),
        workdir="run",
    )
    sought, load = [], data.load
    monkeypatch.setattr(scores.classifier, "_STEPS", 2)
    monkeypatch.setattr(data, "load", lambda *args: sought.append(args) or load(*args))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    few = ("--checkpoint=../run", "--samples=9", "--batch_size=9")
    assert call(*few) == 0
    assert sought == [("mnist", str(tmp_path / "tfds"))]
    assert call(*few, "--data_dir=.") == 2  # what is written wins
    assert sought[1] == ("mnist", ".")
    (tmp_path / "tfds").rename(tmp_path / "gone")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "gone"))
    assert call(*few) == 0
    assert sought[2] == ("mnist", None)


def test_from_python_bounds_are_checked_too(points):
    with pytest.raises(command.BadFlagError, match="--samples=3 must be at least 4"):
        score.score(score.Config(str(points[0]), samples=3))


def test_points_have_no_inception_scores(points, capsys, monkeypatch):
    monkeypatch.setattr(scores.inception, "load", lambda path: {"weights": 1})
    assert call(f"--checkpoint={points[0]}", "--inception=w.npz") == 2
    err = capsys.readouterr().err
    assert err.startswith("jaxsp.gan.scores: --inception=w.npz: inception scores ")
    assert err.endswith("leave it out.\n")


@pytest.mark.parametrize("error", [PermissionError, IsADirectoryError, ImportError])
def test_data_that_cannot_be_read_take_one_line(points, error, capsys, monkeypatch):
    def load(name, data_dir):
        raise error("no\nuse")

    monkeypatch.setattr(data, "load", load)
    assert call(f"--checkpoint={points[0]}", "--data_dir=/data") == 2
    assert capsys.readouterr().err == "jaxsp.gan.scores: --data_dir=/data: no use\n"


def test_what_the_settings_do_not_say_must_be_given(tmp_path, capsys, caplog):
    write_run(tmp_path, {"dataset": "mixture_ring"}, models.parse("mlp:8", (2,)))
    assert call("--samples=9") == 2
    assert "--checkpoint is missing" in capsys.readouterr().err
    few = (f"--checkpoint={tmp_path}", "--samples=9")
    assert call(*few) == 2
    assert "--model: write it, the run's settings" in capsys.readouterr().err
    for model, message in (("dcgam", "did you mean dcgan?"), ("mlp:9", "does not fit")):
        assert call(*few, f"--model={model}") == 2
        assert f"--model={model}: " in (err := capsys.readouterr().err)
        assert message in err
    with caplog.at_level(logging.WARNING):
        assert call(*few, "--model=mlp:8", "--batch_size=9") == 0
    assert not caplog.records


def test_the_module_runs(points):
    program = [sys.executable, "-m", "jaxsp.gan.scores"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    flags = [f"--checkpoint={points[0]}", "--bad"]
    done = subprocess.run(
        program + flags, capture_output=True, text=True, cwd=ROOT, env=env
    )
    assert done.returncode == 2
    assert done.stderr.startswith("jaxsp.gan.scores: --bad: there is no flag")
