"""Extragradient: a look ahead, and a step with what is seen there."""

from typing import NamedTuple

import optax

from jaxsp import _arguments


class ExtragradientState(NamedTuple):
    """What `extragradient` keeps.

    Attributes:
      base: the state of the base optimizer.
    """

    base: optax.OptState


def extragradient(
    optimizer: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    r"""Extragradient around any optimizer, two oracle calls an update.

    With $\mathrm{opt}$ the update that `optimizer` makes of a field at the point $z$,

    $$z_{1/2} = z + \mathrm{opt}(F(z)), \qquad
    z \leftarrow z + \mathrm{opt}(F(z_{1/2})).$$

    Both half-steps start from $z$, and the optimizer's state passes through both: with
    `optax.adam` this is ExtraAdam, and a schedule inside `optimizer` counts oracle
    calls, two an update. `update(F(z), state, z, operator_fn=F)` takes the field at `z`
    and a function of the point alone for the second call; whoever writes that function
    chooses whether it sees the same sample or a fresh one.

    What must happen at every oracle call (averaging, clipping, gossip of extrapolated
    points) goes inside, `extragradient(optax.chain(...))`; what happens once an
    iteration goes after it in a chain. A transformation chained *before* it touches
    only the first of the two gradients. All players look ahead together: write
    `extragradient(optax.partition(...))`, never a partition of extragradients, which
    moves one player at a time.

    Args:
      optimizer: any optax transformation.

    Returns:
      The transformation; `update` needs `params` and `operator_fn`.

    Raises:
      ValueError: if `update` is called without `params` or `operator_fn`.

    Example:
      The game `x * y`, on which plain descent moves away from the solution 0:

      >>> import jaxsp, optax
      >>> F = jaxsp.saddle(lambda x, y: x * y)
      >>> tx = jaxsp.extragradient(optax.sgd(0.5))
      >>> z = jaxsp.MinMax(1.0, 1.0)
      >>> state = tx.init(z)
      >>> for _ in range(100):
      ...   updates, state = tx.update(F(z), state, z, operator_fn=F)
      ...   z = optax.apply_updates(z, updates)
      >>> print(f"{float(abs(z.x) + abs(z.y)):.1e}")
      4.8e-05

    References:
      Korpelevich, The Extragradient Method for Finding Saddle Points and Other
      Problems, 1976.
      Gidel, Berard, Vignoud, Vincent, Lacoste-Julien, A Variational Inequality
      Perspective on Generative Adversarial Networks, 2019,
      arXiv 1802.10551 (ExtraAdam).
    """
    optimizer = _arguments.check_transformation("optimizer", optimizer)

    def init_fn(params):
        return ExtragradientState(base=optimizer.init(params))

    def update_fn(updates, state, params=None, *, operator_fn=None, **extra_args):
        params = _arguments.require_params(params)
        operator_fn = _arguments.require_operator(operator_fn)
        ahead, base = optimizer.update(updates, state.base, params, **extra_args)
        half = optax.apply_updates(params, ahead)  # z½ = z + opt(F(z))
        field = _arguments.call_operator(operator_fn, half)  # F(z½)
        updates, base = optimizer.update(field, base, params, **extra_args)
        return updates, ExtragradientState(base=base)  # z ← z + opt(F(z½))

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
