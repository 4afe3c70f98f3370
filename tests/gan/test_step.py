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


def spied(step_of):
    """A method of no step that keeps what it is given, as the extra arguments say."""

    def update(updates, state, params, *, operator_fn, full_operator_fn, **_):
        seen = (updates, operator_fn(params), operator_fn(params))
        whole = full_operator_fn(params) if step_of == "whole" else updates
        return jax.tree.map(jnp.zeros_like, updates), (*seen, whole)

    return optax.GradientTransformationExtraArgs(lambda z: (z,) * 4, update)


def test_the_second_sample_is_another_unless_it_is_the_same():
    """And it is one sample, wherever the field is taken."""
    rows = jax.random.normal(jax.random.key(5), (2, 40, 2))
    key, sizes = jax.random.key(0), jnp.full(2, 40)
    for same in (False, True):
        run = step.make_step(
            losses.hinge(GAN), spied("one"), WORKERS, batch_size=4, same_sample=same
        )
        state, _ = run(
            step.init_state(GAN, spied("one"), WORKERS, key), rows, sizes, key, 1
        )
        first, second, again, _ = state.opt_state
        assert jaxsp.metrics.distance(second, again) == 0
        assert (jaxsp.metrics.distance(first, second) == 0) == same


def test_the_field_on_all_data_takes_every_example_once(x64):
    """A loss that is linear in the batch has the mean of the share as its gradient;
    a share of two batches and a half begins anew in the third."""
    linear = losses.Losses(
        lambda x, y, batch, key: sum(jnp.sum(p) for p in jax.tree.leaves(x)),
        lambda x, y, batch, key: (
            jnp.mean(batch) * sum(jnp.sum(p) for p in jax.tree.leaves(y))
        ),
    )
    rows = jax.random.normal(jax.random.key(5), (2, 12, 2))
    sizes, key = jnp.array([12, 10]), jax.random.key(0)
    run = step.make_step(linear, spied("whole"), WORKERS, batch_size=4)
    state = step.init_state(GAN, spied("whole"), WORKERS, key)
    state, _ = run(state, rows, sizes, key, 1)
    for leaf in jax.tree.leaves(state.opt_state[3].y):
        flat = leaf.reshape(2, -1)
        wanted = rows[0].mean(), jnp.concatenate([rows[1, :10], rows[1, :2]]).mean()
        for found, mean in zip(flat, wanted, strict=True):
            assert jnp.abs(found - mean).max() < 1e-6
