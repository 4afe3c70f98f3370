"""Optimistic descent: the look ahead uses the past gradient."""

from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxsp import _arguments


class PastExtragradientState(NamedTuple):
    r"""What `past_extragradient` keeps.

    Attributes:
      count: the number of updates so far, an int32 scalar.
      ahead: $\rho \eta G_{\mathrm{prev}}$, by which the parameters lie ahead of $Y$.
      combine: the state of the transformation of the full point.
    """

    count: chex.Array
    ahead: optax.Updates
    combine: optax.OptState


def past_extragradient(
    learning_rate: optax.ScalarOrSchedule,
    combine: optax.GradientTransformation | None = None,
    look_ahead: chex.Numeric = 1.0,
) -> optax.GradientTransformationExtraArgs:
    r"""Past extragradient (optimistic descent), one oracle call an update.

    $$Z = Y - \rho \eta\, G_{\mathrm{prev}}, \qquad G = F(Z), \qquad
    X = Y - \eta\, G, \qquad Y \leftarrow \mathrm{combine}(X), \qquad
    G_{\mathrm{prev}} \leftarrow G.$$

    The parameters are $Z$, the point where the next gradient is taken. It starts at the
    initial parameters with $G_{\mathrm{prev}} = 0$. With $\rho = 1$, without `combine`
    and with a constant rate it is optimistic gradient descent,
    $Z \leftarrow Z - 2 \eta G + \eta G_{\mathrm{prev}}$. The point to report is $Y$,
    `jaxsp.methods.eval_params(state, params)`. With a schedule, $\eta_k$ is the rate of
    both lines of iteration $k$, so the update of iteration $k$ ends with $\eta_{k+1}$;
    `optax.inject_hyperparams` knows only the present rate, and gives that to both.

    Args:
      learning_rate: $\eta$, a number or a schedule.
      combine: what happens to the full point $X$, as a transformation of the update
        that leads to it from $Y$: `gossip(...)` makes DPOSG of it. None is nothing.
      look_ahead: $\rho$, by how many steps the gradient is taken ahead. Where updates
        come one step late (`delay`), games need 2.

    Returns:
      The transformation; `update` needs `params`.

    Raises:
      ValueError: if `learning_rate` is not a schedule or a number above zero,
        `look_ahead` is not a number above zero, or `update` is called without `params`.

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
    _arguments.check_positive("look_ahead", look_ahead)
    transform = _arguments.check_transformation(
        "combine", optax.identity() if combine is None else combine
    )

    def rate(count) -> Any:
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
        moved, combined = transform.update(  # what leads from Y to X, and then to Y
            scaled(-rate(state.count), updates),
            state.combine,
            optax.tree.add(params, state.ahead),
            **extra_args,
        )
        ahead = scaled(look_ahead * rate(count), updates)
        # What a mean gives is alike on all workers; the state stays a worker's own.
        ahead = jax.tree.map(partial(jnp.where, True), ahead, state.ahead)
        # Z = Y − ρ η G, before and after
        updates = optax.tree.add(moved, optax.tree.sub(state.ahead, ahead))
        return updates, PastExtragradientState(count, ahead, combined)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
