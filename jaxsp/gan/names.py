"""Compressors and graphs by the names that flags give them."""

import math
from typing import Any

from jaxsp import compressors, topology

__all__ = ["COMPRESSORS", "TOPOLOGIES", "parse_compressor", "parse_topology"]

# Each with the number that the name alone stands for, if it takes one.
COMPRESSORS: dict[str, Any] = {
    "quantize": 8,
    "natural": None,
    "dithering": 8,
    "ternary": None,
    "sign": None,
    "top_k": 0.1,
    "rand_k": 0.1,
    "perm_k": None,
    "low_rank": 2,
    "identity": None,
    "none": None,
}
TOPOLOGIES: dict[str, Any] = {
    "ring": None,
    "torus": None,
    "exponential": None,
    "one_peer_exponential": None,
    "complete": None,
    "star": None,
    "path": None,
    "erdos_renyi": 0.5,
    "random_ring": None,
}


def parse_compressor(text: str) -> compressors.Compressor | None:
    """The compressor that a text names.

    Args:
      text: one of `COMPRESSORS`, perhaps with a number after a colon, such as
        "top_k:0.01".

    Returns:
      The compressor; None for "none".

    Raises:
      ValueError: if the text names none, or the number does not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> parse_compressor("top_k:0.01").for_worker(0, 1).bits(jnp.zeros(1000))
      480
    """
    name, number = _number_after(text, COMPRESSORS)
    if name == "none":
        return None
    return getattr(compressors, name)(*([] if number is None else [number]))


def parse_topology(
    text: str, workers: int, seed: int
) -> topology.Topology | topology.TimeVarying:
    """The graph that a text names, of so many workers.

    Args:
      text: one of `TOPOLOGIES`. "torus" is the squarest there is, "torus:2x4" has two
        rows; "erdos_renyi:0.3" joins a pair with probability 0.3.
      workers: how many.
      seed: what a random graph follows from.

    Returns:
      The graph.

    Raises:
      ValueError: if the text names none, or the graph does not fit the workers.

    Example:
      >>> parse_topology("torus", 8, seed=0).size
      8
    """
    name, colon, sides = text.partition(":")
    if name == "torus":
        rows = next(r for r in range(math.isqrt(workers), 0, -1) if workers % r == 0)
        pair = sides.split("x") if colon else [str(rows), str(workers // rows)]
        shape = [int(side) for side in pair if side.isdecimal()]
        if len(shape) != 2 or math.prod(shape) != workers or min(shape) < 2:
            raise ValueError(
                f"torus must be rows x columns, both at least 2, of {workers} workers "
                f"in all, got {text!r}: write torus:2x4 for 8 workers, or ring."
            )
        return topology.torus(*shape)
    name, number = _number_after(text, TOPOLOGIES)
    if name == "erdos_renyi":
        return topology.erdos_renyi(workers, number, seed)
    if name == "random_ring":
        return topology.random_ring(workers, seed=seed)
    return getattr(topology, name)(workers)


def _number_after(text: str, numbers: dict[str, Any]) -> tuple[str, Any]:
    """The name before a colon, and the number behind it or the name's own."""
    name, colon, number = text.partition(":")
    if name not in numbers:
        raise ValueError(f"write one of {', '.join(numbers)}, got {text!r}.")
    default = numbers[name]
    if not colon:
        return name, default
    if default is None:
        raise ValueError(f"{name} takes nothing after a colon, got {text!r}.")
    try:
        return name, type(default)(number)
    except ValueError:
        raise ValueError(
            f"{name} takes a number after a colon, such as {name}:{default}, got "
            f"{text!r}."
        ) from None
