"""The experiments of `dposg.yaml`: optimistic gradients with gossip."""

import itertools
from collections.abc import Callable
from typing import Any

import gan_runs
import jax
import jax.numpy as jnp
import numpy as np
import optax
from experiment import Measured, Panel, benchmark, distances, double, points

import jaxsp
from jaxsp import methods, problems, topology

_AXIS = "workers"
_X = "iterations"
_Y = r"$|z - z^*|^2 / |z^0 - z^*|^2$"


def _dposg(graph, rounds=1) -> Callable[[Any], Any]:
    return lambda rate: methods.dposg(rate, graph, rounds, axis_name=_AXIS)


def _gossip_descent(graph):
    return lambda rate: optax.chain(
        optax.sgd(rate), jaxsp.gossip(graph, axis_name=_AXIS)
    )


# ------------------------------------------------------------------ bilinear games


@double
def bilinear(seed: int, full: bool) -> Measured:
    """Unlike workers, on two graphs, with one step for all."""
    count, steps = 8, 10_000 if full else 2_000
    problem = problems.bilinear(count, 10, heterogeneity=0.1, seed=seed)
    lines, values = {}, {}
    for name, graph in (
        ("ring", topology.ring(count)),
        ("complete graph", topology.complete(count)),
    ):
        made = {"DPOSG": _dposg(graph), "gossip and descent": _gossip_descent(graph)}
        for method, make in made.items():
            curve = distances(problem, make, 0.2 / problem.L, steps, every=10)
            lines[f"{method}, {name}"] = (10 * np.arange(len(curve)), curve)
            values[f"{method}, {name}"] = float(curve[-1])
    values["DPOSG"] = max(v for k, v in values.items() if k.startswith("DPOSG"))
    values["descent"] = min(v for k, v in values.items() if k.startswith("gossip"))
    return Measured(values, [Panel("8 workers, η = 0.2/L", _X, _Y, lines)])


@double
def one_worker(seed: int, full: bool) -> Measured:
    """Identical workers against a loop of one worker in NumPy."""
    rate, steps, count = 0.3, 300, 8
    problem = problems.bilinear(count, 10, seed=seed)
    A, p, q = (np.asarray(v[0]) for v in problem.data[:3])
    zero = np.zeros_like(p)
    field = np.block([[np.zeros_like(A), A], [-A.T, np.zeros_like(A)]])
    constant, z, before, alone = np.concatenate([p, q]), np.r_[zero, zero], 0.0, []
    for _ in range(steps):
        alone.append(z)
        g = field @ z + constant
        z, before = z - 2 * rate * g + rate * before, g
    lines, values = {}, {}
    graphs: dict[str, Any] = {
        "ring": topology.ring(count),
        "star": topology.star(count),
    }
    if full:
        graphs["one-peer exponential"] = topology.one_peer_exponential(count)
    for name, graph in graphs.items():
        found = points(problem, _dposg(graph)(rate), steps)
        gaps = np.abs(found - np.array(alone)).max((0, 2)) / np.abs(alone).max()
        lines[name] = (np.arange(1, steps), np.maximum(gaps[1:], 1e-18))
        values[name] = float(gaps.max())
    values["farthest"] = max(values.values())
    panel = Panel("8 identical workers", _X, "largest relative difference", lines)
    return Measured(values, [panel])


# ----------------------------------------------------------- noise and heterogeneity


