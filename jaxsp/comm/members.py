"""Which matrix of a topology is whose turn, or is drawn."""

from typing import Any

import jax

from jaxsp import _arguments
from jaxsp.comm.axis import AxisName, shared_index
from jaxsp.topology import TimeVarying, Topology

__all__ = ["check_draws", "member"]


def check_draws(topology: Topology | TimeVarying, key: Any) -> Any:
    """The key that a random topology is drawn from, which only that needs."""
    random = isinstance(topology, TimeVarying) and topology.random
    return _arguments.check_key("key", key) if random or key is not None else None


def member(
    topology: Topology | TimeVarying, step: Any, axis_name: AxisName, key: Any = None
) -> Any:
    """The number of the member that `step` mixes by, the same on all workers.

    Args:
      topology: with members that take turns, or are drawn.
      step: a number that all workers hold alike.
      axis_name: the worker axis.
      key: what `check_draws` returned.
    """
    size = len(topology.members)
    if size == 1:
        return 0
    step = shared_index(step, axis_name)
    if isinstance(topology, TimeVarying) and topology.random:
        return jax.random.randint(jax.random.fold_in(key, step), (), 0, size)
    return step % size
