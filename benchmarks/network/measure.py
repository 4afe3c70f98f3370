"""The step time and the bytes of each method on a network that is really slow.

    python benchmarks/network/measure.py [--rate=100mbit,10mbit] [--output=network.json]

Every process has a network namespace of its own, whose link to all others lets through
`rate` each way, by the kernel's token bucket filter. Steps are timed, and bytes read
from the kernel's counters; beside them stand the bits that jaxsp counts, and the least
time they could take: bits / rate, for the busiest process and direction. The first run,
"none", has the same links without limits: what a step takes beside the network.

That needs root on Linux. With `--loopback` processes talk over the machine's own
loopback, which is not throttled, and nothing but the step times is measured.
"""

import argparse
import contextlib
import json
import pathlib
import platform
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import jax
import methods
import namespaces
import numpy as np
import worker
from common import command_line, print_table

from jaxsp.gan.files import replacing

__all__ = ["METHODS", "main", "measure", "print_result", "summary"]

METHODS = (*methods.METHODS, *worker.GANS)


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Measure as the flags say.

    Returns:
      The setting, and `points`, one for each rate and method, as `summary` makes them.

    Raises:
      ValueError: if a rate is none of `tc`.
      RuntimeError: if the network cannot be made.
    """
    limits: dict[str, float | None] = {"none": None}
    result = {
        "machine": platform.platform(),
        "jax": jax.__version__,
        "throttled": not flags.loopback,
        "processes": flags.processes,
        "parameters": flags.parameters,
        "points": [],
    }
    with contextlib.ExitStack() as stack:
        network = namespaces.Network(flags.processes)
        if not flags.loopback:
            limits |= {rate: namespaces.parse_rate(rate) for rate in flags.rate}
            stack.enter_context(network)
        for rate, bits in limits.items():
            print(f"rate {rate}:", file=sys.stderr)
            if bits is not None:
                network.set_rate(rate)
            directory = stack.enter_context(tempfile.TemporaryDirectory())
            task = {"directory": directory, "rate": bits}
            for name in ("methods", "parameters", "steps", "seconds"):
                task[name] = getattr(flags, name)
            command = [sys.executable, worker.__file__, json.dumps(task)]
            if flags.loopback:
                namespaces.run(command, flags.processes)
            else:
                network.run(command)
            paths = pathlib.Path(directory).glob("process-*.json")
            found = [json.loads(path.read_text()) for path in paths]
            result["points"] += [
                {"method": name, "rate": rate} | summary([f[name] for f in found], bits)
                for name in flags.methods
            ]
    return result


def summary(found: Sequence[dict[str, Any]], rate: float | None) -> dict[str, Any]:
    """Sum up what all processes found of a method.

    Args:
      found: for each process what `worker.measure` returned.
      rate: of the links, in bits a second; None if they are not limited.

    Returns:
      `steps`, how many; `step_ms`, the largest over processes of the median over cycles
      of the mean time of a step; `least_ms`, the same of the fastest cycle;
      `accounted_bytes` a step, likewise the largest median of the larger of sent and
      received; with a rate also `limit_ms`, accounted bytes / rate; `limit_ratio`, the
      step to it; `wire_bytes` a step, the largest mean; `wire_ratio`, bytes on the wire
      to bytes accounted, of all processes and steps.
    """
    cycle = found[0]["cycle"]
    seconds, up, down = (  # [process, cycle]
        np.array([each[name] for each in found])
        .reshape(len(found), -1, cycle)
        .mean(axis=2)
        for name in ("seconds", "up", "down")
    )
    steps = len(found[0]["seconds"])
    accounted = np.median([up, down], axis=2).max() / 8
    numbers = {
        "step_ms": 1e3 * np.median(seconds, axis=1).max(),
        "least_ms": 1e3 * seconds.min(axis=1).max(),
        "accounted_bytes": accounted,
    }
    if rate is not None:
        sent, received = ([f[way] for f in found] for way in ("sent", "received"))
        numbers["wire_bytes"] = max(sent + received) / steps
        numbers["wire_ratio"] = sum(sent) / max(up.sum() * cycle / 8, 1)
        numbers["limit_ms"] = accounted * 8 / rate * 1e3
        numbers["limit_ratio"] = numbers["step_ms"] / numbers["limit_ms"]
    return {"steps": steps} | {name: float(x) for name, x in numbers.items()}


def print_result(result: dict[str, Any]) -> None:
    """Print what `measure` returns as a Markdown table for each rate."""
    if not result["throttled"]:
        print("Over loopback, not throttled: step times only.")
    points = result["points"]
    free = {p["method"]: p["step_ms"] for p in points if p["rate"] == "none"}
    for rate in dict.fromkeys(p["rate"] for p in points):
        head, rows = ["method", "step ms", "kB accounted"], []
        where = "no limit"
        if rate != "none":
            head += ["limit ms", "step / limit", "unlimited, ms", "wire / accounted"]
            where = f"{rate} each way"
        print(f"\n{result['processes']} processes, {where}:\n")
        for p in (p for p in points if p["rate"] == rate):
            if p["method"] == methods.LATENCY:
                print(f"An all-reduce of one number takes {p['step_ms']:.2f} ms.\n")
                continue
            cells = [_number(p["step_ms"]), _number(p["accounted_bytes"] / 1e3)]
            if rate != "none":
                cells += [_number(p["limit_ms"]), f"{p['limit_ratio']:.2f}"]
                cells += [_number(free[p["method"]]), f"{p['wire_ratio']:.3f}"]
            rows.append([p["method"], *cells])
        print_table(head, rows)


def _number(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what the command line says, and print the tables."""
    words = lambda text: [word for word in text.split(",") if word]  # noqa: E731
    parser = command_line(__doc__)
    add = parser.add_argument
    add("--rate", type=words, default="100mbit,10mbit", help="of links, each way")
    add("--processes", type=int, default=4)
    add("--parameters", type=int, default=1_000_000)
    add("--methods", nargs="+", default=list(METHODS), choices=METHODS, metavar="NAME")
    add("--steps", type=int, default=10, help="to measure of a method")
    add("--seconds", type=float, default=60, help="for a method at a rate, or less")
    add("--loopback", action="store_true", help="no namespaces")
    add("--output", type=pathlib.Path, help="write the numbers as JSON")
    flags = parser.parse_args(argv)
    for name, least in {"processes": 2, "parameters": 1, "steps": 1}.items():
        if (value := getattr(flags, name)) < least:
            parser.error(f"{name} must be at least {least}, got {value}")
    try:
        result = measure(flags)
    except (ValueError, RuntimeError) as error:
        parser.error(str(error))
    print_result(result)
    if flags.output is not None:
        with replacing(flags.output) as temporary:
            temporary.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
