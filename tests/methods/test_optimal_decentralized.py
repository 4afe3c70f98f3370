"""The optimal decentralized method: its loops, its rounds, and what fails."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import table
import test_modes

import jaxsp
from jaxsp import methods, theory, topology, transforms

M, N, D = 10, 8, 5
AXIS = table.AXIS


def virtual(count):
    return jaxsp.Workers(count, jax.devices()[:1])


def start(n=N, d=D):
    """One point for all workers."""
    return np.tile(np.random.default_rng(5).normal(size=d), (n, 1))


@pytest.mark.parametrize("graph", ["ring", "star"])
def test_finite_sums_with_fresh_minibatches_in_both_lines(x64, graph):
    """R terms a worker, two of them in a minibatch, another two in the line of y."""
    game, graph = table.make_game(N, D), table.graphs(N)[graph]
    rng, R, steps = np.random.default_rng(8), 6, 200
    shift, tilt = rng.normal(size=(N, R, D)), 0.2 * rng.normal(size=(N, R, D))
    shift, tilt = (v - v.mean(1, keepdims=True) for v in (shift, tilt))
    batches = rng.integers(0, R, size=(2 * steps, N, 2))

    def sampled(c, Z):
        added = shift + tilt * Z[:, None]
        return game.stacked(Z) + np.stack(
            [added[m][batches[c, m]].mean(axis=0) for m in range(N)]
        )

    theirs = table.optimal_decentralized(
        start(),
        game.stacked,
        graph.to_matrix(),
        0.1,
        steps,
        blend=0.3,
        coins=table.coins(0.3, steps),
        sampled=sampled,
    )
    tx = methods.vr_optimal_decentralized(
        0.1, graph, 1.0, 0.5, transforms.Refresh(0.3, table.KEY), axis_name=AXIS
    )

    def one_worker(z, H, h, shift, tilt, first, second):
        def F(z):
            return game.operator(z, H, h)

        def of(batch):
            return lambda z: F(z) + (shift[batch] + tilt[batch] * z).mean(0)

        def step(carry, batch):
            z, state = carry
            updates, state = tx.update(
                jnp.full_like(z, jnp.nan),  # which is not used
                state,
                z,
                operator_fn=of(batch[0]),
                dual_operator_fn=of(batch[1]),
                full_operator_fn=F,
            )
            z = optax.apply_updates(z, updates)
            return (z, state), z

        _, path = jax.lax.scan(step, (z, tx.init(z)), (first, second))
        return jnp.concatenate([z[None], path])

    # S' of an update is that of the line of y of the iteration before.
    second = np.concatenate([batches[:1], batches[1:-1:2]])
    ours = jax.jit(virtual(N).map(one_worker))(
        start(),
        game.H,
        game.h,
        shift,
        tilt,
        jnp.asarray(batches[::2].swapaxes(0, 1)),
        jnp.asarray(second.swapaxes(0, 1)),
    )
    ours = np.asarray(ours).swapaxes(0, 1)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


def test_a_projection(x64):
    game, ring = table.make_game(N, D), topology.ring(N)

    def box(z, eta=None):
        return z.clip(-0.5, 0.5)

    steps = transforms.PrimalDualSteps(0.1, 1.0, 0.5)
    tx = transforms.primal_dual_gossip(ring, steps, axis_name=AXIS, prox=box)
    ours, _ = table.trajectory(virtual(N), tx, game, start(), 200)
    theirs = table.optimal_decentralized(
        start(), game.stacked, ring.to_matrix(), 0.1, 200, prox=box
    )
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)
    assert np.abs(ours[1:]).max() == 0.5


def unlike(count, mu, seed=0):
    """A game of workers that differ as much as they agree, with L = 1."""
    return jaxsp.problems.quadratic(count, 6, L=1, mu=mu, heterogeneity=1, seed=seed)


def distances(tx, problem, count, steps):
    """The worst worker's distance to the solution, iteration by iteration."""
    workers = virtual(count)

    def run(data):
        def step(carry, _):
            z, state = carry
            F = lambda z: problem.operator(z, data)  # noqa: E731
            updates, state = tx.update(F(z), state, z, operator_fn=F)
            z = optax.apply_updates(z, updates)
            point = methods.eval_params(state, z)
            return (z, state), jaxsp.metrics.distance(point, problem.z_star)

        z = jax.tree.map(jnp.zeros_like, problem.z_star)
        return jax.lax.scan(step, (z, tx.init(z)), length=steps)[1]

    far = np.asarray(jax.jit(workers.map(run))(problem.data)).max(axis=0)
    return far / float(optax.tree.norm(problem.z_star))


