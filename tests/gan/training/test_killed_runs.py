"""Runs that were killed end as if they had not been."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

SCRIPT = pathlib.Path(__file__).with_name("killed_runs.py")


@pytest.mark.parametrize(("method", "kills"), [("dp_oadam", 10), ("md_gan", 3)])
def test_killed_at_random_it_loses_only_what_came_after_the_checkpoint(
    tmp_path, method, kills
):
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path, method, str(kills), "0"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    killed = json.loads(done.stdout)
    assert len(killed) == kills
    for step, kept in killed:
        assert step - kept <= 10 + 5  # a checkpoint every 10 steps, a line every 5
    with (
        np.load(tmp_path / "whole.npz") as whole,
        np.load(tmp_path / "killed.npz") as k,
    ):
        assert whole.files == k.files
        for name in whole.files:
            np.testing.assert_array_equal(whole[name], k[name])
    texts = [(tmp_path / f / "metrics.jsonl").read_text() for f in ("whole", "killed")]
    records = [[json.loads(line) for line in text.splitlines()] for text in texts]
    for record in (*records[0], *records[1]):
        del record["seconds"]
    assert records[0] == records[1]
