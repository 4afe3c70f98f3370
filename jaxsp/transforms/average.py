"""The mean of the workers' updates."""

from typing import NamedTuple

import optax

from jaxsp import _arguments, comm


class AverageState(NamedTuple):
    """What `average` keeps.

    Attributes:
      traffic: the bits sent and received.
    """

    traffic: comm.Traffic


def average(*, axis_name: comm.AxisName) -> optax.GradientTransformationExtraArgs:
    r"""Replace every worker's update by the mean over workers.

    $$u_m \leftarrow \frac1M \sum_{j=1}^M u_j.$$

    Chained before an optimizer it averages gradients. Chained *before* an opaque
    `extragradient` it touches only the first of the two gradients: put it inside,
    `extragradient(optax.chain(average(...), optimizer))`.

    The traffic is that of a ring all-reduce, $2(M-1)/M$ times the size of the updates
    in each direction: 7 bytes for each float32 number with 8 workers.

    Args:
      axis_name: the worker axis, `Workers.axis_name`.

    Returns:
      The transformation.

    Raises:
      ValueError: if `axis_name` is not a name, or a leaf of the parameters is not
        floating point.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxsp
      >>> workers = jaxsp.Workers(2)
      >>> tx = jaxsp.average(axis_name=workers.axis_name)
      >>> def step(gradient, params):
      ...   updates, state = tx.update(gradient, tx.init(params), params)
      ...   return updates
      >>> print(workers.map(step)(jnp.array([1.0, 3.0]), jnp.zeros(2)))
      [2. 2.]
    """
    _arguments.check_axis_name(axis_name)

    def init_fn(params):
        _arguments.check_floating(params)
        return AverageState(traffic=comm.no_traffic())

    def update_fn(updates, state, params=None, **extra_args):
        del params, extra_args
        bits = comm.mean_bits(updates, axis_name)
        return (
            comm.mean(updates, axis_name),  # (1/M) Σ u_j
            AverageState(comm.add_traffic(state.traffic, bits, bits, axis_name)),
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
