"""Collectives against NumPy, how many there are, and what is counted."""

import re

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference

import jaxsp
from jaxsp import comm, methods, topology

N = 8
AXIS = jaxsp.Workers(1).axis_name


@pytest.fixture(params=[1, N], ids=["vmap", "shard_map"])
def workers(request):
    return jaxsp.Workers(N, devices=jax.devices()[: request.param])


def tree(seed=0):
    """A stacked tree of two dtypes, an empty leaf, a scalar and a None."""
    rng = np.random.default_rng(seed)
    return {
        "a": jnp.asarray(rng.normal(size=(N, 3, 2)), jnp.float32),
        "b": [jnp.asarray(rng.normal(size=N), jnp.float32), None],
        "c": jnp.asarray(rng.normal(size=(N, 4)), jnp.bfloat16),
        "d": jnp.zeros((N, 0), jnp.float32),
    }


def on_all(workers, fn, in_axes=0):
    """One program for all workers: without `jit` every operation would be one."""
    return jax.jit(workers.map(fn, in_axes))


def free(collective, tree, *rest):
    """What a collective brings, without what it costs."""
    return collective(tree, comm.no_traffic(), *rest)[0]


def dtypes(tree):
    return [x.dtype for x in jax.tree.leaves(tree)]


def test_pack_is_one_vector_a_dtype_and_back():
    leaves = jax.tree.map(lambda x: x[0], tree())
    buffers, unpack = comm.pack(leaves)
    assert [(b.dtype, b.shape) for b in buffers] == [
        (jnp.float32, (7,)),
        (jnp.bfloat16, (4,)),
    ]
    jax.tree.map(np.testing.assert_array_equal, unpack(buffers), leaves)
    assert comm.pack({})[1]([]) == {}


def test_mean_and_gather(workers):
    x = tree()
    mean, gathered = on_all(
        workers, lambda t: (free(comm.mean, t, AXIS), free(comm.gather, t, AXIS))
    )(x)
    for m in range(N):
        np.testing.assert_allclose(mean["a"][m], x["a"].mean(0), rtol=1e-6, atol=1e-7)
        jax.tree.map(
            lambda g, t, m=m: np.testing.assert_array_equal(g[m], t), gathered, x
        )
    assert dtypes(mean) == dtypes(x)


LONG = 130, 130  # what a CPU adds up by a product


@pytest.mark.parametrize("devices", [1, 2, N])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.complex64])
def test_means_of_much(x64, devices, dtype):
    workers = jaxsp.Workers(N, devices=jax.devices()[:devices])
    axis, rng = workers.axis_name, np.random.default_rng(2)
    turn = 1 + 1j if dtype == jnp.complex64 else 1
    x = (rng.normal(size=(N, *LONG)) * turn).astype(dtype)
    weights = jnp.asarray(rng.dirichlet(np.ones(N)) * N)

    def both(x):
        made, _ = comm.exchange(x, comm.no_traffic(), axis, weights=weights)
        return free(comm.mean, x, axis), made.mean

    mean, weighted = on_all(workers, both)(x)
    assert mean.dtype == weighted.dtype == dtype
    close = {"rtol": 1e-14, "atol": 1e-14} if dtype == jnp.float64 else {"atol": 2e-6}
    np.testing.assert_allclose(mean, [x.mean(0)] * N, **close)
    theirs = np.tensordot(weights, x, 1) / N
    np.testing.assert_allclose(weighted, [theirs] * N, **close)


def test_a_mean_of_one_adds_nothing_up():
    workers = jaxsp.Workers(1)
    program = jax.jit(workers.map(lambda x: free(comm.mean, x, AXIS)))
    text = program.lower(jnp.zeros((1, *LONG))).as_text()
    assert not re.findall(r"stablehlo.(dot_general|reduce|add|multiply)\b", text)


