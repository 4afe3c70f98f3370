"""What the compilers of TPUs and GPUs make of the steps: `make test-accelerators`.

The compilers are there, TPUs and GPUs are not: nothing runs.
"""

import importlib
import pathlib

import pytest

pytestmark = pytest.mark.accelerators

ROOT = pathlib.Path(__file__).parents[1] / "benchmarks"
SIZE = 1_000_000
GOSSIP = (
    "dposg, ring",
    "dp_oadam, one-peer",
    "decentralized_extra_step, Chebyshev 4",
    "compressed_gossip, sign",
)
MEANS = ("cp_oadam", "dqgan, top-k 1 %")


@pytest.fixture(scope="module")
def bench():
    """The benchmark as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        yield importlib.import_module("accelerators")


def only(rows):
    (row,) = rows
    return row


@pytest.mark.parametrize("name", GOSSIP + MEANS)
def test_a_tpu_sends_what_is_counted_and_holds_little_more(bench, name):
    row = only(bench.rows([name], "v5e-8", 1, SIZE))
    for sent, counted in zip(row["sent"], row["counted"], strict=True):
        assert sent == pytest.approx(counted, rel=0.02, abs=64)
    assert row["sent"][0] > 0
    assert row["temporary"] <= 2 * 4 * SIZE
    if name in GOSSIP:
        assert all(c["op"] == "collective-permute" for c in row["collectives"])
        assert all(c["asynchronous"] for c in row["collectives"])


@pytest.mark.parametrize("name", GOSSIP + MEANS)
def test_a_gpu_sends_what_is_counted(bench, name):
    row = only(bench.rows([name], "h100-8", 1, SIZE))
    assert row["sent"] == pytest.approx(row["counted"], rel=0.02, abs=64)
    assert all(c["asynchronous"] for c in row["collectives"])


def test_of_blocks_only_rows_that_cross_a_border_are_sent(bench):
    row = only(bench.rows(["dposg, ring"], "v5e-8", 2, SIZE))
    assert (row["workers"], row["sent"]) == (16, [2 * 4 * SIZE] * 2)
    assert row["counted"] == (4 * 4 * SIZE,) * 2


@pytest.mark.parametrize("target", ["v5e-8", "h100-8"])
def test_gossip_goes_on_beside_the_gradient(bench, target):
    row = only(bench.rows(["gan: DCGAN 28, dp_oadam"], target, 1, SIZE))
    assert row["sent"] == list(row["counted"])
    beside = [c["products"] for c in row["collectives"]]
    # A TPU sends both ways at once, a GPU one after the other.
    assert (min if target == "v5e-8" else max)(beside) > 0


def test_an_all_reduce_waits_for_the_gradient(bench):
    row = only(bench.rows(["gan: DCGAN 28, cp_oadam"], "h100-8", 1, SIZE))
    assert [c["products"] for c in row["collectives"]] == [0]
