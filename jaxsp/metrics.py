"""How good a point is, how far workers are apart, and what they have sent."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsp import comm

__all__ = ["BitsSent", "bits_sent", "consensus_distance", "distance", "residual"]


class BitsSent(NamedTuple):
    """Bits of every worker since `init`.

    Attributes:
      up: bits sent, uint64, of shape `[M]` for a stacked state and `[]` for one worker.
      down: bits received, likewise.
    """

    up: np.ndarray
    down: np.ndarray


def residual(operator: Callable[..., Any], z: Any) -> jax.Array:
    r"""The norm of the operator, $\|F(z)\|_2$: 0 at a solution without constraints."""
    return optax.tree.norm(operator(z))


def distance(z: Any, z_star: Any) -> jax.Array:
    r"""The distance to the solution, $\|z - z^*\|_2$."""
    return optax.tree.norm(optax.tree.sub(z, z_star))


def consensus_distance(stacked: Any) -> jax.Array:
    r"""How far workers are from their mean, $\sqrt{\frac1M \sum_m \|z_m - \bar z\|^2}$.

    Args:
      stacked: the workers' parameters, every leaf with a leading axis of M.

    Returns:
      A scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxsp
      >>> print(jaxsp.metrics.consensus_distance(jnp.array([[0.0, 1.0], [6.0, 1.0]])))
      3.0
    """
    square = sum(
        jnp.sum(jnp.mean(jnp.square(jnp.abs(x - x.mean(0))), axis=0))
        for x in jax.tree.leaves(stacked)
    )
    return jnp.sqrt(square)


def bits_sent(state: optax.OptState) -> BitsSent:
    """What a transformation has sent and received, exactly, read on the host.

    Args:
      state: the state of any transformation, of one worker or stacked; counts are found
        by their type wherever they are, and added.

    Returns:
      The bits up and down, for each worker.

    Raises:
      ValueError: if nothing in the state counts.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxsp
      >>> workers = jaxsp.Workers(4)
      >>> tx = jaxsp.gossip(jaxsp.topology.ring(4), axis_name=workers.axis_name)
      >>> params = jnp.zeros([4, 10], jnp.float32)
      >>> state = workers.map(tx.init)(params)
      >>> updates, state = workers.map(tx.update)(params, state, params)
      >>> print(jaxsp.metrics.bits_sent(state).up)  # 2 neighbours x 10 numbers x 32
      [640 640 640 640]
    """
    is_traffic = lambda x: isinstance(x, comm.Traffic)  # noqa: E731
    counts = [x for x in jax.tree.leaves(state, is_leaf=is_traffic) if is_traffic(x)]
    if not counts:
        raise ValueError(
            "state must hold the traffic of a transformation that communicates, such "
            "as jaxsp.average or jaxsp.gossip, and holds none."
        )
    return BitsSent(
        up=np.asarray(sum(_integer(c.up) for c in counts)),
        down=np.asarray(sum(_integer(c.down) for c in counts)),
    )


def _integer(limbs) -> Any:
    limbs = np.asarray(limbs).astype(np.uint64)
    return (limbs[..., 0] << np.uint64(32)) | limbs[..., 1]
