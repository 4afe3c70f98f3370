"""Mixing matrices, their permutations and their spectra."""

import copy
import math

import hypothesis
import hypothesis.strategies as st
import jax
import networkx
import numpy as np
import pytest

from jaxsp import topology
from jaxsp.topology import (
    TimeVarying,
    Topology,
    graphs,
    matrices,
    mixing,
    permutations,
    time_varying,
)

SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.integers(1, 12)
MODULES = (graphs, matrices, mixing, permutations, time_varying)


def birkhoff(seed, n, terms):
    """Doubly stochastic, asymmetric, sparse: a convex combination of permutations."""
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.ones(terms))
    return sum(w * np.eye(n)[rng.permutation(n)] for w in weights)


def sinkhorn(seed, n, density):
    """Doubly stochastic with a random support, by alternating normalisation."""
    rng = np.random.default_rng(seed)
    W = rng.random((n, n)) * (rng.random((n, n)) < density)
    W += birkhoff(seed, n, 2)  # a support that can be scaled
    for _ in range(5000):
        W /= W.sum(axis=1, keepdims=True)
        W /= W.sum(axis=0)
        if np.abs(W.sum(axis=1) - 1).max() < 1e-12:
            break
    return W


def random_graph(seed, n):
    """A connected graph: a random tree and a few more edges."""
    rng = np.random.default_rng(seed)
    graph = networkx.Graph()
    graph.add_nodes_from(range(n))
    graph.add_edges_from((m, int(rng.integers(m))) for m in range(1, n))
    graph.add_edges_from(rng.integers(n, size=(int(rng.integers(n)), 2)).tolist())
    graph.remove_edges_from(list(networkx.selfloop_edges(graph)))
    return graph


def check_permutations(found, W):
    """They are full, as few as possible, and give W exactly."""
    n = len(W)
    for sources in found.permutations:
        assert sorted(sources.tolist()) == list(range(n))
    rebuilt = np.zeros((n, n))
    for m in range(n):
        rebuilt[m, m] += found.self_weights[m]
        for sources, weights in zip(found.permutations, found.weights, strict=True):
            rebuilt[m, sources[m]] += weights[m]
    np.testing.assert_array_equal(rebuilt, W)
    np.testing.assert_array_equal(found.to_matrix(), W)
    off_diagonal = (W != 0) & ~np.eye(n, dtype=bool)
    edges_out, edges_in = off_diagonal.sum(axis=0), off_diagonal.sum(axis=1)
    assert found.permutes == max(edges_out.max(), edges_in.max())
    moved = found.permutations != np.arange(n)
    assert (found.weights[~moved] == 0).all()
    unavoidable = np.maximum(edges_out - edges_in, 0).sum()  # edges of weight 0
    assert moved.sum() == off_diagonal.sum() + unavoidable


@hypothesis.given(seed=SEEDS, n=SIZES, terms=st.integers(1, 6))
def test_permutations_of_sparse_asymmetric_matrices(seed, n, terms):
    W = birkhoff(seed, n, terms)
    check_permutations(topology.from_matrix(W), W)


@hypothesis.settings(max_examples=40)
@hypothesis.given(seed=SEEDS, n=SIZES, density=st.sampled_from([0.1, 0.4, 1.0]))
def test_permutations_of_dense_and_irregular_matrices(seed, n, density):
    W = sinkhorn(seed, n, density)
    hypothesis.assume(np.abs(W.sum(axis=1) - 1).max() < 1e-9)
    check_permutations(topology.from_matrix(W), W)


@hypothesis.given(seed=SEEDS, n=SIZES)
def test_undirected_graphs_move_only_their_edges(seed, n):
    graph = random_graph(seed, n)
    found = topology.from_graph(graph)
    check_permutations(
        found, topology.metropolis_hastings(networkx.to_numpy_array(graph))
    )
    degree = [d for _, d in graph.degree]
    sent, received = found.messages()
    np.testing.assert_array_equal(sent, degree)
    np.testing.assert_array_equal(received, degree)


@hypothesis.given(seed=SEEDS, n=st.integers(3, 12))
def test_circulant_matrices_are_cyclic_shifts(seed, n):
    row = np.random.default_rng(seed).dirichlet(np.ones(n))
    row[np.random.default_rng(seed).random(n) < 0.5] = 0
    row[0] += 1 - row.sum()
    W = np.stack([np.roll(row, m) for m in range(n)])
    found = topology.from_matrix(W)
    check_permutations(found, W)
    for sources in found.permutations:
        assert len(set(((sources - np.arange(n)) % n).tolist())) == 1


