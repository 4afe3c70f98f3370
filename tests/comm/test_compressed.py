"""The mean over a channel, on both routes: NumPy, modes, and bytes in the program."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsp
from jaxsp import comm, compressors
from jaxsp.comm import compressed

N = 8
AXIS = jaxsp.Workers(1).axis_name
EXACT, FOUR = compressors.identity(), compressors.quantize(4)
MODES = {"vmap": 1, "shard_map": N}
CODECS = {
    "identity": compressors.identity,
    "top_k": lambda: compressors.top_k(0.2),
    "rand_k": lambda: compressors.rand_k(0.2),
    "natural": compressors.natural,
    "dithering": lambda: compressors.dithering(4),
    "ternary": compressors.ternary,
    "quantize_2": lambda: compressors.quantize(2),
    "quantize_3": lambda: compressors.quantize(3),
    "quantize_4": lambda: compressors.quantize(4),
    "quantize_8": lambda: compressors.quantize(8),
    "sign": compressors.sign,
    "perm_k": compressors.perm_k,
}


def workers(mode):
    return jaxsp.Workers(N, devices=jax.devices()[: MODES[mode]])


def arrivals(compressor):
    """What arrives of worker m's vector that it compresses with a key."""

    @jax.jit
    def arrived(m, key, x):
        each = compressor.for_worker(m, N)
        return each.decompress(each.compress(key, x), x)

    return arrived


def own_key(compressor, key, m, i=0):
    """The key that worker m compresses vector i with, made from the exchange's."""
    up_key, _ = jax.random.split(jax.random.fold_in(key, i))
    return up_key if compressor.shared_key else jax.random.fold_in(up_key, m)


def messages(compressor, key, X, i=0):
    """What arrives of every worker's vector, as the route "gather" draws it."""
    arrived = arrivals(compressor)
    return np.stack(
        [arrived(m, own_key(compressor, key, m, i), x) for m, x in enumerate(X)]
    )


