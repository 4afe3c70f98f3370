"""What every problem is: the workers' operators, their data, a solution, constants."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxsp.operators import MinMax


class Problem(NamedTuple):
    r"""A game spread over workers.

    Attributes:
      operator: `operator(z, data)`, the operator of the worker who has `data`; for
        `Workers.map`.
      data: the workers' data, stacked: every leaf has a leading axis of M.
      z_star: the solution of the mean operator (on the feasible set, where there is
        one), as a `MinMax`.
      L: a Lipschitz constant of every $F_m$, so also of their mean.
      mu: the strong monotonicity of every $F_m$; 0 if there is none.
      project: the projection on the feasible set, a function of the point, or None if
        there are no constraints.
    """

    operator: Callable[..., MinMax]
    data: Any
    z_star: MinMax
    L: float
    mu: float
    project: Callable[[MinMax], MinMax] | None = None

    @property
    def operators(self) -> tuple[Callable[[MinMax], MinMax], ...]:
        """The workers' operators one by one, each a function of the point."""
        count = len(jax.tree.leaves(self.data)[0])
        return tuple(self._bind(m) for m in range(count))

    def mean_operator(self, z: MinMax) -> MinMax:
        r"""The problem's operator, $\frac1M \sum_m F_m(z)$."""
        fields = jax.vmap(self.operator, in_axes=(None, 0))(z, self.data)
        return jax.tree.map(lambda field: field.mean(0), fields)

    def _bind(self, m):
        data = jax.tree.map(lambda x: x[m], self.data)
        return lambda z: self.operator(z, data)
