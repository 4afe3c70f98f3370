"""Steps that no worker takes where one worker's are not finite."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxsp import _arguments, comm


class ApplyIfAllFiniteState(NamedTuple):
    """What `apply_if_all_finite` keeps; the same numbers on all workers.

    Attributes:
      skipped: the number of updates left out so far, an int32 scalar.
      in_a_row: how many of them were the last ones, an int32 scalar.
      inner: the state of the transformation inside.
    """

    skipped: chex.Array
    in_a_row: chex.Array
    inner: optax.OptState


def apply_if_all_finite(
    inner: optax.GradientTransformation,
    max_consecutive_errors: int,
    axis_name: comm.AxisName,
) -> optax.GradientTransformationExtraArgs:
    """Leave a step out on all workers where a number of it is not finite on any.

    It takes the place of `optax.apply_if_finite`, which decides worker by worker.
    Around what communicates that is never right. Workers that skip a step do not meet
    those who wait for them, or count other steps than they do: the run hangs, or its
    workers are in different rounds from then on.

    Every step is computed, and what it sends is sent and counted. If the gradients that
    came in or the updates that came out are not finite anywhere, all workers get zero
    updates and the state from before. The workers tell each other by one integer, which
    is not counted.

    Args:
      inner: any transformation; the whole chain of what communicates.
      max_consecutive_errors: how many steps may be left out in a row. The next one is
        taken as it is, so that a run that has diverged is seen to have.
      axis_name: the worker axis, `Workers.axis_name`.

    Returns:
      The transformation.

    Raises:
      ValueError: if `inner` is no transformation, or `max_consecutive_errors` no
        positive integer.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxsp, optax
      >>> workers = jaxsp.Workers(2)
      >>> mean = optax.chain(jaxsp.average(workers.axis_name), optax.sgd(1.0))
      >>> tx = jaxsp.transforms.apply_if_all_finite(mean, 5, workers.axis_name)
      >>> state = workers.map(tx.init)(jnp.zeros(2))
      >>> for gradient in ([1.0, jnp.nan], [1.0, 3.0]):
      ...   updates, state = workers.map(tx.update)(jnp.array(gradient), state)
      ...   print(updates)
      [0. 0.]
      [-2. -2.]
    """
    inner = _arguments.check_transformation("inner", inner)
    most = _arguments.check_count("max_consecutive_errors", max_consecutive_errors)
    _arguments.check_axis_name(axis_name)

    def init_fn(params):
        zero = jnp.zeros([], jnp.int32)
        return ApplyIfAllFiniteState(zero, zero, inner.init(params))

    def update_fn(updates, state, params=None, **extra_args):
        after, inner_state = inner.update(updates, state.inner, params, **extra_args)
        finite = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves((updates, after))]
        bad = comm.anywhere(~jnp.all(jnp.array(finite, bool)), axis_name)
        in_a_row = jnp.where(bad, state.in_a_row + 1, 0)
        skip = bad & (in_a_row <= most)

        def keep(new, old):
            if isinstance(new, comm.Traffic):  # it has been sent
                return new
            return jnp.where(skip, old, new)

        kept = jax.tree.map(
            keep,
            inner_state,
            state.inner,
            is_leaf=lambda x: isinstance(x, comm.Traffic),
        )
        after = jax.tree.map(lambda u: jnp.where(skip, jnp.zeros_like(u), u), after)
        skipped = state.skipped + skip.astype(jnp.int32)
        return after, ApplyIfAllFiniteState(skipped, in_a_row, kept)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
