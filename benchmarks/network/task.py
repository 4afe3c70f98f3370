"""What a process of `measure.py` is given, and a method that is ready to step."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxsp

__all__ = ["Run", "Task", "traffic"]


@dataclasses.dataclass(frozen=True)
class Task:
    """What a process is to do.

    Attributes:
      num_processes: how many there are, one worker each.
      methods: names in `methods.METHODS` or `worker.GANS`, in order.
      parameters: float32 numbers in the model, but for GANs.
      steps: how many to measure of each method.
      seconds: what a method may take by the rate and its own count of bits; it then
        does fewer steps, but three cycles at least.
      rate: of the links, in bits a second; None if they are not limited.
      interface: whose counters to read; None to read none.
      coordinator: host and port of process 0.
      process_id: which of them this one is.
      directory: where the results go.
    """

    num_processes: int
    methods: list[str]
    parameters: int
    steps: int
    seconds: float
    rate: float | None = None
    interface: str | None = None
    coordinator: str = ""
    process_id: int = 0
    directory: str = ""


def traffic(state: Any) -> tuple[int, int]:
    """Bits (sent, received) since `init` by the busiest worker of this process."""
    counts = jaxsp.comm.find_traffic(state)
    here = jax.tree.map(
        lambda x: np.concatenate([s.data for s in x.addressable_shards]), counts
    )
    bits = jaxsp.metrics.bits_sent(here)
    return int(bits.up.max()), int(bits.down.max())


class Run(NamedTuple):
    """A method that is ready to step.

    Attributes:
      step: does a step, from state to state, and waits for it.
      state: the first.
      traffic: from the state to the bits (sent, received) of this process.
      cycle: as of `Method`.
    """

    step: Callable[[Any], Any]
    state: Any
    traffic: Callable[[Any], tuple[int, int]]
    cycle: int
