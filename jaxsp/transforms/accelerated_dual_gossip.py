"""Optimistic steps with an accelerated dual for consensus over changing graphs."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxsp import _arguments, comm
from jaxsp.topology import TimeVarying, Topology


class AcceleratedDualSteps(NamedTuple):
    r"""The constants of `accelerated_dual_gossip`, in the letters of the paper.

    Attributes:
      dual_learning_rate: $\eta_y$.
      consensus_learning_rate: $\eta_x$.
      gossip_learning_rate: $\theta$.
      momentum: $\alpha$, of the optimistic step; at least 0.
      blend: $\tau$, the weight of the new in Nesterov's mean, in (0, 1].
      regularization: $\nu$, the share of $\mu$ that is left to the dual.
      dual_feedback: $\gamma$.
      feedback: $\beta$.
      memory: $\rho$, what of $m$ is kept from step to step, in (0, 1]; 1 in the paper.
    """

    dual_learning_rate: chex.Numeric
    consensus_learning_rate: chex.Numeric
    gossip_learning_rate: chex.Numeric
    momentum: chex.Numeric
    blend: chex.Numeric
    regularization: chex.Numeric
    dual_feedback: chex.Numeric
    feedback: chex.Numeric
    memory: chex.Numeric = 1.0


class AcceleratedDualGossipState(NamedTuple):
    r"""What `accelerated_dual_gossip` keeps, before iteration $k$.

    Attributes:
      count: $k$, the number of updates so far, an int32 scalar.
      total: $x^{k-1} + y^{k-1}$ of this worker, which tends to $-\nu z^*$.
      dual: $x^{k-1}$, which tends to $-F_m(z^*)$; over all workers its sum is zero.
      average: $x_f + y_f$, Nesterov's second sequence of the sum.
      waiting: $m$, what gossip has not spread yet of the steps of $x$.
      point: $z^{k-1}$.
      previous: $F_m(z^{k-1})$.
      traffic: the bits sent to and received from neighbours.
    """

    count: chex.Array
    total: optax.Updates
    dual: optax.Updates
    average: optax.Updates
    waiting: optax.Updates
    point: optax.Params
    previous: optax.Updates
    traffic: comm.Traffic


def accelerated_dual_gossip(
    learning_rate: optax.ScalarOrSchedule,
    topology: Topology | TimeVarying,
    steps: AcceleratedDualSteps,
    rounds: int = 1,
    *,
    axis_name: comm.AxisName,
    key: chex.PRNGKey | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Optimistic descent whose consensus bears that the graph changes at every step.

    On the stacked points of all workers, with $G_k = I - W_k$,
    $s = \tau (x^k + y^k) + (1 - \tau) s_f$ and $\eta$ the learning rate,

    $$\delta = F(z^k) + \alpha \big(F(z^k) - F(z^{k-1})\big), \qquad
    z^{k+1} = z^k - \eta \big(\delta - \nu z^k - y^k - \alpha (y^k - y^{k-1})\big),$$

    $$y^{k+1} = y^k - \eta_y \big(\tfrac1\nu s + z^{k+1}
    + \gamma (x^k + y^k + \nu z^k)\big),$$

    $$\Delta = \eta_x \big(\tfrac1\nu s + \beta (x^k + F(z^{k+1}))\big) + m, \qquad
    x^{k+1} = x^k - G_k \Delta, \qquad m \leftarrow \rho W_k \Delta,$$

    $$s_f \leftarrow s + \tau (y^{k+1} - y^k) - \theta\, G_k s.$$

    A gossip matrix stands for the projection onto disagreement, and $m$ keeps what it
    did not spread for the next one, as error feedback does with a compressor: so no
    matrix has to be like the one before. At its rest $x_m = -F_m(z^*)$,
    $y_m = F_m(z^*) - \nu z^*$ and every $z_m = z^*$, the solution of the mean operator.

    An update takes the operator at $z^k$, makes $x^k$ and $y^k$ of it, then $z^{k+1}$:
    one oracle call, and one exchange with the neighbours of two vectors, $\Delta$ and
    $s$, in the same messages. It starts at $x = y = s_f = m = 0$ and $z^{-1} = z^0$;
    the first exchange comes to nothing, and is counted as it travels.

    With $\rho = 1$, as in the paper, the mean of $m$ grows for ever, by $\eta_x z^*$ in
    each step. $G_k$ does not see it, but rounding does: in float32 the distance to the
    solution grows again after a while. With $\rho$ a little below 1, which is ours, the
    mean stays, and the point of rest is the same.

    Args:
      learning_rate: $\eta$ ($\eta_z$ in the paper), a number or a schedule of the
        iteration.
      topology: the mixing matrices, from `jaxsp.topology`; directed graphs too. Every
        round takes the next member or, if it is random, draws one.
      steps: the other constants.
      rounds: $H$, exchanges in each update, one after the other: $W_k$ is the product
        of so many members. For sequences whose unions alone are connected.
      axis_name: the worker axis, `Workers.axis_name`.
      key: the shared key that a random topology is drawn from, and only that needs it.

    Returns:
      The transformation; `update` needs `params`.

    Raises:
      ValueError: for a bad argument, or an `update` without `params`.

    References:
      Kovalev, Beznosikov, Sadiev, Persiianov, Richtárik, Gasnikov, Optimal Algorithms
      for Decentralized Stochastic Variational Inequalities, 2022, arXiv 2202.02771
      (Algorithm 2, of whole operators and without a projection).
      Kovalev, Shulgin, Richtárik, Rogozin, Gasnikov, ADOM: Accelerated Decentralized
      Optimization Method for Time-Varying Networks, 2021, arXiv 2102.09234.
    """
    _arguments.check_learning_rate(learning_rate)
    _arguments.check_topology(topology)
    _check_steps(steps)
    rounds = _arguments.check_unrolled("rounds", rounds)
    _arguments.check_axis_name(axis_name)
    key = comm.check_draws(topology, key)

    def apart(tree, traffic, count):
        """`G_k` times the tree, in the rounds of iteration `count`."""
        rest = tree
        for h in range(rounds):
            member = comm.member(topology, count * rounds + h, axis_name, key)
            sent, traffic = comm.mix(rest, traffic, topology, axis_name, member, True)
            rest = optax.tree.sub(rest, sent)
            tree = sent if h == 0 else optax.tree.add(tree, sent)
        return tree, traffic

    def init_fn(params):
        _arguments.check_floating(params)
        zeros = [optax.tree.zeros_like(params) for _ in range(5)]
        return AcceleratedDualGossipState(
            count=jnp.zeros([], jnp.int32),
            total=zeros[0],
            dual=zeros[1],
            average=zeros[2],
            waiting=zeros[3],
            point=jax.tree.map(lambda p: jnp.array(p, copy=True), params),
            previous=zeros[4],
            traffic=comm.no_traffic(),
        )

    def update_fn(updates, state, params=None, **extra_args):
        del extra_args
        params = _arguments.require_params(params)
        first = state.count == 0

        def constants(dtype) -> Any:
            return AcceleratedDualSteps(*(jnp.asarray(c, dtype) for c in steps))

        def before(total, average):  # s
            tau = constants(total.dtype).blend
            return tau * total + (1 - tau) * average

        def want(s, x, f, m):  # Δ
            c = constants(s.dtype)
            step = s / c.regularization + c.feedback * (x + f)
            return c.consensus_learning_rate * step + m

        def turn(s, z, total, point):  # y^k − y^{k-1}
            c = constants(s.dtype)
            rest = total + c.regularization * point
            step = s / c.regularization + z + c.dual_feedback * rest
            return jnp.where(first, jnp.zeros_like(s), -c.dual_learning_rate * step)

        s = jax.tree.map(before, state.total, state.average)
        wanted = jax.tree.map(want, s, state.dual, updates, state.waiting)
        turned = jax.tree.map(turn, s, params, state.total, state.point)
        (sent, s_apart), traffic = apart(
            (wanted, s), state.traffic, jnp.maximum(state.count - 1, 0)
        )
        sent, wanted = (  # G Δ, Δ; the first iteration has none before it
            jax.tree.map(lambda v: jnp.where(first, jnp.zeros_like(v), v), tree)
            for tree in (sent, wanted)
        )

        def wait(d, g):  # m
            return constants(d.dtype).memory * (d - g)

        def ahead(s, t, g):  # s_f
            c = constants(s.dtype)
            return s + c.blend * t - c.gossip_learning_rate * g

        waiting = jax.tree.map(wait, wanted, sent)
        average = jax.tree.map(ahead, s, turned, s_apart)
        dual = optax.tree.sub(state.dual, sent)  # x^k
        total = jax.tree.map(lambda v, t, g: v + t - g, state.total, turned, sent)

        rate: Any = learning_rate
        if callable(learning_rate):
            rate = learning_rate(state.count)

        def move(z, f, b, v, x, t):
            c = constants(z.dtype)
            delta = f + c.momentum * (f - jnp.where(first, f, b))
            step = delta - c.regularization * z - (v - x) - c.momentum * t
            return -jnp.asarray(rate, z.dtype) * step

        change = jax.tree.map(
            move, params, updates, state.previous, total, dual, turned
        )
        state = AcceleratedDualGossipState(
            count=jnp.asarray(optax.safe_increment(state.count)),
            total=total,
            dual=dual,
            average=average,
            waiting=waiting,
            point=params,
            previous=updates,
            traffic=traffic,
        )
        return change, state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _check_steps(steps):
    """Accept constants above 0, a momentum of 0, τ and ρ of at most 1."""
    what = "a jaxsp.transforms.AcceleratedDualSteps"
    _arguments.check_instance("steps", steps, AcceleratedDualSteps, what)
    for name, value in steps._asdict().items():
        if name == "momentum":
            _arguments.check_nonnegative(name, value)
        elif name in ("blend", "memory"):
            _arguments.check_probability(name, value)
        else:
            _arguments.check_positive(name, value)
