r"""The papers' methods by name, each a composition of transformations.

All are called alike, `update(F(z), state, z, operator_fn=F)`, where `F` is the worker's
own operator (`jaxsp.saddle`, `jaxsp.game`) and `z` the worker's parameters. Methods
with two oracle calls an iteration take the second through `operator_fn`, a function of
the point alone; methods with one ignore it. A worker count of 1 is legal everywhere.

`eval_params(state, params)` is the point to report.
"""

from collections.abc import Callable
from typing import Any, Literal

import chex
import jax
import optax

from jaxsp import _arguments, comm, transforms
from jaxsp.topology import TimeVarying, Topology

__all__ = [
    "cp_oadam",
    "decentralized_extra_step",
    "dp_oadam",
    "dposg",
    "eval_params",
    "extra_step",
    "extra_step_local_sgd",
    "rand_dp_oadam",
]


def extra_step(
    learning_rate: optax.ScalarOrSchedule, *, axis_name: comm.AxisName
) -> optax.GradientTransformationExtraArgs:
    r"""Centralized extra-step: extragradient with the workers' mean operator.

    $$z_{1/2} = z - \gamma \frac1M \sum_m F_m(z), \qquad
    z \leftarrow z - \gamma \frac1M \sum_m F_m(z_{1/2}).$$

    With $\gamma = 1/(4L)$ it converges linearly on strongly monotone problems; with
    noise, to a floor proportional to $\gamma \sigma^2 / (\mu M b)$ for batches of $b$.
    It sends the operator twice an iteration. The formula is reconstructed from the
    paper's statements, without constraints.

    Args:
      learning_rate: $\gamma$, a number or a schedule of the iteration.
      axis_name: the worker axis, `Workers.axis_name`.

    Returns:
      The method; `update` needs `params` and `operator_fn`.

    Raises:
      ValueError: for a bad argument, or an `update` without `operator_fn`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxsp, optax
      >>> problem = jaxsp.problems.quadratic(4, 3, L=4.0, mu=1.0, seed=0)
      >>> workers = jaxsp.Workers(4)
      >>> tx = jaxsp.methods.extra_step(1 / 16, axis_name=workers.axis_name)
      >>> def run(data):
      ...   def step(carry, _):
      ...     z, state = carry
      ...     F = lambda z: problem.operator(z, data)
      ...     updates, state = tx.update(F(z), state, z, operator_fn=F)
      ...     return (optax.apply_updates(z, updates), state), None
      ...   z = jax.tree.map(jnp.zeros_like, problem.z_star)
      ...   return jax.lax.scan(step, (z, tx.init(z)), length=400)[0][0]
      >>> z = jax.jit(workers.map(run))(problem.data)
      >>> first = jax.tree.map(lambda x: x[0], z)
      >>> bool(jaxsp.metrics.distance(first, problem.z_star) < 1e-5)
      True

    References:
      Beznosikov, Samokhin, Gasnikov, Distributed Saddle-Point Problems: Lower Bounds,
      Near-Optimal and Robust Algorithms, 2020, arXiv 2010.13112.
    """
    return transforms.extragradient(
        optax.chain(
            transforms.average(axis_name=axis_name), _descent(learning_rate, calls=2)
        )
    )


