"""Runs that were killed end as if they had not been."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxsp.gan.training.records import read_metrics

SCRIPT = pathlib.Path(__file__).with_name("killed_runs.py")


@pytest.mark.parametrize(("method", "kills"), [("dp_oadam", 4), ("md_gan", 2)])
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
    states = [dict(np.load(tmp_path / f"{run}.npz")) for run in ("whole", "killed")]
    jax.tree.map(np.testing.assert_array_equal, *states)
    whole, killed = (
        [r | {"seconds": None} for r in read_metrics(tmp_path / run / "metrics.jsonl")]
        for run in ("whole", "killed")
    )
    assert whole == killed
