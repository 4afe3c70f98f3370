r"""The adversary of a loss: projected ascent in a ball around every example.

$$\min_\theta \max_{\|\delta_i\| \le \epsilon} \frac1B \sum_{i=1}^B
\ell(\theta, \delta_i; i)$$

is a saddle-point problem, `jaxsp.saddle(f)` of `f(theta, delta, *args)`. Its players
are unlike: $\theta$ is one for all workers and lives on; $\delta$ has a row for each
example, so that it belongs to the worker that has drawn the example, is neither
averaged nor sent, and ends with the step. `inner_maximum` therefore plays $\delta$ to
the end at every point and leaves an operator of $\theta$ alone, for any optax
transformation: what averages and compresses sees the gradient of $\theta$, and nothing
else travels.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxsp import projections
from jaxsp._arguments import check_count
from jaxsp.operators import MinMax, saddle

__all__ = ["NORMS", "Attack", "inner_maximum"]

NORMS = ("l2", "linf")


@dataclasses.dataclass(frozen=True)
class Attack:
    r"""Projected ascent on perturbations of examples, along the operator's part `y`.

    $$\delta_i \leftarrow P\big(\delta_i + a \, d(\nabla_{\delta_i} f)\big), \qquad
    d(g) = g / \|g\|_2 \text{ or } \mathrm{sign}(g),$$

    the steepest direction of the norm, for each example by itself: $P$ is
    `jaxsp.projections.ball` of its rows of all leaves together, or `box` of every
    entry. The mean over the examples in $f$ does not matter then.

    Attributes:
      radius: $\epsilon$, at least 0.
      steps: of ascent; 0 leaves the start as it is.
      norm: "l2" or "linf".
      step_size: $a$; None takes $2.5 \epsilon$ by the number of steps, so that the
        border is reached from everywhere.

    Raises:
      ValueError: for a bad value.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxsp
      >>> from jaxsp.robust import Attack
      >>> F = jaxsp.saddle(lambda w, shift, x: jnp.mean((x + shift) @ w))
      >>> w, x = jnp.array([3.0, 4.0]), jnp.zeros((1, 2))
      >>> print(Attack(radius=0.5, steps=3).ascend(F, w, x, x))
      [[0.3 0.4]]

    References:
      Madry, Makelov, Schmidt, Tsipras, Vladu, Towards Deep Learning Models Resistant to
      Adversarial Attacks, 2018, arXiv 1706.06083. Zhu, Cheng, Gan, Sun, Goldstein, Liu,
      FreeLB: Enhanced Adversarial Training for Natural Language Understanding, 2020,
      arXiv 1909.11764.
    """

    radius: float
    steps: int
    norm: str = "l2"
    step_size: float | None = None

    def __post_init__(self):
        check_count("steps", self.steps, minimum=0)
        if self.norm not in NORMS:
            raise ValueError(f"norm must be one of {NORMS}, got {self.norm!r}.")
        sizes = {"radius": (self.radius, 0.0)}
        if self.step_size is not None:
            sizes["step_size"] = self.step_size, float(np.finfo(np.float32).tiny)
        for name, (value, least) in sizes.items():
            number = isinstance(value, int | float | np.number)
            if isinstance(value, bool) or not number or not least <= value < np.inf:
                above = "at least" if name == "radius" else "above"
                raise ValueError(f"{name} must be finite and {above} 0, got {value!r}.")

    def ascend(
        self, operator: Callable[..., MinMax], x: Any, start: Any, *args: Any
    ) -> Any:
        r"""The perturbations after the ascent.

        Args:
          operator: `operator(MinMax(x, y), *args)`, such as `jaxsp.saddle(f)`; of what
            it returns `y` is used, and `x` is not computed where all is compiled.
          x: the point of the other player, fixed.
          start: a pytree of perturbations in the ball, such as zeros, each leaf with a
            leading axis of examples.
          *args: what else the operator takes.

        Returns:
          A tree like `start`, in the ball.
        """
        rate = self.step_size or 2.5 * self.radius / max(self.steps, 1)

        def step(_, delta):
            field = operator(MinMax(x, delta), *args).y  # −∇_δ f
            return self.project(
                jax.tree.map(
                    lambda v, d: v - jnp.asarray(rate, v.dtype) * d,
                    delta,
                    self._direction(field),
                )
            )

        return lax.fori_loop(0, self.steps, step, start)

    def project(self, delta: Any) -> Any:
        """Every example's perturbation in the ball."""
        if self.norm == "linf":
            return projections.box(delta, -self.radius, self.radius)
        return jax.vmap(lambda one: projections.ball(one, self.radius))(delta)

    def _direction(self, field):
        if self.norm == "linf":
            return jax.tree.map(jnp.sign, field)
        return jax.vmap(_unit)(field)


def _unit(tree):
    """A vector of norm 1, or 0 where there is none; squares do not underflow."""
    leaves = jax.tree.leaves(tree)
    largest = jnp.stack([jnp.max(jnp.abs(v), initial=0) for v in leaves]).max()
    tree = jax.tree.map(lambda v: v / jnp.where(largest > 0, largest, 1), tree)
    norm = optax.tree.norm(tree)
    return jax.tree.map(lambda v: v / jnp.where(norm > 0, norm, 1), tree)


def inner_maximum(
    f: Callable[..., Any], attack: Attack, has_aux: bool = False
) -> Callable[..., Any]:
    r"""The operator of the outer player where the inner one has played to the end.

    $$F(\theta) = \nabla_\theta f(\theta, \delta_K(\theta)), \qquad \delta_K(\theta)
    \text{ after } K \text{ steps of ascent at } \theta,$$

    which by Danskin's theorem is the gradient of $\max_\delta f(\theta, \delta)$ where
    $\delta_K$ is the only maximum. The ascent is not differentiated through. Both parts
    come of one `jaxsp.saddle(f)`.

    Every worker calls it with its own examples; what it returns goes into any
    transformation over the workers, `chain(jaxsp.average(channel), optax.adamw(rate))`
    say, or, as `operator_fn=`, into one that asks for the operator at another point.

    Args:
      f: `f(theta, delta, *args)`, a scalar, or a pair with something else when
        `has_aux`; a mean over examples.
      attack: how $\delta$ is played.
      has_aux: whether `f` returns a pair.

    Returns:
      `operator(theta, start, *args)` with `start` the perturbations to begin with. It
      returns a tree like `theta`; with `has_aux`, that and the auxiliary value at
      $\delta_K$.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxsp.robust import Attack, inner_maximum
      >>> f = lambda w, shift, x: jnp.mean((x + shift) @ w)
      >>> F = inner_maximum(f, Attack(radius=0.5, steps=3))
      >>> print(F(jnp.array([3.0, 4.0]), jnp.zeros((1, 2)), jnp.ones((1, 2))))
      [1.3 1.4]
    """
    operator = saddle(f, has_aux)

    def at(z, *args):
        return operator(z, *args)[0] if has_aux else operator(z, *args)

    def outer(theta, start, *args):
        delta = attack.ascend(at, theta, start, *args)
        found: Any = operator(MinMax(theta, delta), *args)
        return (found[0].x, found[1]) if has_aux else found.x

    return outer
