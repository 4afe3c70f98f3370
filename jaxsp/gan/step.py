r"""One training step of all workers, compiled.

A worker's step draws two independent batches from its share of the data, takes its
field at `params` on the first and hands the transformation a function that takes it
anywhere on the second, so that methods of one and of two gradients are called alike:

    g_m = F_m(z_m; ξ_m);    z_m ← z_m + update(g_m, state_m, z_m, F_m(·; ξ'_m))

(or on the same, ξ' = ξ). All that is random follows from a key, the step and the
worker's index.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxsp import comm, methods, metrics, operators
from jaxsp.gan import data, models
from jaxsp.gan.losses import Losses
from jaxsp.gan.training.program import Program, Role, Summary
from jaxsp.operators import MinMax
from jaxsp.workers import Workers

__all__ = [
    "TrainState",
    "bits",
    "draw_keys",
    "init_state",
    "make_step",
    "moving_average",
    "program",
    "to_batch",
]


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
    z = models.init(gan, key)
    return _start(transformation, workers, z, z.x, 0)


def _start(transformation, workers, z, ema, step):
    """The state at `step` of workers that all hold the parameters `z`."""
    params = workers.replicate(z)
    opt_state = jax.jit(workers.map(transformation.init))(params)
    step = jnp.full(workers.count, step, jnp.int32)
    return workers.shard(TrainState(step, params, opt_state, workers.replicate(ema)))


def make_step(
    losses: Losses,
    transformation: optax.GradientTransformation,
    workers: Workers,
    *,
    batch_size: int,
    ema_decay: float = 0.999,
    steps_per_call: int = 1,
    same_sample: bool = False,
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
      same_sample: as in `TrainConfig`.

    Returns:
      `step(state, shares, sizes, key, count)`, which does `count` steps, at most
      `steps_per_call`, and returns the state and the losses of generator and
      discriminator, float32 (workers, steps_per_call, 2), of which the first `count`
      rows are filled. It consumes `state`: the buffers are reused. `shares` and `sizes`
      are what `partition.stack` returns, or, for a class-conditional GAN, a pair of
      images and labels for `shares`; `key` is a key all workers share.
    """
    update = optax.with_extra_args_support(transformation).update
    operator = operators.game(
        _with_value(losses.generator), _with_value(losses.discriminator), has_aux=True
    )

    def one_step(state, share, size, key):
        index = comm.worker_index(workers.axis_name)
        keys = draw_keys(key, index, state.step)
        first, second = keys[:2], keys[:2] if same_sample else keys[2:]

        def field_at(z, draw_key, noise_key):
            batch = data.draw(draw_key, share, size, batch_size)
            return operator(z, to_batch(batch), noise_key)

        z: Any = state.params
        g, values = field_at(z, *first)  # F_m(z; ξ)
        updates, opt_state = update(
            g,
            state.opt_state,
            z,
            operator_fn=lambda point: field_at(point, *second)[0],  # F_m(·; ξ')
        )
        z = optax.apply_updates(z, updates)
        reported: Any = methods.eval_params(opt_state, z)
        ema = moving_average(state.ema, reported.x, state.step, ema_decay)
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


def draw_keys(key: jax.Array, index: Any, step: Any) -> jax.Array:
    """A worker's four keys of a step: of the batch and the noise ξ, and of those of ξ'.

    Args:
      key: the key that all workers share.
      index: the worker's.
      step: the step's number.

    Returns:
      Four keys.
    """
    return jax.random.split(jax.random.fold_in(jax.random.fold_in(key, index), step), 4)


def to_batch(drawn: Any) -> Any:
    """Examples as losses take them: images in [-1, 1], with their labels if any."""
    if isinstance(drawn, tuple):
        images, labels = drawn
        return data.to_unit(images), labels
    return data.to_unit(drawn)


