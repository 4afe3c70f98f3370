"""The experiments of `esl.yaml`: Extra Step Local SGD and the optimal methods."""

import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from esl_gan import gan as gan  # its experiment on GANs
from experiment import Measured, Panel, best, distances
from jax import lax

import jaxsp
from jaxsp import methods, problems

_AXIS = "workers"
_NOISE = 1e4  # σ², in all coordinates together
_X = "communications"
_Y = r"$|z - z^*|^2 / |z^0 - z^*|^2$"


def _game(seed, full):
    size = 100 if full else 32
    return problems.definite_bilinear(size, size, seed=seed)


def _local(every):
    return lambda rate: methods.extra_step_local_sgd(rate, every, _AXIS)


def _centralized(rate):
    return methods.extra_step(rate, _AXIS)


# ------------------------------------------------------- 1: against local descent


class _ScaffoldState(NamedTuple):
    count: Any
    own: Any  # c_m
    mean: Any  # c
    start: Any  # the point after the last average


def _scaffold(rate, every):
    """Local descent-ascent with the control variates of SCAFFOLD (option II)."""

    def init(params):
        zero = optax.tree.zeros_like(params)
        return _ScaffoldState(jnp.zeros([], jnp.int32), zero, zero, params)

    def update(updates, state, params: Any = None, **extra_args):
        del extra_args
        add, sub, mul = optax.tree.add, optax.tree.sub, optax.tree.scale
        corrected = add(sub(updates, state.own), state.mean)
        z = sub(params, mul(rate, corrected))
        count = state.count + 1
        change = mul(1 / (every * rate), sub(state.start, z))
        own = add(sub(state.own, state.mean), change)
        averaged = _ScaffoldState(
            count, own, lax.pmean(own, _AXIS), lax.pmean(z, _AXIS)
        )
        due = count % every == 0
        choose = lambda new, old: jax.tree.map(  # noqa: E731
            lambda a, b: jnp.where(due, a, b), new, old
        )
        new = choose(averaged, state._replace(count=count))
        return sub(choose(averaged.start, z), params), new

    return optax.GradientTransformationExtraArgs(init, update)


def methods_compared(seed: int, full: bool) -> Measured:
    """Left panel: H = 3, every method with the best of its steps."""
    problem, every, rounds = _game(seed, full), 3, 2000 if full else 600
    build = {
        "Extra Step Local SGD": _local(every),
        "local descent-ascent": lambda rate: optax.chain(
            optax.sgd(rate), jaxsp.sync(every, _AXIS)
        ),
        "SCAFFOLD-type": lambda rate: _scaffold(rate, every),
    }
    rates = np.array([1 / (n * problem.L) for n in (5, 15, 50, 150, 500, 5000)])
    lines, ends = {}, {}
    for name, make in build.items():
        curves = distances(
            problem, make, rates, rounds * every, seed=seed, noise=_NOISE, every=every
        )
        curve = curves[best(curves, tail=50)]
        lines[name] = (np.arange(rounds + 1), curve)
        ends[name] = float(curve[-50:].mean())
    values = {
        "extra_step": ends["Extra Step Local SGD"],
        "local_descent": ends["local descent-ascent"],
        "scaffold": ends["SCAFFOLD-type"],
    }
    levels = {"the paper's Extra Step Local SGD after 2,000": 1e-3} if full else {}
    return Measured(values, [Panel("H = 3, tuned steps", _X, _Y, lines, levels)])


# ---------------------------------------------------------- 2: how often to average


def frequency(seed: int, full: bool) -> Measured:
    """Middle panel: γ = 1/(15 L), averages every H steps."""
    problem, rounds = _game(seed, full), 600 if full else 300
    rate = 1 / (15 * problem.L)
    lines, values = {}, {}
    methods_of = {"centralized": (_centralized, 1)}
    for every in (1, 5, 10, 15, 25):
        methods_of[f"H = {every}"] = (_local(every), every)
    for name, (make, every) in methods_of.items():
        curve = distances(
            problem, make, rate, rounds * every, seed=seed, noise=_NOISE, every=every
        )
        lines[name] = (np.arange(rounds + 1), curve)
        values[f"floor {name}"] = float(curve[-100:].mean())
        values[f"after 40 {name}"] = float(curve[40])
    floors = [values[f"floor H = {every}"] for every in (10, 15, 25)]
    speeds = [values[f"after 40 H = {every}"] for every in (1, 5, 10)]
    values["floors rise by"] = min(b / a for a, b in itertools.pairwise(floors))
    values["speeds rise by"] = min(a / b for a, b in itertools.pairwise(speeds))
    return Measured(values, [Panel("γ = 1/(15 L)", _X, _Y, lines)])


