"""Players of a game who live on workers of their own."""

import optax

from jaxsp import _arguments, comm, transforms
from jaxsp.methods.extra_step import descent

__all__ = ["pearl_sgd"]


def pearl_sgd(
    learning_rate: optax.ScalarOrSchedule, sync_every: int, axis_name: comm.AxisName
) -> optax.GradientTransformationExtraArgs:
    r"""Local steps of every player against what the others last played (PEARL-SGD).

    $$z_m \leftarrow z_m - \gamma \nabla_{z_m} f_m\big(z_m, \hat z_{-m}\big)
    \quad H \text{ times}, \qquad \text{then all tell all: } \hat z \leftarrow z.$$

    Worker $m$ is player $m$: it holds the others' strategies $\hat z_{-m}$ as it heard
    them, uses its own part of the field that `update` is given, and sends its own
    strategy alone. With two players it is Decoupled SGDA. For $H = 1$ it is descent on
    the whole game; between exchanges a player goes towards its best answer to what the
    others played, so that $\gamma H$ has to stay small where answers overshoot, as in
    bilinear games, and may be large where players' own curvature outweighs what they do
    to each other. There is no floor without noise: the equilibrium is a fixed point of
    all local steps, unlike that of `extra_step_local_sgd`.

    It is `optax.sgd` chained with `jaxsp.transforms.sync_players`, before which any
    optimizer may stand, also one for each player.

    Args:
      learning_rate: $\gamma$, a number or a schedule of the step.
      sync_every: $H$, the steps from one exchange to the next.
      axis_name: the worker axis, `Workers.axis_name`.

    Returns:
      The method; `update` needs `params`, with one part for each player. One oracle
      call a step; of the field the worker's own part is used.

    Raises:
      ValueError: for a bad argument.

    Example:
      Three firms choose how much to sell; each hears of the others every fifth step:

      >>> import jax, jax.numpy as jnp
      >>> import jaxsp, optax
      >>> def loss(i):  # minus the profit of firm i, whose unit costs i + 1
      ...   return lambda *q: -q[i] * (10 - sum(q) - (i + 1))
      >>> F = jaxsp.game(loss(0), loss(1), loss(2))
      >>> workers = jaxsp.Workers(3)
      >>> tx = jaxsp.methods.pearl_sgd(0.1, 5, workers.axis_name)
      >>> def run(z):
      ...   def step(carry, _):
      ...     z, state = carry
      ...     updates, state = tx.update(F(z), state, z)
      ...     return (optax.apply_updates(z, updates), state), None
      ...   return jax.lax.scan(step, (z, tx.init(z)), length=200)[0][0]
      >>> z = jax.jit(workers.map(run))(workers.replicate((1.0, 1.0, 1.0)))
      >>> print([round(float(q[0]), 4) for q in z])
      [3.0, 2.0, 1.0]

    References:
      Yoon, Choudhury, Loizou, Multiplayer Federated Learning: Reaching Equilibrium with
      Less Communication, 2025, arXiv 2501.08263.
      Zindari, Yazdkhasti, Rodomanov, Chavdarova, Stich, Decoupled SGDA for Games with
      Intermittent Strategy Communication, 2025, arXiv 2501.14652 (two players).
    """
    _arguments.check_every("sync_every", sync_every)
    return optax.chain(
        descent(learning_rate), transforms.sync_players(sync_every, axis_name)
    )