def test_large_irregular_order_of_a_torus():
    order = np.random.default_rng(0).permutation(1024)
    W = topology.torus(32, 32).to_matrix()[np.ix_(order, order)]
    found = topology.from_matrix(W)
    np.testing.assert_array_equal(found.to_matrix(), W)
    assert found.permutations.shape == (4, 1024)


def test_weightless_edges_of_an_asymmetric_matrix_are_counted():
    # Workers 0, 1, 2 have 1, 2, 2 edges in and 2, 2, 1 out: one edge is missing into 0,
    # one out of 2, and 2 → 0 is the edge that fills the second permutation.
    W = np.array([[0.5, 0.5, 0.0], [0.25, 0.25, 0.5], [0.25, 0.25, 0.5]])
    found = topology.from_matrix(W)
    check_permutations(found, W)
    moved = found.permutations != np.arange(3)
    assert sorted(
        zip(
            np.nonzero(moved)[1].tolist(),
            found.permutations[moved].tolist(),
            found.weights[moved].tolist(),
            strict=True,
        )
    ) == [(0, 1, 0.5), (0, 2, 0), (1, 0, 0.25), (1, 2, 0.5), (2, 0, 0.25), (2, 1, 0.25)]
    for count in found.messages():
        np.testing.assert_array_equal(count, [2, 2, 2])
    assert found.diameter == 2  # nothing is heard over an edge of weight 0


def test_an_edge_that_only_fills_may_repeat_a_real_one():
    for seed in range(100):
        W = birkhoff(seed, 5, 4)
        found = topology.from_matrix(W)
        edges = [
            (m, j)
            for sources in found.permutations
            for m, j in enumerate(sources.tolist())
            if m != j
        ]
        if len(set(edges)) < len(edges):
            check_permutations(found, W)
            return
    pytest.fail("no matrix has a repeated edge")


@pytest.mark.parametrize(
    ("made", "permutes"),
    [
        (topology.ring(7), 2),
        (topology.ring(3), 2),
        (topology.ring(2), 1),
        (topology.torus(3, 5), 4),
        (topology.torus(2, 5), 3),
        (topology.torus(2, 2), 2),
        (topology.torus(1, 5), 2),
        (topology.exponential(8), 3),
        (topology.exponential(9), 4),
        (topology.exponential(2), 1),
        (topology.one_peer_exponential(12).members[3], 1),
        (topology.complete(6), 5),
        (topology.star(6), 5),
        (topology.path(6), 2),
        (topology.path(2), 1),
        (topology.random_ring(9).members[5], 2),
        (topology.from_graph(networkx.petersen_graph()), 3),
    ],
    ids=lambda value: str(value),
)
def test_permutations_of_the_named_topologies(made, permutes):
    check_permutations(made, made.to_matrix())
    assert made.permutations.shape == (permutes, made.size)
    assert abs(made.to_matrix().sum(axis=0) - 1).max() < 1e-15
    assert abs(made.to_matrix().sum(axis=1) - 1).max() < 1e-15


def test_path_exchanges_pairs():
    """No collective moves more than the edges of a matching, in both directions."""
    for sources in topology.path(9).permutations:
        np.testing.assert_array_equal(sources[sources], np.arange(9))


# --- what the graphs are


def neighbours(made):
    W = made.to_matrix()
    return [set(np.flatnonzero(row).tolist()) - {m} for m, row in enumerate(W)]


def test_neighbours():
    assert neighbours(topology.ring(5))[0] == {1, 4}
    assert neighbours(topology.torus(3, 4))[5] == {1, 9, 4, 6}
    assert neighbours(topology.torus(3, 4))[0] == {4, 8, 1, 3}
    assert neighbours(topology.torus(2, 3))[0] == {3, 1, 2}
    assert neighbours(topology.torus(2, 2))[0] == {1, 2}
    assert neighbours(topology.exponential(10))[3] == {4, 5, 7, 1}
    assert neighbours(topology.complete(4))[2] == {0, 1, 3}
    assert neighbours(topology.star(4)) == [{1, 2, 3}, {0}, {0}, {0}]
    assert neighbours(topology.path(4)) == [{1}, {0, 2}, {1, 3}, {2}]
    one_peer = topology.one_peer_exponential(8).members
    assert [neighbours(member)[5] for member in one_peer] == [{6}, {7}, {1}]