def decentralized_extra_step(
    learning_rate: optax.ScalarOrSchedule,
    topology: Topology | TimeVarying,
    rounds: int,
    acceleration: Literal["fastmix", "chebyshev"] | None = "chebyshev",
    *,
    axis_name: comm.AxisName,
) -> optax.GradientTransformationExtraArgs:
    r"""Extragradient where every half-step ends with accelerated gossip of the points.

    $$z_{1/2} = \mathrm{Mix}\big(z - \gamma F(z)\big), \qquad
    z \leftarrow \mathrm{Mix}\big(z - \gamma F(z_{1/2})\big),$$

    on the stacked points of all workers, with `rounds` exchanges in each `Mix` (see
    `jaxsp.gossip`). The points are mixed, not the gradients. The number of rounds sets
    a floor; $O(\sqrt{1/(1-\lambda_2)} \log(1/\varepsilon))$ reach accuracy
    $\varepsilon$, and too few diverge on strongly heterogeneous operators. The paper
    mixes with FastMix; the Chebyshev polynomial is the better default.

    Args:
      learning_rate: $\gamma$, a number or a schedule of the iteration.
      topology: the mixing matrix, from `jaxsp.topology`.
      rounds: $H$, the exchanges in each half-step.
      acceleration: None, `"fastmix"` or `"chebyshev"`.
      axis_name: the worker axis, `Workers.axis_name`.

    Returns:
      The method; `update` needs `params` and `operator_fn`.

    Raises:
      ValueError: for a bad argument, or an `update` without `operator_fn`.

    References:
      Beznosikov, Samokhin, Gasnikov, Distributed Saddle-Point Problems: Lower Bounds,
      Near-Optimal and Robust Algorithms, 2020, arXiv 2010.13112.
    """
    return transforms.extragradient(
        optax.chain(
            _descent(learning_rate, calls=2),
            transforms.gossip(topology, rounds, acceleration, axis_name=axis_name),
        )
    )


def extra_step_local_sgd(
    learning_rate: optax.ScalarOrSchedule,
    sync_every: int,
    *,
    axis_name: comm.AxisName,
) -> optax.GradientTransformationExtraArgs:
    r"""Local extragradient steps, with the workers averaged every `sync_every` of them.

    $$z_{1/2} = z_m - \gamma F_m(z_m), \qquad
    z_m \leftarrow z_m - \gamma F_m(z_{1/2}), \qquad
    z_m \leftarrow \tfrac1M \textstyle\sum_j z_j \text{ after every } H
    \text{ iterations}.$$

    Only the full point is averaged, so heterogeneous operators leave a floor
    proportional to $\gamma$ even with $H = 1$, which is therefore not `extra_step`.
    The theory asks for $\gamma \le 1/(21 H L)$. The formula is reconstructed; it agrees
    with two public codes.

    Args:
      learning_rate: $\gamma$, a number or a schedule of the iteration.
      sync_every: $H$, the iterations from one average to the next.
      axis_name: the worker axis, `Workers.axis_name`.

    Returns:
      The method; `update` needs `params` and `operator_fn`.

    Raises:
      ValueError: for a bad argument, or an `update` without `operator_fn`.

    References:
      Beznosikov, Samokhin, Gasnikov, Distributed Saddle-Point Problems: Lower Bounds,
      Near-Optimal and Robust Algorithms, 2020, arXiv 2010.13112.
    """
    return optax.chain(
        transforms.extragradient(_descent(learning_rate, calls=2)),
        transforms.sync(sync_every, axis_name=axis_name),
    )


