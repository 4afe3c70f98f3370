"""Extragradient in one call and in two, and the traps around it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
import table

import jaxsp
from jaxsp import methods

ONE = jaxsp.Workers(1, devices=jax.devices()[:1])


def flat_game(seed=0, d=6):
    game = table.make_game(1, d, seed)
    return game, np.random.default_rng(seed + 1).normal(size=(1, d))


@pytest.mark.parametrize("rate", [0.05, lambda k: 0.1 / (1 + jnp.asarray(k, float))])
def test_with_adam_it_is_extra_adam(x64, rate):
    game, z0 = flat_game()
    tx = jaxsp.extragradient(optax.adam(rate, b1=0.5, b2=0.9))
    ours, _ = table.trajectory(ONE, tx, game, z0, 50)
    # A schedule inside the optimizer counts oracle calls; the reference iterations.
    if callable(rate):
        base = optax.adam(rate, b1=0.5, b2=0.9)
        z, state, path = jnp.asarray(z0[0]), base.init(jnp.asarray(z0[0])), [z0[0]]
        for _ in range(50):
            F = lambda z: jnp.asarray(game.stacked(np.asarray(z)[None])[0])  # noqa: E731
            ahead, state = base.update(F(z), state)
            step, state = base.update(F(z + ahead), state)
            z = z + step
            path.append(np.asarray(z))
        theirs = np.stack(path)[:, None]
    else:
        theirs = reference.extra_adam(z0, game.stacked, rate, 50)
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize(
    "optimizer",
    [optax.sgd(0.1), optax.adam(0.05), optax.adamw(0.05), optax.sgd(0.1, momentum=0.9)],
    ids=["sgd", "adam", "adamw", "momentum"],
)
def test_two_alternating_updates_are_one_iteration(x64, optimizer):
    game, z0 = flat_game()
    opaque, opaque_state = table.trajectory(
        ONE, jaxsp.extragradient(optimizer), game, z0, 40
    )
    alternating, state = table.trajectory(
        ONE, jaxsp.alternating_extragradient(optimizer), game, z0, 80
    )
    np.testing.assert_allclose(alternating[::2], opaque, atol=1e-12)
    assert np.abs(alternating[1::2] - opaque[:-1]).max() > 1e-3
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12),
        state.base,
        opaque_state.base,
    )


def test_eval_params_after_an_odd_update_is_the_start_of_both_half_steps(x64):
    game, z0 = flat_game()
    tx = jaxsp.alternating_extragradient(optax.sgd(0.1))
    path, state = table.trajectory(ONE, tx, game, z0, 7)
    shown = methods.eval_params(state, jnp.asarray(path[-1]))
    np.testing.assert_allclose(shown, path[6], atol=1e-14)
    path, state = table.trajectory(ONE, tx, game, z0, 8)
    np.testing.assert_array_equal(methods.eval_params(state, path[-1]), path[-1])


def coupled(x, y):
    return 0.3 * x @ x + x @ jnp.array([[1.0, -2.0], [0.5, 1.0]]) @ y - 0.1 * y @ y


def run(tx, steps=30):
    F, z = jaxsp.saddle(coupled), jaxsp.MinMax(jnp.ones(2), jnp.array([1.0, -1.0]))
    state = tx.init(z)
    for _ in range(steps):
        updates, state = tx.update(F(z), state, z, operator_fn=F)
        z = optax.apply_updates(z, updates)
    return z


def test_players_look_ahead_together(x64):
    """A partition inside equals extragradient on the concatenated vector."""
    labels = jaxsp.MinMax("x", "y")
    joint = run(
        jaxsp.extragradient(
            optax.partition({"x": optax.sgd(0.1), "y": optax.sgd(0.2)}, labels)
        )
    )
    F, rates = jaxsp.saddle(coupled), np.array([0.1, 0.1, 0.2, 0.2])
    v = np.array([1.0, 1.0, 1.0, -1.0])

    def field(v):
        z = F(jaxsp.MinMax(jnp.asarray(v[:2]), jnp.asarray(v[2:])))
        return np.concatenate([z.x, z.y])

    for _ in range(30):
        v = v - rates * field(v - rates * field(v))
    np.testing.assert_allclose(np.concatenate(joint), v, atol=1e-13)


def test_a_partition_of_extragradients_says_what_to_write():
    separate = optax.partition(
        {p: jaxsp.extragradient(optax.sgd(0.1)) for p in "xy"}, jaxsp.MinMax("x", "y")
    )
    with pytest.raises(ValueError, match=r"extragradient\(optax.partition"):
        run(separate)


def test_an_error_of_the_operator_itself_passes_unchanged():
    def broken(z):
        raise KeyError("mine")

    tx, z = jaxsp.extragradient(optax.sgd(0.1)), jnp.ones(2)
    with pytest.raises(KeyError, match="mine"):
        tx.update(z, tx.init(z), z, operator_fn=broken)


def test_converges_where_descent_diverges(x64):
    F = jaxsp.saddle(lambda x, y: x * y)

    def end(tx):
        z = jaxsp.MinMax(1.0, 1.0)
        state = tx.init(z)
        for _ in range(200):
            updates, state = tx.update(F(z), state, z, operator_fn=F)
            z = optax.apply_updates(z, updates)
        return float(np.hypot(z.x, z.y))

    assert end(jaxsp.extragradient(optax.sgd(0.3))) < 1e-3
    assert end(optax.with_extra_args_support(optax.sgd(0.3))) > 1e3


def test_averaging_goes_inside_to_touch_both_gradients(x64):
    game = table.make_game(8, 4)
    z0 = np.tile(np.random.default_rng(3).normal(size=4), (8, 1))
    workers = jaxsp.Workers(8, devices=jax.devices()[:1])
    average = jaxsp.average(table.AXIS)
    inside = jaxsp.extragradient(optax.chain(average, optax.sgd(0.1)))
    before = optax.chain(average, jaxsp.extragradient(optax.sgd(0.1)))
    theirs = reference.extra_step(z0, game.stacked, 0.1, 20)
    ours, _ = table.trajectory(workers, inside, game, z0, 20)
    np.testing.assert_allclose(ours, theirs, atol=1e-13)
    trap, _ = table.trajectory(workers, before, game, z0, 20)
    assert np.abs(trap - theirs).max() > 1e-2
