"""What a step costs on other networks and with more workers: a model with two numbers.

    python benchmarks/network/measure.py --output=network.json
    python benchmarks/network/cost_model.py network.json [--plot=cost.png]

Hockney's model: a step takes

    t = α · rounds + β · bytes + compute,

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

import argparse
import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import namespaces
import numpy as np
from methods import BESIDES, LATENCY, METHODS, Cost, cost
from report import table
from scipy.optimize import linprog

__all__ = ["Fit", "Net", "check", "extrapolate", "fit", "main", "plot"]

HELD_OUT = ("one-way ring", "sync every 8", "quantize 4 bits", "top-k 1 %")
WORKERS = (8, 16, 32, 64, 128, 256, 512, 1000)


class Fit(NamedTuple):
    """The two numbers of the model.

    Attributes:
      alpha: seconds a round.
      overhead: β · rate / 8: how much longer than bytes · 8 / rate the bytes take.
    """

    alpha: float
    overhead: float

    def step(
        self, cost: Cost, rate: float, compute: float, latency: float = 0.0
    ) -> float:
        """Seconds a step takes.

        Args:
          cost: of the step.
          rate: of the links, in bits a second.
          compute: seconds of the step that are no communication.
          latency: seconds that a message takes longer than where α was measured.

        Returns:
          t.

        Example:
          >>> print(Fit(0.001, 1.0).step(Cost(6, 6e6), 1e8, 0.01))
          0.496
        """
        beta = self.overhead * 8 / rate
        return (self.alpha + latency) * cost.rounds + beta * cost.bytes + compute


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
    setting = result["processes"], result["parameters"]
    a_round = free[LATENCY] / cost(LATENCY, *setting).rounds
    return {
        name: max(seconds - a_round * cost(name, *setting).rounds, 0.0)
        for name, seconds in free.items()
    }


def _rows(result):
    """(point, cost, rate, compute) of every point at a rate."""
    compute = _compute(result)
    rows = []
    for point in result["points"]:
        name, rate = point["method"], point["rate"]
        if rate == "none" or name not in compute:
            continue
        rounds = cost(name, result["processes"], result["parameters"]).rounds
        measured = Cost(rounds, point["accounted_bytes"])
        bits = namespaces.parse_rate(rate)
        rows.append((point, measured, bits, compute[name]))
    return rows


def fit(result: dict[str, Any], rate: str, held_out: Sequence[str] = HELD_OUT) -> Fit:
    """Fit α and β to the points of some methods at one rate.

    Least absolute relative errors of the step: a point that something else on the
    machine disturbed has little weight. α is at least 0.

    Args:
      result: what `measure.measure` returns.
      rate: whose points to take.
      held_out: methods to leave for `check`.

    Returns:
      The fit.

    Raises:
      ValueError: if fewer than two points are left, or they do not tell α from β, or
        the method "latency" was not measured.
    """
    rows = [
        row
        for row in _rows(result)
        if row[0]["rate"] == rate and row[0]["method"] not in held_out
    ]
    left, right = [], []
    for point, measured, bits, compute in rows:
        seconds = point["step_ms"] / 1e3
        left.append([measured.rounds / seconds, measured.bytes * 8 / bits / seconds])
        right.append((seconds - compute) / seconds)
    if len(rows) < 2 or np.linalg.matrix_rank(left) < 2:
        raise ValueError(
            "rate must have points of at least two methods that are not held out and "
            f"are unlike, got {len(rows)} at {rate!r}: run measure.py with "
            f"--rate={rate} and more methods."
        )
    return Fit(*map(float, _least_absolute(np.array(left), np.array(right))))


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


def check(
    result: dict[str, Any], model: Fit, rate: str, held_out: Sequence[str] = HELD_OUT
) -> list[dict[str, Any]]:
    """The model's step beside the measured one, for every point at a rate.

    Args:
      result: what `measure.measure` returns.
      model: the fit.
      rate: at which it was fitted.
      held_out: methods that were left out.

    Returns:
      For each point `method`, `rate`, `fitted` (whether it was used for the fit),
      `measured_ms`, `model_ms` and `error`, (model - measured) / measured.
    """
    rows = []
    for point, measured, bits, compute in _rows(result):
        model_ms = 1e3 * model.step(measured, bits, compute)
        rows.append(
            {
                "method": point["method"],
                "rate": point["rate"],
                "fitted": point["rate"] == rate and point["method"] not in held_out,
                "measured_ms": point["step_ms"],
                "model_ms": model_ms,
                "error": model_ms / point["step_ms"] - 1,
            }
        )
    return rows


class Net(NamedTuple):
    """A network to extrapolate to.

    Attributes:
      rate: as `tc` writes it.
      latency: milliseconds that a message takes longer than where α was measured.
    """

    rate: str
    latency: float

    def __str__(self) -> str:
        return f"{self.rate}, +{self.latency:g} ms" if self.latency else self.rate


def extrapolate(
    result: dict[str, Any], model: Fit, net: Net, counts: Sequence[int] = WORKERS
) -> dict[str, list[float]]:
    """Milliseconds of a step of each method with other numbers of workers.

    Compute is taken as measured, also where it would grow with the workers (who gathers
    all payloads decodes all). Links are as one switch gives them, each its own.

    Args:
      result: what `measure.measure` returns.
      model: the fit.
      net: the network.
      counts: numbers of workers.

    Returns:
      For each method its times, one a count.
    """
    rate, parameters = namespaces.parse_rate(net.rate), result["parameters"]
    found = {}
    for name, compute in _compute(result).items():
        if name == LATENCY:
            continue
        found[name] = []
        for count in counts:
            once = cost(name, count, parameters)
            if name in BESIDES:
                whole = np.array(cost("all-reduce", count, parameters))
                once = Cost(*(once + whole / BESIDES[name]))
            seconds = model.step(once, rate, compute, net.latency / 1e3)
            found[name].append(1e3 * seconds)
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
    axes = figure.subplots(1, len(tables), sharey=True, squeeze=False)
    colours, styles = colormaps["tab20"], ("-", "--", ":")
    for axis, (title, lines) in zip(axes[0], tables.items(), strict=True):
        for i, (name, times) in enumerate(lines.items()):
            axis.plot(counts, times, styles[i % 3], color=colours(i), label=name)
        axis.set(xscale="log", yscale="log", title=title, xlabel="workers")
        axis.set_xticks(counts, [str(n) for n in counts], rotation=60)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("step, milliseconds (model)")
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncol=4, frameon=False)
    figure.tight_layout(rect=(0, 0.17, 1, 1))
    figure.savefig(path, dpi=110)


def _nets(text):
    nets = []
    for part in text.split(","):
        rate, _, latency = part.partition("+")
        namespaces.parse_rate(rate)
        try:
            nets.append(Net(rate, float(latency.removesuffix("ms") or 0)))
        except ValueError:
            raise ValueError(
                f"networks must be like 100mbit or 100mbit+20ms, got {part!r}."
            ) from None
    return nets


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("measured", type=pathlib.Path, help="JSON of measure.py")
    parser.add_argument("--fit", default="100mbit", help="the rate to fit at")
    parser.add_argument("--hold_out", default=",".join(HELD_OUT), help="methods")
    parser.add_argument(
        "--networks",
        default="100mbit,10mbit,1gbit,100mbit+20ms",
        help="to extrapolate to: rates, and milliseconds of latency on top",
    )
    parser.add_argument("--workers", type=int, nargs="+", default=list(WORKERS))
    parser.add_argument("--plot", type=pathlib.Path, help="write the plot as PNG")
    flags = parser.parse_args(argv)
    result = json.loads(flags.measured.read_text())
    held_out = flags.hold_out.split(",")
    try:
        model = fit(result, flags.fit, held_out)
        nets = _nets(flags.networks)
    except ValueError as error:
        parser.error(str(error))
    print(f"α = {1e3 * model.alpha:.2f} ms a round, β·rate = {model.overhead:.3f}\n")
    rows = check(result, model, flags.fit, held_out)
    cells = [
        [
            row["method"],
            row["rate"],
            "fit" if row["fitted"] else "check",
            f"{row['measured_ms']:,.1f}",
            f"{row['model_ms']:,.1f}",
            f"{100 * row['error']:+.1f} %",
        ]
        for row in rows
    ]
    print(table(["method", "rate", "used to", "ms", "model ms", "error"], cells))
    errors = [abs(row["error"]) for row in rows if not row["fitted"]]
    if errors:
        print(
            f"\nOf {len(errors)} points not fitted: median error "
            f"{100 * np.median(errors):.1f} %, largest {100 * max(errors):.1f} %."
        )
    tables = {str(n): extrapolate(result, model, n, flags.workers) for n in nets}
    for title, lines in tables.items():
        print(f"\nModel, milliseconds a step, {title}:\n")
        cells = [[k, *(f"{ms:,.0f}" for ms in times)] for k, times in lines.items()]
        print(table(["workers", *map(str, flags.workers)], cells))
    if flags.plot is not None:
        plot(tables, flags.workers, flags.plot)


if __name__ == "__main__":
    main()
