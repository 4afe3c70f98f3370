"""The benchmarks run, on sizes at which their numbers still mean something."""

import importlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsp import compressors, methods
from jaxsp.gan import losses as gan_losses
from jaxsp.gan import models

ROOT = pathlib.Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    """A script of `benchmarks/` as a module, as where it is run."""
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module


@pytest.mark.parametrize(
    ("graph", "passes"),
    [("ring", 2), ("one-peer exponential", 2), ("mean of all", 2.25)],
)
def test_a_mixing_is_timed_beside_a_copy(load, graph, passes):
    bench = load("gossip_scaling")
    mixing, z, state = bench.make_mixing(graph, 8, 80_000)
    if graph == bench.MEAN:
        expected = np.broadcast_to(np.asarray(z).mean(0), z.shape)
    else:
        expected = bench.GRAPHS[graph](8).matrices[0] @ z
    np.testing.assert_allclose(mixing(z, state)[0], expected, atol=1e-6)
    program = load("hlo").read(jax.jit(mixing).lower(z, state).compile().as_text())
    # Each reads once and writes once; the mean itself, an eighth, is written and read.
    assert load("hlo_memory").touched(program).main < (passes + 0.1) * z.nbytes
    found = bench.measure(graph, 8, 80_000, repeats=3)
    assert list(found) == ["mixing ms", "copy ms", "GB/s", "share"]
    assert min(found.values()) > 0


def test_the_step_by_hand_is_the_librarys(load, monkeypatch):
    bench = load("step_overhead")
    gan, devices = models.mlp((8, 8, 1), width=16), jax.devices()[:1]
    found = bench.measure(gan, devices, repeats=3)
    assert [times.shape for times in found.values()] == [(3,), (3,)]
    step, _ = bench.by_hand(gan_losses.non_saturating(gan), devices)
    wrong = lambda z: jax.tree.map(lambda v: 1e-3 * jnp.ones_like(v), z)  # noqa: E731
    monkeypatch.setattr(bench, "by_hand", lambda *_: (step, wrong))
    with pytest.raises(RuntimeError, match="are not the same"):
        bench.measure(gan, devices, repeats=1)


def test_compressing_a_copy_costs_something(load):
    x = jax.random.normal(jax.random.key(0), (1000,))
    found = load("compressors").measure(compressors.sign(), x, repeats=2)
    assert list(found) == ["copy", "compress", "decompress", "residual"]
    assert min(times.min() for times in found.values()) > 0


def test_masha1_needs_fewer_floats_than_extragradient(x64, tmp_path, load):
    bench = load("residual_vs_bits")
    workers, size = 10, 20
    game = bench.make_game(workers, size, 10)
    wanted = ("EG", "MASHA1 RandK 10 %")
    rows = [r for r in bench.rows(game) if r.name in wanted]
    rows = [r._replace(steps={"theory": r.steps["theory"]}) for r in rows]
    found = {r.name: bench.measure(r, game, chunk=250) for r in rows}

    eg, masha1 = (found[name]["theory"] for name in wanted)
    assert eg.floats[-1] == 2 * size * eg.reached
    assert eg.bits[-1] == 64 * eg.floats[-1]
    # A ring moves 2(M - 1)/M of a vector for a mean.
    assert eg.counted[-1] == eg.bits[-1] * 2 * (workers - 1) / workers
    # Two floats and a seed in each message, the rest is refreshes.
    refreshes = masha1.floats - 2 * np.arange(1, masha1.reached + 1)
    assert refreshes[0] == size
    assert set(np.diff(refreshes)) == {0, size}
    assert masha1.bits[-1] == 64 * (masha1.floats[-1] + masha1.reached)
    assert masha1.floats[-1] < eg.floats[-1] / 2

    bench.print_runs(found)
    bench.plot({"game": found}, tmp_path / "plot.png")
    assert [p.name for p in tmp_path.iterdir()] == ["plot.png"]


