"""The compiled roles of an MD-GAN and the iteration that calls them in turn."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsp import comm
from jaxsp.gan import data, models
from jaxsp.gan.md_gan import roles, transport
from jaxsp.gan.program import Program, Role, Summary
from jaxsp.gan.step import bits, draw_keys, moving_average, to_batch
from jaxsp.operators import MinMax

__all__ = ["MDGanState", "Run"]


class MDGanState(NamedTuple):
    """The state of all, between two iterations.

    Attributes:
      step: how many iterations are done, an int32 scalar.
      params: MinMax of the server's generator and the workers' discriminators, which
        are stacked.
      opt_state: MinMax of their optimizers' states, likewise.
      ema: exponential moving average of the generator, for evaluation.
      alive: which workers took part in the last iteration, bool [N].
      traffic: bits that each worker sent and received, stacked.
    """

    step: jax.Array
    params: MinMax
    opt_state: MinMax
    ema: Any
    alive: jax.Array
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
        size = roles.messages(gan, batch_size, optimizers[1], method.moments)
        axis = workers.axis_name
        # What the host knows of the last state, so that it need not wait for it.
        self._known: Any = (None, 0, None, None)

        def counted(traffic, up, down, mine):
            more = comm.add_traffic(traffic, up, down, axis)
            return jax.tree.map(lambda a, b: jnp.where(mine, a, b), more, traffic)

        def generate(x, key, step, g_index, d_index):
            def latent_key(j):  # what worker j would draw, did it have a generator
                return jax.random.split(draw_keys(key, j, step)[1])[0]

            keys = jax.vmap(latent_key)(jnp.arange(method.batches_k))
            fakes, latents = roles.server_generate(gan, x, keys, batch_size)
            return roles.swap(fakes, d_index), roles.swap(fakes, g_index), latents

        def work(y, opt_state, traffic, share, held, fakes_d, fakes_g, mine, key, step):
            keys = draw_keys(key, comm.worker_index(axis), step)
            batch = to_batch(data.draw(keys[0], share, held, batch_size))
            _, noise_key = jax.random.split(keys[1])
            new = roles.worker_step(
                losses,
                optimizers[1],
                y,
                opt_state,
                batch,
                fakes_d,
                fakes_g,
                noise_key,
                method.disc_steps,
            )
            # Nothing of a worker that is gone changes.
            y, opt_state = jax.tree.map(
                lambda a, b: jnp.where(mine, a, b), new[:2], (y, opt_state)
            )
            return y, opt_state, counted(traffic, size.up, size.down, mine), *new[2:]

        def update(x, opt_state, ema, latents, feedback, g_index, alive, step):
            x, opt_state, _ = roles.server_update(
                gan, optimizers[0], x, opt_state, latents, feedback, g_index, alive
            )
            return x, opt_state, moving_average(ema, x, step, ema_decay)

        self.generate = jax.jit(generate)
        self.transport = transport.between(
            workers, method.server_device, self._messages()
        )
        self.work = jax.jit(
            workers.map(work, in_axes=(0,) * 8 + (None, None)), donate_argnums=(0, 1, 2)
        )
        self.update = jax.jit(update, donate_argnums=(0, 1, 2))
        self.renew = jax.jit(workers.map(optimizers[1].init))
        self.count_swap = jax.jit(
            workers.map(
                lambda traffic, mine: counted(traffic, size.swap, size.swap, mine)
            )
        )
        self.count_join = jax.jit(
            workers.map(
                lambda traffic, sent, received: counted(
                    counted(traffic, size.join, 0, sent), 0, size.join, received
                )
            )
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
            generator=lambda state: self.transport.read(state.ema, ())[0],
            bits=lambda state: bits(self.transport.read((), state.traffic)[1]),
            consensus=lambda state: None,  # no two networks are meant to agree
            summary=self.summary,
            restart_from=self.restart_from,
            restart_note="the generator goes on, each worker has one of the "
            "discriminators in turn, optimizers start anew",
            roles=self.roles,
            traffic=lambda steps: self.method.traffic(
                self.gan, self.batch_size, self.workers.count, steps
            ),
            idle_processes=True,
            fetch=lambda values: self.transport.read(values, ())[0],
            finite=self.finite,
        )

    def start(self, x, y, ema, step):
        """The state at `step` of a generator and stacked discriminators."""
        at_server = self.transport.at_server  # copies: the loop gives its buffers away
        x, ema = at_server(lambda: (x, ema))
        y = self.workers.shard(y)
        opt_x = at_server(self.method.generator_optimizer.init, x)
        return MDGanState(
            step=at_server(lambda: jnp.asarray(step, jnp.int32)),
            params=MinMax(x, y),
            opt_state=MinMax(opt_x, self.transport.at_workers(self.renew, y)),
            ema=ema,
            alive=self.workers.shard(np.ones(self.workers.count, bool)),
            traffic=self.workers.replicate(comm.no_traffic()),
        )

    def init(self, key):
        """The state at step 0: all discriminators start alike."""
        x, y = models.init(self.gan, key)
        return self.start(x, self.workers.replicate(y), x, 0)

    def restart_from(self, summary, step):
        """The state at `step` of networks that other workers trained."""
        x, y = summary.params
        row = np.arange(self.workers.count) % len(jax.tree.leaves(y)[0])
        y = jax.tree.map(lambda leaf: leaf[row], y)
        return self.start(x, y, summary.generator, step)

    def step(self, state, shares, sizes, key, count):
        """One iteration of all; `count` is 1, as `steps_per_call`."""
        del count
        method, workers = self.method, self.workers
        step, before, mine = self._know(state)
        alive = method.living(step, workers.count)
        if not np.array_equal(alive, before):
            mine = workers.shard(alive)
            state = self._joined(state, before, alive, step)
        index = roles.assignment(alive, method.batches_k)
        x, y = state.params
        opt_x, opt_y = state.opt_state
        ema, traffic, next_step = (
            state.ema,
            state.traffic,
            self.transport.absent(state.step),
        )

        fakes = latents = feedback = values = None
        if self.transport.serves:
            *fakes, latents = self.generate(x, key, state.step, *index)
        fakes = self.transport.down(fakes, alive)
        if self.transport.works:
            y, opt_y, traffic, feedback, values = self.work(
                y, opt_y, traffic, shares, sizes, *fakes, mine, key, np.int32(step)
            )
        feedback, values = self.transport.up(feedback, values, alive)
        if self.transport.serves:
            x, opt_x, ema = self.update(
                x, opt_x, ema, latents, feedback, index[0], alive, state.step
            )
            next_step = state.step + 1
            values = _of_the_living(values, alive)[:, None]
        else:
            values = self.transport.absent(
                jax.ShapeDtypeStruct((workers.count, 1, 2), jnp.float32)
            )
        due = method.swap_every is not None and (step + 1) % method.swap_every == 0
        if due and self.transport.works:
            y, opt_y, traffic = self._swapped(y, opt_y, traffic, alive, key, step)
        state = MDGanState(
            step=next_step,
            params=MinMax(x, y),
            opt_state=MinMax(opt_x, opt_y),
            ema=ema,
            alive=mine,
            traffic=traffic,
        )
        self._known = (state.step, step + 1, alive, mine)
        return state, values

    def _know(self, state):
        """The step and the living, on the host; waits only if the state is not ours."""
        if state.step is not self._known[0]:
            step, alive = self.transport.read(state.step, state.alive)
            return int(step), alive, self.workers.shard(alive)
        return self._known[1:]

    def _joined(self, state, before, alive, step):
        """Who comes anew copies the discriminator of the first that was there."""
        joins, source = roles.joining(before, alive, step)
        if not (joins.any() and self.transport.works):
            return state
        rows = np.where(joins, source, np.arange(len(alive)))
        y = self.workers.permute(state.params.y, rows)
        fresh = self.renew(y)
        mine = self.workers.shard(joins)
        opt_y = _where(mine, fresh, state.opt_state.y)
        sent = np.zeros(len(alive), bool)
        sent[source] = True
        traffic = state.traffic
        for joining in np.flatnonzero(joins):
            received = np.arange(len(alive)) == joining
            traffic = self.count_join(
                traffic, self.workers.shard(sent), self.workers.shard(received)
            )
        return state._replace(
            params=MinMax(state.params.x, y),
            opt_state=MinMax(state.opt_state.x, opt_y),
            traffic=traffic,
        )

    def _swapped(self, y, opt_y, traffic, alive, key, step):
        """The living's discriminators in other places."""
        seed = np.asarray(jax.random.key_data(key)).ravel().tolist()
        permutation = roles.derangement(np.random.default_rng([*seed, step]), alive)
        moved = permutation != np.arange(len(permutation))
        if self.method.moments == "travel":
            y, opt_y = self.workers.permute((y, opt_y), permutation)
        else:
            y = self.workers.permute(y, permutation)
        if self.method.moments == "reset":
            opt_y = _where(self.workers.shard(moved), self.renew(y), opt_y)
        return y, opt_y, self.count_swap(traffic, self.workers.shard(moved))

    def summary(self, state):
        """The generator, and the discriminators of the living."""
        of_server = state.ema, state.params.x
        (ema, x), (y, living) = self.transport.read(
            of_server, (state.params.y, state.alive)
        )
        return Summary(ema, MinMax(x, jax.tree.map(lambda leaf: leaf[living], y)))

    def finite(self, state):
        """Whether all parameters are finite, on every process."""
        return self.transport.finite((state.params.x, state.ema), state.params.y)

    def _shapes(self):
        """Shapes of the networks and of a call of `generate`: arguments and result."""
        key = jax.eval_shape(lambda: jax.random.key(0))
        step = jax.ShapeDtypeStruct((), jnp.int32)
        index = jax.ShapeDtypeStruct((self.workers.count,), jnp.int32)
        z: Any = jax.eval_shape(lambda key: models.init(self.gan, key), key)
        called = (z.x, key, step, index, index)
        return z, called, jax.eval_shape(self.generate, *called)

    def _messages(self):
        """Shapes of what travels in an iteration, stacked: down (of two) and up."""
        _, _, (down, _, _) = self._shapes()
        feedback = down[0] if self.gan.num_classes else down
        values = jax.ShapeDtypeStruct((self.workers.count, 2), jnp.float32)
        return down, (feedback, values)

    def roles(self, shares, sizes):
        """What server and worker do in an iteration."""
        z, called, (*fakes, latents) = self._shapes()
        _, key, step, index, _ = called
        count = self.workers.count
        alive = jax.ShapeDtypeStruct((count,), bool)
        y: Any = _stacked_shapes(z.y, count)
        opt_x = jax.eval_shape(self.method.generator_optimizer.init, z.x)
        opt_y = jax.eval_shape(self.renew, y)
        traffic = _stacked_shapes(jax.eval_shape(comm.no_traffic), count)
        _, (feedback, _) = self._messages()
        work = self.work.lower(
            y, opt_y, traffic, shares, sizes, *fakes, alive, key, step
        )
        update = self.update.lower(
            z.x, opt_x, z.x, latents, feedback, index, alive, step
        )
        members = count // len(self.workers.devices)
        return {
            "worker": Role((work,), members),
            "server": Role((self.generate.lower(*called), update), 1),
        }


def _stacked_shapes(tree, count):
    def stacked(leaf):
        return jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype)

    return jax.tree.map(stacked, tree)


@jax.jit
def _where(mine, new, old):
    """The rows of `new` where `mine`, of `old` elsewhere."""

    def choose(a, b):
        return jnp.where(mine.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(choose, new, old)


@jax.jit
def _of_the_living(values, alive):
    """Losses [N, 2] with the mean of the living in place of the others'.

    What is not finite stays where it is, so that whose it is can be seen.
    """
    mine = alive[:, None]
    known = mine & jnp.isfinite(values)
    mean = jnp.where(known, values, 0).sum(0) / jnp.maximum(known.sum(0), 1)
    return jnp.where(mine, values, mean)
