"""Local steps: the workers' parameters are averaged once in a while."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxsp import _arguments, comm


class SyncState(NamedTuple):
    """What `sync` keeps.

    Attributes:
      count: the number of updates so far, an int32 scalar.
      traffic: the bits sent and received.
    """

    count: chex.Array
    traffic: comm.Traffic


def sync(
    every: int, *, axis_name: comm.AxisName
) -> optax.GradientTransformationExtraArgs:
    r"""Average the parameters after every `every`-th update, and leave the rest local.

    $$z_m + u_m \leftarrow \frac1M \sum_{j=1}^M (z_j + u_j)
    \quad\text{after updates } H, 2H, 3H, \dots$$

    It belongs at the end of a chain, after everything that changes the step. In between
    nothing is computed for it and nothing is sent (on devices; under `vmap` a
    conditional that depends on a worker's state evaluates both sides). Because an
    update is added to the parameters, workers agree afterwards to rounding, not bit for
    bit.

    Args:
      every: $H$, the number of updates from one average to the next. It may be a
        hyperparameter of `optax.inject_hyperparams`.
      axis_name: the worker axis, `Workers.axis_name`.

    Returns:
      The transformation; `update` needs `params`.

    Raises:
      ValueError: if `every` is not a positive integer, `axis_name` is not a name, or a
        leaf of the parameters is not floating point.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxsp
      >>> workers = jaxsp.Workers(2)
      >>> tx = jaxsp.sync(2, axis_name=workers.axis_name)
      >>> params = jnp.array([1.0, 3.0])
      >>> state = workers.map(tx.init)(params)
      >>> for _ in range(2):
      ...   updates, state = workers.map(tx.update)(jnp.zeros(2), state, params)
      ...   print(params + updates)
      [1. 3.]
      [2. 2.]

    References:
      Stich, Local SGD Converges Fast and Communicates Little, 2018, arXiv 1805.09767.
    """
    if not isinstance(every, jax.Array):
        every = _arguments.check_count("every", every)
    _arguments.check_axis_name(axis_name)

    def init_fn(params):
        _arguments.check_floating(params)
        return SyncState(count=jnp.zeros([], jnp.int32), traffic=comm.no_traffic())

    def update_fn(updates, state, params=None, **extra_args):
        del extra_args
        params = _arguments.require_params(params)

        def averaged(updates, traffic):
            moved = optax.tree.add(params, updates)
            agreed = comm.mean(moved, axis_name)  # (1/M) Σ (z_j + u_j)
            bits = comm.mean_bits(params, axis_name)
            return (
                optax.tree.sub(agreed, params),
                comm.add_traffic(traffic, bits, bits, axis_name),
            )

        def local(updates, traffic):
            return updates, traffic

        count = jnp.asarray(optax.safe_increment(state.count))
        due = comm.shared_index(count % every == 0, axis_name)
        updates, traffic = lax.cond(due, averaged, local, updates, state.traffic)
        return updates, SyncState(count=count, traffic=traffic)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
