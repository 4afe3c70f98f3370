"""Progress on a terminal, in a pipe and in a notebook."""

import importlib.util
import io
import sys
import types

import pytest

from jaxsp.gan import bars

NUMBERS = {"G": 0.75512, "D": 1.33891, "modes": 6.0, "HQ": 0.27134}


@pytest.fixture
def stream(monkeypatch):
    """Standard error, which may be a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")

    def make(is_terminal):
        found = io.StringIO()
        found.isatty = lambda: is_terminal
        monkeypatch.setattr(sys, "stderr", found)
        return found

    return make


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is moved."""
    now = [1000.0]
    fake = types.SimpleNamespace(monotonic=lambda: now[0], time=lambda: now[0])
    monkeypatch.setattr(bars, "time", fake)
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    return now


def go(total, start=0, every=1, **given):
    bar = bars.ProgressBar(total, start=start, each_tenth=True, **given)
    for step in range(start + every, total + 1, every):
        bar.update(step, **NUMBERS)
    bar.close()


def test_a_bar_fits_a_terminal_with_all_its_numbers(stream, clock):
    out = stream(True)
    bar = bars.ProgressBar(30_000)
    bar.update(1, **NUMBERS)
    clock[0] += 600
    bar.update(15_000, **NUMBERS)
    last = out.getvalue().split("\r")[-1]
    bar.close()
    assert len(last) < 80
    left, shown, right = last.split("|")
    assert left == " 50%"
    assert len(shown) >= 10
    assert right == " 15000/30000 [10:00<10:00, G 0.755 D 1.34 modes 6 HQ 0.271]"


def test_what_the_first_step_takes_is_no_part_of_the_estimate(stream, clock):
    out = stream(True)
    bar = bars.ProgressBar(100, start=10)
    clock[0] += 500  # it compiles
    bar.update(11)
    assert "11/100 [00:00<?]" in out.getvalue()
    clock[0] += 9
    bar.update(20)
    bar.close()
    assert "20/100 [00:09<01:20]" in out.getvalue()


def test_elsewhere_there_is_a_line_a_tenth(stream):
    out = stream(False)
    go(100)
    lines = out.getvalue().splitlines()
    steps = [f"step {step}/100" for step in range(10, 101, 10)]
    assert [line.split(",")[0] for line in lines] == steps
    assert all(line.endswith(", G 0.755 D 1.34 modes 6 HQ 0.271") for line in lines)
    assert [" left" in line for line in lines] == [True] * 9 + [False]
    assert "\r" not in out.getvalue()


def test_or_a_line_every_thirty_seconds(stream, clock):
    out = stream(False)
    bar = bars.ProgressBar(1000, each_tenth=True)
    for step in range(1, 7):
        clock[0] += 20
        bar.update(step)
    bar.close()
    assert out.getvalue().splitlines() == [
        f"step {step}/1000, {left} left"
        for step, left in ((2, "5:32:40"), (4, "5:32:00"), (6, "5:31:20"))
    ]


def test_a_run_that_goes_on_says_from_where(stream):
    for is_terminal in (True, False):
        out = stream(is_terminal)
        go(40, start=30)
        assert out.getvalue().startswith("going on from step 30\n")


def test_a_loop_says_nothing_where_it_is_short(stream, clock):
    out = stream(False)
    assert list(bars.track(range(100), "batches")) == list(range(100))
    assert out.getvalue() == ""
    for _ in bars.track(iter("abcd"), "batches", 4):
        clock[0] += 15
    assert out.getvalue() == "batches 2/4, 00:30 left\nbatches 4/4\n"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_can_be_silent(stream, is_terminal):
    out = stream(is_terminal)
    go(2, enabled=False)
    go(2, start=1, enabled=False)
    list(bars.track(range(3), "batches", enabled=False))
    assert out.getvalue() == ""


def test_a_notebook_without_widgets_gets_lines_that_are_not_red(
    stream, monkeypatch, capsys
):
    shell = types.SimpleNamespace(kernel=object())
    fake = types.SimpleNamespace(get_ipython=lambda: shell)
    monkeypatch.setitem(sys.modules, "IPython", fake)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    out = stream(False)
    go(10, every=5)
    assert out.getvalue() == ""
    assert [line[:9] for line in capsys.readouterr().out.splitlines()] == [
        "step 5/10",
        "step 10/1",
    ]
