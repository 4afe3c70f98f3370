"""Extragradient in two calls, for loops that make one gradient a call."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxsp import _arguments


class AlternatingExtragradientState(NamedTuple):
    """What `alternating_extragradient` keeps.

    Attributes:
      ahead: whether the parameters are a half point now, a boolean scalar.
      start: the point $z$ that both half-steps start from.
      base: the state of the base optimizer.
    """

    ahead: chex.Array
    start: optax.Params
    base: optax.OptState


def alternating_extragradient(
    optimizer: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    r"""Extragradient around any optimizer, one ordinary gradient an update.

    Updates alternate between the look ahead and the step,

    $$z_{1/2} = z + \mathrm{opt}(F(z)), \qquad
    z \leftarrow z + \mathrm{opt}(F(z_{1/2})),$$

    so that $2n$ updates equal $n$ of `extragradient`. After an odd number of updates
    the parameters are the half point; the point to report is
    `jaxsp.methods.eval_params(state, params)`. What is chained before it, or stands
    inside, sees every gradient; a transformation after it in a chain acts in both
    half-steps.

    Args:
      optimizer: any optax transformation.

    Returns:
      The transformation; `update` needs `params`.

    Raises:
      ValueError: if `update` is called without `params`.

    Example:
      >>> import jaxsp, optax
      >>> F = jaxsp.saddle(lambda x, y: x * y)
      >>> tx = jaxsp.alternating_extragradient(optax.sgd(0.5))
      >>> z = jaxsp.MinMax(1.0, 1.0)
      >>> state = tx.init(z)
      >>> for _ in range(200):
      ...   updates, state = tx.update(F(z), state, z)
      ...   z = optax.apply_updates(z, updates)
      >>> print(f"{float(abs(z.x) + abs(z.y)):.1e}")
      4.8e-05

    References:
      Gidel, Berard, Vignoud, Vincent, Lacoste-Julien, A Variational Inequality
      Perspective on Generative Adversarial Networks, 2019, arXiv 1802.10551.
    """
    optimizer = _arguments.check_transformation("optimizer", optimizer)

    def init_fn(params):
        return AlternatingExtragradientState(
            ahead=jnp.zeros([], bool),
            # A copy: a loop that donates its buffers must not donate one twice.
            start=jax.tree.map(lambda p: jnp.array(p, copy=True), params),
            base=optimizer.init(params),
        )

    def update_fn(updates, state, params=None, **extra_args):
        params = _arguments.require_params(params)
        start = jax.tree.map(
            lambda z, p: jnp.where(state.ahead, z, p), state.start, params
        )
        step, base = optimizer.update(updates, state.base, start, **extra_args)
        target = optax.apply_updates(start, step)  # z½, or the next z
        updates = optax.tree.sub(target, params)
        return updates, AlternatingExtragradientState(~state.ahead, start, base)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
