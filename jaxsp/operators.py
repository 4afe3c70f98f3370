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

from jaxsp import _arguments

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
    _check_losses(has_aux, f=f)

    def operator(z, *args):
        x, y = z
        (grad_x, grad_y), aux = _ascent(f, (0, 1), has_aux)(x, y, *args)
        field = MinMax(grad_x, jax.tree.map(lambda g: -g, grad_y))
        return (field, aux) if has_aux else field

    return operator


def game(*losses: Callable[..., Any], has_aux: bool = False) -> Callable[..., Any]:
    r"""The operator of a game in which each player minimizes a loss of its own.

    $$F(z) = \big(\nabla_{z_1} f_1(z),\; \dots,\; \nabla_{z_n} f_n(z)\big), \qquad
    z = (z_1, \dots, z_n).$$

    Args:
      *losses: the loss `f_i(z_1, ..., z_n, *args)` of each of two or more players; i
        chooses `z_i`.
      has_aux: whether all losses return a pair of a scalar and anything else.

    Returns:
      `operator(z, *args)`, which takes one part for each player and returns as many: a
      `MinMax` of two players, a tuple of more. With `has_aux`, that and the auxiliary
      values, likewise.

    Raises:
      ValueError: if there are fewer than two losses, one is no function, or, when
        called, `z` has another number of parts.

    Example:
      >>> import jaxsp
      >>> F = jaxsp.game(lambda x, y: x**2 * y, lambda x, y: (y - x) ** 2)
      >>> field = F(jaxsp.MinMax(x=1.0, y=3.0))
      >>> print(float(field.x), float(field.y))
      6.0 4.0
    """
    _check_losses(has_aux, **{f"losses[{i}]": f for i, f in enumerate(losses)})
    if len(losses) < 2:
        raise ValueError(
            f"losses must be two functions or more, one for each player, got "
            f"{len(losses)}: write jaxsp.gradient(f) for one."
        )

    def one_each(parts):
        return MinMax(*parts) if len(losses) == 2 else tuple(parts)

    def operator(z, *args):
        z = tuple(z)
        if len(z) != len(losses):
            raise ValueError(
                f"z must have {len(losses)} parts, one for each player, got {len(z)}."
            )
        found = [_ascent(f, i, has_aux)(*z, *args) for i, f in enumerate(losses)]
        field, aux = map(one_each, zip(*found, strict=True))
        return (field, aux) if has_aux else field

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
    _check_losses(has_aux, f=f)

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


def _check_losses(has_aux, **losses):
    for name, f in losses.items():
        what = "a function of the players' parts (options have names, has_aux=True)"
        _arguments.check_callable(name, f, what)
    _arguments.check_flag("has_aux", has_aux)
