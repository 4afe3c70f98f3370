"""The comparison script: what it runs, where it stops, and what it tells."""

import json
import pathlib
import signal

import numpy as np
import PIL.Image
import pytest

from jaxsp.gan import command, train
from jaxsp.gan.training import loop, plots


@pytest.fixture(scope="module")
def script(example):
    return example("compare")


@pytest.fixture
def runs(script, monkeypatch):
    """`train.run` with 1 MB and 2 s a step, which trains nothing."""
    calls = []

    def run(config, progress, callback):
        calls.append(config)
        directory = pathlib.Path(config.workdir)
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / "metrics.jsonl").open("w") as file:
            for step in range(0, min(config.steps, 100) + 1, 10):
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
                if config.method == "dposg" and step == 20:
                    raise loop.TrainingDivergedError("a loss is nan", 20, None)

    monkeypatch.setattr(train, "run", run, raising=True)
    return calls


@pytest.fixture
def compare(script, tmp_path):
    """Compare methods in a directory, at a budget."""

    def compare(methods, budget="steps:40", **given):
        given = {"workdir": str(tmp_path), "methods": methods, "budget": budget} | given
        return script.compare(script.Config(**given), progress=False)[0]

    return compare


def test_methods_have_flags_of_their_own(script):
    text = "md_gan, dqgan:compressor=top_k/0.1:learning_rate=0.01"
    config = script.Config(methods=text, workers=4)
    one, other = script.parse_runs(config).values()
    assert one == train.Config(method="md_gan", workers=4, eval_every=200)
    wanted = {"compressor": "top_k:0.1", "learning_rate": 0.01, "eval_every": 200}
    assert other == train.Config(method="dqgan", workers=4, **wanted)


def test_one_worker_sees_as_much_in_a_step_as_all_workers_together(script):
    methods = "standalone,standalone:batch_size=7,md_gan"
    for given, batch, batches in ((None, None, 64), (5, 5, 20)):
        config = script.Config(methods=methods, workers=4, batch_size=given)
        alone, own, several = script.parse_runs(config).values()
        assert (alone.batch_size, own.batch_size) == (batches, 7)
        assert several.batch_size == batch


@pytest.mark.parametrize(
    ("given", "every"),
    [
        ({}, 200),
        ({"steps": 1000}, 100),
        ({"steps": 1000, "budget": "steps:3"}, 1),
        ({"dataset": "mixture_ring"}, 500),
        ({"budget": "seconds:9"}, 100),
        ({"eval_every": 700}, 700),
    ],
)
def test_there_are_ten_scores_unless_the_user_wants_others(script, given, every):
    (run,) = script.parse_runs(script.Config(methods="md_gan", **given)).values()
    assert run.eval_every == every


def test_the_report_says_learning_rates_and_examples(compare, runs, tmp_path):
    methods = "md_gan,standalone,dqgan:warmup_steps=5:learning_rate=0.07"
    compare(methods, decay_steps=9)
    text = (tmp_path / "plots.md").read_text()
    assert "| `md_gan` | 0.001, to 0 at step 9 | 128 |" in text
    assert "| `standalone` | 0.001, to 0 at step 9 | 128 |" in text
    assert "| 0.07, from 0 in 5 steps, to 0 at step 9 | 128 |" in text
    compare(
        methods.rpartition(":")[0], learning_rate=0.003, workdir=str(tmp_path / "b")
    )
    assert (tmp_path / "b" / "plots.md").read_text().count("| 0.003") == 3


def test_budgets(script):
    assert script.parse_budget("steps:50") == ("steps", 50)
    assert script.parse_budget("bytes:1.5e6") == ("bytes", 1.5e6)
    assert script.parse_budget("seconds:60") == ("seconds", 60)
    for bad in ("50", "steps:", "bytes:1XB", "hours:3", "seconds:0", "steps:1.2.3"):
        with pytest.raises(command.BadFlagError, match="--budget="):
            script.parse_budget(bad)


@pytest.mark.parametrize(
    ("budget", "last"), [("steps:40", 40), ("bytes:35e6", 40), ("seconds:55", 30)]
)
def test_every_run_ends_where_the_budget_does(compare, runs, tmp_path, budget, last):
    records = compare("md_gan,fl_gan", budget)
    assert [found[-1]["step"] for found in records.values()] == [last, last]
    assert [run.method for run in runs] == ["md_gan", "fl_gan"]
    text = (tmp_path / "plots.md").read_text()
    assert f"| `md_gan` | 0.001 | 128 | {100 / (1 + last) + 1:.4g} / " in text
    with PIL.Image.open(tmp_path / "comparison.png") as picture:
        assert picture.size[0] > 2 * picture.size[1]


def test_a_run_that_diverges_does_not_end_the_others(compare, runs, tmp_path):
    records = compare("dposg,md_gan:batches_k=2")
    assert [found[-1]["step"] for found in records.values()] == [20, 40]
    assert runs[1].batches_k == "2"
    assert "diverged at step 20" in (tmp_path / "plots.md").read_text()


