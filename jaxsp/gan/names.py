"""Compressors and graphs by the names that flags give them."""

import math
from typing import Any

from jaxsp import compressors, topology

__all__ = ["COMPRESSORS", "TOPOLOGIES", "parse_compressor", "parse_topology"]

# Each with the number that the name alone stands for; None takes no number.
COMPRESSORS: dict[str, Any] = {"quantize": 8, "dithering": 8, "low_rank": 2}
COMPRESSORS |= {"top_k": 0.1, "rand_k": 0.1}
COMPRESSORS |= dict.fromkeys(("natural", "ternary", "sign", "perm_k"))
COMPRESSORS |= dict.fromkeys(("identity", "none"))
TOPOLOGIES: dict[str, Any] = dict.fromkeys(("ring", "torus", "complete", "star"))
TOPOLOGIES |= dict.fromkeys(("path", "exponential", "one_peer_exponential"))
TOPOLOGIES |= {"random_ring": None, "erdos_renyi": 0.5}


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
    name, number = _read(text, COMPRESSORS)
    return None if name == "none" else getattr(compressors, name)(*number)


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
    name, number = _read(text, TOPOLOGIES)
    seeded = {"seed": seed} if name in ("erdos_renyi", "random_ring") else {}
    return getattr(topology, name)(workers, *number, **seeded)


def _read(text, numbers):
    """The name before a colon, and a list of the number that it takes, if any."""
    name, colon, number = text.partition(":")
    if name not in numbers:
        raise ValueError(f"write one of {', '.join(numbers)}, got {text!r}.")
    default = numbers[name]
    if not colon:
        return name, [] if default is None else [default]
    try:
        return name, [type(default)(number)]
    except (TypeError, ValueError):
        takes = "nothing" if default is None else f"a number such as {default}"
        raise ValueError(f"{name} takes {takes} after a colon, got {text!r}.") from None