def dposg(
    learning_rate: optax.ScalarOrSchedule,
    topology: Topology | TimeVarying,
    rounds: int = 1,
    *,
    axis_name: comm.AxisName,
    key: chex.PRNGKey | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Decentralized parallel optimistic stochastic gradient.

    On the stacked points of all workers, with $t$ rounds of gossip,

    $$Y = W^t X, \qquad Z = Y - \eta\, G_{\mathrm{prev}}, \qquad G = F(Z), \qquad
    X \leftarrow Y - \eta\, G, \qquad G_{\mathrm{prev}} \leftarrow G.$$

    The parameters are $Z$, where the next gradient is taken; report $Y$,
    `eval_params(state, params)`. One oracle call an iteration; `operator_fn` is
    ignored. With identical workers it is single-worker optimistic descent, whatever the
    graph; heterogeneous operators leave a bias of order $\eta$, smaller for larger $t$.
    It converges on bilinear games, where gossip with plain descent diverges.

    Args:
      learning_rate: $\eta$, a number or a schedule of the iteration.
      topology: the mixing matrix, from `jaxsp.topology`.
      rounds: $t$, the exchanges in each iteration.
      axis_name: the worker axis, `Workers.axis_name`.
      key: the shared key of a random topology.

    Returns:
      The method; `update` needs `params`.

    Raises:
      ValueError: for a bad argument.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxsp, optax
      >>> workers = jaxsp.Workers(8)
      >>> ring = jaxsp.topology.ring(8)
      >>> tx = jaxsp.methods.dposg(0.3, ring, axis_name=workers.axis_name)
      >>> F = jaxsp.saddle(lambda x, y: x * y)
      >>> def step(z, state):
      ...   updates, state = tx.update(F(z), state, z)
      ...   return optax.apply_updates(z, updates), state
      >>> z = workers.replicate(jaxsp.MinMax(1.0, 1.0))
      >>> state = workers.map(tx.init)(z)
      >>> for _ in range(200):
      ...   z, state = workers.map(step)(z, state)
      >>> print(f"{float(abs(z.x).max()):.0e}")
      4e-05

    References:
      Liu, Zhang, Mroueh, Cui, Ross, Yang, Das, A Decentralized Parallel Algorithm for
      Training Generative Adversarial Nets, 2020, arXiv 1910.12999.
    """
    return transforms.past_extragradient(
        learning_rate,
        transforms.gossip(topology, rounds, axis_name=axis_name, key=key),
    )


def cp_oadam(
    learning_rate: optax.ScalarOrSchedule,
    b1: chex.Numeric = 0.5,
    b2: chex.Numeric = 0.9,
    eps: chex.Numeric = 1e-8,
    *,
    axis_name: comm.AxisName,
) -> optax.GradientTransformationExtraArgs:
    r"""Centralized parallel optimistic Adam: one OAdam of the workers' mean gradient.

    $$g = \frac1M \sum_m F_m(p), \qquad p \leftarrow p + \mathrm{OAdam}(g).$$

    See `jaxsp.transforms.optimistic_adam` for the form of OAdam. One oracle call an
    iteration; `operator_fn` is ignored. Reconstructed from the paper's description.

    Args:
      learning_rate: a number or a schedule of the iteration.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
      axis_name: the worker axis, `Workers.axis_name`.

    Returns:
      The method.

    Raises:
      ValueError: for a bad argument.

    References:
      Liu, Zhang, Mroueh, Cui, Ross, Yang, Das, A Decentralized Parallel Algorithm for
      Training Generative Adversarial Nets, 2020, arXiv 1910.12999.
    """
    return optax.chain(
        transforms.average(axis_name=axis_name),
        transforms.optimistic_adam(learning_rate, b1, b2, eps),
    )


def dp_oadam(
    learning_rate: optax.ScalarOrSchedule,
    topology: Topology | TimeVarying,
    rounds: int = 1,
    b1: chex.Numeric = 0.5,
    b2: chex.Numeric = 0.9,
    eps: chex.Numeric = 1e-8,
    *,
    axis_name: comm.AxisName,
    key: chex.PRNGKey | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Decentralized parallel optimistic Adam: gossip of the parameters, own OAdam.

    $$p_m \leftarrow \sum_j (W^t)_{mj}\, p_j + \mathrm{OAdam}_m(F_m(p_m)).$$

    Every worker keeps moments of its own, which are not exchanged; so on strongly
    heterogeneous operators, where workers normalize differently, it is biased. One
    oracle call an iteration; `operator_fn` is ignored. Reconstructed from the paper's
    description.

    Args:
      learning_rate: a number or a schedule of the iteration.
      topology: the mixing matrix, from `jaxsp.topology`.
      rounds: $t$, the exchanges in each iteration.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
      axis_name: the worker axis, `Workers.axis_name`.
      key: the shared key of a random topology.

    Returns:
      The method; `update` needs `params`.

    Raises:
      ValueError: for a bad argument.

    References:
      Liu, Zhang, Mroueh, Cui, Ross, Yang, Das, A Decentralized Parallel Algorithm for
      Training Generative Adversarial Nets, 2020, arXiv 1910.12999.
    """
    return optax.chain(
        transforms.optimistic_adam(learning_rate, b1, b2, eps),
        transforms.gossip(
            topology, rounds, axis_name=axis_name, order="combine_then_adapt", key=key
        ),
    )


def rand_dp_oadam(
    learning_rate: optax.ScalarOrSchedule,
    topology: TimeVarying,
    rounds: int = 1,
    b1: chex.Numeric = 0.5,
    b2: chex.Numeric = 0.9,
    eps: chex.Numeric = 1e-8,
    *,
    key: chex.PRNGKey,
    axis_name: comm.AxisName,
) -> optax.GradientTransformationExtraArgs:
    r"""`dp_oadam` over a mixing matrix that is drawn anew in every iteration.

    $$p_m \leftarrow \sum_j (W_k^t)_{mj}\, p_j + \mathrm{OAdam}_m(F_m(p_m)),$$

    with $W_k$ from `topology`, usually `jaxsp.topology.random_ring(n)`, by a key that
    all workers share: nothing is sent to agree on it but a 4-byte all-reduce.

    Args:
      learning_rate: a number or a schedule of the iteration.
      topology: a random topology.
      rounds: $t$, the exchanges in each iteration, all over that iteration's graph.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
      key: the shared key.
      axis_name: the worker axis, `Workers.axis_name`.

    Returns:
      The method; `update` needs `params`.

    Raises:
      ValueError: for a bad argument, or a topology that is not random.

    References:
      Liu, Zhang, Mroueh, Cui, Ross, Yang, Das, A Decentralized Parallel Algorithm for
      Training Generative Adversarial Nets, 2020, arXiv 1910.12999.
    """
    if not (isinstance(topology, TimeVarying) and topology.random):
        raise ValueError(
            "topology must be random, such as jaxsp.topology.random_ring(8), got "
            f"{topology!r}: use dp_oadam for a fixed graph or a sequence."
        )
    return dp_oadam(
        learning_rate, topology, rounds, b1, b2, eps, key=key, axis_name=axis_name
    )


def eval_params(state: optax.OptState, params: optax.Params) -> optax.Params:
    """The point to report, where `params` may be a point of a look ahead.

    For `dposg` and `jaxsp.transforms.past_extragradient` that is $Y$, the mixed point;
    for `jaxsp.alternating_extragradient` the point that both half-steps start from; for
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
    )
    for found in jax.tree.leaves(state, is_leaf=lambda s: isinstance(s, kinds)):
        if isinstance(found, transforms.PastExtragradientState):
            params = _where_present(lambda p, a: p + a, params, found.ahead)
        elif isinstance(found, transforms.AlternatingExtragradientState):
            params = _where_present(
                lambda p, z, ahead=found.ahead: _select(ahead, z, p),
                params,
                found.anchor,
            )
    return params


def _where_present(fn: Callable[..., Any], params, other):
    """`fn(leaf of params, leaf of other)`, where a mask has left the other one in."""
    masked = lambda x: isinstance(x, optax.MaskedNode)  # noqa: E731
    return jax.tree.map(
        lambda o, p: p if masked(o) else fn(p, o), other, params, is_leaf=masked
    )


def _select(ahead, z, p):
    """`where(ahead, z, p)` for one worker's state or a stacked one."""
    ahead = ahead.reshape(ahead.shape + (1,) * (z.ndim - ahead.ndim))
    return jax.numpy.where(ahead, z, p)


def _descent(learning_rate, calls):
    """`−γ F`, with a schedule of iterations of `calls` oracle calls each."""
    _arguments.check_learning_rate(learning_rate)
    if callable(learning_rate):
        schedule: Any = lambda count: learning_rate(count // calls)  # noqa: E731
        return optax.sgd(schedule)
    return optax.sgd(learning_rate)
