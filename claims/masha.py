"""The experiments of `masha.yaml`: compressed extragradient around a snapshot."""

import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from experiment import (
    Measured,
    MissingDataError,
    Panel,
    benchmark,
    best,
    distances,
    double,
)

import jaxsp
from jaxsp import compressors, methods, problems

_AXIS = "workers"
_X = "iterations"
_Y = r"$|z - z^*|^2 / |z^0 - z^*|^2$"
_SHARE = 0.3  # what compressors keep


def _game(seed, workers=10, dim=100):
    return problems.definite_bilinear(
        workers, dim, L=1.0, mu=1e-5, linear=1.0, seed=seed
    )


def _channel(up, down=None, seed=0):
    return jaxsp.channel(_AXIS, up, down, key=jax.random.key(seed), route="gather")


def _first(curve, accuracy):
    """The iteration at which an accuracy is reached, or infinity."""
    below = np.flatnonzero(curve <= accuracy)
    return float(below[0]) if below.size else np.inf


def _measure(problem, made, rates, steps, seed, **options):
    """The curve of every method at the best of its rates; the rates taken."""
    curves, taken = {}, {}
    for name, make in made.items():
        found = distances(problem, make, rates, steps, seed=seed, every=10, **options)
        chosen = best(found)
        curves[name], taken[name] = found[chosen], float(rates[chosen])
    return curves, taken


def _lines(curves):
    return {name: (10 * np.arange(len(curve)), curve) for name, curve in curves.items()}


@double
def bilinear(seed: int, full: bool) -> Measured:
    """The paper's comparison, every method with the best of its steps."""
    problem, steps = _game(seed), 20_000 if full else 3_000
    rand, top = (
        _channel(compressors.rand_k(_SHARE), seed=seed),
        _channel(compressors.top_k(_SHARE), seed=seed),
    )
    made: dict[str, Callable[[Any], Any]] = {
        "MASHA1, RandK": lambda rate: methods.masha1(rate, rand, _SHARE),
        "MASHA2, TopK": lambda rate: methods.masha2(rate, top, _SHARE),
        "CEG, RandK": lambda rate: methods.compressed_extragradient(rate, rand),
        "QGD, RandK": lambda rate: methods.qsgda(rate, rand),
        "descent with feedback, TopK": lambda rate: optax.chain(
            jaxsp.error_feedback_average(top), optax.sgd(rate)
        ),
    }
    rates = np.array([0.001, 0.004, 0.016, 0.06, 0.125, 0.25, 0.5, 1.0])
    curves, taken = _measure(problem, made, rates, steps, seed)
    names = dict(zip(made, ("masha1", "masha2", "ceg", "qgd", "feedback"), strict=True))
    values = {names[name]: float(curve[-1]) for name, curve in curves.items()}
    for name, curve in curves.items():
        values[f"{names[name]} iterations"] = 10 * _first(curve, 1e-7)
        values[f"{names[name]} rate"] = taken[name]
        values[f"{names[name]} lowest"] = float(np.nanmin(curve))
    first, second = values["masha1 iterations"], values["masha2 iterations"]
    values["masha1 / masha2"] = first / second
    levels = {"to 1e-7": 1e-7}
    panel = Panel("10 workers, d = 100, 30 %", _X, _Y, _lines(curves), levels)
    return Measured(values, [panel])


@double
def common_solution(seed: int, full: bool) -> Measured:
    """Compressed operators, where workers agree at the solution and where not."""
    problem, steps = _game(seed), 12_000 if full else 4_000
    # With these linear terms every F_m vanishes at z*.
    x, y = problem.z_star
    A, mu = problem.data.coupling, problem.mu
    agreeing = problem.data._replace(p=-(mu * x + A @ y), q=-(mu * y - A @ x))
    rand = _channel(compressors.rand_k(_SHARE), seed=seed)
    made = {"CEG": lambda rate: methods.compressed_extragradient(rate, rand)}
    rates = np.array([0.01, 0.03, 0.06, 0.125, 0.25])
    unlike, _ = _measure(problem, made, rates, steps, seed)
    alike, _ = _measure(problem._replace(data=agreeing), made, rates, steps, seed)
    curves = {"workers unlike": unlike["CEG"], "every F_m(z*) = 0": alike["CEG"]}
    values = {"unlike": float(curves["workers unlike"][-100:].min())}
    values["alike"] = float(curves["every F_m(z*) = 0"][-1])
    panel = Panel("CEG, RandK 30 %", _X, _Y, _lines(curves))
    return Measured(values, [panel])


