"""DQGAN, its Adam form, and the baseline without feedback."""

import dataclasses

import chex
import optax

from jaxsp import comm, compressors, transforms
from jaxsp.methods.dposg import cp_oadam

__all__ = ["cp_oadam_gq", "dqgan", "dqgan_adam"]


def dqgan(
    learning_rate: optax.ScalarOrSchedule, channel: comm.Channel | comm.AxisName
) -> optax.GradientTransformationExtraArgs:
    r"""Optimistic descent with quantized steps and two-step error feedback.

    $$w_{1/2,m} = w - (\eta F_m^{\mathrm{prev}} + e_m), \qquad
    p_m = \eta F_m(w_{1/2,m}) + e_m, \qquad
    w \leftarrow w - \tfrac1M \textstyle\sum_m Q(p_m), \qquad
    e_m \leftarrow p_m - Q(p_m).$$

    The parameters are $w_{1/2,m}$, where the next gradient is taken; all workers share
    $w$, `eval_params(state, params)`. The residual stands in the look ahead too: for
    affine operators with one linear part, the mean half point then equals uncompressed
    optimistic descent exactly, whatever $Q$ is. With the residual in the push alone
    (`error_feedback_average`) the method diverges on bilinear games with top-10% or
    sign. One oracle call an iteration; `operator_fn` is ignored.

    A compressor that is only unbiased is made a contraction by
    `jaxsp.compressors.contractive`: `quantize(4)` takes blocks of 128 numbers with a
    scale each, `rand_k` is divided by its $q$. With a compressor on the way down the
    server has a residual too. It stands in the look ahead of the workers that do the
    server's work, and the identity holds with it as well. That is ours.

    Args:
      learning_rate: $\eta$, a number or a schedule of the iteration.
      channel: what `jaxsp.channel` makes. Its compressor $Q$ on the way up is of the
        steps $\eta F + e$. Over a plain one it is optimistic descent of the mean.

    Returns:
      The method; `update` needs `params`.

    Raises:
      ValueError: for a bad argument.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxsp, optax
      >>> problem = jaxsp.problems.bilinear(4, 5, heterogeneity=0.3, seed=0)
      >>> workers = jaxsp.Workers(4)
      >>> fifth = jaxsp.compressors.top_k(0.2)
      >>> channel = jaxsp.channel(workers.axis_name, fifth, key=jax.random.key(0))
      >>> tx = jaxsp.methods.dqgan(0.2, channel)
      >>> def run(data):
      ...   def step(carry, _):
      ...     z, state = carry
      ...     updates, state = tx.update(problem.operator(z, data), state, z)
      ...     return (optax.apply_updates(z, updates), state), None
      ...   z = jax.tree.map(jnp.zeros_like, problem.z_star)
      ...   z, state = jax.lax.scan(step, (z, tx.init(z)), length=2000)[0]
      ...   return jaxsp.methods.eval_params(state, z)
      >>> w = jax.tree.map(lambda x: x[0], jax.jit(workers.map(run))(problem.data))
      >>> bool(jaxsp.metrics.distance(w, problem.z_star) < 0.5)
      True

    References:
      Chen, Yang, Shen, Pang, A Distributed Training Algorithm of Generative Adversarial
      Networks with Quantized Gradients, 2020, arXiv 2010.13359 (reconstructed).
    """
    return transforms.two_step_feedback(learning_rate, _contractive(channel))


def dqgan_adam(
    learning_rate: optax.ScalarOrSchedule,
    channel: comm.Channel | comm.AxisName,
    b1: chex.Numeric = 0.5,
    b2: chex.Numeric = 0.9,
    eps: chex.Numeric = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    r"""The Adam form of `dqgan`: OAdam of a mean of compressed gradients with feedback.

    $$c_m = Q(F_m(p) + e_m), \qquad e_m \leftarrow F_m(p) + e_m - c_m, \qquad
    p \leftarrow p + \mathrm{OAdam}\big(\tfrac1M \textstyle\sum_m c_m\big).$$

    The residual sits before Adam, in the units of the gradient, so that what is
    compressed does not depend on the moments; all workers hold the same moments and
    parameters. The look ahead is OAdam's own. This form is ours; it has no identity
    with the uncompressed method.

    Args:
      learning_rate: a number or a schedule of the iteration.
      channel: what `jaxsp.channel` makes; a compressor on it that is only unbiased is
        made a contraction.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.

    Returns:
      The method.

    Raises:
      ValueError: for a bad argument.
    """
    return optax.chain(
        transforms.error_feedback_average(_contractive(channel)),
        transforms.optimistic_adam(learning_rate, b1, b2, eps),
    )


def cp_oadam_gq(
    learning_rate: optax.ScalarOrSchedule,
    channel: comm.Channel | comm.AxisName,
    b1: chex.Numeric = 0.5,
    b2: chex.Numeric = 0.9,
    eps: chex.Numeric = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    r"""`cp_oadam` of compressed gradients, without feedback: a baseline.

    It is `cp_oadam` over a channel with compressors,

    $$p \leftarrow p + \mathrm{OAdam}\big(\tfrac1M \textstyle\sum_m Q(F_m(p))\big).$$

    Args:
      learning_rate: a number or a schedule of the iteration.
      channel: what `jaxsp.channel` makes, with any compressors.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.

    Returns:
      The method.

    Raises:
      ValueError: for a bad argument.
    """
    return cp_oadam(learning_rate, channel, b1, b2, eps)


def _contractive(channel):
    """The channel with every compressor on it made a contraction."""
    channel = comm.as_channel(channel)
    up, down = (c and compressors.contractive(c) for c in (channel.up, channel.down))
    return dataclasses.replace(channel, up=up, down=down)
