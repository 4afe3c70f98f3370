"""The comparison script: what it runs, where it stops, and what it tells."""

import importlib.util
import json
import pathlib
import signal
import sys

import numpy as np
import PIL.Image
import pytest
from absl import flags

from jaxsp.gan.training import loop, plots

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(EXAMPLES))
    spec = importlib.util.spec_from_file_location("compare", EXAMPLES / "compare.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["compare"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def runs(script, monkeypatch):
    """`train_gan.run` with 1 MB and 2 s a step, which trains nothing."""
    calls = []

    def run(*, method, steps, workdir, resume, progress, callback, **options):
        calls.append({"method": method, "steps": steps, "resume": resume, **options})
        directory = pathlib.Path(workdir)
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / "metrics.jsonl").open("w") as file:
            for step in range(0, min(steps, 100) + 1, 10):
                record = {
                    "step": step,
                    "seconds": 2.0 * step,
                    "bits_up": int(4e6) * step,
                    "bits_down": int(4e6) * step,
                    "frechet_distance": 100.0 / (1 + step) + len(calls),
                }
                file.write(json.dumps(record) + "\n")
                (directory / "checkpoints" / str(step)).mkdir(
                    parents=True, exist_ok=True
                )
                if callback(record):
                    break
                if method == "dposg" and step == 20:
                    raise loop.TrainingDivergedError("a loss is nan", 20, None)

    monkeypatch.setattr(script.train_gan, "run", run, raising=True)
    return calls


def test_methods_have_flags_of_their_own(script):
    runs = script.parse_runs("md_gan, dqgan:compressor=top_k/0.1:learning_rate=0.01")
    assert [run.method for run in runs] == ["md_gan", "dqgan"]
    assert runs[1].options == {"compressor": "top_k:0.1", "learning_rate": "0.01"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        ("md_gam", "did you mean md_gan?"),
        ("md_gan,md_gan", "twice"),
        ("md_gan:batches_k", "FLAG=VALUE"),
        ("md_gan:batchez=2", "FLAG=VALUE"),
        ("md_gan:steps=7", "FLAG=VALUE"),  # that is the budget's
    ],
)
def test_other_methods_are_refused(script, text, said):
    with pytest.raises(script.BadFlagError, match=said):
        script.parse_runs(text)


def test_budgets(script):
    assert script.parse_budget("steps:50") == ("steps", 50)
    assert script.parse_budget("bytes:1.5MB") == ("bytes", 1.5e6)
    assert script.parse_budget("seconds:60") == ("seconds", 60)
    for bad in ("50", "steps:", "steps:1MB", "bytes:1XB", "hours:3", "seconds:0"):
        with pytest.raises(script.BadFlagError, match="--budget="):
            script.parse_budget(bad)


@pytest.mark.parametrize(
    ("budget", "last"), [("steps:40", 40), ("bytes:35MB", 40), ("seconds:55", 30)]
)
def test_every_run_ends_where_the_budget_does(script, runs, tmp_path, budget, last):
    records = script.compare("md_gan,fl_gan", budget, str(tmp_path), progress=False)
    assert [found[-1]["step"] for found in records.values()] == [last, last]
    assert [call["method"] for call in runs] == ["md_gan", "fl_gan"]
    text = (tmp_path / "plots.md").read_text()
    assert f"| `md_gan` | {100 / (1 + last) + 1:.4g} / " in text
    with PIL.Image.open(tmp_path / "comparison.png") as picture:
        assert picture.size[0] > 2 * picture.size[1]


def test_a_run_that_diverges_does_not_end_the_others(script, runs, tmp_path):
    methods = "dposg,md_gan:batches_k=2"
    records = script.compare(methods, "steps:40", str(tmp_path), progress=False)
    assert [found[-1]["step"] for found in records.values()] == [20, 40]
    assert runs[1]["batches_k"] in (2, "2")
    assert "diverged at step 20" in (tmp_path / "plots.md").read_text()


def test_what_has_ended_is_not_repeated(script, runs, tmp_path):
    script.compare("md_gan", "steps:40", str(tmp_path), progress=False)
    with pytest.raises(script.BadFlagError, match="another comparison"):
        script.compare("md_gan", "steps:40", str(tmp_path), progress=False)
    again = {"resume": True, "progress": False}
    script.compare("md_gan,fl_gan", "steps:40", str(tmp_path), **again)
    assert [call["method"] for call in runs] == ["md_gan", "fl_gan"]
    script.compare("md_gan,fl_gan", "steps:60", str(tmp_path), **again)
    assert [call["steps"] for call in runs] == [40, 40, 60, 60]


