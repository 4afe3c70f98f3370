"""Local steps with control variates, averaged when a coin says so: ProxSkip."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxsp import _arguments, comm


class ProxSkipState(NamedTuple):
    """What `prox_skip` keeps.

    Attributes:
      count: the number of updates so far, an int32 scalar.
      control: $h_m$, which comes to be this worker's gradient at the solution.
      traffic: the bits sent and received.
    """

    count: chex.Array
    control: optax.Updates
    traffic: comm.Traffic


def prox_skip(
    learning_rate: optax.ScalarOrSchedule,
    channel: comm.Channel,
    probability: chex.Numeric,
    *,
    prox: Callable[[Any, Any], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Local steps that know how unlike the worker is, and a mean now and then.

    $$\hat z_m = z_m - \gamma\,(F_m(z_m) - h_m), \qquad
    z_m \leftarrow \mathrm{prox}_{\gamma/p}\Big(\frac1M \sum_j
    \big(\hat z_j - \tfrac\gamma p h_j\big)\Big) \text{ with probability } p,
    \text{ else } \hat z_m, \qquad
    h_m \leftarrow h_m + \frac p\gamma (z_m - \hat z_m),$$

    from $h_m = 0$, with one coin for all workers, drawn from the channel's key.

    Args:
      learning_rate: $\gamma$, a number or a schedule of the iteration.
      channel: what `jaxsp.channel` makes of the worker axis and a key, without
        compressors.
      probability: $p$, above 0 and at most 1.
      prox: `prox(point, gamma)`, such as a projection; None for none.

    Returns:
      The transformation; `update` needs `params`.

    Raises:
      ValueError: for a bad argument, or parameters that are not floating point.

    References:
      As `jaxsp.methods.proxskip_vip`.
    """
    _arguments.check_learning_rate(learning_rate)
    channel = comm.check_key(comm.as_channel(channel))
    if not channel.plain:
        raise ValueError(
            "channel must have no compressors, because whole points are averaged, got "
            f"{channel}: leave them out."
        )
    _arguments.check_probability("probability", probability)
    if prox is not None:
        _arguments.check_callable("prox", prox)

    def init_fn(params):
        _arguments.check_floating(params)
        return ProxSkipState(
            count=jnp.zeros([], jnp.int32),
            control=optax.tree.zeros_like(params),
            traffic=comm.no_traffic(),
        )

    def update_fn(updates, state, params=None, **extra_args):
        del extra_args
        params = _arguments.require_params(params)
        rate: Any = learning_rate
        if callable(learning_rate):
            rate = learning_rate(state.count)
        reach = rate / probability  # γ/p

        def add(x, c, y):
            return x + jnp.asarray(c, jnp.result_type(x)) * y

        local = jax.tree.map(  # ẑ − z
            lambda g, h: add(jnp.zeros_like(g), -rate, g - h), updates, state.control
        )

        def averaged():
            here = optax.tree.add(params, local)
            sent = jax.tree.map(lambda z, h: add(z, -reach, h), here, state.control)
            point, traffic = comm.mean(sent, state.traffic, channel)
            point = point if prox is None else prox(point, reach)
            control = jax.tree.map(
                lambda h, z, before: add(h, 1 / reach, z - before),
                state.control,
                point,
                here,
            )
            return optax.tree.sub(point, params), control, traffic

        def alone():
            return local, state.control, state.traffic

        key: Any = channel.at(state.count).key
        coin = jax.random.bernoulli(key, probability)
        coin = comm.shared_index(coin, channel.axis_name)
        updates, *kept = lax.cond(coin, averaged, alone)
        count = jnp.asarray(optax.safe_increment(state.count))
        return updates, ProxSkipState(count, *kept)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
