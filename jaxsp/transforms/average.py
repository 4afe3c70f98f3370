"""The mean of the workers' updates."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxsp import _arguments, comm


class AverageState(NamedTuple):
    """What `average` keeps.

    Attributes:
      count: the number of updates so far, an int32 scalar.
      traffic: the bits sent and received.
    """

    count: chex.Array
    traffic: comm.Traffic


def average(
    channel: comm.Channel | comm.AxisName, participants: int | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Replace every worker's update by the mean over workers.

    $$u_m \leftarrow \frac1M \sum_{j=1}^M u_j.$$

    Chained before an optimizer it averages gradients. Chained *before* an opaque
    `extragradient` it touches only the first of the two gradients: put it inside,
    `extragradient(optax.chain(average(...), optimizer))`.

    Over a plain channel, an axis name, it costs $2(M-1)/M$ times the size of the
    updates in each direction, as a ring all-reduce does: 7 bytes for each float32
    number with 8 workers. Over a channel with compressors it is
    $C_s\big(\frac1M \sum_j C(u_j)\big)$. Nothing is remembered of what compressors
    leave out: that is right for unbiased ones, whose errors average out; for
    contractive ones see `error_feedback_average`. Over a channel with an aggregate it
    is that: $C_s(\mathrm{agg}(C(u_1), \dots, C(u_M)))$.

    Args:
      channel: the worker axis, `Workers.axis_name`, or what `jaxsp.channel` makes.
      participants: how many workers' updates to take, $b$ drawn independently with
        replacement in every update by the channel's key, for the mean
        $\frac1b \sum_{i=1}^b C(u_{m_i})$; None takes each worker's once. The others'
        messages, of weight zero, travel and are counted: a collective has no gaps.

    Returns:
      The transformation.

    Raises:
      ValueError: if `channel` is neither, `participants` is not a positive integer or
        is given without a key or with an aggregate, or a leaf of the parameters is not
        floating point.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxsp
      >>> workers = jaxsp.Workers(2)
      >>> tx = jaxsp.average(workers.axis_name)
      >>> def step(gradient, params):
      ...   updates, state = tx.update(gradient, tx.init(params), params)
      ...   return updates
      >>> print(workers.map(step)(jnp.array([1.0, 3.0]), jnp.zeros(2)))
      [2. 2.]

    References:
      Alistarh, Grubic, Li, Tomioka, Vojnovic, QSGD: Communication-Efficient SGD via
      Gradient Quantization and Encoding, 2017, arXiv 1610.02132.
    """
    channel = comm.as_channel(channel)
    if participants is not None:
        participants = _arguments.check_count("participants", participants)
        comm.check_mean(comm.check_key(channel))

    def weights(b, step_key):
        """How often each worker takes part, times M/b."""
        count = comm.worker_count(channel.axis_name)
        drawn = jax.random.randint(step_key, (b,), 0, count)
        return jnp.bincount(drawn, length=count) * (count / b)

    def init_fn(params):
        _arguments.check_floating(params)
        return AverageState(jnp.zeros([], jnp.int32), comm.no_traffic())

    def update_fn(updates, state, params=None, **extra_args):
        del params, extra_args
        step, taken = channel.at(state.count), None
        if participants is not None:
            taken = weights(participants, step.at(1).key)
        made, traffic = comm.exchange(  # (1/M) Σ u_j
            updates, state.traffic, step.at(0), weights=taken
        )
        count = jnp.asarray(optax.safe_increment(state.count))
        return made.mean, AverageState(count, traffic)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
