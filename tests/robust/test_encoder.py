"""The encoder has the shapes, the sharing and the sizes of ALBERT."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsp.robust import encoder


def count(model):
    tokens = jax.ShapeDtypeStruct((1, model.length), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens, tokens)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.fixture(scope="module")
def small():
    model = encoder.Albert(20, 8, 16, layers=2, heads=2, length=6)
    tokens = jax.random.randint(jax.random.key(1), (3, 6), 0, 20)
    params = jax.jit(model.init)(jax.random.key(0), tokens, tokens)
    return model, params, tokens


def test_depth_costs_no_parameters_and_changes_the_output(small):
    model, params, tokens = small
    deeper = model.clone(layers=5)
    assert count(deeper) == count(model)
    outputs = [m.apply(params, tokens, tokens[:, :2] % 6) for m in (model, deeper)]
    assert outputs[0].shape == (3, 2, 20)
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-3


def test_the_number_of_parameters_is_that_of_the_formula(small):
    vocab, e, h, length = 20, 8, 16, 6
    layer = 4 * (h * h + h) + (h * 4 * h + 4 * h) + (4 * h * h + h) + 4 * h
    head = (h * e + e) + 2 * e + vocab
    assert count(small[0]) == vocab * e + length * e + (e * h + h) + layer + head


@pytest.mark.parametrize(("name", "millions"), [("base", 12), ("large", 18)])
def test_presets_are_as_large_as_in_the_paper(name, millions):
    model = encoder.albert(name)
    pooler = model.hidden_size**2  # of the second task
    assert round((count(model) + pooler) / 1e6) == millions


def test_embeddings_have_one_norm_and_are_their_own_nearest(small):
    model, params, tokens = small
    x = model.apply(params, tokens, method="embed")
    np.testing.assert_allclose(np.linalg.norm(x, axis=-1), np.sqrt(8), rtol=1e-5)
    np.testing.assert_array_equal(model.apply(params, x, method="nearest"), tokens)


def test_every_position_sees_every_other(small):
    model, params, tokens = small
    predict = jnp.broadcast_to(jnp.arange(6), (3, 6))
    delta = jnp.zeros((3, 6, 8)).at[0, 4].set(jnp.arange(8.0))
    plain, moved = (model.apply(params, tokens, predict, d) for d in (None, delta))
    change = np.abs(moved - plain).max(axis=-1)
    assert (change[0] > 1e-5).all()
    assert not change[1:].any()


def test_wrong_arguments():
    with pytest.raises(ValueError, match="preset must be one of tiny, base, large"):
        encoder.albert("small")
    with pytest.raises(ValueError, match="length must be at least 1"):
        encoder.albert("tiny", length=0)
