"""GAN runs for the claims: what they give back, and what they say without data."""

import pathlib
import signal

import numpy as np
import optax
import pytest

import jaxsp

ROOT = pathlib.Path(__file__).parents[2] / "claims"


@pytest.fixture
def gan_runs(monkeypatch):
    """The module, as where claims are run."""
    monkeypatch.syspath_prepend(str(ROOT))
    import gan_runs

    return gan_runs


def test_a_run_by_the_command_gives_records_and_samples(gan_runs, capsys):
    run = gan_runs.by_command(
        dataset="mixture_ring", workers=2, steps=20, eval_every=10, batch_size=4
    )
    steps, shares = run.line("high_quality")
    np.testing.assert_array_equal(steps, [10, 20])
    assert run.end("high_quality") == shares[-1]
    assert run.end("high_quality", last=2) == pytest.approx(shares.mean())
    assert run.samples.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == ""


def test_a_run_by_a_method_scores_the_mean_as_it_stands(gan_runs):
    dataset = gan_runs.load("mixture_ring")
    config = gan_runs.TrainConfig(
        steps=4, eval_every=2, log_every=2, eval_samples=500, progress=False
    )
    run = gan_runs.by_method(
        dataset,
        [np.arange(100), np.arange(100, 200)],
        lambda axis: optax.chain(optax.adam(1e-3), jaxsp.sync(2, axis)),
        config,
        "mlp:16",
        8,
    )
    assert list(run.line("high_quality")[0]) == [2, 4]
    assert [r["consensus_distance"] < 1e-4 for r in run.records] == [True] * 3
    assert run.samples.exists()


def test_a_signal_ends_all_and_leaves_no_half_run(gan_runs, monkeypatch):
    real = gan_runs.command.run

    def stopped(config, progress):
        return real(config, progress, lambda record: signal.raise_signal(15))

    monkeypatch.setattr(gan_runs.command, "run", stopped)
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        gan_runs.by_command(
            dataset="mixture_ring", workers=2, steps=20, eval_every=10, batch_size=4
        )


@pytest.mark.parametrize("name", ["md_gan.scores", "esl.gan"])
def test_missing_data_are_said_in_one_line(
    gan_runs, name, monkeypatch, tmp_path, capsys
):
    import run

    monkeypatch.setenv("JAXSP_DATA_DIR", str(tmp_path / "nothing"))
    assert run.main([name, "--full", f"--output={tmp_path}"]) == 1
    said = capsys.readouterr()
    assert "not run: needs mnist, which is not in $JAXSP_DATA_DIR" in said.out
    assert "Traceback" not in said.err
