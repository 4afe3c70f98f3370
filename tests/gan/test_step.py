"""One training step: methods inside of optax's own wrappers."""

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxsp
from jaxsp.gan import losses, models, step

GAN = models.mlp((2,), latent_size=3, width=4, depth=1)
WORKERS = jaxsp.Workers(2, jax.devices()[:1])
AXIS = WORKERS.axis_name
SHARES = jnp.ones((2, 4, 2)), jnp.full(2, 4)


def test_multi_steps_pass_the_operator_on():
    """Two steps' mean gradient is followed by the look ahead of the second."""
    method = optax.MultiSteps(jaxsp.extragradient(optax.sgd(0.1)), 2)
    key = jax.random.key(0)
    run = step.make_step(losses.hinge(GAN), method, WORKERS, batch_size=2)
    state = step.init_state(GAN, method, WORKERS, key)
    start = WORKERS.fetch(state.params)
    moved = []
    for _ in range(2):
        state, _ = run(state, *SHARES, key, 1)
        moved.append(float(jaxsp.metrics.distance(WORKERS.fetch(state.params), start)))
    assert moved[0] == 0 < moved[1]


def test_methods_that_send_inside_of_multi_steps_are_refused_before_training():
    method = optax.MultiSteps(jaxsp.methods.extra_step(0.1, AXIS), 2)
    with pytest.raises(ValueError, match=r"inside of optax\.MultiSteps.* write"):
        step.init_state(GAN, method, WORKERS, jax.random.key(0))
