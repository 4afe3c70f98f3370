"""Rounds of local steps of some of the workers, and the weighted mean of these."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference_gan
import table
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxsp
from jaxsp import transforms

N, D = 8, 5
AXIS = table.AXIS
KEY = table.KEY
SIZES = np.array([3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0])
WORKERS = {
    "vmap": lambda: jaxsp.Workers(N, devices=jax.devices()[:1]),
    "shard_map": lambda: jaxsp.Workers(N),
}


def federated(optimizer, every, **kwargs):
    return transforms.federated_average(optimizer, every, axis_name=AXIS, **kwargs)


def chosen(participants, rounds, key=KEY, n=N):
    """The workers of each round, as the documentation says that they are drawn."""
    if participants is None:
        return [range(n)] * rounds
    keys = (jax.random.fold_in(key, t) for t in range(rounds))
    return [np.sort(jax.random.permutation(k, n)[:participants]) for k in keys]


@pytest.mark.parametrize("mode", WORKERS)
@pytest.mark.parametrize("participants", [None, 3])
@pytest.mark.parametrize("sizes", [None, SIZES], ids=["alike", "weighted"])
def test_equals_numpy(x64, mode, participants, sizes):
    """Local extragradient, whose second call has the worker's own operator."""
    game, z0, every = table.make_game(N, D), np.ones(D), 7
    tx = federated(
        jaxsp.extragradient(optax.sgd(0.1)),
        every,
        weights=sizes,
        participants=participants,
        key=KEY,
    )
    ours, _ = table.trajectory(WORKERS[mode](), tx, game, np.tile(z0, (N, 1)), 200)

    def local(m, z, memory):
        F = lambda z: game.H[m] @ z + 0.3 * np.tanh(z) + game.h[m]  # noqa: E731
        return z - 0.1 * F(z - 0.1 * F(z)), memory

    theirs = reference_gan.federated_average(
        z0,
        local,
        None,
        chosen(participants, 200 // every + 1),
        np.ones(N) if sizes is None else sizes,
        every,
        200,
    )
    assert np.abs(theirs[-1] - theirs[0]).max() > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "optimizer",
    [optax.sgd(0.1, momentum=0.9), jaxsp.extragradient(optax.adam(0.003))],
    ids=["momentum", "extra_adam"],
)
def test_of_all_alike_it_is_the_optimizer_and_sync(x64, optimizer):
    game, z0 = table.make_game(N, D), np.ones((N, D))
    workers = WORKERS["vmap"]()
    ours, state = table.trajectory(workers, federated(optimizer, 3), game, z0, 40)
    chain = optax.chain(optimizer, jaxsp.sync(3, AXIS))
    theirs, (inner, sync) = table.trajectory(workers, chain, game, z0, 40)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-14)
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-13)
    jax.tree.map(close, state.inner, inner)
    np.testing.assert_array_equal(state.traffic.up, sync.traffic.up)


@functools.cache
def compiled(participants, every=3, rounds=4):
    """Every point and the last state, from a seed and each worker's push."""
    workers = WORKERS["vmap"]()

    def run(push, seed):
        tx = federated(
            optax.trace(0.5),
            every,
            weights=SIZES,
            participants=participants,
            key=jax.random.key(seed),
        )

        def step(carry, _):
            z, state = carry
            updates, state = tx.update(push, state, z)
            z = optax.apply_updates(z, updates)
            return (z, state), z

        z = jnp.zeros(D)
        (_, state), path = jax.lax.scan(step, (z, tx.init(z)), length=every * rounds)
        return path, state

    return jax.jit(workers.map(run, in_axes=(0, None)))