def block_messages(compressor, key, X, i=0):
    """The same for the route "sharded", `[worker, block, size]`."""
    size = -(-X.shape[1] // N)
    padded = np.pad(X, ((0, 0), (0, size * N - X.shape[1]))).reshape(N, N, size)
    out, arrived = np.zeros_like(padded), arrivals(compressor)
    for m in range(N):
        for j, k in enumerate(jax.random.split(own_key(compressor, key, m, i), N)):
            out[m, j] = arrived(m, k, padded[m, j])
    return out


def modes_of(codec):
    """Both modes for the codecs that differ in kind; the rest run on one device."""
    both = codec.name.startswith(("top_k", "rand_k", "perm_k", "quantize(4"))
    return MODES if both else ["vmap"]


def run(mode, codec, route, X, key, down=None, residual=None):
    """The mean, what each worker sent, and the server's residual, if it has one."""
    channel = jaxsp.channel(AXIS, codec, down, key=key, route=route)

    def one_worker(x, e):
        start = () if residual is None else e
        return comm.exchange(x, comm.no_traffic(), channel, residual=start)[0][:3]

    X = jax.tree.map(jnp.asarray, X)
    e = jax.tree.map(jnp.zeros_like, X) if residual is None else residual
    fn = jax.jit(workers(mode).map(one_worker))
    return jax.tree.map(np.asarray, fn(X, e))


@pytest.mark.parametrize("codec", CODECS)
def test_gather_is_the_mean_of_the_messages(x64, codec):
    codec, key = CODECS[codec](), jax.random.key(3)
    X = np.random.default_rng(0).normal(size=(N, 37))
    arrived = messages(codec, key, X)
    for mode in modes_of(codec):
        mean, sent, _ = run(mode, codec, "gather", X, key)
        np.testing.assert_allclose(mean, np.tile(arrived.mean(0), (N, 1)), atol=1e-13)
        np.testing.assert_allclose(sent, arrived, atol=1e-14)
        assert (mean == mean[0]).all()  # bit for bit on all workers


@pytest.mark.parametrize("codec", CODECS)
def test_sharded_is_the_mean_of_the_messages_of_blocks(x64, codec):
    codec, key = CODECS[codec](), jax.random.key(3)
    X = np.random.default_rng(0).normal(size=(N, 37))
    arrived = block_messages(codec, key, X)
    for mode in modes_of(codec):
        mean, sent, _ = run(mode, codec, "sharded", X, key)
        expected = arrived.mean(0).ravel()[:37]
        np.testing.assert_allclose(mean, np.tile(expected, (N, 1)), atol=1e-13)
        np.testing.assert_allclose(sent, arrived.reshape(N, -1)[:, :37], atol=1e-14)
        assert (mean == mean[0]).all()


@pytest.mark.parametrize("route", ["gather", "sharded"])
def test_identity_both_ways_is_the_mean(x64, route):
    X = np.random.default_rng(0).normal(size=(N, 37))
    identity = compressors.identity()
    mean, _, e = run("vmap", identity, route, X, jax.random.key(0), identity)
    np.testing.assert_allclose(mean, np.tile(X.mean(0), (N, 1)), atol=1e-14)
    np.testing.assert_array_equal(e, 0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("route", ["gather", "sharded"])
def test_what_the_server_leaves_out_is_the_mean_of_the_parts(x64, mode, route):
    X = np.random.default_rng(0).normal(size=(N, 37))
    top, identity = compressors.top_k(0.3), compressors.identity()
    mean, _, parts = run(mode, identity, route, X, jax.random.key(0), top)
    np.testing.assert_allclose(mean[0] + parts.mean(0), X.mean(0), atol=1e-14)
    assert np.abs(parts).max() > 0
    again, _, left = run(
        mode, identity, route, X, jax.random.key(0), top, jnp.asarray(parts)
    )
    expected = X.mean(0) + parts.mean(0)
    np.testing.assert_allclose(again[0] + left.mean(0), expected, atol=1e-14)


def test_cheapest_moves_fewer_bits():
    x, key = [jnp.zeros(10_000)], jax.random.key(0)
    four, sparse = compressors.quantize(4), compressors.top_k(0.001)
    both_ways = jaxsp.channel(AXIS, four, four, key=key)
    assert compressed.cheapest([both_ways], x, 8) == "sharded"
    one_way = jaxsp.channel(AXIS, sparse, key=key)
    assert compressed.cheapest([one_way], x, 8) == "gather"


# ---------------------------------------------------------- bytes in the program


def collective_bytes(text):
    """Bytes that leave one worker by the collectives of a program, read from its text.

    An all-gather of an operand goes to the other 7 workers, an all-to-all but for the
    worker's own part, an all-reduce around a ring.
    """
    sizes = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "u16": 2, "s16": 2}
    sizes |= {"f32": 4, "u32": 4, "s32": 4, "f64": 8, "u64": 8, "s64": 8}
    total = 0
    for line in text.splitlines():
        found = re.search(
            r" = (.*?) (all-gather|all-to-all|all-reduce)(?:-start)?\(", line
        )
        if not found:
            continue
        size = sum(
            sizes[dtype] * int(np.prod([int(d) for d in dims.split(",") if d] or [1]))
            for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", found[1])
        )
        # Of what an all-gather or an all-to-all leaves, 1/8 was here before.
        total += size * (N - 1) / N * (2 if found[2] == "all-reduce" else 1)
    return total


@pytest.mark.parametrize("route", ["gather", "sharded"])
@pytest.mark.parametrize("codec", CODECS)
def test_accounted_bits_are_the_bytes_of_the_collectives(codec, route):
    codec, team, d = CODECS[codec](), workers("shard_map"), 4000
    tx = jaxsp.average(jaxsp.channel(AXIS, codec, key=jax.random.key(0), route=route))
    u = jnp.ones((N, d))
    state = jax.jit(team.map(tx.init))(u)
    update = jax.jit(team.map(tx.update)).lower(u, state).compile()
    text = update.as_text()
    _, state = update(u, state)
    accounted = int(jaxsp.metrics.bits_sent(state).up[0]) / 8
    assert collective_bytes(text) == pytest.approx(accounted, rel=0.02, abs=64)


@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize("route", ["gather", "sharded"])
def test_accounted_bits_of_layers_are_the_bytes_of_the_collectives(route, down):
    """Two, four and eight bits in one message: what travels is their packed codes."""
    team = workers("shard_map")
    layers = compressors.per_leaf(
        jaxsp.MinMax({"w": compressors.quantize(2), "b": compressors.quantize(8)}, FOUR)
    )
    channel = jaxsp.channel(
        AXIS, layers, layers if down else None, key=jax.random.key(0), route=route
    )
    tx = jaxsp.average(channel)
    u = jaxsp.MinMax(
        {"w": jnp.ones((N, 100, 40)), "b": jnp.ones((N, 800))}, [jnp.ones((N, 1600))]
    )
    state = jax.jit(team.map(tx.init))(u)
    update = jax.jit(team.map(tx.update)).lower(u, state).compile()
    _, state = update(u, state)
    accounted = int(jaxsp.metrics.bits_sent(state).up[0]) / 8
    found = collective_bytes(update.as_text())
    assert found == pytest.approx(accounted, rel=0.02, abs=64)
    codes, scales, numbers = 4000 // 4 + 800 + 1600 // 2, 4 * 3, 4 * 6400
    sent = 7 * (codes + scales)
    if route == "sharded":  # of every block one, and the means' or their codes
        sent = 7 * (
            (codes / 8 + scales) + (codes / 8 + scales if down else numbers / 8)
        )
    assert accounted == sent


@pytest.mark.parametrize("route", ["gather", "sharded"])
def test_layers_arrive_as_each_would_alone(x64, route):
    """The mean of a model is that of each leaf through its own compressor."""
    rng, key = np.random.default_rng(0), jax.random.key(3)
    X = {"a": rng.normal(size=(N, 37)), "b": rng.normal(size=(N, 5, 4))}
    pair = {"a": compressors.quantize(2), "b": compressors.perm_k()}
    for mode in MODES:
        mean, sent, _ = run(mode, compressors.per_leaf(pair), route, X, key)
        for i, (name, codec) in enumerate(pair.items()):
            flat = X[name].reshape(N, -1)
            draws = messages if route == "gather" else block_messages
            arrived = draws(codec, key, flat, i).reshape(N, -1)[:, : flat.shape[1]]
            found = mean[name].reshape(N, -1)
            np.testing.assert_allclose(found[0], arrived.mean(0), atol=1e-13)
            np.testing.assert_allclose(sent[name].reshape(N, -1), arrived, atol=1e-14)
            assert (found == found[0]).all()


def test_a_tree_on_one_way_cuts_the_other_into_leaves_too(x64):
    """What one way compresses leaf by leaf the other does as well."""
    X = {"a": np.ones((N, 3)), "b": np.full((N, 2), 100.0)}
    sign, tree = compressors.sign(), {"a": EXACT, "b": compressors.sign()}
    for up, down in (
        (EXACT, compressors.per_leaf(tree)),
        (compressors.per_leaf(tree), sign),
    ):
        for route in ("gather", "sharded"):
            mean, *_ = run("vmap", up, route, X, jax.random.key(0), down)
            jax.tree.map(lambda m, x: np.testing.assert_allclose(m, x), mean, X)


def test_warm_starts_of_some_layers():
    """Low rank remembers; what has no memory beside it compresses as ever."""
    team, key = workers("vmap"), jax.random.key(0)
    low_rank = compressors.low_rank(1)
    layers = compressors.per_leaf({"w": low_rank, "b": compressors.sign()})
    channel = jaxsp.channel(AXIS, layers, key=key, route="gather")
    tx = jaxsp.error_feedback_average(channel)
    u = {"w": jnp.ones((N, 6, 8)), "b": jnp.ones((N, 5))}
    state = team.map(tx.init)(u)
    assert len(state.previous) == 2
    updates, after = team.map(tx.update)(u, state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), updates, u)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert np.abs(after.previous[1].right).max() > 0