@pytest.mark.parametrize(
    ("made", "weight"),
    [
        (topology.ring(2), 1 / 2),
        (topology.ring(3), 1 / 3),
        (topology.ring(9), 1 / 3),
        (topology.torus(3, 3), 1 / 5),
        (topology.torus(2, 3), 1 / 4),
        (topology.torus(2, 2), 1 / 3),
        (topology.exponential(9), 1 / 5),
        (topology.complete(7), 1 / 7),
        (topology.one_peer_exponential(6).members[2], 1 / 2),
        (topology.random_ring(2).members[0], 1 / 2),
        (topology.random_ring(7).members[0], 1 / 3),
    ],
    ids=str,
)
def test_uniform_weights(made, weight):
    W = made.to_matrix()
    np.testing.assert_array_equal(W[W != 0], weight)
    np.testing.assert_array_equal(np.diag(W), weight)


def test_thin_torus_is_a_ring():
    ring = topology.ring(6).to_matrix()
    np.testing.assert_array_equal(topology.torus(1, 6).to_matrix(), ring)
    np.testing.assert_array_equal(topology.torus(6, 1).to_matrix(), ring)


@pytest.mark.parametrize(
    "made",
    [
        topology.ring(1),
        topology.torus(1, 1),
        topology.exponential(1),
        topology.complete(1),
        topology.star(1),
        topology.path(1),
        topology.erdos_renyi(1, 0.5, 0),
        topology.from_matrix([[1.0]]),
        topology.from_graph(networkx.empty_graph(1)),
        topology.lazy(topology.ring(1)),
        topology.one_peer_exponential(1),
        topology.random_ring(1),
    ],
    ids=lambda made: made.name,
)
def test_one_worker(made):
    (member,) = made.members
    assert made.size == 1
    assert member.permutations.shape == member.weights.shape == (0, 1)
    np.testing.assert_array_equal(made.to_matrix(), [[1.0]])
    assert (made.lambda2, made.spectral_gap, made.chi, made.diameter) == (0, 1, 1, 0)
    assert member.spectral_interval == (0, 0)
    assert [count.tolist() for count in member.messages()] == [[0], [0]]
    assert made.is_symmetric


@hypothesis.given(seed=SEEDS, n=SIZES)
def test_metropolis_hastings_weights(seed, n):
    graph = random_graph(seed, n)
    expected = np.zeros((n, n))
    for i in range(n):
        for j in graph[i]:
            expected[i, j] = 1 / (1 + max(graph.degree[i], graph.degree[j]))
        expected[i, i] = 1 - sum(expected[i, j] for j in graph[i])
    adjacency = networkx.to_numpy_array(graph)
    weighted = -3.5 * adjacency + 7 * np.eye(n)
    for given_as in (adjacency, adjacency.astype(bool), weighted):
        found = topology.metropolis_hastings(given_as)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-15)
    assert (found == found.T).all()
    assert (found >= 0).all()


def test_graph_nodes_give_the_order_of_workers():
    graph = networkx.MultiGraph()
    graph.add_nodes_from(["c", "a", "b"])
    graph.add_edge("a", "b", weight=5.0)
    graph.add_edge("a", "b")
    graph.add_edge("c", "c")
    graph.add_edge("a", "c")
    found = topology.from_graph(graph)
    expected = topology.metropolis_hastings([[0, 1, 0], [1, 0, 1], [0, 1, 0]])
    np.testing.assert_array_equal(found.to_matrix(), expected)


def test_erdos_renyi():
    dense = topology.erdos_renyi(30, 0.5, seed=3)
    again = topology.erdos_renyi(30, 0.5, seed=np.int64(3))
    other = topology.erdos_renyi(30, 0.5, seed=4)
    np.testing.assert_array_equal(dense.to_matrix(), again.to_matrix())
    assert (dense.to_matrix() != other.to_matrix()).any()
    edges = sum(map(len, neighbours(dense))) / 2
    assert abs(edges - 0.5 * 435) < 4 * math.sqrt(435 / 4)
    sparse = [topology.erdos_renyi(12, 0.15, seed) for seed in range(10)]
    assert all(made.diameter < math.inf for made in sparse)  # 1 in 11 draws is
    np.testing.assert_allclose(topology.erdos_renyi(4, 1, 0).to_matrix(), 0.25)


