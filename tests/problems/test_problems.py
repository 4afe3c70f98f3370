"""Games whose solution and constants are what they say."""

import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsp
from jaxsp import methods, metrics, problems, topology

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


def test_a_definite_bilinear_game_is_the_one_of_its_formula(x64):
    problem = problems.definite_bilinear(6, 5, L=10.0, mu=0.3, linear=7.0, seed=3)
    A = np.asarray(problem.data.coupling)
    np.testing.assert_allclose(A, A.transpose(0, 2, 1), atol=1e-13)
    spectra = np.linalg.eigvalsh(A)
    assert spectra.min() > 0
    np.testing.assert_allclose(spectra.max(axis=1), 10.0)
    np.testing.assert_allclose(
        np.linalg.norm(matrices(problem), 2, axis=(1, 2)).max(), problem.L
    )
    assert jaxsp.metrics.residual(problem.mean_operator, problem.z_star) < 1e-12
    b, c = np.asarray(problem.data.p), -np.asarray(problem.data.q)
    assert max(abs(b).max(), abs(c).max()) <= 7.0
    x, y = np.random.default_rng(0).normal(size=(2, 5))
    for m, F in enumerate(problem.operators):
        field = F(jaxsp.MinMax(x, y))
        np.testing.assert_allclose(field.x, A[m] @ y + b[m] + 0.3 * x, atol=1e-12)
        np.testing.assert_allclose(field.y, 0.3 * y - A[m] @ x - c[m], atol=1e-12)


def test_the_solution_of_the_papers_game_lies_in_its_box(x64):
    for seed in range(3):
        problem = problems.definite_bilinear(100, 20, seed=seed)
        assert max(abs(leaf).max() for leaf in problem.z_star) < 1


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


# ------------------------------------------------------------------ lower_bound_chain

L, MU = 1.0, 0.25
GRAPHS = {
    "path": topology.path(5),
    "ring": topology.ring(8),
    "star": topology.star(4),
    "torus": topology.torus(2, 4),
}


def chain(graph, dim, **options):
    return problems.lower_bound_chain(graph, dim, L=L, mu=MU, **options)


def superdiagonal(dim):
    return np.eye(dim) - np.eye(dim, k=1)


@pytest.mark.parametrize("ends", [None, ([0], [3, 4]), ([4, 3, 1], [0])])
def test_chain_is_the_stated_game_in_the_mean(x64, ends):
    def f(x, y):
        regular = MU / 2 * (x @ x - y @ y)
        return L / 2 * x @ superdiagonal(6) @ y + regular + L**2 / (4 * MU) * y[0]

    problem = chain(topology.path(5), 6, ends=ends)
    z = jaxsp.MinMax(*jax.random.normal(jax.random.key(0), (2, 6)))
    expected, ours = jaxsp.saddle(f)(z), problem.mean_operator(z)
    np.testing.assert_allclose(ours.x, expected.x, atol=1e-14)
    np.testing.assert_allclose(ours.y, expected.y, atol=1e-14)


@pytest.mark.parametrize("ends", [None, ([0], [3, 4])])
def test_chain_constants(x64, ends):
    problem = chain(topology.path(5), 6, ends=ends)
    H = matrices(problem)
    norms = np.linalg.norm(H, 2, axis=(1, 2))
    own = lambda size: math.hypot(MU, (1 + math.sqrt(2)) * 5 * L / 4 / size)  # noqa: E731
    np.testing.assert_allclose(problem.L, [norms.max(), own(1)])
    far = 4 if ends is None else 3  # where the second set begins
    np.testing.assert_allclose(norms[far:], own(5 - far))
    np.testing.assert_allclose(norms[1:far], MU)
    symmetric = np.linalg.eigvalsh((H + H.transpose(0, 2, 1)) / 2)
    np.testing.assert_allclose(symmetric, MU, atol=1e-12)
    mean = np.linalg.norm(H.mean(0), 2)
    assert mean == pytest.approx(math.hypot(MU, L * math.cos(math.pi / 13)))
    assert mean < math.hypot(MU, L)


