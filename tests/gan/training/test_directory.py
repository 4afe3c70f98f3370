"""Who uses the directory of a run."""

import json
import logging
import os
import pathlib
import platform
import signal
import subprocess
import sys

import pytest

from jaxsp.gan.training import directory
from jaxsp.gan.training.records import read_metrics

SCRIPT = pathlib.Path(__file__).with_name("two_runs.py")


def test_a_directory_is_held_by_one(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    assert directory.check_directory(path, {}, False) is False
    with directory.held(path):
        who = f"pid {os.getpid()} on {platform.node()} since 20"
        for use in (
            lambda: directory.check_directory(path, {}, False),
            lambda: directory.held(path).__enter__(),
        ):
            message = f"{path} is in use by another run .{who}.*: wait until"
            with pytest.raises(directory.WorkdirError, match=message):
                use()
    # What a dead holder leaves is no lock.
    assert (path / ".lock").read_text().startswith(who)
    assert directory.check_directory(path, {}, False) is False
    with directory.held(path):
        pass
    assert directory.written(path) == ()


def test_a_file_system_without_locks_is_told_of(tmp_path, monkeypatch, caplog):
    def flock(file, kind):
        raise OSError(directory.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(directory.fcntl, "flock", flock)
    with directory.held(tmp_path):
        assert "no locks" in caplog.text
    assert caplog.records[0].levelno == logging.WARNING


def test_two_runs_never_train_in_one_directory(tmp_path):
    """Neither new ones nor ones that go on; and who is killed holds it no more."""
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    for runs in json.loads(done.stdout):
        holder, refused = sorted(runs, key=lambda run: run["code"])
        assert (holder["code"], refused["code"]) == (-signal.SIGKILL, 1)
        last = refused["log"].splitlines()[-1]
        assert f"WorkdirError: {tmp_path / 'run'} is in use by another run" in last
        assert f"(pid {holder['pid']} on {platform.node()} since " in last
        config = json.loads((tmp_path / "run" / "config.json").read_text())
        assert config["settings"]["seed"] == holder["seed"]
    steps = [r["step"] for r in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert steps == list(range(0, steps[-1] + 1, 5))
