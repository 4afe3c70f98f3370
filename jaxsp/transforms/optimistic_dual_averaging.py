"""Optimistic dual averaging with a rate that adapts to the messages: QODA."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsp import _arguments, comm


class OptimisticDualAveragingState(NamedTuple):
    r"""What `optimistic_dual_averaging` keeps.

    Attributes:
      count: the number of updates so far, an int32 scalar.
      start: $X_0$, the same on all workers.
      total: $\sum_i g_i$, the same on all workers.
      sent: $v_m$, what this worker sent last.
      spread: the sum under the root, the same on all workers, a scalar.
      rate: $\gamma$, the same on all workers, a scalar.
      traffic: the bits sent and received.
    """

    count: chex.Array
    start: optax.Params
    total: optax.Updates
    sent: optax.Updates
    spread: chex.Array
    rate: chex.Array
    traffic: comm.Traffic


def optimistic_dual_averaging(
    learning_rate: optax.ScalarOrSchedule, channel: comm.Channel | comm.AxisName
) -> optax.GradientTransformationExtraArgs:
    r"""Steps from the first point by the sum of all means, looked ahead by the last.

    $$v_m = Q(F_m(X_{1/2})), \qquad g_k = \frac1M \sum_m v_m^k, \qquad
    \gamma_{k+1} = \frac{\eta}{\sqrt{1 + \frac{1}{M^2} \sum_{i \le k} \sum_m
    |v_m^i - v_m^{i-1}|^2}}, \qquad
    X = X_0 - \gamma_{k+1} \sum_{i \le k} g_i, \qquad
    X_{1/2} = X - \gamma_{k+1}\, g_k,$$

    from $g_{-1} = v_m^{-1} = 0$. The parameters are $X_{1/2}$, where the next gradient
    is taken; `jaxsp.methods.qoda` says more.

    Args:
      learning_rate: $\eta$, a number or a schedule of the iteration.
      channel: the worker axis, `Workers.axis_name`, or what `jaxsp.channel` makes, with
        unbiased compressors.

    Returns:
      The transformation; `update` needs `params`.

    Raises:
      ValueError: for a bad argument, a channel that is not unbiased, or parameters that
        are not floating point.

    References:
      As `jaxsp.methods.qoda`.
    """
    _arguments.check_learning_rate(learning_rate)
    channel = comm.check_unbiased(comm.as_channel(channel))

    def init_fn(params):
        _arguments.check_floating(params)
        scalar = jnp.zeros([], jnp.float32)
        for leaf in jax.tree.leaves(params):
            scalar = scalar.astype(np.promote_types(scalar.dtype, _real(leaf)))
        return OptimisticDualAveragingState(
            count=jnp.zeros([], jnp.int32),
            start=jax.tree.map(lambda p: jnp.array(p, copy=True), params),
            total=optax.tree.zeros_like(params),
            sent=optax.tree.zeros_like(params),
            spread=scalar,
            rate=jnp.zeros_like(scalar),
            traffic=comm.no_traffic(),
        )

    def update_fn(updates, state, params=None, **extra_args):
        del extra_args
        params = _arguments.require_params(params)
        made, traffic = comm.exchange(updates, state.traffic, channel.at(state.count))
        change = jnp.zeros_like(state.spread)  # |v_m^k − v_m^{k−1}|²
        for new, old in zip(
            *map(jax.tree.leaves, (made.sent, state.sent)), strict=True
        ):
            gap = jnp.abs(new - old).astype(change.dtype)
            change = change + jnp.sum(gap * gap)
        change, traffic = comm.all_reduce(change, traffic, channel.axis_name)
        spread = state.spread + change / comm.worker_count(channel.axis_name)

        count = jnp.asarray(optax.safe_increment(state.count))
        rate = learning_rate(count) if callable(learning_rate) else learning_rate
        rate = jnp.asarray(rate, spread.dtype) / jnp.sqrt(1 + spread)
        total = optax.tree.add(state.total, made.mean)
        half = jax.tree.map(  # X_0 − γ Σ g − γ g
            lambda x, s, g: x - rate.astype(x.dtype) * s - rate.astype(x.dtype) * g,
            state.start,
            total,
            made.mean,
        )
        updates = optax.tree.sub(half, params)
        return updates, OptimisticDualAveragingState(
            count, state.start, total, made.sent, spread, rate, traffic
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _real(leaf):
    """The type of the magnitude of a leaf's numbers."""
    return jnp.zeros((), jnp.result_type(leaf)).real.dtype
