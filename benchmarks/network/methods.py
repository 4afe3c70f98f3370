"""The methods of `measure.py`, and the rounds and bytes of a step of each.

Every method trains one matrix of float32 numbers. Rounds are the messages that a worker
sends one after the other. Bytes are those that jaxsp counts in a simulation of so many
workers, from which the compiler removes all but the counting.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxsp
from jaxsp import compressors, topology
from jaxsp.comm import compressed

__all__ = ["BESIDES", "LATENCY", "METHODS", "Cost", "Method", "cost", "shape"]

LATENCY = "latency"  # an all-reduce of one number: what a round costs


class Cost(NamedTuple):
    """What a worker does in a step, on average.

    Attributes:
      rounds: messages that it sends one after the other.
      bytes: those that it sends, or receives if they are more.
    """

    rounds: float
    bytes: float


class Method(NamedTuple):
    """A way of training, as a transformation.

    Attributes:
      make: from the number of workers and `axis_name` to the transformation.
      rounds: of a step, from the numbers of workers and of parameters.
      cycle: after so many steps its messages repeat; times are means over a cycle.
      parameters: numbers in its model, if not those asked for.
    """

    make: Callable[[int, Any], optax.GradientTransformationExtraArgs]
    rounds: Callable[[int, int], float]
    cycle: Callable[[int], int] = lambda count: 1
    parameters: int | None = None


def _one_way_ring(count: int) -> topology.Topology:
    """Everyone mixes with the predecessor alone, weights one half."""
    after = np.roll(np.eye(count), 1, axis=0)
    return topology.from_matrix((np.eye(count) + after) / 2)


def _dense(step: Callable[[Any], Any], every: int = 1, **more: Any) -> Method:
    """A ring all-reduce: each block goes round to be added up, and round to be told."""
    return Method(
        lambda count, axis: optax.chain(optax.scale(-0.1), step(axis)),
        lambda count, parameters: 2 * (count - 1) / every,
        lambda count: every,
        **more,
    )


def _gossip(graph: Callable[[int], Any]) -> Method:
    def make(count, axis):
        step = jaxsp.gossip(graph(count), axis_name=axis)
        return optax.chain(optax.scale(-0.1), step)

    def rounds(count, parameters):
        return float(np.mean([w.permutes for w in graph(count).members]))

    return Method(make, rounds, lambda count: len(graph(count).members))


def _compressed(
    codec: compressors.Compressor,
    method: Callable[[Any], Any],
    both_ways: bool = True,
    route: Any = None,
) -> Method:
    """A method over a channel, which takes the route that sends less."""

    def channel(axis):
        down = codec if both_ways else None
        return jaxsp.channel(axis, codec, down, key=jax.random.key(0), route=route)

    def rounds(count, parameters):
        whole: Any = jax.ShapeDtypeStruct((parameters,), np.float32)
        way = compressed.cheapest([channel("w")], [whole], count)
        return (count - 1) * (2 if way == "sharded" else 1)

    return Method(lambda count, axis: method(channel(axis)), rounds)


def _average(channel):
    return optax.chain(jaxsp.average(channel), optax.scale(-0.1))


def _feedback(channel):
    return optax.chain(jaxsp.error_feedback_average(channel), optax.scale(-0.1))


METHODS = {
    LATENCY: _dense(jaxsp.average, parameters=1),
    "all-reduce": _dense(jaxsp.average),
    "ring": _gossip(topology.ring),
    "one-way ring": _gossip(_one_way_ring),
    "one-peer exponential": _gossip(topology.one_peer_exponential),
    "sync every 8": _dense(lambda axis: jaxsp.sync(8, axis), every=8),
    "quantize 8 bits": _compressed(compressors.quantize(8), _average),
    "quantize 4 bits": _compressed(compressors.quantize(4), _average),
    "quantize 2 bits": _compressed(compressors.quantize(2), _average),
    "sign": _compressed(compressors.sign(), _feedback),
    "top-k 1 %": _compressed(compressors.top_k(0.01), _feedback),
    "low rank 2": _compressed(compressors.low_rank(2), _feedback, False, "gather"),
    "MASHA1 rand-k 1 %": _compressed(
        compressors.rand_k(0.01),
        lambda channel: jaxsp.methods.masha1(0.1, channel, 0.01),
        both_ways=False,
    ),
}
# One in so many steps exchanges a whole gradient besides, which a median leaves out.
BESIDES = {"MASHA1 rand-k 1 %": 100}


def shape(parameters: int) -> tuple[int, int]:
    """The matrix of so many numbers that is nearest to a square."""
    rows = next(r for r in range(math.isqrt(parameters), 0, -1) if parameters % r == 0)
    return rows, parameters // rows


@functools.cache
def cost(name: str, count: int, parameters: int) -> Cost:
    """The rounds and bytes of a typical step.

    Args:
      name: of the method, as in `METHODS`.
      count: how many workers.
      parameters: float32 numbers in the model.

    Returns:
      The cost; of a method whose messages repeat after a cycle the mean over it.

    Example:
      >>> cost("all-reduce", 4, 1_000_000)
      Cost(rounds=6.0, bytes=6000000.0)
    """
    method = METHODS[name]
    workers = jaxsp.Workers(count, jax.devices()[:1])
    tx, cycle = method.make(count, workers.axis_name), method.cycle(count)

    def counted(_):
        z = {"w": jnp.zeros(shape(method.parameters or parameters))}
        state, found = tx.init(z), []
        for _ in range(1 + cycle):  # the first step of MASHA1 is a refresh
            state = tx.update(z, state, z, operator_fn=lambda z: z)[1]
            found.append(jaxsp.comm.find_traffic(state))
        return found[0], found[-1]

    first, last = jax.jit(workers.map(counted))(jnp.zeros(count))
    before, after = jaxsp.metrics.bits_sent(first), jaxsp.metrics.bits_sent(last)
    busiest = max((after.up - before.up).max(), (after.down - before.down).max())
    return Cost(method.rounds(count, parameters), float(busiest) / 8 / cycle)
