"""The mean of the workers' updates, through compressors whose errors are made good."""

from typing import NamedTuple

import chex
import jax.numpy as jnp
import optax

from jaxsp import _arguments, comm


class ErrorFeedbackAverageState(NamedTuple):
    r"""What `error_feedback_average` keeps.

    Attributes:
      count: the number of updates so far, an int32 scalar.
      residual: $e_m$, what this worker's compressor has left out.
      server_residual: this worker's part of the server's, as `jaxsp.comm.exchange`
        keeps it; `()` without a compressor on the way down.
      previous: the payloads before, for a compressor with a warm start (`low_rank`)
        that is not sharded, else `()`.
      traffic: the bits sent and received.
    """

    count: chex.Array
    residual: optax.Updates
    server_residual: optax.Updates
    previous: optax.OptState
    traffic: comm.Traffic


def error_feedback_average(
    channel: comm.Channel | comm.AxisName,
) -> optax.GradientTransformationExtraArgs:
    r"""Replace every worker's update by the mean of compressed ones, with feedback.

    $$c_m = C(u_m + e_m), \qquad e_m \leftarrow u_m + e_m - c_m, \qquad
    u_m \leftarrow \frac1M \sum_{j=1}^M c_j,$$

    and with a compressor $C_s$ on the way down $u_m \leftarrow c = C_s(\frac1M \sum_j
    c_j + e)$, $e \leftarrow \frac1M \sum_j c_j + e - c$. The residuals have the units
    of the updates that come in: before an optimizer they are gradients, after one,
    steps. A compressor should be contractive (`delta`); rescale an unbiased one,
    `jaxsp.compressors.scaled`.

    This is the classical, one-step feedback. On bilinear games it diverges with a
    strong compressor, where `jaxsp.methods.dqgan`, which puts the residual in the look
    ahead too, converges.

    Args:
      channel: what `jaxsp.channel` makes, with contractive compressors. Over a plain
        one it is `average`.

    Returns:
      The transformation.

    Raises:
      ValueError: for a bad argument, a channel that is not contractive, or parameters
        that are not floating point.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxsp
      >>> workers = jaxsp.Workers(1)
      >>> half = jaxsp.compressors.top_k(0.5)
      >>> channel = jaxsp.channel(workers.axis_name, half, key=jax.random.key(0))
      >>> tx = jaxsp.error_feedback_average(channel)
      >>> u = jnp.array([[3.0, 2.0]])
      >>> state = workers.map(tx.init)(u)
      >>> for _ in range(2):
      ...   out, state = workers.map(tx.update)(u, state)
      ...   print(out)
      [[3. 0.]]
      [[0. 4.]]

    References:
      Karimireddy, Rebjock, Stich, Jaggi, Error Feedback Fixes SignSGD and other
      Gradient Compression Schemes, 2019, arXiv 1901.09847.
    """
    channel = comm.check_contractive(comm.as_channel(channel))

    def init_fn(params):
        _arguments.check_floating(params)
        return ErrorFeedbackAverageState(
            count=jnp.zeros([], jnp.int32),
            residual=optax.tree.zeros_like(params),
            server_residual=comm.no_residual(channel, params),
            previous=comm.first_payloads(channel, params),
            traffic=comm.no_traffic(),
        )

    def update_fn(updates, state, params=None, **extra_args):
        del params, extra_args
        wanted = optax.tree.add(updates, state.residual)  # u + e
        made, traffic = comm.exchange(
            wanted,
            state.traffic,
            channel.at(state.count),
            residual=state.server_residual,
            previous=state.previous,
        )
        return made.mean, ErrorFeedbackAverageState(
            count=jnp.asarray(optax.safe_increment(state.count)),
            residual=optax.tree.sub(wanted, made.sent),  # e ← u + e − C(u + e)
            server_residual=made.residual,
            previous=made.payloads,
            traffic=traffic,
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
