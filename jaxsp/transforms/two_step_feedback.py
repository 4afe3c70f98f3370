"""Optimistic descent through compressors, the residual in both of its steps: DQGAN."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxsp import _arguments, comm


class TwoStepFeedbackState(NamedTuple):
    r"""What `two_step_feedback` keeps.

    Attributes:
      count: the number of updates so far, an int32 scalar.
      shared: $w$, the same on all workers.
      residual: $e_m$, what this worker's compressor has left out.
      server_residual: this worker's part of the server's, as `jaxsp.comm.exchange`
        keeps it; `()` without a compressor on the way down.
      traffic: the bits sent and received.
    """

    count: chex.Array
    shared: optax.Params
    residual: optax.Updates
    server_residual: optax.Updates
    traffic: comm.Traffic


def two_step_feedback(
    learning_rate: optax.ScalarOrSchedule, channel: comm.Channel | comm.AxisName
) -> optax.GradientTransformationExtraArgs:
    r"""Past extragradient with the residual in the look ahead and in the push.

    $$w_{1/2,m} = w - (\eta F_m^{\mathrm{prev}} + e_m), \qquad
    p_m = \eta F_m(w_{1/2,m}) + e_m, \qquad
    w \leftarrow w - \tfrac1M \textstyle\sum_m C(p_m), \qquad
    e_m \leftarrow p_m - C(p_m).$$

    With a compressor on the way down $w \leftarrow w - C_s(\frac1M \sum_m C(p_m) + e)$,
    what that leaves out is the server's residual $e$, and it stands in the look ahead
    too: there is no server, so whoever does its work for a block knows $e$ and looks
    ahead with a part of it; the parts' mean is $e$. The parameters are $w_{1/2,m}$,
    where the next gradient is taken; `jaxsp.methods.dqgan` says more.

    Args:
      learning_rate: $\eta$, a number or a schedule. $\eta_k$ belongs to both lines of
        iteration $k$, as in `past_extragradient`.
      channel: what `jaxsp.channel` makes, with contractive compressors $C$ up and $C_s$
        down. Over a plain one it is optimistic descent of the mean.

    Returns:
      The transformation; `update` needs `params`.

    Raises:
      ValueError: for a bad argument, a channel that is not contractive, or parameters
        that are not floating point.

    References:
      Chen, Yang, Shen, Pang, A Distributed Training Algorithm of Generative Adversarial
      Networks with Quantized Gradients, 2020, arXiv 2010.13359.
    """
    _arguments.check_learning_rate(learning_rate)
    channel = comm.check_contractive(comm.as_channel(channel))

    def scaled(count, tree):
        rate = learning_rate(count) if callable(learning_rate) else learning_rate
        return jax.tree.map(lambda g: jnp.asarray(rate, jnp.result_type(g)) * g, tree)

    def init_fn(params):
        _arguments.check_floating(params)
        return TwoStepFeedbackState(
            count=jnp.zeros([], jnp.int32),
            shared=jax.tree.map(lambda p: jnp.array(p, copy=True), params),
            residual=optax.tree.zeros_like(params),
            server_residual=comm.no_residual(channel, params),
            traffic=comm.no_traffic(),
        )

    def update_fn(updates, state, params=None, **extra_args):
        del extra_args
        params = _arguments.require_params(params)
        count = jnp.asarray(optax.safe_increment(state.count))
        push = optax.tree.add(scaled(state.count, updates), state.residual)  # η F + e
        made, traffic = comm.exchange(
            push,
            state.traffic,
            channel.at(state.count),
            residual=state.server_residual,
        )
        shared = optax.tree.sub(state.shared, made.mean)  # w ← w − (1/M) Σ C(p)
        residual = optax.tree.sub(push, made.sent)  # e ← p − C(p)
        left = residual
        if channel.down is not None:
            left = optax.tree.add(residual, made.residual)
        half = jax.tree.map(
            lambda w, f, e: w - (f + e), shared, scaled(count, updates), left
        )  # w½ = w − (η F + e)
        state = TwoStepFeedbackState(
            count=count,
            shared=shared,
            residual=residual,
            server_residual=made.residual,
            traffic=traffic,
        )
        return optax.tree.sub(half, params), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
