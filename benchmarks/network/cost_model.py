r"""What a step costs on other networks and with more workers: a model with two numbers.

    python benchmarks/network/measure.py --output=network.json
    python benchmarks/network/cost_model.py network.json [--plot=cost.png]

Hockney's model: a step takes

$$t = \alpha \cdot \text{rounds} + \beta \cdot \text{bytes} + \text{compute},$$

where `rounds` are the messages that a worker sends one after the other, known from the
schedules, `bytes` those through the busiest link and direction, as jaxsp counts them,
and `compute` the fastest of the steps measured without limits, less its rounds. α
(seconds a round) and β·rate (time on the wire over the least time: 1 and headers) are
fitted to some methods at one rate, and checked on the methods held out and on the other
rates. Then the step is extrapolated. GANs are left out: a step of MD-GAN is a round
trip to a server.

References:
  Hockney, The Communication Challenge for MPP: Intel Paragon and Meiko CS-2, Parallel
  Computing 20, 1994.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import namespaces
import numpy as np
from common import command_line, print_table, save
from methods import BESIDES, LATENCY, METHODS, Cost, cost
from scipy.optimize import linprog

__all__ = ["Fit", "check", "extrapolate", "fit", "main", "plot"]

RATE = "100mbit"  # to fit at
HELD_OUT = ("one-way ring", "sync every 8", "quantize 4 bits", "top-k 1 %")
WORKERS = (8, 16, 32, 64, 128, 256, 512, 1000)
# Rates, and milliseconds that a message takes longer than where α was measured.
NETWORKS = (("100mbit", 0), ("10mbit", 0), ("1gbit", 0), ("100mbit", 20))


class Fit(NamedTuple):
    """The two numbers of the model.

    Attributes:
      alpha: seconds a round.
      overhead: β · rate / 8: how much longer than bytes · 8 / rate the bytes take.
    """

    alpha: float
    overhead: float

    def step(
        self, cost: Cost, rate: str, compute: float, latency: float = 0.0
    ) -> float:
        """Milliseconds a step takes.

        Args:
          cost: of the step.
          rate: of the links, as `tc` writes it.
          compute: seconds of the step that are no communication.
          latency: milliseconds that a message takes longer than where α was measured.

        Example:
          >>> print(Fit(0.001, 1.0).step(Cost(6, 6e6), "100mbit", 0.01))
          496.0
        """
        beta = self.overhead * 8 / namespaces.parse_rate(rate)
        rounds = (self.alpha + latency / 1e3) * cost.rounds
        return 1e3 * (rounds + beta * cost.bytes + compute)


# ------------------------------------------------------------------ fit and check


def _compute(result):
    """Seconds of each method that are no communication.

    Of the fastest steps where links have no limit, less their rounds: each takes there
    what one of the all-reduce of one number takes.
    """
    points = [p for p in result["points"] if p["rate"] == "none"]
    free = {p["method"]: p["least_ms"] / 1e3 for p in points if p["method"] in METHODS}
    if LATENCY not in free:
        raise ValueError(
            f"measured must have the method {LATENCY!r} without a limit, got "
            f"{', '.join(free) or 'none'}: run measure.py with it among --methods."
        )
    rounds = {
        name: cost(name, result["processes"], result["parameters"]).rounds
        for name in free
    }
    a_round = free[LATENCY] / rounds[LATENCY]
    return {name: max(free[name] - a_round * rounds[name], 0.0) for name in free}


def _rows(result):
    """(point, whether it is to be fitted, cost, compute) of every point at a rate."""
    compute = _compute(result)
    for point in result["points"]:
        name, rate = point["method"], point["rate"]
        if rate != "none" and name in compute:
            rounds = cost(name, result["processes"], result["parameters"]).rounds
            measured = Cost(rounds, point["accounted_bytes"])
            fitted = rate == RATE and name not in HELD_OUT
            yield point, fitted, measured, compute[name]


def fit(result: dict[str, Any]) -> Fit:
    """Fit α and β to the points of some methods at one rate.

    Least absolute relative errors of the step: a point that something else on the
    machine disturbed has little weight. α is at least 0.

    Args:
      result: what `measure.measure` returns.

    Raises:
      ValueError: if fewer than two points are left, or they do not tell α from β, or
        the method "latency" was not measured.
    """
    rows = [row for row in _rows(result) if row[1]]
    ms = np.array([point["step_ms"] for point, *_ in rows])
    # What each of the two numbers adds to a step if it is 1, next to the step.
    units = Fit(1.0, 0.0), Fit(0.0, 1.0)
    left = [[one.step(cost, RATE, 0.0) for one in units] for _, _, cost, _ in rows]
    if len(rows) < 2 or np.linalg.matrix_rank(left) < 2:
        raise ValueError(
            "measured must have points of at least two methods that are not held out "
            f"and are unlike, got {len(rows)} at {RATE!r}: run measure.py with "
            f"--rate={RATE} and more methods."
        )
    right = 1 - 1e3 * np.array([compute for *_, compute in rows]) / ms
    return Fit(*map(float, _least_absolute(np.array(left) / ms[:, None], right)))


def _least_absolute(left, right):
    """The x >= 0 that minimizes Σ |left x - right|, for two unknowns.

    A linear program: the residuals are between −e and e, and Σ e is minimized.
    """
    one = np.eye(len(right))
    found = linprog(
        np.append([0, 0], np.ones(len(right))),
        np.block([[left, -one], [-left, -one]]),
        np.concatenate([right, -right]),
    )
    return found.x[:2]


def check(result: dict[str, Any], model: Fit) -> list[dict[str, Any]]:
    """The model's step beside the measured one, for every point at a rate.

    Args:
      result: what `measure.measure` returns.
      model: the fit.

    Returns:
      For each point `method`, `rate`, `fitted` (whether it was used for the fit),
      `measured_ms`, `model_ms` and `error`, (model - measured) / measured.
    """
    rows = []
    for point, fitted, measured, compute in _rows(result):
        row = {"method": point["method"], "rate": point["rate"], "fitted": fitted}
        row["measured_ms"] = point["step_ms"]
        row["model_ms"] = model.step(measured, point["rate"], compute)
        row["error"] = row["model_ms"] / row["measured_ms"] - 1
        rows.append(row)
    return rows


def extrapolate(
    result: dict[str, Any],
    model: Fit,
    rate: str,
    latency: float,
    counts: Sequence[int],
) -> dict[str, list[float]]:
    """Milliseconds of a step of each method with other numbers of workers.

    Compute is taken as measured, also where it would grow with the workers (who gathers
    all payloads decodes all). Links are as one switch gives them, each its own.

    Args:
      result: what `measure.measure` returns.
      model: the fit.
      rate: of the network, as of `Fit.step`.
      latency: likewise.
      counts: numbers of workers.

    Returns:
      For each method its times, one a count.
    """
    found = {}
    for name, compute in _compute(result).items():
        if name != LATENCY:
            found[name] = []
            for count in counts:
                once = cost(name, count, result["parameters"])
                if name in BESIDES:
                    whole = np.array(cost("all-reduce", count, result["parameters"]))
                    once = Cost(*(once + whole / BESIDES[name]))
                found[name].append(model.step(once, rate, compute, latency))
    return found


# ------------------------------------------------------------------ tables and a plot


def plot(
    tables: dict[str, dict[str, list[float]]],
    counts: Sequence[int],
    path: pathlib.Path,
) -> None:
    """Draw the extrapolated steps, a panel for each network."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(tables), 4.8))
    axes = figure.subplots(1, len(tables), sharey=True, squeeze=False)[0]
    colours, styles = colormaps["tab20"], ("-", "--", ":")
    for axis, (title, lines) in zip(axes, tables.items(), strict=True):
        for i, (name, times) in enumerate(lines.items()):
            axis.plot(counts, times, styles[i % 3], color=colours(i), label=name)
        axis.set(xscale="log", yscale="log", title=title, xlabel="workers")
        axis.set_xticks(counts, map(str, counts), rotation=60)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("step, milliseconds (model)")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncol=4, frameon=False)
    figure.tight_layout(rect=(0, 0.17, 1, 1))
    save(figure, path, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    parser = command_line(__doc__)
    parser.add_argument("measured", type=pathlib.Path, help="JSON of measure.py")
    parser.add_argument("--plot", type=pathlib.Path, help="write the plot as PNG")
    flags = parser.parse_args(argv)
    result = json.loads(flags.measured.read_text())
    try:
        model = fit(result)
    except ValueError as error:
        parser.error(str(error))
    print(f"α = {1e3 * model.alpha:.2f} ms a round, β·rate = {model.overhead:.3f}\n")
    rows, cells = check(result, model), []
    for row in rows:
        ms = [f"{row[which]:,.1f}" for which in ("measured_ms", "model_ms")]
        used = "fit" if row["fitted"] else "check"
        cells.append(
            [row["method"], row["rate"], used, *ms, f"{100 * row['error']:+.1f} %"]
        )
    print_table(["method", "rate", "used to", "ms", "model ms", "error"], cells)
    if errors := [abs(row["error"]) for row in rows if not row["fitted"]]:
        print(
            f"\nOf {len(errors)} points not fitted: median error "
            f"{100 * np.median(errors):.1f} %, largest {100 * max(errors):.1f} %."
        )
    tables = {}
    for rate, latency in NETWORKS:
        title = f"{rate}, +{latency} ms" if latency else rate
        tables[title] = extrapolate(result, model, rate, latency, WORKERS)
        print(f"\nModel, milliseconds a step, {title}:\n")
        lines = tables[title].items()
        cells = ([name, *(f"{ms:,.0f}" for ms in times)] for name, times in lines)
        print_table(["workers", *map(str, WORKERS)], cells)
    if flags.plot is not None:
        plot(tables, WORKERS, flags.plot)


if __name__ == "__main__":
    main()
