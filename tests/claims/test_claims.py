"""The papers' claims: their files fit their experiments, and a sample of them holds."""

import functools
import json
import pathlib
import shutil
import sys

import numpy as np
import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2] / "claims"
PAPERS = sorted(path.stem for path in ROOT.glob("*.yaml"))


@pytest.fixture
def run(monkeypatch):
    """The module that runs claims, as where it is run."""
    monkeypatch.syspath_prepend(str(ROOT))
    import run

    return run


@pytest.mark.parametrize("paper", PAPERS)
def test_a_papers_file_fits_its_experiments(run, paper):
    written, found = run.read(paper)
    assert {"title", "paper"} <= set(written)
    module = run.importlib.import_module(paper)
    for name, experiment in written["experiments"].items():
        assert callable(getattr(module, name))
        assert {"title", "setup", "seeds", "minutes"} <= set(experiment)
        assert [len(experiment[key]) for key in ("seeds", "minutes")] == [2, 2]
        assert experiment["claims"]
        for claim in experiment["claims"]:
            assert {"claim", "where"} <= set(claim)
            judged = {"above", "below", "near"} & set(claim)
            assert ("untestable" in claim) != bool("value" in claim and judged)
    for name, forms in found.items():  # what was recorded is of today's claims
        for recorded in forms.values():
            claims = written["experiments"][name]["claims"]
            assert len(recorded["verdicts"]) == len(claims)


def test_verdicts_count_seeds(run):
    assert run.judge({"below": 1.0}, [0.5, 0.9]) == "held"
    assert run.judge({"below": 1.0}, [0.5, 1.1]) == "partly held"
    assert run.judge({"below": 1.0}, [1.5, np.nan]) == "not held"
    assert run.judge({"above": 1.0}, [np.inf]) == "held"
    assert run.judge({"above": 1.0}, [np.nan]) == "held"  # what has diverged is above
    assert run.judge({"above": 1.0, "below": 2.0}, [2.5]) == "not held"
    near = {"near": 1e-3, "within": 2}
    assert run.judge(near, [5.1e-4, 1.9e-3]) == "held"
    assert run.judge(near, [4.9e-4, 2.1e-3]) == "not held"


def test_numbers_in_words(run):
    words = run.page.in_words
    assert words([0.12345]) == "0.123"
    assert words([1.0, 3.0]) == "2 ± 1"
    assert words([1.0, np.inf]) == "inf"


COMPILING = """
import jax

def hits(number):
    names = []
    jax.monitoring.register_event_listener(lambda name, **_: names.append(name))

    def long(x):
        for i in range(400):
            x = jax.numpy.sort(x * jax.numpy.sin(x + i))
        return x

    jax.jit(long)(jax.numpy.full(3, 1.0 * number)).block_until_ready()
    return names.count("/jax/compilation_cache/cache_hits")
"""


def test_short_claims_of_three_papers_hold(run, tmp_path, monkeypatch):
    for path in ROOT.glob("*.yaml"):  # without what was recorded
        (tmp_path / path.name).write_text(path.read_text().partition("\n---\n")[0])
    monkeypatch.setattr(run, "HERE", tmp_path)
    names = ["masha.feedback", "esl.robust_regression", "dposg.one_worker"]
    assert run.main([*names, "--jobs=2", f"--output={tmp_path}"]) == 0
    for name in names:
        found = json.loads((tmp_path / f"{name}.json").read_text())
        assert set(found["verdicts"]) == {"held"}
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
        assert "<svg" in (tmp_path / f"{name}.svg").read_text()
    page = (tmp_path / "index.html").read_text()
    assert page.count("✓ held") == 5
    assert "grows by 1 + 11γ/6" in page
    assert "Not run." in page  # what was left out says so


