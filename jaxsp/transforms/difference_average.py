"""The mean of the workers' updates, by compressed differences to what all know."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxsp import _arguments, comm


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
    channel: comm.Channel | comm.AxisName, step_size: chex.Numeric | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Replace every worker's update by a mean of shifts that follow the updates.

    $$c_m = C(u_m - h_m), \qquad u_m \leftarrow h + \frac1M \sum_{j=1}^M c_j, \qquad
    h_m \leftarrow h_m + \alpha c_m, \qquad h \leftarrow h + \frac\alpha M \sum_j c_j,$$

    from $h_m = 0$. With an unbiased compressor and $\alpha = 1/q$ these are DIANA's
    shifts, whose noise vanishes at a solution; with a contractive one and $\alpha = 1$
    it is EF21.

    Args:
      channel: the worker axis, `Workers.axis_name`, or what `jaxsp.channel` makes;
        $C$ is its compressor on the way up, and it has none on the way down.
      step_size: $\alpha$, above 0 and at most 1; None is $1/q$ for the dimension of the
        parameters if the compressor is unbiased, and 1 if it is contractive.

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
    channel = comm.check_mean(comm.as_channel(channel))
    if channel.down is not None:
        raise ValueError(
            "channel must have no compressor on the way down, because every worker "
            f"follows the mean of what was sent, got {channel}: leave down out."
        )
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
            q = None if channel.up is None else channel.up.q
            alpha = 1.0 if q is None else 1 / q(max(size, 1))
        made, traffic = comm.exchange(
            optax.tree.sub(updates, state.shift), state.traffic, channel.at(state.count)
        )

        def follow(h, c):
            return h + jnp.asarray(alpha, h.dtype) * c

        estimate = optax.tree.add(state.mean_shift, made.mean)  # h + (1/M) Σ c
        return estimate, DifferenceAverageState(
            count=jnp.asarray(optax.safe_increment(state.count)),
            shift=jax.tree.map(follow, state.shift, made.sent),
            mean_shift=jax.tree.map(follow, state.mean_shift, made.mean),
            traffic=traffic,
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
