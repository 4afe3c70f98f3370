"""What the benchmarks share: a command line, timings in turns, tables and plots."""

import argparse
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

__all__ = ["command_line", "in_turns", "print_table", "save"]


def command_line(doc: str | None) -> argparse.ArgumentParser:
    """A parser that describes a script by the first line of its docstring."""
    return argparse.ArgumentParser(description=(doc or "").partition("\n")[0])


def in_turns(
    calls: Mapping[str, Callable[[], Any]],
    repeats: int,
    warm_up: int = 1,
    clock: Callable[[], Any] = time.perf_counter,
) -> dict[str, np.ndarray]:
    """Time calls that take turns, so that the machine's noise falls on all alike.

    Args:
      calls: what to time. What a call returns is waited for.
      repeats: how often. Every other time the order is reversed.
      warm_up: repeats before, which are not counted.
      clock: what is read before and after; a number, or an array of several.

    Returns:
      By how much it has advanced, the seconds, of each call in each repeat.
    """
    advanced: dict[str, list[Any]] = {name: [] for name in calls}
    for i in range(warm_up + repeats):
        for name in list(calls)[:: 1 if i % 2 else -1]:
            start = clock()
            jax.block_until_ready(calls[name]())
            advanced[name].append(clock() - start)
    return {name: np.array(times[warm_up:]) for name, times in advanced.items()}


def print_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a Markdown table, each row as soon as it is there."""
    for cells in (head, ["---"] * len(head)):
        print("| " + " | ".join(cells) + " |")
    for cells in rows:
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def save(figure: Any, path: pathlib.Path, dpi: int = 120) -> None:
    """Write a Matplotlib figure as PNG in place of an older one."""
    from jaxsp.gan.files import replacing

    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=dpi, format="png")
