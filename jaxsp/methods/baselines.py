"""Compressed methods that one needs beside DQGAN and MASHA, to show the point."""

import chex
import optax

from jaxsp import comm, transforms
from jaxsp.methods.extra_step import descent, extra_step

__all__ = [
    "compressed_extragradient",
    "diana_sgda",
    "ef21_sgda",
    "error_feedback_extragradient",
    "qsgda",
]


def compressed_extragradient(
    learning_rate: optax.ScalarOrSchedule, channel: comm.Channel | comm.AxisName
) -> optax.GradientTransformationExtraArgs:
    r"""Extragradient with both operators compressed (CEG): stalls at a floor.

    $$z_{1/2} = z - \gamma \frac1M \sum_m C(F_m(z)), \qquad
    z \leftarrow z - \gamma \frac1M \sum_m C(F_m(z_{1/2})).$$

    It is `extra_step` over a channel with compressors. What is compressed does not go
    to zero where workers differ, nor does its error.

    Args:
      learning_rate: $\gamma$, a number or a schedule of the iteration.
      channel: what `jaxsp.channel` makes, with any compressors.

    Returns:
      The method; `update` needs `params` and `operator_fn`.

    Raises:
      ValueError: for a bad argument, or an `update` without `operator_fn`.
    """
    return extra_step(learning_rate, channel)


def error_feedback_extragradient(
    learning_rate: optax.ScalarOrSchedule, channel: comm.Channel | comm.AxisName
) -> optax.GradientTransformationExtraArgs:
    r"""Extragradient with classical error feedback at both of its oracle calls.

    Each half-step is $z - \frac1M \sum_m C(\gamma F_m + e_m)$ with one residual $e_m$
    that goes through both.

    Args:
      learning_rate: $\gamma$, a number or a schedule of the iteration.
      channel: what `jaxsp.channel` makes, with contractive compressors.

    Returns:
      The method; `update` needs `params` and `operator_fn`.

    Raises:
      ValueError: for a bad argument, or an `update` without `operator_fn`.
    """
    return transforms.extragradient(
        optax.chain(
            descent(learning_rate, calls=2), transforms.error_feedback_average(channel)
        )
    )


def qsgda(
    learning_rate: optax.ScalarOrSchedule, channel: comm.Channel | comm.AxisName
) -> optax.GradientTransformationExtraArgs:
    r"""Quantized descent-ascent, $z \leftarrow z - \gamma \frac1M \sum_m Q(F_m(z))$.

    Args:
      learning_rate: $\gamma$, a number or a schedule of the iteration.
      channel: what `jaxsp.channel` makes, with any compressors.

    Returns:
      The method; one oracle call an iteration.

    Raises:
      ValueError: for a bad argument.

    References:
      Beznosikov, Gorbunov, Berard, Loizou, Stochastic Gradient Descent-Ascent: Unified
      Theory and New Efficient Methods, 2022, arXiv 2202.07262.
    """
    return optax.chain(transforms.average(channel), descent(learning_rate))


def diana_sgda(
    learning_rate: optax.ScalarOrSchedule,
    channel: comm.Channel | comm.AxisName,
    step_size: chex.Numeric | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Descent-ascent with DIANA's shifts: `qsgda` whose noise vanishes.

    $$z \leftarrow z - \gamma \Big(h + \frac1M \sum_m Q(F_m(z) - h_m)\Big), \qquad
    h_m \leftarrow h_m + \alpha Q(F_m(z) - h_m).$$

    Args:
      learning_rate: $\gamma$, a number or a schedule of the iteration.
      channel: what `jaxsp.channel` makes, with an unbiased compressor up, none down.
      step_size: $\alpha$; None is $1/q$.

    Returns:
      The method; one oracle call an iteration.

    Raises:
      ValueError: for a bad argument, or a channel that is not unbiased.

    References:
      As `qsgda`.
    """
    channel = comm.check_unbiased(comm.as_channel(channel))
    return optax.chain(
        transforms.difference_average(channel, step_size), descent(learning_rate)
    )


def ef21_sgda(
    learning_rate: optax.ScalarOrSchedule, channel: comm.Channel | comm.AxisName
) -> optax.GradientTransformationExtraArgs:
    r"""Descent-ascent with EF21, $g_m \leftarrow g_m + C(F_m(z) - g_m)$.

    $$z \leftarrow z - \gamma \frac1M \sum_m g_m, \qquad g_m = 0 \text{ at the start}.$$

    Args:
      learning_rate: $\gamma$, a number or a schedule of the iteration.
      channel: what `jaxsp.channel` makes, with a contractive compressor up, none down.

    Returns:
      The method; one oracle call an iteration.

    Raises:
      ValueError: for a bad argument, or a channel that is not contractive.

    References:
      Richtárik, Sokolov, Fatkhullin, EF21: A New, Simpler, Theoretically Better, and
      Practically Faster Error Feedback, 2021, arXiv 2106.05203.
    """
    channel = comm.check_contractive(comm.as_channel(channel))
    return optax.chain(
        transforms.difference_average(channel, 1.0), descent(learning_rate)
    )