def test_the_derivative_of_a_mean_of_much(x64):
    """The sum of all workers' losses is meant, as `vmap` differentiates it."""
    x = np.random.default_rng(2).normal(size=(N, *LONG))

    def loss(x):
        mapped = jax.vmap(lambda x: free(comm.mean, x, AXIS) ** 3, axis_name=AXIS)
        return mapped(x).sum()

    value, slope = jax.jit(jax.value_and_grad(loss))(x)
    assert value == pytest.approx(N * (x.mean(0) ** 3).sum(), rel=1e-12)
    np.testing.assert_allclose(slope, [3 * x.mean(0) ** 2] * N, atol=1e-14)


def test_a_mean_of_much_is_a_product_on_a_cpu_and_a_reduction_elsewhere():
    workers = jaxsp.Workers(N, jax.devices()[:1])
    program = jax.jit(workers.map(lambda x: free(comm.mean, x, AXIS)))
    traced = program.trace(jnp.zeros((N, *LONG)))
    for platform in ("cpu", "tpu", "cuda"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        found = re.findall(r"stablehlo.(dot_general|reduce)\b", text)
        assert found == (["dot_general"] if platform == "cpu" else ["reduce"])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(3, 7), LONG])
def test_means_of_half_precision_are_rounded_once(workers, dtype, shape):
    """Sums of float16 would overflow, those of bfloat16 be rounded at each addition."""
    rng = np.random.default_rng(2)
    x = jnp.asarray(1 + rng.uniform(size=(N, *shape)), dtype)
    weights = jnp.asarray(rng.dirichlet(np.ones(N)) * N, jnp.float32)

    def both(x):
        mean = free(comm.mean, x, AXIS)
        made, _ = comm.exchange(x, comm.no_traffic(), AXIS, weights=weights)
        return mean, made.mean

    mean, weighted = on_all(workers, both)(x)
    assert mean.dtype == weighted.dtype == dtype
    exact, rounding = np.asarray(x, float), float(jnp.finfo(dtype).eps) / 2
    np.testing.assert_allclose(
        np.asarray(mean, float), [exact.mean(0)] * N, rtol=rounding
    )
    theirs = np.tensordot(np.asarray(weights, float), exact, 1) / N
    # A worker rounds its own part too.
    np.testing.assert_allclose(
        np.asarray(weighted, float), [theirs] * N, rtol=2 * rounding
    )
    large = jnp.full((N, *shape), 5e4, dtype)
    means, _ = on_all(workers, both)(large)
    np.testing.assert_array_equal(means, large)


def test_half_precision_travels_as_it_is():
    workers, x = jaxsp.Workers(N), jnp.zeros((N, 100), jnp.float16)
    program = workers.map(lambda x: free(comm.mean, x, AXIS))
    text = jax.jit(program).lower(x).compile().as_text()
    found = re.findall(r"= \(?(\w+\[[\d,]+\]).* (all-[\w-]+)\(", text)
    for each in (workers, jaxsp.Workers(N, jax.devices()[:1])):
        counted = on_all(each, lambda x: comm.mean(x, comm.no_traffic(), AXIS)[1])(x)
        # 7 blocks of 13 numbers are sent to their servers, and 7 times the own one.
        np.testing.assert_array_equal(counted.up[:, 1], 2 * 7 * 13 * 16)
    assert found == [("f16[1,13]", "all-to-all"), ("f16[8,13]", "all-gather")]


def test_two_workers_tell_each_other_all_halves_at_once():
    x = np.random.default_rng(0).normal(size=(2, 101)).astype(np.float16)
    for devices in (2, 1):
        workers = jaxsp.Workers(2, jax.devices()[:devices])
        program = on_all(workers, lambda x: comm.mean(x, comm.no_traffic(), AXIS))
        mean, counted = program(x)
        exact = x.astype(np.float32).mean(0).astype(np.float16)
        np.testing.assert_array_equal(mean, [exact] * 2)
        np.testing.assert_array_equal(counted.up[:, 1], 101 * 16)
        found = re.findall(
            r"= \(?(\w+\[[\d,]+\]).* (all-[\w-]+)\(",
            program.lower(x).compile().as_text(),
        )
        assert found == [("f16[2,101]", "all-gather")] * (devices == 2)


