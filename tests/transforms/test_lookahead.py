"""Lookahead: the way back that makes descent-ascent converge."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference_beyond as beyond
import table

import jaxsp
from jaxsp import MinMax, transforms

GAME = table.make_game(1, 5)
Z0 = np.random.default_rng(5).normal(size=5)


def field(z):
    return GAME.stacked(z[None])[0]


def path(tx, F, z, steps):
    """The points of one worker."""

    def step(carry, _):
        z, state = carry
        updates, state = tx.update(F(z), state, z, operator_fn=F)
        z = optax.apply_updates(z, updates)
        return (z, state), z

    _, points = jax.lax.scan(step, (z, tx.init(z)), length=steps)
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), z, points)


def operator(z):
    return GAME.operator(z, GAME.H[0], GAME.h[0])


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_equals_numpy(x64, alpha):
    tx = optax.chain(optax.sgd(0.1), transforms.lookahead(4, alpha))
    ours = path(tx, operator, jnp.asarray(Z0), 50)
    theirs = beyond.lookahead(Z0, lambda k, z: z - 0.1 * field(z), 4, alpha, 50)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


def test_around_extragradient_and_momentum_it_equals_numpy(x64):
    """Steps with a second oracle call, and with a memory that goes on."""
    ahead = optax.chain(
        jaxsp.extragradient(optax.sgd(0.2)), transforms.lookahead(3, 0.5)
    )
    ours = path(ahead, operator, jnp.asarray(Z0), 50)
    theirs = beyond.lookahead(
        Z0, lambda k, z: z - 0.2 * field(z - 0.2 * field(z)), 3, 0.5, 50
    )
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)
    heavy = optax.chain(optax.sgd(0.05, momentum=0.5), transforms.lookahead(3, 0.5))
    memory = np.zeros(5)

    def step(k, z):
        nonlocal memory
        memory = 0.5 * memory + field(z)
        return z - 0.05 * memory

    ours = path(heavy, operator, jnp.asarray(Z0), 50)
    theirs = beyond.lookahead(Z0, step, 3, 0.5, 50)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


def test_it_is_optax_lookahead_and_an_outer_optimizer(x64):
    ours = path(
        optax.chain(optax.sgd(0.1), transforms.lookahead(4, 0.3)),
        operator,
        jnp.asarray(Z0),
        30,
    )
    pairs = optax.LookaheadParams.init_synced(jnp.asarray(Z0))
    theirs = optax.lookahead(optax.sgd(0.1), 4, 0.3)
    state, points = theirs.init(pairs), [pairs.fast]
    for _ in range(30):
        updates, state = theirs.update(operator(pairs.fast), state, pairs)
        pairs = optax.apply_updates(pairs, updates)
        points.append(pairs.fast)
    np.testing.assert_allclose(ours, np.stack(points), rtol=0, atol=1e-13)
    workers = jaxsp.Workers(1, jax.devices()[:1])
    outer = jaxsp.sync(4, workers.axis_name, outer=optax.sgd(0.3))
    local = optax.chain(optax.sgd(0.1), outer)
    alone = workers.map(lambda z: path(local, operator, z, 30))(jnp.asarray(Z0)[None])
    np.testing.assert_allclose(ours, alone[0], rtol=0, atol=1e-13)


def test_descent_converges_on_a_bilinear_game_with_it_alone(x64):
    F = jaxsp.saddle(lambda x, y: x @ y)
    z = MinMax(jnp.ones(3), jnp.ones(3))
    plain, back = optax.sgd(0.3), transforms.lookahead(5)

    def end(tx):
        return float(abs(path(tx, F, z, 500).x[-1]).max())

    assert end(plain) > 1e3
    assert end(optax.chain(plain, back)) < 1e-6
    # A player at a time is not it.
    apart = optax.partition(
        {"x": optax.chain(plain, back), "y": plain}, MinMax("x", "y")
    )
    assert end(apart) > end(optax.chain(plain, back))


def test_under_a_look_ahead_it_moves_the_point_that_is_reported(x64):
    tx = transforms.past_extragradient(0.3, transforms.lookahead(2, 0.5))
    F = jaxsp.saddle(lambda x, y: x @ y)
    z = MinMax(jnp.ones(3), jnp.ones(3))
    state, reported = tx.init(z), [z.x]
    for _ in range(400):
        updates, state = tx.update(F(z), state, z)
        z = optax.apply_updates(z, updates)
        reported.append(jaxsp.methods.eval_params(state, z).x)
        if state.count % 2 == 0:
            np.testing.assert_allclose(reported[-1], state.combine.slow.x, atol=1e-14)
    assert abs(reported[-1]).max() < 1e-6