# ------------------------------------------------------ 3: local steps or large batches


def batches(seed: int, full: bool) -> Measured:
    """Right panel: three local steps or a batch of six, at the same oracle calls."""
    problem, rounds = _game(seed, full), 5000 if full else 1500
    lines, values = {}, {}
    times = (5, 10, 20)
    rates = [1 / (n * problem.L) for n in times]
    made = {"L": (_local(3), 3, _NOISE), "MB": (_centralized, 1, _NOISE / 6)}
    thin = np.arange(0, rounds + 1, 10)
    for name, (make, every, noise) in made.items():
        curves = distances(
            problem, make, rates, rounds * every, seed=seed, noise=noise, every=every
        )
        for n, curve in zip(times, curves, strict=True):
            lines[f"{name}, 1/({n} L)"] = (thin, curve[thin])
            values[f"{name}, 1/({n} L)"] = float(curve[-200:].mean())
    values["L above MB"] = values["L, 1/(5 L)"] / values["MB, 1/(5 L)"]
    return Measured(values, [Panel("H = 3 (L) or a batch of 6 (MB)", _X, _Y, lines)])


# ------------------------------------------------------------------ 4: projections


def _box(z):
    return jax.tree.map(lambda v: jnp.clip(v, -1, 1), z)


def _feasible(project, every):
    """The update after which the parameters are feasible, at every `every`-th."""

    def init(params):
        del params
        return jnp.zeros([], jnp.int32)

    def update(updates, state, params: Any = None, **extra_args):
        del extra_args
        new = optax.apply_updates(params, updates)
        due = (state + 1) % every == 0
        new = jax.tree.map(lambda a, b: jnp.where(due, a, b), project(new), new)
        return optax.tree.sub(new, params), state + 1

    return optax.GradientTransformationExtraArgs(init, update)


def projections(seed: int, full: bool) -> Measured:
    """What it costs to project every local step instead of the average."""
    problem, every, rounds = _game(seed, full), 25, 300
    rate = 1 / (15 * problem.L)

    def inside(rate):
        inner = optax.chain(optax.sgd(rate), _feasible(_box, 1))
        return optax.chain(jaxsp.extragradient(inner), jaxsp.sync(every, _AXIS))

    made = {
        "no projection": _local(every),
        "average projected": lambda rate: optax.chain(
            _local(every)(rate), _feasible(_box, every)
        ),
        "local steps projected": inside,
    }
    lines, values = {}, {}
    for name, make in made.items():
        curve = distances(
            problem, make, rate, rounds * every, seed=seed, noise=_NOISE, every=every
        )
        lines[name] = (np.arange(rounds + 1), curve)
        values[name] = float(curve[-50:].mean())
    values["times higher"] = values["local steps projected"] / values["no projection"]
    values["average"] = values["average projected"] / values["no projection"]
    panel = Panel("H = 25, γ = 1/(15 L), the box [−1, 1]", _X, _Y, lines)
    return Measured(values, [panel])


# ---------------------------------------------------------------- 5: lower bounds


def _graphs(full):
    """The graphs by name; the short form has two."""
    import networkx

    rows, columns = (4, 4) if full else (3, 3)
    grid = networkx.grid_2d_graph(rows, columns)
    grid = networkx.convert_node_labels_to_integers(grid)
    graphs = {
        "path": jaxsp.topology.path(8),
        "ring": jaxsp.topology.ring(16 if full else 8),
        "grid": jaxsp.topology.from_graph(grid),
        "star": jaxsp.topology.star(16),
        "Erdős–Rényi": jaxsp.topology.erdos_renyi(16, 0.3, seed=1),
    }
    return graphs if full else {name: graphs[name] for name in ("ring", "grid")}


