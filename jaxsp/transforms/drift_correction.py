"""Local steps corrected by how the worker's gradient differed from the mean."""

from typing import NamedTuple

import chex
import jax.numpy as jnp
import optax
from jax import lax

from jaxsp import _arguments, comm


class DriftCorrectionState(NamedTuple):
    r"""What `drift_correction` keeps.

    Attributes:
      count: the number of updates so far, an int32 scalar.
      correction: $c_m = F(r) - F_m(r)$ at the start of this round.
      traffic: the bits sent and received.
    """

    count: chex.Array
    correction: optax.Updates
    traffic: comm.Traffic


def drift_correction(
    every: int, channel: comm.Channel | comm.AxisName
) -> optax.GradientTransformationExtraArgs:
    r"""Add to each gradient what the worker lacked of the mean when a round began.

    $$c_m \leftarrow \frac1M \sum_j u_j - u_m \text{ at updates } 1, H + 1, 2H + 1,
    \dots, \qquad u_m \leftarrow u_m + c_m.$$

    Before local steps that are averaged by `sync` every $H$ updates it takes the drift
    out of them, and with it their floor on unlike workers: the first step of a round is
    one with the mean gradient, the others follow it with the worker's own curvature.
    Inside `extragradient` count oracle calls, two an iteration. Between two rounds
    nothing is sent (under `vmap` it is computed).

    Args:
      every: $H$, the updates in a round: a positive integer, or a hyperparameter of
        `optax.inject_hyperparams`.
      channel: the worker axis, `Workers.axis_name`, or what `jaxsp.channel` makes;
        what compressors on it leave out stays as a floor.

    Returns:
      The transformation.

    Raises:
      ValueError: for a bad argument, or parameters that are not floating point.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxsp
      >>> workers = jaxsp.Workers(2)
      >>> tx = jaxsp.transforms.drift_correction(2, workers.axis_name)
      >>> state = workers.map(tx.init)(jnp.zeros(2))
      >>> for gradients in (jnp.array([1.0, 3.0]), jnp.array([2.0, 5.0])):
      ...   updates, state = workers.map(tx.update)(gradients, state)
      ...   print(updates)
      [2. 2.]
      [3. 4.]

    References:
      Sun, Wei, A Communication-Efficient Algorithm with Linear Convergence for
      Federated Minimax Learning, 2022, arXiv 2206.01132 (FedGDA-GT).
    """
    every = _arguments.check_every("every", every)
    channel = comm.as_channel(channel)

    def init_fn(params):
        _arguments.check_floating(params)
        return DriftCorrectionState(
            count=jnp.zeros([], jnp.int32),
            correction=optax.tree.zeros_like(params),
            traffic=comm.no_traffic(),
        )

    def update_fn(updates, state, params=None, **extra_args):
        del params, extra_args

        def renewed():
            mean, traffic = comm.mean(updates, state.traffic, channel.at(state.count))
            return optax.tree.sub(mean, updates), traffic

        def unchanged():
            return state.correction, state.traffic

        first = comm.shared_index(state.count % every == 0, channel.axis_name)
        correction, traffic = lax.cond(first, renewed, unchanged)
        updates = optax.tree.add(updates, correction)
        count = jnp.asarray(optax.safe_increment(state.count))
        return updates, DriftCorrectionState(count, correction, traffic)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
