"""Operators against derivatives written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsp


def payoff(x, y, scale=1.0):
    return scale * (x["w"] ** 2 * y[0] + jnp.sin(x["w"]) * y[1] ** 3)


POINT = jaxsp.MinMax({"w": jnp.float32(0.5)}, jnp.array([2.0, -1.0]))


def test_saddle_descends_in_x_and_ascends_in_y():
    field = jaxsp.saddle(payoff)(POINT)
    x, (y0, y1) = 0.5, (2.0, -1.0)
    np.testing.assert_allclose(field.x["w"], 2 * x * y0 + np.cos(x) * y1**3, rtol=1e-6)
    expected = [-(x**2), -3 * np.sin(x) * y1**2]
    np.testing.assert_allclose(field.y, expected, rtol=1e-6)


def test_saddle_passes_arguments_on_and_accepts_any_pair():
    field = jaxsp.saddle(payoff)(tuple(POINT), 3.0)
    once = jaxsp.saddle(payoff)(POINT)
    assert isinstance(field, jaxsp.MinMax)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, 3 * b), field, once)


def test_game_gives_each_player_the_gradient_of_its_own_loss():
    operator = jaxsp.game(lambda x, y: x**2 * y, lambda x, y: (x - y) ** 2)
    field = operator(jaxsp.MinMax(3.0, 5.0))
    assert (float(field.x), float(field.y)) == (30.0, 4.0)


def test_game_of_f_and_minus_f_is_the_saddle():
    game = jaxsp.game(payoff, lambda x, y: -payoff(x, y))
    jax.tree.map(np.testing.assert_allclose, game(POINT), jaxsp.saddle(payoff)(POINT))


def test_gradient_of_any_tree():
    field = jaxsp.gradient(lambda z, a: a * z["p"] ** 2)({"p": 3.0}, 2.0)
    assert float(field["p"]) == 12.0


@pytest.mark.parametrize("kind", ["saddle", "game", "gradient"])
def test_has_aux_returns_what_the_loss_returns_beside(kind):
    def with_aux(x, y):
        return x * y, {"sum": x + y}

    if kind == "saddle":
        out = jaxsp.saddle(with_aux, has_aux=True)(jaxsp.MinMax(2.0, 5.0))
        expected = jaxsp.MinMax(5.0, -2.0), {"sum": 7.0}
    elif kind == "game":
        out = jaxsp.game(with_aux, with_aux, has_aux=True)(jaxsp.MinMax(2.0, 5.0))
        expected = jaxsp.MinMax(5.0, 2.0), jaxsp.MinMax({"sum": 7.0}, {"sum": 7.0})
    else:
        out = jaxsp.gradient(lambda z: (z**2, {"z": z}), has_aux=True)(3.0)
        expected = 6.0, {"z": 3.0}
    assert jax.tree.structure(out) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_allclose, out, expected)


def test_field_of_identical_workers_is_local_in_every_mode():
    """The derivative of shared parameters must not be summed over workers."""
    F = jaxsp.saddle(lambda x, y, a: a * x * y)
    scale = jnp.arange(1.0, 9.0)
    z = jaxsp.MinMax(2.0, 3.0)
    for devices in (jax.devices()[:1], jax.devices()):
        workers = jaxsp.Workers(8, devices)
        mapped = jax.jit(workers.map(lambda z, a: F(z, a), in_axes=(None, 0)))
        np.testing.assert_allclose(mapped(z, scale).x, 3 * scale)
