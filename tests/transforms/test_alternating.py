"""Players who take turns: what each sees, and what is computed for it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference_gan

import jaxsp
from jaxsp import transforms

X, Y = 3, 2


def arrays(seed=0):
    """A strongly monotone quadratic game: the parts of its linear operator."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(X, Y)), rng.normal(size=X), rng.normal(size=Y)


def loss(x, y, B, a, b):
    return 0.3 * x @ x + x @ B @ y - 0.2 * y @ y + a @ x + b @ y


def field(x, y, B, a, b):
    """The same by hand: (∇_x f, −∇_y f)."""
    return 0.6 * x + B @ y + a, 0.4 * y - B.T @ x - b


def run(tx, steps, y_is_another_sample=False):
    """All points, `operator_fn` on the sample of the first field or on another."""
    F = jaxsp.saddle(loss)
    here, there = arrays(), arrays(1 if y_is_another_sample else 0)

    def step(carry, _):
        z, state = carry
        updates, state = tx.update(
            F(z, *here), state, z, operator_fn=lambda z: F(z, *there)
        )
        z = optax.apply_updates(z, updates)
        return (z, state), z

    z = jaxsp.MinMax(jnp.ones(X), jnp.ones(Y))
    return jax.lax.scan(step, (z, tx.init(z)), length=steps)[1]


@pytest.mark.parametrize("y_steps", [1, 3])
@pytest.mark.parametrize("fresh", [False, True], ids=["same", "fresh"])
def test_equals_numpy(x64, y_steps, fresh):
    """Only the first step of y is on the sample of the field that is given."""
    x_rule, y_rule = reference_gan.adam(0.003), reference_gan.descent(0.02)
    tx = transforms.alternating(
        optax.adam(0.003, b1=0.5, b2=0.9), optax.sgd(0.02), y_steps
    )
    path = run(tx, 200, fresh)
    here, there = arrays(), arrays(1 if fresh else 0)
    x, y, memory = np.ones(X), np.ones(Y), (x_rule[1], y_rule[1])
    for k in range(200):
        x, y, memory = reference_gan.alternating_step(
            x,
            y,
            memory,
            x_rule[0],
            y_rule[0],
            lambda x, y: field(x, y, *there)[0],
            lambda x, y, i: field(x, y, *(there if i else here))[1],
            y_steps,
        )
        np.testing.assert_allclose(path.x[k], x, rtol=0, atol=1e-12)
        np.testing.assert_allclose(path.y[k], y, rtol=0, atol=1e-12)
    assert min(abs(x - 1).max(), abs(y - 1).max()) > 0.1


def test_an_optimizer_may_look_ahead_with_the_field_of_its_player(x64):
    """On a game in which y alone rotates, only extragradient comes to rest."""
    rotation = jnp.array([[0.0, 1.0], [-1.0, 0.0]])

    def F(z):
        return jaxsp.MinMax(z.x - z.y, rotation @ z.y)

    def end(y):
        tx = transforms.alternating(optax.sgd(0.1), y)
        z = jaxsp.MinMax(jnp.ones(2), jnp.ones(2))

        def step(carry, _):
            z, state = carry
            updates, state = tx.update(F(z), state, z, operator_fn=F)
            return (optax.apply_updates(z, updates), state), None

        z, _ = jax.lax.scan(step, (z, tx.init(z)), length=300)[0]
        return float(optax.tree.norm(z))

    assert end(jaxsp.extragradient(optax.sgd(0.5))) < 1e-8
    assert end(optax.sgd(0.5)) > 1e3


def networks(width=64, batch=32):
    """Losses of two players who have no work in common, and parameters."""
    data = jnp.ones((batch, width))

    def network(w):
        return (jnp.tanh(jnp.tanh(data @ w[0]) @ w[1])).mean()

    def f_x(x, y):
        return network(x) * y[0][0, 0]

    def f_y(x, y):
        return network(y) * x[0][0, 0]

    def weights(hidden):
        return [jnp.full((width, hidden), 0.01), jnp.full((hidden, width), 0.01)]

    return f_x, f_y, jaxsp.MinMax(weights(4 * width), weights(2 * width))


def flops(fn, *args):
    return jax.jit(fn).lower(*args).compile().cost_analysis()["flops"]


@pytest.mark.parametrize("y_steps", [1, 3])
def test_an_update_costs_the_gradients_that_it_uses(y_steps):
    """Each step of y one gradient of y, the step of x one of x, and no more."""
    f_x, f_y, z = networks()
    F = jaxsp.game(f_x, f_y)
    tx = transforms.alternating(optax.sgd(0.1), optax.sgd(0.1), y_steps)

    def update(z, state):
        return tx.update(F(z), state, z, operator_fn=F)[0]

    of_x, of_y = flops(jax.grad(f_x), *z), flops(jax.grad(f_y, 1), *z)
    assert flops(lambda z: F(z), z) > 0.95 * (of_x + of_y)
    ours = flops(update, z, tx.init(z))
    assert 0.95 < ours / (y_steps * of_y + of_x) < 1.05


def test_each_player_keeps_to_its_own_optimizer_and_state():
    tx = transforms.alternating(optax.set_to_zero(), optax.adam(0.1), 2)
    z = jaxsp.MinMax({"w": jnp.ones(2)}, jnp.ones(3))
    state = tx.init(z)
    F = jaxsp.saddle(lambda x, y: x["w"].sum() * y.sum())
    updates, state = tx.update(F(z), state, z, operator_fn=F)
    np.testing.assert_array_equal(updates.x["w"], 0.0)
    assert int(state.y[0].count) == 2  # Adam's count
    assert jax.tree.structure(updates) == jax.tree.structure(z)


@pytest.mark.parametrize("y_steps", [0, -1, 1.5, True, None])
def test_y_steps_must_be_a_positive_integer(y_steps):
    with pytest.raises(ValueError, match="y_steps"):
        transforms.alternating(optax.sgd(0.1), optax.sgd(0.1), y_steps)


def test_what_is_missing_is_named():
    tx = transforms.alternating(optax.sgd(0.1), optax.sgd(0.1))
    z = jaxsp.MinMax(jnp.ones(2), jnp.ones(2))
    state = tx.init(z)
    with pytest.raises(ValueError, match="operator_fn"):
        tx.update(z, state, z)
    with pytest.raises(ValueError, match="params are required"):
        tx.update(z, state, operator_fn=lambda z: z)
    with pytest.raises(ValueError, match="MinMax"):
        tx.init(jnp.ones(2))
    with pytest.raises(ValueError, match="MinMax"):
        tx.update(z, state, tuple(z), operator_fn=lambda z: z)