@double
def variants(seed: int, full: bool) -> Measured:
    """Both ways, with partial participation, and with minibatches."""
    workers, terms, steps = 10, 8, 30_000 if full else 4_000
    problem = _game(seed, workers * terms, 50)
    split = jax.tree.map(
        lambda v: v.reshape(workers, terms, *v.shape[1:]), problem.data
    )
    finite = problem._replace(data=split)
    whole = problem._replace(data=jax.tree.map(lambda v: v.mean(1), split))
    up = compressors.rand_k(_SHARE)
    one_way = _channel(up, seed=seed)
    both = _channel(up, compressors.natural(), seed=seed)
    top = compressors.top_k(_SHARE)
    top_both = _channel(top, top, seed=seed)
    made: dict[str, Callable[[Any], Any]] = {
        "MASHA1, up": lambda rate: methods.masha1(rate, one_way, _SHARE),
        "MASHA1, both ways": lambda rate: methods.masha1(rate, both, _SHARE),
        "MASHA2, both ways": lambda rate: methods.masha2(rate, top_both, _SHARE),
        "MASHA1, half take part": lambda rate: methods.pp_masha1(
            rate, one_way, workers // 2, _SHARE / 2
        ),
    }
    minibatch: dict[str, Callable[[Any], Any]] = {
        "VR-MASHA1": lambda rate: methods.vr_masha1(rate, one_way, 1 / terms),
        "VR-MASHA2": lambda rate: methods.vr_masha2(
            rate, _channel(top, seed=seed), 1 / terms
        ),
    }
    rates = np.array([0.06, 0.125, 0.25, 0.5, 1.0])
    curves, _ = _measure(whole, made, rates, steps, seed)
    more, _ = _measure(finite, minibatch, rates, steps, seed, terms=True)
    curves |= more
    values = {name: float(curve[-1]) for name, curve in curves.items()}
    values["worst"] = max(values.values())
    panel = Panel("10 workers, d = 50, 30 %", _X, _Y, _lines(curves))
    return Measured(values, [panel])


@double
def feedback(seed: int, full: bool) -> Measured:
    """The game on which Top-1 without feedback grows, and with it converges."""
    del seed, full  # nothing is random
    vectors = jnp.array([[-3.0, 2.0, 2.0], [2.0, -3.0, 2.0], [2.0, 2.0, -3.0]])
    operator = jaxsp.gradient(lambda w, a: (a @ w) ** 2 + w @ w / 4)
    rate, steps = 0.01, 400
    workers = jaxsp.Workers(3, jax.devices()[:1])
    top = _channel(compressors.top_k(1 / 3))
    made = {
        "Top-1": jaxsp.average(top),
        "Top-1 with feedback": jaxsp.error_feedback_average(top),
    }
    lines, values = {}, {}
    for name, exchange in made.items():
        method = optax.chain(exchange, optax.sgd(rate))

        def run(a, method=method):
            def step(carry, _):
                w, state = carry
                updates, state = method.update(operator(w, a), state, w)
                w = optax.apply_updates(w, updates)
                return (w, state), jnp.linalg.norm(w)

            w = jnp.ones(3)
            return jax.lax.scan(step, (w, method.init(w)), length=steps)[1]

        norms = np.asarray(jax.jit(workers.map(run))(vectors)[0])
        lines[name] = (np.arange(1, steps + 1), norms / np.sqrt(3))
        values[name] = float(norms[-1] / np.sqrt(3))
    norms = lines["Top-1"][1]
    values["growth"] = float((norms[-1] / norms[0]) ** (1 / (steps - 1)))
    values["growth / formula"] = values["growth"] / (1 + 11 * rate / 6)
    values["farthest"] = float(
        abs(norms[1:] / norms[:-1] / (1 + 11 * rate / 6) - 1).max()
    )
    return Measured(values, [Panel("γ = 0.01", _X, r"$|w| / |w^0|$", lines)])


# ------------------------------------------------------------------ a transformer


def transformer(seed: int, full: bool) -> Measured:
    """Adversarial training of a small encoder, its gradients through compressors."""
    try:
        robust = benchmark("robust")
    except ImportError as error:
        raise MissingDataError(f"needs jaxsp[robust] ({error})") from None
    reference, plain = "full precision", "plain training, full precision"
    steps, curves, values = 1_200 if full else 100, {}, {}
    names = (reference, plain, "8 bits, feedback", "4 bits", "4 bits, feedback")
    names += ("Top 1 %, feedback",)
    told = ("step", "robust_loss", "clean_loss", "bits_up", "bits_down")
    diverged = [dict.fromkeys(told, np.inf)]
    with tempfile.TemporaryDirectory() as directory:
        for name in names:
            records = robust.measure(pathlib.Path(directory), name, steps, seed)
            curves[name] = [r for r in records or diverged if r.get("robust_loss")]
    for name, curve in curves.items():
        end, best_end = curve[-1], curves[reference][-1]
        for loss, said in (("robust_loss", "under attack"), ("clean_loss", "clean")):
            values[f"{name}, {said}"] = end[loss]
            values[f"{name}, {said}, to full precision"] = end[loss] / best_end[loss]
        values[f"{name}, times fewer bytes"] = robust.megabytes(
            best_end
        ) / robust.megabytes(end)
    panels = []
    for label, log, x in (
        ("steps", "", lambda r: r["step"]),
        ("MB of a worker, both ways", "x", robust.megabytes),
    ):
        lines = {
            name: ([x(r) for r in curve[1:]], [r["robust_loss"] for r in curve[1:]])
            for name, curve in curves.items()
        }
        y = "validation loss under attack, nats"
        panels.append(Panel("4 workers", label, y, lines, log=log))
    return Measured(values, panels)