def test_lazy():
    W = birkhoff(1, 6, 3)
    for given_as in (W, topology.from_matrix(W)):
        made = topology.lazy(given_as)
        np.testing.assert_array_equal(made.to_matrix(), (np.eye(6) + W) / 2)
    lo, hi = topology.lazy(topology.ring(4)).spectral_interval
    assert lo == pytest.approx(1 / 3)
    assert hi == pytest.approx(2 / 3)
    swap = topology.from_matrix([[0, 1], [1, 0]])
    assert (swap.lambda2, topology.lazy(swap).lambda2) == (1, 0)


# --- spectra


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("n", [3, 4, 8, 20, 31])
def test_ring_spectrum(n):
    eigenvalues = 1 / 3 + 2 / 3 * np.cos(2 * np.pi * np.arange(1, n) / n)
    made = topology.ring(n)
    close(made.lambda2, abs(eigenvalues).max())
    close(made.spectral_gap, 1 - abs(eigenvalues).max())
    close(made.spectral_interval, (eigenvalues.min(), eigenvalues.max()))
    expected = (1 - eigenvalues.min()) / (1 - eigenvalues.max())
    assert made.chi == pytest.approx(expected, rel=1e-11)
    assert made.diameter == n // 2


def test_known_spectra():
    assert round(topology.ring(20).lambda2, 3) == 0.967
    for n in (2, 3, 8, 33):
        complete = topology.complete(n)
        assert complete.lambda2 <= 1e-15
        assert complete.spectral_interval == (0, 0)
        assert complete.chi == 1
        assert complete.diameter == 1
    for n in (3, 9):
        close(topology.star(n).spectral_interval, (0, 1 - 1 / n))
        eigenvalues = 1 / 3 + 2 / 3 * np.cos(np.pi * np.arange(1, n) / n)
        close(
            topology.path(n).spectral_interval, (eigenvalues.min(), eigenvalues.max())
        )
    a, b = np.meshgrid(2 * np.pi * np.arange(4) / 4, 2 * np.pi * np.arange(5) / 5)
    torus = np.sort((1 + 2 * np.cos(a) + 2 * np.cos(b)).ravel() / 5)
    close(topology.torus(4, 5).spectral_interval, (torus[0], torus[-2]))


@pytest.mark.parametrize("n", [4, 6, 11, 16])
def test_exponential_spectrum(n):
    made = topology.exponential(n)
    hops = 2 ** np.arange(math.ceil(math.log2(n)))
    waves = np.exp(2j * np.pi * np.outer(np.arange(n), hops) / n)
    eigenvalues = (1 + waves.sum(axis=1))[1:] / (1 + len(hops))
    close(made.lambda2, abs(eigenvalues).max())
    close(made.spectral_interval, (-made.lambda2, made.lambda2))
    if n % 2 == 0:
        close(made.lambda2, 1 - 2 / (1 + len(hops)))
    # A normal matrix: singular values are the moduli of the eigenvalues.
    distances = abs(1 - eigenvalues)
    assert made.chi == pytest.approx(distances.max() / distances.min(), rel=1e-12)
    assert not made.is_symmetric


@pytest.mark.parametrize(
    "made",
    [
        topology.ring(128),
        topology.complete(65),
        topology.exponential(100),
        topology.one_peer_exponential(100),
    ],
    ids=lambda made: made.name,
)
def test_circulant_spectra_take_no_decomposition(made, monkeypatch):
    dense = [np.linalg.eigvals(W - 1 / made.size) for W in made.matrices]
    for name in ("eigvals", "eigvalsh", "svd", "norm"):
        monkeypatch.delattr(np.linalg, name)
    for member, eigenvalues in zip(made.members, dense, strict=True):
        assert member.is_circulant
        assert member.lambda2 == pytest.approx(abs(eigenvalues).max(), abs=1e-12)
    assert made.lambda2 < 1 < made.chi or made.name == "complete"


