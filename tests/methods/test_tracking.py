"""Gradient tracking: no bias on unlike workers, where gossip alone keeps one."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
import reference_tracking as tracking
import table

import jaxsp
from jaxsp import methods, topology, transforms

N, D = 8, 5
VIRTUAL = jaxsp.Workers(N, jax.devices()[:1])
AXIS, RING = VIRTUAL.axis_name, topology.ring(N)
UNLIKE = dict(L=1.0, mu=0.3, heterogeneity=1.0)
ORDERS = ("adapt_then_combine", "combine_then_adapt")


def start(n=N):
    return np.tile(np.random.default_rng(5).normal(size=D), (n, 1))


def furthest(tx, problem, steps):
    """How far from the solution the worst worker ends."""
    z, state = table.ends(VIRTUAL, tx, problem, steps)
    z = methods.eval_params(state, z)
    return float(jax.vmap(lambda z: jaxsp.metrics.distance(z, problem.z_star))(z).max())


@pytest.mark.parametrize(
    ("rate", "order"), [(0.2, ORDERS[0]), (0.1, ORDERS[0]), (0.1, ORDERS[1])]
)
def test_tracking_removes_the_bias_of_dposg(x64, rate, order):
    problem = jaxsp.problems.quadratic(N, 4, seed=1, **UNLIKE)
    steps, rule = int(400 / rate), dict(axis_name=AXIS, order=order)
    biased = furthest(methods.dposg(rate, RING, axis_name=AXIS), problem, steps)
    assert biased > 0.05 * rate
    for method in (methods.tracked_optimistic, methods.tracked_extragradient):
        assert furthest(method(rate, RING, **rule), problem, steps) < 1e-10


def test_mixing_the_difference_too_allows_five_times_the_step(x64):
    problem = jaxsp.problems.quadratic(N, 4, seed=1, **UNLIKE)
    for method, mixed, added in (
        (methods.tracked_optimistic, 0.7, 0.14),
        (methods.tracked_extragradient, 1.1, 0.36),
    ):
        first, last = (dict(axis_name=AXIS, order=order) for order in ORDERS)
        assert furthest(method(mixed, RING, **first), problem, 1000) < 1e-10
        assert furthest(method(added, RING, **last), problem, 1000) < 1e-10
        assert not furthest(method(1.4 * added, RING, **last), problem, 1000) < 1e3


def test_tracked_descent_diverges_on_a_bilinear_game(x64):
    problem = jaxsp.problems.bilinear(N, 4, heterogeneity=0.5, seed=0)
    for method in (methods.tracked_optimistic, methods.tracked_extragradient):
        assert furthest(method(0.4, RING, axis_name=AXIS), problem, 8000) < 1e-8
    descent = transforms.gradient_tracking(
        optax.sgd(0.4), jaxsp.gossip(RING, axis_name=AXIS)
    )
    assert furthest(descent, problem, 8000) > 1e6


@pytest.mark.parametrize(
    ("graph", "options"),
    [
        (topology.path(N), {"rounds": 3, "acceleration": "chebyshev"}),
        (topology.one_peer_exponential(N), {}),
    ],
    ids=["accelerated", "sequence"],
)
def test_it_is_exact_over_every_kind_of_graph(x64, graph, options):
    problem = jaxsp.problems.quadratic(N, 4, seed=1, **UNLIKE)
    for method in (methods.tracked_optimistic, methods.tracked_extragradient):
        tx = method(0.2, graph, axis_name=AXIS, **options)
        assert furthest(tx, problem, 2000) < 1e-10


def test_over_a_random_graph_it_is_put_together(x64):
    problem = jaxsp.problems.quadratic(N, 4, seed=1, **UNLIKE)
    rings = topology.random_ring(N, pool=3)
    gossip = jaxsp.gossip(rings, axis_name=AXIS, key=table.KEY)
    ahead = transforms.past_extragradient(0.2)
    assert furthest(transforms.gradient_tracking(ahead, gossip), problem, 2000) < 1e-10
    for method in (methods.tracked_optimistic, methods.tracked_dp_oadam):
        with pytest.raises(ValueError, match="topology must not be random"):
            method(0.2, rings, axis_name=AXIS)


# ---------------------------------------------------------- against NumPy


def mixed_first(z0, F, W, lr, steps, extragradient):
    """S ← W (S + F(Z) - F(Z_prev)) and Z ← W Z - step, as the default order has it."""
    Z, S, old = np.array(z0), np.zeros_like(z0), np.zeros_like(z0)
    points = [Z]
    for _ in range(steps):
        now, before = F(Z), S
        S = tracking.track(S, now, old, lambda V: W @ V, combine_first=False)
        step = S + F(Z - lr * S) - now if extragradient else 2 * S - before
        old, Z = now, tracking.move(Z, lr * step, lambda V: W @ V, combine_first=True)
        points.append(Z)
    return np.stack(points)


@pytest.mark.parametrize("graph", ["ring", "asymmetric"])
@pytest.mark.parametrize("extragradient", [False, True])
def test_the_default_order_mixes_the_difference_too(x64, graph, extragradient):
    game, graph = table.make_game(N, D), table.graphs(N)[graph]
    names = ("tracked_optimistic", "tracked_extragradient")
    tx = getattr(methods, names[extragradient])(0.1, graph, axis_name=AXIS)
    ours, _ = table.trajectory(VIRTUAL, tx, game, start(), 200)
    W = graph.to_matrix()
    theirs = mixed_first(start(), game.stacked, W, 0.1, 200, extragradient)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", ORDERS)
def test_of_identical_workers_it_is_optimistic_descent(x64, order):
    """With a schedule too, whose rates are those of `dposg`."""
    one = table.make_game(1, D)
    game = table.Game(np.repeat(one.H, N, 0), np.repeat(one.h, N, 0))

    def schedule(k):
        return 0.2 * 0.5 ** (jnp.asarray(k, float) / 100)

    graph = table.graphs(N)["asymmetric"]
    tx = methods.tracked_optimistic(schedule, graph, axis_name=AXIS, order=order)
    ours, _ = table.trajectory(VIRTUAL, tx, game, start(), 200)
    single = reference.ogda(
        start()[0], lambda z: one.stacked(z[None])[0], schedule, 200
    )
    np.testing.assert_allclose(ours, np.repeat(single[:, None], N, 1), atol=1e-13)


def test_the_mean_estimate_is_the_mean_gradient(x64):
    game = table.make_game(N, D)
    tx = methods.tracked_optimistic(0.1, table.graphs(N)["star"], axis_name=AXIS)
    path, state = table.trajectory(VIRTUAL, tx, game, start(), 50)
    mean = game.stacked(path[-2]).mean(axis=0)
    np.testing.assert_allclose(state.estimate.mean(axis=0), mean, atol=1e-13)
    assert np.abs(state.estimate - mean).max() > 1e-3


# ---------------------------------------------------------- Adam


@pytest.mark.parametrize("seed", range(5))
def test_tracked_moments_remove_the_bias_of_dp_oadam(x64, seed):
    """That of own moments does not go away with the rate."""
    problem = jaxsp.problems.quadratic(N, 4, seed=seed, **UNLIKE)
    rate = optax.exponential_decay(0.03, 500, 0.3)
    own = methods.dp_oadam(rate, RING, axis_name=AXIS)
    tracked = methods.tracked_dp_oadam(rate, RING, axis_name=AXIS)
    assert furthest(own, problem, 6000) > 0.4
    assert furthest(tracked, problem, 6000) < 1e-7


# ---------------------------------------------------------- what travels


@pytest.mark.parametrize("name", ["tracked_optimistic", "tracked_extragradient"])
def test_points_and_estimates_travel_in_one_message(name):
    """A ring's two neighbours are sent two models each, once an iteration."""
    workers = jaxsp.Workers(8)
    tx = getattr(methods, name)(0.1, RING, axis_name=workers.axis_name)
    params = {"w": jnp.zeros((8, 50)), "b": jnp.zeros((8, 50))}

    def step(params, state):
        def F(z):
            return jax.tree.map(jnp.sin, z)

        updates, state = tx.update(F(params), state, params, operator_fn=F)
        return optax.apply_updates(params, updates), state

    params, state = workers.shard((params, jax.jit(workers.map(tx.init))(params)))
    step = jax.jit(workers.map(step)).lower(params, state).compile()
    found = r"= \(?f32\[(\d+)\].* collective-permute(?:-start)?\("
    assert re.findall(found, step.as_text()) == ["200", "200"]
    _, state = step(params, state)
    np.testing.assert_array_equal(jaxsp.metrics.bits_sent(state).up, 2 * 32 * 2 * 100)


def test_estimates_of_half_precision_are_kept_and_sent_in_float32():
    tx = methods.tracked_optimistic(0.1, RING, axis_name=AXIS)

    def step(z):
        updates, state = tx.update(z, tx.init(z), z)
        return updates, state

    updates, state = VIRTUAL.map(step)(jnp.ones((N, 10), jnp.bfloat16))
    assert updates.dtype == jnp.bfloat16
    assert state.estimate.dtype == state.gradient.dtype == jnp.float32
    np.testing.assert_array_equal(jaxsp.metrics.bits_sent(state).up, 2 * (16 + 32) * 10)