def last(tx, problem, count, steps=10_000):
    return distances(tx, problem, count, steps)[-1]


def rounds(tx, problem, count, accuracy=1e-8, steps=3000):
    """Exchanges until all workers are as near to the solution as that."""
    far = distances(tx, problem, count, steps)
    return int(np.argmax(far <= accuracy)) + 1 if far.min() <= accuracy else np.inf


def optimal(step, graph):
    return methods.optimal_decentralized(
        step.learning_rate,
        graph,
        step.dual_learning_rate,
        step.feedback,
        step.momentum,
        axis_name=AXIS,
    )


def lower_bound(graph, mu, accuracy=1e-8):
    return np.sqrt(graph.chi) * (1 + 1 / mu) * np.log(1 / accuracy)


def test_rounds_on_a_ring_of_ten(x64):
    """With η = 1/2L, θ = L, β = 1/2L about 740 exchanges to 1e-8, λ/L = 0.1."""
    ring = topology.ring(M)
    assert ring.chi == pytest.approx(10.5, abs=0.1)
    step = theory.DecentralizedStep(0.5, 1.0, 0.5, 1.0)
    assert 450 < rounds(optimal(step, ring), unlike(M, 0.1), M) < 1000


@pytest.mark.parametrize(
    ("graph", "mu"),
    [
        (topology.ring(16), 0.3),
        (topology.torus(4, 4), 0.1),
        (topology.erdos_renyi(12, 0.4, seed=1), 0.1),
    ],
    ids=["ring", "torus", "erdos_renyi"],
)
def test_rounds_are_those_of_the_lower_bound(x64, graph, mu):
    """Within a factor of two, and with no bias; optimistic gossip keeps one."""
    problem = unlike(graph.size, mu)
    step = theory.optimal_decentralized(problem.L, mu, graph.chi)
    found = rounds(optimal(step, graph), problem, graph.size)
    assert found < 2 * lower_bound(graph, mu)
    dposg = methods.dposg(step.learning_rate, graph, axis_name=AXIS)
    assert rounds(dposg, problem, graph.size, 1e-2) == np.inf


def test_graphs_that_change(x64):
    """Matchings in turn, none of which is connected, at half of the dual step."""
    even, odd = np.eye(N), np.eye(N)
    for matching, first in ((even, 0), (odd, 1)):
        for i in range(first, N, 2):
            pair = [i, (i + 1) % N]
            matching[np.ix_(pair, pair)] = 0.5
    problem, step = unlike(N, 0.2), theory.DecentralizedStep(0.5, 0.5, 0.5, 1.0)
    graphs = topology.from_sequence([even, odd])
    assert rounds(optimal(step, graphs), problem, N) < 1000
    assert not np.isfinite(
        rounds(optimal(step, topology.from_matrix(even)), problem, N)
    )


def test_rounding_does_not_add_up():
    """In float32, long after the solution is reached; 4e-4 by `z - W z`."""
    ring, problem = topology.ring(N), unlike(N, 0.1)
    step = theory.optimal_decentralized(problem.L, 0.1, ring.chi)
    assert last(optimal(step, ring), problem, N) < 3e-6


def test_without_feedback_it_diverges(x64):
    """β is what damps the dual variable of a nearly bilinear game."""
    ring, problem = topology.ring(M), unlike(M, 0.02)
    step = theory.optimal_decentralized(problem.L, 0.02, ring.chi)
    found = rounds(optimal(step, ring), problem, M, 1e-4)
    assert found < 3000
    without = step._replace(feedback=1e-9)
    assert rounds(optimal(without, ring), problem, M, 1e-4) == np.inf


def wired(tx_of, params):
    workers = jaxsp.Workers(8)
    tx = tx_of(workers.axis_name)
    state = jax.eval_shape(workers.map(tx.init), params)
    return test_modes.program(
        workers.map(lambda s, z: tx.update(z, s, z)), state, params
    )


