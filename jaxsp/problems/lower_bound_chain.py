r"""The game on which a method needs many exchanges, and what it proves."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsp import _arguments
from jaxsp.operators import MinMax, saddle
from jaxsp.problems.affine import Affine, payoff
from jaxsp.problems.problem import Problem
from jaxsp.topology import Topology


def lower_bound_chain(
    topology: Topology,
    dim: int,
    *,
    L: float,
    mu: float,
    ends: tuple[Sequence[int], Sequence[int]] | None = None,
) -> Problem:
    r"""The lower-bound instance: every coordinate has to cross the graph to be opened.

    Let $A_1$ be the identity with $-2$ at $(2,3), (4,5), \dots$ and $A_2$ with $-2$ at
    $(1,2), (3,4), \dots$. With $B_1$ and $B_2$ two sets of workers,

    $$f_m = \tfrac\mu2 |x|^2 - \tfrac\mu2 |y|^2 + \begin{cases}
    \frac{M}{2|B_1|} \big(\frac L2 x^\top A_1 y + \frac{L^2}{2\mu} y_1\big) &
      m \in B_1, \\
    \frac{M}{2|B_2|} \frac L2 x^\top A_2 y & m \in B_2, \\
    0 & \text{for the others,} \end{cases}$$

    so that with $A = (A_1 + A_2)/2$, the identity minus the superdiagonal of ones,

    $$f = \tfrac L2 x^\top A y + \tfrac\mu2 |x|^2 - \tfrac\mu2 |y|^2
    + \tfrac{L^2}{4\mu} y_1.$$

    Only $B_1$ can open coordinate 1 and the odd ones after it, only $B_2$ the even
    ones, each once it has heard of the one before. A method that starts at zero, moves
    in the span of operators and mixes with neighbours has after $K$ exchanges at most
    `max_nonzero(K, distance)` nonzero coordinates of `x`, and of `y`, on any worker,
    whatever the number of local calls; so it is no closer to the solution than
    `distance_lower_bound`. As `dim` grows the solution is $y^*_i \to q^i / (1 - q)$,
    $x^* = -\frac{L}{2\mu} A y^*$, with `chain_q`.

    Args:
      topology: the graph, fixed and undirected.
      dim: the dimension of `x` and of `y`.
      L: the coupling. The mean operator's Lipschitz constant is
        $\sqrt{\mu^2 + L^2 |A|^2 / 4}$ with $|A| = 2 \cos(\pi / (2 n + 1))$ for $n$ =
        `dim`, so it is below $\sqrt{\mu^2 + L^2}$ and tends to it. The workers' own are
        larger, $\sqrt{\mu^2 + ((1 + \sqrt 2) M L / 4 |B|)^2}$ in an end set B, and grow
        with M unless the sets do.
      mu: the strong monotonicity of every $F_m$, above 0.
      ends: the workers of $B_1$ and of $B_2$; None for one each, at a distance of
        `topology.diameter`. The distance that counts is that between the sets.

    Returns:
      The problem. Its `L` is the largest of the workers' constants.

    Raises:
      ValueError: for a bad argument.

    Example:
      >>> import jaxsp
      >>> path = jaxsp.topology.path(5)
      >>> problem = jaxsp.problems.lower_bound_chain(path, 6, L=1.0, mu=0.5)
      >>> print(*(f"{y:.3f}" for y in problem.z_star.y))
      0.618 0.236 0.090 0.034 0.013 0.004

    References:
      Beznosikov, Samokhin, Gasnikov, Distributed Saddle-Point Problems: Lower Bounds,
      Near-Optimal and Robust Algorithms, 2020, arXiv 2010.13112.
    """
    if not isinstance(topology, Topology) or not topology.is_symmetric:
        raise ValueError(
            f"topology must be one undirected graph with W = Wᵀ, got "
            f"{_arguments.shown(topology)}: "
            "write jaxsp.topology.path(8)."
        )
    dim = _arguments.check_count("dim", dim)
    _check_constants(L, mu)
    first, second = _ends(topology) if ends is None else _check_ends(ends, topology)

    workers = topology.size
    coupling = np.zeros((workers, dim, dim))
    coupling[first] = workers / (2 * len(first)) * L / 2 * _matrix(dim, 1)
    coupling[second] = workers / (2 * len(second)) * L / 2 * _matrix(dim, 0)
    q = np.zeros((workers, dim))  # f has -qᵀy
    q[first, 0] = -workers / (2 * len(first)) * L**2 / (2 * mu)

    A = np.eye(dim) - np.eye(dim, k=1)
    # ∇f = 0: x = -(L/2μ) A y, and (AᵀA + α I) y = e₁ with α = 4μ²/L².
    y = np.linalg.solve(A.T @ A + 4 * mu**2 / L**2 * np.eye(dim), np.eye(dim)[0])
    z_star = MinMax(jnp.asarray(-L / (2 * mu) * A @ y), jnp.asarray(y))

    norms = np.linalg.norm(coupling[[first[0], second[0]]], 2, axis=(1, 2))
    lipschitz = math.hypot(mu, norms.max())  # of the skew H - μ I, and μ I
    parts = (coupling, np.zeros((workers, dim)), q, np.full(workers, mu))
    data = Affine(*map(jnp.asarray, parts))
    return Problem(saddle(payoff), data, z_star, lipschitz, mu)


def chain_q(L: float, mu: float) -> float:
    r"""The ratio of neighbouring coordinates of the chain's solution.

    $$q = \tfrac12 \big(\alpha + 2 - \sqrt{\alpha^2 + 4 \alpha}\big), \qquad
    \alpha = 4 \mu^2 / L^2, \qquad q \approx 1 - 2 \mu / L \text{ for } \mu \ll L.$$

    Args:
      L: as for `lower_bound_chain`.
      mu: likewise.

    Returns:
      $q$, between 0 and 1.

    Raises:
      ValueError: for constants that are not finite and above 0.

    Example:
      >>> import jaxsp
      >>> print(round(jaxsp.problems.chain_q(1.0, 0.5), 4))
      0.382
    """
    _check_constants(L, mu)
    alpha = 4 * mu**2 / L**2
    # The other root is larger than 1 and their product is 1: nothing cancels here.
    return 2 / (alpha + 2 + math.sqrt(alpha**2 + 4 * alpha))


def max_nonzero(exchanges: int, distance: int) -> int:
    r"""Coordinates that may be nonzero on any worker after $K$ exchanges.

    $$1 + \lfloor K / \Delta \rfloor,$$

    with any number of oracle calls before, between and after the exchanges.

    Args:
      exchanges: $K$, the mixings so far; a method with H of them in each of two
        half-steps makes 2H an iteration.
      distance: $\Delta$, the hops between the two end sets.

    Returns:
      The count; `dim` limits it too.

    Raises:
      ValueError: for a bad argument.
    """
    exchanges = _arguments.check_count("exchanges", exchanges, minimum=0)
    return 1 + exchanges // _arguments.check_count("distance", distance)


def distance_lower_bound(z_star: MinMax, nonzero: int) -> jax.Array:
    r"""No point with so few nonzero coordinates is closer to the solution than this.

    $$\sqrt{\textstyle\sum_{i > s} (x^*_i)^2 + (y^*_i)^2} \qquad
    \text{for } s \text{ nonzero coordinates.}$$

    Args:
      z_star: the chain's solution.
      nonzero: $s$, from `max_nonzero`.

    Returns:
      The bound, a scalar.

    Raises:
      ValueError: for a bad argument.
    """
    nonzero = _arguments.check_count("nonzero", nonzero, minimum=0)
    leaves = _arguments.check_arrays("z_star", z_star)
    if any(jnp.ndim(leaf) != 1 for _, leaf in leaves):
        _arguments.refuse("z_star", "a MinMax of vectors", z_star)
    return optax.tree.norm([jnp.asarray(leaf)[nonzero:] for _, leaf in leaves])


def rounds_lower_bound(
    epsilon: float,
    L: float,
    mu: float,
    *,
    diameter: float | None = None,
    chi: float | None = None,
) -> float:
    r"""Exchanges to reach accuracy $\varepsilon$, up to a constant.

    $$\Delta \frac L\mu \log \frac1\varepsilon \text{ (centralized)}, \qquad
    \sqrt\chi\, \frac L\mu \log \frac1\varepsilon \text{ (decentralized).}$$

    Args:
      epsilon: the accuracy relative to the start, between 0 and 1.
      L: the Lipschitz constant of the mean operator.
      mu: the strong monotonicity.
      diameter: $\Delta$, for the centralized bound.
      chi: $\chi$, for the decentralized bound; one of the two is required.

    Returns:
      The expression, without its unknown constant.

    Raises:
      ValueError: for a bad argument.

    Example:
      >>> import jaxsp
      >>> path = jaxsp.topology.path(9)
      >>> rounds = jaxsp.problems.rounds_lower_bound
      >>> print(round(rounds(1e-3, 10.0, 1.0, diameter=path.diameter)))
      553
      >>> print(round(rounds(1e-3, 10.0, 1.0, chi=path.chi)))
      392
    """
    required = "above 0 and below 1"
    _arguments.check_number("epsilon", epsilon, lambda e: 0 < e < 1, required)
    _check_constants(L, mu)
    if (diameter is None) == (chi is None):
        given = _arguments.shown(dict(diameter=diameter, chi=chi))
        raise ValueError(
            "one of diameter and chi is required, for the centralized or the "
            f"decentralized bound, got {given}."
        )
    _arguments.check_nonnegative("diameter", 0 if diameter is None else diameter)
    _arguments.check_nonnegative("chi", 0 if chi is None else chi)
    crossing = diameter if diameter is not None else math.sqrt(chi or 0)
    return crossing * L / mu * math.log(1 / epsilon)


def calls_lower_bound(epsilon: float, mu: float, sigma: float, workers: int) -> float:
    r"""Stochastic oracle calls of a worker to reach accuracy, up to a constant.

    $$\frac{\sigma^2}{M \mu^2 \varepsilon},$$

    to be added to `rounds_lower_bound`; here $\varepsilon$ bounds $E|z - z^*|^2$.

    Args:
      epsilon: the accuracy, above 0.
      mu: the strong monotonicity.
      sigma: the noise, $E|F_m(z; \xi) - F_m(z)|^2 \le \sigma^2$.
      workers: M.

    Returns:
      The expression, without its unknown constant.

    Raises:
      ValueError: for a bad argument.
    """
    _arguments.check_positive("epsilon", epsilon)
    _check_constants(1.0, mu)
    _arguments.check_nonnegative("sigma", sigma)
    workers = _arguments.check_count("workers", workers)
    return sigma**2 / (workers * mu**2 * epsilon)


def _matrix(dim, start):
    """The identity with -2 above the diagonal at every second row from start."""
    matrix = np.eye(dim)
    row = np.arange(start, dim - 1, 2)
    matrix[row, row + 1] = -2
    return matrix


def _ends(topology):
    """One worker each for the end sets, as far apart as any two are."""
    edges = topology.to_matrix() != 0
    heard = np.eye(topology.size, dtype=bool)
    while True:
        apart = np.argwhere(~heard)
        if len(apart) == 0:
            raise ValueError("topology must have two workers or more, got one.")
        further = heard | (heard.astype(int) @ edges > 0)
        if (further == heard).all():
            raise ValueError("topology must be connected, got parts that never meet.")
        if further.all():
            a, b = apart[0]
            return [int(a)], [int(b)]
        heard = further


def _check_ends(ends, topology):
    try:
        first, second = (
            sorted(_arguments.check_count("ends", m, minimum=0) for m in end)
            for end in ends
        )
    except (TypeError, ValueError):
        first, second = [], []
    together = [*first, *second]
    if not first or not second or len(set(together)) < len(together):
        raise ValueError(
            "ends must be two sets of workers with none in common, such as "
            f"([0], [{topology.size - 1}]), got {_arguments.shown(ends)}."
        )
    if not 0 <= min(together) <= max(together) < topology.size:
        raise ValueError(
            f"ends must name workers from 0 to {topology.size - 1}, got {ends!r}."
        )
    return first, second


def _check_constants(L, mu):
    for name, value in (("L", L), ("mu", mu)):
        _arguments.check_positive(name, value)
