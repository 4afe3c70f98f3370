"""Compressed methods that one needs beside DQGAN and MASHA, to show the point."""

import chex
import optax

from jaxsp import comm, transforms
from jaxsp.comm import compressed
from jaxsp.comm.compressed import Schedule
from jaxsp.compressors import Compressor
from jaxsp.methods.extra_step import descent

__all__ = [
    "compressed_extragradient",
    "diana_sgda",
    "ef21_sgda",
    "error_feedback_extragradient",
    "qsgda",
]


def compressed_extragradient(
    learning_rate: optax.ScalarOrSchedule,
    compressor: Compressor,
    *,
    key: chex.PRNGKey,
    axis_name: comm.AxisName,
    schedule: Schedule | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Extragradient with both operators compressed (CEG): stalls at a floor.

    $$z_{1/2} = z - \gamma \frac1M \sum_m C(F_m(z)), \qquad
    z \leftarrow z - \gamma \frac1M \sum_m C(F_m(z_{1/2})).$$

    What is compressed does not go to zero where workers differ, nor does its error.

    Args:
      learning_rate: $\gamma$, a number or a schedule of the iteration.
      compressor: $C$, any.
      key: a key that all workers share.
      axis_name: the worker axis, `Workers.axis_name`.
      schedule: how payloads travel, as in `jaxsp.compressed_average`.

    Returns:
      The method; `update` needs `params` and `operator_fn`.

    Raises:
      ValueError: for a bad argument, or an `update` without `operator_fn`.
    """
    return transforms.extragradient(
        optax.chain(
            transforms.compressed_average(
                compressor, key=key, axis_name=axis_name, schedule=schedule
            ),
            descent(learning_rate, calls=2),
        )
    )


def error_feedback_extragradient(
    learning_rate: optax.ScalarOrSchedule,
    compressor: Compressor,
    *,
    key: chex.PRNGKey,
    axis_name: comm.AxisName,
    schedule: Schedule | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Extragradient with classical error feedback at both of its oracle calls.

    Each half-step is $z - \frac1M \sum_m C(\gamma F_m + e_m)$ with one residual $e_m$
    that goes through both.

    Args:
      learning_rate: $\gamma$, a number or a schedule of the iteration.
      compressor: $C$, contractive.
      key: a key that all workers share.
      axis_name: the worker axis, `Workers.axis_name`.
      schedule: how payloads travel, as in `jaxsp.compressed_average`.

    Returns:
      The method; `update` needs `params` and `operator_fn`.

    Raises:
      ValueError: for a bad argument, or an `update` without `operator_fn`.
    """
    return transforms.extragradient(
        optax.chain(
            descent(learning_rate, calls=2),
            transforms.error_feedback_average(
                compressor, key=key, axis_name=axis_name, schedule=schedule
            ),
        )
    )


def qsgda(
    learning_rate: optax.ScalarOrSchedule,
    compressor: Compressor,
    *,
    key: chex.PRNGKey,
    axis_name: comm.AxisName,
    schedule: Schedule | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Quantized descent-ascent, $z \leftarrow z - \gamma \frac1M \sum_m Q(F_m(z))$.

    Args:
      learning_rate: $\gamma$, a number or a schedule of the iteration.
      compressor: $Q$, any.
      key: a key that all workers share.
      axis_name: the worker axis, `Workers.axis_name`.
      schedule: how payloads travel, as in `jaxsp.compressed_average`.

    Returns:
      The method; one oracle call an iteration.

    Raises:
      ValueError: for a bad argument.

    References:
      Beznosikov, Gorbunov, Berard, Loizou, Stochastic Gradient Descent-Ascent: Unified
      Theory and New Efficient Methods, 2022, arXiv 2202.07262.
    """
    return optax.chain(
        transforms.compressed_average(
            compressor, key=key, axis_name=axis_name, schedule=schedule
        ),
        descent(learning_rate),
    )


def diana_sgda(
    learning_rate: optax.ScalarOrSchedule,
    compressor: Compressor,
    step_size: chex.Numeric | None = None,
    *,
    key: chex.PRNGKey,
    axis_name: comm.AxisName,
    schedule: Schedule | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Descent-ascent with DIANA's shifts: `qsgda` whose noise vanishes.

    $$z \leftarrow z - \gamma \Big(h + \frac1M \sum_m Q(F_m(z) - h_m)\Big), \qquad
    h_m \leftarrow h_m + \alpha Q(F_m(z) - h_m).$$

    Args:
      learning_rate: $\gamma$, a number or a schedule of the iteration.
      compressor: $Q$, unbiased.
      step_size: $\alpha$; None is $1/q$.
      key: a key that all workers share.
      axis_name: the worker axis, `Workers.axis_name`.
      schedule: how payloads travel, as in `jaxsp.compressed_average`.

    Returns:
      The method; one oracle call an iteration.

    Raises:
      ValueError: for a bad argument, or a compressor that is not unbiased.

    References:
      As `qsgda`.
    """
    compressed.check_compressor("compressor", compressor)
    compressed.check_unbiased("compressor", compressor)
    return optax.chain(
        transforms.difference_average(
            compressor, step_size, key=key, axis_name=axis_name, schedule=schedule
        ),
        descent(learning_rate),
    )


def ef21_sgda(
    learning_rate: optax.ScalarOrSchedule,
    compressor: Compressor,
    *,
    key: chex.PRNGKey,
    axis_name: comm.AxisName,
    schedule: Schedule | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Descent-ascent with EF21, $g_m \leftarrow g_m + C(F_m(z) - g_m)$.

    $$z \leftarrow z - \gamma \frac1M \sum_m g_m, \qquad g_m = 0 \text{ at the start}.$$

    Args:
      learning_rate: $\gamma$, a number or a schedule of the iteration.
      compressor: $C$, contractive.
      key: a key that all workers share.
      axis_name: the worker axis, `Workers.axis_name`.
      schedule: how payloads travel, as in `jaxsp.compressed_average`.

    Returns:
      The method; one oracle call an iteration.

    Raises:
      ValueError: for a bad argument, or a compressor that is not contractive.

    References:
      Richtárik, Sokolov, Fatkhullin, EF21: A New, Simpler, Theoretically Better, and
      Practically Faster Error Feedback, 2021, arXiv 2106.05203.
    """
    compressed.check_compressor("compressor", compressor)
    compressed.check_contractive("compressor", compressor)
    return optax.chain(
        transforms.difference_average(
            compressor, 1.0, key=key, axis_name=axis_name, schedule=schedule
        ),
        descent(learning_rate),
    )