@hypothesis.given(seed=SEEDS, n=st.integers(2, 8), symmetric=st.booleans())
def test_interval_holds_every_other_eigenvalue(seed, n, symmetric):
    W = birkhoff(seed, n, 3)
    W = (W + W.T) / 2 if symmetric else W
    made = topology.from_matrix(W)
    assert made.is_symmetric == np.allclose(W, W.T)
    lo, hi = made.spectral_interval
    eigenvalues = np.linalg.eigvals(W)
    others = np.delete(eigenvalues, abs(eigenvalues - 1).argmin())
    if made.is_symmetric:
        np.testing.assert_allclose((lo, hi), (others.real.min(), others.real.max()))
    else:
        # Nearly defective matrices have eigenvalues to half the digits only.
        np.testing.assert_allclose(
            (lo, hi), (-abs(others).max(), abs(others).max()), atol=1e-5
        )
    assert made.lambda2 == max(-lo, hi)


def test_disconnected_and_periodic():
    halves = np.kron(np.eye(2), np.full((3, 3), 1 / 3))
    directed = np.kron(np.eye(2), topology.from_matrix(birkhoff(0, 3, 2)).to_matrix())
    for W in (halves, directed, np.eye(4)):
        made = topology.from_matrix(W)
        assert made.lambda2 == 1
        assert made.spectral_gap == 0
        assert made.chi == math.inf
        assert made.diameter == math.inf
    # Row sums that are only nearly 1 do not make λ₂ > 1.
    assert topology.from_matrix(halves * (1 + 5e-10)).lambda2 == 1
    cycle = topology.from_matrix(np.roll(np.eye(4), 1, axis=1))  # never mixes
    assert (cycle.lambda2, cycle.diameter) == (1, 3)
    assert cycle.chi == pytest.approx(math.sqrt(2))


@hypothesis.given(seed=SEEDS, n=SIZES)
def test_diameter_of_undirected_graphs(seed, n):
    graph = random_graph(seed, n)
    assert topology.from_graph(graph).diameter == networkx.diameter(graph)


@hypothesis.given(seed=SEEDS, n=SIZES, terms=st.integers(1, 5))
def test_diameter_of_directed_graphs(seed, n, terms):
    W = birkhoff(seed, n, terms)
    graph = networkx.from_numpy_array(W.T, create_using=networkx.DiGraph)  # j → m
    expected = math.inf
    if networkx.is_strongly_connected(graph):
        expected = networkx.diameter(graph)
    assert topology.from_matrix(W).diameter == expected


# --- time-varying topologies


@pytest.mark.parametrize("n", [2, 8, 16])
def test_one_peer_exponential_averages_exactly(n):
    made = topology.one_peer_exponential(n)
    assert len(made.members) == math.log2(n)
    assert not made.random
    product = np.eye(n)
    for W in made.matrices:
        product = W @ product
    np.testing.assert_array_equal(product, np.full((n, n), 1 / n))
    assert (made.lambda2, made.chi) == (0, 1)
    # The union is the static exponential graph.
    assert made.diameter == topology.exponential(n).diameter
    assert made.is_symmetric == (n == 2)


def test_one_peer_exponential_of_other_sizes():
    made = topology.one_peer_exponential(12)
    assert [int(m.permutations[0, 0]) for m in made.members] == [1, 2, 4, 8]
    assert 0 < made.lambda2 < 1


@hypothesis.settings(max_examples=30)
@hypothesis.given(seed=SEEDS, period=st.integers(1, 4))
def test_contraction_of_a_sequence(seed, period):
    """No start shrinks less over a period, and the worst start shrinks just so."""
    n = 6
    made = topology.from_sequence([birkhoff(seed + t, n, 3) for t in range(period)])
    start = np.eye(n) - 1 / n  # a basis of deviations from consensus, with the worst
    after = start
    for t in range(period):
        after = made.to_matrix(t) @ after
    gain = np.sqrt(max(np.linalg.eigvalsh(after.T @ after)[-1], 0))
    np.testing.assert_allclose(made.lambda2**period, gain, atol=1e-7)
    expected = math.inf if made.lambda2 == 1 else 1 / (1 - made.lambda2**2)
    assert made.chi == pytest.approx(expected)
    assert made.spectral_gap == 1 - made.lambda2
    np.testing.assert_array_equal(made.to_matrix(period + 1), made.matrices[1 % period])


