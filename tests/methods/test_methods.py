"""Methods against plain NumPy loops, and what only the right method does."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
import table

import jaxsp
from jaxsp import methods, topology

N, D = 8, 5
MODES = {
    "vmap": lambda n: jaxsp.Workers(n, devices=jax.devices()[:1]),
    "shard_map": lambda n: jaxsp.Workers(n, devices=jax.devices()[:n]),
}


def start(n=N, d=D):
    """One point for all workers."""
    return np.tile(np.random.default_rng(5).normal(size=d), (n, 1))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("graph", ["ring", "star", "erdos_renyi", "asymmetric"])
@pytest.mark.parametrize("row", table.METHODS, ids=lambda row: row.name)
def test_trajectory_equals_numpy(x64, row, graph, mode):
    by_graph = ("decentralized", "dposg", "dp_", "tracked", "optimal_time")
    uses_graph = row.name.startswith(by_graph)
    symmetric = "optimal_decentralized" in row.name
    if not (uses_graph or symmetric) and graph != "ring":
        return  # the graph is not an argument: ring has tested it
    if symmetric and graph == "asymmetric":
        return  # which it refuses
    game, graph = table.make_game(N, D), table.graphs(N)[graph]
    workers = MODES[mode](N)
    assert workers.mode == mode
    ours, _ = table.trajectory(workers, row.build(graph, row.rate), game, start(), 200)
    theirs = row.loop(start(), game.stacked, graph.to_matrix(), row.rate, 200)
    assert np.abs(theirs[-1] - theirs[0]).max() > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


# Its loop has the rate of the present for both gradients, `dposg` that of each look
# ahead: tests/methods/test_tracking.py compares it with `ogda`, which has so too.
SCHEDULED = [row for row in table.METHODS if row.name != "tracked_optimistic"]


@pytest.mark.parametrize("row", SCHEDULED, ids=lambda row: row.name)
def test_schedule_is_of_the_iteration(x64, row):
    game, graph = table.make_game(N, D), topology.ring(N)

    def schedule(k):
        return 2 * row.rate * 0.5 ** (jnp.asarray(k, float) / 10)

    workers = MODES["vmap"](N)
    ours, _ = table.trajectory(workers, row.build(graph, schedule), game, start(), 40)
    theirs = row.loop(start(), game.stacked, graph.to_matrix(), schedule, 40)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("row", table.METHODS, ids=lambda row: row.name)
def test_one_worker_is_legal_and_sends_nothing(x64, row):
    game, graph = table.make_game(1, D), topology.ring(1)
    ours, state = table.trajectory(
        MODES["vmap"](1), row.build(graph, 0.1), game, start(1), 20
    )
    theirs = row.loop(start(1), game.stacked, np.eye(1), 0.1, 20)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)
    assert int(jaxsp.metrics.bits_sent(state).up[0]) == 0


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("graph", ["ring", "asymmetric"])
def test_dposg_of_identical_workers_is_optimistic_descent(x64, graph, rounds):
    one = table.make_game(1, D)
    game = table.Game(np.repeat(one.H, N, 0), np.repeat(one.h, N, 0))
    tx = methods.dposg(0.2, table.graphs(N)[graph], rounds, axis_name=table.AXIS)
    ours, _ = table.trajectory(MODES["vmap"](N), tx, game, start(), 200)
    single = reference.ogda(start()[0], lambda z: one.stacked(z[None])[0], 0.2, 200)
    np.testing.assert_allclose(ours, np.repeat(single[:, None], N, 1), atol=1e-13)


def test_local_extra_adam_sends_points_and_no_moments(x64):
    """Far apart in what they see, workers meet in z and in nothing else."""
    game = table.make_game(N, D)
    tx = methods.local_extra_adam(table.ADAM_RATE, 4, table.AXIS)
    path, (extra, sync) = table.trajectory(MODES["vmap"](N), tx, game, start(), 12)
    apart = np.ptp(path, axis=1).max(axis=1)
    np.testing.assert_array_equal(np.flatnonzero(apart < 1e-12), [0, 4, 8, 12])
    adam = extra.base[0]
    np.testing.assert_array_equal(adam.count, 2 * 12)  # two oracle calls an iteration
    assert np.ptp(adam.mu, axis=0).min() > 0.1
    np.testing.assert_array_equal(
        jaxsp.metrics.bits_sent(sync).up, 3 * (2 * 7 * 64 * D // 8)
    )


def bilinear_run(tx, problem, workers, steps):
    """The last point of every worker and its state, from z = 1."""

    def run(data):
        def step(carry, _):
            z, state = carry
            updates, state = tx.update(problem.operator(z, data), state, z)
            return (optax.apply_updates(z, updates), state), None

        z = jax.tree.map(jnp.ones_like, problem.z_star)
        return jax.lax.scan(step, (z, tx.init(z)), length=steps)[0]

    return jax.jit(workers.map(run))(problem.data)


def test_dposg_converges_where_gossip_with_descent_diverges(x64):
    problem = jaxsp.problems.bilinear(N, 4, seed=0)
    workers, ring = MODES["vmap"](N), topology.ring(N)
    dposg = methods.dposg(0.3, ring, axis_name=workers.axis_name)
    descent = optax.chain(
        optax.sgd(0.3), jaxsp.gossip(ring, axis_name=workers.axis_name)
    )
    ends = {}
    for name, tx in {"dposg": dposg, "descent": descent}.items():
        z, state = bilinear_run(tx, problem, workers, 4000)
        z = workers.map(methods.eval_params)(state, z)
        z = jax.tree.map(lambda x: x.mean(0), z)
        ends[name] = float(jaxsp.metrics.distance(z, problem.z_star))
    assert ends["dposg"] < 1e-8
    assert ends["descent"] > 1e6


def test_dposg_bias_is_of_the_order_of_the_rate(x64):
    problem = jaxsp.problems.quadratic(N, 4, L=1, mu=0.3, heterogeneity=1.0, seed=1)
    workers = MODES["vmap"](N)

    def bias(rate, rounds, **order):
        axis = workers.axis_name
        tx = methods.dposg(rate, topology.ring(N), rounds, axis_name=axis, **order)
        z, state = bilinear_run(tx, problem, workers, int(300 / rate))
        z = workers.map(methods.eval_params)(state, z)
        spread = jax.vmap(lambda z: jaxsp.metrics.distance(z, problem.z_star))(z)
        return float(spread.max())

    large, small, mixed = bias(0.2, 1), bias(0.1, 1), bias(0.2, 4)
    assert 0.4 < small / large < 0.6
    assert mixed < 0.5 * large
    assert large > 1e-3
    late = {"order": "combine_then_adapt"}  # what dposg says of it
    np.testing.assert_allclose(bias(0.2, 1, **late) / large, 1.4, atol=0.05)
    np.testing.assert_allclose(bias(0.2, 4, **late) / mixed, 2.9, atol=0.05)


def test_eval_params_is_the_mixed_point_of_dposg(x64):
    game, ring = table.make_game(N, D), topology.ring(N)
    tx = methods.dposg(0.1, ring, axis_name=table.AXIS)
    path, state = table.trajectory(MODES["vmap"](N), tx, game, start(), 30)
    _, _, Y = reference.dposg(start(), game.stacked, ring.to_matrix(), 1, 0.1, 30)
    ours = methods.eval_params(state, jnp.asarray(path[-1]))
    np.testing.assert_allclose(ours, Y[-1], atol=1e-12)
    assert np.abs(ours - path[-1]).max() > 1e-3


def test_eval_params_looks_into_partitions_and_chains(x64):
    z = jaxsp.MinMax(jnp.ones(3), jnp.ones(2))
    tx = optax.chain(
        optax.clip(1.0),
        optax.partition(
            {
                "x": jaxsp.transforms.past_extragradient(0.5),
                "y": jaxsp.alternating_extragradient(optax.sgd(0.25)),
            },
            jaxsp.MinMax("x", "y"),
        ),
    )
    updates, state = tx.update(jax.tree.map(jnp.ones_like, z), tx.init(z), z)
    half = optax.apply_updates(z, updates)
    np.testing.assert_allclose(half.x, 0.0)  # 1 − 2 · 0.5
    np.testing.assert_allclose(half.y, 0.75)
    shown = methods.eval_params(state, half)
    np.testing.assert_allclose(shown.x, 0.5)
    np.testing.assert_allclose(shown.y, 1.0)


def test_eval_params_of_other_methods_is_params():
    z = jnp.ones(3)
    tx = methods.cp_oadam(0.1, table.AXIS)
    assert methods.eval_params(tx.init(z), z) is z


def test_local_steps_leave_a_floor_even_when_averaged_every_time(x64):
    problem = jaxsp.problems.quadratic(N, 4, L=1, mu=0.3, heterogeneity=1.0, seed=1)
    same = jaxsp.problems.quadratic(N, 4, L=1, mu=0.3, seed=1)
    workers = MODES["vmap"](N)

    def end(problem, tx):
        def run(data):
            def step(carry, _):
                z, state = carry
                F = lambda z: problem.operator(z, data)  # noqa: E731
                updates, state = tx.update(F(z), state, z, operator_fn=F)
                return (optax.apply_updates(z, updates), state), None

            z = jax.tree.map(jnp.ones_like, problem.z_star)
            return jax.lax.scan(step, (z, tx.init(z)), length=3000)[0][0]

        z = jax.jit(workers.map(run))(problem.data)
        z = jax.tree.map(lambda x: x.mean(0), z)
        return float(jaxsp.metrics.distance(z, problem.z_star))

    def local(rate, every):
        return methods.extra_step_local_sgd(rate, every, workers.axis_name)

    floor, half = end(problem, local(0.1, 1)), end(problem, local(0.05, 1))
    assert floor > 1e-3
    assert 0.4 < half / floor < 0.6
    assert end(same, local(0.1, 4)) < 1e-12
    centralized = methods.extra_step(0.25, workers.axis_name)
    assert end(problem, centralized) < 1e-12


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: methods.extra_step(-0.1, "w"), "learning_rate"),
        (lambda: methods.extra_step("0.1", "w"), "learning_rate"),
        (lambda: methods.extra_step(0.1, None), "channel must be the name"),
        (lambda: methods.extra_step_local_sgd(0.1, 0, "w"), "every"),
        (lambda: methods.local_extra_adam(-0.1, 2, "w"), "learning_rate"),
        (lambda: methods.local_extra_adam(0.1, 0, "w"), "every"),
        (lambda: methods.local_extra_adam(0.1, 2, "w", b2=1.0), "b2"),
        (lambda: methods.local_extra_adam(0.1, 2, "w", outer=0.7), "outer"),
        (lambda: methods.dposg(0.1, np.eye(3), axis_name="w"), "from_matrix"),
        (
            lambda: methods.dposg(0.1, topology.ring(3), 1.5, axis_name="w"),
            "rounds",
        ),
        (
            lambda: methods.dposg(0.1, topology.random_ring(8), axis_name="w"),
            "key",
        ),
        (lambda: methods.cp_oadam(0.1, "w", b1=1.0), "b1"),
        (lambda: methods.cp_oadam(0.1, "w", eps=-1.0), "eps"),
        (
            lambda: methods.rand_dp_oadam(
                0.1, topology.ring(8), key=jax.random.key(0), axis_name="w"
            ),
            "dp_oadam",
        ),
        (
            lambda: methods.rand_dp_oadam(
                0.1, topology.random_ring(8), key=3, axis_name="w"
            ),
            "jax.random.key",
        ),
    ],
)
def test_bad_arguments_are_named_when_built(build, named):
    with pytest.raises(ValueError, match=named):
        build()
