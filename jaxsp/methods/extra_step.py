"""Extra-step methods: centralized, decentralized, and with local steps."""

from collections.abc import Callable
from typing import Any, Literal

import optax

from jaxsp import _arguments, comm, transforms
from jaxsp.topology import TimeVarying, Topology

__all__ = [
    "decentralized_extra_step",
    "extra_step",
    "extra_step_local_sgd",
    "local_extra_adam",
]

Every = int | Callable[[Any], Any]


def extra_step(
    learning_rate: optax.ScalarOrSchedule, channel: comm.Channel | comm.AxisName
) -> optax.GradientTransformationExtraArgs:
    r"""Centralized extra-step: extragradient with the workers' mean operator.

    $$z_{1/2} = z - \gamma \frac1M \sum_m F_m(z), \qquad
    z \leftarrow z - \gamma \frac1M \sum_m F_m(z_{1/2}).$$

    With $\gamma = 1/(4L)$ it converges linearly on strongly monotone problems; with
    noise, to a floor proportional to $\gamma \sigma^2 / (\mu M b)$ for batches of $b$.
    It sends the operator twice an iteration, as the channel does; through compressors
    it is `compressed_extragradient`. Constraints are not part of it.

    Args:
      learning_rate: $\gamma$, a number or a schedule of the iteration.
      channel: the worker axis, `Workers.axis_name`, or what `jaxsp.channel` makes.

    Returns:
      The method; `update` needs `params` and `operator_fn`.

    Raises:
      ValueError: for a bad argument, or an `update` without `operator_fn`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxsp, optax
      >>> problem = jaxsp.problems.quadratic(4, 3, L=4.0, mu=1.0, seed=0)
      >>> workers = jaxsp.Workers(4)
      >>> tx = jaxsp.methods.extra_step(1 / 16, workers.axis_name)
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
        optax.chain(transforms.average(channel), descent(learning_rate, calls=2))
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
            descent(learning_rate, calls=2),
            transforms.gossip(topology, rounds, acceleration, axis_name=axis_name),
        )
    )


def extra_step_local_sgd(
    learning_rate: optax.ScalarOrSchedule,
    sync_every: Every,
    channel: comm.Channel | comm.AxisName,
    *,
    outer: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Local extragradient steps, with the workers averaged every `sync_every` of them.

    $$z_{1/2} = z_m - \gamma F_m(z_m), \qquad
    z_m \leftarrow z_m - \gamma F_m(z_{1/2}), \qquad
    z_m \leftarrow \tfrac1M \textstyle\sum_j z_j \text{ after every } H
    \text{ iterations}.$$

    Only the full point is averaged, so heterogeneous operators leave a floor
    proportional to $\gamma$ even with $H = 1$, which is therefore not `extra_step`.
    The theory asks for $\gamma \le 1/(21 H L)$. It is unconstrained: project after an
    average, not inside local steps. On the paper's bilinear game in its box, $H = 25$,
    projecting every local step raised the floor from 0.09 to 0.40 of the start, and
    projecting the averages not at all.

    Args:
      learning_rate: $\gamma$, a number or a schedule of the iteration.
      sync_every: $H$, the iterations from one average to the next; it may be a schedule
        of the iteration, as in `jaxsp.sync`.
      channel: the worker axis, `Workers.axis_name`, or what `jaxsp.channel` makes;
        through compressors the changes since the last average travel, with feedback.
      outer: what makes the step of the agreed point from minus the mean change, as in
        `jaxsp.sync`, such as `optax.sgd(0.7, momentum=0.9, nesterov=True)`; None is the
        average. Momentum diverges on bilinear games, where the average converges.

    Returns:
      The method; `update` needs `params` and `operator_fn`.

    Raises:
      ValueError: for a bad argument, or an `update` without `operator_fn`.

    References:
      Beznosikov, Samokhin, Gasnikov, Distributed Saddle-Point Problems: Lower Bounds,
      Near-Optimal and Robust Algorithms, 2020, arXiv 2010.13112 (Algorithm 3, as in the
      first author's thesis, MIPT 2022).
      Douillard et al., DiLoCo: Distributed Low-Communication Training of Language
      Models, 2023, arXiv 2311.08105 (the outer optimizer; of games it is ours).
    """
    _check_sync_every(sync_every)
    return optax.chain(
        transforms.extragradient(descent(learning_rate, calls=2)),
        transforms.sync(sync_every, channel, outer=outer),
    )


