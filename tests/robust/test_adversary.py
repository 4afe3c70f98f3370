"""The adversary is the game's own second player, and stays where it may."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsp
from jaxsp.robust import Attack, inner_maximum


def squares(w, shift, data):
    x, b = data
    return 0.5 * jnp.mean(jnp.square((x + shift) @ w - b))


def problem(workers=2, examples=3, dim=4):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(workers, examples, dim))
    return x, rng.normal(size=(workers, examples)), rng.normal(size=dim)


def reference_step(x, b, w, radius, steps, rate, norm):
    """One step of all workers, in NumPy: the attack of each example, then descent."""
    gradients = []
    for xs, bs in zip(x, b, strict=True):
        shifts = np.zeros_like(xs)
        for i in range(len(xs)):
            for _ in range(steps):
                error = (xs[i] + shifts[i]) @ w - bs[i]
                g = error * w / len(xs)
                size = 2.5 * radius / steps
                if norm == "l2":
                    shifts[i] += size * g / np.linalg.norm(g)
                    length = np.linalg.norm(shifts[i])
                    shifts[i] *= min(1, radius / length)
                else:
                    shifts[i] = np.clip(shifts[i] + size * np.sign(g), -radius, radius)
        moved = xs + shifts
        gradients.append(moved.T @ (moved @ w - bs) / len(xs))
    return w - rate * np.mean(gradients, axis=0)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_step_of_all_workers_is_that_of_the_plain_loop(norm):
    x, b, w = problem()
    workers = jaxsp.Workers(2, jax.devices()[:1])
    tx = optax.chain(jaxsp.average(workers.axis_name), optax.sgd(0.1))
    operator = inner_maximum(squares, Attack(0.3, 3, norm))

    def step(w, x, b):
        g = operator(w, jnp.zeros_like(x), (x, b))
        return optax.apply_updates(w, tx.update(g, tx.init(w), w)[0])

    found = workers.map(step)(workers.replicate(w), jnp.asarray(x), jnp.asarray(b))
    wanted = reference_step(x, b, w, 0.3, 3, 0.1, norm)
    np.testing.assert_allclose(found, [wanted, wanted], rtol=0, atol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_attack_reaches_the_maximum_of_a_linear_model(norm):
    x, b, w = (v[0] if v.ndim > 1 else v for v in problem())
    radius = 0.3
    delta = Attack(radius, 5, norm).ascend(
        jaxsp.saddle(squares), jnp.asarray(w), jnp.zeros_like(x), (x, b)
    )
    order = 2 if norm == "l2" else np.inf
    norms = np.linalg.norm(delta, order, axis=1)
    np.testing.assert_allclose(norms, radius, rtol=1e-12)
    dual = np.linalg.norm(w, 2 if norm == "l2" else 1)
    worst = 0.5 * np.mean(np.square(np.abs(x @ w - b) + radius * dual))
    np.testing.assert_allclose(squares(w, delta, (x, b)), worst, rtol=1e-12)


def test_examples_are_attacked_each_by_itself():
    x, b, w = (v[0] if v.ndim > 1 else v for v in problem())
    attack, field = Attack(0.3, 3), jaxsp.saddle(squares)
    together = attack.ascend(field, w, jnp.zeros(x.shape), (x, b))
    for i in range(len(x)):
        one = slice(i, i + 1)
        alone = attack.ascend(field, w, jnp.zeros(x[one].shape), (x[one], b[one]))
        np.testing.assert_allclose(together[one], alone, rtol=1e-5)


def test_no_steps_and_no_gradient_move_nothing():
    x, b, w = (v[0] if v.ndim > 1 else v for v in problem())
    field, zero = jaxsp.saddle(squares), jnp.zeros(x.shape)
    still = Attack(0.3, 0).ascend(field, w, zero, (x, b))
    flat = Attack(0.3, 4).ascend(field, 0 * w, zero, (x, b))  # no gradient anywhere
    assert not np.any(still)
    assert not np.any(flat)


def test_a_perturbation_may_be_a_tree():
    f = lambda w, d, _: jnp.mean(d["a"] @ w + d["b"])  # noqa: E731
    start = {"a": jnp.zeros((2, 2)), "b": jnp.zeros(2)}
    w = jnp.array([3.0, 4.0])
    delta = Attack(1.0, 2).ascend(jaxsp.saddle(f), w, start, None)
    length = np.sqrt(26.0)  # of (3, 4, 1)
    np.testing.assert_allclose(delta["a"], [[3 / length, 4 / length]] * 2, rtol=1e-6)
    np.testing.assert_allclose(delta["b"], [1 / length] * 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"radius": -1.0}, "radius must be finite and at least 0, got -1.0"),
        ({"radius": float("nan")}, "radius must be finite"),
        ({"steps": -1}, "steps must be at least 0"),
        ({"steps": 1.5}, "steps must be an integer"),
        ({"norm": "l1"}, "norm must be one of .* got 'l1'"),
        ({"step_size": 0.0}, "step_size must be finite and above 0"),
    ],
)
def test_wrong_arguments(given, words):
    with pytest.raises(ValueError, match=words):
        Attack(**{"radius": 1.0, "steps": 2} | given)
