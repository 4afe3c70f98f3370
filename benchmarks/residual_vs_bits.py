"""The residual against the bits that a worker sends, with and without compression.

    python benchmarks/residual_vs_bits.py [--game 40x100 10x10000]

The game, of M workers and d numbers, is strongly monotone with μ/L = 0.13 and couples x
and y by Gaussian blocks, three tenths of each worker's own. Methods start at zero and
run until |F(z)| is 1e-6 of what it was, or until they have sent what extragradient at
its theory step needs for that.

Bits are counted as for a parameter server, as the papers do: those of one payload up
for each exchange of the method, and of d uncompressed numbers for each refresh that its
coins made. `floats` leaves out of them what draws or places the numbers of a sparse
payload (a seed, indices) and divides by 64, the size of a number here. There is no
server in the library: its own counter, `jaxsp.metrics.bits_sent`, has what the
collective moves instead, with this schedule every payload to all other workers. It is
the last column.

Every method runs with three steps. The table has the step of the theory where there is
one, and the best of the three; the plot has the former for two methods only.
"""

import math
import pathlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import command_line, print_table, save

import jaxsp
from jaxsp import compressors, methods, theory

ACCURACY = 1e-6
RATIO = 0.13  # μ/L
PICTURE = pathlib.Path(__file__).with_suffix(".png")


class Game(NamedTuple):
    """What the workers have, and the constants."""

    data: Any
    constants: np.ndarray  # L_m
    mu: float


class Row(NamedTuple):
    """A method: `build(rate, channel)`, the steps to try, and what it sends."""

    name: str
    build: Callable[..., optax.GradientTransformationExtraArgs]
    compressor: compressors.Compressor | None
    steps: dict[str, float]
    exchanges: int


class Run(NamedTuple):
    """The residual after every iteration and what was sent until then."""

    rate: float
    residual: np.ndarray
    bits: np.ndarray
    floats: np.ndarray
    counted: np.ndarray
    reached: int | None  # the iteration


def make_game(workers: int, size: int, block: int) -> Game:
    """λ(|x|² - |y|²)/2 + xᵀB_m y + p_mᵀx - q_mᵀy with B_m of Gaussian blocks."""
    rng, blocks = np.random.default_rng(0), size // 2 // block
    common = rng.standard_normal((blocks, block, block))
    own = rng.standard_normal((workers, blocks, block, block))
    coupling = common + 0.3 * own
    norms = np.linalg.norm(coupling, 2, axis=(2, 3)).max(1)
    scale = math.sqrt(1 - RATIO**2) / norms.max()
    p, q = rng.standard_normal((2, workers, blocks, block))
    data = jax.tree.map(jnp.asarray, (coupling * scale, p, q))
    return Game(data, np.hypot(RATIO, norms * scale), RATIO)


@jaxsp.saddle
def operator(x, y, data):
    """The payoff of one worker; the decorator makes it the operator."""
    coupling, p, q = data
    bilinear = jnp.sum(x * jnp.einsum("bij,bj->bi", coupling, y))
    squares = RATIO / 2 * (jnp.sum(x**2) - jnp.sum(y**2))
    return squares + bilinear + jnp.sum(p * x) - jnp.sum(q * y)


