"""The script that trains a transformer against an adversary."""

import json

import pytest

WORDS = "the cat sat on the mat and the dog lay by the door. "


@pytest.fixture
def script(example):
    return example("train_robust")


@pytest.fixture
def small(tmp_path):
    (tmp_path / "text.txt").write_text(WORDS * 60)
    return [
        f"--text={tmp_path / 'text.txt'}",
        "--vocab_size=258",
        "--length=8",
        "--workers=2",
        "--batch_size=2",
        "--eval_rows=8",
        "--eval_every=1",
        "--workdir=run",
    ]


def test_a_run_leaves_its_files_and_goes_on(call, script, small, tmp_path):
    code, out, err = call(script, *small, "--method=error_feedback", "--steps=1")
    assert code == 0, err
    assert "tokens for training" in out
    assert "step 1: clean loss" in out
    again = [*small, "--method=error_feedback", "--steps=2"]
    assert call(script, *again)[0] == 2  # the run is there
    code, out, err = call(script, *again, "--resume")
    assert code == 0, err
    there = {path.name for path in (tmp_path / "run").iterdir()}
    assert there >= {"config.json", "curves.png", "samples.txt", "tokenizer.json"}
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2]
    assert json.loads(lines[-1])["robust_loss"] > 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--method=mean", "there is no mean"),
        ("--compressor=topk", "did you mean top_k?"),
        ("--method=masha1 --compressor=top_k:0.1", "must be unbiased"),
        ("--method=average --compressor=quantize:99", "--compressor=quantize:99"),
        ("--radius=-1", "--radius=-1.0 must be at least 0"),
        ("--workers=4 --devices=3", "--devices=3"),
        ("--warmup_steps=9 --decay_steps=9", "must be above --warmup_steps=9"),
        ("--text=nowhere.txt", "no file matches"),
        ("--vocab_size=100", "at least 258"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(call, script, tmp_path, flags, words):
    code, _, err = call(script, "--workdir=run", "--text=nowhere.txt", *flags.split())
    assert code == 2
    assert words in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["average", "error_feedback", "masha1", "vr_masha2"])
def test_every_method_can_be_made(script, method):
    config = script.Config(method=method, workers=2)
    workers = script._workers(config)
    assert hasattr(script.make(config, workers, 1000), "update")