_ACCURACY = 1e-3  # of |z − z*| / |z⁰ − z*|


def lower_bounds(seed: int, full: bool) -> Measured:
    """Exchanges to an accuracy on the lower bound's game, next to the bound."""
    del seed  # nothing is random
    ratio = 40.0 if full else 10.0
    panels, values = [], {}
    worst = {"central": 0.0, "chebyshev": 0.0}
    for name, graph in _graphs(full).items():
        problem = problems.lower_bound_chain(
            graph, 40 + math.ceil(6 * ratio), L=1.0, mu=1 / ratio
        )
        rate, steps = 0.7 / math.hypot(1.0, problem.mu), math.ceil(16 * ratio)
        made: dict[str, tuple[Any, float]] = {
            "exact means": (_centralized, graph.diameter)
        }
        for kind in (None, "fastmix", "chebyshev"):
            for multiple in (1, 1.5, 2, 3, 4, 6, 8):  # the fewest that get there
                rounds = math.ceil(multiple * graph.diameter)
                make = functools.partial(
                    methods.decentralized_extra_step,
                    topology=graph,
                    rounds=rounds,
                    acceleration=kind,
                    axis_name=_AXIS,
                )
                curve = np.sqrt(distances(problem, make, rate, steps))
                if curve.min() <= _ACCURACY:
                    break
            made[f"{kind or 'plain'} gossip, H = {rounds}"] = (make, rounds)
        floor = _floor(problem, graph.diameter)
        lines = {"lower bound": floor}
        first = _first(*floor)
        for label, (make, cost) in made.items():
            curve = np.sqrt(distances(problem, make, rate, steps))
            lines[label] = (2 * cost * np.arange(steps + 1), curve)
            values[f"{name}: {label.partition(',')[0]}"] = _first(*lines[label]) / first
        worst["central"] = max(worst["central"], values[f"{name}: exact means"])
        worst["chebyshev"] = max(
            worst["chebyshev"], values[f"{name}: chebyshev gossip"]
        )
        panels.append(
            Panel(
                f"{name} of {graph.size}, diameter {graph.diameter}",
                "exchanges with neighbours",
                r"$|z - z^*| / |z^0 - z^*|$",
                lines,
            )
        )
    return Measured(values | worst, panels)


def _floor(problem, diameter):
    """Exchanges, and the relative distance that no method can be below after them."""
    exchanges = np.arange(0, diameter * len(problem.z_star.y), diameter)
    squares = np.square(problem.z_star.x) + np.square(problem.z_star.y)
    tails = np.sqrt(np.cumsum(squares[::-1])[::-1] / squares.sum())
    nonzero = [problems.max_nonzero(int(k), diameter) for k in exchanges]
    return exchanges, np.append(tails, np.nan)[nonzero]  # nan: the end of the chain


def _first(exchanges, curve):
    """The exchanges at which the accuracy is reached, or infinity."""
    below = np.flatnonzero(curve <= _ACCURACY)
    return float(exchanges[below[0]]) if below.size else math.inf


# ------------------------------------------------------------- 6: robust regression


def robust_regression(seed: int, full: bool) -> Measured:
    """Local steps on robust linear regression, at equal communications."""
    workers = 25 if full else 8
    problem = problems.robust_regression(workers, 40, 20, heterogeneity=1.0, seed=seed)
    rounds, early, rate = 600 if full else 200, 50, 1 / (4 * problem.L)
    lines, values = {}, {}
    made = {f"H = {every}": (_local(every), every) for every in (1, 5, 25)}
    made["centralized"] = (_centralized, 1)
    for name, (make, every) in made.items():

        def projected(rate, make=make, every=every):
            return optax.chain(make(rate), _feasible(problem.project, every))

        curve = distances(problem, projected, rate, rounds * every, every=every)
        lines[name] = (np.arange(rounds + 1), curve)
        values[f"after {early} {name}"] = float(curve[early])
        values[f"end {name}"] = float(curve[-1])
    first = f"after {early}"
    values["faster"] = values[f"{first} centralized"] / values[f"{first} H = 5"]
    values["floor"] = values["end H = 5"] / values["end centralized"]
    return Measured(values, [Panel(f"{workers} workers", _X, _Y, lines)])
