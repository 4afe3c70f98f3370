"""What `measure.py` makes of its measurements: numbers for each method, and tables."""

import contextlib
import importlib.metadata
import os
import pathlib
import platform
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import worker

__all__ = ["machine", "markdown", "summary"]


def summary(found: Sequence[dict[str, Any]], rate: float | None) -> dict[str, Any]:
    """Sum up what all processes found of a method.

    Args:
      found: for each process what `worker.measure` returned.
      rate: of the links, in bits a second; None if they are not limited.

    Returns:
      `steps`, how many; `step_ms`, the largest over processes of the median over cycles
      of the mean time of a step; `least_ms`, the same of the fastest cycle;
      `accounted_bytes` a step, likewise the largest median of the larger of sent and
      received; `limit_ms`, accounted bytes / rate; `limit_ratio`, the step to it;
      `wire_bytes` a step, the largest mean; `wire_ratio`, bytes on the wire to bytes
      accounted, of all processes and steps. What needs a rate is None without one.
    """

    def cycles(values, cycle):
        return np.mean(np.reshape(values, (-1, cycle)), axis=1)

    def median(values, cycle):
        return float(np.median(cycles(values, cycle)))

    steps = len(found[0]["seconds"])
    step_ms = 1e3 * max(median(each["seconds"], each["cycle"]) for each in found)
    accounted = max(
        median(each[way], each["cycle"]) / 8 for each in found for way in ("up", "down")
    )
    result: dict[str, Any] = {
        "steps": steps,
        "step_ms": step_ms,
        "least_ms": 1e3 * max(cycles(e["seconds"], e["cycle"]).min() for e in found),
        "accounted_bytes": accounted,
        "wire_bytes": None,
        "wire_ratio": None,
        "limit_ms": None,
        "limit_ratio": None,
    }
    if rate is not None:
        sent = [max(each["sent"], each["received"]) / steps for each in found]
        counted = sum(sum(each["up"]) for each in found) / 8
        result["wire_bytes"] = max(sent)
        result["wire_ratio"] = sum(each["sent"] for each in found) / max(counted, 1)
        result["limit_ms"] = accounted * 8 / rate * 1e3
        result["limit_ratio"] = step_ms / result["limit_ms"]
    return result


def markdown(result: dict[str, Any]) -> str:
    """The result of `measure` as a Markdown table for each rate."""
    lines = []
    if not result["throttled"]:
        lines += ["Over loopback, not throttled: step times only.", ""]
    free = {p["method"]: p["step_ms"] for p in result["points"] if p["rate"] == "none"}
    for rate in dict.fromkeys(point["rate"] for point in result["points"]):
        columns = ["step ms", "kB accounted"]
        limited = rate != "none"
        if limited:
            columns += ["limit ms", "step / limit", "unlimited, ms"]
            columns += ["wire / accounted"]
        where = f"{rate} each way" if limited else "no limit"
        lines += [f"{result['processes']} processes, {where}:", ""]
        start = len(lines)
        lines += ["| " + " | ".join(["method", *columns]) + " |"]
        lines += ["| " + " | ".join(["---"] * (len(columns) + 1)) + " |"]
        for point in (p for p in result["points"] if p["rate"] == rate):
            if point["method"] == worker.LATENCY:
                said = f"An all-reduce of one number takes {point['step_ms']:.2f} ms."
                lines[start:start] = [said, ""]
                continue
            cells = [point["method"], _number(point["step_ms"])]
            cells += [_number(point["accounted_bytes"] / 1e3)]
            if limited:
                cells += [_number(point["limit_ms"]), f"{point['limit_ratio']:.2f}"]
                cells += [_number(free.get(point["method"]))]
                cells += [f"{point['wire_ratio']:.3f}"]
            lines += ["| " + " | ".join(cells) + " |"]
        lines += [""]
    return "\n".join(lines)


def _number(value):
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    cpu = platform.processor()
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
                break
    load = os.getloadavg() if hasattr(os, "getloadavg") else (0.0, 0.0, 0.0)
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load": round(load[0], 2),
        "kernel": platform.release(),
        "system": platform.system(),
        "python": platform.python_version(),
        "jax": importlib.metadata.version("jax"),
        "jaxlib": importlib.metadata.version("jaxlib"),
        "jaxsp": importlib.metadata.version("jaxsp"),
        "date": time.strftime("%Y-%m-%d"),
    }
