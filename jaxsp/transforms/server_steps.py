"""Steps on the server alone, corrected by what the workers' operators differ in."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxsp import _arguments, comm
from jaxsp.comm.refresh import Refresh


class LocalSteps(NamedTuple):
    r"""What the server does between two exchanges.

    Attributes:
      steps: $H$, how many steps of extragradient.
      learning_rate: $\eta$, a number or a schedule of the iteration.
      project: $P$, a function of the point, such as a projection; None for none.
    """

    steps: int
    learning_rate: optax.ScalarOrSchedule
    project: Callable[[Any], Any] | None = None


class ServerStepsState(NamedTuple):
    r"""What `server_steps` keeps.

    Attributes:
      count: the number of updates so far, an int32 scalar.
      stale: whether the next update exchanges the operators at a new snapshot.
      snapshot: $m$, the same on all workers.
      correction: $F(m) - F_1(m)$, the mean over workers of `own`.
      own: $F_i(m) - F_1(m)$ of this worker.
      exchange: the state of the transformation that exchanges differences.
      traffic: the bits sent and received at new snapshots.
    """

    count: chex.Array
    stale: chex.Array
    snapshot: optax.Params
    correction: optax.Updates
    own: optax.Updates
    exchange: optax.OptState
    traffic: comm.Traffic


def server_steps(
    learning_rate: optax.ScalarOrSchedule,
    exchange: optax.GradientTransformation,
    refresh: Refresh,
    local: LocalSteps,
    axis_name: comm.AxisName,
) -> optax.GradientTransformationExtraArgs:
    r"""Solve a regularized problem on the server, then exchange what it has missed.

    From $u = z$ the server makes $H$ steps of extragradient, $u_{1/2} = P(u - \eta
    G(u))$, $u \leftarrow P(u - \eta G(u_{1/2}))$, on

    $$G(u) = F_1(u) + \big(F(m) - F_1(m)\big)
    + \frac1\gamma \big(u - z - \tau (m - z)\big),$$

    of which it knows everything: $F_1$ is the operator of its own data, $m$ a snapshot.
    Then $z^+ = P(u + s)$, where $s$ is what `exchange` makes of the workers'

    $$\big(F_i(m) - F_1(m)\big) - \big(F_i(u) - F_1(u)\big),$$

    to stand for $\gamma$ times their mean, and $m \leftarrow z$ with probability
    $\tau$, by one coin for all workers. At a new snapshot the workers exchange
    $F_i(m) - F_1(m)$ uncompressed, at the beginning of the next update and inside a
    conditional, as in `snapshot_extragradient`.

    There is no server: all workers make its steps alike, from the same numbers, so that
    nothing has to be sent for them. Hence every worker needs $F_1$, the operator of
    *one* worker's data, or of data that all have: `update` takes it as
    `server_operator_fn`, which must be the same function on all workers. The gradient
    given to `update` is not used.

    Args:
      learning_rate: $\gamma$, a number or a schedule of the iteration.
      exchange: a transformation of the differences, such as `average` chained with a
        scaling by $\gamma$.
      refresh: $\tau$, the key of the coin, and which point the snapshot is.
      local: the server's steps.
      axis_name: the worker axis, `Workers.axis_name`.

    Returns:
      The transformation; `update` needs `params`, `operator_fn` and
      `server_operator_fn`.

    Raises:
      ValueError: for a bad argument, or an `update` without what it needs.

    References:
      Beznosikov, Takáč, Gasnikov, Similarity, Compression and Local Steps: Three
      Pillars of Efficient Communications for Distributed Variational Inequalities,
      2023, arXiv 2302.07615.
    """
    _arguments.check_learning_rate(learning_rate)
    refresh = comm.check_refresh(refresh, current=True)
    _arguments.check_instance(
        "local", local, LocalSteps, "a jaxsp.transforms.LocalSteps"
    )
    _arguments.check_count("local_steps", local.steps)
    _arguments.check_learning_rate(local.learning_rate, "local_learning_rate")
    if local.project is not None:
        _arguments.check_callable("project", local.project)
    _arguments.check_axis_name(axis_name)
    exchange = _arguments.check_transformation("exchange", exchange)
    project = local.project or (lambda point: point)

    def init_fn(params):
        _arguments.check_floating(params)
        return ServerStepsState(
            count=jnp.zeros([], jnp.int32),
            stale=jnp.ones([], bool),
            snapshot=jax.tree.map(lambda p: jnp.array(p, copy=True), params),
            correction=optax.tree.zeros_like(params),
            own=optax.tree.zeros_like(params),
            exchange=exchange.init(params),
            traffic=comm.no_traffic(),
        )

    def update_fn(
        updates,
        state,
        params=None,
        *,
        operator_fn=None,
        server_operator_fn=None,
        **extra_args,
    ):
        del updates
        params = _arguments.require_params(params)
        operator = _arguments.require_operator(operator_fn)
        server = _arguments.require_operator(server_operator_fn, "server_operator_fn")
        comm.check_unchecked(axis_name)

        def apart(point):  # F_i − F_1
            return optax.tree.sub(operator(point), server(point))

        def renewed():
            m = params if refresh.snapshot == "current" else state.snapshot
            own = apart(m)
            return m, own, *comm.all_reduce(own, state.traffic, axis_name)

        def unchanged():
            return state.snapshot, state.own, state.correction, state.traffic

        stale = comm.shared_index(state.stale, axis_name)
        snapshot, own, correction, traffic = lax.cond(stale, renewed, unchanged)

        def rate_of(rate):
            return rate(state.count) if callable(rate) else rate

        def field(u, z, m, f, c):  # G(u) for one leaf
            tau = jnp.asarray(refresh.probability, u.dtype)
            gamma = jnp.asarray(rate_of(learning_rate), u.dtype)
            return f + c + (u - z - tau * (m - z)) / gamma

        def descend(u, at):  # P(u − η G(at))
            g = jax.tree.map(field, at, params, snapshot, server(at), correction)
            eta = rate_of(local.learning_rate)
            return project(
                jax.tree.map(lambda u, g: u - jnp.asarray(eta, u.dtype) * g, u, g)
            )

        def local_step(_, u):
            return descend(u, descend(u, u))

        u = lax.fori_loop(0, local.steps, local_step, params)
        step, exchanged = exchange.update(
            optax.tree.sub(own, apart(u)), state.exchange, params, **extra_args
        )
        point = project(optax.tree.add(u, step))  # z⁺
        coin = comm.flip(refresh, state.count)
        if refresh.snapshot == "previous":
            snapshot = jax.tree.map(
                lambda z, m: jnp.where(coin, z, m), params, snapshot
            )
        state = ServerStepsState(
            count=jnp.asarray(optax.safe_increment(state.count)),
            stale=coin,
            snapshot=snapshot,
            correction=correction,
            own=own,
            exchange=exchanged,
            traffic=traffic,
        )
        return optax.tree.sub(point, params), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
