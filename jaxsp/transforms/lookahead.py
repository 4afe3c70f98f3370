"""Some steps forward, and a part of the way back, all players together: Lookahead."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxsp import _arguments


class LookaheadState(NamedTuple):
    """What `lookahead` keeps.

    Attributes:
      count: the number of updates so far, an int32 scalar.
      slow: the point to which the next step back is made.
    """

    count: chex.Array
    slow: optax.Params


def lookahead(
    every: int, step_size: chex.Numeric = 0.5
) -> optax.GradientTransformationExtraArgs:
    r"""Go back a part of the way after every `every`-th update, all players at once.

    $$z + u \leftarrow s \leftarrow s + \alpha\,(z + u - s)
    \quad\text{after updates } k, 2k, 3k, \dots$$

    from $s = z$. In a game the points turn around the solution, and a chord of their
    circle comes closer to it than the circle does: descent-ascent, which moves away on
    bilinear games, converges. What the steps remember, such as moments, goes on.

    It belongs at the end of a chain, after everything that changes the step, and sends
    nothing; in `past_extragradient(..., combine=lookahead(...))` it moves the point
    that the look ahead starts from. Local steps of many workers have it without more:
    `jaxsp.sync(k, channel, outer=optax.sgd(alpha))`, where the way back is that of
    their mean. `optax.lookahead` makes the same points of pairs of parameters, so that
    gradients, `Workers` and `eval_params` would have to know of the pair; and it passes
    on no `operator_fn`, which `extragradient` inside it needs.

    Args:
      every: $k$, the updates from one step back to the next: a positive integer, or a
        hyperparameter of `optax.inject_hyperparams`.
      step_size: $\alpha$, above 0 and at most 1, the share of the way that is kept.

    Returns:
      The transformation; `update` needs `params`.

    Raises:
      ValueError: for a bad argument, an `update` without `params`, or a leaf of the
        parameters that is not floating point.

    Example:
      The game `x * y`, on which plain descent moves away from the solution 0:
      >>> import jaxsp, optax
      >>> F = jaxsp.saddle(lambda x, y: x * y)
      >>> tx = optax.chain(optax.sgd(0.3), jaxsp.transforms.lookahead(5))
      >>> z = jaxsp.MinMax(1.0, 1.0)
      >>> state = tx.init(z)
      >>> for _ in range(200):
      ...   updates, state = tx.update(F(z), state, z)
      ...   z = optax.apply_updates(z, updates)
      >>> print(f"{float(abs(z.x) + abs(z.y)):.0e}")
      2e-03

    References:
      Chavdarova, Pagliardini, Stich, Fleuret, Jaggi, Taming GANs with Lookahead-Minmax,
      2021, arXiv 2006.14567.
      Zhang, Lucas, Hinton, Ba, Lookahead Optimizer: k steps forward, 1 step back, 2019,
      arXiv 1907.08610.
    """
    every = _arguments.check_every("every", every)
    _arguments.check_probability("step_size", step_size)

    def init_fn(params):
        _arguments.check_floating(params)
        slow = jax.tree.map(lambda p: jnp.array(p, copy=True), params)
        return LookaheadState(count=jnp.zeros([], jnp.int32), slow=slow)

    def update_fn(updates, state, params=None, **extra_args):
        del extra_args
        params = _arguments.require_params(params)
        count = jnp.asarray(optax.safe_increment(state.count))
        due = count % every == 0

        def back(s, z, u):  # s + α (z + u − s)
            return s + jnp.asarray(step_size, s.dtype) * (z + u - s)

        point = jax.tree.map(back, state.slow, params, updates)
        slow, updates = jax.tree.map(
            lambda new, old: jnp.where(due, new, old),
            (point, optax.tree.sub(point, params)),
            (state.slow, updates),
        )
        return updates, LookaheadState(count, slow)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