@double
def noise(seed: int, full: bool) -> Measured:
    """The floor of stochastic gradients for more and more workers."""
    counts, steps = (4, 8, 16, 32) if full else (4, 8, 16), 40_000 if full else 20_000
    one = problems.bilinear(1, 5, seed=seed)
    lines, values = {}, {}
    for count in counts:
        alike = jax.tree.map(lambda v, n=count: jnp.repeat(v, n, 0), one.data)
        problem, make = one._replace(data=alike), _dposg(topology.ring(count))
        curve = distances(problem, make, 0.2, steps, seed=seed, noise=1.0, every=50)
        lines[f"M = {count}"] = (50 * np.arange(len(curve)), curve)
        values[f"M = {count}"] = float(curve[len(curve) // 8 :].mean())
    ratios = [a / b for a, b in itertools.pairwise(values.values())]
    values |= {"least ratio": min(ratios), "largest ratio": max(ratios)}
    return Measured(values, [Panel("ring, η = 0.2, σ² = 1", _X, _Y, lines)])


@double
def bias(seed: int, full: bool) -> Measured:
    """Where unlike operators lead, for several steps and rounds of gossip."""
    count, steps = 8, 20_000 if full else 4_000
    problem = problems.quadratic(count, 10, L=1.0, mu=0.1, heterogeneity=1.0, seed=seed)
    rates = np.array([0.2, 0.1, 0.05])
    lines, values = {}, {}
    for rounds in (1, 2, 4):
        make = _dposg(topology.ring(count), rounds)
        curves = distances(problem, make, rates, steps, every=steps // 10)
        ends = np.sqrt(curves[:, -1])
        lines[f"t = {rounds}"] = (rates, ends)
        values |= {
            f"t = {rounds}, η = {r:g}": float(e)
            for r, e in zip(rates, ends, strict=True)
        }
    ends = [values[f"t = 1, η = {rate:g}"] for rate in rates]
    values["least ratio"] = min(a / b for a, b in itertools.pairwise(ends))
    values["largest ratio"] = max(a / b for a, b in itertools.pairwise(ends))
    ends = [values[f"t = {rounds}, η = 0.1"] for rounds in (1, 2, 4)]
    values["rounds lower by"] = min(a / b for a, b in itertools.pairwise(ends))
    panel = Panel(
        "ring of 8, operators unlike",
        "η",
        r"$|z - z^*| / |z^0 - z^*|$",
        lines,
        log="xy",
    )
    return Measured(values, [panel])


# ------------------------------------------------------------------------------ GANs


def gan(seed: int, full: bool) -> Measured:
    """Optimistic Adam, centralized and decentralized, at equal epochs."""
    told: dict[str, Any] = {"dataset": "digits", "steps": 1_000, "eval_every": 500}
    if full:
        told = {"dataset": "mnist", "steps": 3_000, "eval_every": 500}
        told |= {"model": "mlp:128", "loss": "acgan", "batch_size": 20}
    names = {"cp_oadam": "CP-OAdam", "dp_oadam": "DP-OAdam"}
    names |= {"rand_dp_oadam": "Rand-DP-OAdam"}
    panels, values, pictures = [], {}, []
    for count in (4, 8, 16) if full else (4, 8):
        lines = {}
        for method, name in names.items():
            run = gan_runs.by_command(method=method, workers=count, seed=seed, **told)
            lines[name] = run.line()
            values[f"{name}, M = {count}"] = run.end()
            pictures.append(run.samples)
        title = f"{told['dataset']}, {count} workers"
        panels.append(Panel(title, "steps", "Fréchet distance", lines))
    for name in ("DP-OAdam", "Rand-DP-OAdam"):
        values[f"{name} / CP-OAdam"] = max(
            values[f"{name}, {where}"] / values[f"CP-OAdam, {where}"]
            for where in ("M = 4", "M = 8", "M = 16")[: len(panels)]
        )
    return Measured(values, panels, pictures[-3:] if full else ())


# ------------------------------------------------------------------- seconds a step


def seconds(seed: int, full: bool) -> Measured:
    """A step on networks of several rates and latencies, by the measured model."""
    del seed, full  # nothing is random
    cost = benchmark("methods").cost
    # As BENCHMARKS.md says.
    fit = benchmark("cost_model").Fit(alpha=3.9e-4, overhead=1.038)
    names = ("all-reduce", "ring", "one-peer exponential")
    counts, parameters = (4, 8, 16, 32, 64), 1_000_000
    panels, values = [], {}
    for rate, latency in (("1gbit", 0), ("10mbit", 0), ("100mbit", 20)):
        network = f"{rate}, {latency} ms more"
        lines = {}
        for name in names:
            times = [
                fit.step(cost(name, count, parameters), rate, 0.0, latency)
                for count in counts
            ]
            lines[name] = (counts, np.array(times))
        times = {name: dict(zip(*line, strict=True)) for name, line in lines.items()}
        for name in names[1:]:
            gain = times["all-reduce"][16] / times[name][16]
            values[f"{name}, {network}"] = float(gain)
        panels.append(Panel(network, "workers", "milliseconds a step", lines, log="xy"))
    return Measured(values, panels)
