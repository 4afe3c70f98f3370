"""Optimistic steps with a dual variable that gossip drives to consensus."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxsp import _arguments, comm
from jaxsp.comm.refresh import Refresh
from jaxsp.topology import TimeVarying, Topology


class PrimalDualSteps(NamedTuple):
    r"""The steps of `primal_dual_gossip`.

    Attributes:
      learning_rate: $\eta$, a number or a schedule of the iteration.
      dual_learning_rate: $\theta$, likewise.
      feedback: $\beta$, above 0.
      momentum: $\alpha$.
    """

    learning_rate: optax.ScalarOrSchedule
    dual_learning_rate: optax.ScalarOrSchedule
    feedback: chex.Numeric
    momentum: chex.Numeric = 1.0


class SnapshotSums(NamedTuple):
    r"""What `primal_dual_gossip` keeps of finite sums, before iteration $k$.

    Attributes:
      stale: whether this update computes $F_m(w^{k-1})$ anew.
      moved: whether $w^k$ is not $w^{k-1}$ but $z^{k-1}$.
      point: $z^{k-1}$.
      snapshot: $w^{k-1}$, of this worker.
      field: $F_m(w^{k-1})$, the whole sum.
    """

    stale: chex.Array
    moved: chex.Array
    point: optax.Params
    snapshot: optax.Params
    field: optax.Updates


class PrimalDualGossipState(NamedTuple):
    r"""What `primal_dual_gossip` keeps, before iteration $k$.

    Attributes:
      count: $k$, the number of updates so far, an int32 scalar.
      dual: $y^{k-1}$ of this worker; over all workers its sum is zero.
      previous: $F_m(z^{k-1})$; `()` with finite sums.
      sums: of finite sums, else `()`.
      traffic: the bits sent to and received from neighbours.
    """

    count: chex.Array
    dual: optax.Updates
    previous: optax.Updates
    sums: SnapshotSums | tuple[()]
    traffic: comm.Traffic


def primal_dual_gossip(
    topology: Topology | TimeVarying,
    steps: PrimalDualSteps,
    refresh: Refresh | None = None,
    *,
    axis_name: comm.AxisName,
    prox: Callable[[Any, Any], Any] | None = None,
    key: chex.PRNGKey | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Optimistic descent with a dual variable for the workers' consensus.

    On the stacked points of all workers, with
    $G = (I - W) / \lambda_{\max}(I - W)$,

    $$\delta = F(z^k) + \alpha \big(F(z^k) - F(z^{k-1})\big), \qquad
    z^{k+1} = \mathrm{prox}\big(z^k - \eta (\delta - y^k - \alpha (y^k - y^{k-1}))
    \big),$$

    $$y^{k+1} = y^k - \theta\, G \big(z^{k+1} - \beta (F(z^{k+1}) - y^k)\big).$$

    At its rest $y_m = F_m(z^*)$ and every $z_m = z^*$, the solution of the mean
    operator, whatever the workers differ in. An update takes the operator at $z^k$,
    makes $y^k$ of it by one exchange with the neighbours, then $z^{k+1}$: one oracle
    call and one exchange. At the start $z^{-1} = z^0$ and $y^0 = y^{-1} = 0$; the first
    exchange comes to nothing, and is counted as it travels.

    With `refresh` $F$ is a finite sum, of which `operator_fn` is a minibatch $S$ and
    `dual_operator_fn` another one $S'$, drawn afresh, and $w^{k+1} = z^k$ with
    probability $p$, by one coin for all workers, else $w^{k+1} = w^k$:

    $$\delta = F_S(z^k) - F_S(w^{k-1}) + \alpha \big(F_S(z^k) - F_S(z^{k-1})\big)
    + F(w^{k-1}),$$

    $F_{S'}(z^{k+1}) - F_{S'}(w^k) + F(w^k)$ is in the place of $F(z^{k+1})$ (and $S'$
    that of the update after), and $z^{k+1}$ is drawn towards $w^k$: $p (w^k - z^k)$ is
    added inside of the prox. A snapshot is a worker's own and is not exchanged.

    Args:
      topology: the mixing matrix, symmetric, from `jaxsp.topology`; of a time-varying
        one every update takes the next member or, if it is random, draws one.
      steps: $\eta$, $\theta$, $\beta$ and $\alpha$.
      refresh: None, or $p$ and the key of the coin for finite sums; the snapshot is the
        previous point.
      axis_name: the worker axis, `Workers.axis_name`.
      prox: `prox(point, eta)`, such as a projection; None for none.
      key: the shared key that a random topology is drawn from, and only that needs it.

    Returns:
      The transformation; `update` needs `params`, and for finite sums `operator_fn`,
      `dual_operator_fn` and `full_operator_fn`, where the gradient that it is given is
      not used.

    Raises:
      ValueError: for a bad argument, or an `update` without what it needs.

    References:
      Kovalev, Beznosikov, Sadiev, Persiianov, Richtárik, Gasnikov, Optimal Algorithms
      for Decentralized Stochastic Variational Inequalities, 2022, arXiv 2202.02771
      (Algorithm 1; there for one fixed graph).
    """
    _check_symmetric(topology)
    _arguments.check_instance(
        "steps", steps, PrimalDualSteps, "a jaxsp.transforms.PrimalDualSteps"
    )
    _arguments.check_learning_rate(steps.learning_rate)
    _arguments.check_learning_rate(steps.dual_learning_rate, "dual_learning_rate")
    _arguments.check_positive("feedback", steps.feedback)
    _arguments.check_nonnegative("momentum", steps.momentum)
    coin: Any = None if refresh is None else comm.check_refresh(refresh)
    _arguments.check_axis_name(axis_name)
    if prox is not None:
        _arguments.check_callable("prox", prox)
    key = comm.check_draws(topology, key)
    # λ_max(I − W) of each member; 1 where there is nobody to mix with
    scales = np.array([(1 - w.spectral_interval[0]) or 1.0 for w in topology.members])

    def gossiped(tree, traffic, count):
        """`G` times the tree, for the exchange that makes y of iteration `count`."""
        member = comm.member(topology, count, axis_name, key)
        apart, traffic = comm.mix(tree, traffic, topology, axis_name, member, True)
        scale = jnp.asarray(scales)[member]
        return jax.tree.map(lambda v: v / scale.astype(v.dtype), apart), traffic

    def init_fn(params):
        _arguments.check_floating(params)
        return PrimalDualGossipState(
            count=jnp.zeros([], jnp.int32),
            dual=optax.tree.zeros_like(params),
            previous=optax.tree.zeros_like(params) if coin is None else (),
            sums=() if coin is None else _first_sums(params),
            traffic=comm.no_traffic(),
        )

    def whole(updates, state, params):
        """`F(z^k)`, `δ`, and where the step begins."""
        before = _where(state.count == 0, updates, state.previous)  # F(z^{k-1})
        delta = jax.tree.map(
            lambda f, b: f + jnp.asarray(steps.momentum, f.dtype) * (f - b),
            updates,
            before,
        )
        return updates, delta, params, ()

    def sampled(sums, count, params, operators):
        """The same of finite sums, with the snapshot drawn in; what to keep."""
        operator, dual_operator, full_operator = operators
        field = lax.cond(  # F(w^{k-1})
            comm.shared_index(sums.stale, axis_name),
            lambda: full_operator(sums.snapshot),
            lambda: sums.field,
        )

        def ahead(f, w, b, whole):
            return f - w + jnp.asarray(steps.momentum, f.dtype) * (f - b) + whole

        points = params, sums.snapshot, sums.point
        delta = jax.tree.map(ahead, *map(operator, points), field)
        now = jax.tree.map(
            lambda f, w, whole: f - w + whole, *map(dual_operator, points[:2]), field
        )
        snapshot = _where(sums.moved, sums.point, sums.snapshot)  # w^k
        start = jax.tree.map(
            lambda z, w: z + jnp.asarray(coin.probability, z.dtype) * (w - z),
            params,
            snapshot,
        )
        moved = comm.flip(coin, count)
        return (
            now,
            delta,
            start,
            SnapshotSums(sums.moved, moved, params, snapshot, field),
        )

    def update_fn(
        updates,
        state,
        params=None,
        *,
        operator_fn=None,
        dual_operator_fn=None,
        full_operator_fn=None,
        **extra_args,
    ):
        del extra_args
        params = _arguments.require_params(params)
        first, before = state.count == 0, jnp.maximum(state.count - 1, 0)
        if coin is None:
            now, delta, start, sums = whole(updates, state, params)
        else:
            given = {
                "operator_fn": operator_fn,
                "dual_operator_fn": dual_operator_fn,
                "full_operator_fn": full_operator_fn,
            }
            operators = [_arguments.require_operator(f, n) for n, f in given.items()]
            now, delta, start, sums = sampled(
                state.sums, state.count, params, operators
            )

        def rate(learning_rate, count, dtype):
            if callable(learning_rate):
                learning_rate = learning_rate(count)
            return jnp.asarray(learning_rate, dtype)

        def pull(z, f, y):  # z^k − β (F(z^k) − y^{k-1})
            return z - jnp.asarray(steps.feedback, z.dtype) * (f - y)

        apart, traffic = gossiped(
            jax.tree.map(pull, params, now, state.dual), state.traffic, before
        )

        def turn(g):  # y^k − y^{k-1}
            theta = rate(steps.dual_learning_rate, before, g.dtype)
            return jnp.where(first, jnp.zeros_like(g), -theta * g)

        turned = jax.tree.map(turn, apart)
        dual = optax.tree.add(state.dual, turned)  # y^k

        def move(z, d, y, t):
            alpha = jnp.asarray(steps.momentum, z.dtype)
            eta = rate(steps.learning_rate, state.count, z.dtype)
            return z - eta * (d - y - alpha * t)

        point = jax.tree.map(move, start, delta, dual, turned)  # z^{k+1}
        if prox is not None:
            eta = steps.learning_rate
            point = prox(point, eta(state.count) if callable(eta) else eta)
        state = PrimalDualGossipState(
            count=jnp.asarray(optax.safe_increment(state.count)),
            dual=dual,
            previous=updates if coin is None else (),
            sums=sums,
            traffic=traffic,
        )
        return optax.tree.sub(point, params), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _first_sums(params):
    """`z^{-1} = w^{-1} = w^0 = z^0`, of which the whole sum is still to compute."""
    return SnapshotSums(
        stale=jnp.ones([], bool),
        moved=jnp.zeros([], bool),
        point=jax.tree.map(lambda p: jnp.array(p, copy=True), params),
        snapshot=jax.tree.map(lambda p: jnp.array(p, copy=True), params),
        field=optax.tree.zeros_like(params),
    )


def _check_symmetric(topology):
    """Refuse a matrix of which `I - W` is not symmetric, hence perhaps not monotone."""
    _arguments.check_topology(topology)
    if not topology.is_symmetric:
        raise ValueError(
            f"topology must have symmetric mixing matrices, got {topology!r}: take an "
            "undirected graph, such as jaxsp.topology.ring."
        )


def _where(fact, yes, no):
    """One tree or the other."""
    return jax.tree.map(lambda y, n: jnp.where(fact, y, n), yes, no)
