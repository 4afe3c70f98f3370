"""Optimistic steps around a snapshot, where only differences travel."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxsp import _arguments, comm
from jaxsp.comm.refresh import Refresh


class OptimisticSnapshotState(NamedTuple):
    r"""What `optimistic_snapshot` keeps, before iteration $k$.

    Attributes:
      count: $k$, the number of updates so far, an int32 scalar.
      stale: whether this update exchanges $F_m(w^{k-1})$.
      moved: whether $w^k$ is not $w^{k-1}$ but $z^{k-1}$.
      snapshot: $w^k$, the same on all workers.
      field: $F(w^{k-1})$, the mean over workers, once it has been exchanged.
      own_field: $F_m(w^{k-1})$ of this worker.
      previous: $F_m(z^{k-1})$ of this worker.
      exchange: the state of the transformation that exchanges differences.
      traffic: the bits sent and received at new snapshots.
    """

    count: chex.Array
    stale: chex.Array
    moved: chex.Array
    snapshot: optax.Params
    field: optax.Updates
    own_field: optax.Updates
    previous: optax.Updates
    exchange: optax.OptState
    traffic: comm.Traffic


def optimistic_snapshot(
    learning_rate: optax.ScalarOrSchedule,
    exchange: optax.GradientTransformation,
    refresh: Refresh,
    momentum: chex.Numeric = 1.0,
    *,
    axis_name: comm.AxisName,
    prox: Callable[[Any, Any], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Optimistic descent around a snapshot, one oracle call an update.

    $$\delta_m = F_m(z^k) - F_m(w^{k-1}) + \alpha \big(F_m(z^k) - F_m(z^{k-1})\big),
    \qquad z^{k+1} = \mathrm{prox}\big(z^k + \gamma (w^k - z^k) - \eta F(w^{k-1})
    - s\big),$$

    where $s$ is what `exchange` makes of the workers' $\delta_m$, to stand for $\eta$
    times their mean. With probability $\gamma$, by one coin for all workers,
    $w^{k+1} = z^k$, else $w^{k+1} = w^k$. The operator at a new snapshot is known to
    every worker from the gradient it was given there: what is new of it is exchanged
    uncompressed one iteration later, inside a conditional. At the start
    $z^{-1} = w^{-1} = w^0 = z^0$, and the first update exchanges $F_m(z^0)$.

    Args:
      learning_rate: $\eta$, a number or a schedule of the iteration.
      exchange: a transformation of the differences, such as `average` chained with a
        scaling by $\eta$.
      refresh: $\gamma$ and the key of the coin; the snapshot is the previous point.
      momentum: $\alpha$.
      axis_name: the worker axis, `Workers.axis_name`.
      prox: `prox(point, eta)`, such as a projection; None for none.

    Returns:
      The transformation; `update` needs `params`.

    Raises:
      ValueError: for a bad argument, or an `update` without `params`.

    References:
      Beznosikov, Gasnikov, Compression and Data Similarity: Combination of Two
      Techniques for Communication-Efficient Solving of Distributed Variational
      Inequalities, 2022, arXiv 2206.09446.
    """
    _arguments.check_learning_rate(learning_rate)
    refresh = comm.check_refresh(refresh)
    _arguments.check_nonnegative("momentum", momentum)
    _arguments.check_axis_name(axis_name)
    if prox is not None:
        _arguments.check_callable("prox", prox)
    exchange = _arguments.check_transformation("exchange", exchange)
    project = (lambda point, _: point) if prox is None else prox

    def init_fn(params):
        _arguments.check_floating(params)
        return OptimisticSnapshotState(
            count=jnp.zeros([], jnp.int32),
            stale=jnp.ones([], bool),
            moved=jnp.zeros([], bool),
            snapshot=jax.tree.map(lambda p: jnp.array(p, copy=True), params),
            field=optax.tree.zeros_like(params),
            own_field=optax.tree.zeros_like(params),
            previous=optax.tree.zeros_like(params),
            exchange=exchange.init(params),
            traffic=comm.no_traffic(),
        )

    def update_fn(updates, state, params=None, **extra_args):
        params = _arguments.require_params(params)
        comm.check_unchecked(axis_name)
        first = state.count == 0
        own = _where(first, updates, state.own_field)  # F_m(w^{k-1})
        previous = _where(first, updates, state.previous)  # F_m(z^{k-1})
        field, traffic = lax.cond(
            comm.shared_index(state.stale, axis_name),
            lambda: comm.all_reduce(own, state.traffic, axis_name),
            lambda: (state.field, state.traffic),
        )
        rate = learning_rate
        if callable(learning_rate):
            rate = learning_rate(state.count)

        def difference(now, at_snapshot, before):  # δ_m
            alpha = jnp.asarray(momentum, now.dtype)
            return now - at_snapshot + alpha * (now - before)

        step, exchanged = exchange.update(
            jax.tree.map(difference, updates, own, previous),
            state.exchange,
            params,
            **extra_args,
        )

        def move(z, w, f, s):
            gamma = jnp.asarray(refresh.probability, z.dtype)
            return z + gamma * (w - z) - jnp.asarray(rate, z.dtype) * f - s

        point = project(jax.tree.map(move, params, state.snapshot, field, step), rate)
        coin = comm.flip(refresh, state.count)
        state = OptimisticSnapshotState(
            count=jnp.asarray(optax.safe_increment(state.count)),
            stale=state.moved,
            moved=coin,
            snapshot=_where(coin, params, state.snapshot),
            field=field,
            own_field=_where(state.moved, previous, own),
            previous=updates,
            exchange=exchanged,
            traffic=traffic,
        )
        return optax.tree.sub(point, params), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _where(fact, yes, no):
    """One tree or the other."""
    return jax.tree.map(lambda y, n: jnp.where(fact, y, n), yes, no)
