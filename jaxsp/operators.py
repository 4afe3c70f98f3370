r"""Losses of a game turned into the field that its players descend.

Every method in jaxsp solves a variational inequality: find $z^*$ with
$\langle F(z^*), z - z^* \rangle \ge 0$. This module is the only place that knows
signs: `F` is always a *descent* field, every player moves along $-F$, and a
maximizing player's gradient is negated here once. Of complex parameters `jax.grad`
gives the conjugate of the direction of steepest ascent, and is conjugated here.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

__all__ = ["MinMax", "game", "gradient", "saddle"]


class MinMax(NamedTuple):
    """A point of a two-player game, or anything that has one part per player.

    Attributes:
      x: the first player's pytree (minimizes in a saddle-point problem).
      y: the second player's pytree (maximizes in a saddle-point problem).
    """

    x: Any
    y: Any


def saddle(f: Callable[..., Any], has_aux: bool = False) -> Callable[..., Any]:
    r"""The operator of the saddle-point problem $\min_x \max_y f(x, y)$.

    $$F(z) = \big(\nabla_x f(x, y),\; -\nabla_y f(x, y)\big), \qquad z = (x, y).$$

    Args:
      f: a function `f(x, y, *args)` with a scalar value, or a pair of a scalar and
        anything else when `has_aux`.
      has_aux: whether `f` returns such a pair.

    Returns:
      `operator(z, *args)`, which takes a `MinMax` (or any pair) and returns a `MinMax`
      of the same structure; with `has_aux`, that and the auxiliary value.

    Example:
      >>> import jaxsp
      >>> F = jaxsp.saddle(lambda x, y: x * y + x**2)
      >>> field = F(jaxsp.MinMax(x=1.0, y=3.0))
      >>> print(float(field.x), float(field.y))
      5.0 -1.0
    """

    def operator(z, *args):
        x, y = z
        (grad_x, grad_y), aux = _ascent(f, (0, 1), has_aux)(x, y, *args)
        field = MinMax(grad_x, jax.tree.map(lambda g: -g, grad_y))
        return (field, aux) if has_aux else field

    return operator


def game(
    f_x: Callable[..., Any], f_y: Callable[..., Any], has_aux: bool = False
) -> Callable[..., Any]:
    r"""The operator of a game in which each player minimizes a loss of its own.

    $$F(z) = \big(\nabla_x f_x(x, y),\; \nabla_y f_y(x, y)\big).$$

    Args:
      f_x: the loss `f_x(x, y, *args)` of the player who chooses `x`.
      f_y: the loss `f_y(x, y, *args)` of the player who chooses `y`.
      has_aux: whether both losses return a pair of a scalar and anything else.

    Returns:
      `operator(z, *args)` as `saddle` returns it; with `has_aux` the auxiliary value
      is `MinMax(aux of f_x, aux of f_y)`.

    Example:
      >>> import jaxsp
      >>> F = jaxsp.game(lambda x, y: x**2 * y, lambda x, y: (y - x) ** 2)
      >>> field = F(jaxsp.MinMax(x=1.0, y=3.0))
      >>> print(float(field.x), float(field.y))
      6.0 4.0
    """

    def operator(z, *args):
        x, y = z
        grad_x, aux_x = _ascent(f_x, 0, has_aux)(x, y, *args)
        grad_y, aux_y = _ascent(f_y, 1, has_aux)(x, y, *args)
        field = MinMax(grad_x, grad_y)
        return (field, MinMax(aux_x, aux_y)) if has_aux else field

    return operator


def gradient(f: Callable[..., Any], has_aux: bool = False) -> Callable[..., Any]:
    r"""The operator of plain minimization, $F(z) = \nabla f(z)$, for any pytree `z`.

    Args:
      f: a function `f(z, *args)` with a scalar value, or a pair when `has_aux`.
      has_aux: whether `f` returns a pair of a scalar and anything else.

    Returns:
      `operator(z, *args)`; with `has_aux`, the field and the auxiliary value.

    Example:
      >>> import jaxsp
      >>> print(float(jaxsp.gradient(lambda z: z**2)(3.0)))
      6.0
    """

    def operator(z, *args):
        field, aux = _ascent(f, 0, has_aux)(z, *args)
        return (field, aux) if has_aux else field

    return operator


def _ascent(f, argnums, has_aux):
    """The direction of steepest ascent, and what else `f` returns."""
    differentiate = jax.grad(f, argnums, has_aux=has_aux)

    def direction(*args):
        out = differentiate(*args)
        grad, aux = out if has_aux else (out, None)
        return jax.tree.map(jnp.conj, grad), aux

    return direction
