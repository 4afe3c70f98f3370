r"""One training step of all workers, compiled.

A worker's step draws two independent batches from its share of the data, takes its
field at `params` on the first and hands the transformation a function that takes it
anywhere on the second, so that methods of one and of two gradients are called alike:

    g_m = F_m(z_m; ξ_m);    z_m ← z_m + update(g_m, state_m, z_m, F_m(·; ξ'_m))

All that is random follows from a key, the step and the worker's index.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxsp import comm, methods, operators
from jaxsp.gan import data, models
from jaxsp.gan.losses import Losses
from jaxsp.operators import MinMax
from jaxsp.workers import Workers

__all__ = ["TrainState", "init_state", "make_step", "mean_generator"]


class TrainState(NamedTuple):
    """What a step takes and returns, stacked over workers.

    Attributes:
      step: how many steps are done, int32.
      params: the point where the next gradient is taken.
      opt_state: the transformation's state.
      ema: exponential moving average of the generator's parameters, for evaluation.
    """

    step: jax.Array
    params: MinMax
    opt_state: Any
    ema: Any


def init_state(
    gan: models.Gan,
    transformation: optax.GradientTransformation,
    workers: Workers,
    key: jax.Array,
) -> TrainState:
    """The state at step 0: all workers start from the same parameters.

    Args:
      gan: generator and discriminator.
      transformation: what turns a field into an update of the parameters.
      workers: who trains.
      key: a typed key, from which the parameters are drawn.

    Returns:
      The state, stacked, on the workers' devices; no two of its arrays share memory.
    """
    params = workers.replicate(models.init(gan, key))
    opt_state = jax.jit(workers.map(transformation.init))(params)
    step = jnp.zeros(workers.count, jnp.int32)
    return workers.shard(TrainState(step, params, opt_state, params.x))


def make_step(
    losses: Losses,
    transformation: optax.GradientTransformation,
    workers: Workers,
    *,
    batch_size: int,
    ema_decay: float = 0.999,
    steps_per_call: int = 1,
) -> Callable[..., tuple[TrainState, jax.Array]]:
    """Compile training steps of all workers.

    Args:
      losses: the losses of both players, each `f(x, y, batch, key)`.
      transformation: an optax transformation, which may use collectives over
        `workers.axis_name` and call `operator_fn`.
      workers: who trains.
      batch_size: examples a worker draws for one gradient.
      ema_decay: as in `TrainConfig`.
      steps_per_call: the most steps that one call can do.

    Returns:
      `step(state, shares, sizes, key, count)`, which does `count` steps, at most
      `steps_per_call`, and returns the state and the losses of generator and
      discriminator, float32 (workers, steps_per_call, 2), of which the first `count`
      rows are filled. It consumes `state`: the buffers are reused. `shares` and `sizes`
      are what `partition.stack` returns, `key` is a key all workers share.
    """
    update = optax.with_extra_args_support(transformation).update
    operator = operators.game(
        _with_value(losses.generator), _with_value(losses.discriminator), has_aux=True
    )

    def one_step(state, share, size, key):
        key = comm.worker_key(key, workers.axis_name)
        keys = jax.random.split(jax.random.fold_in(key, state.step), 4)

        def field_at(z, draw_key, noise_key):
            batch = data.draw(draw_key, share, size, batch_size)
            return operator(z, data.to_unit(batch), noise_key)

        z: Any = state.params
        g, values = field_at(z, *keys[:2])  # F_m(z; ξ)
        updates, opt_state = update(
            g,
            state.opt_state,
            z,
            operator_fn=lambda point: field_at(point, *keys[2:])[0],  # F_m(·; ξ')
        )
        z = optax.apply_updates(z, updates)
        reported: Any = methods.eval_params(opt_state, z)
        t = state.step.astype(jnp.float32)
        decay = jnp.minimum(ema_decay, (1 + t) / (10 + t))
        ema = jax.tree.map(
            lambda old, new: (decay * old + (1 - decay) * new).astype(old.dtype),
            state.ema,
            reported.x,
        )
        return TrainState(state.step + 1, z, opt_state, ema), jnp.stack(values)

    def one_call(state, share, size, key, count):
        if steps_per_call == 1:
            state, values = one_step(state, share, size, key)
            return state, values[None]

        def body(i, carry):
            state, values = one_step(carry[0], share, size, key)
            return state, carry[1].at[i].set(values)

        # The number of steps is an argument of the compiled loop: whatever the number,
        # it is the same program, and rounds alike.
        return lax.fori_loop(0, count, body, (state, jnp.zeros((steps_per_call, 2))))

    mapped = workers.map(one_call, in_axes=(0, 0, 0, None, None))
    return jax.jit(mapped, donate_argnums=0)


def _with_value(loss):
    """The loss and, beside it, its value for the record."""

    def loss_and_value(*args):
        value = loss(*args)
        return value, value.astype(jnp.float32)

    return loss_and_value


def mean_generator(state: TrainState) -> Any:
    """The generator to evaluate: the mean over workers of their moving averages."""
    return jax.tree.map(lambda x: np.asarray(x).mean(axis=0).astype(x.dtype), state.ema)