def test_gather_of_bools_and_of_nothing(workers):
    x = {"a": np.arange(N) % 3 == 0, "b": np.arange(2 * N).reshape(N, 2) % 2 == 0}
    gathered = on_all(workers, lambda t: free(comm.gather, t, AXIS))(x)
    for m in range(N):
        jax.tree.map(
            lambda g, t, m=m: np.testing.assert_array_equal(g[m], t), gathered, x
        )
    assert on_all(workers, lambda _: free(comm.gather, {}, AXIS))(np.zeros(N)) == {}
    assert on_all(workers, lambda _: free(comm.transpose, (), AXIS))(np.zeros(N)) == ()


def test_shared_and_own_keys(workers):
    key = jax.random.key(3)
    own = on_all(workers, lambda k: jax.random.bits(comm.worker_key(k, AXIS)), None)(
        key
    )
    expected = [jax.random.bits(jax.random.fold_in(key, m)) for m in range(N)]
    np.testing.assert_array_equal(own, expected)
    assert len(set(map(int, own))) == N


GRAPHS = {
    "ring": topology.ring(N),
    "star": topology.star(N),
    "directed": topology.exponential(N),
    "asymmetric": topology.from_matrix(reference.random_doubly_stochastic(N, 0)),
    "shift": topology.from_matrix(np.roll(np.eye(N), 1, axis=0)),
    "partial": topology.from_matrix(
        np.kron(np.diag([1, 0, 0, 0]), np.eye(2))
        + np.kron(np.diag([0, 1, 1, 1]), [[0, 1], [1, 0]])
    ),
}


@pytest.mark.parametrize("graph", GRAPHS)
def test_mix_multiplies_by_the_matrix(x64, workers, graph):
    X = np.random.default_rng(1).normal(size=(N, 5))
    mixed = on_all(workers, lambda x: free(comm.mix, x, GRAPHS[graph], AXIS))(
        jnp.asarray(X)
    )
    np.testing.assert_allclose(mixed, GRAPHS[graph].to_matrix() @ X, atol=1e-15)


@pytest.mark.parametrize("graph", GRAPHS)
def test_mix_of_differences(x64, workers, graph):
    X = np.random.default_rng(1).normal(size=(N, 5))
    several = topology.from_sequence([topology.path(N), GRAPHS[graph]])
    for graphs, member in ((GRAPHS[graph], 0), (several, 0), (several, 1)):
        apart = on_all(
            workers,
            lambda x, m, g=graphs: free(comm.mix, x, g, AXIS, m, True),
            (0, None),
        )(jnp.asarray(X), member)
        expected = X - graphs.matrices[member] @ X
        np.testing.assert_allclose(apart, expected, atol=1e-15)


def test_differences_keep_the_mean_in_float32(workers):
    """Those at the ends of an edge are opposite to the last bit, whatever the mean."""
    X = 1000 + np.random.default_rng(1).normal(size=(N, 100)).astype(np.float32)
    ring = topology.ring(N)
    apart, mixed = (
        on_all(workers, lambda x, d=d: free(comm.mix, x, ring, AXIS, 0, d))(
            jnp.asarray(X)
        )
        for d in (True, False)
    )

    def drift(x):
        return np.abs(np.asarray(x, np.float64).mean(axis=0)).max()

    assert drift(apart) < 1e-7
    assert drift(X - mixed) > 1e-5


def test_mix_keeps_structure_and_dtype(workers):
    x = tree()
    mixed = on_all(workers, lambda t: free(comm.mix, t, GRAPHS["star"], AXIS))(x)
    assert jax.tree.structure(mixed) == jax.tree.structure(x)
    assert dtypes(mixed) == dtypes(x)


