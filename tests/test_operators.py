"""Operators against derivatives written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
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


def test_game_of_three():
    """Each player's loss takes all parts; more than two players are a tuple."""

    def loss(i):
        def f(*z):
            *parts, scale = z
            return scale * parts[i] ** 2 * sum(parts), {"player": i}

        return f

    operator = jaxsp.game(loss(0), loss(1), loss(2), has_aux=True)
    field, aux = operator((1.0, 2.0, 3.0), 0.5)
    assert isinstance(field, tuple)
    expected = [0.5 * (2 * p * 6 + p**2) for p in (1.0, 2.0, 3.0)]
    np.testing.assert_allclose(field, expected, rtol=1e-6)
    assert aux == ({"player": 0}, {"player": 1}, {"player": 2})
    tx = jaxsp.extragradient(optax.sgd(0.1))
    z = (1.0, 2.0, 3.0)
    F = lambda z: operator(z, 0.5)[0]  # noqa: E731
    updates, _ = tx.update(F(z), tx.init(z), z, operator_fn=F)
    assert jax.tree.structure(updates) == jax.tree.structure(z)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: jaxsp.game(payoff, payoff, True),
            r"losses\[2\] must be a function .*has_aux=True.* got True",
        ),
        (lambda: jaxsp.game(payoff), "two functions or more.* got 1: write jaxsp.grad"),
        (lambda: jaxsp.saddle(3.0), "f must be a function of .* got 3.0"),
        (lambda: jaxsp.gradient(None), "f must be a function of .* got None"),
        (lambda: jaxsp.game(payoff, payoff)((1.0,)), "z must have 2 parts.* got 1"),
    ],
)
def test_refuses(build, message):
    with pytest.raises(ValueError, match=message):
        build()


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


def test_complex_parameters_descend():
    """On |z - w|², whose minimum JAX's own convention runs away from."""
    w = 1 + 3j
    square = lambda z: jnp.abs(z - w) ** 2  # noqa: E731
    F = jaxsp.gradient(square)
    np.testing.assert_allclose(F(jnp.complex64(0)), -2 * w, rtol=1e-6)
    minmax = jaxsp.saddle(lambda x, y: square(x) - square(y))
    alone = jaxsp.game(lambda x, y: square(x), lambda x, y: square(y))
    for operator in (minmax, alone):
        field = operator(jaxsp.MinMax(jnp.complex64(0), jnp.complex64(2j)))
        np.testing.assert_allclose(field.x, -2 * w, rtol=1e-6)
        np.testing.assert_allclose(field.y, 2 * (2j - w), rtol=1e-6)


@pytest.mark.parametrize("name", ["extra_step", "average_and_adam", "cp_oadam"])
def test_methods_find_the_complex_minimum(name):
    workers = jaxsp.Workers(2, jax.devices()[:1])
    tx = {
        "extra_step": jaxsp.methods.extra_step(0.1, workers.axis_name),
        "average_and_adam": optax.chain(
            jaxsp.average(workers.axis_name), optax.adam(0.05)
        ),
        "cp_oadam": jaxsp.methods.cp_oadam(0.02, workers.axis_name),
    }[name]
    F = jaxsp.gradient(lambda z, w: jnp.sum(jnp.abs(z - w) ** 2))

    def run(w):
        def step(carry, _):
            z, state = carry
            G = lambda z: F(z, w)  # noqa: E731
            updates, state = tx.update(G(z), state, z, operator_fn=G)
            return (optax.apply_updates(z, updates), state), None

        z = jnp.zeros(2, jnp.complex64)
        return jax.lax.scan(step, (z, tx.init(z)), length=600)[0][0]

    z = jax.jit(workers.map(run))(jnp.array([[1 + 3j, 2j], [3 - 1j, 4 + 0j]]))
    np.testing.assert_allclose(z, [[2 + 1j, 2 + 1j]] * 2, atol=0.02)
