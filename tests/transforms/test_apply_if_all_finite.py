"""One worker's bad step is nobody's step, in every mode."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsp
from jaxsp import compressors, methods, topology, transforms

N, STEPS, BAD = 8, 7, (1, 4)
KEY = jax.random.key(2)


def inside(name, axis):
    channel = jaxsp.channel(axis, compressors.sign(), key=KEY)
    return {
        "average": lambda: optax.chain(jaxsp.average(axis), optax.adam(0.1)),
        "sync": lambda: optax.chain(optax.sgd(0.1), jaxsp.sync(2, axis)),
        "gossip": lambda: optax.chain(
            optax.sgd(0.1),
            jaxsp.gossip(topology.one_peer_exponential(N), axis_name=axis),
        ),
        "federated": lambda: transforms.federated_average(
            optax.sgd(0.1), 2, participants=4, key=KEY, axis_name=axis
        ),
        "masha2": lambda: methods.masha2(0.1, channel, 0.5),
    }[name]()


def run(name, devices, bad, most=3):
    """The path of all workers when worker 3 has NaN in some steps; its state."""
    workers = jaxsp.Workers(N, jax.devices()[:devices])
    tx = inside(name, workers.axis_name)
    if most:
        tx = transforms.apply_if_all_finite(tx, most, workers.axis_name)

    def one(target, mine):
        def step(carry, broken):
            z, state = carry
            F = lambda z: z - target + jnp.where(broken & mine, jnp.nan, 0.0)  # noqa: E731
            updates, state = tx.update(F(z), state, z, operator_fn=F)
            z = optax.apply_updates(z, updates)
            return (z, state), z

        z = jnp.zeros(3)
        broken = jnp.isin(jnp.arange(STEPS), jnp.array(bad, int))
        (_, state), path = jax.lax.scan(step, (z, tx.init(z)), broken)
        return path, state

    targets = np.random.default_rng(0).normal(size=(N, 3))
    path, state = jax.jit(workers.map(one))(jnp.asarray(targets), jnp.arange(N) == 3)
    return np.asarray(path).swapaxes(0, 1), state


@pytest.mark.parametrize("name", ["average", "sync", "gossip", "federated", "masha2"])
def test_all_leave_the_same_steps_out(name):
    whole, _ = run(name, 1, (), most=0)
    good = [t for t in range(STEPS) if t not in BAD]
    for devices in (1, 2, 8):
        path, state = run(name, devices, BAD)
        np.testing.assert_allclose(path[good], whole[: len(good)], atol=1e-6)
        for t in BAD:
            np.testing.assert_array_equal(path[t], path[t - 1])
        np.testing.assert_array_equal(state.skipped, len(BAD))
        np.testing.assert_array_equal(state.in_a_row, 0)
        sent = jaxsp.metrics.bits_sent(state).up
        _, without = run(name, devices, (), most=0)
        if name in ("average", "gossip"):  # what they have sent in a bad step was sent
            assert (sent == jaxsp.metrics.bits_sent(without).up).all()


def test_too_many_in_a_row_are_taken():
    path, state = run("average", 1, (1, 2, 3), most=2)
    np.testing.assert_array_equal(path[1], path[2])
    assert np.isfinite(path[2]).all()
    assert np.isnan(path[3:]).all()
    np.testing.assert_array_equal(state.skipped, 2)


@pytest.mark.parametrize(
    "build",
    [
        lambda bad: transforms.apply_if_all_finite(bad, 3, "workers"),
        lambda bad: transforms.extragradient(bad),
        lambda bad: transforms.alternating_extragradient(bad),
        lambda bad: transforms.alternating(optax.sgd(0.1), bad),
        lambda bad: transforms.past_extragradient(0.1, bad),
        lambda bad: transforms.federated_average(bad, 2, axis_name="workers"),
    ],
)
@pytest.mark.parametrize("bad", ["adam", optax.adam, 0.1])
def test_what_is_no_transformation_is_named(build, bad):
    hint = r": write adam\(" if bad is optax.adam else ""
    with pytest.raises(ValueError, match=rf"must be an optax .* got .*{hint}"):
        build(bad)
