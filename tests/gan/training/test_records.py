"""Metrics files and progress."""

import io
import json

from jaxsp.gan.training import records


def test_metrics_file_is_json_a_line_and_readable_at_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = records.MetricsFile(path)
    metrics.write({"step": 0, "loss": None, "bits": 2**60 + 1, "score": 0.1})
    metrics.write({"step": 5, "loss": float("nan"), "score": float("inf")})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == {"step": 0, "loss": None, "bits": 2**60 + 1, "score": 0.1}
    assert lines[1] == {"step": 5, "loss": None, "score": None}
    assert metrics.records == lines


def test_metrics_file_goes_on_from_the_records_that_are_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = records.MetricsFile(path)
    for step in (0, 5, 10):
        first.write({"step": step})
    with path.open("a") as file:
        file.write('{"step": 1')  # the machine went down here
    second = records.MetricsFile(path, keep=lambda r: r["step"] <= 5)
    second.write({"step": 7})
    assert path.read_text() == '{"step": 0}\n{"step": 5}\n{"step": 7}\n'
    assert [r["step"] for r in second.records] == [0, 5, 7]


def test_metrics_file_without_a_path_stays_in_memory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    metrics = records.MetricsFile(None)
    metrics.write({"step": 0})
    assert metrics.records == [{"step": 0}]
    assert list(tmp_path.iterdir()) == []


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_a_bar_on_a_terminal():
    stream = Terminal()
    progress = records.ProgressBar(40, 10, stream=stream)
    progress.update(25, loss_G=0.5)
    progress.update(40, loss_G=0.25)
    progress.close()
    last = stream.getvalue().split("\r")[-1]
    assert "40/40" in last
    assert "loss_G=0.250" in last


def test_progress_is_a_line_a_tenth_elsewhere():
    stream = io.StringIO()
    progress = records.ProgressBar(100, stream=stream)
    for step in range(1, 101):
        progress.update(step, loss_G=0.5)
    progress.close()
    lines = stream.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == [
        f"step {step}/100" for step in range(10, 101, 10)
    ]
    assert all("left, loss_G=0.500" in line for line in lines)


def test_progress_can_be_silent():
    stream = Terminal()
    progress = records.ProgressBar(2, enabled=False, stream=stream)
    progress.update(2, loss_G=0.5)
    progress.close()
    assert stream.getvalue() == ""