def test_four_bits_both_ways_send_at_most_a_byte_a_parameter():
    team, d = workers("shard_map"), 1_000_000
    four = compressors.quantize(4)
    both_ways = jaxsp.channel(AXIS, four, four, key=jax.random.key(0))
    tx = jaxsp.methods.dqgan(0.1, both_ways)
    w = jax.ShapeDtypeStruct((N, d), jnp.float32)
    state = jax.eval_shape(team.map(tx.init), w)
    text = jax.jit(team.map(tx.update)).lower(w, state, w).compile().as_text()
    assert 0.8 * d < collective_bytes(text) <= d
    average = jaxsp.average(AXIS)
    state = jax.eval_shape(team.map(average.init), w)
    text = jax.jit(team.map(average.update)).lower(w, state).compile().as_text()
    assert collective_bytes(text) == 7 * d


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (
            compressors.Compressor(
                "mine", lambda key, x: x, lambda payload, like: payload[:2], q=float
            ),
            r"the compressor mine .* float32 of shape \(6,\), got .*shape=\(2,\)",
        ),
        (
            compressors.Compressor(
                "mine",
                lambda key, x: x,
                lambda payload, like: payload.astype(jnp.bfloat16),
                q=float,
            ),
            r"the compressor mine .* float32 of shape \(6,\), got .*bfloat16",
        ),
        (
            compressors.Compressor("mine", lambda x: x, lambda payload: 1, q=float),
            r"the compressor mine must have compress\(key, x\) and decompress\(payload",
        ),
        (
            compressors.Compressor(
                "mine", lambda key, x: x, lambda payload, like: (payload, 1), q=float
            ),
            "the compressor mine must decompress to an array",
        ),
    ],
)
@pytest.mark.parametrize("way", ["up", "down"])
def test_a_compressor_of_ones_own_that_does_not_fit_is_named(own, message, way):
    workers = jaxsp.Workers(2, jax.devices()[:1])
    ways = {"up": compressors.identity()} | {way: own}
    channel = jaxsp.channel(workers.axis_name, **ways, key=jax.random.key(0))
    tx = jaxsp.average(channel)
    z = jnp.ones((2, 6), jnp.float32)
    with pytest.raises(ValueError, match=message):
        workers.map(lambda z: tx.update(z, tx.init(z))[0])(z)
