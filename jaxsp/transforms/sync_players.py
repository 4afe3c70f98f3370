"""Players who live on workers of their own, and hear of one another once in a while."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxsp import _arguments, comm


class SyncPlayersState(NamedTuple):
    """What `sync_players` keeps.

    Attributes:
      count: the number of updates so far, an int32 scalar.
      traffic: the bits sent and received.
    """

    count: chex.Array
    traffic: comm.Traffic


def sync_players(
    every: int, axis_name: comm.AxisName
) -> optax.GradientTransformationExtraArgs:
    r"""Let every worker move a player of its own, and tell the others once in a while.

    The parameters are the strategies of all players, $z = (z_1, \dots, z_n)$. Worker
    $m$ moves $z_m$ and leaves the others where it has last heard of them; after every
    `every`-th update each tells all others its own,

    $$u_i \leftarrow 0 \ (i \ne m), \qquad
    z_i + u_i \leftarrow (z_i + u_i)_{\text{worker } i}
    \quad\text{after updates } H, 2H, 3H, \dots$$

    It belongs at the end of a chain, after everything that changes the step. A worker
    sends its own player and nothing else: $M - 1$ times the longest player. With more
    workers than players neighbours play the same one, each with data of its own, and
    all hear their mean; worker $m$ of $M$ plays $\lfloor m n / M \rfloor$. With fewer,
    a worker plays several. What travels is then what sends less, see
    `jaxsp.comm.parts`. With one player it is `sync`.

    Args:
      every: $H$, the number of updates from one exchange to the next. It may be a
        hyperparameter of `optax.inject_hyperparams`.
      axis_name: the worker axis, `Workers.axis_name`.

    Returns:
      The transformation; `update` needs `params`, with one part for each player, as
      `jaxsp.game` takes them: a tuple, `MinMax`, a list or a dict. A single array is
      one player.

    Raises:
      ValueError: for a bad argument, or parameters that are not floating point.

    Example:
      Two workers, of whom one moves x by 1 and the other y by 2:

      >>> import jax.numpy as jnp
      >>> import jaxsp
      >>> workers = jaxsp.Workers(2)
      >>> tx = jaxsp.transforms.sync_players(2, workers.axis_name)
      >>> z = workers.replicate(jaxsp.MinMax(0.0, 0.0))
      >>> state = workers.map(tx.init)(z)
      >>> for _ in range(2):
      ...   u, state = workers.map(tx.update)(
      ...     workers.replicate(jaxsp.MinMax(1.0, 2.0)), state, z)
      ...   z = jaxsp.MinMax(z.x + u.x, z.y + u.y)
      ...   print(z.x, z.y)
      [1. 0.] [0. 2.]
      [2. 2.] [4. 4.]

    References:
      As `jaxsp.methods.pearl_sgd`.
    """
    every = _arguments.check_every("every", every)
    _arguments.check_axis_name(axis_name)

    def players(z):
        """One part for each, and how to put them together."""
        parts, treedef = jax.tree.flatten(z, is_leaf=lambda x: x is not z)
        return parts, lambda parts: jax.tree.unflatten(treedef, parts)

    def init_fn(params):
        _arguments.check_floating(params)
        return SyncPlayersState(jnp.zeros([], jnp.int32), comm.no_traffic())

    def update_fn(updates, state, params=None, **extra_args):
        del extra_args
        params = _arguments.require_params(params)
        parts, join = players(updates)
        owners = comm.owners(len(parts), comm.worker_count(axis_name))
        mine = jnp.asarray(owners)[comm.worker_index(axis_name)]
        updates = join(
            [
                jax.tree.map(lambda u, i=i: jnp.where(mine[i], u, jnp.zeros_like(u)), p)
                for i, p in enumerate(parts)
            ]
        )

        def exchanged(updates, traffic):
            points, join = players(optax.tree.add(params, updates))
            told, traffic = comm.mean_of_owners(points, traffic, axis_name)
            return optax.tree.sub(join(told), params), traffic

        def alone(updates, traffic):
            return updates, traffic

        count = jnp.asarray(optax.safe_increment(state.count))
        due = comm.shared_index(count % every == 0, axis_name)
        updates, traffic = lax.cond(due, exchanged, alone, updates, state.traffic)
        return updates, SyncPlayersState(count, traffic)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