@hypothesis.settings(max_examples=30)
@hypothesis.given(seed=SEEDS, count=st.integers(1, 4))
def test_contraction_of_random_draws(seed, count):
    n = 6
    matrices = [birkhoff(seed + t, n, 3) for t in range(count)]
    made = topology.from_sequence(matrices, random=True)
    # Mean of |(W − J)x|² = |A x|² with the deviations stacked.
    stacked = np.concatenate([W - 1 / n for W in matrices]) / math.sqrt(count)
    np.testing.assert_allclose(made.lambda2, np.linalg.norm(stacked, 2), rtol=1e-10)


def test_contraction_of_sparse_random_draws():
    made = topology.random_ring(40)
    square = np.mean([W.T @ W for W in made.matrices], axis=0)
    expected = np.sqrt(np.linalg.eigvalsh(square)[-2])
    assert made.lambda2 == pytest.approx(expected, rel=1e-12)


def test_a_constant_sequence_contracts_as_its_member():
    ring = topology.ring(9)
    for random in (False, True):
        made = topology.from_sequence([ring, ring, ring], random=random)
        assert made.members == (ring, ring, ring)
        assert made.lambda2 == pytest.approx(ring.lambda2, rel=1e-12)
        assert (made.diameter, made.is_symmetric) == (4, True)


def test_a_sequence_may_be_connected_only_together():
    pairs = np.kron(np.eye(2), np.full((2, 2), 0.5))
    middle = np.eye(4)
    middle[1:3, 1:3] = 0.5
    made = topology.from_sequence([pairs, topology.from_matrix(middle)])
    assert [member.diameter for member in made.members] == [math.inf, math.inf]
    assert made.diameter == 3
    assert made.lambda2 < 1
    assert made.chi < math.inf
    apart = topology.from_sequence([pairs, np.eye(4)])
    assert (apart.diameter, apart.lambda2, apart.chi) == (math.inf, 1, math.inf)


@pytest.mark.parametrize(
    ("n", "pool", "count"),
    [(2, 32, 1), (3, 32, 1), (4, 32, 3), (5, 32, 12), (6, 32, 32), (9, 5, 5)],
)
def test_random_ring(n, pool, count):
    made = topology.random_ring(n, pool)
    assert made.random
    assert len(made.members) == count
    seen = set()
    for member in made.members:
        edges = frozenset(
            frozenset((m, j)) for m, near in enumerate(neighbours(member)) for j in near
        )
        graph = networkx.Graph(tuple(edge) for edge in edges)
        assert networkx.is_connected(graph)
        assert sorted(d for _, d in graph.degree) == [min(2, n - 1)] * n
        assert member.is_symmetric
        seen.add(edges)
    assert len(seen) == count
    again = topology.random_ring(n, pool, seed=0)
    for one, other in zip(made.matrices, again.matrices, strict=True):
        np.testing.assert_array_equal(one, other)


def test_random_rings_depend_on_the_seed():
    one, other = topology.random_ring(20), topology.random_ring(20, seed=1)
    assert (one.to_matrix() != other.to_matrix()).any()


# --- the objects


EVERY = [topology.star(4), topology.one_peer_exponential(4)]


@pytest.mark.parametrize("made", EVERY)
def test_topologies_are_opaque_constants(made):
    assert len({made, made, copy.copy(made)}) == 2  # by identity
    assert jax.tree.leaves(made) == [made]
    assert not callable(made)
    assert not hasattr(made, "__array__")
    assert not hasattr(made, "__mul__")
    with pytest.raises(AttributeError):
        made.name = "other"
    for member in made.members:
        for array in (member.self_weights, member.permutations, member.weights):
            with pytest.raises(ValueError, match="read-only"):
                array[..., 0] = 1
        assert member.permutations.dtype == np.int64
        assert member.weights.dtype == member.self_weights.dtype == np.float64
    made.to_matrix()[:] = 0  # a copy
    assert made.to_matrix().sum() == 4


def test_members_and_matrices():
    star = topology.star(4)
    assert star.members == (star,)
    (W,) = star.matrices
    np.testing.assert_array_equal(W, star.to_matrix())


def test_the_callers_arrays_stay_theirs():
    W = np.full((2, 2), 0.5)
    made = topology.from_matrix(W)
    W[0] = 0
    np.testing.assert_array_equal(made.to_matrix(), 0.5)


