"""Metrics against NumPy."""

import jax.numpy as jnp
import numpy as np

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