def test_one_exchange_with_the_neighbours_an_iteration():
    params = jnp.zeros((8, 1000), jnp.float32)
    ring = topology.ring(8)

    def build(axis):
        return methods.optimal_decentralized(0.1, ring, 1.0, 0.5, axis_name=axis)

    text = wired(build, params)
    assert test_modes.collectives(text) == [("collective-permute", 4000)] * 2
    workers = virtual(8)
    tx = build(workers.axis_name)
    state = workers.map(tx.init)(params)
    for k in range(1, 4):
        _, state = workers.map(lambda s, z: tx.update(z, s, z))(state, params)
        sent = jaxsp.metrics.bits_sent(state)
        assert set(np.asarray(sent.up)) == {2 * 32_000 * k}


def test_a_directed_graph_is_refused():
    graph = topology.exponential(8)
    with pytest.raises(ValueError, match="topology must have symmetric"):
        methods.optimal_decentralized(0.1, graph, 1.0, 0.5, axis_name=AXIS)


def test_finite_sums_ask_for_the_second_minibatch():
    tx = methods.vr_optimal_decentralized(
        0.1,
        topology.ring(1),
        1.0,
        0.5,
        transforms.Refresh(0.5, table.KEY),
        axis_name=AXIS,
    )
    z = jnp.ones((1, 4))
    with pytest.raises(ValueError, match="dual_operator_fn is required"):
        virtual(1).map(lambda z: tx.update(z, tx.init(z), z, operator_fn=jnp.tanh))(z)


# ---------------------------------------------------------- graphs that change


def stars():
    """The first worker in the middle, then the last one."""
    star = topology.star(N)
    return topology.from_sequence([star, star.to_matrix()[::-1, ::-1]])


def time_varying(graphs, chi, exchanges=1, **other):
    step = theory.optimal_time_varying(1.0, 0.1, chi)._replace(**other)
    dual = transforms.AcceleratedDualSteps(*step[1:])
    return methods.optimal_time_varying(
        step.learning_rate, graphs, dual, exchanges, axis_name=AXIS
    )


def worst(graphs):
    return 1 / (1 - max(w.lambda2 for w in graphs.members) ** 2)


def test_no_bias_where_another_worker_is_in_the_middle_each_time(x64):
    """DPOSG keeps one, and the steps for a fixed graph diverge."""
    problem, graphs = unlike(N, 0.1), stars()
    tx = time_varying(graphs, worst(graphs))
    assert rounds(tx, problem, N) < 1800
    assert last(tx, problem, N, 3000) < 1e-13
    assert last(methods.dposg(0.1, graphs, axis_name=AXIS), problem, N, 2000) > 0.1
    fixed = theory.optimal_decentralized(1.0, 0.1, graphs.chi)
    assert rounds(optimal(fixed, graphs), problem, N) == np.inf


def test_directed_graphs_of_which_none_is_connected(x64):
    """Three rounds of one peer each are an exact mean; one of them is not enough."""
    problem, graphs = unlike(N, 0.1), topology.one_peer_exponential(N)
    assert max(w.lambda2 for w in graphs.members) == 1
    assert rounds(time_varying(graphs, 1.0, 3), problem, N) < 1500
    alone = topology.from_matrix(graphs.to_matrix(2))
    assert rounds(time_varying(alone, 4.0), problem, N) == np.inf


def test_rounding_adds_up_without_forgetting():
    """In float32: with the paper's memory the mean of what waits grows for ever."""
    problem, graphs = unlike(N, 0.1), stars()
    chi = worst(graphs)
    assert last(time_varying(graphs, chi), problem, N) < 5e-6
    assert last(time_varying(graphs, chi, memory=1.0), problem, N) > 2e-5


def test_two_vectors_in_one_message():
    params = jnp.zeros((N, 1000), jnp.float32)

    def build(axis):
        return methods.optimal_time_varying(
            0.1, topology.ring(N), table.DUAL, axis_name=axis
        )

    text = wired(build, params)
    assert test_modes.collectives(text) == [("collective-permute", 8000)] * 2
    workers = virtual(N)
    tx = build(workers.axis_name)
    state = workers.map(tx.init)(params)
    for k in range(1, 4):
        _, state = workers.map(lambda s, z: tx.update(z, s, z))(state, params)
        sent = jaxsp.metrics.bits_sent(state)
        assert set(np.asarray(sent.up)) == {2 * 64_000 * k}


def test_constants_out_of_range():
    for name, value in (("momentum", -1.0), ("blend", 1.5), ("feedback", 0.0)):
        steps = table.DUAL._replace(**{name: value})
        with pytest.raises(ValueError, match=f"{name} must be"):
            methods.optimal_time_varying(0.1, topology.ring(N), steps, axis_name=AXIS)
