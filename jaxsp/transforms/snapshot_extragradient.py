"""Extragradient around a snapshot, where only differences to it travel: MASHA."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxsp import _arguments, comm
from jaxsp.comm.refresh import Refresh


class SnapshotExtragradientState(NamedTuple):
    r"""What `snapshot_extragradient` keeps.

    Attributes:
      count: the number of updates so far, an int32 scalar.
      stale: whether the next update exchanges the operators at a new snapshot.
      snapshot: $w$, the same on all workers.
      field: $F(w)$, the mean over workers.
      own_field: $F_m(w)$ of this worker; `()` if differences are of minibatches.
      exchange: the state of the transformation that exchanges differences.
      traffic: the bits sent and received at new snapshots.
    """

    count: chex.Array
    stale: chex.Array
    snapshot: optax.Params
    field: optax.Updates
    own_field: optax.Updates
    exchange: optax.OptState
    traffic: comm.Traffic


def snapshot_extragradient(
    learning_rate: optax.ScalarOrSchedule,
    exchange: optax.GradientTransformation,
    refresh: Refresh,
    axis_name: comm.AxisName,
    *,
    differences: Literal["full", "minibatch"] = "full",
    prox: Callable[[Any, Any], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Extragradient around a snapshot, at which all know the operator.

    $$\bar z = \tau z + (1 - \tau) w, \qquad
    z_{1/2} = \mathrm{prox}\big(\bar z - \gamma F(w)\big), \qquad
    z^+ = \mathrm{prox}\big(\bar z - \gamma F(w) - s\big),$$

    where $s$ is what `exchange` makes of the workers' $F_m(z_{1/2}) - F_m(w)$, to stand
    for $\gamma$ times their mean. Then one coin, the same for all workers, decides with
    probability $1 - \tau$ whether there is a new snapshot: $w \leftarrow z$, the point
    before the step, or $w \leftarrow z^+$. At a new one the workers exchange $F_m(w)$
    uncompressed. That happens at the beginning of the next update, inside a
    conditional: without it nothing is computed and nothing is sent (under `vmap`, where
    a conditional on a worker's state evaluates both sides, it is computed). The first
    update begins so, with $w = z$.

    The gradient given to `update` is not used, and costs nothing where the whole step
    is compiled: `operator_fn` is called at $z_{1/2}$, and at a new snapshot.

    Args:
      learning_rate: $\gamma$, a number or a schedule of the iteration.
      exchange: a transformation of the differences, such as `average` chained with a
        scaling by $\gamma$.
      refresh: when the snapshot is taken anew, and of what.
      axis_name: the worker axis, `Workers.axis_name`.
      differences: `"full"` takes $F_m(w)$ from when the snapshot was taken;
        `"minibatch"` takes both operators of a difference from `operator_fn`, hence
        from one minibatch, and $F_m(w)$ from `full_operator_fn`, which `update` then
        needs too.
      prox: `prox(point, gamma)`, such as a projection; None for none.

    Returns:
      The transformation; `update` needs `params` and `operator_fn`.

    Raises:
      ValueError: for a bad argument, or an `update` without what it needs.

    References:
      Beznosikov, Richtárik, Diskin, Ryabinin, Gasnikov, Distributed Methods with
      Compressed Communication for Solving Variational Inequalities, with Theoretical
      Guarantees, 2022, arXiv 2110.03313.
    """
    _arguments.check_learning_rate(learning_rate)
    refresh = comm.check_refresh(refresh, current=True)
    _arguments.check_axis_name(axis_name)
    _arguments.check_choice("differences", differences, ("full", "minibatch"))
    if prox is not None:
        _arguments.check_callable("prox", prox)
    exchange = _arguments.check_transformation("exchange", exchange)
    minibatch = differences == "minibatch"
    after_step = refresh.snapshot == "current"
    project = (lambda point, _: point) if prox is None else prox

    def init_fn(params):
        _arguments.check_floating(params)
        return SnapshotExtragradientState(
            count=jnp.zeros([], jnp.int32),
            stale=jnp.ones([], bool),
            snapshot=jax.tree.map(lambda p: jnp.array(p, copy=True), params),
            field=optax.tree.zeros_like(params),
            own_field=() if minibatch else optax.tree.zeros_like(params),
            exchange=exchange.init(params),
            traffic=comm.no_traffic(),
        )

    def update_fn(
        updates,
        state,
        params=None,
        *,
        operator_fn=None,
        full_operator_fn=None,
        **extra_args,
    ):
        del updates
        params = _arguments.require_params(params)
        operator = _arguments.require_operator(operator_fn)
        full_operator = (
            _arguments.require_operator(full_operator_fn, "full_operator_fn")
            if minibatch
            else operator
        )
        comm.check_unchecked(axis_name)

        def renewed():
            w = params if after_step else state.snapshot
            own = full_operator(w)  # F_m(w)
            field, traffic = comm.all_reduce(own, state.traffic, axis_name)  # F(w)
            return w, field, () if minibatch else own, traffic

        def unchanged():
            return state.snapshot, state.field, state.own_field, state.traffic

        stale = comm.shared_index(state.stale, axis_name)
        snapshot, field, own, traffic = lax.cond(stale, renewed, unchanged)

        rate = learning_rate
        if callable(learning_rate):
            rate = learning_rate(state.count)

        def blend(z, w, f):
            p = jnp.asarray(refresh.probability, z.dtype)
            return (1 - p) * z + p * w - jnp.asarray(rate, z.dtype) * f

        base = jax.tree.map(blend, params, snapshot, field)  # z̄ − γ F(w)
        half = project(base, rate)  # z½
        past = operator(snapshot) if minibatch else own
        difference = optax.tree.sub(operator(half), past)
        step, exchanged = exchange.update(
            difference, state.exchange, params, **extra_args
        )
        point = project(optax.tree.sub(base, step), rate)  # z⁺
        coin = comm.flip(refresh, state.count)
        if not after_step:  # w ← z, whose operators the next update exchanges
            snapshot = jax.tree.map(
                lambda z, w: jnp.where(coin, z, w), params, snapshot
            )
        state = SnapshotExtragradientState(
            count=jnp.asarray(optax.safe_increment(state.count)),
            stale=coin,
            snapshot=snapshot,
            field=field,
            own_field=own,
            exchange=exchanged,
            traffic=traffic,
        )
        return optax.tree.sub(point, params), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
