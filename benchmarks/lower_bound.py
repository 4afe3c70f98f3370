"""Extragradient's exchanges against the lower bound, on the game that attains it.

    python benchmarks/lower_bound.py [--workers 8] [--ratios 5 10 20 40 80]

The workers stand on a path and have `jaxsp.problems.lower_bound_chain`: after K
exchanges no method whose points are in the span of what it has heard is closer to the
solution than `distance_lower_bound`. An exchange is one message to each neighbour.

`decentralized_extra_step` makes 2H of them an iteration, H rounds of Chebyshev gossip
in each half-step; `extra_step` needs an exact mean, which takes Δ = M - 1 exchanges on
a path, so 2Δ an iteration. Both take γ = 0.7/L with L the constant of the mean
operator: that of the theory is 1/4L, and the bound is on any step. Distances are of the
worker who is closest, since the bound holds for every one.

The left panel has the distance for one L/μ, the right one the exchanges until it is
1e-3 of what it was, with the smallest multiple H of Δ/2 that comes so far.
"""

import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import command_line, print_table, save

import jaxsp
from jaxsp import methods, problems

ACCURACY = 1e-3
PICTURE = pathlib.Path(__file__).with_suffix(".png")


def make_problem(workers: int, ratio: float):
    """The chain with L = 1 and μ = 1/ratio, long enough not to show its end."""
    path = jaxsp.topology.path(workers)
    dim = 40 + math.ceil(6 * ratio)
    return path, problems.lower_bound_chain(path, dim, L=1.0, mu=1 / ratio)


def distances(problem, path, rounds: int | None, iterations: int) -> np.ndarray:
    """Relative distance of the closest worker after every iteration.

    `rounds` is H of `decentralized_extra_step`, None stands for `extra_step`.
    """
    workers = jaxsp.Workers(path.size, devices=jax.devices()[:1])
    rate = 0.7 / math.hypot(1.0, problem.mu)
    if rounds is None:
        tx = methods.extra_step(rate, workers.axis_name)
    else:
        tx = methods.decentralized_extra_step(
            rate, path, rounds, axis_name=workers.axis_name
        )

    def one_worker(data):
        def step(carry, _):
            z, state = carry
            updates, state = tx.update(
                problem.operator(z, data),
                state,
                z,
                operator_fn=lambda z: problem.operator(z, data),
            )
            z = optax.apply_updates(z, updates)
            return (z, state), jaxsp.metrics.distance(z, problem.z_star)

        z = jax.tree.map(jnp.zeros_like, problem.z_star)
        return jax.lax.scan(step, (z, tx.init(z)), length=iterations)[1]

    found = jax.jit(workers.map(one_worker))(problem.data)
    return np.asarray(found).min(axis=0) / float(optax.tree.norm(problem.z_star))


def floor(problem, path) -> tuple[np.ndarray, np.ndarray]:
    """Exchanges, and the relative distance that nobody can be below after them."""
    exchanges = np.arange(0, path.diameter * len(problem.z_star.y), path.diameter)
    squares = np.square(problem.z_star.x) + np.square(problem.z_star.y)
    tails = np.sqrt(np.cumsum(squares[::-1])[::-1] / squares.sum())
    nonzero = [problems.max_nonzero(int(k), path.diameter) for k in exchanges]
    return exchanges, np.append(tails, 0.0)[nonzero]


def first(exchanges: np.ndarray, distance: np.ndarray) -> int | None:
    """The exchanges at which the accuracy is reached."""
    below = np.flatnonzero(distance <= ACCURACY)
    return int(exchanges[below[0]]) if below.size else None


def measure_paths(workers: int, ratio: float, multiples=(2, 4, 6), iterations=None):
    """Exchanges and distances for one L/μ, by name."""
    path, problem = make_problem(workers, ratio)
    found = {"lower bound": floor(problem, path)}
    n = iterations or math.ceil(20 * ratio)
    for m in (None, *multiples):
        rounds = None if m is None else math.ceil(m * path.diameter)
        name = (
            "extra_step, exact means" if m is None else f"decentralized, H = {rounds}"
        )
        cost = 2 * (rounds or path.diameter)
        found[name] = (cost * np.arange(1, n + 1), distances(problem, path, rounds, n))
    return found