def rows(game: Game) -> list[Row]:
    """The methods that are compared."""
    workers, L, mu = len(game.constants), game.constants, game.mu
    eg = theory.extra_step(math.sqrt(np.mean(L**2)), mu).learning_rate
    ten = compressors.rand_k(0.1)

    def row(name, method, codec, rate, multipliers, one="theory", exchanges=1):
        steps = {one if m == 1 else f"×{m:g}": m * rate for m in multipliers}
        return Row(name, method, codec, steps, exchanges)

    def tuned(name, method, rate, *multipliers, exchanges=1):
        name += " RandK 10 %"
        return row(name, method, ten, rate, multipliers, "×1", exchanges)

    def masha1(name, codec, q, refresh=None):
        found = theory.masha1(L, mu, q, workers=workers, refresh=refresh)
        method = partial(methods.masha1, refresh=found.refresh)
        return row(f"MASHA1 {name}", method, codec, found.learning_rate, (1, 2, 4))

    def masha2(name, codec, delta, *multipliers):
        found = theory.masha2(L, mu, delta, refresh=0.1)
        method = partial(methods.masha2, refresh=0.1)
        return row(f"MASHA2 {name}", method, codec, found.learning_rate, multipliers)

    ceg = methods.compressed_extragradient
    return [
        row("EG", methods.extra_step, None, eg, (1, 2, 3), exchanges=2),
        # Of extragradient's step, and of μ/L², which is the best of plain descent.
        tuned("CEG", ceg, eg, 0.25, 0.5, 1, exchanges=2),
        tuned("QSGDA", methods.qsgda, mu, 0.25, 0.5, 1),
        tuned("DIANA", methods.diana_sgda, mu, 0.5, 1, 1.5),
        masha1("RandK 2 %", compressors.rand_k(0.02), 50),
        masha1("RandK 5 %", compressors.rand_k(0.05), 20),
        masha1("RandK 10 %", ten, 10),
        masha1("PermK", compressors.perm_k(), 1.0, 1 / workers),
        masha2("TopK 10 %", compressors.top_k(0.1), 10.0, 1, 4, 8),
        # δ of a Gaussian vector, and nothing is promised: the worst vector's is d.
        masha2("sign", compressors.sign(), math.pi / 2, 0.2, 1, 2),
    ]


def message(compressor, size: int, workers: int) -> tuple[int, float]:
    """Bits of a payload, and its floats."""
    if compressor is None:
        return 64 * size, size
    like = jax.ShapeDtypeStruct((size,), jnp.float64)
    compressor = compressor.for_worker(0, workers)
    bits = compressor.bits(like)
    payload = jax.eval_shape(lambda x: compressor.compress(jax.random.key(0), x), like)
    values = getattr(payload, "values", None)
    return bits, bits / 64 if values is None else values.size


