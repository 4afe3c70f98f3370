"""The short examples, small: methods converge, networks learn, fewer bytes travel."""

import math

import jax
import pytest


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """What most readers have."""
    first = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *backend: first)


def test_gossip_game_is_solved_by_methods_that_look_ahead(example, capsys):
    found = example("gossip_game").main(steps=400, workers=5, size=4)
    descent, dposg, extra_step = found.values()
    assert not descent[0] < 30  # it started at about 2
    for distance, consensus in (dposg, extra_step):
        assert distance < 0.1
        assert consensus < 0.1
    assert capsys.readouterr().out.count("step ") == 15


def test_more_rounds_of_gossip_bring_the_workers_together(example):
    one, four = (
        example("gossip_game").main(steps=200, workers=5, size=4, rounds=rounds)
        for rounds in (1, 4)
    )
    assert four["DPOSG"][1] < 0.5 * one["DPOSG"][1]


def test_compressed_gan_learns_as_well_with_an_eighth_of_the_bytes(example, capsys):
    steps, workers, width = 300, 2, 32
    found = example("compressed_gan").main(steps, workers, batch_size=32, width=width)
    whole, codes = found["32 bits"], found["4 bits"]
    for before, after, *_ in (whole, codes):
        assert after < before / 3
    for direction in (2, 3):
        assert 1 / 8 < codes[direction] / whole[direction] < 1 / 6
    assert f"sent {codes[2] / 1e6:.1f} MB" in capsys.readouterr().out


def test_md_gan_learns(example, capsys):
    before, after = example("md_gan").main(steps=300, workers=3, swap_every=100)
    assert math.isfinite(after)
    assert after < before / 3
    assert "step 300: " in capsys.readouterr().out


def test_own_method_converges(example, capsys):
    before, after = example("own_method").main(steps=300, workers=3, size=6)
    assert after < before / 50
    assert "kB sent by a worker" in capsys.readouterr().out