def test_repr():
    assert repr(topology.star(4)) == (
        "Topology('star', size=4, permutes=3, lambda2=0.75)"
    )
    assert repr(topology.random_ring(3)) == (
        "TimeVarying('random_ring', size=3, members=1, random=True, lambda2=0)"
    )


# --- bad input

bad_sizes = pytest.mark.parametrize(
    "bad", [0, -1, 2.0, "3", None, True, np.bool_(True), np.array([2])], ids=repr
)


@bad_sizes
@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (topology.ring, "n"),
        (lambda bad: topology.torus(bad, 2), "rows"),
        (lambda bad: topology.torus(2, bad), "cols"),
        (topology.exponential, "n"),
        (topology.one_peer_exponential, "n"),
        (topology.complete, "n"),
        (topology.star, "n"),
        (topology.path, "n"),
        (lambda bad: topology.erdos_renyi(bad, 0.5, 0), "n"),
        (topology.random_ring, "n"),
        (lambda bad: topology.random_ring(5, pool=bad), "pool"),
    ],
)
def test_sizes_must_be_positive_integers(make, argument, bad):
    with pytest.raises(
        ValueError, match=f"^{argument} must be (an integer|at least 1), got"
    ):
        make(bad)


def test_numpy_sizes():
    assert topology.torus(np.uint8(2), np.uint8(200)).size == 400
    for make in (
        topology.ring,
        topology.exponential,
        topology.one_peer_exponential,
        topology.star,
        topology.path,
        topology.complete,
        topology.random_ring,
    ):
        assert make(np.uint8(200)).to_matrix().shape == (200, 200)


@pytest.mark.parametrize("bad", [-1, 0.5, None, False])
def test_seeds_must_be_integers(bad):
    expected = r"^seed must be (an integer|at least 0), got"
    with pytest.raises(ValueError, match=expected):
        topology.erdos_renyi(4, 0.5, bad)
    with pytest.raises(ValueError, match=expected):
        topology.random_ring(4, seed=bad)


@pytest.mark.parametrize("bad", [0, -0.5, 1.5, math.nan, True, "0.5", None])
def test_p_must_be_a_probability(bad):
    with pytest.raises(ValueError, match=r"^p must be above 0 and at most 1, got"):
        topology.erdos_renyi(4, bad, 0)


def test_p_must_give_a_connected_graph():
    with pytest.raises(ValueError, match=r"^p must be large enough .* got p=0.001"):
        topology.erdos_renyi(20, 0.001, 0)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([0.5, 0.5], r"W must be a square matrix .* got shape \(2,\)"),
        (np.ones((2, 3)), r"W must be a square matrix .* got shape \(2, 3\)"),
        (np.ones((0, 0)), r"W must be a square matrix .* got shape \(0, 0\)"),
        ([[1.0], [0.5, 0.5]], r"W must be an array of finite .* got \[\[1.0\], \["),
        ([["a"]], r"W must be an array of finite real numbers, got \[\['a'\]\]"),
        (np.eye(2) * 1j, "W must be an array of finite real numbers, .*1.j"),
        (topology.ring(3), "W must be an array of finite real numbers, got Topology"),
        ([[1.0, 0.0], [0.0, math.nan]], r"W\[1, 1\] must be finite, got nan"),
        ([[math.inf, 0.0], [0.0, 1.0]], r"W\[0, 0\] must be finite, got inf"),
        ([[2.0, -1.0], [-1.0, 2.0]], r"W must be nonnegative, got W\[0, 1\] = -1.0"),
        ([[1.0, 0.0], [0.5, 0.6]], "each row of W .* got 1.1 for row 1; write from_"),
        ([[0.5, 0.5], [0.6, 0.4]], "each column of W .* got 1.1 for column 0; write"),
        (np.eye(2) * (1 + 1e-8), "each row of W must sum to 1 within 1e-9"),
    ],
)
def test_matrices_must_be_doubly_stochastic(bad, message):
    with pytest.raises(ValueError, match=message):
        topology.from_matrix(bad)
    if not isinstance(bad, Topology):
        with pytest.raises(ValueError, match=message.replace("W", "topology")):
            topology.lazy(bad)
        in_sequence = message.replace("W", r"members\[1\]")
        with pytest.raises(ValueError, match=in_sequence):
            topology.from_sequence([np.eye(2), bad])


