"""Two players who take turns: the second moves, then the first sees where it went."""

from typing import NamedTuple

import optax

from jaxsp import _arguments
from jaxsp.operators import MinMax


class AlternatingState(NamedTuple):
    """What `alternating` keeps.

    Attributes:
      x: the state of the first player's optimizer.
      y: the state of the second player's optimizer.
    """

    x: optax.OptState
    y: optax.OptState


def alternating(
    x: optax.GradientTransformation,
    y: optax.GradientTransformation,
    y_steps: int = 1,
) -> optax.GradientTransformationExtraArgs:
    r"""Let `y` move `y_steps` times, and then `x` once, at the `y` it finds.

    With $F = (F_x, F_y)$ the field of the game and an optimizer for each player,

    $$y \leftarrow y + \mathrm{opt}_y(F_y(x, y)) \quad (L \text{ times}), \qquad
    x \leftarrow x + \mathrm{opt}_x(F_x(x, y)).$$

    It is how GANs are usually trained: some steps of the discriminator, one of the
    generator. `update(F(z), state, z, operator_fn=F)` takes $F_y$ of the given field
    for the first step of `y`; every field after it is `operator_fn`'s, a function of
    the point alone. If that function sees a sample of its own, then the first step of
    `y` is on one sample and all that follows on the other.

    Half of every field is not used, and under `jax.jit` it is not computed: an update
    costs $L$ gradients of `y` and one of `x`, provided that the operator computes its
    parts apart, as `jaxsp.game` and `jaxsp.saddle` do. Outside of `jit` everything is
    computed.

    Either optimizer may communicate, or call `operator_fn` itself, which then is the
    field of its own player, a function of the player's own parameters.

    Args:
      x: the first player's optimizer, any optax transformation.
      y: the second player's.
      y_steps: $L$, the steps of `y` for one of `x`.

    Returns:
      The transformation for parameters `MinMax(x, y)`; `update` needs `params` and
      `operator_fn`.

    Raises:
      ValueError: if `y_steps` is not a positive integer, the parameters are not a
        `MinMax`, or `update` is called without `params` or `operator_fn`.

    Example:
      On the game `x * y` players who move at once run away from the solution 0; players
      who take turns stay where they are, in a circle around it:

      >>> import jaxsp, optax
      >>> F = jaxsp.saddle(lambda x, y: x * y)
      >>> tx = jaxsp.transforms.alternating(optax.sgd(0.5), optax.sgd(0.5))
      >>> z = jaxsp.MinMax(1.0, 1.0)
      >>> state = tx.init(z)
      >>> for _ in range(100):
      ...   updates, state = tx.update(F(z), state, z, operator_fn=F)
      ...   z = optax.apply_updates(z, updates)
      >>> bool(0.5 < abs(z.x) + abs(z.y) < 3)
      True

    References:
      Goodfellow et al., Generative Adversarial Nets, 2014, arXiv 1406.2661
      (algorithm 1).
      Gidel, Askari Hemmat, Pezeshki, Le Priol, Huang, Lacoste-Julien, Mitliagkas,
      Negative Momentum for Improved Game Dynamics, 2019, arXiv 1807.04740.
    """
    y_steps = _arguments.check_unrolled("y_steps", y_steps)
    optimizers = MinMax(
        _arguments.check_transformation("x", x),
        _arguments.check_transformation("y", y),
    )

    def init_fn(params):
        params = _require_players(params)
        return AlternatingState(
            x=optimizers.x.init(params.x), y=optimizers.y.init(params.y)
        )

    def update_fn(updates, state, params=None, *, operator_fn=None, **extra_args):
        z = _require_players(_arguments.require_params(params))
        operator_fn = _arguments.require_operator(operator_fn)

        def field(x, y):
            return _arguments.call_operator(operator_fn, MinMax(x, y))

        y, y_state = z.y, state.y
        for i in range(y_steps):
            descent = updates.y if i == 0 else field(z.x, y).y  # F_y(x, y)
            step, y_state = optimizers.y.update(
                descent,
                y_state,
                y,
                operator_fn=lambda y: field(z.x, y).y,
                **extra_args,
            )
            y = optax.apply_updates(y, step)
        step, x_state = optimizers.x.update(
            field(z.x, y).x,  # F_x(x, y), at the new y
            state.x,
            z.x,
            operator_fn=lambda x: field(x, y).x,
            **extra_args,
        )
        updates = MinMax(step, optax.tree.sub(y, z.y))
        return updates, AlternatingState(x_state, y_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _require_players(params) -> MinMax:
    """Refuse parameters that do not say which player has which."""
    if not isinstance(params, MinMax):
        raise ValueError(
            "params must be a jaxsp.MinMax(x, y), because the players take turns, got "
            f"{type(params).__name__}."
        )
    return params
