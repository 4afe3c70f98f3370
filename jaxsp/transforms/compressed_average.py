"""The mean of the workers' updates, through compressors."""

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


class CompressedAverageState(NamedTuple):
    """What `compressed_average` keeps.

    Attributes:
      count: the number of updates so far, an int32 scalar.
      traffic: the bits sent and received.
    """

    count: chex.Array
    traffic: comm.Traffic


def compressed_average(
    compressor: Compressor,
    down: Compressor | None = None,
    *,
    key: chex.PRNGKey,
    axis_name: comm.AxisName,
    schedule: Schedule | None = None,
    participants: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Replace every worker's update by the mean of compressed ones.

    $$u_m \leftarrow C_s\Big(\frac1M \sum_{j=1}^M C_j(u_j)\Big).$$

    Nothing is remembered of what compressors leave out: right for unbiased ones, whose
    errors average out; for contractive ones see `error_feedback_average`. As with
    `average`, before an opaque `extragradient` it touches only the first gradient.

    Args:
      compressor: $C$, from `jaxsp.compressors`; workers draw independently.
      down: $C_s$, the compressor of the server's mean, or None for none.
      key: a key that all workers share.
      axis_name: the worker axis, `Workers.axis_name`.
      participants: how many workers' updates to take, $b$ drawn independently with
        replacement in every update by the shared key, for the mean
        $\frac1b \sum_{i=1}^b C(u_{m_i})$; None takes each worker's once. The others'
        payloads, of weight zero, travel and are counted: a collective has no gaps.
      schedule: `"gather"` sends all payloads to everyone; `"sharded"` makes worker m
        the server of block m, and compresses block by block; None takes the one that
        moves fewer bits.

    Returns:
      The transformation.

    Raises:
      ValueError: for a bad argument, or parameters that are not floating point.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxsp
      >>> workers = jaxsp.Workers(2)
      >>> tx = jaxsp.compressed_average(
      ...     jaxsp.compressors.top_k(0.5),
      ...     key=jax.random.key(0),
      ...     axis_name=workers.axis_name,
      ...     schedule="gather",
      ... )
      >>> u = jnp.array([[1.0, 4.0], [2.0, 0.5]])
      >>> print(workers.map(lambda u: tx.update(u, tx.init(u))[0])(u))
      [[1. 2.]
       [1. 2.]]

    References:
      Alistarh, Grubic, Li, Tomioka, Vojnovic, QSGD: Communication-Efficient SGD via
      Gradient Quantization and Encoding, 2017, arXiv 1610.02132.
    """
    check_exchange(compressor, down, key, axis_name, schedule)
    if participants is not None:
        participants = _arguments.check_count("participants", participants)

    def weights(step_key):
        """How often each worker takes part, times M/b."""
        if participants is None:
            return None
        count = comm.worker_count(axis_name)
        drawn = jax.random.randint(step_key, (participants,), 0, count)
        return jnp.bincount(drawn, length=count) * (count / participants)

    def init_fn(params):
        _arguments.check_floating(params)
        return CompressedAverageState(jnp.zeros([], jnp.int32), comm.no_traffic())

    def update_fn(updates, state, params=None, **extra_args):
        del params, extra_args
        step_key = jax.random.fold_in(key, state.count)
        exchange_key, participant_key = jax.random.split(step_key)
        mean, _, _, bits, _ = compressed_mean(
            updates,
            compressor,
            down,
            key=exchange_key,
            axis_name=axis_name,
            schedule=schedule,
            weights=weights(participant_key),
        )
        traffic = comm.add_traffic(state.traffic, bits, bits, axis_name)
        count = jnp.asarray(optax.safe_increment(state.count))
        return mean, CompressedAverageState(count, traffic)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