def measure(
    row: Row, game: Game, budget: float = math.inf, chunk: int = 200, seed: int = 0
) -> dict[str, Run]:
    """A `Run` for every step size of a row; `seed` is of the compressors' draws.

    A run ends, after every `chunk` iterations, when the accuracy is reached, it has
    diverged, it has sent `budget` bits or done 8,000 iterations.
    """
    count, size = len(game.constants), 2 * game.data[1][0].size
    workers = jaxsp.Workers(count, devices=jax.devices()[:1])
    mean = jax.tree.map(lambda a: a.mean(0), game.data)

    def distance(z):
        return jaxsp.metrics.residual(lambda z: operator(z, mean), z)

    channel = jaxsp.channel(
        workers.axis_name,
        row.compressor,
        key=jax.random.key(seed),
        route=None if row.compressor is None else "gather",
    )

    @jax.jit
    def advance(rate, z, state):
        def one_worker(z, state, data):
            updates, state = row.build(lambda _: rate, channel).update(
                operator(z, data), state, z, operator_fn=lambda z: operator(z, data)
            )
            return optax.apply_updates(z, updates), state

        def step(carry, _):
            refreshed = getattr(carry[1], "stale", jnp.zeros(count, bool))[0]
            z, state = workers.map(one_worker)(*carry, game.data)
            residual = distance(jax.tree.map(lambda x: x[0], z))
            return (z, state), (residual, refreshed, jaxsp.comm.find_traffic(state))

        return jax.lax.scan(step, (z, state), length=chunk)

    zero = jnp.zeros_like(game.data[1][0])
    start = workers.replicate(jaxsp.MinMax(zero, zero))
    start_state = workers.map(row.build(lambda _: 0.1, channel).init)(start)
    initial = float(distance((zero, zero)))
    bits, floats = message(row.compressor, size, count)
    runs = {}
    for name, rate in row.steps.items():
        parts, z, state = [], start, start_state
        for _ in range(8000 // chunk):
            (z, state), (residual, refreshed, traffic) = advance(rate, z, state)
            counted = jaxsp.metrics.bits_sent(traffic).up[:, 0]
            parts.append([np.asarray(residual) / initial, refreshed, counted])
            residual, refreshed, counted = map(np.concatenate, zip(*parts, strict=True))
            sent, whole = np.arange(1, len(residual) + 1), np.cumsum(refreshed) * size
            ups = sent * row.exchanges * bits + 64 * whole
            reached = np.flatnonzero(residual <= ACCURACY)
            if reached.size or not residual[-1] < 1e3 or ups[-1] >= budget:
                break
        end = int(reached[0]) + 1 if reached.size else None
        numbers: Any = sent * row.exchanges * floats + whole
        columns = (column[:end] for column in (residual, ups, numbers, counted))
        runs[name] = Run(rate, *columns, reached=end)
    return runs


def best(runs: dict[str, Run]) -> str:
    """The step with the fewest bits to the accuracy, or else the lowest end."""

    def cost(name):
        run = runs[name]
        if run.reached is not None:
            return (0, run.bits[-1])
        tail = run.residual[-len(run.residual) // 4 :]
        return (1, np.inf if np.isnan(tail).any() else np.median(tail))

    return min(runs, key=cost)


def print_runs(found: dict[str, dict[str, Run]]):
    """Markdown: the step of the theory, and the best."""
    rows = []
    for name, runs in found.items():
        for step in dict.fromkeys(["theory", best(runs)]):
            if (run := runs.get(step)) is not None:
                sent = ["—"] * 3
                if run.reached is not None:
                    sent = [f"{run.reached:,}", f"{run.floats[-1]:,.0f}"]
                    sent += [f"{run.bits[-1] / 1e6:,.3g}"]
                end = [f"{run.residual[-1]:.1e}", f"{run.counted[-1] / 1e6:,.4g}"]
                rows.append([name, f"{step}, γ = {run.rate:.3g}", *sent, *end])
    head = ["method", "step", "iterations", f"floats to {ACCURACY:g}", "Mbit up"]
    print_table([*head, "end", "Mbit counted"], rows)


def plot(panels: dict[str, dict[str, dict[str, Run]]], path: pathlib.Path):
    """A panel for each game, a line for each method at its best step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5 * len(panels), 5.2))
    axes = figure.subplots(1, len(panels), squeeze=False)
    for ax, (title, found) in zip(axes[0], panels.items(), strict=True):
        for i, (name, runs) in enumerate(found.items()):
            steps = {best(runs): 1.5}
            if name in ("EG", "MASHA1 RandK 2 %"):
                steps.setdefault("theory", 0.7)
            style: Any = {"color": f"C{i}", "linestyle": "--" if i < 4 else "-"}
            for step, width in steps.items():
                style |= {"label": f"{name}, {step}", "linewidth": width}
                ax.plot(runs[step].bits / 1e6, runs[step].residual, **style)
        ax.axhline(ACCURACY, color="grey", linewidth=0.8, linestyle=":")
        start = found["EG"]["theory"].bits[-1] / 5e8
        ax.set(xscale="log", yscale="log", xlim=(start, None), ylim=(ACCURACY / 3, 10))
        ax.set(title=title, xlabel="megabits up per worker", ylabel="|F(z)| / |F(0)|")
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8, loc="lower left")
    figure.tight_layout()
    save(figure, path)


def main():
    parser = command_line(__doc__)
    parser.add_argument("--game", nargs="+", default=["40x100", "10x10000"])
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    panels = {}
    for name in arguments.game:
        workers, size = map(int, name.split("x"))
        game = make_game(workers, size, 50 if size <= 1000 else 10)
        budget, found = math.inf, {}
        for row in rows(game):
            found[row.name] = measure(row, game, budget)
            budget = float(found["EG"]["theory"].bits[-1])
        title = f"M = {workers}, d = {size:,}"
        print(f"\n{title}\n")
        print_runs(found)
        panels[title] = found
    plot(panels, PICTURE)


if __name__ == "__main__":
    main()