def test_a_nan_does_not_travel_along_an_edge_of_weight_zero(workers):
    """Row 0 does not listen to worker 1, who is broken."""
    W = np.eye(N)
    W[:3, :3] = [[0.5, 0, 0.5], [0.5, 0.5, 0], [0, 0.5, 0.5]]
    x = np.arange(N, dtype=np.float32)
    x[1] = np.nan
    mixed = on_all(workers, lambda x: free(comm.mix, x, topology.from_matrix(W), AXIS))(
        x
    )
    mixed = np.asarray(mixed)
    assert np.isfinite(mixed[0])
    assert np.isfinite(mixed[3:]).all()
    assert np.isnan(mixed[1:3]).all()


@pytest.mark.parametrize("member", [0, 1, 2])
def test_mix_takes_the_member_of_a_sequence(x64, workers, member):
    one_peer = topology.one_peer_exponential(N)
    X = np.random.default_rng(1).normal(size=(N, 5))
    mixed = on_all(
        workers, lambda x, m: free(comm.mix, x, one_peer, AXIS, m), (0, None)
    )(jnp.asarray(X), member)
    np.testing.assert_allclose(mixed, one_peer.to_matrix(member) @ X, atol=1e-15)


@pytest.mark.parametrize("member", [0, 1, 2])
def test_members_may_have_other_weights_and_fewer_rounds(x64, workers, member):
    """And what weighs nothing does not travel, if it is no number."""
    graphs = [topology.star(N), topology.ring(N), topology.path(N)]
    several = topology.from_sequence([w.to_matrix() for w in graphs])
    X = np.random.default_rng(1).normal(size=(N, 5))
    mix = on_all(workers, lambda x, m: free(comm.mix, x, several, AXIS, m), (0, None))
    expected = several.to_matrix(member) @ X
    np.testing.assert_allclose(mix(jnp.asarray(X), member), expected, atol=1e-15)
    X[N - 1] = np.nan
    heard = np.flatnonzero(several.to_matrix(member)[:, N - 1])
    mixed = np.asarray(mix(jnp.asarray(X), member))
    assert sorted(np.flatnonzero(np.isnan(mixed[:, 0]))) == list(heard)


def test_mix_refuses_another_number_of_workers(workers):
    with pytest.raises(ValueError, match=r"for 5 workers, but the axis .* has 8"):
        workers.map(lambda x: free(comm.mix, x, topology.ring(5), AXIS))(jnp.ones(N))


@pytest.mark.parametrize("devices", [1, 4, N])
@pytest.mark.parametrize("size", [2047, 2048, 2080])
def test_long_messages_arrive_as_short_ones(devices, size):
    team = jaxsp.Workers(N, jax.devices()[:devices])
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(N, N, size)).astype(np.float32)
    x = {"a": numbers, "b": rng.integers(0, 9, (N, N, 3)).astype(np.uint8)}
    gathered, turned = on_all(
        team,
        lambda t: (
            free(comm.gather, jax.tree.map(lambda leaf: leaf[0], t), team.axis_name),
            free(comm.transpose, t, team.axis_name),
        ),
    )(x)
    for m in range(N):
        for name in x:
            np.testing.assert_array_equal(gathered[name][m], x[name][:, 0])
            np.testing.assert_array_equal(turned[name][m], x[name][:, m])


# ---------------------------------------------------------- collectives in the program


def collectives(fn, *args):
    """The names of the collectives in the compiled program, in order."""
    text = jax.jit(fn).lower(*args).compile().as_text()
    names = "all-reduce|all-gather|collective-permute|all-to-all|reduce-scatter"
    return re.findall(rf"= \S+ ({names})(?:-start)?\(", text)


def model(leaves):
    rng = np.random.default_rng(0)
    return {
        f"layer{i}": jnp.asarray(rng.normal(size=(N, 3, i + 1)), jnp.float32)
        for i in range(leaves)
    }


