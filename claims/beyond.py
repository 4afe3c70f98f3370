"""The experiments of `beyond.yaml`: like workers, and neighbours without a bias."""

from typing import Any

import gan_runs
import numpy as np
from beyond_similar import diabetes, similarity
from experiment import Measured, Panel, distances, double

from jaxsp import methods, problems, theory, topology, transforms

__all__ = ["changing", "decentralized", "diabetes", "modes", "similarity"]

_AXIS = "workers"


@double
def decentralized(seed: int, full: bool) -> Measured:
    """Exchanges to 1e-8 on graphs of more and more workers."""
    counts, mu, accuracy = (8, 16, 32, 64) if full else (8,), 0.1, 1e-8
    values, lines = {}, {}
    for count in counts:
        problem = problems.quadratic(
            count, 6, L=1.0, mu=mu, heterogeneity=1.0, seed=seed
        )
        rows = 2 if count == 8 else 4 if count < 64 else 8
        for name, graph in (
            ("ring", topology.ring(count)),
            ("torus", topology.torus(rows, count // rows)),
            ("random", topology.erdos_renyi(count, 3 * np.log(count) / count, seed)),
        ):
            bound = np.sqrt(graph.chi) * (1 + 1 / mu) * np.log(1 / accuracy)
            found = _rounds(problem, graph, accuracy, 6_000 if full else 1_200)
            for method, rounds in found.items():
                values[f"{name} {count}: {method}"] = rounds
                x, y = lines.setdefault(f"{method}, {name}", ([], []))
                if np.isfinite(rounds):
                    x.append(bound)
                    y.append(rounds)
            values[f"{name} {count}: ratio"] = found["optimal"] / bound
            values[f"{name} {count}: gain"] = found["extra step"] / found["optimal"]
    for name, pick in (("ratio", max), ("gain", min)):
        values[name] = pick(v for k, v in values.items() if k.endswith(f": {name}"))
    dposg = [v for k, v in values.items() if k.endswith(": DPOSG floor")]
    values["DPOSG floor"] = min(dposg)
    ends = np.array(sorted({b for x, _ in lines.values() for b in x}))[[0, -1]]
    lines = {k: v for k, v in lines.items() if v[0]} | {"lower bound": (ends, ends)}
    x = r"$\sqrt{\chi} (1 + L/\mu) \log(1/\varepsilon)$"
    return Measured(
        values, [Panel("exchanges to 1e-8", x, "exchanges", lines, log="xy")]
    )


def _rounds(problem, graph, accuracy, steps):
    """The exchanges of each method, with the best of its steps."""
    step = theory.optimal_decentralized(problem.L, problem.mu, graph.chi)

    def first(curves, per_step):
        # Squared distances of the mean point; the workers' own come with it.
        hit = curves <= accuracy**2
        return float(
            min((np.argmax(h) for h in hit if h.any()), default=np.inf) * per_step
        )

    optimal = distances(
        problem,
        lambda rate: methods.optimal_decentralized(
            rate, graph, step.dual_learning_rate, step.feedback, axis_name=_AXIS
        ),
        step.learning_rate,
        steps,
    )
    found = {"optimal": first(optimal[None], 1)}
    extra = []
    for H in (8, 16, 32) if steps < 2_000 else (4, 8, 16, 32):
        curves = distances(
            problem,
            lambda rate, H=H: methods.decentralized_extra_step(
                rate, graph, H, axis_name=_AXIS
            ),
            np.array([0.25, 0.5, 0.8]),
            600,
        )
        extra.append(first(curves, 2 * H))
    found["extra step"] = min(extra)
    tracked = distances(
        problem,
        lambda rate: methods.tracked_optimistic(rate, graph, axis_name=_AXIS),
        np.array([0.06, 0.125, 0.25]),
        2 * steps,
    )
    found["tracked optimistic"] = first(tracked, 2)  # the tracker travels too
    dposg = distances(
        problem, lambda r: methods.dposg(r, graph, axis_name=_AXIS), 0.2, 2_000
    )
    found["DPOSG floor"] = float(np.sqrt(dposg[-1]))
    return found


@double
def changing(seed: int, full: bool) -> Measured:
    """Exchanges to 1e-8 where the graph is another one in every step."""
    del full
    n, mu, accuracy, steps = 16, 0.1, 1e-8, 4_000
    problem = problems.quadratic(n, 6, L=1.0, mu=mu, heterogeneity=1.0, seed=seed)
    star = topology.star(n)
    turned = topology.from_matrix(star.to_matrix()[::-1, ::-1])
    values, panels = {}, []
    for name, members in (
        ("two stars", (star, turned)),
        ("random rings", topology.random_ring(n, 8, seed).members),
    ):
        graphs = topology.from_sequence(members)
        chi = 1 / (1 - max(w.lambda2 for w in members) ** 2)
        two = theory.optimal_time_varying(problem.L, mu, chi)
        dual = transforms.AcceleratedDualSteps(*two[1:])
        one = theory.optimal_decentralized(problem.L, mu, max(w.chi for w in members))

        def algorithm_1(rate, graphs=graphs, one=one):
            theta = one.dual_learning_rate / 2
            return methods.optimal_decentralized(
                rate, graphs, theta, one.feedback, axis_name=_AXIS
            )

        def algorithm_2(rate, graphs=graphs, dual=dual):
            return methods.optimal_time_varying(rate, graphs, dual, axis_name=_AXIS)

        def tracked(rate, graphs=graphs):
            return methods.tracked_optimistic(rate, graphs, axis_name=_AXIS)

        def dposg(rate, graphs=graphs):
            return methods.dposg(rate, graphs, axis_name=_AXIS)

        lines = {}
        for method, make, rates in (
            ("Algorithm 2", algorithm_2, [two.learning_rate]),
            ("Algorithm 1, half of θ", algorithm_1, [one.learning_rate]),
            ("tracked optimistic", tracked, [0.06, 0.125, 0.25]),
            ("DPOSG", dposg, [0.1]),
        ):
            curves = np.sqrt(distances(problem, make, np.array(rates), steps))
            firsts = [float(np.argmax(c <= accuracy) or np.inf) for c in curves]
            chosen = int(np.argmin(firsts))
            values[f"{name}: {method}"] = firsts[chosen]
            every = slice(None, None, 20)
            lines[method] = np.arange(steps + 1)[every], curves[chosen, every]
        values[f"{name}: DPOSG floor"] = float(curves[0, -1])
        values[f"{name}: gain"] = (
            values[f"{name}: Algorithm 1, half of θ"] / values[f"{name}: Algorithm 2"]
        )
        panels.append(
            Panel(f"{name}, {n} workers", "exchanges", r"$|z - z^*| / |z^*|$", lines)
        )
    return Measured(values, panels)


def modes(seed: int, full: bool) -> Measured:
    """How many of a thousand modes two losses reach, by the training command."""
    losses = {
        "relativistic": "relativistic pairs, R1 and R2",
        "non_saturating": "non-saturating, R1",
    }
    told: dict[str, dict[str, Any]] = {
        "stacked_digits": {"steps": 700, "eval_every": 100}
    }
    if full:
        told["stacked_mnist"] = {"steps": 1_500, "eval_every": 250, "batch_size": 16}
    values, panels, pictures = {}, [], []
    for dataset, settings in told.items():
        runs = {
            loss: gan_runs.by_command(dataset=dataset, loss=loss, seed=seed, **settings)
            for loss in losses
        }
        for loss, run in runs.items():
            values[f"{dataset}, modes, {loss}"] = run.end("modes_reached")
            values[f"{dataset}, reverse KL, {loss}"] = run.end("reverse_kl")
            pictures.append(run.samples)
        ends = [values[f"{dataset}, reverse KL, {loss}"] for loss in losses]
        values[f"{dataset}, gain"] = ends[1] / ends[0]
        for score, label in (("modes_reached", "modes of 1,000"), ("reverse_kl", "KL")):
            lines = {losses[loss]: run.line(score) for loss, run in runs.items()}
            panels.append(Panel(dataset, "steps", label, lines, log=""))
    return Measured(values, panels, pictures)