@settings(max_examples=40)
@given(seed=st.integers(0, 2**31 - 1), participants=st.sampled_from([1, 5]))
def test_a_round_is_that_of_its_participants(seed, participants):
    every = 3
    push = np.random.default_rng(seed).normal(size=(N, D)).astype(np.float32)
    path, state = jax.tree.map(np.asarray, compiled(participants)(push, seed))
    rounds = path.reshape(N, -1, every, D)
    start, trace, took_part = np.zeros(D), np.zeros((N, D)), np.zeros(N, int)
    for t, who in enumerate(chosen(participants, 4, jax.random.key(seed))):
        before_last, last = rounds[:, t, -2], rounds[:, t, -1]
        moved = np.abs(before_last - start).max(axis=1) > 1e-3
        np.testing.assert_array_equal(np.flatnonzero(moved), who)
        assert len(who) == participants
        took_part[who] += 1
        for _ in range(every):
            trace[who] = push[who] + 0.5 * trace[who]
        final = before_last[who] + trace[who]
        start = np.average(final, axis=0, weights=SIZES[who])
        np.testing.assert_allclose(last, np.tile(start, (N, 1)), atol=1e-4)
        start = last[0]
    # Only who took part has a state that went on: a round's worth each time.
    np.testing.assert_allclose(state.inner.trace, trace, atol=1e-5)


def test_all_take_part_equally_often():
    draws = np.stack([np.bincount(who, minlength=N) for who in chosen(3, 400)])
    tx = federated(optax.sgd(1.0), 1, participants=3, key=KEY)

    def run(m):
        def step(state, _):
            # Without parameters that move: who takes part shows in the mean.
            updates, state = tx.update(jnp.eye(N)[m], state, jnp.zeros(N))
            return state, updates

        return jax.lax.scan(step, tx.init(jnp.zeros(N)), length=400)[1]

    means = jax.jit(WORKERS["vmap"]().map(run))(jnp.arange(N))
    np.testing.assert_allclose(means[0], -draws / 3, atol=1e-6)
    np.testing.assert_allclose(draws.mean(axis=0), 3 / 8, atol=0.08)  # 3.3 σ


@pytest.mark.parametrize("where", ["gradient", "parameters"])
def test_a_broken_worker_that_takes_no_part_is_not_heard(where):
    who = chosen(3, 1)[0]
    absent = next(m for m in range(N) if m not in who)
    broken = jnp.zeros((N, D)).at[absent].set(jnp.nan)
    push, z = jnp.ones((N, D)), jnp.zeros((N, D))
    push, z = (push + broken, z) if where == "gradient" else (push, z + broken)
    workers = WORKERS["vmap"]()
    optimizer = optax.adam(0.1)
    tx = federated(optimizer, 2, weights=SIZES, participants=3, key=KEY)
    state, update = workers.map(tx.init)(z), jax.jit(workers.map(tx.update))
    for _ in range(2):
        updates, state = update(push, state, z)
        z = z + updates
    others = np.delete(np.asarray(z), absent, axis=0)
    np.testing.assert_allclose(others, -0.2, rtol=1e-5)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.inner))
    if where == "gradient":
        np.testing.assert_allclose(z[absent], -0.2, rtol=1e-5)
        # While one that takes part is heard.
        push = jnp.ones((N, D)).at[who[0]].set(jnp.nan)
        z = jnp.zeros((N, D))
        state = workers.map(tx.init)(z)
        for _ in range(2):
            updates, state = update(push, state, z)
            z = z + updates
        assert np.isnan(z).all()


def test_a_worker_that_counts_twice_is_two_workers(x64):
    def end(pushes, weights):
        workers = jaxsp.Workers(len(pushes), devices=jax.devices()[:1])
        tx = federated(optax.sgd(0.1), 2, weights=weights)

        def run(push):
            def step(carry, _):
                z, state = carry
                updates, state = tx.update(z - push, state, z)
                return (z + updates, state), None

            z = jnp.zeros(())
            return jax.lax.scan(step, (z, tx.init(z)), length=10)[0][0]

        return np.asarray(jax.jit(workers.map(run))(jnp.asarray(pushes)))

    twice = end([1.0, 3.0, 7.0], [1, 2, 1])
    np.testing.assert_allclose(twice, end([1.0, 3.0, 3.0, 7.0], None)[0], rtol=1e-14)
    np.testing.assert_allclose(twice, end([1.0, 3.0, 7.0], [0.3, 0.6, 0.3]), rtol=1e-14)
    assert abs(twice[0] - end([1.0, 3.0, 7.0], None)[0]) > 0.05