@pytest.mark.parametrize("leaves", [1, 7])
@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: methods.dposg(0.1, topology.ring(N), axis_name=AXIS), 2),
        (lambda: methods.dposg(0.1, topology.ring(N), 3, axis_name=AXIS), 6),
        (lambda: methods.dposg(0.1, topology.star(N), axis_name=AXIS), N - 1),
        (lambda: methods.dposg(0.1, topology.exponential(N), axis_name=AXIS), 3),
        (lambda: methods.dp_oadam(0.1, topology.torus(2, 4), axis_name=AXIS), 3),
    ],
    ids=["ring", "ring_3_rounds", "star", "exponential", "torus"],
)
def test_gossip_compiles_to_one_permute_a_round(build, expected, leaves):
    workers, tx, params = jaxsp.Workers(N), build(), model(leaves)
    state = jax.eval_shape(workers.map(tx.init), params)
    found = collectives(workers.map(tx.update), params, state, params)
    assert found == ["collective-permute"] * expected


@pytest.mark.parametrize(
    ("size", "shape"), [(8191, "8,8191"), (8192, "8,64,128"), (8193, "8,65,128")]
)
def test_long_messages_travel_in_rows_of_128_bytes(size, shape):
    """Or a TPU replaces the all-gather by an all-reduce of everybody's bytes."""
    workers, x = jaxsp.Workers(N), jnp.zeros((N, N, size), jnp.uint8)

    def program(x):
        gathered = free(comm.gather, x[0], AXIS)
        return gathered, free(comm.transpose, x, AXIS)

    text = jax.jit(workers.map(program)).lower(x).as_text()
    for name in ("all_gather", "all_to_all"):
        assert re.search(rf"{name}.* tensor<{shape.replace(',', 'x')}xui8>", text)


@pytest.mark.parametrize("leaves", [1, 7])
def test_average_compiles_to_one_all_reduce(leaves):
    workers, params = jaxsp.Workers(N), model(leaves)
    tx = methods.cp_oadam(0.1, AXIS)
    state = jax.eval_shape(workers.map(tx.init), params)
    found = collectives(workers.map(tx.update), params, state, params)
    assert found == ["all-reduce"]


def test_one_peer_exponential_has_one_permute_in_each_branch():
    workers, params = jaxsp.Workers(N), model(3)
    tx = jaxsp.gossip(topology.one_peer_exponential(N), axis_name=AXIS)
    state = jax.eval_shape(workers.map(tx.init), params)
    found = collectives(workers.map(tx.update), params, state, params)
    assert found == ["collective-permute"] * 3  # three branches, of which one runs


def test_init_calls_no_collective():
    workers, params = jaxsp.Workers(N), model(3)
    for tx in (
        methods.cp_oadam(0.1, AXIS),
        methods.dposg(0.1, topology.ring(N), axis_name=AXIS),
        methods.extra_step_local_sgd(0.1, 4, AXIS),
    ):
        assert collectives(workers.map(tx.init), params) == []


# ---------------------------------------------------------- bits


@hypothesis.given(st.lists(st.integers(0, 2**40), min_size=6, max_size=6))
def test_traffic_is_exact_past_32_bits(bits):
    def add(traffic, up, down):
        return comm.add_traffic(traffic, up, down, AXIS)

    traffic = comm.no_traffic()
    for b in bits:
        traffic = add(traffic, b, 3 * b)
    sent = jaxsp.metrics.bits_sent(traffic)
    assert int(sent.up) == sum(bits)
    assert int(sent.down) == 3 * sum(bits)


def test_traffic_carries_where_the_low_limb_wraps():
    traffic = comm.no_traffic()
    for _ in range(5):
        traffic = comm.add_traffic(traffic, 2**32 - 1, 2**33, AXIS)
    sent = jaxsp.metrics.bits_sent(traffic)
    assert (int(sent.up), int(sent.down)) == (5 * (2**32 - 1), 5 * 2**33)


def bits_after(tx, updates=4, workers=None):
    workers = workers or jaxsp.Workers(N, devices=jax.devices()[:1])
    params = model(2)  # 3 + 6 float32 numbers a worker
    state = on_all(workers, tx.init)(params)
    step = on_all(workers, lambda s, p: tx.update(p, s, p, operator_fn=lambda z: z))
    for _ in range(updates):
        _, state = step(state, params)
    return jaxsp.metrics.bits_sent(state)


MODEL_BITS = 9 * 32
ALL_REDUCE = 2 * (N - 1) / N  # 1.75: 7 bytes for each float32


