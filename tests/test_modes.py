"""Every method alike on one device and in blocks of workers on eight."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import table

import jaxsp
from jaxsp import comm, compressors, methods, topology, transforms

N, D = 32, 6
KEY = jax.random.key(11)


def virtual(count=N):
    return jaxsp.Workers(count, jax.devices()[:1])


def blocks(count=N):
    return jaxsp.Workers(count)


# `alternating` is for two players and local; federated averaging has it inside.
ROWS = [row for row in (*table.ALL, *table.LOSSY) if row.name != "alternating"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_blocks_follow_virtual_workers(x64, row):
    game, ring = table.make_game(N, D), topology.ring(N)
    z0 = np.random.default_rng(5).normal(size=(N, D))
    paths, traffic = [], []
    for workers in (virtual(), blocks()):
        tx = row.build(ring, row.rate, workers.axis_name)
        path, state = table.trajectory(workers, tx, game, z0, 12, many_rounds=False)
        paths.append(path)
        traffic.append(jax.tree.map(np.asarray, table.traffic(state)))
    assert np.abs(paths[0][-1] - paths[0][0]).max() > 1e-3
    np.testing.assert_allclose(paths[1], paths[0], rtol=0, atol=1e-12)
    jax.tree.map(np.testing.assert_array_equal, *traffic)


DRAWING = ("rand_dp_oadam", "federated_average", "dqgan_gather", "masha1_gather")
DRAWING = [row for row in ROWS if row.name in DRAWING]
DRAWING += [
    table.Row(
        "pp_masha1",
        lambda t, lr, axis: methods.pp_masha1(lr, table.on(axis, table.RAND), 3, 0.3),
    ),
    table.Row(
        "compressed_gossip",
        lambda t, lr, axis: jaxsp.compressed_gossip(
            t, table.FOUR_BITS, 0.3, key=table.KEY, axis_name=axis
        ),
    ),
    table.Row(
        "low_rank",
        lambda t, lr, axis: methods.dqgan(
            lr, table.on(axis, compressors.low_rank(1), compressors.low_rank(1))
        ),
    ),
]


@pytest.mark.parametrize(
    ("row", "impl"),
    [*((row, "rbg") for row in DRAWING), (DRAWING[0], "unsafe_rbg")],
    ids=lambda value: getattr(value, "name", value),
)
def test_keys_of_every_type_draw_alike_in_every_mode(x64, row, impl, monkeypatch):
    monkeypatch.setattr(table, "KEY", jax.random.key(7, impl=impl))
    game, ring = table.make_game(8, D), topology.ring(8)
    z0 = np.random.default_rng(5).normal(size=(8, D))
    found = []
    for devices in (1, 2, 8):
        workers = jaxsp.Workers(8, jax.devices()[:devices])
        tx = row.build(ring, row.rate, workers.axis_name)
        found.append(table.trajectory(workers, tx, game, z0, 8, False)[0])
    assert np.abs(found[0][-1] - found[0][0]).max() > 1e-3
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=0, atol=1e-12)


# ---------------------------------------------------------- what travels


def program(fn, *args):
    return jax.jit(fn).lower(*args).compile().as_text()


def collectives(text):
    """(name, bytes of the result on one device) of every collective in a program."""
    names = "all-reduce|all-gather|collective-permute|all-to-all|reduce-scatter"
    found = re.findall(rf"= (.+?) ({names})(?:-start)?\(", text)
    return [
        (name, sum(map(size, re.findall(r"\w+\[[\d,]*\]", s)))) for s, name in found
    ]


def size(shape):
    kind, dimensions = re.fullmatch(r"(\w+)\[([\d,]*)\]", shape).groups()
    width = {"f32": 4, "u8": 1, "s32": 4, "u32": 4, "pred": 1}[kind]
    return width * int(np.prod([int(d) for d in dimensions.split(",") if d]))


def test_a_ring_sends_one_row_each_way():
    workers, params = blocks(), jnp.zeros((N, 100), jnp.float32)
    tx = jaxsp.gossip(topology.ring(N), axis_name=workers.axis_name)
    state = jax.eval_shape(workers.map(tx.init), params)
    text = program(workers.map(tx.update), params, state, params)
    assert collectives(text) == [("collective-permute", 400)] * 2


def test_an_average_is_summed_on_the_device_first():
    workers, params = blocks(), jnp.zeros((N, 100), jnp.float32)
    text = program(
        workers.map(lambda x: comm.mean(x, comm.no_traffic(), workers.axis_name)[0]),
        params,
    )
    assert collectives(text) == [("all-reduce", 400)]


@pytest.mark.parametrize("route", ["gather", "sharded"])
def test_payloads_cross_once_between_two_devices(route):
    """Eight devices with four workers each: each device gets what it has not."""
    workers, codec = blocks(), compressors.quantize(8)
    params = jnp.zeros((N, 320), jnp.float32)

    channel = jaxsp.channel(workers.axis_name, codec, key=KEY, route=route)

    def mean(x):
        return comm.mean(x, comm.no_traffic(), channel)[0]

    found = collectives(program(workers.map(mean), params))
    payload = codec.bits(jax.ShapeDtypeStruct((320,), jnp.float32)) // 8
    block = codec.bits(jax.ShapeDtypeStruct((10,), jnp.float32)) // 8
    if route == "gather":
        assert found == [("all-gather", N * payload)]
    else:
        # From four workers to each of the 32 blocks, and then the blocks' means.
        assert found == [("all-to-all", 4 * N * block), ("all-gather", N * 40)]


def test_nothing_is_sent_between_two_averages():
    """The collective stands in a branch that only one step of three takes."""
    for workers in (blocks(), jaxsp.Workers(8)):
        tx = jaxsp.sync(3, workers.axis_name)
        params = jnp.zeros((workers.count, 10), jnp.float32)
        state = jax.eval_shape(workers.map(tx.init), params)
        text = program(workers.map(tx.update), params, state, params)
        assert collectives(text) == [("all-reduce", 40)]
        branch = next(c for c in text.split("\n\n") if re.search(r"= .* all-reduce", c))
        assert not branch.lstrip().startswith("ENTRY")


@pytest.mark.parametrize("outer", [None, table.nesterov()])
def test_local_steps_send_their_codes_and_nothing_for_the_outer_optimizer(outer):
    """In the branch of an average: an all-to-all of codes up, an all-gather down."""
    workers, four = jaxsp.Workers(8), compressors.scaled(compressors.quantize(4))
    channel = jaxsp.channel(workers.axis_name, four, four, key=KEY, route="sharded")
    tx = methods.local_extra_adam(0.1, 8, channel, outer=outer)
    params = jnp.zeros((8, 8192), jnp.float32)
    state = jax.eval_shape(workers.map(tx.init), params)

    def update(state, params):
        return tx.update(params, state, params, operator_fn=lambda z: z)

    text = program(workers.map(update), state, params)
    block = four.bits(jax.ShapeDtypeStruct((1024,), jnp.float32)) // 8
    found = collectives(text)
    assert found == [("all-to-all", 8 * block), ("all-gather", 8 * block)]
    entry = next(c for c in text.split("\n\n") if "ENTRY" in c)
    assert collectives(entry) == []


def test_only_the_member_that_is_due_is_sent():
    workers = blocks()
    tx = jaxsp.gossip(topology.one_peer_exponential(N), axis_name=workers.axis_name)
    params = jnp.zeros((N, 10), jnp.float32)
    state = jax.eval_shape(workers.map(tx.init), params)
    text = program(workers.map(tx.update), params, state, params)
    entry = next(c for c in text.split("\n\n") if "ENTRY" in c)
    assert collectives(text) != []
    assert collectives(entry) == []


# ---------------------------------------------------------- any permutation


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("count", "devices"), [(8, 2), (8, 4), (24, 8)])
def test_any_permutation_of_blocks(count, devices, seed):
    workers = jaxsp.Workers(count, jax.devices()[:devices])
    sources = np.random.default_rng(seed).permutation(count)
    x = np.arange(3 * count).reshape(count, 3)
    moved = jax.jit(
        workers.map(lambda row: comm.permute(row, sources, workers.axis_name))
    )(x)
    np.testing.assert_array_equal(moved, x[sources])


def test_a_row_that_crosses_goes_once_and_the_rest_stay():
    workers = jaxsp.Workers(8, jax.devices()[:4])
    sources = [1, 0, 2, 5, 4, 3, 7, 6]  # only workers 3 and 5 cross a border
    x = jnp.zeros((8, 5), jnp.float32)
    text = program(
        workers.map(lambda row: comm.permute(row, sources, workers.axis_name)), x
    )
    assert collectives(text) == [("collective-permute", 20)]
    assert "source_target_pairs={{2,1},{1,2}}" in text


def test_the_order_of_workers_follows_the_devices():
    """Worker m is row m % B of device m // B: batches and keys follow the worker."""
    workers = jaxsp.Workers(16, jax.devices()[::-1])
    index = workers.map(lambda _: comm.worker_index(workers.axis_name))(jnp.zeros(16))
    np.testing.assert_array_equal(index, np.arange(16))
    last = workers.shard(np.arange(16)).addressable_shards
    held = {shard.device: np.asarray(shard.data).tolist() for shard in last}
    assert held[jax.devices()[-1]] == [0, 1]


def test_federated_average_of_some_workers_is_one_all_reduce():
    workers = blocks()
    tx = transforms.federated_average(
        jaxsp.transforms.past_extragradient(0.1),
        2,
        participants=5,
        key=KEY,
        axis_name=workers.axis_name,
    )
    params = jnp.zeros((N, 10), jnp.float32)
    state = jax.eval_shape(workers.map(tx.init), params)
    text = program(workers.map(tx.update), params, state, params)
    assert collectives(text) == [("all-reduce", 40)]


def test_masha_exchanges_whole_gradients_only_at_a_new_snapshot():
    workers = blocks()
    tenth = jaxsp.channel(workers.axis_name, compressors.rand_k(0.1), key=KEY)
    tx = methods.masha1(0.1, tenth, 0.1)
    params = jnp.zeros((N, 1000), jnp.float32)
    state = jax.eval_shape(workers.map(tx.init), params)

    def update(state, params):
        return tx.update(params, state, params, operator_fn=lambda z: z)

    text = program(workers.map(update), state, params)
    entry = next(c for c in text.split("\n\n") if "ENTRY" in c)
    assert ("all-reduce", 4000) in collectives(text)
    assert ("all-reduce", 4000) not in collectives(entry)
