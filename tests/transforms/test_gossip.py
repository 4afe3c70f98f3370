"""Gossip: the consensus errors that theory gives, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
import table

import jaxsp
from jaxsp import topology

AXIS = table.AXIS


def mixed(graph, V, **options):
    """The workers' points after one gossip of V, `[n, d]`, and the state."""
    workers = jaxsp.Workers(graph.size, devices=jax.devices()[:1])
    tx = jaxsp.gossip(graph, axis_name=AXIS, **options)

    def once(v):
        updates, state = tx.update(jnp.zeros_like(v), tx.init(v), v)
        return v + updates, state

    out, state = jax.jit(workers.map(once))(jnp.asarray(V))
    return np.asarray(out), state


def consensus(V):
    return np.linalg.norm(V - V.mean(0))


# Relative consensus error on a ring of 20 with weights 1/3, mean over random starts.
TABLE = {
    None: {10: 2.5e-1, 40: 8.6e-2, 80: 2.3e-2},
    "fastmix": {10: 1.0e-1, 40: 1.1e-4, 80: 6.3e-9},
    "chebyshev": {10: 8.1e-2, 40: 5.3e-6, 80: 1.7e-11},
}


@pytest.mark.parametrize("acceleration", TABLE)
def test_consensus_error_on_a_ring_of_20(x64, acceleration):
    ring = topology.ring(20)
    assert ring.lambda2 == pytest.approx(0.967, abs=1e-3)
    V = np.random.default_rng(0).normal(size=(20, 400))
    for rounds, expected in TABLE[acceleration].items():
        out, _ = mixed(ring, V, rounds=rounds, acceleration=acceleration)
        assert consensus(out) / consensus(V) == pytest.approx(expected, rel=0.15)
        np.testing.assert_allclose(out.mean(0), V.mean(0), atol=1e-13)


@pytest.mark.parametrize("acceleration", [None, "fastmix", "chebyshev"])
@pytest.mark.parametrize("rounds", [1, 2, 3, 11])
@pytest.mark.parametrize("graph", ["ring", "star", "erdos_renyi", "asymmetric"])
def test_equals_numpy(x64, graph, rounds, acceleration):
    graph = table.graphs(8)[graph]
    V = np.random.default_rng(1).normal(size=(8, 3))
    out, _ = mixed(graph, V, rounds=rounds, acceleration=acceleration)
    theirs = reference.mix(V, graph.to_matrix(), rounds, acceleration)
    np.testing.assert_allclose(out, theirs, atol=1e-13)


@pytest.mark.parametrize("acceleration", ["fastmix", "chebyshev"])
def test_acceleration_of_a_complete_graph_is_its_exact_mean(x64, acceleration):
    V = np.random.default_rng(1).normal(size=(5, 3))
    out, _ = mixed(topology.complete(5), V, rounds=3, acceleration=acceleration)
    np.testing.assert_allclose(out, np.tile(V.mean(0), (5, 1)), atol=1e-14)


def test_one_peer_exponential_is_exact_after_log_n_rounds(x64):
    V = np.random.default_rng(1).normal(size=(8, 3))
    graph = topology.one_peer_exponential(8)
    out, _ = mixed(graph, V, rounds=3)
    np.testing.assert_allclose(out, np.tile(V.mean(0), (8, 1)), atol=1e-15)


def test_one_peer_exponential_moves_on_from_update_to_update(x64):
    workers = jaxsp.Workers(8, devices=jax.devices()[:1])
    graph = topology.one_peer_exponential(8)
    tx = jaxsp.gossip(graph, axis_name=AXIS)
    z = V = jnp.asarray(np.random.default_rng(1).normal(size=(8, 3)))
    state = jax.jit(workers.map(tx.init))(z)
    step = jax.jit(workers.map(tx.update))
    for k in range(3):
        updates, state = step(jnp.zeros_like(z), state, z)
        expected = graph.to_matrix(k) @ z
        z = z + updates
        np.testing.assert_allclose(z, expected, atol=1e-14)
    np.testing.assert_allclose(z, np.tile(V.mean(0), (8, 1)), atol=1e-14)


def test_random_ring_draws_one_graph_an_update_by_the_shared_key(x64):
    graph, key = topology.random_ring(8), jax.random.key(11)
    workers = jaxsp.Workers(8, devices=jax.devices()[:1])
    tx = jaxsp.gossip(graph, 2, axis_name=AXIS, key=key)
    z = jnp.asarray(np.random.default_rng(1).normal(size=(8, 3)))
    state, seen = jax.jit(workers.map(tx.init))(z), set()
    step = jax.jit(workers.map(tx.update))
    for k in range(12):
        updates, state = step(jnp.zeros_like(z), state, z)
        draw = jax.random.randint(jax.random.fold_in(key, k), (), 0, len(graph.members))
        seen.add(int(draw))
        W = graph.matrices[int(draw)]
        np.testing.assert_allclose(z + updates, W @ W @ z, atol=1e-14)
        z = z + updates + k  # anything else
    assert len(seen) > 6


