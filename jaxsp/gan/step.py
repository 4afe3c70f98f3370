r"""One training step of all workers, compiled.

A worker's step draws two independent batches from its share of the data, takes its
field at `params` on the first and hands the transformation a function that takes it
anywhere on the second, so that methods of one and of two gradients are called alike:

$$g_m = F_m(z_m; \xi_m), \qquad
z_m \leftarrow z_m + \mathrm{update}(g_m, \mathrm{state}_m, z_m, F_m(\cdot; \xi'_m))$$

(or on the same, $\xi' = \xi$). Where a method asks for the field on all of a worker's
data, `full_operator_fn`, it is the mean over batches that go once through the share,
the last filled up from the beginning, with one latent for each example: the latents are
a sample, there being no end of them. All that is random follows from a key, the step
and the worker's index.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxsp import comm, methods, metrics, operators
from jaxsp._arguments import (
    check_count,
    check_decay,
    check_flag,
    check_instance,
    check_key,
    check_transformation,
)
from jaxsp.gan import data, judge, models
from jaxsp.gan.losses import Losses
from jaxsp.gan.models.gan import check_gan, initializer
from jaxsp.gan.program import Program, Role, Summary, Traffic
from jaxsp.operators import MinMax
from jaxsp.workers import Workers

__all__ = [
    "TrainState",
    "bits",
    "draw_keys",
    "fetch_losses",
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
    method: optax.GradientTransformation,
    workers: Workers,
    key: jax.Array,
) -> TrainState:
    """The state at step 0: all workers start from the same parameters.

    Args:
      gan: generator and discriminator.
      method: what turns a field into an update of the parameters.
      workers: who trains.
      key: a typed key, from which the parameters are drawn.

    Returns:
      The state, stacked, on the workers' devices; no two of its arrays share memory.
    """
    check_transformation("method", method)
    check_instance("workers", workers, Workers, "a jaxsp.Workers")
    z = models.init(gan, key)
    return _starter(method, workers)(z, z.x, 0)


def _starter(method, workers):
    """The state at a step of workers that all hold some parameters, as a function."""
    init = jax.jit(workers.map(method.init))

    def start(z, ema, step):
        params = workers.replicate(z)
        opt_state = init(params)
        comm.find_traffic(opt_state)  # or an error, before anything is trained
        step = jnp.full(workers.count, step, jnp.int32)
        ema = workers.replicate(ema)
        return workers.shard(TrainState(step, params, opt_state, ema))

    return start


def make_step(
    losses: Losses,
    method: optax.GradientTransformation,
    workers: Workers,
    *,
    batch_size: int = 16,
    ema_decay: float = 0.999,
    steps_per_call: int = 1,
    same_sample: bool = False,
) -> Callable[..., tuple[TrainState, jax.Array]]:
    r"""Compile training steps of all workers.

    Args:
      losses: the losses of both players, each `f(x, y, batch, key)`.
      method: an optax transformation, which may use collectives over
        `workers.axis_name` and call `operator_fn`.
      workers: who trains.
      batch_size: examples a worker draws for one gradient.
      ema_decay: $d$ in $\mathrm{ema} \leftarrow d\, \mathrm{ema} + (1 - d)\, x$. Step
        $t$ uses $\min(d, (1 + t) / (10 + t))$: the start is forgotten early on.
      steps_per_call: the most steps that one call can do, in a loop on the device.
      same_sample: whether a method's second gradient in a step is taken on the sample
        of the first (batch, latents and noise), as alternating steps usually are, or on
        a sample of its own, as the theory of extragradient asks.

    Returns:
      `step(state, shares, sizes, key, count)`, which does `count` steps, at most
      `steps_per_call`, and returns the state and the losses of generator and
      discriminator, float32 (workers, steps_per_call, 2), of which the first `count`
      rows are filled. It consumes `state`: the buffers are reused. `shares` and `sizes`
      are what `partition.stack` returns, or, for a class-conditional GAN, a pair of
      images and labels for `shares`; `key` is a key all workers share.

    Raises:
      ValueError: if a number is out of range.
    """
    check_instance("losses", losses, Losses, "of jaxsp.gan.losses")
    update = check_transformation("method", method).update
    check_instance("workers", workers, Workers, "a jaxsp.Workers")
    check_count("batch_size", batch_size)
    check_count("steps_per_call", steps_per_call)
    check_decay("ema_decay", ema_decay)
    check_flag("same_sample", same_sample)

    def with_value(loss):
        return lambda *args: (loss(*args),) * 2

    operator = operators.game(
        with_value(losses.generator), with_value(losses.discriminator), has_aux=True
    )

    def one_step(state, share, size, key):
        index = comm.worker_index(workers.axis_name)
        keys = draw_keys(key, index, state.step)
        first, second = keys[:2], keys[:2] if same_sample else keys[2:]

        def field_at(z, draw_key, noise_key):
            batch = data.draw(draw_key, share, size, batch_size)
            return operator(z, to_batch(batch), noise_key)

        def field_on_all(point):
            def add(i, total):
                rows = (i * batch_size + jnp.arange(batch_size)) % size
                batch = to_batch(jax.tree.map(lambda leaf: leaf[rows], share))
                noise = jax.random.fold_in(first[1], i)
                return jax.tree.map(jnp.add, total, operator(point, batch, noise)[0])

            batches, nothing = (
                -(-size // batch_size),
                jax.tree.map(jnp.zeros_like, point),
            )
            total = lax.fori_loop(0, batches, add, nothing)
            return jax.tree.map(lambda g: g / jnp.asarray(batches, g.dtype), total)

        z: Any = state.params
        g, values = field_at(z, *first)  # F_m(z; ξ)
        updates, opt_state = update(
            g,
            state.opt_state,
            z,
            operator_fn=lambda point: field_at(point, *second)[0],  # F_m(·; ξ')
            full_operator_fn=field_on_all,
        )
        z = optax.apply_updates(z, updates)
        reported: Any = methods.eval_params(opt_state, z)
        ema = moving_average(state.ema, reported.x, state.step, ema_decay)
        values = jnp.stack(values).astype(jnp.float32)
        return TrainState(state.step + 1, z, opt_state, ema), values

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
    r"""A worker's four keys of a step: for batch and noise of $\xi$, and of $\xi'$."""
    key = check_key("key", key)  # one of Threefry, the same in every mode
    return jax.random.split(jax.random.fold_in(jax.random.fold_in(key, index), step), 4)


def to_batch(drawn: Any) -> Any:
    """Examples as losses take them: images in [-1, 1], with their labels if any."""
    if isinstance(drawn, tuple):
        return data.to_unit(drawn[0]), drawn[1]
    return data.to_unit(drawn)


def moving_average(ema: Any, new: Any, step: jax.Array, ema_decay: float) -> Any:
    """The exponential moving average after one step more, as of `make_step`."""
    t = step.astype(jnp.float32)
    decay = jnp.minimum(ema_decay, (1 + t) / (10 + t))
    return jax.tree.map(
        lambda old, new: (decay * old + (1 - decay) * new).astype(old.dtype), ema, new
    )


def program(
    gan: models.Gan,
    losses: Losses,
    method: optax.GradientTransformation,
    workers: Workers,
    *,
    batch_size: int = 16,
    ema_decay: float = 0.999,
    steps_per_call: int | None = None,
    same_sample: bool = False,
) -> Program:
    """The program in which every worker trains both networks.

    Args: those of `make_step`, and
      gan: generator and discriminator.
      method: of `jaxsp.methods`, `jaxsp.gan.fl_gan.fl_gan`, or of optax.
      steps_per_call: None means 1 on CPU, where a convolution inside a loop is 3 to 4
        times slower, and 32 elsewhere.

    Returns:
      What `jaxsp.gan.training.train` runs; nothing is compiled yet.

    Raises:
      ValueError: if a number is out of range.
    """
    check_gan(gan)
    check_instance("workers", workers, Workers, "a jaxsp.Workers")
    options: dict[str, Any] = {"ema_decay": ema_decay, "same_sample": same_sample}
    if steps_per_call is None:
        steps_per_call = 1 if workers.devices[0].platform == "cpu" else 32

    make = functools.partial(
        make_step, losses, method, workers, batch_size=batch_size, **options
    )
    step_fn = make(steps_per_call=steps_per_call)
    # The operations of a loop are counted once, however often it runs.
    single_step = step_fn if steps_per_call == 1 else make(steps_per_call=1)
    reported = jax.jit(
        workers.map(lambda state: methods.eval_params(state.opt_state, state.params))
    )

    draw, start = initializer(gan), _starter(method, workers)

    def init(key):
        z = draw(key)
        return start(z, z.x, 0)

    def generator(state):
        return workers.fetch_mean(state.ema)

    def summary(state):
        return Summary(generator(state), workers.fetch_mean(reported(state)))

    def bits_of(state):
        return bits(workers.fetch(comm.find_traffic(state.opt_state)))

    judge_one = judge.make_judge(gan, losses, workers)

    # One program: over several devices each of its collectives would be one otherwise.
    @jax.jit
    def disagreement(params):
        far = metrics.consensus_distance(params)
        total = optax.tree.norm(jax.tree.map(comm.sum_of_rows, params))
        return far, far / (total / workers.count)

    def consensus(state):
        far, relative = disagreement(state.params)
        return float(far), float(relative)

    def judge_all(state, shares, sizes, key):
        said = judge_one(*state.params, shares, sizes, key)
        rows = judge.fetch_rows(said, workers, 2, workers.spans_processes)
        return tuple(rows.mean(axis=0).tolist())

    def roles(shares, sizes):
        key = jax.eval_shape(lambda: jax.random.key(0))
        lowered = single_step.lower(jax.eval_shape(init, key), shares, sizes, key, 1)
        members = workers.count // len(workers.devices)
        return {"worker": Role((lowered,), members)}

    def traffic(steps):
        share = jnp.zeros((workers.count, 1, *gan.sample_shape))
        if gan.num_classes:
            share = share, jnp.zeros((workers.count, 1), jnp.int32)
        sizes = jnp.ones(workers.count, jnp.int32)

        def one_step(state, key):
            return single_step(state, share, sizes, key, 1)[0]

        sent, received = bits_of(_counters_after(steps, init, one_step))
        if sent is None or received is None:
            return {}
        return {"worker": Traffic(sent, received)}

    return Program(
        gan=gan,
        workers=workers,
        batch_size=batch_size,
        settings=options,
        steps_per_call=steps_per_call,
        init=init,
        step=step_fn,
        generator=generator,
        bits=bits_of,
        consensus=consensus,
        summary=summary,
        restart_from=lambda summary, step: start(
            summary.params, summary.generator, step
        ),
        restart_note="all workers start from the mean of the parameters, optimizers "
        "anew",
        roles=roles,
        traffic=traffic,
        fetch=lambda values: fetch_losses(values, workers),
        judge=judge_all,
        probabilities=losses.reads is not None,
    )


def _counters_after(steps, init, one_step):
    """The state after some steps, with None for what is a floating-point number.

    The steps are gone through with everything left out that is no counter and no random
    draw. Counters must not depend on floating-point parts of the state, and those of no
    method here do.
    """
    key = jax.random.key(0)
    shapes = jax.eval_shape(init, key)

    def counters(state):
        inexact = lambda x: jnp.issubdtype(x.dtype, jnp.inexact)  # noqa: E731
        return jax.tree.map(lambda x: None if inexact(x) else x, state)

    def filled(like, counter):
        return jnp.zeros(like.shape, like.dtype) if counter is None else counter

    def body(carried, _):
        # Nothing that comes of the zeros is returned, so the compiler drops it all.
        return counters(one_step(jax.tree.map(filled, shapes, carried), key)), None

    return jax.jit(lambda: lax.scan(body, counters(init(key)), length=steps)[0])()


def fetch_losses(values: list[jax.Array], workers: Workers) -> list[np.ndarray]:
    """`Program.fetch`: one message, and few programs for all numbers of calls."""
    if not workers.spans_processes:
        return [np.asarray(value) for value in values]
    calls = 1 << (len(values) - 1).bit_length()
    mine = np.zeros((calls, len(workers.local), *values[0].shape[1:]), np.float32)
    for row, value in zip(mine, values, strict=False):
        blocks = sorted(value.addressable_shards, key=lambda s: s.index[0].start or 0)
        row[:] = np.concatenate([np.asarray(block.data) for block in blocks])
    found = workers.fetch(workers.shard_local(np.moveaxis(mine, 0, 1)))
    return list(np.moveaxis(found, 1, 0)[: len(values)])


def bits(state: Any) -> tuple[int | None, int | None]:
    """Bits sent and received, means over workers; None where nothing counts them."""
    try:
        up, down = (int(b.sum()) // b.size for b in metrics.bits_sent(state))
        return up, down
    except ValueError:
        return None, None
