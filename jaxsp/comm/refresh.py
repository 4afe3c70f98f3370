"""Snapshots that all workers take anew at the same time, by a coin they share."""

from typing import Any, Literal, NamedTuple

import chex
import jax

from jaxsp import _arguments

__all__ = ["Refresh", "check_refresh", "flip"]


class Refresh(NamedTuple):
    r"""When a snapshot is taken anew, and of what.

    Attributes:
      probability: $1 - \tau$, above 0 and at most 1.
      key: a key that all workers share, for the coin.
      snapshot: `"previous"` takes the point before the step, `"current"` the one after.
    """

    probability: chex.Numeric
    key: chex.PRNGKey
    snapshot: Literal["previous", "current"] = "previous"


def check_refresh(refresh: Any, current: bool = False) -> Refresh:
    """Refuse what does not say when; `current`: whether that snapshot is possible."""
    if not isinstance(refresh, Refresh):
        _arguments.refuse("refresh", "a jaxsp.transforms.Refresh", refresh)
    _arguments.check_probability("refresh", refresh.probability)
    key = _arguments.check_key("key", refresh.key)
    _arguments.check_choice("snapshot", refresh.snapshot, ("previous", "current"))
    if refresh.snapshot == "current" and not current:
        raise ValueError(
            'snapshot must be "previous" here, the point whose operator is known, got '
            '"current": leave it out.'
        )
    return refresh._replace(key=key)


def flip(refresh: Refresh, count: jax.Array) -> jax.Array:
    """Whether update `count` takes a new snapshot, the same on all workers."""
    step_key = jax.random.fold_in(refresh.key, count)
    return jax.random.bernoulli(step_key, refresh.probability)
