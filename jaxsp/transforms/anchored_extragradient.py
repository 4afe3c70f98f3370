"""Extragradient around an anchor, where only differences to it are exchanged: MASHA."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxsp import _arguments, comm


class AnchoredExtragradientState(NamedTuple):
    r"""What `anchored_extragradient` keeps.

    Attributes:
      count: the number of updates so far, an int32 scalar.
      stale: whether the anchor moves to the parameters before the next step.
      anchor: $w$, the same on all workers.
      field: $F(w)$, the mean over workers.
      own_field: $F_m(w)$ of this worker; `()` if differences are of minibatches.
      exchange: the state of the transformation that exchanges differences.
      traffic: the bits sent and received to renew the anchor.
    """

    count: chex.Array
    stale: chex.Array
    anchor: optax.Params
    field: optax.Updates
    own_field: optax.Updates
    exchange: optax.OptState
    traffic: comm.Traffic


def anchored_extragradient(
    learning_rate: optax.ScalarOrSchedule,
    exchange: optax.GradientTransformation,
    refresh: chex.Numeric,
    *,
    key: chex.PRNGKey,
    axis_name: comm.AxisName,
    differences: Literal["full", "minibatch"] = "full",
    prox: Callable[[Any, Any], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Extragradient around an anchor, whose operator is known to all.

    $$\bar z = \tau z + (1 - \tau) w, \qquad
    z_{1/2} = \mathrm{prox}\big(\bar z - \gamma F(w)\big), \qquad
    z \leftarrow \mathrm{prox}\big(\bar z - \gamma F(w) - s\big),$$

    where $s$ is what `exchange` makes of the workers' $F_m(z_{1/2}) - F_m(w)$, to stand
    for $\gamma$ times their mean. Then one coin, the same for all workers, decides with
    probability $1 - \tau$ whether the anchor moves: $w \leftarrow z$, at which the
    workers exchange $F_m(w)$ uncompressed. That happens at the beginning of the next
    update, inside a conditional: without it nothing is computed and nothing is sent
    (under `vmap`, where a conditional on a worker's state evaluates both sides, it is
    computed). The first update begins so, with $w = z$.

    The gradient given to `update` is not used, and costs nothing where the whole step
    is compiled: `operator_fn` is called at $z_{1/2}$, and at a new anchor.

    Args:
      learning_rate: $\gamma$, a number or a schedule of the iteration.
      exchange: a transformation of the differences, as `compressed_average` chained
        with a scaling by $\gamma$.
      refresh: $1 - \tau$, above 0 and at most 1.
      key: a key that all workers share, for the coin.
      axis_name: the worker axis, `Workers.axis_name`.
      differences: `"full"` takes $F_m(w)$ from when the anchor moved; `"minibatch"`
        takes both operators of a difference from `operator_fn`, hence from one
        minibatch, and $F_m(w)$ from `full_operator_fn`, which `update` then needs too.
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
    _arguments.check_probability("refresh", refresh)
    _arguments.check_key("key", key)
    _arguments.check_axis_name(axis_name)
    if differences not in ("full", "minibatch"):
        raise ValueError(
            f'differences must be "full" or "minibatch", got {differences!r}.'
        )
    exchange = optax.with_extra_args_support(exchange)
    minibatch = differences == "minibatch"
    project = (lambda point, _: point) if prox is None else prox

    def init_fn(params):
        _arguments.check_floating(params)
        return AnchoredExtragradientState(
            count=jnp.zeros([], jnp.int32),
            stale=jnp.ones([], bool),
            anchor=jax.tree.map(lambda p: jnp.array(p, copy=True), params),
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
        at_anchor = (
            _arguments.require_operator(full_operator_fn, "full_operator_fn")
            if minibatch
            else operator
        )

        def renewed():
            own = at_anchor(params)  # F_m(w), w = z
            bits = comm.mean_bits(own, axis_name)
            traffic = comm.add_traffic(state.traffic, bits, bits, axis_name)
            field = comm.mean(own, axis_name)  # F(w)
            return params, field, () if minibatch else own, traffic

        def kept():
            return state.anchor, state.field, state.own_field, state.traffic

        stale = comm.shared_index(state.stale, axis_name)
        anchor, field, own, traffic = lax.cond(stale, renewed, kept)

        rate = learning_rate
        if callable(learning_rate):
            rate = learning_rate(state.count)

        def blend(z, w, f):
            p = jnp.asarray(refresh, z.dtype)
            return (1 - p) * z + p * w - jnp.asarray(rate, z.dtype) * f

        base = jax.tree.map(blend, params, anchor, field)  # z̄ − γ F(w)
        half = project(base, rate)  # z½
        past = operator(anchor) if minibatch else own
        difference = optax.tree.sub(operator(half), past)
        step, exchanged = exchange.update(
            difference, state.exchange, params, **extra_args
        )
        point = project(optax.tree.sub(base, step), rate)  # z
        coin = jax.random.bernoulli(jax.random.fold_in(key, state.count), refresh)
        state = AnchoredExtragradientState(
            count=jnp.asarray(optax.safe_increment(state.count)),
            stale=coin,
            anchor=anchor,
            field=field,
            own_field=own,
            exchange=exchanged,
            traffic=traffic,
        )
        return optax.tree.sub(point, params), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
