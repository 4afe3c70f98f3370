r"""Euclidean projections on simple sets, for problems with constraints.

$$P(v) = \arg\min_{p \in C} |p - v|.$$

A point of the set stays as it is (to rounding on the simplex), and what is not finite
comes out not finite, except for $-\infty$ on the simplex and in a box. A projection of
a game's point is made of those of the players, as in
`lambda z: MinMax(simplex(z.x), ball(z.y, 2.0))`. Between averages of local steps do not
project: project what has been averaged (see `jaxsp.methods.extra_step_local_sgd`).

Simplex and box are those of `optax.projections`, made accurate far from zero and in
half precision. The balls are not: optax's move points inside by a rounding error, and
fail at a radius of 0 and where squares overflow.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.flatten_util import ravel_pytree

from jaxsp import _arguments

__all__ = ["ball", "box", "l1_ball", "simplex"]


def simplex(tree: Any, total: float = 1.0) -> Any:
    r"""Each array on the simplex along its last axis, the others being a batch.

    $$p_i = \max(v_i - \tau, 0), \qquad \tau \text{ such that } \textstyle\sum_i p_i
    = \text{total}.$$

    On a `MinMax` it is the projection on the product of the players' simplices.

    Args:
      tree: a pytree of floating arrays of one dimension or more.
      total: the sum of the entries, above 0.

    Returns:
      A tree like `tree`.

    Raises:
      ValueError: for a bad argument.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxsp
      >>> print(jaxsp.projections.simplex(jnp.array([1.0, 0.5, -3.0])))
      [0.75 0.25 0.  ]

    References:
      Duchi, Shalev-Shwartz, Singer, Chandra, Efficient Projections onto the l1-Ball for
      Learning in High Dimensions, 2008.
    """
    _arguments.check_positive("total", total)
    for path, leaf in _check_floating(tree):
        if jnp.ndim(leaf) == 0 or jnp.shape(leaf)[-1] == 0:
            raise ValueError(
                f"tree{path} must have a last axis with entries, "
                f"got shape {jnp.shape(leaf)}."
            )
    return jax.tree.map(lambda v: _simplex(v, total), tree)


def ball(tree: Any, radius: float) -> Any:
    r"""The whole tree, as one vector, on the ball around zero in the $l_2$ norm.

    $$p = v \min\big(1, \text{radius} / \|v\|_2\big).$$

    Args:
      tree: a pytree of floating arrays.
      radius: at least 0.

    Returns:
      A tree like `tree`.

    Raises:
      ValueError: for a bad argument.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxsp
      >>> print(jaxsp.projections.ball(jnp.array([3.0, 4.0]), radius=2.5))
      [1.5 2. ]
    """
    _check_floating(tree)
    _arguments.check_nonnegative("radius", radius)
    v, unravel = _ravel(tree)
    # Relative to the largest entry the squares cannot overflow; nor can 1 / scale.
    scale = jax.lax.stop_gradient(jnp.max(jnp.abs(v), initial=0))
    limits = jnp.finfo(v.dtype)
    scale = jnp.clip(scale, 16 * limits.tiny, limits.max / 16)
    relative = v / scale
    square = jnp.sum(jnp.square(relative))
    norm = jnp.sqrt(jnp.where(square > 0, square, 1))
    return unravel(jnp.where(scale * norm > radius, relative * (radius / norm), v))


def l1_ball(tree: Any, radius: float) -> Any:
    r"""The whole tree, as one vector, on the ball around zero in the $l_1$ norm.

    $$p_i = \mathrm{sign}(v_i) \max(|v_i| - \tau, 0), \qquad \tau = 0 \text{ if }
    \|v\|_1 \le \text{radius, else such that } \|p\|_1 = \text{radius}.$$

    Args:
      tree: a pytree of floating arrays.
      radius: above 0.

    Returns:
      A tree like `tree`.

    Raises:
      ValueError: for a bad argument.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxsp
      >>> print(jaxsp.projections.l1_ball(jnp.array([3.0, -2.0, 0.5]), radius=2.0))
      [ 1.5 -0.5  0. ]
    """
    _check_floating(tree)
    _arguments.check_positive("radius", radius)
    v, unravel = _ravel(tree)
    if v.size == 0:
        return tree
    size = jnp.abs(v)
    return unravel(
        jnp.where(jnp.sum(size) > radius, jnp.sign(v) * _simplex(size, radius), v)
    )


def box(tree: Any, lower: Any, upper: Any) -> Any:
    r"""Every entry between its bounds, $p_i = \min(\max(v_i, l_i), u_i)$.

    Args:
      tree: a pytree of floating arrays.
      lower: $l$, a number for all entries or a tree like `tree` (its leaves may
        broadcast); `-math.inf` for none.
      upper: $u$, likewise.

    Returns:
      A tree like `tree`.

    Raises:
      ValueError: for a bad argument.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxsp
      >>> print(jaxsp.projections.box(jnp.array([-2.0, 0.5, 3.0]), 0.0, 1.0))
      [0.  0.5 1. ]
    """
    _check_floating(tree)
    structure = jax.tree.structure(tree)
    bounds = []
    for name, bound in (("lower", lower), ("upper", upper)):
        for path, leaf in _arguments.check_arrays(name, bound):
            if jnp.iscomplexobj(leaf):
                _arguments.refuse(f"{name}{path}", "real", leaf)
        if jax.tree.structure(bound) == jax.tree.structure(0) and not jnp.ndim(bound):
            bound = jax.tree.unflatten(structure, [bound] * structure.num_leaves)
        if jax.tree.structure(bound) != structure:
            raise ValueError(
                f"{name} must be a number or a tree like the projected one, {structure}"
                f", got {jax.tree.structure(bound)}."
            )
        bounds.append(bound)

    def check(low, high):
        traced = isinstance(low, Tracer) or isinstance(high, Tracer)
        # NumPy compares where all is compiled too; to JAX numbers are traced there.
        if not traced and not np.all(np.asarray(low) <= np.asarray(high)):
            raise ValueError(
                f"lower must be at most upper, got lower={low} and upper={high}."
            )

    jax.tree.map(check, *bounds)
    clipped = optax.projections.projection_box(tree, *bounds)
    return jax.tree.map(lambda p, v: p.astype(jnp.result_type(v)), clipped, tree)


def _simplex(v, total):
    """Every row on the simplex, by optax in float32 at least."""
    dtype = jnp.result_type(v)
    v = jnp.asarray(v, np.promote_types(dtype, np.float32))
    # A shift moves no projection, and relative to the largest entry sums stay accurate.
    v = v - v.max(-1, keepdims=True)
    project = optax.projections.projection_simplex
    with jax.numpy_dtype_promotion("standard"):  # which optax counts on
        rows = jax.vmap(project, (0, None))(v.reshape(-1, v.shape[-1]), total)
    return rows.reshape(v.shape).astype(dtype)


def _ravel(tree):
    """The tree as one vector of float32 or more, and the way back."""
    flat, unravel = ravel_pytree(tree)
    wide = np.promote_types(flat.dtype, np.float32)
    return flat.astype(wide), lambda v: unravel(v.astype(flat.dtype))


def _check_floating(tree):
    leaves = _arguments.check_arrays("tree", tree)
    for path, leaf in leaves:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(
                f"tree{path} must be floating point to be projected, got "
                f"{jnp.result_type(leaf)}: make it float32."
            )
    return leaves