def test_an_md_gan_worker_computes_nothing_for_the_generator(capsys, load):
    bench = load("md_gan_cost")

    def with_generator(width):
        judge = models.MLPDiscriminator(64, num_classes=2)
        generator = models.MLPGenerator((8, 8, 1), width)
        return models.Gan(generator, judge, 16, (8, 8, 1), 2)

    found = bench.measure(with_generator(96), 256, batch_size=256, count=2)
    wider = bench.planned("md", with_generator(192), 256, 256, 1)
    assert found["operations"]["md_gan"] == wider.costs["worker"].flops
    assert found["memory"]["md_gan"] == wider.costs["worker"].memory
    for what in ("operations", "memory"):
        assert found[what]["md_gan"] < found[what]["fl_gan"]

    layers = {"d": (64 * 64, 64 * 64, 64 * 3), "g": (16 * 96, 96 * 96, 96 * 64)}
    d, g = (2 * 256 * np.array(layers[name]) for name in "dg")
    by_hand = found["operations_by_hand"]
    assert by_hand["md_gan"] == 8 * d.sum() - 2 * d[0]
    # The two losses are of the same samples, which are generated once.
    assert by_hand["fl_gan"] == by_hand["md_gan"] + 3 * g.sum() - g[0]
    assert by_hand["server"] == {1: 4 * g.sum() - g[0]}
    # Adam and what is done to each number alone come on top, and are little here.
    for kind, flops in found["operations"].items():
        assert by_hand[kind] < flops < 1.1 * by_hand[kind]
    assert by_hand["server"][1] < found["server_operations"][1]
    assert found["server_operations"][1] < 1.1 * by_hand["server"][1]
    bench.print_tables({"tiny": found})
    assert capsys.readouterr().out.count("| tiny |") == 3


def test_compressed_adversarial_training_is_compared(load, tmp_path, monkeypatch):
    bench = load("robust")
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 200)
    small = {"text": str(tmp_path / "text.txt"), "vocab_size": 258, "length": 8}
    small |= {"workers": 2, "batch_size": 2}
    fours = small | {"compressor": "quantize:4"}
    monkeypatch.setattr(bench, "ROWS", {"full precision": small, "4 bits": fours})
    full, four = bench.table_rows(tmp_path, 2, [0], bench.ROWS)
    assert full[3] == "+0.0 %"
    assert full[5] == "1.0"
    assert float(four[2]) > 1
    assert 7 < float(four[5]) <= 8  # and the scales
    again = list(bench.table_rows(tmp_path, 2, [0], bench.ROWS))
    assert again == [full, four]  # read back


def test_every_method_is_compiled_for_accelerators(load):
    """On CPUs here, for which a compiler is always there."""
    bench = load("accelerators")
    named = {name.partition(",")[0] for name in bench.METHODS}
    named -= {"compressed_gossip", "dqgan delayed"}  # which are put together
    assert named == set(methods.__all__) - {"eval_params"}
    found, text = bench.measure(bench.lower("dposg, ring", jax.devices()[:8], 8, 100))
    assert "collective-permute" in text
    assert [c["op"] for c in found["collectives"]] == ["collective-permute"] * 2
    assert tuple(found["sent"]) == bench.counted("dposg, ring", 8, 100) == (800, 800)
    row = {"step": "dposg, ring", "counted": (800, 800)} | found
    assert len(bench.cells(row)) == len(bench.HEAD)


def test_counts_have_a_range_where_a_coin_decides(load):
    bench = load("accelerators")
    assert bench.counted("local_extra_adam", 8, 100) == (0, 700)
    assert bench.counted("masha1, rand-k 1 %", 8, 100) == (84, 784)


@pytest.mark.parametrize("target", ["v5e-8", "h100-8"])
def test_a_missing_compiler_is_one_line(load, target, monkeypatch):
    bench = load("accelerators")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("sys.argv", ["accelerators", "--targets", target])
    with pytest.raises(SystemExit, match=f"no compiler for {target}: pip"):
        bench.main()
