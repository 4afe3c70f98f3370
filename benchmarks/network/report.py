"""What `measure.py` makes of its measurements: numbers for each method, and tables."""

import importlib.metadata
import os
import pathlib
import platform
import time
from collections.abc import Sequence
from typing import Any

import methods
import numpy as np

__all__ = ["machine", "markdown", "summary", "table"]


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
    cycle = found[0]["cycle"]
    cycles = {  # [process, cycle]
        name: np.array([each[name] for each in found]).reshape(len(found), -1, cycle)
        for name in ("seconds", "up", "down")
    }
    cycles = {name: values.mean(axis=2) for name, values in cycles.items()}
    steps = len(found[0]["seconds"])
    step_ms = 1e3 * np.median(cycles["seconds"], axis=1).max()
    accounted = max(np.median(cycles[w], axis=1).max() for w in ("up", "down")) / 8
    result: dict[str, Any] = {
        "steps": steps,
        "step_ms": float(step_ms),
        "least_ms": float(1e3 * cycles["seconds"].min(axis=1).max()),
        "accounted_bytes": float(accounted),
    }
    rated = ("wire_bytes", "wire_ratio", "limit_ms", "limit_ratio")
    if rate is None:
        return result | dict.fromkeys(rated)
    wire = max(max(each["sent"], each["received"]) for each in found) / steps
    counted = sum(sum(each["up"]) for each in found) / 8
    sent = sum(each["sent"] for each in found)
    limit_ms = float(accounted * 8 / rate * 1e3)
    numbers = (wire, sent / max(counted, 1), limit_ms, float(step_ms) / limit_ms)
    return result | dict(zip(rated, numbers, strict=True))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def markdown(result: dict[str, Any]) -> str:
    """The result of `measure.measure` as a Markdown table for each rate."""
    parts = []
    if not result["throttled"]:
        parts += ["Over loopback, not throttled: step times only."]
    free = {p["method"]: p["step_ms"] for p in result["points"] if p["rate"] == "none"}
    for rate in dict.fromkeys(point["rate"] for point in result["points"]):
        limited = rate != "none"
        head, rows = ["method", "step ms", "kB accounted"], []
        if limited:
            head += ["limit ms", "step / limit", "unlimited, ms", "wire / accounted"]
        where = f"{rate} each way" if limited else "no limit"
        parts += [f"{result['processes']} processes, {where}:"]
        for p in (p for p in result["points"] if p["rate"] == rate):
            if p["method"] == methods.LATENCY:
                parts += [f"An all-reduce of one number takes {p['step_ms']:.2f} ms."]
                continue
            row = [p["method"], _number(p["step_ms"])]
            row += [_number(p["accounted_bytes"] / 1e3)]
            if limited:
                row += [_number(p["limit_ms"]), f"{p['limit_ratio']:.2f}"]
                row += [_number(free.get(p["method"])), f"{p['wire_ratio']:.3f}"]
            rows += [row]
        parts += [table(head, rows)]
    return "\n\n".join(parts) + "\n"


def _number(value):
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    cpu, info = platform.processor(), pathlib.Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
    load = os.getloadavg() if hasattr(os, "getloadavg") else (0.0, 0.0, 0.0)
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load": round(load[0], 2),
        "kernel": platform.release(),
        "system": platform.system(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("jax", "jaxlib")},
        "jaxsp": importlib.metadata.version("jaxsp"),
        "date": time.strftime("%Y-%m-%d"),
    }
