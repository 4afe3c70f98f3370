"""jaxsp beside others: that both do the same is found out, and who is missing is said.

The others need not be here. What is, is compared.
"""

import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsp

ROOT = pathlib.Path(__file__).parents[2] / "benchmarks" / "peers"


@pytest.fixture
def load(monkeypatch):
    """A script of `benchmarks/` as a module, as where it is run."""
    monkeypatch.syspath_prepend(str(ROOT.parent))  # what all benchmarks share
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module


@pytest.fixture
def quadratic(load):
    return list(load("games").games())[1]


def extragradient(game, steps, worker=0):
    """A plain loop."""
    P, A, Q, b, c = (x[worker] for x in game.data)
    x, y = game.start

    def moved(x, y, u, v):
        return (
            x - game.rate * (P @ u + A @ v + b),
            y + game.rate * (A.T @ u - Q @ v - c),
        )

    for _ in range(steps):
        x, y = moved(x, y, *moved(x, y, x, y))
    return np.concatenate([x, y])


@pytest.mark.parametrize("each", [False, True])
def test_our_side_is_the_plain_loop(load, quadratic, x64, each):
    tx = jaxsp.extragradient(optax.sgd(quadratic.rate))
    workers = jaxsp.Workers(1, jax.devices()[:1])
    side = load("in_jax").in_a_loop(tx, quadratic, float, workers, each=each)
    side.run(3)
    side.run(4)
    np.testing.assert_allclose(side.point(), extragradient(quadratic, 7), atol=1e-12)


def test_optax_agrees_and_is_timed(load, quadratic):
    bench = load("peers")
    for row in bench.optax_rows(quadratic):
        found = bench.measure(row, repeats=3, seconds=1e-3)
        assert found["difference"] < 1e-12
        assert min(v for k, v in found.items() if k.endswith(("_us", "ratio"))) > 0
        assert found["goal"] is found["met"] is None
        assert len(bench.cells(found)) == len(bench.HEAD)


def test_sides_that_differ_are_not_timed(load, quadratic):
    bench = load("peers")
    row = next(bench.optax_rows(quadratic))
    other = optax.with_extra_args_support(optax.optimistic_gradient_descent(0.099))
    made = load("in_jax").in_a_loop
    wrong = row._replace(theirs=lambda dtype: made(other, quadratic, dtype))
    with pytest.raises(bench.DisagreementError, match="nothing was timed"):
        bench.measure(wrong, repeats=1)
    with pytest.raises(bench.DisagreementError, match="nan from each other"):
        bench.check("game", float("nan"))


def test_a_goal_is_met_or_missed(load):
    bench = load("peers")
    row = bench.Row("game", "method", "peer", None, None, goal=3.0)
    turns = {"ours": np.array([[1.0, 2.0]] * 3), "theirs": np.array([[4.0, 4.0]] * 3)}
    found = bench.summary(row, 0.0, turns)
    assert (found["wall_ratio"], found["cpu_ratio"], found["met"]) == (4, 2, True)
    found = bench.summary(row._replace(goal=5.0), 0.0, turns)
    assert bench.cells(found)[-1] == "5: missed"


def test_a_missing_package_is_one_line(load, monkeypatch, tmp_path, capsys):
    bench, path = load("peers"), tmp_path / "new" / "peers.json"
    found, gone = importlib.util.find_spec, ("torch", "cooper", "drjax")
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name in gone else found(name)
    )
    flags = ["--peers", "cooper", "drjax", "ddp", f"--output={path}"]
    monkeypatch.setattr("sys.argv", ["peers", *flags])
    bench.main()
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in said] == [
        "beside cooper",
        "beside drjax",
        "beside ddp",
    ]
    assert "no torch and no cooper here: pip install -e" in said[0]
    result = json.loads(path.read_text())
    assert list(result["left_out"]) == ["cooper", "drjax", "ddp"]
    assert result["rows"] == []


@pytest.mark.parametrize("peer", ["cooper", "drjax"])
def test_who_is_here_is_compared(load, quadratic, peer):
    bench = load("peers")
    try:
        rows = list(bench.ROWS[peer](quadratic))
    except load("in_torch").MissingPackageError as error:
        assert "make peers" in str(error)  # noqa: PT017
        return
    for row in rows:
        assert bench.measure(row, repeats=1, seconds=1e-3)["difference"] < 1e-9


def stacked(rng):
    """What two workers would send of a matrix and a bias."""
    return {"W": rng.normal(size=(2, 64, 48)), "b": rng.normal(size=(2, 48))}


def updates(load, rule, u):
    workers = jaxsp.Workers(2, jax.devices()[:1])
    tx = load("ddp").method(rule, 1.0, workers.axis_name)
    u = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), u)
    made = workers.map(lambda u: tx.update(u, tx.init(u), u)[0])(u)
    return jax.tree.map(lambda x: -np.asarray(x[0]), made)


def test_half_precision_travels_as_in_the_hook(load):
    u = stacked(np.random.default_rng(0))
    for name, found in updates(load, "fp16 hook", u).items():
        halves = (u[name].astype(np.float32).astype(np.float16) / 2).astype(np.float16)
        np.testing.assert_array_equal(found, halves[0] + halves[1])
        assert found.dtype == np.float32
        assert np.abs(found - u[name].mean(0)).max() > 1e-5  # it was rounded


def test_factors_travel_of_matrices_alone(load):
    rng = np.random.default_rng(0)
    u = jax.tree.map(lambda x: np.repeat(x[:1], 2, 0), stacked(rng))
    found = updates(load, "PowerSGD hook", u)
    np.testing.assert_allclose(found["b"], u["b"][0], rtol=1e-6)
    values = np.linalg.svd(found["W"], compute_uv=False)
    assert values[3] > 1  # two of each worker, which draw their own start
    assert values[4] < 1e-4
