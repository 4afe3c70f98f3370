"""Local steps between averages."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsp

WORKERS = {
    "vmap": lambda: jaxsp.Workers(8, devices=jax.devices()[:1]),
    "shard_map": lambda: jaxsp.Workers(8),
}


@pytest.mark.parametrize("mode", WORKERS)
@pytest.mark.parametrize("every", [1, 3])
def test_workers_meet_after_every_so_many_updates(mode, every):
    workers = WORKERS[mode]()
    tx = jaxsp.sync(every, axis_name=workers.axis_name)
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
    tx = jaxsp.sync(4, axis_name=workers.axis_name)
    z = jnp.ones((8, 3))
    state = jax.jit(workers.map(tx.init))(z)
    text = jax.jit(workers.map(tx.update)).lower(z, state, z).compile().as_text()
    entry = text[text.index("ENTRY") :]
    assert "conditional(" in text
    assert "all-reduce" in text
    assert "all-reduce(" not in entry


def test_every_may_be_an_injected_hyperparameter():
    workers = WORKERS["vmap"]()
    tx = optax.inject_hyperparams(jaxsp.sync)(every=2, axis_name=workers.axis_name)
    z = jnp.arange(8.0)
    state = jax.jit(workers.map(tx.init))(z)
    step = jax.jit(workers.map(tx.update))
    spread = []
    for _ in range(4):
        updates, state = step(jnp.arange(8.0), state, z)
        z = z + updates
        spread.append(float(z.std()))
    assert [s < 1e-6 for s in spread] == [False, True, False, True]


@pytest.mark.parametrize("every", [0, -2, 1.5, None, True])
def test_every_must_be_a_positive_integer(every):
    with pytest.raises(ValueError, match="every"):
        jaxsp.sync(every, axis_name="workers")
