"""The compiled roles of an MD-GAN and the iteration that calls them in turn."""

import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsp import comm, distributed, metrics
from jaxsp.gan import data, judge
from jaxsp.gan.md_gan import roles
from jaxsp.gan.md_gan.transport import Transport
from jaxsp.gan.models.gan import initializer
from jaxsp.gan.program import Program, Role, Summary, finite
from jaxsp.gan.step import bits, draw_keys, moving_average, to_batch
from jaxsp.operators import MinMax

__all__ = ["MDGanState", "Run"]


class MDGanState(NamedTuple):
    """The state of all, between two iterations.

    Attributes:
      step: how many iterations are done, an int32 scalar of NumPy.
      params: MinMax of the server's generator and the workers' discriminators, which
        are stacked.
      opt_state: MinMax of their optimizers' states, likewise.
      ema: exponential moving average of the generator, for evaluation.
      alive: which workers took part in the last iteration, a bool [N] of NumPy.
      traffic: bits that each worker sent and received, stacked, of NumPy.
    """

    step: np.int32
    params: MinMax
    opt_state: MinMax
    ema: Any
    alive: np.ndarray
    traffic: comm.Traffic


class Run:
    """The compiled roles of an MD-GAN and the iteration that calls them in turn.

    Over processes every one has the same `Run` and makes the same calls. The server's
    work is done in its process alone, a worker's in its own; what a process has no part
    in it holds without data.
    """

    def __init__(self, method, gan, losses, workers, batch_size, ema_decay):
        self.method, self.gan, self.workers = method, gan, workers
        self.batch_size, self.ema_decay = batch_size, ema_decay
        optimizers = method.generator_optimizer, method.discriminator_optimizer
        self.size = roles.messages(gan, batch_size, optimizers[1], method.moments)
        axis = workers.axis_name

        def generate(x, key, step, index):
            def latent_key(j):  # what worker j would draw, did it have a generator
                return jax.random.split(draw_keys(key, j, step)[1])[0]

            keys = jax.vmap(latent_key)(jnp.arange(method.batches_k))
            fakes, latents = roles.server_generate(gan, x, keys, batch_size)
            return roles.swap(fakes, index), latents

        def work(y, opt_state, share, held, fakes, alive, key, step):
            me = comm.worker_index(axis)
            draw_key, noise_key, *_ = draw_keys(key, me, step)
            batch = to_batch(data.draw(draw_key, share, held, batch_size))
            *new, feedback, values = roles.worker_step(
                losses,
                optimizers[1],
                y,
                opt_state,
                batch,
                tuple(jax.tree.map(operator.itemgetter(i), fakes) for i in range(2)),
                jax.random.split(noise_key)[1],
                method.disc_steps,
            )
            # Nothing of a worker that is gone changes.
            y, opt_state = jax.tree.map(
                lambda a, b: jnp.where(alive[me], a, b), tuple(new), (y, opt_state)
            )
            return y, opt_state, (feedback, values)

        def update(x, opt_state, ema, latents, answers, g_index, alive, step):
            feedback, values = answers
            x, opt_state, _ = roles.server_update(
                gan, optimizers[0], x, opt_state, latents, feedback, g_index, alive
            )
            ema = moving_average(ema, x, step, ema_decay)
            return x, opt_state, ema, _of_the_living(values, alive)[:, None]

        self.draw = initializer(gan)
        self.generate = jax.jit(generate)
        self.work = jax.jit(
            workers.map(work, in_axes=(0,) * 5 + (None,) * 3), donate_argnums=(0, 1)
        )
        self.update = jax.jit(update, donate_argnums=(0, 1, 2))
        self.renew_all = jax.jit(workers.map(optimizers[1].init))
        self.choose = jax.jit(lambda *args: _where(*args))
        self.finite_here = finite()
        self.judge_one = judge.make_judge(gan, losses, workers, shared_generator=True)
        self.probabilities = losses.reads is not None

        # Shapes: of what is called with what, of discriminators and of what travels.
        key = jax.eval_shape(lambda: jax.random.key(0))
        x, y = jax.eval_shape(self.draw, key)
        self.stacked: Any = jax.eval_shape(
            jax.vmap(lambda _, y: y, (0, None)), np.arange(workers.count), y
        )
        index = jax.ShapeDtypeStruct((workers.count, 2), jnp.int32)
        self.called = x, key, jax.ShapeDtypeStruct((), jnp.int32), index
        self.fakes, self.latents = jax.eval_shape(generate, *self.called)
        samples = self.fakes[0] if gan.num_classes else self.fakes
        self.answers = (
            jax.ShapeDtypeStruct((workers.count, *samples.shape[2:]), samples.dtype),
            jax.ShapeDtypeStruct((workers.count, 2), jnp.float32),
        )
        self.transport = Transport(
            workers, method.server_device, self.fakes, self.answers
        )

    def program(self):
        """What the training loop runs."""
        return Program(
            gan=self.gan,
            workers=self.workers,
            batch_size=self.batch_size,
            settings={"ema_decay": self.ema_decay},
            steps_per_call=1,
            init=self.init,
            step=self.step,
            generator=lambda state: self.transport.everywhere(state.ema),
            bits=bits,
            consensus=lambda state: (None, None),  # no two are meant to agree
            summary=self.summary,
            restart_from=self.restart_from,
            restart_note="the generator goes on, each worker has one of the "
            "discriminators in turn, optimizers start anew",
            roles=self.roles,
            traffic=lambda steps: self.method.traffic(
                self.gan, self.batch_size, self.workers.count, steps
            ),
            idle_processes=True,
            fetch=self.fetch,
            finite=self.finite,
            judge=self.judge,
            probabilities=self.probabilities,
        )

    def init(self, key):
        """The state at step 0: all discriminators start alike."""
        x, y = self.draw(key)
        return self._start(x, self.workers.replicate(y), x, 0)

    def restart_from(self, summary, step):
        """The state at `step` of networks that other workers trained."""
        x, y = summary.params
        row = np.arange(self.workers.count) % len(jax.tree.leaves(y)[0])
        y = self.workers.shard(jax.tree.map(lambda leaf: leaf[row], y))
        return self._start(x, y, summary.generator, step)

    def renew(self, y):
        """New states of the discriminators' optimizers, placed as a step places them.

        Placed otherwise the step would be compiled twice.
        """
        return self.workers.shard(self.renew_all(y))

    def _start(self, x, y, ema, step):
        """The state at `step` of a generator and stacked discriminators."""
        init = self.method.generator_optimizer.init
        x, opt_x, ema = self.transport.at_server(lambda: (x, init(x), ema))
        return MDGanState(
            step=np.int32(step),
            params=MinMax(x, y),
            opt_state=MinMax(opt_x, self.renew(y)),
            ema=ema,
            alive=np.ones(self.workers.count, bool),
            traffic=_limbs(np.zeros((2, self.workers.count), np.uint64)),
        )

    def step(self, state, shares, sizes, key, count):
        """One iteration of all; `count` is 1, as `steps_per_call`."""
        del count
        method, transport, step = self.method, self.transport, int(state.step)
        (x, y), (opt_x, opt_y), ema = state.params, state.opt_state, state.ema
        alive = method.living(step, self.workers.count)
        exchanged = method.exchanged(self.size, state.alive, alive, step)
        g_index, d_index = roles.assignment(alive, method.batches_k)
        if transport.works:
            y, opt_y = self._joined(y, opt_y, *roles.joining(state.alive, alive, step))

        fakes = latents = answers = None
        if transport.serves:
            index = np.stack([d_index, g_index], axis=1)
            fakes, latents = self.generate(x, key, state.step, index)
        fakes = transport.down(fakes, alive)
        if transport.works:
            y, opt_y, answers = self.work(
                y, opt_y, shares, sizes, fakes, alive, key, state.step
            )
        answers = transport.up(answers, alive)
        values: Any = np.zeros((self.workers.count, 1, 2), np.float32)
        if transport.serves:
            x, opt_x, ema, values = self.update(
                x, opt_x, ema, latents, answers, g_index, alive, state.step
            )
        if transport.works and method.swaps(step):
            y, opt_y = self._swapped(y, opt_y, alive, key, step)
        state = MDGanState(
            step=np.int32(step + 1),
            params=MinMax(x, y),
            opt_state=MinMax(opt_x, opt_y),
            ema=ema,
            alive=alive,
            traffic=_limbs(np.stack(metrics.bits_sent(state.traffic)) + exchanged),
        )
        return state, values

    def _joined(self, y, opt_y, joins, source):
        """Who comes anew copies the discriminator of the first that was there."""
        if not joins.any():
            return y, opt_y
        y = self.workers.permute(y, np.where(joins, source, np.arange(len(joins))))
        return y, self.choose(joins, self.renew(y), opt_y)

    def _swapped(self, y, opt_y, alive, key, step):
        """The living's discriminators in other places."""
        seed = np.asarray(jax.random.key_data(key)).ravel().tolist()
        permutation = roles.derangement(np.random.default_rng([*seed, step]), alive)
        if self.method.moments == "travel":
            return self.workers.permute((y, opt_y), permutation)
        y = self.workers.permute(y, permutation)
        if self.method.moments == "reset":
            moved = permutation != np.arange(len(permutation))
            opt_y = self.choose(moved, self.renew(y), opt_y)
        return y, opt_y

    def summary(self, state):
        """The generator, and discriminators of the living in the place of the others'.

        The discriminators stay on the workers' devices.
        """
        (x, y), living = state.params, np.flatnonzero(state.alive)
        if len(living) < len(state.alive) and self.transport.works:
            rows = np.arange(len(state.alive))
            y = self.workers.permute(y, living[rows % len(living)])
        return Summary(state.ema, MinMax(x, y))

    def fetch(self, values):
        """Losses of some calls, on every process; few programs do for all numbers."""
        calls = 1 << (len(values) - 1).bit_length()
        padded = [*values, *values[-1:] * (calls - len(values))]
        return list(self.transport.everywhere(np.stack(padded)))[: len(values)]

    def judge(self, state, shares, sizes, key):
        """What the living's discriminators say, on every process."""
        x, said = self.transport.everywhere(state.params.x), None
        if self.transport.works:
            said = self.judge_one(x, state.params.y, shares, sizes, key)
        # All workers may be in one process, and the server in another.
        rows = judge.fetch_rows(said, self.workers, 2, not distributed.is_alone())
        return tuple(rows[state.alive].mean(axis=0).tolist())

    def finite(self, state):
        """Whether all parameters are finite, on every process."""

        def held(leaf):  # what is not here, another process looks at
            return leaf if leaf.addressable_shards else np.zeros(0)

        params, ema = jax.tree.map(held, (state.params, state.ema))
        here = self.finite_here(state._replace(params=params, ema=ema))
        return not distributed.anywhere(not here)

    def roles(self, shares, sizes):
        """What server and worker do in an iteration."""
        (x, key, step, _), y, count = self.called, self.stacked, self.workers.count
        opt_x = jax.eval_shape(self.method.generator_optimizer.init, x)
        opt_y = jax.eval_shape(self.renew, y)
        alive = jax.ShapeDtypeStruct((count,), bool)
        g_index = jax.ShapeDtypeStruct((count,), jnp.int32)
        work = self.work.lower(y, opt_y, shares, sizes, self.fakes, alive, key, step)
        update = self.update.lower(
            x, opt_x, x, self.latents, self.answers, g_index, alive, step
        )
        members = count // len(self.workers.devices)
        return {
            "worker": Role((work,), members),
            "server": Role((self.generate.lower(*self.called), update), 1),
        }


def _limbs(exchanged: np.ndarray) -> comm.Traffic:
    """Bits sent and received, uint64 [2, N], as counters hold them."""
    limbs = np.stack([exchanged >> 32, exchanged & 0xFFFFFFFF], axis=-1)
    return comm.Traffic(*limbs.astype(np.uint32))


def _where(mine, new, old):
    """The rows of `new` where `mine`, of `old` elsewhere."""

    def choose(a, b):
        return jnp.where(mine.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(choose, new, old)


def _of_the_living(values, alive):
    """Losses [N, 2] with the mean of the living in place of the others'.

    What is not finite stays where it is, so that whose it is can be seen.
    """
    mine = alive[:, None]
    known = mine & jnp.isfinite(values)
    mean = jnp.where(known, values, 0).sum(0) / jnp.maximum(known.sum(0), 1)
    return jnp.where(mine, values, mean)
