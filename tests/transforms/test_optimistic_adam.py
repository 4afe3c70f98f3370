"""The form of OAdam that is implemented, beside the one that is not."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference

from jaxsp import transforms


def path(tx, gradients, dtype=None):
    p = jnp.zeros(2, dtype)
    state, points = tx.init(p), []
    for g in gradients:
        updates, state = tx.update(jnp.asarray(g, dtype), state, p)
        assert updates.dtype == p.dtype
        p = p + updates
        points.append(np.asarray(p))
    return np.stack(points)


def test_equals_numpy_and_differs_from_optax_by_a_step_at_the_start(x64):
    gradients = np.random.default_rng(0).normal(size=(30, 2)) + 1
    ours = path(transforms.optimistic_adam(0.01), gradients)
    calls = iter(gradients)
    theirs = reference.oadam(np.zeros(2), lambda _: next(calls), 0.01, 30)
    np.testing.assert_allclose(ours, theirs[1:], atol=1e-14)
    other = path(
        optax.optimistic_adam_v2(0.01, b1=0.5, b2=0.9, nesterov=False), gradients
    )
    np.testing.assert_allclose(np.abs(ours[0]), 0.02, rtol=1e-6)
    assert np.abs(ours - other).max() > 1e-3


def test_a_zero_gradient_does_not_move(x64):
    zeros = np.zeros((5, 2))
    np.testing.assert_array_equal(path(transforms.optimistic_adam(0.1), zeros), zeros)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("size", [0.0, 1e-4, 1e3])
def test_half_precision_follows_float32(dtype, size):
    """Squares and epsilon are below what float16 holds, or above."""
    gradients = size * np.array([[1.0, -0.5], [0.5, 1.0], [1.0, 0.0]])
    ours = path(transforms.optimistic_adam(0.1), gradients, dtype)
    exact = path(transforms.optimistic_adam(0.1), gradients)
    np.testing.assert_allclose(ours.astype(float), exact, atol=0.01)


def test_complex_gradients_have_real_second_moments(x64):
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(5, 2)) + 1j * rng.normal(size=(5, 2))
    tx = transforms.optimistic_adam(0.01)
    state = tx.init(jnp.zeros(2, complex))
    v = np.zeros(2)
    for g in gradients:
        _, state = tx.update(jnp.asarray(g), state)
        v = 0.9 * v + 0.1 * np.abs(g) ** 2
    assert not jnp.iscomplexobj(state.nu)
    np.testing.assert_allclose(state.nu, v, rtol=1e-12)