def test_chain_solution_and_its_limit(x64):
    q = problems.chain_q(L, MU)
    assert q**2 - (2 + 4 * MU**2 / L**2) * q + 1 == pytest.approx(0)
    errors = []
    for dim in (1, 4, 8, 16):
        problem = chain(topology.path(3), dim)
        x, y = problem.z_star
        i = np.arange(1, dim + 1)
        finite = (q**i - q ** (2 * dim + 2 - i)) / ((1 - q) * (1 + q ** (2 * dim + 1)))
        np.testing.assert_allclose(y, finite, rtol=1e-12)
        np.testing.assert_allclose(x, -L / (2 * MU) * superdiagonal(dim) @ y)
        errors.append(np.abs(y - q**i / (1 - q)).max())
    # The limit is missed by the last coordinate, which is of order q ** dim.
    np.testing.assert_allclose(errors, q ** np.array([1, 4, 8, 16]), rtol=4)
    assert errors[-1] < 1e-2 * errors[0]
    assert metrics.residual(problem.mean_operator, problem.z_star) < 1e-13


def open_coordinates(z):
    """The last nonzero coordinate on any worker, from `[workers, steps, dim]`."""
    place = np.arange(1, z.shape[-1] + 1)
    return ((np.asarray(z) != 0) * place).max((0, 2))


METHODS = {
    "dposg": (1, lambda t, a: methods.dposg(0.1, t, axis_name=a)),
    "decentralized_extra_step": (
        2,
        lambda t, a: methods.decentralized_extra_step(0.1, t, 1, None, axis_name=a),
    ),
    "decentralized_extra_step, chebyshev": (
        6,
        lambda t, a: methods.decentralized_extra_step(0.1, t, 3, axis_name=a),
    ),
}
CASES = [(name, "path") for name in METHODS] + [("dposg", "torus")]


