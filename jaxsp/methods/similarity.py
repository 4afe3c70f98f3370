"""Methods that live on the likeness of the workers: their differences are sent."""

from collections.abc import Callable
from typing import Any

import chex
import optax

from jaxsp import comm, transforms
from jaxsp.methods.masha import unbiased_exchange

__all__ = ["optimistic_masha", "three_pillars"]


def optimistic_masha(
    learning_rate: optax.ScalarOrSchedule,
    channel: comm.Channel,
    refresh: chex.Numeric,
    momentum: chex.Numeric = 1.0,
    *,
    prox: Callable[[Any, Any], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Optimistic MASHA: one oracle call, and one compressed message, an iteration.

    $$\delta_m = F_m(z^k) - F_m(w^{k-1}) + \alpha \big(F_m(z^k) - F_m(z^{k-1})\big),
    \qquad \Delta = \frac1M \sum_m Q_m(\delta_m) + F(w^{k-1}),$$

    $$z^{k+1} = \mathrm{prox}_{\eta g}\big(z^k + \gamma (w^k - z^k) - \eta \Delta\big),
    \qquad w^{k+1} = z^k \text{ with probability } \gamma,$$

    with one coin for all workers. At a new snapshot $F_m(w)$ is exchanged uncompressed,
    and only then; every worker knows it from the gradient it was given there, so that
    `operator_fn` is ignored. What is compressed goes to zero, hence convergence is
    exact. With `perm_k` the error of the mean of the messages is that of what workers
    differ in: the more alike they are, the larger a step
    `jaxsp.theory.optimistic_masha` allows.

    Args:
      learning_rate: $\eta$, a number or a schedule of the iteration.
      channel: what `jaxsp.channel` makes, with unbiased compressors and a key; `perm_k`
        is the method's own.
      refresh: $\gamma$, the probability of a new snapshot and the pull towards it;
        $1/M$ with `perm_k`, whose messages then cost as much as the snapshots.
      momentum: $\alpha$, at least 0.
      prox: `prox(point, eta)`, such as a projection; None for none.

    Returns:
      The method; `update` needs `params`.

    Raises:
      ValueError: for a bad argument, or a channel not unbiased or without a key.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxsp, optax
      >>> problem = jaxsp.problems.quadratic(
      ...     4, 5, L=1.0, mu=0.1, heterogeneity=0.1, seed=0
      ... )
      >>> workers = jaxsp.Workers(4)
      >>> permuted = jaxsp.compressors.perm_k()
      >>> channel = jaxsp.channel(workers.axis_name, permuted, key=jax.random.key(0))
      >>> tx = jaxsp.methods.optimistic_masha(0.3, channel, 1 / 4)
      >>> def run(data):
      ...   def step(carry, _):
      ...     z, state = carry
      ...     updates, state = tx.update(problem.operator(z, data), state, z)
      ...     return (optax.apply_updates(z, updates), state), None
      ...   z = jax.tree.map(jnp.zeros_like, problem.z_star)
      ...   return jax.lax.scan(step, (z, tx.init(z)), length=1000)[0][0]
      >>> z = jax.tree.map(lambda x: x[0], jax.jit(workers.map(run))(problem.data))
      >>> bool(jaxsp.metrics.distance(z, problem.z_star) < 1e-5)
      True

    References:
      Beznosikov, Gasnikov, Compression and Data Similarity: Combination of Two
      Techniques for Communication-Efficient Solving of Distributed Variational
      Inequalities, 2022, arXiv 2206.09446 (the listing as in its first author's public
      talks).
    """
    exchange, channel = unbiased_exchange(learning_rate, channel)
    coin = _coin(refresh, channel)
    return transforms.optimistic_snapshot(
        learning_rate, exchange, coin, momentum, axis_name=channel.axis_name, prox=prox
    )


def three_pillars(
    learning_rate: optax.ScalarOrSchedule,
    channel: comm.Channel,
    refresh: chex.Numeric,
    local_steps: int,
    local_learning_rate: optax.ScalarOrSchedule,
    *,
    project: Callable[[Any], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Three Pillars: steps on the server, and what the workers differ in, compressed.

    $$u \leftarrow z; \quad H \text{ times } \quad u_{1/2} = P(u - \eta G(u)), \quad
    u \leftarrow P(u - \eta G(u_{1/2})), \quad \text{where}$$

    $$G(u) = F_1(u) - F_1(m) + F(m) + \frac1\gamma \big(u - z - \tau (m - z)\big),$$

    $$z^+ = P\Big(u + \frac\gamma M \sum_i Q_i\big(F_i(m) - F_1(m) - F_i(u) + F_1(u)
    \big)\Big), \qquad m \leftarrow z \text{ with probability } \tau,$$

    with one coin for all workers. At a new snapshot $F_i(m)$ is exchanged uncompressed,
    and only then. The server solves, with its own operator $F_1$, a problem near the
    one that all have; the workers send how far it is off. Where they differ little it
    sends much less than any other method here; where they differ as much as $L$ there
    is nothing to gain.

    `update(F_i(z), state, z, operator_fn=F_i, server_operator_fn=F_1)`: $F_1$ is the
    operator of *one* worker's data, which all workers are handed by the user, or of
    data that all have anyway. All make the server's steps alike, and nothing is sent
    for them; an iteration takes $2H + 1$ calls of $F_1$ and one of $F_i$, and one more
    of each at a new snapshot.

    Args:
      learning_rate: $\gamma$, a number or a schedule of the iteration.
      channel: what `jaxsp.channel` makes, with unbiased compressors and a key; `perm_k`
        is the method's own.
      refresh: $\tau$, the probability of a new snapshot and the pull towards it; $1/M$
        with `perm_k`.
      local_steps: $H$, at least 1.
      local_learning_rate: $\eta$, a number or a schedule of the iteration, at most
        $1 / 2(L + 1/\gamma)$.
      project: $P$, a function of the point, as `Problem.project`; None for none.

    Returns:
      The method; `update` needs `params`, `operator_fn` and `server_operator_fn`. The
      gradient passed to `update` is not used.

    Raises:
      ValueError: for a bad argument, or a channel not unbiased or without a key.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxsp, optax
      >>> problem = jaxsp.problems.quadratic(
      ...     4, 5, L=1.0, mu=0.1, heterogeneity=0.1, seed=0
      ... )
      >>> workers = jaxsp.Workers(4)
      >>> permuted = jaxsp.compressors.perm_k()
      >>> channel = jaxsp.channel(workers.axis_name, permuted, key=jax.random.key(0))
      >>> tx = jaxsp.methods.three_pillars(1.0, channel, 1 / 4, 10, 0.25)
      >>> first = problem.operators[0]  # of worker 0, which all know
      >>> def run(data):
      ...   def step(carry, _):
      ...     z, state = carry
      ...     F = lambda z: problem.operator(z, data)
      ...     updates, state = tx.update(
      ...         F(z), state, z, operator_fn=F, server_operator_fn=first
      ...     )
      ...     return (optax.apply_updates(z, updates), state), None
      ...   z = jax.tree.map(jnp.zeros_like, problem.z_star)
      ...   return jax.lax.scan(step, (z, tx.init(z)), length=300)[0][0]
      >>> z = jax.tree.map(lambda x: x[0], jax.jit(workers.map(run))(problem.data))
      >>> bool(jaxsp.metrics.distance(z, problem.z_star) < 1e-5)
      True

    References:
      Beznosikov, Takáč, Gasnikov, Similarity, Compression and Local Steps: Three
      Pillars of Efficient Communications for Distributed Variational Inequalities,
      2023, arXiv 2302.07615 (the listing as in its first author's public talks).
    """
    exchange, channel = unbiased_exchange(learning_rate, channel)
    return transforms.server_steps(
        learning_rate,
        exchange,
        _coin(refresh, channel),
        transforms.LocalSteps(local_steps, local_learning_rate, project),
        channel.axis_name,
    )


def _coin(refresh, channel):
    """The coin, which has a key of its own."""
    return transforms.Refresh(refresh, channel.at(1).key)
