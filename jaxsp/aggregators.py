r"""What becomes of the workers' vectors in the place of their mean, if some are bad.

One worker whose vector is wrong, be it a flipped sign, noise or not a number, can put
the mean anywhere. Each rule here stays near the good workers' vectors while fewer than
half are bad. `jaxsp.channel(axis_name, aggregate=...)` takes one.

Below, $x_m$ are the vectors of $M$ workers. Numbers that are not finite count as large
in the rules that sort, and vectors with such a number are left out by the others.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxsp import _arguments

__all__ = [
    "Aggregator",
    "centered_clipping",
    "coordinate_median",
    "geometric_median",
    "trimmed_mean",
]

_ITERATIONS = 8


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Aggregator:
    """How one vector is made of those of all workers: a pure function, no state.

    Attributes:
      name: what it is called in messages.
      combine: `combine(stacks) -> vectors`. A model is a list of arrays; in `stacks`
        each has a leading axis of the workers, in `vectors` it has not. They are of
        one floating dtype each, of float32 at least.
      coordinatewise: whether each number of the result depends on the numbers in its
        own place alone. If so, blocks of a model may be combined apart.
    """

    name: str
    combine: Callable[[list[jax.Array]], list[jax.Array]]
    coordinatewise: bool = False

    def __post_init__(self):
        _arguments.check_instance("name", self.name, str, "a text")
        _arguments.check_callable("combine", self.combine)
        _arguments.check_flag("coordinatewise", self.coordinatewise)

    def __repr__(self) -> str:
        return self.name


def coordinate_median() -> Aggregator:
    r"""The median of each coordinate, $\mathrm{med}_m\, x_{m,i}$.

    Of an even number of workers it is the mean of the two in the middle. It stays
    between the good workers' numbers while fewer than half of all are bad. Where
    workers differ it is not their mean, even if all are good.

    Returns:
      The aggregator; it goes coordinate by coordinate.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxsp
      >>> workers = jaxsp.Workers(3)
      >>> median = jaxsp.aggregators.coordinate_median()
      >>> tx = jaxsp.average(jaxsp.channel(workers.axis_name, aggregate=median))
      >>> u = jnp.array([1.0, 3.0, -1e9])
      >>> print(workers.map(lambda u: tx.update(u, tx.init(u))[0])(u))
      [1. 1. 1.]

    References:
      Yin, Chen, Kannan, Bartlett, Byzantine-Robust Distributed Learning: Towards
      Optimal Statistical Rates, 2018, arXiv 1803.01498.
    """
    return Aggregator(
        "coordinate_median()",
        lambda stacks: [_median(x) for x in stacks],
        coordinatewise=True,
    )


def trimmed_mean(b: int) -> Aggregator:
    r"""The mean of each coordinate without its $b$ largest and $b$ smallest numbers.

    $$\frac1{M - 2b} \sum_{j=b+1}^{M-b} x_{(j),i}, \qquad
    x_{(1),i} \le \dots \le x_{(M),i}.$$

    It stays between the good workers' numbers while at most $b$ are bad; what it loses
    is the good numbers that it trims. With $b = 0$ it is the mean.

    Args:
      b: how many to leave out at either end, fewer than half of the workers.

    Returns:
      The aggregator; it goes coordinate by coordinate.

    Raises:
      ValueError: if `b` is not an integer of at least 0; when used, if not one of the
        workers would be left.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxsp
      >>> u = jnp.array([[1.0], [2.0], [3.0], [-1e9]])
      >>> print(jaxsp.aggregators.trimmed_mean(1).combine([u])[0])
      [1.5]

    References:
      As `coordinate_median`.
    """
    b = _arguments.check_count("b", b, minimum=0)

    def trimmed(x):
        if len(x) <= 2 * b:
            raise ValueError(
                f"b must be below half of the number of workers, which is {len(x)}, "
                f"got {b}: write jaxsp.aggregators.trimmed_mean({(len(x) - 1) // 2}) "
                "or less."
            )
        return jnp.mean(jnp.sort(x, axis=0)[b : len(x) - b], axis=0)

    return Aggregator(
        f"trimmed_mean({b})",
        lambda stacks: [trimmed(x) for x in stacks],
        coordinatewise=True,
    )


def geometric_median(iterations: int = _ITERATIONS, eps: float = 1e-6) -> Aggregator:
    r"""The point whose distances to all vectors have the least sum.

    $$\arg\min_v \sum_m |x_m - v|, \qquad
    v \leftarrow \frac{\sum_m \beta_m x_m}{\sum_m \beta_m}, \quad
    \beta_m = \frac1{\max(\epsilon, |x_m - v|)},$$

    by Weiszfeld's iteration, from the median of each coordinate; the norm is over the
    whole model. It does not depend on the coordinates, as `coordinate_median` does, and
    breaks down at half of the workers too.

    Args:
      iterations: how many times $v$ is moved. Of ten workers, three of them bad, five
        came within 0.1 % of the limit, on each of ten seeds.
      eps: $\epsilon$, the distance below which a vector counts no more; bad workers
        move the result by about as much.

    Returns:
      The aggregator, which needs whole vectors.

    Raises:
      ValueError: for a bad argument.

    References:
      Pillutla, Kakade, Harchaoui, Robust Aggregation for Federated Learning, 2019,
      arXiv 1912.13445.
    """
    iterations = _arguments.check_count("iterations", iterations)
    _arguments.check_positive("eps", eps)

    def combine(stacks):
        stacks, finite = _without_what_is_not_finite(stacks)

        def move(_, v):
            beta = jnp.where(finite, 1 / jnp.maximum(_distances(stacks, v), eps), 0)
            share = beta / jnp.sum(beta)
            return [_weighted(share, x) for x in stacks]

        return jax.lax.fori_loop(0, iterations, move, [_median(x) for x in stacks])

    return Aggregator(f"geometric_median({iterations})", combine)


def centered_clipping(radius: float, iterations: int = _ITERATIONS) -> Aggregator:
    r"""The mean of what is clipped to a ball around the aggregate itself.

    $$v \leftarrow v + \frac1M \sum_m \min\Big(1, \frac{\tau}{|x_m - v|}\Big)
    (x_m - v),$$

    from the median of each coordinate. The paper starts from the aggregate of the step
    before, which a channel does not remember; the norm is over the whole model. A bad
    worker moves the result by $\tau / M$ an iteration, and good ones within $\tau$ of
    it are averaged as they are: the radius should be about their spread.

    Args:
      radius: $\tau$, in units of what is averaged: of gradients before an optimizer.
      iterations: how many times $v$ is moved.

    Returns:
      The aggregator, which needs whole vectors.

    Raises:
      ValueError: for a bad argument.

    References:
      Karimireddy, He, Jaggi, Learning from History for Byzantine Robust Optimization,
      2021, arXiv 2012.10333.
    """
    _arguments.check_positive("radius", radius)
    iterations = _arguments.check_count("iterations", iterations)

    def combine(stacks):
        stacks, finite = _without_what_is_not_finite(stacks)

        def move(_, v):
            far = _distances(stacks, v)
            # Not radius / far, which is not finite where a vector is the center.
            share = jnp.where(finite, radius / jnp.maximum(far, radius), 0) / len(far)
            return [
                c + _weighted(share, x - c[None])
                for x, c in zip(stacks, v, strict=True)
            ]

        return jax.lax.fori_loop(0, iterations, move, [_median(x) for x in stacks])

    return Aggregator(f"centered_clipping({radius}, {iterations})", combine)


def _median(x):
    """The median along the first axis, where NaN is larger than all numbers."""
    middle = jnp.sort(x, axis=0)[(len(x) - 1) // 2 : len(x) // 2 + 1]
    return jnp.mean(middle, axis=0)


def _weighted(weights, x):
    return jnp.tensordot(weights.astype(x.dtype), x, 1)


def _distances(stacks, center):
    """How far each worker's whole vector is from the center, [M]."""
    squares = [
        jnp.sum((x - c[None]) ** 2, axis=tuple(range(1, x.ndim)))
        for x, c in zip(stacks, center, strict=True)
    ]
    widest = jnp.result_type(*(s.dtype for s in squares))
    return jnp.sqrt(sum(s.astype(widest) for s in squares))


def _without_what_is_not_finite(stacks):
    """The stacks, zeros in the place of such vectors, and whose are not, [M]."""
    finite = jnp.all(
        jnp.stack(
            [jnp.all(jnp.isfinite(x), axis=tuple(range(1, x.ndim))) for x in stacks]
        ),
        axis=0,
    )
    kept = [
        jnp.where(finite.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.zeros_like(x))
        for x in stacks
    ]
    return kept, finite
