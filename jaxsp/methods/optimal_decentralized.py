"""Decentralized methods whose number of rounds is the least there is."""

import chex
import optax

from jaxsp import comm, transforms
from jaxsp.topology import TimeVarying, Topology

__all__ = [
    "optimal_decentralized",
    "optimal_time_varying",
    "vr_optimal_decentralized",
]


def optimal_decentralized(
    learning_rate: optax.ScalarOrSchedule,
    topology: Topology | TimeVarying,
    dual_learning_rate: optax.ScalarOrSchedule,
    feedback: chex.Numeric,
    momentum: chex.Numeric = 1.0,
    *,
    axis_name: comm.AxisName,
) -> optax.GradientTransformationExtraArgs:
    r"""Optimal decentralized method: one exchange an iteration, and no bias.

    On the stacked points of all workers, with
    $G = (I - W) / \lambda_{\max}(I - W)$,

    $$\delta = F(z^k) + \alpha \big(F(z^k) - F(z^{k-1})\big), \qquad
    z^{k+1} = z^k - \eta \big(\delta - y^k - \alpha (y^k - y^{k-1})\big),$$

    $$y^{k+1} = y^k - \theta\, G \big(z^{k+1} - \beta (F(z^{k+1}) - y^k)\big).$$

    One oracle call and one exchange with the neighbours an iteration; `operator_fn` is
    ignored. There is no inner loop of gossip, and no bias where workers differ: the
    dual variable $y_m$ learns $F_m(z^*)$. With the steps of
    `jaxsp.theory.optimal_decentralized` the number of exchanges is that of the lower
    bound, $O(\sqrt\chi (L/\mu) \log(1/\varepsilon))$ with $\chi$ the topology's, as
    long as $\sqrt\chi \le L/\mu$. A projection, and finite sums of other momenta, take
    `jaxsp.transforms.primal_dual_gossip`.

    Args:
      learning_rate: $\eta$, a number or a schedule of the iteration.
      topology: the mixing matrix, symmetric, from `jaxsp.topology`; of a time-varying
        one every iteration takes the next member, which is ours and not the paper's.
      dual_learning_rate: $\theta$, a number or a schedule of the iteration.
      feedback: $\beta$, above 0.
      momentum: $\alpha$, at least 0.
      axis_name: the worker axis, `Workers.axis_name`.

    Returns:
      The method; `update` needs `params`.

    Raises:
      ValueError: for a bad argument, or a topology that is not symmetric.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxsp, optax
      >>> problem = jaxsp.problems.quadratic(
      ...     8, 3, L=1.0, mu=0.3, heterogeneity=1.0, seed=0
      ... )
      >>> workers, ring = jaxsp.Workers(8), jaxsp.topology.ring(8)
      >>> tx = jaxsp.methods.optimal_decentralized(
      ...     0.5, ring, 1.0, 0.5, axis_name=workers.axis_name
      ... )
      >>> def run(data):
      ...   def step(carry, _):
      ...     z, state = carry
      ...     updates, state = tx.update(problem.operator(z, data), state, z)
      ...     return (optax.apply_updates(z, updates), state), None
      ...   z = jax.tree.map(jnp.zeros_like, problem.z_star)
      ...   return jax.lax.scan(step, (z, tx.init(z)), length=800)[0][0]
      >>> z = jax.jit(workers.map(run))(problem.data)
      >>> one = jax.tree.map(lambda x: x[5], z)  # of any worker
      >>> bool(jaxsp.metrics.distance(one, problem.z_star) < 1e-4)
      True

    References:
      Kovalev, Beznosikov, Sadiev, Persiianov, Richtárik, Gasnikov, Optimal Algorithms
      for Decentralized Stochastic Variational Inequalities, 2022, arXiv 2202.02771
      (Algorithm 1, the listing as in its authors' public talks).
    """
    steps = transforms.PrimalDualSteps(
        learning_rate, dual_learning_rate, feedback, momentum
    )
    return transforms.primal_dual_gossip(topology, steps, axis_name=axis_name)