def measure_ratios(
    workers: int, ratios, halves=range(2, 17)
) -> dict[float, dict[str, float | None]]:
    """Exchanges to the accuracy for every L/μ, next to the bounds, and the H taken."""
    table = {}
    for ratio in ratios:
        path, problem = make_problem(workers, ratio)
        n = math.ceil(16 * ratio)
        after = np.arange(1, n + 1)
        central = first(2 * path.diameter * after, distances(problem, path, None, n))
        for half in halves:
            rounds = math.ceil(half * path.diameter / 2)
            gossip = first(2 * rounds * after, distances(problem, path, rounds, n))
            if gossip is not None:
                break
        bound = problems.rounds_lower_bound
        table[ratio] = {
            "floor": first(*floor(problem, path)),
            "ΔL/μ log(1/ε)": bound(ACCURACY, 1.0, problem.mu, diameter=path.diameter),
            "√χL/μ log(1/ε)": bound(ACCURACY, 1.0, problem.mu, chi=path.chi),
            "extra_step": central,
            "decentralized": gossip,
            "H": rounds,
        }
    return table


def plot(paths, table, workers: int, ratio: float, picture: pathlib.Path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5.2))
    left, right = figure.subplots(1, 2)
    for i, (name, (exchanges, distance)) in enumerate(paths.items()):
        style = {"color": "black", "linewidth": 2} if i == 0 else {"color": f"C{i - 1}"}
        left.plot(np.maximum(exchanges, 1), distance, label=name, **style)
    left.set(
        title=f"path of {workers}, L/μ = {ratio:g}",
        xlabel="exchanges",
        ylabel="distance to the solution, relative",
        xscale="log",
        yscale="log",
        ylim=(1e-7, 2),
    )
    styles = {
        "floor": ("black", "-", "lower bound on this game"),
        "ΔL/μ log(1/ε)": ("grey", "--", "Δ L/μ log(1/ε)"),
        "√χL/μ log(1/ε)": ("grey", ":", "√χ L/μ log(1/ε)"),
        "extra_step": ("C0", "-", "extra_step, exact means"),
        "decentralized": ("C2", "-", "decentralized, smallest H"),
    }
    for name, (color, line, label) in styles.items():
        values = [np.nan if row[name] is None else row[name] for row in table.values()]
        right.plot(
            list(table), values, color=color, linestyle=line, marker="o", label=label
        )
    right.set(
        title=f"path of {workers}, to {ACCURACY:g}",
        xlabel="L/μ",
        ylabel="exchanges",
        xscale="log",
        yscale="log",
    )
    right.set_xticks(list(table), [f"{ratio:g}" for ratio in table])
    right.minorticks_off()
    for ax in (left, right):
        ax.grid(alpha=0.3, which="both")
        ax.legend(fontsize=9)
    figure.tight_layout()
    save(figure, picture)


def print_ratios(table):
    def row(ratio, found):
        cells = ["—" if n is None else f"{n:,.0f}" for n in found.values()]
        both = found["extra_step"] is not None and found["floor"]
        times = f"{found['extra_step'] / found['floor']:.1f}" if both else "—"
        return [f"{ratio:g}", *cells, times]

    head = ["L/μ", *next(iter(table.values())), "extra_step / floor"]
    print_table(head, (row(*each) for each in table.items()))


def main():
    parser = command_line(__doc__)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--ratios", type=float, nargs="+", default=[5, 10, 20, 40, 80])
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    ratio = sorted(arguments.ratios)[len(arguments.ratios) // 2]
    table = measure_ratios(arguments.workers, arguments.ratios)
    print_ratios(table)
    paths = measure_paths(arguments.workers, ratio)
    plot(paths, table, arguments.workers, ratio, PICTURE)


if __name__ == "__main__":
    main()
