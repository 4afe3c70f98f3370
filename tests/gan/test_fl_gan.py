"""Federated averaging of whole GANs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference_gan

import jaxsp
from jaxsp.gan import losses, models
from jaxsp.gan.fl_gan import fl_gan

N, X, Y = 4, 3, 2
KEY = jax.random.key(3)
SIZES = [10.0, 40.0, 20.0, 30.0]
WORKERS = {
    "vmap": lambda n=N: jaxsp.Workers(n, devices=jax.devices()[:1]),
    "shard_map": lambda n=N: jaxsp.Workers(n, devices=jax.devices()[:n]),
}
AXIS = WORKERS["vmap"]().axis_name


def quadratic(n, seed=0):
    """Strongly convex and strongly concave, another game on every worker."""
    rng = np.random.default_rng(seed)
    return dict(
        A=0.3 + rng.uniform(size=(n, X)),
        B=rng.normal(size=(n, X, Y)),
        C=0.3 + rng.uniform(size=(n, Y)),
        a=rng.normal(size=(n, X)),
        b=rng.normal(size=(n, Y)),
    )


def loss(x, y, A, B, C, a, b):
    return x @ (A * x) / 2 + x @ B @ y - y @ (C * y) / 2 + a @ x + b @ y


@pytest.mark.parametrize(
    ("mode", "n", "disc_steps", "participants"),
    [
        ("vmap", N, 1, None),
        ("vmap", N, 3, 2),
        ("shard_map", N, 3, 2),
        ("vmap", 1, 2, 1),
    ],
)
def test_equals_numpy(x64, mode, n, disc_steps, participants):
    every, steps, data = 5, 200, quadratic(n)
    sizes = SIZES[:n] if participants else None
    workers = WORKERS[mode](n)
    tx = fl_gan(
        optax.sgd(0.02),
        optax.adam(0.003, b1=0.5, b2=0.9),
        every,
        disc_steps=disc_steps,
        weights=sizes,
        participants=participants,
        key=KEY if participants else None,
        axis_name=AXIS,
    )

    def run(data):
        F = jaxsp.saddle(lambda x, y: loss(x, y, **data))

        def step(carry, _):
            z, state = carry
            updates, state = tx.update(F(z), state, z, operator_fn=F)
            z = optax.apply_updates(z, updates)
            return (z, state), jnp.concatenate(z)

        z = jaxsp.MinMax(jnp.ones(X), jnp.ones(Y))
        return jax.lax.scan(step, (z, tx.init(z)), length=steps)[1]

    ours = jax.jit(workers.map(run))(workers.shard(data))

    def field(m, x, y):
        A, B, C, a, b = (part[m] for part in data.values())
        return A * x + B @ y + a, C * y - B.T @ x - b

    def drawn(t):
        return jax.random.permutation(jax.random.fold_in(KEY, t), n)[:participants]

    theirs = reference_gan.fl_gan(
        np.ones(X + Y),
        X,
        reference_gan.descent(0.02),
        reference_gan.adam(0.003),
        field,
        disc_steps,
        [np.asarray(drawn(t)) for t in range(steps // every)],
        sizes or np.ones(n),
        every,
        steps,
    )
    assert np.abs(theirs[-1] - theirs[0]).max() > 0.1
    np.testing.assert_allclose(
        np.asarray(ours).swapaxes(0, 1), theirs[1:], rtol=0, atol=1e-12
    )


GAN = models.mlp((2,), latent_size=4, width=32)
GAME = losses.non_saturating(GAN)


def gan_step(tx, batch_size):
    """A step of one worker, whose data are its own."""
    F = jaxsp.game(GAME.generator, GAME.discriminator)

    def step(z, state, k):
        here = jaxsp.comm.worker_index(AXIS).astype(float)
        key = jaxsp.comm.worker_key(jax.random.fold_in(KEY, k), AXIS)
        batch = here + 0.1 * jax.random.normal(key, (batch_size, 2))
        updates, state = tx.update(
            F(z, batch, key), state, z, operator_fn=lambda z: F(z, batch, key)
        )
        return optax.apply_updates(z, updates), state

    return step


@pytest.fixture(scope="module")
def networks():
    return jax.jit(lambda: models.init(GAN, KEY))()


def test_gans_meet_after_a_round_and_the_round_is_counted(networks):
    workers, adam = WORKERS["vmap"](), optax.adam(1e-2, b1=0.5)
    tx = fl_gan(adam, adam, 3, weights=SIZES, axis_name=AXIS)
    z = workers.replicate(networks)
    state = workers.map(tx.init)(z)
    step = jax.jit(workers.map(gan_step(tx, 16), in_axes=(0, 0, None)))
    apart = []
    for k in range(6):
        z, state = jax.block_until_ready(step(z, state, k))
        apart.append(float(jaxsp.metrics.consensus_distance(z)))
    assert [d < 1e-6 for d in apart] == [False, False, True] * 2
    assert min(apart[k] for k in (0, 1, 3, 4)) > 1e-3
    numbers = sum(leaf.size for leaf in jax.tree.leaves(networks))  # |w| + |θ|
    sent = jaxsp.metrics.bits_sent(state)
    np.testing.assert_array_equal(sent.up, 2 * (2 * 3 * 32 * numbers // 4))
    np.testing.assert_array_equal(sent.down, sent.up)
    for player in state.inner:  # each worker's moments are its own
        assert max(np.ptp(m, axis=0).max() for m in jax.tree.leaves(player)) > 1e-4


def test_a_worker_pays_for_the_gradients_that_it_uses(networks):
    workers, rows = WORKERS["vmap"](1), 256  # so many that optimizers are free
    tx = fl_gan(optax.sgd(0.1), optax.sgd(0.1), 3, disc_steps=2, axis_name=AXIS)

    def flops(fn, *args):
        return jax.jit(fn).lower(*args).compile().cost_analysis()["flops"]

    z = workers.replicate(networks)
    step = workers.map(gan_step(tx, rows), in_axes=(0, 0, None))
    ours = flops(step, z, workers.map(tx.init)(z), 0)
    batch = jnp.ones((rows, 2))
    of_d = flops(jax.grad(GAME.discriminator, 1), *networks, batch, KEY)
    of_g = flops(jax.grad(GAME.generator), *networks, batch, KEY)
    # Not above: the steps of the discriminator may share what was generated.
    assert of_d + of_g < ours < 1.05 * (2 * of_d + of_g)


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        (dict(sync_every=0), "every"),
        (dict(disc_steps=0), "disc_steps"),
        (dict(weights=[0.0]), "weights"),
        (dict(participants=1), "key"),
    ],
)
def test_bad_arguments_are_named_when_built(kwargs, named):
    kwargs = {"sync_every": 2, "axis_name": AXIS, **kwargs}
    with pytest.raises(ValueError, match=named):
        fl_gan(optax.sgd(0.1), optax.sgd(0.1), **kwargs)
