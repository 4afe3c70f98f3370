"""Metrics files."""

import json

from jaxsp.gan.training import records


def test_a_record_is_a_line_of_json_and_readable_at_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = {"step": 0, "loss": None, "bits": 2**60 + 1, "score": 0.1}
    assert records.write_record(path, first) == first
    assert records.read_metrics(path) == [first]
    second = {"step": 5, "loss": float("nan"), "score": float("inf")}
    known = {"step": 5, "loss": None, "score": None}
    assert records.write_record(path, second) == known
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        first,
        known,
    ]
    assert records.write_record(None, second) == known


def test_a_file_goes_on_from_the_records_that_are_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert records.keep_records(path, bool) == []
    assert path.read_text() == ""
    for step in (0, 5, 10):
        records.write_record(path, {"step": step})
    with path.open("a") as file:
        file.write('{"step": 1')  # the machine went down here
    kept = records.keep_records(path, lambda r: r["step"] <= 5)
    assert kept == [{"step": 0}, {"step": 5}]
    records.write_record(path, {"step": 7})
    assert path.read_text() == '{"step": 0}\n{"step": 5}\n{"step": 7}\n'
