"""DPOSG and its Adam forms."""

from typing import Literal

import chex
import optax

from jaxsp import _arguments, comm, transforms
from jaxsp.topology import TimeVarying, Topology

__all__ = ["cp_oadam", "dp_oadam", "dposg", "rand_dp_oadam"]


def dposg(
    learning_rate: optax.ScalarOrSchedule,
    topology: Topology | TimeVarying,
    rounds: int = 1,
    *,
    axis_name: comm.AxisName,
    order: Literal["adapt_then_combine", "combine_then_adapt"] = "adapt_then_combine",
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

    With `order="combine_then_adapt"` $Y \leftarrow W^t Y - \eta\, G$, as in `dp_oadam`
    with the parameters: what travels is known when an iteration begins, and may do so
    while $G$ is computed. That is ours. The last step is not mixed, so that the bias
    is larger: on a quadratic game, $\eta = 0.2/L$ on a ring of 8, 1.4 times with one
    round and 2.9 times with four.

    Args:
      learning_rate: $\eta$, a number or a schedule of the iteration.
      topology: the mixing matrix, from `jaxsp.topology`.
      rounds: $t$, the exchanges in each iteration.
      axis_name: the worker axis, `Workers.axis_name`.
      order: whether the step is mixed with the point or made after.
      key: the shared key of a random topology.

    Returns:
      The method; `update` needs `params`.

    Raises:
      ValueError: for a bad argument.

    Example:
      >>> import jax
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
      >>> step = jax.jit(workers.map(step))
      >>> for _ in range(200):
      ...   z, state = jax.block_until_ready(step(z, state))
      >>> print(f"{float(abs(z.x).max()):.0e}")
      4e-05

    References:
      Liu, Zhang, Mroueh, Cui, Ross, Yang, Das, A Decentralized Parallel Algorithm for
      Training Generative Adversarial Nets, 2020, arXiv 1910.12999.
    """
    return transforms.past_extragradient(
        learning_rate,
        transforms.gossip(topology, rounds, axis_name=axis_name, order=order, key=key),
    )


def cp_oadam(
    learning_rate: optax.ScalarOrSchedule,
    channel: comm.Channel | comm.AxisName,
    b1: chex.Numeric = 0.5,
    b2: chex.Numeric = 0.9,
    eps: chex.Numeric = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    r"""Centralized parallel optimistic Adam: one OAdam of the workers' mean gradient.

    $$g = \frac1M \sum_m F_m(p), \qquad p \leftarrow p + \mathrm{OAdam}(g).$$

    See `jaxsp.transforms.optimistic_adam` for the form of OAdam. One oracle call an
    iteration; `operator_fn` is ignored. Reconstructed from the paper's description.

    Args:
      learning_rate: a number or a schedule of the iteration.
      channel: the worker axis, `Workers.axis_name`, or what `jaxsp.channel` makes.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.

    Returns:
      The method.

    Raises:
      ValueError: for a bad argument.

    References:
      Liu, Zhang, Mroueh, Cui, Ross, Yang, Das, A Decentralized Parallel Algorithm for
      Training Generative Adversarial Nets, 2020, arXiv 1910.12999.
    """
    return optax.chain(
        transforms.average(channel),
        transforms.optimistic_adam(learning_rate, b1, b2, eps),
    )


def dp_oadam(
    learning_rate: optax.ScalarOrSchedule,
    topology: Topology | TimeVarying,
    rounds: int = 1,
    b1: chex.Numeric = 0.5,
    b2: chex.Numeric = 0.9,
    *,
    axis_name: comm.AxisName,
) -> optax.GradientTransformationExtraArgs:
    r"""Decentralized parallel optimistic Adam: gossip of the parameters, own OAdam.

    $$p_m \leftarrow \sum_j (W^t)_{mj}\, p_j + \mathrm{OAdam}_m(F_m(p_m)).$$

    Every worker keeps moments of its own, which are not exchanged; so on strongly
    heterogeneous operators, where workers normalize differently, it is biased. One
    oracle call an iteration; `operator_fn` is ignored. Reconstructed from the paper's
    description. It is `optimistic_adam` chained with `gossip(...,
    order="combine_then_adapt")`; write that for another $\epsilon$ than $10^{-8}$.

    Args:
      learning_rate: a number or a schedule of the iteration.
      topology: the mixing matrix, from `jaxsp.topology`.
      rounds: $t$, the exchanges in each iteration.
      b1: decay of the first moment.
      b2: decay of the second moment.
      axis_name: the worker axis, `Workers.axis_name`.

    Returns:
      The method; `update` needs `params`.

    Raises:
      ValueError: for a bad argument, or a random topology.

    References:
      Liu, Zhang, Mroueh, Cui, Ross, Yang, Das, A Decentralized Parallel Algorithm for
      Training Generative Adversarial Nets, 2020, arXiv 1910.12999.
    """
    if isinstance(topology, TimeVarying) and topology.random:
        raise ValueError(
            f"topology must not be random, got {topology!r}: use rand_dp_oadam, which "
            "has a key to draw from it."
        )
    gossip = transforms.gossip(
        topology, rounds, axis_name=axis_name, order="combine_then_adapt"
    )
    return optax.chain(transforms.optimistic_adam(learning_rate, b1, b2), gossip)


def rand_dp_oadam(
    learning_rate: optax.ScalarOrSchedule,
    topology: TimeVarying,
    b1: chex.Numeric = 0.5,
    b2: chex.Numeric = 0.9,
    *,
    key: chex.PRNGKey,
    axis_name: comm.AxisName,
) -> optax.GradientTransformationExtraArgs:
    r"""`dp_oadam` over a mixing matrix that is drawn anew in every iteration.

    $$p_m \leftarrow \sum_j (W_k)_{mj}\, p_j + \mathrm{OAdam}_m(F_m(p_m)),$$

    with $W_k$ from `topology`, usually `jaxsp.topology.random_ring(n)`, by a key that
    all workers share: nothing is sent to agree on it but a 4-byte all-reduce. For
    several exchanges over each matrix chain `optimistic_adam` with `gossip`.

    Args:
      learning_rate: a number or a schedule of the iteration.
      topology: a random topology.
      b1: decay of the first moment.
      b2: decay of the second moment.
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
            f"{_arguments.shown(topology)}: use dp_oadam for a fixed graph or a "
            "sequence."
        )
    gossip = transforms.gossip(
        topology, axis_name=axis_name, order="combine_then_adapt", key=key
    )
    return optax.chain(transforms.optimistic_adam(learning_rate, b1, b2), gossip)
