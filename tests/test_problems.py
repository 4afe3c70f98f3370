"""Games whose solution and constants are what they say."""

import jax
import numpy as np
import pytest

import jaxsp
from jaxsp import problems

BUILD = {
    "bilinear": lambda h: problems.bilinear(5, 4, L=3.0, heterogeneity=h, seed=1),
    "quadratic": lambda h: problems.quadratic(
        5, 4, L=3.0, mu=0.5, heterogeneity=h, seed=1
    ),
}


def matrices(problem):
    """The workers' linear parts, `[M, 2 dim, 2 dim]`, by evaluating the operators."""
    flat, unravel = jax.flatten_util.ravel_pytree(problem.z_star)

    def apply(F, v):
        return jax.flatten_util.ravel_pytree(F(unravel(v)))[0]

    return np.stack(
        [
            np.asarray(jax.jacobian(lambda v, F=F: apply(F, v))(flat))
            for F in problem.operators
        ]
    )


@pytest.mark.parametrize("heterogeneity", [0.0, 0.7])
@pytest.mark.parametrize("name", BUILD)
def test_solution_and_constants(x64, name, heterogeneity):
    problem = BUILD[name](heterogeneity)
    assert jaxsp.metrics.residual(problem.mean_operator, problem.z_star) < 1e-13
    H = matrices(problem)
    assert np.linalg.norm(H, 2, axis=(1, 2)).max() == pytest.approx(problem.L)
    symmetric = np.linalg.eigvalsh((H + H.transpose(0, 2, 1)) / 2)
    np.testing.assert_allclose(symmetric, problem.mu, atol=1e-12)
    mean = np.linalg.svd(H.mean(0), compute_uv=False)
    assert mean.min() > 0.1  # well conditioned: the solution is one point


@pytest.mark.parametrize("name", BUILD)
def test_heterogeneity_is_the_size_of_the_fields_at_the_solution(x64, name):
    for size in (0.0, 0.7):
        problem = BUILD[name](size)
        fields = [F(problem.z_star) for F in problem.operators]
        square = [
            float(jaxsp.metrics.residual(lambda _, f=f: f, 0)) ** 2 for f in fields
        ]
        assert np.sqrt(np.mean(square)) == pytest.approx(size, abs=1e-12)


def test_operators_one_by_one_are_the_mapped_operator(x64):
    problem = BUILD["quadratic"](0.7)
    workers = jaxsp.Workers(5, devices=jax.devices()[:1])
    z = jax.tree.map(lambda v: v + 1, problem.z_star)
    mapped = workers.map(problem.operator, in_axes=(None, 0))(z, problem.data)
    for m, F in enumerate(problem.operators):
        np.testing.assert_allclose(mapped.x[m], F(z).x, atol=1e-14)
    mean = problem.mean_operator(z)
    np.testing.assert_allclose(mapped.y.mean(0), mean.y, atol=1e-14)


def test_one_worker_and_the_same_seed():
    one, again = (problems.bilinear(1, 3, heterogeneity=0.5, seed=2) for _ in range(2))
    np.testing.assert_array_equal(one.data.coupling, again.data.coupling)
    assert len(one.operators) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(mu=0.0), "use bilinear"),
        (dict(mu=5.0), "L must be at least mu"),
        (dict(heterogeneity=-1.0), "heterogeneity"),
        (dict(L=np.inf), "L must be finite"),
        (dict(workers=0), "workers"),
        (dict(dim=1.5), "dim"),
    ],
)
def test_bad_arguments(options, message):
    arguments = dict(workers=3, dim=2, L=3.0, mu=0.5, seed=0) | options
    with pytest.raises(ValueError, match=message):
        problems.quadratic(**arguments)
