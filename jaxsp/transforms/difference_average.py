"""The mean of the workers' updates, by compressed differences to what all know."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxsp import _arguments, comm
from jaxsp.comm.compressed import (
    Schedule,
    check_exchange,
    compressed_mean,
)
from jaxsp.compressors import Compressor


class DifferenceAverageState(NamedTuple):
    r"""What `difference_average` keeps.

    Attributes:
      count: the number of updates so far, an int32 scalar.
      shift: $h_m$, this worker's.
      mean_shift: $h = \frac1M \sum_m h_m$, the same on all workers.
      traffic: the bits sent and received.
    """

    count: chex.Array
    shift: optax.Updates
    mean_shift: optax.Updates
    traffic: comm.Traffic


def difference_average(
    compressor: Compressor,
    step_size: chex.Numeric | None = None,
    *,
    key: chex.PRNGKey,
    axis_name: comm.AxisName,
    schedule: Schedule | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Replace every worker's update by a mean of shifts that follow the updates.

    $$c_m = C(u_m - h_m), \qquad u_m \leftarrow h + \frac1M \sum_{j=1}^M c_j, \qquad
    h_m \leftarrow h_m + \alpha c_m, \qquad h \leftarrow h + \frac\alpha M \sum_j c_j,$$

    from $h_m = 0$. With an unbiased compressor and $\alpha = 1/q$ these are DIANA's
    shifts, whose noise vanishes at a solution; with a contractive one and $\alpha = 1$
    it is EF21.

    Args:
      compressor: $C$, from `jaxsp.compressors`.
      step_size: $\alpha$, above 0 and at most 1; None is $1/q$ for the dimension of the
        parameters if the compressor is unbiased, and 1 if it is contractive.
      key: a key that all workers share.
      axis_name: the worker axis, `Workers.axis_name`.
      schedule: as in `compressed_average`.

    Returns:
      The transformation.

    Raises:
      ValueError: for a bad argument, or parameters that are not floating point.

    References:
      Mishchenko, Gorbunov, Takáč, Richtárik, Distributed Learning with Compressed
      Gradient Differences, 2019, arXiv 1901.09269 (DIANA).
      Richtárik, Sokolov, Fatkhullin, EF21: A New, Simpler, Theoretically Better, and
      Practically Faster Error Feedback, 2021, arXiv 2106.05203.
    """
    check_exchange(compressor, None, key, axis_name, schedule)
    if step_size is not None:
        _arguments.check_probability("step_size", step_size)

    def init_fn(params):
        _arguments.check_floating(params)
        zeros = optax.tree.zeros_like(params)
        also = optax.tree.zeros_like(params)
        return DifferenceAverageState(
            jnp.zeros([], jnp.int32), zeros, also, comm.no_traffic()
        )

    def update_fn(updates, state, params=None, **extra_args):
        del params, extra_args
        alpha = step_size
        if alpha is None:
            size = sum(x.size for x in jax.tree.leaves(updates))
            alpha = 1.0 if compressor.q is None else 1 / compressor.q(max(size, 1))
        mean, sent, _, bits, _ = compressed_mean(
            optax.tree.sub(updates, state.shift),
            compressor,
            key=jax.random.fold_in(key, state.count),
            axis_name=axis_name,
            schedule=schedule,
        )

        def follow(h, c):
            return h + jnp.asarray(alpha, h.dtype) * c

        estimate = optax.tree.add(state.mean_shift, mean)  # h + (1/M) Σ c
        return estimate, DifferenceAverageState(
            count=jnp.asarray(optax.safe_increment(state.count)),
            shift=jax.tree.map(follow, state.shift, sent),
            mean_shift=jax.tree.map(follow, state.mean_shift, mean),
            traffic=comm.add_traffic(state.traffic, bits, bits, axis_name),
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