def optimal_time_varying(
    learning_rate: optax.ScalarOrSchedule,
    topology: Topology | TimeVarying,
    steps: transforms.AcceleratedDualSteps,
    rounds: int = 1,
    *,
    axis_name: comm.AxisName,
    key: chex.PRNGKey | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Optimal decentralized method for graphs that change from step to step.

    Optimistic descent with a dual variable for consensus, as `optimal_decentralized`,
    but that one is accelerated and keeps what a graph did not spread for the next one;
    the formula is at `jaxsp.transforms.accelerated_dual_gossip`. The graphs need not be
    symmetric. No bias where workers differ. One oracle call an iteration, and `rounds`
    exchanges with the neighbours of two vectors in the same messages; `operator_fn` is
    ignored.

    Worth it where a sequence is hard; often it is not. Exchanges to 1e-8 on games of
    L/μ = 10 and 16 unlike workers (two paths: 8), the worst of five seeds, in float64
    and with the steps of `jaxsp.theory`, against `optimal_decentralized` with half of
    its θ, which sends half as much in each, and `tracked_optimistic` at the best of
    three steps:

    ===========================  =====  =====================  =======
    graphs in turn               here   optimal_decentralized  tracked
    ===========================  =====  =====================  =======
    random rings                 980    470                    480
    random, connected            440    240                    280
    two stars                    1,170  2,030                  1,130
    stars, every worker once     1,600  never (1,900 at η/4)   1,150
    two paths, two ends swapped  1,240  3,430                  1,800
    ===========================  =====  =====================  =======

    Extragradient with up to 32 rounds had not arrived after 10,000. In float32 the
    distance ends between 1e-6 and 1e-5.

    Args:
      learning_rate: $\eta$, a number or a schedule of the iteration.
      topology: the mixing matrices, from `jaxsp.topology`.
      steps: the other constants, such as `jaxsp.theory.optimal_time_varying` has them.
      rounds: $H$, exchanges in each iteration, each by the next member of the topology.
        Where single graphs are not connected: as many as make their union so.
      axis_name: the worker axis, `Workers.axis_name`.
      key: the shared key that a random topology is drawn from, and only that needs it.

    Returns:
      The method; `update` needs `params`.

    Raises:
      ValueError: for a bad argument.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxsp, optax
      >>> problem = jaxsp.problems.quadratic(
      ...     8, 3, L=1.0, mu=0.3, heterogeneity=1.0, seed=0
      ... )
      >>> workers, n = jaxsp.Workers(8), 8
      >>> stars = jaxsp.topology.from_sequence([
      ...     jaxsp.topology.star(n), jaxsp.topology.star(n).to_matrix()[::-1, ::-1]
      ... ])  # the first worker in the middle, then the last one
      >>> chi = 1 / (1 - max(w.lambda2 for w in stars.members) ** 2)
      >>> step = jaxsp.theory.optimal_time_varying(problem.L, 0.3, chi)
      >>> dual = jaxsp.transforms.AcceleratedDualSteps(*step[1:])
      >>> tx = jaxsp.methods.optimal_time_varying(
      ...     step.learning_rate, stars, dual, axis_name=workers.axis_name
      ... )
      >>> def run(data):
      ...   def step(carry, _):
      ...     z, state = carry
      ...     updates, state = tx.update(problem.operator(z, data), state, z)
      ...     return (optax.apply_updates(z, updates), state), None
      ...   z = jax.tree.map(jnp.zeros_like, problem.z_star)
      ...   return jax.lax.scan(step, (z, tx.init(z)), length=600)[0][0]
      >>> z = jax.jit(workers.map(run))(problem.data)
      >>> one = jax.tree.map(lambda x: x[5], z)  # of any worker
      >>> bool(jaxsp.metrics.distance(one, problem.z_star) < 1e-4)
      True

    References:
      As `optimal_decentralized` (Algorithm 2, the listing as in public code).
    """
    return transforms.accelerated_dual_gossip(
        learning_rate, topology, steps, rounds, axis_name=axis_name, key=key
    )


def vr_optimal_decentralized(
    learning_rate: optax.ScalarOrSchedule,
    topology: Topology | TimeVarying,
    dual_learning_rate: optax.ScalarOrSchedule,
    feedback: chex.Numeric,
    refresh: transforms.Refresh,
    *,
    axis_name: comm.AxisName,
) -> optax.GradientTransformationExtraArgs:
    r"""`optimal_decentralized` with minibatches of finite sums.

    $$\delta = F_S(z^k) - F_S(w^{k-1}) + \alpha \big(F_S(z^k) - F_S(z^{k-1})\big)
    + F(w^{k-1}),$$

    $$z^{k+1} = z^k + p (w^k - z^k)
    - \eta \big(\delta - y^k - \alpha (y^k - y^{k-1})\big), \qquad
    w^{k+1} = z^k \text{ with probability } p,$$

    by one coin for all workers, with $\alpha = 1$, a worker's own minibatch $S$, and
    $F_{S'}(z^{k+1}) - F_{S'}(w^k) + F(w^k)$ in the place of $F(z^{k+1})$ in the line of
    $y$, where the minibatch $S'$ is drawn afresh.

    `update(g, state, z, operator_fn=F_S, dual_operator_fn=F_S', full_operator_fn=F)`:
    the functions are called at three points, at two, and at a new snapshot, and the
    gradient is not used. The $S'$ that an update is given is that of the iteration
    before.

    Args:
      learning_rate: $\eta$, a number or a schedule of the iteration.
      topology: the mixing matrix, as in `optimal_decentralized`.
      dual_learning_rate: $\theta$, a number or a schedule of the iteration.
      feedback: $\beta$, above 0.
      refresh: `jaxsp.transforms.Refresh(p, key)`, with a key that all workers share;
        a balanced $p$ is the minibatch's share of the data.
      axis_name: the worker axis, `Workers.axis_name`.

    Returns:
      The method; `update` needs `params` and the three operators.

    Raises:
      ValueError: for a bad argument, or a topology that is not symmetric.

    References:
      As `optimal_decentralized`.
    """
    comm.check_refresh(refresh)  # None is for the method above
    steps = transforms.PrimalDualSteps(learning_rate, dual_learning_rate, feedback)
    return transforms.primal_dual_gossip(topology, steps, refresh, axis_name=axis_name)
