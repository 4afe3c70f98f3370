"""The point to report."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxsp import transforms

__all__ = ["eval_params"]


def eval_params(state: optax.OptState, params: optax.Params) -> optax.Params:
    """The point to report, where `params` may be a point of a look ahead.

    For `dposg` and `jaxsp.transforms.past_extragradient` that is $Y$, the mixed point;
    for `dqgan` $w$ and for `qoda` $X$, which all workers share; for
    `jaxsp.alternating_extragradient` the point that both half-steps start from; for
    everything else `params`. It looks into chains, partitions, masks and wrappers.

    Args:
      state: the state of the transformation, of one worker or stacked.
      params: its parameters, likewise.

    Returns:
      A tree like `params`.

    Example:
      >>> import jaxsp
      >>> tx = jaxsp.transforms.past_extragradient(0.5)
      >>> updates, state = tx.update(2.0, tx.init(3.0), 3.0)
      >>> z = 3.0 + updates
      >>> print(float(z), float(jaxsp.methods.eval_params(state, z)))
      1.0 2.0
    """
    kinds = (
        transforms.PastExtragradientState,
        transforms.AlternatingExtragradientState,
        transforms.TwoStepFeedbackState,
        transforms.OptimisticDualAveragingState,
    )
    for found in jax.tree.leaves(state, is_leaf=lambda s: isinstance(s, kinds)):
        if isinstance(found, transforms.PastExtragradientState):
            params = _where_present(lambda p, a: p + a, params, found.ahead)
        elif isinstance(found, transforms.AlternatingExtragradientState):
            params = _where_present(
                lambda p, z, ahead=found.ahead: _select(ahead, z, p),
                params,
                found.start,
            )
        elif isinstance(found, transforms.TwoStepFeedbackState):
            params = _where_present(lambda p, w: w, params, found.shared)
        elif isinstance(found, transforms.OptimisticDualAveragingState):
            point = jax.tree.map(
                lambda start, total, rate=found.rate: start - _beside(rate, total),
                found.start,
                found.total,
            )
            params = _where_present(lambda p, x: x, params, point)
    return params


def _where_present(fn: Callable[..., Any], params, other):
    """`fn(leaf of params, leaf of other)`, where a mask has left the other one in."""
    masked = lambda x: isinstance(x, optax.MaskedNode)  # noqa: E731
    return jax.tree.map(
        lambda o, p: p if masked(o) else fn(p, o), other, params, is_leaf=masked
    )


def _beside(rate, x):
    """`rate x` for one worker's state or a stacked one."""
    return rate.reshape(rate.shape + (1,) * (x.ndim - rate.ndim)).astype(x.dtype) * x


def _select(ahead, z, p):
    """`where(ahead, z, p)` for one worker's state or a stacked one."""
    ahead = ahead.reshape(ahead.shape + (1,) * (z.ndim - ahead.ndim))
    return jnp.where(ahead, z, p)
