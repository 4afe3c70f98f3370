"""Optimistic descent: the look ahead uses the past gradient."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxsp import _arguments


class PastExtragradientState(NamedTuple):
    r"""What `past_extragradient` keeps.

    Attributes:
      count: the number of updates so far, an int32 scalar.
      ahead: $\eta G_{\mathrm{prev}}$, by which the parameters lie ahead of $Y$.
      combine: the state of the transformation of the full point.
    """

    count: chex.Array
    ahead: optax.Updates
    combine: optax.OptState


def past_extragradient(
    learning_rate: optax.ScalarOrSchedule,
    combine: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Past extragradient (optimistic descent), one oracle call an update.

    $$Z = Y - \eta\, G_{\mathrm{prev}}, \qquad G = F(Z), \qquad
    X = Y - \eta\, G, \qquad Y \leftarrow \mathrm{combine}(X), \qquad
    G_{\mathrm{prev}} \leftarrow G.$$

    The parameters are $Z$, the point where the next gradient is taken. It starts at the
    initial parameters with $G_{\mathrm{prev}} = 0$, and moves in one update by
    $Z \leftarrow \mathrm{combine}(Z + \eta G_{\mathrm{prev}} - \eta G) - \eta G$;
    without `combine` and with a constant rate that is optimistic gradient descent,
    $Z \leftarrow Z - 2 \eta G + \eta G_{\mathrm{prev}}$. The point to report is $Y$,
    `jaxsp.methods.eval_params(state, params)`. With a schedule, $\eta_k$ is the rate of
    both lines of iteration $k$, so the update of iteration $k$ ends with $\eta_{k+1}$;
    `optax.inject_hyperparams` knows only the present rate, and gives that to both.

    Args:
      learning_rate: $\eta$, a number or a schedule.
      combine: what happens to the full point $X$, as a transformation of the update
        that leads to it: `gossip(...)` makes DPOSG of it. None is nothing.

    Returns:
      The transformation; `update` needs `params`.

    Raises:
      ValueError: if `learning_rate` is not a schedule or a number above zero, or
        `update` is called without `params`.

    Example:
      >>> import jaxsp, optax
      >>> F = jaxsp.saddle(lambda x, y: x * y)
      >>> tx = jaxsp.transforms.past_extragradient(0.3)
      >>> z = jaxsp.MinMax(1.0, 1.0)
      >>> state = tx.init(z)
      >>> for _ in range(200):
      ...   updates, state = tx.update(F(z), state, z)
      ...   z = optax.apply_updates(z, updates)
      >>> print(f"{float(abs(z.x) + abs(z.y)):.1e}")
      6.1e-05

    References:
      Popov, A Modification of the Arrow-Hurwicz Method for Search of Saddle Points,
      1980.
      Daskalakis, Ilyas, Syrgkanis, Zeng, Training GANs with Optimism, 2018,
      arXiv 1711.00141.
    """
    _arguments.check_learning_rate(learning_rate)
    transform = _arguments.check_transformation(
        "combine", optax.identity() if combine is None else combine
    )

    def rate(count):
        return learning_rate(count) if callable(learning_rate) else learning_rate

    def scaled(rate, tree):
        return jax.tree.map(lambda g: jnp.asarray(rate, jnp.result_type(g)) * g, tree)

    def init_fn(params):
        return PastExtragradientState(
            count=jnp.zeros([], jnp.int32),
            ahead=optax.tree.zeros_like(params),
            combine=transform.init(params),
        )

    def update_fn(updates, state, params=None, **extra_args):
        params = _arguments.require_params(params)
        count = jnp.asarray(optax.safe_increment(state.count))
        push = optax.tree.sub(state.ahead, scaled(rate(state.count), updates))
        moved, combined = transform.update(  # Y − Z, where Z + push = X
            push, state.combine, params, **extra_args
        )
        ahead = scaled(rate(count), updates)
        updates = optax.tree.sub(moved, ahead)  # Z ← Y − η G
        return updates, PastExtragradientState(count, ahead, combined)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
