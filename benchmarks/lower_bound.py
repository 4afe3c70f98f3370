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
    rate, axis = 0.7 / math.hypot(1.0, problem.mu), workers.axis_name
    tx = methods.extra_step(rate, axis)
    if rounds is not None:
        tx = methods.decentralized_extra_step(rate, path, rounds, axis_name=axis)

    def one_worker(data):
        def step(carry, _):
            z, state = carry
            operator = lambda z: problem.operator(z, data)  # noqa: E731
            updates, state = tx.update(operator(z), state, z, operator_fn=operator)
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
    rounds_of: dict[str, int | None] = {"extra_step, exact means": None}
    for rounds in (math.ceil(m * path.diameter) for m in multiples):
        rounds_of[f"decentralized, H = {rounds}"] = rounds
    for name, rounds in rounds_of.items():
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
            "lower bound": first(*floor(problem, path)),
            "Δ L/μ log(1/ε)": bound(ACCURACY, 1.0, problem.mu, diameter=path.diameter),
            "√χ L/μ log(1/ε)": bound(ACCURACY, 1.0, problem.mu, chi=path.chi),
            "extra_step": central,
            "decentralized": gossip,
            "H": rounds,
        }
    return table


def plot(paths, table, workers: int, ratio: float, picture: pathlib.Path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5.2), layout="tight")
    left, right = figure.subplots(1, 2)
    for i, (name, (exchanges, distance)) in enumerate(paths.items()):
        color = f"C{i - 1}" if i else "k"
        left.plot(np.maximum(exchanges, 1), distance, color, label=name)
    left.set(ylabel="distance to the solution, relative", ylim=(1e-7, 2))
    left.set(title=f"path of {workers}, L/μ = {ratio:g}", xlabel="exchanges")
    names = [name for name in next(iter(table.values())) if name != "H"]
    styles = ("k-o", "k--o", "k:o", "C0-o", "C2-o")
    for name, style in zip(names, styles, strict=True):
        values = [np.nan if row[name] is None else row[name] for row in table.values()]
        right.plot(list(table), values, style, label=name)
    right.set(title=f"path of {workers}, to {ACCURACY:g}", xlabel="L/μ")
    right.set(ylabel="exchanges")
    for ax in (left, right):
        ax.set(xscale="log", yscale="log")
        ax.grid(alpha=0.3, which="both")
        ax.legend(fontsize=9)
    right.set_xticks(list(table), [f"{ratio:g}" for ratio in table])
    right.minorticks_off()
    save(figure, picture)


def print_ratios(table):
    def row(ratio, found):
        cells = ["—" if n is None else f"{n:,.0f}" for n in found.values()]
        both = found["extra_step"] is not None and found["lower bound"]
        times = f"{found['extra_step'] / found['lower bound']:.1f}" if both else "—"
        return [f"{ratio:g}", *cells, times]

    head = ["L/μ", *next(iter(table.values())), "extra_step / lower bound"]
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