def test_what_has_ended_is_not_repeated(compare, runs):
    compare("md_gan")
    with pytest.raises(command.BadFlagError, match="another comparison"):
        compare("md_gan")
    compare("md_gan,fl_gan", resume=True)
    assert [run.method for run in runs] == ["md_gan", "fl_gan"]
    compare("md_gan,fl_gan", "steps:60", resume=True)
    assert [run.steps for run in runs] == [40, 40, 60, 60]


def test_what_was_killed_before_its_score_or_checkpoint_is_not_over(
    compare, runs, tmp_path
):
    compare("md_gan,fl_gan")
    (tmp_path / "md_gan" / "checkpoints" / "40").rmdir()
    lines = (tmp_path / "fl_gan" / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    del last["frechet_distance"]
    lines[-1] = json.dumps(last)
    (tmp_path / "fl_gan" / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    compare("md_gan,fl_gan", resume=True)
    assert [run.method for run in runs] == ["md_gan", "fl_gan"] * 2


@pytest.mark.parametrize(
    ("methods", "said", "budget"),
    [
        ("", "write --methods=", "steps:40"),
        ("md_gan,md_gam", "did you mean md_gan?", "steps:40"),
        ("md_gan,md_gan", "twice", "steps:40"),
        ("md_gan,md_gan:batches_k", "FLAG=VALUE", "steps:40"),
        ("md_gan,md_gan:batchez=2", "FLAG=VALUE", "steps:40"),
        ("md_gan,md_gan:steps=7", "FLAG=VALUE", "steps:40"),  # that is the budget's
        ("md_gan,md_gan:batches_k=9", "--batches_k=9", "steps:40"),
        ("md_gan,md_gan:disc_steps=x", "--disc_steps=x", "steps:40"),
        ("md_gan,dqgan:compressor=zip", "--compressor=zip", "steps:40"),
        ("md_gan,standalone", "sends nothing", "bytes:1e6"),
    ],
)
def test_nothing_is_trained_before_all_flags_are_read(
    compare, runs, tmp_path, methods, said, budget
):
    with pytest.raises(command.BadFlagError, match=said):
        compare(methods, budget, workers=2)
    assert runs == []
    assert list(tmp_path.iterdir()) == []


def test_a_signal_ends_them_all(script, call, runs, monkeypatch, tmp_path):
    real = train.run

    def interrupted(*arguments):
        real(*arguments)
        return loop.Result(None, None, [], 3, signal.SIGTERM, ())

    monkeypatch.setattr(train, "run", interrupted)
    code, out, _ = call(script, "--methods=md_gan,fl_gan", f"--workdir={tmp_path}")
    assert code == 128 + signal.SIGTERM
    assert [run.method for run in runs] == ["md_gan"]
    assert "--resume" in out


def test_from_the_command_line(script, call, tmp_path):
    """Two small real runs, of a method with a server and one without."""
    small = ["--dataset=mixture_ring", "--workers=2", "--batch_size=4"]
    small += ["--eval_every=2", "--workdir=here"]
    methods = "--methods=md_gan,cp_oadam:compressor=quantize/4"
    assert call(script, *small, methods, "--budget=steps:4")[0] == 0
    names = {"md_gan", "cp_oadam_compressor=quantize_4"}
    files = {path.name for path in (tmp_path / "here").iterdir()}
    assert files == names | {"plots.md", "comparison.png"}
    assert "| `cp_oadam:comp" in (tmp_path / "here" / "plots.md").read_text()
    dry = ["--methods=md_gan,cp_oadam", "--dry_run", "--workdir=none"]
    assert call(script, *small[:3], *dry)[0] == 0
    assert not (tmp_path / "none").exists()
    for bad in (["--method=md_gan"], [], ["--methods=md_gan", "--budget=4"]):
        code, _, err = call(script, *bad)
        assert code == 2
        assert err.startswith("compare.py: ")
        assert err.count("\n") == 1


def test_every_line_of_a_comparison_is_in_a_legend(monkeypatch):
    """What sends nothing is a dotted line against bytes."""
    figures = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure))
    lines = [{"step": s, "seconds": s / 2, "score": 1.0 + s} for s in range(3)]
    runs = {
        "alone": lines,
        "several": [{**r, "bits_up": 8e6 * r["step"]} for r in lines],
    }
    seen = {"alone": 10, "several": 30}
    plots.plot_comparison(runs, "a.png", ["score"], "title", seen)
    (figure,) = figures
    examples, sent, _ = figure.axes
    assert examples.get_xlabel() == "examples seen by all workers"
    assert [line.get_xdata()[-1] for line in examples.get_lines()] == [20, 60]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["alone", "several"]
    colours = [line.get_color() for line in examples.get_lines()]
    assert [handle.get_color() for handle in legend.legend_handles] == colours
    dotted = [line for line in sent.get_lines() if line.get_linestyle() == ":"]
    assert [line.get_label() for line in dotted] == ["alone, which sends nothing"]
    assert len(sent.get_legend().get_texts()) == 1


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
