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
MEANS = (
    "cp_oadam",
    "dqgan, 4 bits both ways",
    "dqgan, sign",
    "dqgan, top-k 1 %",
)
# How often main memory's floor is read and written by 16 million numbers, which a TPU
# has no room for in its vector memory: at most a twentieth more than when measured.
PASSES = {
    ("v5e-8", "dqgan, sign"): 1.98,
    ("v5e-8", "dqgan, top-k 1 %"): 2.38,
    ("v5e-8", "masha1, rand-k 1 %"): 2.38,
    ("h100-8", "dqgan, 4 bits both ways"): 1.89,
    ("h100-8", "dqgan, sign"): 2.0,
    ("h100-8", "dqgan, top-k 1 %"): 5.2,
    ("h100-8", "masha1, rand-k 1 %"): 2.32,
}


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


@pytest.mark.parametrize("name", ["masha1, rand-k 1 %", "masha1, perm_k"])
def test_a_coin_decides_what_a_tpu_sends(bench, name):
    row = only(bench.rows([name], "v5e-8", 1, SIZE))
    for sent, counted in zip(row["sent"], row["counted"], strict=True):
        assert sent == pytest.approx(counted, rel=0.02, abs=64)
    # 4.6 models now, where perm_k once took 68.
    assert row["temporary"] <= 5 * 4 * SIZE


@pytest.mark.parametrize("name", GOSSIP + MEANS)
def test_a_gpu_sends_what_is_counted(bench, name):
    row = only(bench.rows([name], "h100-8", 1, SIZE))
    assert tuple(row["sent"]) == pytest.approx(row["counted"], rel=0.02, abs=64)
    assert all(c["asynchronous"] for c in row["collectives"])


@pytest.mark.parametrize(("target", "name"), PASSES)
def test_main_memory_is_read_and_written_few_times(bench, target, name):
    row = only(bench.rows([name], target, 1, 16 * SIZE))
    assert row["main"] <= PASSES[target, name] * row["floor"]


@pytest.mark.parametrize(
    ("name", "most"), [("dqgan, top-k 1 %", 120), ("masha1, rand-k 1 %", 80)]
)
def test_sparse_payloads_take_few_kernels_of_a_gpu(bench, name, most):
    assert only(bench.rows([name], "h100-8", 1, SIZE))["kernels"] <= most


def test_of_blocks_only_rows_that_cross_a_border_are_sent(bench):
    row = only(bench.rows(["dposg, ring"], "v5e-8", 2, SIZE))
    assert (row["workers"], row["sent"]) == (16, [2 * 4 * SIZE] * 2)
    assert row["counted"] == (4 * 4 * SIZE,) * 2


@pytest.mark.parametrize(
    "name", ["gan: DCGAN 28, dp_oadam", "gan: DCGAN 28, dqgan delayed 4 bits"]
)
def test_what_is_known_before_travels_beside_the_gradient(bench, name):
    row = only(bench.rows([name], "v5e-8", 1, SIZE))
    assert tuple(row["sent"]) == pytest.approx(row["counted"], rel=0.02, abs=64)
    assert min(c["products"] for c in row["collectives"]) > 0


def test_on_a_gpu_it_does_so_one_way_and_an_all_reduce_waits(bench):
    gossip = only(bench.rows(["gan: DCGAN 28, dp_oadam"], "h100-8", 1, SIZE))
    assert max(c["products"] for c in gossip["collectives"]) > 0
    mean = only(bench.rows(["gan: DCGAN 28, cp_oadam"], "h100-8", 1, SIZE))
    assert [c["products"] for c in mean["collectives"]] == [0]


def test_a_ring_on_a_large_slice_goes_on_beside_the_gradient(bench):
    """Which it does along neighbours, and not in JAX's order of chips."""
    row = only(bench.rows(["gan: MLP 8, dp_oadam"], "v5e-256", 1, SIZE))
    assert [c["op"] for c in row["collectives"]] == ["collective-permute"] * 2
    assert min(c["products"] for c in row["collectives"]) > 0
