"""What an experiment gives back, and the loop that most of them share."""

import dataclasses
import functools
import importlib
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import flatten_util, lax

import jaxsp

__all__ = ["Measured", "MissingDataError", "Panel", "benchmark", "best", "distances"]
__all__ += ["double", "points"]


@dataclasses.dataclass(frozen=True)
class Panel:
    """One drawing.

    Attributes:
      title: what stands above.
      x: label of the horizontal axis, with its unit.
      y: label of the vertical axis, with its unit.
      lines: by name, the points (x, y) of each.
      levels: horizontal lines by name, such as a figure of the paper.
      log: the axes that are logarithmic: "x", "y", "xy" or "".
    """

    title: str
    x: str
    y: str
    lines: Mapping[str, tuple[Any, Any]]
    levels: Mapping[str, float] = dataclasses.field(default_factory=dict)
    log: str = "y"


@dataclasses.dataclass(frozen=True)
class Measured:
    """What came out for one seed.

    Attributes:
      values: numbers by name, which the claims are judged on.
      panels: the figure.
      pictures: PNG files to show beside it.
    """

    values: Mapping[str, float]
    panels: Sequence[Panel] = ()
    pictures: Sequence[pathlib.Path] = ()


class MissingDataError(Exception):
    """Data that an experiment needs are not on this machine; one line says which."""


def benchmark(name: str) -> Any:
    """A script of `benchmarks/` as a module, as where it is run."""
    root = pathlib.Path(__file__).parents[1] / "benchmarks"
    for path in (str(root), str(root / "network")):
        if path not in sys.path:
            sys.path.append(path)
    return importlib.import_module(name)


def double(experiment: Callable[[int, bool], Measured]) -> Callable[..., Measured]:
    """An experiment in double precision."""

    @functools.wraps(experiment)
    def run(seed, full):
        with jax.enable_x64(True):
            return experiment(seed, full)

    return run


def distances(
    problem: jaxsp.problems.Problem,
    make: Callable[[Any], Any],
    rates: Any,
    steps: int,
    *,
    seed: int = 0,
    noise: float = 0.0,
    every: int = 1,
    terms: bool = False,
) -> np.ndarray:
    r"""The relative squared distance to the solution, $|z - z^*|^2 / |z^0 - z^*|^2$.

    Args:
      problem: the game, of as many workers as its data have; $z^0 = 0$.
      make: `make(rate)`, a method over the axis `"workers"`.
      rates: a step size, or several, which run side by side in one program.
      steps: how many of its steps.
      seed: of the noise, and of the minibatches.
      noise: $\sigma^2$, the variance of an oracle call in all coordinates together;
        every call draws anew.
      every: steps from one distance to the next.
      terms: whether a worker's data have a second leading axis, of terms: then an
        iteration takes one of them, and the mean is the method's full operator.

    Returns:
      The distances of the workers' mean point (`jaxsp.methods.eval_params`), at the
      start and after every `every` steps, for each rate.
    """
    count = len(jax.tree.leaves(problem.data)[0])
    workers = jaxsp.Workers(count, jax.devices()[:1])
    zero = jax.tree.map(jnp.zeros_like, problem.z_star)
    flat, unravel = flatten_util.ravel_pytree(zero)
    scale = (noise / flat.size) ** 0.5
    axis = workers.axis_name

    def run(rate, data):
        method = make(rate)
        own = jax.random.fold_in(jax.random.key(seed), lax.axis_index(axis))

        def full(z):
            fields = jax.vmap(problem.operator, in_axes=(None, 0))(z, data)
            return jax.tree.map(lambda field: field.mean(0), fields)

        def oracle(z, key):
            if terms:
                number = len(jax.tree.leaves(data)[0])
                index = jax.random.randint(key, (), 0, number)
                return problem.operator(z, jax.tree.map(lambda v: v[index], data))
            field = problem.operator(z, data)
            if not noise:
                return field
            draw = scale * jax.random.normal(key, flat.shape, flat.dtype)
            return optax.tree.add(field, unravel(draw))

        def step(carry, index):
            z, state = carry
            first, second = jax.random.split(jax.random.fold_in(own, index))
            more = {"full_operator_fn": full} if terms else {}
            updates, state = method.update(
                oracle(z, first),
                state,
                z,
                operator_fn=lambda z: oracle(z, second),
                **more,
            )
            return (optax.apply_updates(z, updates), state), None

        def stretch(carry, indices):
            carry, _ = lax.scan(step, carry, indices)
            point = jaxsp.methods.eval_params(carry[1], carry[0])
            gap = optax.tree.sub(lax.pmean(point, axis), problem.z_star)
            return carry, optax.tree.norm(gap, squared=True)

        indices = jnp.arange(steps - steps % every).reshape(-1, every)
        return lax.scan(stretch, (zero, method.init(zero)), indices)[1]

    one = workers.map(run, in_axes=(None, 0))
    found = jax.jit(jax.vmap(one, in_axes=(0, None)))(
        jnp.atleast_1d(jnp.asarray(rates, flat.dtype)), problem.data
    )
    found = np.asarray(found[:, 0], np.float64)  # of worker 0: all know the mean
    found = found / float(optax.tree.norm(problem.z_star, squared=True))
    found = np.concatenate([np.ones((len(found), 1)), found], axis=1)
    return found if np.ndim(rates) else found[0]


def points(problem: jaxsp.problems.Problem, method: Any, steps: int) -> np.ndarray:
    """Where each worker takes its operator, step by step.

    Args:
      problem: the game, of as many workers as its data have; $z^0 = 0$.
      method: a method of one oracle call over the axis `"workers"`.
      steps: how many of its steps.

    Returns:
      The parameters before every step, [workers, steps, numbers].
    """
    count = len(jax.tree.leaves(problem.data)[0])
    workers = jaxsp.Workers(count, jax.devices()[:1])

    def run(data):
        def step(carry, _):
            z, state = carry
            updates, state = method.update(problem.operator(z, data), state, z)
            moved = optax.apply_updates(z, updates)
            return (moved, state), flatten_util.ravel_pytree(z)[0]

        zero = jax.tree.map(jnp.zeros_like, problem.z_star)
        return lax.scan(step, (zero, method.init(zero)), length=steps)[1]

    return np.asarray(jax.jit(workers.map(run))(problem.data))


def best(curves: np.ndarray, tail: int = 1) -> int:
    """Which curve ends lowest, by the mean of its last `tail` points."""
    ends = curves[:, -tail:].mean(1)
    return int(np.argmin(np.where(np.isfinite(ends), ends, np.inf)))
