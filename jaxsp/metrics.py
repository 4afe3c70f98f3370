"""How good a point is, how far workers are apart, and what they have sent."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from jaxsp import _arguments, comm

__all__ = [
    "BitsSent",
    "bits_sent",
    "consensus_distance",
    "distance",
    "duality_gap",
    "residual",
]


class BitsSent(NamedTuple):
    """Bits of every worker since `init`.

    Attributes:
      up: bits sent, uint64, of shape `[M]` for a stacked state and `[]` for one worker.
      down: bits received, likewise.
    """

    up: np.ndarray
    down: np.ndarray


def residual(operator: Callable[..., Any], z: Any) -> jax.Array:
    r"""The norm of the operator, $\|F(z)\|_2$: 0 at a solution without constraints.

    Args:
      operator: $F$, a function of the point.
      z: the point.

    Returns:
      A scalar.
    """
    _arguments.check_callable("operator", operator)
    _arguments.check_arrays("z", z)
    return optax.tree.norm(operator(z))


def distance(z: Any, z_star: Any) -> jax.Array:
    r"""The distance to the solution, $\|z - z^*\|_2$.

    Args:
      z: a point.
      z_star: the solution, a tree like it.

    Returns:
      A scalar.
    """
    _arguments.check_arrays("z", z)
    _arguments.check_arrays("z_star", z_star)
    structure = jax.tree.structure(z_star)
    if jax.tree.structure(z) != structure:
        _arguments.refuse("z", f"a tree like z_star, {structure}", z)
    return optax.tree.norm(optax.tree.sub(z, z_star))


def duality_gap(payoff: jax.Array, z: Any) -> jax.Array:
    r"""What the players of a matrix game could gain: 0 at an equilibrium, else more.

    $$\max_j (A^\top x)_j - \min_i (A y)_i$$

    for $\min_x \max_y x^\top A y$ over probability vectors.

    Args:
      payoff: $A$, of shape `[rows, columns]`; what the workers of
        `jaxsp.problems.matrix_game` have is averaged by `problem.data.mean(0)`.
      z: a `MinMax` of probability vectors of shapes `[rows]` and `[columns]`.

    Returns:
      A scalar.

    Raises:
      ValueError: if the shapes do not agree.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxsp
      >>> pennies = jnp.array([[1.0, -1.0], [-1.0, 1.0]])
      >>> z = jaxsp.MinMax(jnp.array([0.75, 0.25]), jnp.array([0.5, 0.5]))
      >>> print(jaxsp.metrics.duality_gap(pennies, z))
      0.5
    """
    array = isinstance(payoff, np.ndarray | jax.Array)
    if not (array and jnp.issubdtype(payoff.dtype, jnp.number)):
        _arguments.refuse("payoff", "a matrix of numbers", payoff)
    _arguments.check_arrays("z", z)
    if not (isinstance(z, tuple | list) and len(z) == 2):
        _arguments.refuse("z", "a MinMax of probability vectors", z)
    x, y = map(jnp.asarray, z)
    if jnp.shape(payoff) != (*jnp.shape(x), *jnp.shape(y)) or jnp.ndim(payoff) != 2:
        raise ValueError(
            "payoff must be a matrix with a row for each entry of z.x and a column for "
            f"each of z.y, got shapes {jnp.shape(payoff)}, {jnp.shape(x)} and "
            f"{jnp.shape(y)}: map over stacked points, average stacked payoffs."
        )
    return jnp.max(x @ payoff) - jnp.min(payoff @ y)


def consensus_distance(stacked: Any) -> jax.Array:
    r"""How far workers are from their mean, $\sqrt{\frac1M \sum_m \|z_m - \bar z\|^2}$.

    Args:
      stacked: the workers' parameters, every leaf with a leading axis of M.

    Returns:
      A scalar.

    Raises:
      ValueError: if a leaf is not of floating or complex numbers (a whole train state
        has a step count, and moments, which are no parameters), if leading axes differ,
        or in a function that `Workers.map` runs, where workers are not stacked.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxsp
      >>> print(jaxsp.metrics.consensus_distance(jnp.array([[0.0, 1.0], [6.0, 1.0]])))
      3.0
    """
    counts = set()
    for path, leaf in _arguments.check_arrays("stacked", stacked):
        kind, shape = jnp.result_type(leaf), jnp.shape(leaf)
        counts.add(shape[:1])
        if not jnp.issubdtype(kind, jnp.inexact) or not shape or len(counts) > 1:
            raise ValueError(
                "stacked must be the parameters of all workers, floating, with one "
                f"leading axis, but stacked{path} has shape "
                f"{shape} and type {kind}: give the parameters alone, as state.params."
            )
    if comm.inside_workers():
        raise ValueError(
            "stacked must be the parameters of all workers, but here runs one of them: "
            "call consensus_distance on what Workers.map returns."
        )

    def mean_square(x):
        mean = comm.sum_of_rows(x) / len(x)
        far = x.astype(mean.dtype) - mean[None]
        return jnp.sum(jnp.square(jnp.abs(far))) / len(x)

    leaves = map(jnp.asarray, jax.tree.leaves(stacked))
    return jnp.sqrt(sum(map(mean_square, leaves)))


def bits_sent(state: optax.OptState) -> BitsSent:
    """What a transformation has sent and received, exactly, read on the host.

    Args:
      state: the state of any transformation, of one worker or stacked; counts are found
        by their type wherever they are, and added. Over several processes
        `Workers.fetch(state)`.

    Returns:
      The bits up and down, for each worker.

    Raises:
      ValueError: if nothing in the state counts, or inside of `optax.MultiSteps` alone,
        or in a compiled function.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxsp
      >>> workers = jaxsp.Workers(4)
      >>> tx = jaxsp.gossip(jaxsp.topology.ring(4), axis_name=workers.axis_name)
      >>> params = jnp.zeros([4, 10], jnp.float32)
      >>> state = workers.map(tx.init)(params)
      >>> updates, state = workers.map(tx.update)(params, state, params)
      >>> print(jaxsp.metrics.bits_sent(state).up)  # 2 neighbours x 10 numbers x 32
      [640 640 640 640]
    """
    counts = comm.find_traffic(state)
    if not counts:
        raise ValueError(
            "state must hold the traffic of a transformation that communicates, such "
            "as jaxsp.average or jaxsp.gossip, and holds none."
        )
    if any(isinstance(limbs, Tracer) for c in counts for limbs in c):
        raise ValueError(
            "state must hold numbers, and is traced: bits_sent adds up 64-bit integers "
            "on the host. Return the state from the compiled function, then read it."
        )
    return BitsSent(
        up=np.asarray(sum(_integer(c.up) for c in counts)),
        down=np.asarray(sum(_integer(c.down) for c in counts)),
    )


def _integer(limbs) -> Any:
    limbs = np.asarray(limbs).astype(np.uint64)
    return (limbs[..., 0] << np.uint64(32)) | limbs[..., 1]
