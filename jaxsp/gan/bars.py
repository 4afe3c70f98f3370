"""Progress that people see: a bar on a terminal and in a notebook, else plain lines.

A pipe, a log file and a notebook without ipywidgets get a line now and then.
"""

import importlib.util
import io
import math
import operator
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

__all__ = ["ProgressBar", "has_bars", "say", "track"]

_T = TypeVar("_T")
_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
_SECONDS = 30.0  # between two lines, at most


class ProgressBar:
    """Progress from step `start` to `total`, on standard error.

    What the first update took, with compilation, is left out of the estimate of the
    time that is left. Lines are written every 30 seconds, and, if `each_tenth`, after
    every tenth of the way; in a notebook on standard output.

    Args:
      total: the last step.
      title: what is done; needs no bar if it is done within a second.
      start: the step before the first.
      enabled: whether to show anything.
      each_tenth: see above.
    """

    def __init__(
        self,
        total: int,
        title: str = "",
        *,
        start: int = 0,
        enabled: bool = True,
        each_tenth: bool = False,
    ):
        from tqdm import tqdm

        kernel = _in_notebook()
        self._lines = enabled and not has_bars()
        self._tenth = (total - start) / 10 if each_tenth else math.inf
        self._said, self._said_at = start, time.monotonic()
        self._is_timed, self._title = False, title
        shown: dict[str, Any] = {"bar_format": _BAR, "dynamic_ncols": True}
        shown |= {"disable": not enabled, "smoothing": 0, "delay": 1 if title else 0}
        if self._lines:  # the bar only knows the time
            shown |= {"file": io.StringIO(), "mininterval": math.inf, "delay": 0}
        elif enabled and kernel:
            from tqdm.notebook import tqdm
        if start and enabled:
            say(f"going on from step {start}")
        self._bar: Any = tqdm(total=total, desc=title, initial=start, **shown)

    def update(self, step: int, **numbers: float) -> None:
        """Show that `step` is reached, and the numbers given by name."""
        bar, now = self._bar, time.monotonic()
        words = " ".join(f"{name} {value:.3g}" for name, value in numbers.items())
        bar.set_postfix_str(words, refresh=False)
        if self._is_timed:
            bar.update(step - bar.n)
        else:  # the clock starts here
            self._is_timed = True
            bar.n = bar.initial = bar.last_print_n = step
            bar.unpause()
            if not self._lines and not self._title:
                bar.refresh()
        last = step == bar.total and self._tenth < math.inf
        due = step - self._said >= self._tenth or now - self._said_at >= _SECONDS
        if self._lines and (last or due):
            self._said, self._said_at = step, now
            self._print_line(step, words)

    def _print_line(self, step, words):
        """One line, with an estimate if there is one."""
        times = self._bar.format_dict
        done, took = step - times["initial"], times["elapsed"]
        line = f"{self._title or 'step'} {step}/{times['total']}"
        if done > 0 and step < times["total"]:
            left = took / done * (times["total"] - step)
            line += f", {self._bar.format_interval(left)} left"
        line += f", {words}" if words else ""
        say(line)

    def close(self) -> None:
        """Leave the bar as it is and go to the next line."""
        self._bar.close()


def track(
    items: Iterable[_T], title: str, total: int | None = None, enabled: bool = True
) -> Iterator[_T]:
    """The items, with progress through them; `total` where they have no length."""
    count = operator.length_hint(items) if total is None else total
    bar = ProgressBar(count, title, enabled=enabled)
    try:
        for i, item in enumerate(items, 1):
            yield item
            bar.update(i)
    finally:
        bar.close()


def say(line: str) -> None:
    """Write a line where progress is shown."""
    stream = sys.stdout if _in_notebook() else sys.stderr
    print(line, file=stream, flush=True)


def has_bars() -> bool:
    """Whether progress is shown by bars, which move, and not by lines."""
    if _in_notebook():
        return importlib.util.find_spec("ipywidgets") is not None
    return sys.stderr.isatty()


def _in_notebook() -> bool:
    """Whether this is the process of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None