def moving_average(ema: Any, new: Any, step: jax.Array, ema_decay: float) -> Any:
    """One step of ema ← d ema + (1 − d) new, d = min(ema_decay, (1 + t) / (10 + t))."""
    t = step.astype(jnp.float32)
    decay = jnp.minimum(ema_decay, (1 + t) / (10 + t))
    return jax.tree.map(
        lambda old, new: (decay * old + (1 - decay) * new).astype(old.dtype), ema, new
    )


def _with_value(loss):
    """The loss and, beside it, its value for the record."""

    def loss_and_value(*args):
        value = loss(*args)
        return value, value.astype(jnp.float32)

    return loss_and_value


def program(
    transformation: optax.GradientTransformation,
    gan: models.Gan,
    losses: Losses,
    workers: Workers,
    *,
    batch_size: int,
    ema_decay: float = 0.999,
    steps_per_call: int = 1,
    same_sample: bool = False,
) -> Program:
    """The program in which every worker trains both networks.

    Args:
      transformation: as in `make_step`.
      gan: generator and discriminator.
      losses: as in `make_step`.
      workers: who trains.
      batch_size: as in `make_step`.
      ema_decay: as in `TrainConfig`.
      steps_per_call: as in `make_step`.
      same_sample: as in `TrainConfig`.

    Returns:
      What the training loop runs.
    """
    step_fn = make_step(
        losses,
        transformation,
        workers,
        batch_size=batch_size,
        ema_decay=ema_decay,
        steps_per_call=steps_per_call,
        same_sample=same_sample,
    )
    reported = jax.jit(
        workers.map(lambda state: methods.eval_params(state.opt_state, state.params))
    )

    def generator(state):
        return workers.fetch_mean(state.ema)

    def summary(state):
        return Summary(generator(state), workers.fetch_mean(reported(state)))

    def adopt(summary, step, key):
        del key
        return _start(transformation, workers, summary.params, summary.generator, step)

    def roles(shares, sizes):
        key = jax.eval_shape(lambda: jax.random.key(0))
        state = jax.eval_shape(
            lambda: init_state(gan, transformation, workers, jax.random.key(0))
        )
        lowered = step_fn.lower(state, shares, sizes, key, 1)
        members = workers.count // len(workers.devices)
        return {"worker": Role((lowered,), members)}

    return Program(
        workers=workers,
        steps_per_call=steps_per_call,
        init=lambda key: init_state(gan, transformation, workers, key),
        step=step_fn,
        generator=generator,
        bits=lambda state: bits(workers.fetch(comm.find_traffic(state.opt_state))),
        consensus=lambda state: float(_consensus_distance(state.params)),
        summary=summary,
        adopt=adopt,
        adopted="all workers start from the mean of the parameters, optimizers anew",
        roles=roles,
        fetch=lambda values: fetch_losses(values, workers),
    )


def fetch_losses(values: list[jax.Array], workers: Workers) -> list[np.ndarray]:
    """The losses of some calls, of all workers.

    Over many processes they travel in one message, and it takes few programs for all
    numbers of calls.

    Args:
      values: what `Program.step` has returned in each call.
      workers: who trains.

    Returns:
      The same as NumPy arrays.
    """
    if not workers.spans_processes:
        return [np.asarray(value) for value in values]
    calls = 1 << (len(values) - 1).bit_length()
    mine = np.zeros((calls, len(workers.local), *values[0].shape[1:]), np.float32)
    for row, value in zip(mine, values, strict=False):
        blocks = sorted(value.addressable_shards, key=lambda s: s.index[0].start or 0)
        row[:] = np.concatenate([np.asarray(block.data) for block in blocks])
    found = workers.fetch(workers.shard_local(np.moveaxis(mine, 0, 1)))
    return list(np.moveaxis(found, 1, 0)[: len(values)])


# One program: over several devices each of its collectives would be one otherwise.
_consensus_distance = jax.jit(metrics.consensus_distance)


def bits(state: Any) -> tuple[int | None, int | None]:
    """Bits sent and received, means over workers; None where nothing counts them."""
    try:
        up, down = (int(b.sum()) // b.size for b in metrics.bits_sent(state))
        return up, down
    except ValueError:
        return None, None