def test_nearly_stochastic_matrices_are_kept():
    W = np.eye(2) * (1 + 5e-10)
    np.testing.assert_array_equal(topology.from_matrix(W).to_matrix(), W)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([[0, 1], [0, 0]], "adjacency must be symmetric, .* between 0 and 1; write"),
        ([[0, 1, 1]], "adjacency must be a square matrix"),
        ([[0, math.nan], [math.nan, 0]], r"adjacency\[0, 1\] must be finite"),
        (networkx.path_graph(3), "adjacency must be "),
    ],
)
def test_adjacency_must_be_symmetric(bad, message):
    with pytest.raises(ValueError, match=message):
        topology.metropolis_hastings(bad)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.eye(3), "graph must have nodes and edges .* got ndarray; write from_m"),
        (networkx.DiGraph([(0, 1), (1, 0)]), "graph must be undirected, .* from_matr"),
        (networkx.Graph(), "graph must have at least one node"),
        (networkx.empty_graph(2), "graph must be connected, .* write from_matrix"),
    ],
)
def test_graphs_must_be_undirected_and_connected(bad, message):
    with pytest.raises(ValueError, match=message):
        topology.from_graph(bad)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([], "members must hold at least one topology, got none"),
        (topology.ring(3), r"members must be a sequence .* got Topology\('ring'"),
        (3, "members must be a sequence of topologies or matrices, got 3"),
        ([topology.ring(3), np.eye(4)], r"same size, got sizes \[3, 4\]"),
        ([topology.random_ring(4)], r"members must be fixed .* got TimeVarying\("),
    ],
)
def test_sequences_need_members_of_one_size(bad, message):
    with pytest.raises(ValueError, match=message):
        topology.from_sequence(bad)


def test_classes_check_what_they_hold():
    half = np.full(2, 0.5)
    with pytest.raises(ValueError, match=r"must both be of shape \(permutes, n\)"):
        Topology("mine", half, np.array([[1, 0, 2]]), np.full((1, 3), 0.5))
    with pytest.raises(ValueError, match=r"weights must be an array .* in 2 dim"):
        Topology("mine", half, np.array([[1, 0]]), half)
    with pytest.raises(ValueError, match="each row of permutations must hold 0, …, 1"):
        Topology("mine", half, np.array([[1, 1]]), half[None])
    with pytest.raises(ValueError, match=r"members must be fixed .* got array"):
        TimeVarying("mine", (np.eye(1),))
    with pytest.raises(ValueError, match="topology must be fixed, got TimeVarying"):
        topology.lazy(topology.random_ring(4))


# --- the modules


def test_topologies_are_numpy_alone():
    for module in MODULES:
        assert not {"jax", "jnp"} & set(vars(module))
        assert module.__all__ == sorted(module.__all__)


def random_bipartite(seed, n):
    """Edges in both directions between the two halves, some several times."""
    rng = np.random.default_rng(seed)
    half = (n + 1) // 2
    pairs = [
        (int(a), half + int(b))
        for a, b in zip(
            rng.integers(half, size=2 * n),
            rng.integers(n - half, size=2 * n),
            strict=True,
        )
    ]
    return pairs + [(b, a) for a, b in pairs]


@hypothesis.given(seed=SEEDS, n=st.integers(2, 12))
def test_matchings_are_pairs_that_cover_every_edge(seed, n):
    edges = random_bipartite(seed, n)
    swaps = permutations.matchings(edges, n)
    degree = max(np.bincount([m for m, _ in edges]))
    assert swaps.shape == (degree, n)
    for partner in swaps:
        np.testing.assert_array_equal(partner[partner], np.arange(n))
    moved = [(m, int(j)) for partner in swaps for m, j in enumerate(partner) if m != j]
    for edge in set(edges):
        assert moved.count(edge) >= edges.count(edge)
    assert set(moved) == set(edges)


@pytest.mark.parametrize(
    "edges",
    [
        [(0, 1)],  # one way
        [(0, 1), (1, 2), (2, 0), (1, 0), (2, 1), (0, 2)],  # an odd cycle
        [(0, 1), (0, 1), (1, 0)],  # twice one way
    ],
)
def test_some_graphs_have_no_known_matchings(edges):
    assert permutations.matchings(edges, 4) is None
    assert permutations.matchings([], 4).shape == (0, 4)