def test_combine_then_adapt_leaves_the_update_unmixed(x64):
    ring, rng = topology.ring(5), np.random.default_rng(2)
    z, u = rng.normal(size=(2, 5, 3))
    workers = jaxsp.Workers(5, devices=jax.devices()[:1])
    W = ring.to_matrix()
    for order, expected in {
        "adapt_then_combine": W @ (z + u),
        "combine_then_adapt": W @ z + u,
    }.items():
        tx = jaxsp.gossip(ring, axis_name=AXIS, order=order)
        out = workers.map(lambda z, u, tx=tx: z + tx.update(u, tx.init(z), z)[0])
        np.testing.assert_allclose(jax.jit(out)(z, u), expected, atol=1e-14)


def test_gossip_inside_extragradient_mixes_both_points(x64):
    game, ring = table.make_game(8, 4), topology.ring(8)
    tx = jaxsp.extragradient(
        optax.chain(optax.sgd(0.1), jaxsp.gossip(ring, 2, "fastmix", axis_name=AXIS))
    )
    z0 = np.random.default_rng(3).normal(size=(8, 4))
    workers = jaxsp.Workers(8, devices=jax.devices()[:1])
    ours, _ = table.trajectory(workers, tx, game, z0, 20)
    theirs = reference.decentralized_extra_step(
        z0, game.stacked, ring.to_matrix(), 2, "fastmix", 0.1, 20
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-13)


def directed_ring(n):
    return topology.from_matrix((np.eye(n) + np.roll(np.eye(n), 1, axis=0)) / 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(topology=np.eye(4)), "jaxsp.topology.from_matrix"),
        (dict(rounds=0), "rounds must be at least 1"),
        (dict(rounds=True), "rounds must be an integer"),
        (dict(acceleration="momentum"), "acceleration must be None"),
        (dict(order="first"), "order must be"),
        (dict(axis_name=4), "axis_name"),
        (
            dict(topology=topology.one_peer_exponential(4), acceleration="fastmix"),
            "time-varying",
        ),
        (dict(topology=topology.random_ring(5)), "key must be a typed key"),
        (
            dict(topology=directed_ring(8), rounds=20, acceleration="chebyshev"),
            "multiply the workers' disagreement",
        ),
        (
            dict(topology=directed_ring(8), rounds=20, acceleration="fastmix"),
            "multiply the workers' disagreement",
        ),
    ],
)
def test_bad_arguments(options, message):
    arguments = dict(topology=topology.ring(4), axis_name=AXIS) | options
    with pytest.raises(ValueError, match=message):
        jaxsp.gossip(**arguments)


def test_what_is_refused_would_really_drive_workers_apart():
    W, V = directed_ring(8).to_matrix(), np.random.default_rng(0).normal(size=(8, 50))
    for acceleration in ("fastmix", "chebyshev"):
        assert consensus(reference.mix(V, W, 20, acceleration)) > 5 * consensus(V)


def test_another_number_of_workers_than_the_topology():
    workers = jaxsp.Workers(4, devices=jax.devices()[:1])
    tx = jaxsp.gossip(topology.ring(5), axis_name=AXIS)
    with pytest.raises(ValueError, match="topology is for 5 workers"):
        workers.map(lambda z: tx.update(z, tx.init(z), z))(jnp.ones((4, 2)))


@pytest.mark.parametrize("acceleration", [None, "fastmix", "chebyshev"])
def test_half_precision_keeps_the_mean(acceleration):
    """1/3 + 1/3 + 1/3 is 1.002 in bfloat16, and would grow from mixing to mixing."""
    workers = jaxsp.Workers(8, devices=jax.devices()[:1])
    tx = jaxsp.gossip(topology.ring(8), 4, acceleration, axis_name=AXIS)
    z = jnp.full((8, 3), 1.5, jnp.bfloat16)
    state = jax.jit(workers.map(tx.init))(z)
    step = jax.jit(workers.map(tx.update))
    for _ in range(100):
        updates, state = step(jnp.zeros_like(z), state, z)
        z = z + updates
    np.testing.assert_array_equal(z.astype(jnp.float32), np.full((8, 3), 1.5))