def test_a_round_sends_one_all_reduce_at_its_end_and_it_is_counted():
    workers = WORKERS["shard_map"]()
    tx = federated(optax.adam(0.1), 3, weights=SIZES, participants=3, key=KEY)
    z = {"w": jnp.ones((N, 3, 2)), "b": jnp.ones((N, 4))}
    state = workers.map(tx.init)(z)
    lowered = jax.jit(workers.map(tx.update)).lower(z, state, z)
    assert lowered.as_text().count("stablehlo.all_reduce") == 1  # leaves are packed
    step = lowered.compile()
    text = step.as_text()
    assert "all-reduce(" not in text[text.index("ENTRY") :]  # but in the conditional
    for other in ("all-gather", "all-to-all", "collective-permute"):
        assert other not in text
    for _ in range(7):
        _, state = jax.block_until_ready(step(z, state, z))
    sent = jaxsp.metrics.bits_sent(state)
    np.testing.assert_array_equal(sent.up, 2 * (7 * 32 * 10 * 2 // 8))  # 2 rounds
    np.testing.assert_array_equal(sent.down, sent.up)


def test_every_may_be_an_injected_hyperparameter():
    workers = WORKERS["vmap"]()
    tx = optax.inject_hyperparams(
        transforms.federated_average, static_args=("participants", "key")
    )(
        optimizer=optax.sgd(1.0),
        every=2,
        weights=SIZES,
        participants=5,
        key=KEY,
        axis_name=AXIS,
    )
    z = jnp.arange(float(N))
    state, step = workers.map(tx.init)(z), jax.jit(workers.map(tx.update))
    spread = []
    for _ in range(4):
        updates, state = step(jnp.arange(float(N)), state, z)
        z = z + updates
        spread.append(float(z.std()))
    assert [s < 1e-6 for s in spread] == [False, True, False, True]
    np.testing.assert_array_equal(state.hyperparams["weights"][0], SIZES)


def test_one_worker_is_legal_and_sends_nothing():
    workers = jaxsp.Workers(1, devices=jax.devices()[:1])
    tx = federated(optax.sgd(0.1), 2, weights=[5], participants=1, key=KEY)
    z = jnp.ones((1, D))
    state, step = workers.map(tx.init)(z), jax.jit(workers.map(tx.update))
    for _ in range(4):
        updates, state = step(z, state, z)
        z = z + updates
    np.testing.assert_allclose(z, 0.9**4, rtol=1e-6)
    assert int(jaxsp.metrics.bits_sent(state).up[0]) == 0


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        (dict(every=0), "every"),
        (dict(every=1.5), "every"),
        (dict(weights=[1.0, 0.0]), "weights"),
        (dict(weights=[1.0, -1.0]), "weights"),
        (dict(weights=[1.0, np.nan]), "weights"),
        (dict(weights=3.0), "weights"),
        (dict(weights=["a"]), "weights"),
        (dict(participants=0, key=KEY), "participants"),
        (dict(participants=0.5, key=KEY), "participants"),
        (dict(participants=2), "key must be"),
        (dict(participants=2, key=3), "key must be"),
        (dict(axis_name=None), "axis_name"),
    ],
)
def test_bad_arguments_are_named_when_built(kwargs, named):
    with pytest.raises(ValueError, match=named):
        transforms.federated_average(
            optax.sgd(0.1), **{"every": 2, "axis_name": AXIS, **kwargs}
        )


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        (dict(weights=[1.0, 2.0]), "weights must be 8"),
        (dict(participants=9, key=KEY), "participants must be at most .* 8"),
    ],
)
def test_what_does_not_fit_the_workers_is_named(kwargs, named):
    workers, z = WORKERS["vmap"](), jnp.ones((N, D))
    tx = federated(optax.sgd(0.1), 2, **kwargs)
    with pytest.raises(ValueError, match=named):
        workers.map(tx.update)(z, workers.map(tx.init)(z), z)