def test_the_transformers_rows_are_compared_with_full_precision(run, monkeypatch):
    masha = run.importlib.import_module("masha")
    monkeypatch.setattr(sys, "path", list(sys.path))
    robust = masha.benchmark("robust")

    def measure(root, name, steps, seed):
        if name.startswith("Top"):
            return None  # it has diverged
        share = 1 / 8 if name.startswith("4 bits") else 1
        line = {"bits_up": 4e6 * share, "bits_down": 12e6 * share}
        losses = {"clean_loss": 4 + share, "robust_loss": 5 + share}
        return [
            {"step": 0, **dict.fromkeys(line, 0)} | losses,
            {"step": steps // 2, **line},
            {"step": steps, **line, **losses, "robust_loss": 6 - share},
        ]

    monkeypatch.setattr(robust, "measure", measure)
    measured = masha.transformer(0, True)
    values = measured.values
    assert values["4 bits, under attack, to full precision"] == 5.875 / 5
    assert values["4 bits, clean, to full precision"] == 4.125 / 5
    assert values["4 bits, times fewer bytes"] == 8
    assert values["Top 1 %, feedback, clean"] == np.inf
    steps, bytes_ = (panel.lines["4 bits"] for panel in measured.panels)
    assert (steps, bytes_) == (([1_200], [5.875]), ([0.25], [5.875]))


def test_what_came_out_is_recorded_behind_what_was_written(run, tmp_path, monkeypatch):
    for path in ROOT.glob("*.yaml"):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(run, "HERE", tmp_path)
    before = (ROOT / "masha.yaml").read_text().partition("\n---\n")[0]
    arguments = ["masha.feedback", "--record", f"--output={tmp_path / 'out'}"]
    for _ in range(2):
        assert run.main(arguments) == 0
    text = (tmp_path / "masha.yaml").read_text()
    assert text.startswith(before.rstrip())
    recorded = list(yaml.safe_load_all(text))[1]["feedback"]["short"]
    assert recorded["verdicts"] == ["held", "held"]
    page = (tmp_path / "out" / "index.html").read_text()
    assert "recorded, short form: seeds 0;" in page
    assert "(<em>not testable here</em>: " in page  # with the reason
    assert "defaults.mnist --full</code> (about 40 minutes; there is no short" in page
    assert float(recorded["values"]["growth"]) == pytest.approx(1 + 0.11 / 6, abs=2e-3)


def test_what_one_process_has_compiled_the_next_takes(run, tmp_path, monkeypatch):
    (tmp_path / "compiling.py").write_text(COMPILING)
    monkeypatch.syspath_prepend(tmp_path)
    hits = run.importlib.import_module("compiling").hits
    calls = {str(i): functools.partial(hits, i) for i in range(4)}
    found = {name: result() for name, result in run.finished(calls, 2)}
    assert sorted(found.values())[2:] == [1, 1]  # the first two may begin together


def test_an_unknown_name_is_refused(run, capsys):
    with pytest.raises(SystemExit) as refused:
        run.main(["masha.feedbak"])
    assert refused.value.code == 2
    assert "there is no masha.feedbak; write one of" in capsys.readouterr().err


def test_what_has_no_short_form_says_so(run, capsys):
    with pytest.raises(SystemExit) as refused:
        run.main(["defaults.mnist"])
    assert refused.value.code == 2
    assert "a long form alone: add --full" in capsys.readouterr().err


def test_no_jobs_are_refused(run, capsys):
    with pytest.raises(SystemExit) as refused:
        run.main(["masha.feedback", "--jobs=0"])
    assert refused.value.code == 2
    assert "--jobs must be at least 1; got 0." in capsys.readouterr().err


def test_an_experiment_that_fails_is_said(run, tmp_path, monkeypatch, capsys):
    module = run.importlib.import_module("masha")

    def broken(seed, full):
        raise RuntimeError("no such game")

    monkeypatch.setattr(module, "feedback", broken)
    assert run.main(["masha.feedback", f"--output={tmp_path}"]) == 1
    assert "no such game" in capsys.readouterr().err
