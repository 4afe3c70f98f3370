"""A projection is the point of the set from which the rest of it lies behind."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsp
from jaxsp import projections

POINTS = (
    np.random.default_rng(0).normal(size=(50, 6)) * np.geomspace(0.01, 100, 50)[:, None]
)


def behind(v, p, vertices):
    """Whether <v - p, q - p> <= 0 for all vertices q, so for all of their hull."""
    products = np.einsum("nd,knd->kn", v - p, vertices[:, None] - p)
    return (products <= 1e-10 * np.linalg.norm(v, axis=1)).all()


@pytest.mark.parametrize("total", [1.0, 3.0])
def test_simplex(x64, total):
    p = np.asarray(projections.simplex(jnp.asarray(POINTS), total))
    np.testing.assert_allclose(p.sum(1), total)
    assert (p >= 0).all()
    assert behind(POINTS, p, total * np.eye(6))
    assert 0 < (p == 0).mean() < 1
    np.testing.assert_allclose(
        projections.simplex(jnp.asarray(p), total), p, atol=1e-14
    )


def test_simplex_is_one_for_each_array_and_row():
    z = jaxsp.MinMax(jnp.array([[1.0, 1.0], [5.0, 0.0]]), jnp.array([0.2, 0.2, -9.0]))
    p = projections.simplex(z)
    np.testing.assert_allclose(p.x, [[0.5, 0.5], [1, 0]])
    np.testing.assert_allclose(p.y, [0.5, 0.5, 0])


def test_simplex_far_from_zero():
    shift = jnp.array([0.0, 0.5, -7.0]) + 1e6
    np.testing.assert_allclose(projections.simplex(shift), [0.25, 0.75, 0], atol=1e-6)
    v = jnp.arange(1000) % 7 / 8  # exact in float32, and so are the shifted ones
    np.testing.assert_allclose(
        projections.simplex(v + 1e5), projections.simplex(v), atol=1e-6
    )
    logits = jnp.array([0.0, -jnp.inf, 0.0, -3e38])
    np.testing.assert_allclose(projections.simplex(logits), [0.5, 0, 0.5, 0])


@pytest.mark.parametrize("radius", [0.5, 4.0])
def test_l1_ball(x64, radius):
    p = np.asarray(
        jax.vmap(lambda v: projections.l1_ball(v, radius))(jnp.asarray(POINTS))
    )
    inside = np.abs(POINTS).sum(1) <= radius
    assert 0 < inside.sum() < len(POINTS)
    np.testing.assert_array_equal(p[inside], POINTS[inside])
    np.testing.assert_allclose(np.abs(p[~inside]).sum(1), radius)
    assert behind(POINTS, p, radius * np.vstack([np.eye(6), -np.eye(6)]))


@pytest.mark.parametrize("radius", [0.5, 4.0])
def test_ball_of_a_whole_tree(x64, radius):
    def project(v):
        p = projections.ball({"a": v[:2], "b": v[2:].reshape(2, 2)}, radius)
        return jnp.concatenate([p["a"], p["b"].ravel()])

    p = np.asarray(jax.vmap(project)(jnp.asarray(POINTS)))
    norm = np.linalg.norm(POINTS, axis=1, keepdims=True)
    inside = norm[:, 0] <= radius
    assert 0 < inside.sum() < len(POINTS)
    np.testing.assert_array_equal(p[inside], POINTS[inside])
    np.testing.assert_allclose(p, POINTS * np.minimum(1, radius / norm))


def test_ball_at_the_ends_of_float32():
    big = jnp.array([3e38, -3e38, 3e38])
    np.testing.assert_allclose(
        projections.ball(big, 3.0), np.sqrt(3) * np.array([1, -1, 1]), rtol=1e-6
    )
    np.testing.assert_array_equal(projections.ball(jnp.zeros(3), 0.0), np.zeros(3))
    np.testing.assert_array_equal(projections.ball(jnp.ones(3), 0.0), np.zeros(3))
    grad = jax.grad(lambda v: projections.ball(v, 1.0).sum())
    np.testing.assert_array_equal(grad(jnp.zeros(3)), np.ones(3))
    np.testing.assert_allclose(grad(jnp.array([2.0, 0.0])), [0, 0.5], atol=1e-6)


def test_box():
    v = jnp.array([-2.0, 0.5, 3.0])
    np.testing.assert_array_equal(projections.box(v, -1.0, 1.0), [-1, 0.5, 1])
    np.testing.assert_array_equal(projections.box(v, 0.0, math.inf), [0, 0.5, 3])
    compiled = jax.jit(lambda v: projections.box(v, -1.0, 1.0))
    np.testing.assert_array_equal(compiled(v), [-1, 0.5, 1])
    tree = {"a": v, "b": v[:2]}
    lower = {"a": jnp.array([-3.0, 1.0, 0.0]), "b": 0.0}
    p = projections.box(tree, lower, 2.0)
    np.testing.assert_array_equal(p["a"], [-2, 1, 2])
    np.testing.assert_array_equal(p["b"], [0, 0.5])


PROJECT = {
    "simplex": projections.simplex,
    "ball": lambda v: projections.ball(v, 1.0),
    "l1_ball": lambda v: projections.l1_ball(v, 1.0),
    "box": lambda v: projections.box(v, np.float64(-1), jnp.ones(())),
}


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("name", PROJECT)
def test_half_precision_is_float32_rounded_once(name, dtype):
    for size in (0.05, 1e-3):  # norms on both sides of 1; sums of thousands of entries
        v = (size * jnp.sin(jnp.arange(4097.0))).astype(dtype)
        p = PROJECT[name](v)
        assert p.dtype == dtype
        np.testing.assert_array_equal(
            p, PROJECT[name](v.astype(jnp.float32)).astype(dtype)
        )


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
@pytest.mark.parametrize("name", ["simplex", "ball", "l1_ball"])
def test_what_is_not_finite_stays_so(name, bad):
    assert not jnp.isfinite(PROJECT[name](jnp.array([1.0, bad, 0.0]))[1])


def test_bounds_may_be_traced():
    v = jnp.array([3.0, 4.0])
    for project in (projections.ball, projections.l1_ball, projections.simplex):
        np.testing.assert_allclose(jax.jit(project)(v, 2.0), project(v, 2.0), rtol=1e-6)
    np.testing.assert_array_equal(jax.jit(projections.box)(v, 0.0, 3.5), [3, 3.5])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda v: projections.simplex(v, 0.0), "total"),
        (lambda v: projections.simplex(v[0]), "last axis"),
        (lambda v: projections.simplex({"a": v[:0]}), r"tree\['a'\].*last axis"),
        (lambda v: projections.simplex(v.astype(int)), "floating"),
        (lambda v: projections.ball(v, -1.0), "radius"),
        (lambda v: projections.ball(v, math.nan), "radius"),
        (lambda v: projections.l1_ball(v, 0.0), "radius"),
        (lambda v: projections.box(v, 1.0, 0.0), "lower must be at most upper"),
        (
            lambda v: projections.box({"a": v}, {"b": 0.0}, 1.0),
            "lower must be a number",
        ),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.ones(3))
