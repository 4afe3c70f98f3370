"""Metrics against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

import jaxsp
from jaxsp import metrics


def test_residual_and_distance_are_norms_over_all_players():
    F = jaxsp.saddle(lambda x, y: x @ y)
    z = jaxsp.MinMax(jnp.array([3.0, 0.0]), jnp.array([0.0, 4.0]))
    assert float(metrics.residual(F, z)) == 5.0
    origin = jaxsp.MinMax(jnp.zeros(2), jnp.zeros(2))
    assert float(metrics.distance(z, origin)) == 5.0


def test_consensus_distance_is_the_rms_distance_from_the_mean():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(6, 3)), rng.normal(size=(6, 2, 2))
    flat = np.concatenate([a, b.reshape(6, 4)], axis=1)
    expected = np.sqrt(((flat - flat.mean(0)) ** 2).sum(1).mean())
    ours = metrics.consensus_distance({"a": jnp.asarray(a), "b": jnp.asarray(b)})
    np.testing.assert_allclose(ours, expected, rtol=1e-6)
    assert metrics.consensus_distance(jnp.ones((4, 3))) == 0


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("count", [7, 7_000])
def test_consensus_distance_of_much_and_of_half_precision(dtype, count):
    """Sums of float16 over workers or numbers would overflow."""
    a = jnp.asarray(np.random.default_rng(0).uniform(5e3, 6e4, (8, count)), dtype)
    exact = np.asarray(a, float)
    expected = np.sqrt(((exact - exact.mean(0)) ** 2).sum(1).mean())
    for measure in (metrics.consensus_distance, jax.jit(metrics.consensus_distance)):
        np.testing.assert_allclose(measure(a), expected, rtol=1e-5)


def test_duality_gap_is_the_best_deviations_of_both_players():
    rng = np.random.default_rng(0)
    A = rng.normal(size=(4, 3))
    x, y = rng.dirichlet(np.ones(4)), rng.dirichlet(np.ones(3))
    best_reply_to_x = max(x @ A @ e for e in np.eye(3))
    best_reply_to_y = min(e @ A @ y for e in np.eye(4))
    gap = metrics.duality_gap(jnp.asarray(A), jaxsp.MinMax(*map(jnp.asarray, (x, y))))
    np.testing.assert_allclose(gap, best_reply_to_x - best_reply_to_y, rtol=1e-5)
    assert gap > 0


@pytest.mark.parametrize("shape", [(3, 4), (4,), (2, 4, 3)])
def test_duality_gap_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match="payoff must be a matrix"):
        metrics.duality_gap(jnp.ones(shape), jaxsp.MinMax(jnp.ones(4), jnp.ones(3)))


def test_consensus_distance_refuses_what_is_not_the_workers_parameters():
    params = {"w": jnp.arange(6.0).reshape(2, 3)}
    state = jax.vmap(
        lambda p: TrainState.create(apply_fn=None, params=p, tx=optax.adam(0.1))
    )(params)
    with pytest.raises(ValueError, match=r"stacked\.step .*as state\.params"):
        metrics.consensus_distance(state)
    with pytest.raises(ValueError, match=r"one leading axis.*\['v'\] has shape \(3,\)"):
        metrics.consensus_distance({"a": jnp.ones((2, 3)), "v": jnp.ones(3)})
    for devices in (1, 2):
        workers = jaxsp.Workers(2, jax.devices()[:devices])
        with pytest.raises(ValueError, match="here runs one of them"):
            workers.map(metrics.consensus_distance)(params["w"])


def test_bits_are_read_on_the_host():
    workers = jaxsp.Workers(2, jax.devices()[:1])
    tx = jaxsp.average(workers.axis_name)
    state = workers.map(tx.init)(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"is traced: .* Return the state"):
        jax.jit(metrics.bits_sent)(state)


def test_an_axis_that_nobody_has_bound_is_named():
    params = jnp.ones(3)
    gossip = jaxsp.gossip(jaxsp.topology.ring(4), axis_name="workers")
    for tx in (jaxsp.average("workers"), jaxsp.sync(1, "workers"), gossip):
        with pytest.raises(ValueError, match=r"'workers' is not the axis .* Workers"):
            tx.update(params, tx.init(params), params)


def test_what_is_sent_inside_of_multi_steps_is_not_counted_wrongly():
    """optax sends at every step and keeps the count of each third: 1/3 of it."""
    workers = jaxsp.Workers(4, jax.devices()[:1])
    average, sgd = jaxsp.average(workers.axis_name), optax.sgd(0.1)
    inside = optax.MultiSteps(optax.chain(average, sgd), 3)
    around = optax.chain(average, optax.MultiSteps(sgd, 3).gradient_transformation())

    def six_steps(tx):
        def run(z):
            def step(state, _):
                return tx.update(z, state, z)[1], None

            return jax.lax.scan(step, tx.init(z), length=6)[0]

        return jax.jit(workers.map(run))(jnp.ones((4, 5), jnp.float32))

    with pytest.raises(ValueError, match=r"inside of optax\.MultiSteps, which sends"):
        jaxsp.metrics.bits_sent(six_steps(inside))
    sent = 6 * 2 * 3 * 5 * 32 // 4
    assert jaxsp.metrics.bits_sent(six_steps(around)).up.tolist() == [sent] * 4
