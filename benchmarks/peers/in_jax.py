"""The sides of `peers.py` that are written in JAX: of jaxsp, optax and DrJAX."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from games import Game
from in_torch import need

import jaxsp

__all__ = ["CLIENTS", "LOCAL", "Side", "drjax_rounds", "in_a_loop"]

CLIENTS, LOCAL = 8, 4  # of DrJAX, and local steps in a round


class Side(NamedTuple):
    """One of two that are compared.

    Attributes:
      run: does so many iterations, and returns what is to be waited for.
      point: where it is, as one vector.
    """

    run: Callable[[int], Any]
    point: Callable[[], np.ndarray]


def in_a_loop(
    tx: Any,
    game: Game,
    dtype: Any,
    workers: jaxsp.Workers | None = None,
    seed: Callable[..., Any] = lambda state, z, g: state,
    each: bool = False,
) -> Side:
    """A transformation that plays a game in a compiled loop.

    Args:
      tx: the transformation.
      game: what it plays.
      dtype: of its numbers.
      workers: who plays; None is a loop without jaxsp, of the first worker's game.
      seed: `(state, z, F(z))` to the state to begin with.
      each: whether every iteration is a call of Python.
    """
    z, data = jax.tree.map(partial(jnp.asarray, dtype=dtype), (game.start, game.data))
    if workers is None:
        data, mapped = jax.tree.map(lambda x: x[0], data), lambda f, *axes: f
    else:
        z, mapped = workers.replicate(z), workers.map
        data = workers.shard(jax.tree.map(lambda x: x[: workers.count], data))

    def begin(z, data):  # copies, as the loop consumes what it is given
        state = seed(tx.init(z), z, game.field(z, data, 0))
        return jax.tree.map(jnp.copy, (z, state))

    def one(i, carry, data):
        z, state = carry
        updates, state = tx.update(
            game.field(z, data, i),
            state,
            z,
            operator_fn=lambda point: game.field(point, data, i),
        )
        return optax.apply_updates(z, updates), state

    def several(carry, data, first, count):
        last = first + count
        return jax.lax.fori_loop(first, last, lambda i, c: one(i, c, data), carry)

    loop = jax.jit(mapped(several, (0, 0, None, None)), donate_argnums=0)
    step = jax.jit(
        mapped(lambda carry, data, i: one(i, carry, data), (0, 0, None)),
        donate_argnums=0,
    )
    now: dict[str, Any] = {"carry": jax.jit(mapped(begin))(z, data), "done": 0}

    def run(count):
        if each:
            for i in range(now["done"], now["done"] + count):
                now["carry"] = jax.block_until_ready(step(now["carry"], data, i))
        else:
            now["carry"] = loop(now["carry"], data, now["done"], count)
        now["done"] += count
        return now["carry"]

    return Side(run, lambda: first_worker(now["carry"][0], workers is not None))


def first_worker(z, stacked):
    """A point of this process's first worker, as one vector."""
    leaves = [np.asarray(x.addressable_data(0)) for x in jax.tree.leaves(z)]
    return np.concatenate([np.ravel(x[0] if stacked else x) for x in leaves])


def drjax_rounds(rate: float, game: Game, dtype: Any) -> Side:
    """Local extragradient steps, a loop by hand for every client, and their mean."""
    (drjax,) = need("drjax")
    logging.set_verbosity(logging.ERROR)  # not that it has no mesh
    z, data = jax.tree.map(partial(jnp.asarray, dtype=dtype), (game.start, game.data))

    def local(z, data, first):
        def step(i, z):
            half = descend(z, game.field(z, data, i))
            return descend(z, game.field(half, data, i))

        def descend(z, g):
            return jax.tree.map(lambda z, g: z - rate * g, z, g)

        return jax.lax.fori_loop(first, first + LOCAL, step, z)

    @drjax.program(placements={"clients": CLIENTS})
    def one_round(z, data, first):
        everywhere = drjax.broadcast((z, first))
        z = drjax.map_fn(lambda z, f, d: local(z, d, f), (*everywhere, data))
        return drjax.reduce_mean(z)

    @partial(jax.jit, donate_argnums=0)
    def loop(z, data, first, rounds):
        def body(r, z):
            return one_round(z, data, first + r * LOCAL)

        return jax.lax.fori_loop(0, rounds, body, z)

    now = {"z": jax.tree.map(lambda x: jnp.array(x, copy=True), z), "done": 0}

    def run(count):
        now["z"] = loop(now["z"], data, now["done"], count // LOCAL)
        now["done"] += count
        return now["z"]

    return Side(run, lambda: first_worker(now["z"], False))
