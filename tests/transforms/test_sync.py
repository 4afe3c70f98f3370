"""Local steps between averages."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference_compressed as loops

import jaxsp
from jaxsp import compressors

WORKERS = {
    "vmap": lambda: jaxsp.Workers(8, devices=jax.devices()[:1]),
    "shard_map": lambda: jaxsp.Workers(8),
}


@pytest.mark.parametrize("mode", WORKERS)
@pytest.mark.parametrize("every", [1, 3])
def test_workers_meet_after_every_so_many_updates(mode, every):
    workers = WORKERS[mode]()
    tx = jaxsp.sync(every, workers.axis_name)
    z = workers.shard(jnp.arange(8.0))
    state = jax.jit(workers.map(tx.init))(z)
    update = jax.jit(workers.map(tx.update))
    expected = np.arange(8.0)
    for k in range(1, 8):
        push = np.arange(8, dtype=np.float32) * k
        updates, state = update(push, state, z)
        z = z + updates
        expected = expected + push
        if k % every == 0:
            expected = np.full(8, expected.mean())
        np.testing.assert_allclose(z, expected, rtol=1e-6)


def test_between_averages_the_program_sends_nothing():
    """The all-reduce stands inside a conditional, not beside it."""
    workers = jaxsp.Workers(8)
    tx = jaxsp.sync(4, workers.axis_name)
    z = jnp.ones((8, 3))
    state = jax.jit(workers.map(tx.init))(z)
    text = jax.jit(workers.map(tx.update)).lower(z, state, z).compile().as_text()
    entry = text[text.index("ENTRY") :]
    assert "conditional(" in text
    assert "all-reduce" in text
    assert "all-reduce(" not in entry


def test_every_may_be_an_injected_hyperparameter():
    workers = WORKERS["vmap"]()
    tx = optax.inject_hyperparams(jaxsp.sync)(every=2, channel=workers.axis_name)
    z = jnp.arange(8.0)
    state = jax.jit(workers.map(tx.init))(z)
    step = jax.jit(workers.map(tx.update))
    spread = []
    for _ in range(4):
        updates, state = step(jnp.arange(8.0), state, z)
        z = z + updates
        spread.append(float(z.std()))
    assert [s < 1e-6 for s in spread] == [False, True, False, True]


def meetings(every, updates):
    """After which updates the workers are at one point."""
    workers = WORKERS["vmap"]()
    tx = jaxsp.sync(every, workers.axis_name)

    def one_worker(z):
        def step(carry, _):
            z, state = carry
            push = jnp.asarray(jax.lax.axis_index(workers.axis_name), z.dtype) + 1
            updates, state = tx.update(push, state, z)
            return (z + updates, state), z + updates

        return jax.lax.scan(step, (z, tx.init(z)), length=updates)[1]

    path = np.asarray(jax.jit(workers.map(one_worker))(jnp.arange(8.0)))
    return [k for k in range(1, updates + 1) if np.ptp(path[:, k - 1]) < 1e-4]


def test_every_may_be_a_schedule_of_the_update():
    """Seldom at first, then more and more often; at least after every update."""

    def every(count):
        return jnp.where(count < 8, 4, jnp.where(count < 12, 2, 0.2))

    assert meetings(every, 15) == [4, 8, 10, 12, 13, 14, 15]
    assert meetings(lambda count: 5, 16) == meetings(5, 16) == [5, 10, 15]


@pytest.mark.parametrize("two_way", [False, True])
@pytest.mark.parametrize("mode", WORKERS)
def test_compressed_averages_are_the_loop(x64, mode, two_way):
    workers, d, steps = WORKERS[mode](), 12, 30
    top = compressors.top_k(0.25)
    channel = jaxsp.channel(
        workers.axis_name,
        top,
        compressors.sign() if two_way else None,
        key=jax.random.key(0),
        route="gather",
    )
    tx = jaxsp.sync(3, channel)
    rng = np.random.default_rng(0)
    start, pushes = rng.normal(size=d), rng.normal(size=(steps, 8, d))

    def one_worker(z, pushes):
        def step(carry, push):
            z, state = carry
            updates, state = tx.update(push, state, z)
            return (z + updates, state), z + updates

        return jax.lax.scan(step, (z, tx.init(z)), pushes)[1]

    ours = jax.jit(workers.map(one_worker))(
        jnp.tile(start, (8, 1)), jnp.asarray(pushes.swapaxes(0, 1))
    )
    theirs = loops.local_steps(
        np.tile(start, (8, 1)),
        lambda k, Z: Z + pushes[k],
        3,
        steps,
        loops.top_k(3),
        loops.scaled_sign if two_way else loops.exactly,
    )[1:]
    np.testing.assert_allclose(np.asarray(ours).swapaxes(0, 1), theirs, atol=1e-12)


def test_feedback_brings_across_what_a_compressor_leaves_out():
    """Workers that stand still arrive at the mean of where they were pushed to."""
    workers = WORKERS["vmap"]()
    top, key = compressors.top_k(0.1), jax.random.key(0)
    tx = jaxsp.sync(1, jaxsp.channel(workers.axis_name, top, key=key))
    z = jnp.zeros((8, 20))
    push = jnp.asarray(np.random.default_rng(0).normal(size=(8, 20)), jnp.float32)
    state = workers.map(tx.init)(z)
    update = jax.jit(workers.map(tx.update))
    for k in range(60):
        updates, state = update(push if k == 0 else 0 * push, state, z)
        z = z + updates
    np.testing.assert_allclose(z, jnp.tile(push.mean(0), (8, 1)), atol=1e-6)
    each = 2 * (32 + 32) * 7  # two values and two indices to seven workers
    assert int(jaxsp.metrics.bits_sent(state).up[0]) <= 60 * each


def end(F, outer, every, rounds):
    """How far from 0 local extragradient of step 0.3 ends, from a point of ones."""
    workers = WORKERS["vmap"]()
    tx = jaxsp.methods.extra_step_local_sgd(0.3, every, workers.axis_name, outer=outer)

    def one_worker(z):
        def step(carry, _):
            z, state = carry
            updates, state = tx.update(F(z), state, z, operator_fn=F)
            return (optax.apply_updates(z, updates), state), None

        return jax.lax.scan(step, (z, tx.init(z)), length=every * rounds)[0][0]

    z = workers.replicate(jaxsp.MinMax(jnp.ones(9), jnp.ones(9)))
    z = jax.jit(workers.map(one_worker))(z)
    return float(optax.tree.norm(jax.tree.map(lambda x: x[0], z)))


DILOCO = optax.sgd(0.7, momentum=0.9, nesterov=True)
SPECTRUM = jnp.linspace(0.1, 1.0, 9)


@pytest.mark.parametrize("every", [1, 10, 100])
def test_outer_momentum_diverges_on_rotations_where_the_average_converges(x64, every):
    F = jaxsp.saddle(lambda x, y: jnp.sum(jnp.maximum(SPECTRUM, 0.2) * x * y))
    average = end(F, None, every, 400)
    assert average < 2.5  # from 4.2
    sgd = end(F, optax.sgd(1.0), every, 400)
    np.testing.assert_allclose(sgd, average, rtol=1e-9)
    assert not end(F, DILOCO, every, 400) < 1e6


def test_outer_momentum_helps_a_strongly_monotone_game_of_few_local_steps(x64):
    F = jaxsp.saddle(lambda x, y: 0.5 * jnp.sum(SPECTRUM * (x**2 - y**2)))
    factors = [
        (end(F, outer, every, 60) / end(F, outer, every, 30)) ** (1 / 30)
        for every in (1, 10)
        for outer in (DILOCO, None)
    ]
    np.testing.assert_allclose(factors, [0.91, 0.97, 0.84, 0.74], atol=0.01)


def test_the_outer_optimizer_sees_the_same_on_all_workers():
    """It gets the mean change and r, none of what workers are given apart."""
    workers = WORKERS["shard_map"]()

    def nosy(updates, state, params=None, *, value=0.0):
        return updates + value, state

    nosy = optax.GradientTransformationExtraArgs(DILOCO.init, nosy)
    tx = jaxsp.sync(2, workers.axis_name, outer=optax.chain(nosy, optax.adam(0.1)))
    z = workers.shard(jnp.ones((8, 3)))
    state = workers.shard(jax.jit(workers.map(tx.init))(z))
    update = jax.jit(workers.map(lambda u, s, z: tx.update(u, s, z, value=u[0])))
    for _ in range(4):
        push = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)
        updates, state = update(push, state, z)
        z = z + updates
    for leaf in jax.tree.leaves((state.memory.agreed, state.memory.outer)):
        assert (leaf == leaf[:1]).all()


@pytest.mark.parametrize("outer", [0.7, optax.sgd, "nesterov"])
def test_an_outer_optimizer_is_a_transformation(outer):
    with pytest.raises(ValueError, match="outer must be an optax transformation"):
        jaxsp.sync(2, "workers", outer=outer)


def test_a_channel_that_is_not_contractive_is_refused():
    rand, key = compressors.rand_k(0.5), jax.random.key(0)
    with pytest.raises(ValueError, match="channel must be contractive"):
        jaxsp.sync(2, jaxsp.channel("workers", rand, key=key))


@pytest.mark.parametrize("every", [0, -2, 1.5, None, True])
def test_every_must_be_a_positive_integer(every):
    with pytest.raises(ValueError, match="every"):
        jaxsp.sync(every, "workers")
