"""Calls of the compiled step that are in flight together, and the losses they bring.

JAX returns from a call before the devices have done its work. The loop calls the step
some times, the more the faster it is, and waits for all of these together.
"""

import time
from typing import Any

import jax
import numpy as np

__all__ = ["Flights", "first_not_finite"]

# JAX 0.10 on several CPU devices deadlocks when 64 steps with collectives are in
# flight; and a signal is seen, and the bar moved, when one of these is complete.
_MOST_CALLS_IN_FLIGHT = 32
_SECONDS_IN_FLIGHT = 0.5


class Flights:
    """Calls of a program's step that are in flight together.

    All randomness of the steps follows from `key`; `data` are shares and sizes, on the
    workers' devices; `signals` end training.
    """

    def __init__(self, program, data, key, signals):
        self._program, self._data, self._key = program, data, key
        self._signals = signals
        self._calls = 1  # in a flight
        self._is_compiled = False

    def fly(self, state: Any, step: int, end: int) -> tuple[Any, np.ndarray, float]:
        """Do at least one step from `step` on, and none after `end`; consumes `state`.

        Returns:
          The state, the losses (workers, steps, 2), and the seconds it took: 0 for the
          first call after a start, in which everything is compiled.
        """
        began, flight = time.monotonic(), []
        while not flight or (
            step < end and len(flight) < self._calls and not self._signals.seen
        ):
            count = min(self._program.steps_per_call, end - step)
            state, values = self._program.step(state, *self._data, self._key, count)
            flight.append((values, count))
            step += count
        fetched = self._program.fetch([values for values, _ in flight])
        losses = np.concatenate(
            [v[:, :n] for v, (_, n) in zip(fetched, flight, strict=True)], axis=1
        )
        jax.block_until_ready(state)
        took = time.monotonic() - began
        calls = len(flight) * _SECONDS_IN_FLIGHT / took
        calls = int(np.clip(calls, 1, _MOST_CALLS_IN_FLIGHT))
        (self._calls,) = self._signals.agree([calls])  # the next flight depends on it
        took, self._is_compiled = took * self._is_compiled, True
        return state, losses, took


def first_not_finite(losses: np.ndarray) -> tuple[str, int] | None:
    """The first loss of (workers, steps, 2) that is not finite, in words, and its step.

    None where all are finite. The step is counted from the first of these, which is 0.
    """
    bad = np.argwhere(~np.isfinite(losses.swapaxes(0, 1)))
    if not len(bad):
        return None
    at, worker, player = bad[0].tolist()
    name = ("generator", "discriminator")[player]
    return f"the {name} loss of worker {worker} is {losses[worker, at, player]}", at