def test_what_was_killed_before_its_score_or_checkpoint_is_not_over(
    script, runs, tmp_path
):
    script.compare("md_gan,fl_gan", "steps:40", str(tmp_path), progress=False)
    (tmp_path / "md_gan" / "checkpoints" / "40").rmdir()
    lines = (tmp_path / "fl_gan" / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    del last["frechet_distance"]
    lines[-1] = json.dumps(last)
    (tmp_path / "fl_gan" / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    again = {"resume": True, "progress": False}
    script.compare("md_gan,fl_gan", "steps:40", str(tmp_path), **again)
    assert [call["method"] for call in runs] == ["md_gan", "fl_gan"] * 2


@pytest.mark.parametrize(
    "wrong", ["md_gan:batches_k=9", "md_gan:disc_steps=x", "dqgan:compressor=zip"]
)
def test_nothing_is_trained_before_all_flags_are_read(script, runs, tmp_path, wrong):
    with pytest.raises(script.BadFlagError, match="--"):
        script.compare(f"md_gan,{wrong}", "steps:40", str(tmp_path), workers=2)
    assert runs == []
    assert list(tmp_path.iterdir()) == []


def test_a_signal_ends_them_all(script, runs, tmp_path, monkeypatch, capsys):
    real = script.train_gan.run

    def interrupted(**arguments):
        real(**arguments)
        end = signal.SIGTERM
        return loop.Result(None, None, [], 3, end, ())

    monkeypatch.setattr(script.train_gan, "run", interrupted)
    values = flags.FlagValues()
    script.define_flags(values)
    arguments = ["compare.py", "--methods=md_gan,fl_gan", f"--workdir={tmp_path}"]
    assert script.main(values(arguments), values) == 128 + signal.SIGTERM
    assert [call["method"] for call in runs] == ["md_gan"]
    assert "--resume" in capsys.readouterr().out


def test_who_sends_nothing_has_no_budget_of_bytes(script, runs, tmp_path):
    with pytest.raises(script.BadFlagError, match="sends nothing"):
        script.compare("standalone", "bytes:1MB", str(tmp_path))
    assert runs == []


def test_from_the_command_line(script, tmp_path, monkeypatch, capsys):
    """Two small real runs, of a method with a server and one without."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        values = flags.FlagValues()
        script.define_flags(values)
        code = script.main(values(["compare.py", *arguments]), values)
        return code, capsys.readouterr().err

    small = ["--dataset=mixture_ring", "--workers=2", "--batch_size=4"]
    small += ["--eval_every=2", "--workdir=here"]
    assert call(*small, "--methods=md_gan,cp_oadam", "--budget=steps:4")[0] == 0
    files = {path.name for path in (tmp_path / "here").iterdir()}
    assert files == {"md_gan", "cp_oadam", "plots.md", "comparison.png"}
    assert "| `cp_oadam` |" in (tmp_path / "here" / "plots.md").read_text()
    plan = ["--methods=md_gan,cp_oadam", "--dry_run", "--workdir=none"]
    assert call(*small[:3], *plan)[0] == 0
    assert not (tmp_path / "none").exists()
    for bad in (["--method=md_gan"], [], ["--methods=md_gan", "--budget=4"]):
        code, err = call(*bad)
        assert code == 2
        assert err.startswith("compare.py: ")
        assert err.count("\n") == 1


def test_a_comparison_has_a_curve_for_every_run(tmp_path):
    runs = {
        "a": [{"step": 0, "seconds": 0.0, "score": 3.0}],
        "b": [
            {"step": s, "seconds": s / 2, "bits_up": 8e6 * s, "score": 1.0 + s}
            for s in range(3)
        ],
        "c": [],
    }
    plots.plot_comparison(runs, tmp_path / "a.png", ["score", "missing"], "title")
    pixels = np.asarray(PIL.Image.open(tmp_path / "a.png").convert("RGB")).reshape(
        -1, 3
    )
    for colour in ("#0072b2", "#d55e00"):
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(pixels.astype(int) - rgb).sum(1) < 12).any()
    with pytest.raises(ValueError, match="scores must name"):
        plots.plot_comparison(runs, tmp_path / "b.png", ["missing"])