@pytest.mark.parametrize(
    ("build", "messages"),
    [
        (lambda: jaxsp.average(AXIS), 4 * ALL_REDUCE),
        (lambda: methods.cp_oadam(0.1, AXIS), 4 * ALL_REDUCE),
        (lambda: methods.extra_step(0.1, AXIS), 8 * ALL_REDUCE),
        (
            lambda: methods.extra_step_local_sgd(0.1, 2, AXIS),
            2 * ALL_REDUCE,
        ),
        (lambda: methods.extra_step_local_sgd(0.1, 5, AXIS), 0),
        (
            lambda: methods.local_extra_adam(0.1, 2, AXIS, outer=optax.sgd(0.7)),
            2 * ALL_REDUCE,
        ),
        (lambda: methods.dposg(0.1, topology.ring(N), 3, axis_name=AXIS), 24),
        (
            lambda: methods.dp_oadam(
                0.1, topology.one_peer_exponential(N), axis_name=AXIS
            ),
            4,
        ),
        (
            lambda: methods.rand_dp_oadam(
                0.1, topology.random_ring(N), key=jax.random.key(0), axis_name=AXIS
            ),
            8,
        ),
        (
            lambda: methods.decentralized_extra_step(
                0.1, topology.ring(N), 2, axis_name=AXIS
            ),
            32,
        ),
    ],
)
def test_bits_of_the_methods(build, messages):
    sent = bits_after(build())
    np.testing.assert_array_equal(sent.up, np.full(N, messages * MODEL_BITS))
    np.testing.assert_array_equal(sent.down, np.full(N, messages * MODEL_BITS))


def test_bits_of_a_star_are_those_of_each_worker(workers):
    tx = jaxsp.gossip(topology.star(N), axis_name=AXIS)
    sent = bits_after(tx, 1, workers)
    np.testing.assert_array_equal(
        sent.up, MODEL_BITS * np.array([N - 1] + [1] * (N - 1))
    )
    np.testing.assert_array_equal(sent.up, sent.down)


def test_bits_of_a_sequence_whose_members_differ(workers):
    graphs = topology.from_sequence([topology.star(N), topology.ring(N)])
    tx = jaxsp.gossip(graphs, axis_name=AXIS)
    hub_first = np.array([N - 1] + [1] * (N - 1))
    expected = [hub_first, hub_first + 2, 2 * hub_first + 2]
    for updates, messages in enumerate(expected, start=1):
        sent = bits_after(tx, updates, workers)
        np.testing.assert_array_equal(sent.up, MODEL_BITS * messages)


def test_bits_equal_the_bytes_that_the_permutes_of_the_program_move():
    """Operand size times the number of pairs, read from the compiled text."""
    workers, tx = jaxsp.Workers(N), jaxsp.gossip(GRAPHS["asymmetric"], axis_name=AXIS)
    params = model(2)
    state = on_all(workers, tx.init)(params)
    update = on_all(workers, tx.update)
    text = update.lower(params, state, params).compile().as_text()
    moved = 0
    for line in text.splitlines():
        found = re.search(r"= \(?f32\[(\d+)\].* collective-permute(?:-start)?\(", line)
        if found:
            pairs = re.findall(r"\{(\d+),(\d+)\}", line)
            moved += 32 * int(found[1]) * sum(a != b for a, b in pairs)
    _, state = update(params, state, params)
    assert moved == int(jaxsp.metrics.bits_sent(state).up.sum()) > 0


def test_masked_parameters_neither_travel_nor_count():
    tx = optax.masked(
        jaxsp.gossip(topology.ring(N), axis_name=AXIS),
        {"layer0": True, "layer1": False},
    )
    assert int(bits_after(tx, 1).up[0]) == 2 * 3 * 32


def test_bits_of_what_does_not_communicate_is_an_error():
    with pytest.raises(ValueError, match="traffic"):
        jaxsp.metrics.bits_sent(optax.adam(0.1).init(jnp.ones(3)))