def local_extra_adam(
    learning_rate: optax.ScalarOrSchedule,
    sync_every: Every,
    channel: comm.Channel | comm.AxisName,
    b1: float = 0.5,
    b2: float = 0.9,
    *,
    outer: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Local ExtraAdam steps, with the workers averaged every `sync_every` of them.

    $$z_{1/2} = z_m + \mathrm{Adam}_m(F_m(z_m)), \qquad
    z_m \leftarrow z_m + \mathrm{Adam}_m(F_m(z_{1/2})), \qquad
    z_m \leftarrow \tfrac1M \textstyle\sum_j z_j \text{ after every } H
    \text{ iterations}.$$

    The form of `extra_step_local_sgd` for GANs. Both half-steps start from $z_m$, and
    each takes the moments one step further, so that their decays `b1` and `b2`, and the
    correction of their bias, count oracle calls, two an iteration. The moments are a
    worker's own: they are never sent, and an average leaves them as they are. The
    composition is reconstructed. It is `extragradient(optax.adam(...))` chained with
    `sync`; write that for another $\epsilon$ than $10^{-8}$.

    Args:
      learning_rate: a number or a schedule of the iteration.
      sync_every: $H$, the iterations from one average to the next; it may be a schedule
        of the iteration, as in `jaxsp.sync`.
      channel: the worker axis, `Workers.axis_name`, or what `jaxsp.channel` makes;
        through compressors the changes since the last average travel, with feedback.
      b1: decay of the first moment.
      b2: decay of the second moment.
      outer: what makes the step of the agreed point from minus the mean change, as in
        `jaxsp.sync`; None is the average.

    Returns:
      The method; `update` needs `params` and `operator_fn`.

    Raises:
      ValueError: for a bad argument, or an `update` without `operator_fn`.

    References:
      Gidel, Berard, Vignoud, Vincent, Lacoste-Julien, A Variational Inequality
      Perspective on Generative Adversarial Networks, 2019,
      arXiv 1802.10551 (ExtraAdam).
      Beznosikov, Samokhin, Gasnikov, Distributed Saddle-Point Problems: Lower Bounds,
      Near-Optimal and Robust Algorithms, 2020, arXiv 2010.13112.
      Douillard et al., DiLoCo: Distributed Low-Communication Training of Language
      Models, 2023, arXiv 2311.08105 (the outer optimizer; of games it is ours).
    """
    _check_sync_every(sync_every)
    _arguments.check_decay("b1", b1)
    _arguments.check_decay("b2", b2)
    rate = of_iterations(learning_rate, calls=2)
    return optax.chain(
        transforms.extragradient(optax.adam(rate, b1, b2)),
        transforms.sync(sync_every, channel, outer=outer),
    )


def _check_sync_every(sync_every):
    if not callable(sync_every):
        _arguments.check_every("sync_every", sync_every)


def descent(learning_rate, calls=1):
    """`−γ F`, with a schedule of iterations of `calls` oracle calls each."""
    return optax.sgd(of_iterations(learning_rate, calls))


def of_iterations(learning_rate: optax.ScalarOrSchedule, calls: int) -> Any:
    """A schedule of iterations as one of oracle calls, `calls` of them in each."""
    _arguments.check_learning_rate(learning_rate)
    if callable(learning_rate):
        return lambda count: learning_rate(count // calls)
    return learning_rate
