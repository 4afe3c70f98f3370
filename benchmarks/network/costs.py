"""Rounds and bytes of a step of each method of `measure.py`, from the schedules."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import worker

from jaxsp import compressors, topology

__all__ = ["BESIDES", "COSTS", "Cost", "cost"]


class Cost(NamedTuple):
    """What a worker does in a step, on average.

    Attributes:
      rounds: messages that it sends one after the other.
      bytes: those that it sends, and receives.
    """

    rounds: float
    bytes: float


def _dense(count: int, parameters: int) -> Cost:
    """A ring all-reduce: each block goes round to be added up, and round to be told."""
    return Cost(2 * (count - 1), 2 * (count - 1) / count * 4 * parameters)


def _mixing(graph: Callable[[int], Any]) -> Callable[[int, int], Cost]:
    def cost(count, parameters):
        members = graph(count).members
        rounds = np.mean([w.permutes for w in members])
        sent = np.mean([w.messages()[0].max() for w in members])
        return Cost(float(rounds), float(sent) * 4 * parameters)

    return cost


def _compressed(
    codec: compressors.Compressor, both_ways: bool = True, sharded: bool = True
) -> Callable[[int, int], Cost]:
    """The cheaper of the two routes of `jaxsp.channel`."""

    def cost(count, parameters):
        matrix = worker.shape(parameters)
        whole = jax.ShapeDtypeStruct(
            matrix if codec.per_leaf else (parameters,), np.float32
        )
        gathered = Cost(count - 1, (count - 1) * codec.bits(whole) / 8)
        if not sharded:  # a warm start
            return gathered
        block = jax.ShapeDtypeStruct((-(-parameters // count),), np.float32)
        back = codec.bits(block) if both_ways else 32 * block.size
        bits = (count - 1) * (codec.bits(block) + back)
        return min(gathered, Cost(2 * (count - 1), bits / 8), key=lambda c: c.bytes)

    return cost


def _seldom(every: int) -> Callable[[int, int], Cost]:
    def cost(count, parameters):
        whole = _dense(count, parameters)
        return Cost(whole.rounds / every, whole.bytes / every)

    return cost


COSTS: dict[str, Callable[[int, int], Cost]] = {
    worker.LATENCY: lambda count, parameters: _dense(count, 1),
    "all-reduce": _dense,
    "ring": _mixing(topology.ring),
    "one-way ring": _mixing(worker.directed_ring),
    "one-peer exponential": _mixing(topology.one_peer_exponential),
    "sync every 8": _seldom(8),
    "quantize 8 bits": _compressed(compressors.quantize(8)),
    "quantize 4 bits": _compressed(compressors.quantize(4)),
    "quantize 2 bits": _compressed(compressors.quantize(2)),
    "sign": _compressed(compressors.sign()),
    "top-k 1 %": _compressed(compressors.top_k(0.01)),
    "low rank 2": _compressed(compressors.low_rank(2), sharded=False),
    "MASHA1 rand-k 1 %": _compressed(compressors.rand_k(0.01), both_ways=False),
}
# What a step costs besides, on average: MASHA1's refreshes, which a median leaves out.
BESIDES = {"MASHA1 rand-k 1 %": _seldom(100)}


def cost(method: str, count: int, parameters: int) -> Cost:
    """The rounds and bytes of a typical step.

    Args:
      method: a name in `worker.METHODS`.
      count: how many workers.
      parameters: float32 numbers in the model.

    Returns:
      The cost; of a method whose messages repeat after a cycle the mean over it.

    Raises:
      ValueError: if the method's schedule is not known.

    Example:
      >>> cost("all-reduce", 4, 1_000_000)
      Cost(rounds=6, bytes=6000000.0)
    """
    if method not in COSTS:
        raise ValueError(f"method must be one of {', '.join(COSTS)}, got {method!r}.")
    return COSTS[method](count, parameters)