@pytest.mark.parametrize(("method", "graph"), CASES)
def test_no_method_opens_coordinates_faster_than_they_cross_the_graph(
    x64, method, graph
):
    graph, steps, dim = GRAPHS[graph], 16, 12
    problem = chain(graph, dim)
    workers = jaxsp.Workers(graph.size, devices=jax.devices()[:1])
    each, build = METHODS[method]
    tx = build(graph, workers.axis_name)

    def run(data):
        def step(carry, _):
            z, state = carry
            F = lambda z: problem.operator(z, data)  # noqa: E731
            updates, state = tx.update(F(z), state, z, operator_fn=F)
            z = optax.apply_updates(z, updates)
            return (z, state), (z, methods.eval_params(state, z))

        z = jax.tree.map(jnp.zeros_like, problem.z_star)
        return jax.lax.scan(step, (z, tx.init(z)), length=steps)[1]

    points = jax.jit(workers.map(run))(problem.data)
    exchanges = each * np.arange(1, steps + 1)
    bound = [problems.max_nonzero(int(K), int(graph.diameter)) for K in exchanges]
    for point in points:
        for z in point:
            assert (open_coordinates(z) <= np.minimum(bound, dim)).all()
        errors = [v - star for v, star in zip(point, problem.z_star, strict=True)]
        distance = np.sqrt(sum(np.square(error).sum(-1) for error in errors))
        floor = [problems.distance_lower_bound(problem.z_star, s) for s in bound]
        assert (distance >= np.array(floor)).all()
    if method == "dposg":
        # One oracle call an exchange: a coordinate takes one exchange more.
        y = open_coordinates(points[0].y)
        np.testing.assert_array_equal(y, 1 + (exchanges - 1) // (graph.diameter + 1))


@pytest.mark.parametrize("graph", GRAPHS)
def test_local_steps_attain_the_count_of_coordinates(x64, graph):
    graph, dim = GRAPHS[graph], 9
    problem = chain(graph, dim)
    W, operator = graph.to_matrix(), jax.jit(jax.vmap(problem.operator))
    z = jaxsp.MinMax(*np.zeros((2, graph.size, dim)))
    for exchanges in range(3 * int(graph.diameter) + 1):
        for _ in range(4):  # as many local steps as one likes
            z = jax.tree.map(lambda v, g: v - 0.1 * g, z, operator(z, problem.data))
        expected = problems.max_nonzero(exchanges, int(graph.diameter))
        for v in z:
            assert open_coordinates(v[:, None]) == expected
        z = jax.tree.map(lambda v: W @ v, z)


def test_lower_bounds():
    assert problems.max_nonzero(0, 3) == 1
    assert [problems.max_nonzero(K, 3) for K in (2, 3, 5, 6)] == [1, 2, 2, 3]
    rounds = problems.rounds_lower_bound(math.exp(-2), 3.0, 0.5, diameter=4)
    assert rounds == pytest.approx(4 * 6 * 2)
    assert problems.rounds_lower_bound(
        math.exp(-2), 3.0, 0.5, chi=16.0
    ) == pytest.approx(rounds)
    assert problems.calls_lower_bound(0.1, 0.5, 2.0, 8) == pytest.approx(20)
    # What the instance proves has the order of the bound: q ** (K / Δ) = ε.
    L, mu, eps = 1000.0, 1.0, 1e-3
    crossings = math.log(eps) / math.log(problems.chain_q(L, mu))
    bound = problems.rounds_lower_bound(eps, L, mu, diameter=1)
    assert crossings == pytest.approx(bound / 2, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(topology=topology.exponential(5)), "undirected"),
        (dict(topology=topology.one_peer_exponential(4)), "one undirected graph"),
        (dict(topology=topology.ring(1)), "two workers"),
        (dict(topology=topology.from_matrix(np.eye(3))), "connected"),
        (dict(dim=0), "dim"),
        (dict(L=0.0), "L must be"),
        (dict(mu=-1.0), "mu must be"),
        (dict(ends=([0], [0])), "none in common"),
        (dict(ends=([0, 1], [])), "none in common"),
        (dict(ends=0), "none in common"),
        (dict(ends=([0], [7])), "from 0 to 4"),
    ],
)
def test_bad_chain(options, message):
    arguments = dict(topology=topology.path(5), dim=4, L=1.0, mu=0.5) | options
    with pytest.raises(ValueError, match=message):
        problems.lower_bound_chain(**arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: problems.max_nonzero(-1, 1), "exchanges"),
        (lambda: problems.max_nonzero(1, 0), "distance"),
        (lambda: problems.rounds_lower_bound(1.5, 1, 1, chi=2), "epsilon"),
        (lambda: problems.rounds_lower_bound(0.5, 1, 1), "one of diameter and chi"),
        (lambda: problems.rounds_lower_bound(0.5, 1, 1, chi=-1), "chi"),
        (lambda: problems.calls_lower_bound(0.0, 1, 1, 2), "epsilon"),
        (lambda: problems.calls_lower_bound(0.1, 1, -1, 2), "sigma"),
        (lambda: problems.chain_q(1.0, 0.0), "mu must be"),
        (lambda: problems.distance_lower_bound(None, -1), "nonzero"),
    ],
)
def test_bad_bounds(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ------------------------------------------------------------------ with constraints


def projected_extragradient(problem, z, step, length):
    """The last point, and its natural residual with this step."""

    def move(z, field):
        return problem.project(jax.tree.map(lambda v, g: v - step * g, z, field))

    def body(z, _):
        half = move(z, problem.mean_operator(z))
        return move(z, problem.mean_operator(half)), None

    z = jax.jit(lambda z: jax.lax.scan(body, z, length=length)[0])(z)
    return z, metrics.distance(move(z, problem.mean_operator(z)), z)


@pytest.mark.parametrize(("rows", "columns", "support"), [(3, 5, None), (5, 4, 2)])
def test_matrix_game_has_the_equilibrium_it_was_built_around(
    x64, rows, columns, support
):
    problem = problems.matrix_game(
        3, rows, columns, L=2.0, heterogeneity=0.5, support=support, seed=0
    )
    payoff, z = problem.data.mean(0), problem.z_star
    assert abs(metrics.duality_gap(payoff, z)) < 1e-14
    for v in z:
        assert v.sum() == pytest.approx(1)
        assert (v > 0).sum() == (support or min(rows, columns))
    assert np.linalg.norm(problem.data, 2, axis=(1, 2)).max() == pytest.approx(2.0)
    assert np.ptp(np.asarray(problem.data), axis=0).min() > 0.01
    # The only one: from far away, a method with projections ends there.
    far = jaxsp.MinMax(jnp.eye(rows)[-1], jnp.eye(columns)[-1])
    assert metrics.duality_gap(payoff, far) > 0.1
    end, _ = projected_extragradient(problem, far, 0.4, 2000)
    assert metrics.distance(end, z) < 1e-8


def test_matrix_game_projects_on_the_simplices(x64):
    problem = problems.matrix_game(2, 3, 2, seed=0)
    z = problem.project(jaxsp.MinMax(jnp.array([3.0, 0.0, 0.0]), jnp.array([2.0, 2.0])))
    np.testing.assert_allclose(z.x, [1, 0, 0])
    np.testing.assert_allclose(z.y, [0.5, 0.5])
    same = problems.matrix_game(2, 3, 2, seed=0).data
    np.testing.assert_array_equal(same[0], same[1])


ROBUST = {
    "inside": dict(radius=10.0),
    "adversary at its bound": dict(radius=0.05),
    "both at their bounds": dict(radius=0.05, bound=0.5, heterogeneity=1.0),
}


def robust(**options):
    return problems.robust_regression(3, 8, 4, seed=1, **options)


@pytest.mark.parametrize("name", ROBUST)
def test_robust_regression_is_the_stated_game_with_its_solution(x64, name):
    options = ROBUST[name]
    problem = robust(lam=0.2, **options)
    a, b = problem.data.features.reshape(24, 4), problem.data.targets.ravel()

    def f(w, r):
        square = (a @ w + r @ w - b) ** 2
        return square.sum() / 48 + 0.1 * w @ w - 2.5 * r @ r

    z = jaxsp.MinMax(*jax.random.normal(jax.random.key(0), (2, 4)))
    expected, ours = jaxsp.saddle(f)(z), problem.mean_operator(z)
    np.testing.assert_allclose(ours.x, expected.x, rtol=1e-10)
    np.testing.assert_allclose(ours.y, expected.y, rtol=1e-10)

    _, residual = projected_extragradient(problem, problem.z_star, 1.0, 0)
    assert residual < 1e-12
    w, r = (float(jnp.linalg.norm(v)) for v in problem.z_star)
    bound, radius = options.get("bound", 2.0), options["radius"]
    assert w == pytest.approx(bound) if "both" in name else 0.1 < w < bound - 0.1
    assert 0.03 < r < radius - 0.1 if name == "inside" else r == pytest.approx(radius)


@pytest.mark.parametrize("name", ROBUST)
def test_robust_regression_constants(x64, name):
    problem = robust(lam=0.2, **ROBUST[name])
    a, b = jax.random.normal(jax.random.key(1), (2, 500, 2, 4)) * 5
    b = a + b * jnp.where(jnp.arange(500) % 2, 1.0, 1e-4)[:, None, None]  # far and near
    z, other = (
        jax.vmap(problem.project)(jaxsp.MinMax(v[:, 0], v[:, 1])) for v in (a, b)
    )
    fields = [
        np.concatenate(
            jax.jit(jax.vmap(jax.vmap(problem.operator, (0, None)), (None, 0)))(
                point, problem.data
            ),
            axis=-1,
        )
        for point in (z, other)
    ]
    moved, change = np.hstack(z) - np.hstack(other), fields[0] - fields[1]
    ratios = np.linalg.norm(change, axis=-1) / np.linalg.norm(moved, axis=-1)
    angles = (change * moved).sum(-1) / (moved**2).sum(-1)
    assert np.max(ratios) <= problem.L < 4 * np.max(ratios)
    assert np.min(angles) >= problem.mu


def test_robust_regression_lipschitz_constant_where_the_players_couple_most(x64):
    # Every worker's features have a large mean, along which w and r are pushed out.
    problem = robust(bound=3.0, beta=9.5, heterogeneity=6.0)
    mean = np.asarray(problem.data.features).mean(1)
    along = mean / np.linalg.norm(mean, axis=1, keepdims=True)

    @jax.jit
    @jax.vmap
    def jacobian(point, data):
        def flat(v):
            return jnp.concatenate(problem.operator(jaxsp.MinMax(*v), data))

        return jax.jacfwd(flat)(point).reshape(8, 8)

    norms = [
        np.linalg.norm(
            jacobian(np.stack([w * along, r * along], 1), problem.data), 2, axis=(1, 2)
        )
        for w, r in [(3.0, 0.5), (-3.0, 0.5)]
    ]
    assert 0.7 * problem.L < np.max(norms) <= problem.L


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: problems.matrix_game(2, 3, 4, support=4, seed=0), "at most 3"),
        (lambda: problems.matrix_game(2, 3, 0, seed=0), "columns"),
        (lambda: problems.matrix_game(2, 3, 4, L=-1, seed=0), "L must be"),
        (lambda: robust(beta=4.0), "above bound"),
        (lambda: robust(radius=0.0), "radius"),
        (lambda: robust(lam=0.0), "lam"),
        (lambda: robust(noise=-1.0), "noise"),
    ],
)
def test_bad_constrained_problems(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_unfound_solution_is_refused(monkeypatch):
    module = sys.modules["jaxsp.problems.robust_regression"]
    monkeypatch.setattr(module, "_MAX_ITERATIONS", 3)
    with pytest.raises(ValueError, match="badly conditioned"):
        robust()
