"""The same function of one worker in every mode."""

import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsp
from jaxsp import _devices, comm

DEVICES = {"vmap": 1, "shard_map": 8, "blocks": 4}


@pytest.fixture(params=DEVICES)
def workers(request):
    return jaxsp.Workers(8, devices=jax.devices()[: DEVICES[request.param]])


def test_mode_follows_the_devices():
    assert jaxsp.Workers(8).mode == "shard_map"
    assert jaxsp.Workers(4).devices == jax.devices()[:4]
    assert jaxsp.Workers(1).mode == "vmap"
    assert jaxsp.Workers(16).mode == "blocks"
    assert jaxsp.Workers(9, jax.devices()[:3]).mode == "blocks"
    assert jaxsp.Workers(9, jax.devices()[:1]).mode == "vmap"
    assert repr(jaxsp.Workers(16)) == "Workers(16, mode='blocks')"


def chips(*shape):
    """TPU chips of a slice, in an order that jumps."""
    places = list(itertools.product(*map(range, shape)))
    order = np.random.default_rng(0).permutation(len(places))
    return [
        types.SimpleNamespace(platform="tpu", coords=list(places[i])) for i in order
    ]


@pytest.mark.parametrize(
    "shape", [(2, 4, 1), (16, 16, 1), (3, 4, 1), (4, 3, 1), (2, 2, 4), (3, 3, 2)]
)
def test_chips_of_a_slice_are_taken_in_a_ring_of_neighbours(shape):
    given = chips(*shape)
    ring = np.array([chip.coords for chip in _devices.in_a_ring(given)])
    hops = np.abs(ring - np.roll(ring, 1, axis=0)).sum(axis=1)
    np.testing.assert_array_equal(hops, 1)
    assert sorted(ring.tolist()) == sorted(chip.coords for chip in given)


@pytest.mark.parametrize(
    "given",
    [
        *(chips(3, 3, 1), chips(1, 8, 1), chips(1, 1, 1), chips(2, 4, 1)[:-1]),
        chips(2, 2, 1) * 2,  # two cores of each chip
        [types.SimpleNamespace(platform="gpu", coords=[i, 0]) for i in range(4)],
    ],
)
def test_devices_without_such_a_ring_keep_their_order(given):
    assert _devices.in_a_ring(given) == given


def test_map_stacks_what_one_worker_returns(workers):
    def one(x, shared):
        return {
            "i": comm.worker_index(workers.axis_name),
            "x": x.sum() + shared,
            "c": 1,
        }

    x = jnp.arange(16.0).reshape(8, 2)
    out = workers.map(one, in_axes=(0, None))(x, 10.0)
    np.testing.assert_array_equal(out["i"], np.arange(8))
    np.testing.assert_array_equal(out["x"], np.asarray(x).sum(1) + 10)
    np.testing.assert_array_equal(out["c"], np.ones(8))


def test_map_without_a_stacked_leaf(workers):
    def one(_, shared):
        return shared * comm.worker_index(workers.axis_name)

    out = workers.map(one, in_axes=(0, None))((), 2)
    np.testing.assert_array_equal(out, 2 * np.arange(8))


def test_map_runs_under_jit_scan_and_closes_over_traced_values(workers):
    @jax.jit
    def run(x, scale):
        def one(x):
            mean, _ = comm.mean(x * scale, comm.no_traffic(), workers.axis_name)
            return mean + 1

        mapped = workers.map(one)
        return jax.lax.scan(lambda x, _: (mapped(x), None), x, length=3)[0]

    expected = np.arange(8.0)
    for _ in range(3):
        expected = np.full(8, (expected * 0.5).mean() + 1)
    np.testing.assert_allclose(run(jnp.arange(8.0), 0.5), expected)


def test_keys_travel_as_keys(workers):
    keys = jax.random.split(jax.random.key(0), 8)
    drawn = workers.map(lambda key: jax.random.uniform(key))(workers.shard(keys))
    np.testing.assert_array_equal(drawn, jax.vmap(jax.random.uniform)(keys))


def test_replicate_copies_to_the_workers_devices(workers):
    tree = {"a": jnp.ones(3), "key": jax.random.key(1), "b": 2.0}
    stacked = workers.replicate(tree)
    assert stacked["a"].shape == (8, 3)
    assert stacked["b"].shape == stacked["key"].shape == (8,)
    assert stacked["a"].devices() == set(workers.devices)


def test_shard_copies_so_that_donation_is_safe(workers):
    mine = jnp.ones((8, 3))
    theirs = workers.shard(mine)
    jax.jit(workers.map(lambda x: x + 1), donate_argnums=0)(theirs)
    assert not mine.is_deleted()
    np.testing.assert_array_equal(mine, np.ones((8, 3)))


def test_rows_come_back_to_the_host(workers):
    tree = {"a": np.arange(16.0, dtype=np.float32).reshape(8, 2), "b": np.arange(8)}
    placed = workers.shard_local(tree)
    assert workers.local == tuple(range(8))
    assert not workers.spans_processes
    jax.tree.map(np.testing.assert_array_equal, workers.fetch(placed), tree)
    assert all(isinstance(x, np.ndarray) for x in workers.fetch(placed).values())
    mean = workers.fetch_mean(placed)
    np.testing.assert_array_equal(mean["a"], tree["a"].mean(0))
    assert mean["b"].dtype == placed["b"].dtype
    for fn in (workers.fetch, workers.fetch_mean, workers.shard_local):
        with pytest.raises(ValueError, match="leading axis of 8 workers"):
            fn(np.zeros(3))


def test_devices_are_different():
    with pytest.raises(ValueError, match="devices must be different"):
        jaxsp.Workers(4, [jax.devices()[0]] * 2)


@pytest.mark.parametrize("count", [0, -1, 2.5, True, "8"])
def test_count_must_be_a_positive_integer(count):
    with pytest.raises(ValueError, match="count"):
        jaxsp.Workers(count)


def test_devices_must_fit_and_the_message_says_how():
    fits = r"write Workers\(6\) or Workers\(9\), or give 1, 2, 4 or 8 devices"
    with pytest.raises(ValueError, match=rf"count=8 and 3 in devices: {fits}"):
        jaxsp.Workers(8, devices=jax.devices()[:3])
    fits = r"write Workers\(8\) or Workers\(16\), or give 1, 2 or 5 devices"
    with pytest.raises(ValueError, match=rf"8 in jax.devices\(\): {fits}"):
        jaxsp.Workers(10)
    with pytest.raises(ValueError, match=r"write Workers\(8\), or give 1 or 7 devices"):
        jaxsp.Workers(7, jax.devices())
    with pytest.raises(ValueError, match=r"Workers\(16\), or give 1 device\."):
        jaxsp.Workers(11)
    with pytest.raises(ValueError, match="must not be empty"):
        jaxsp.Workers(2, [])


def test_unstacked_argument_is_named(workers):
    with pytest.raises(ValueError, match=r"argument 0\['w'\] must be stacked.*\(3,\)"):
        workers.map(lambda x: x)({"w": jnp.ones(3)})
    with pytest.raises(ValueError, match="replicate"):
        workers.shard(jnp.float32(1))


@pytest.mark.parametrize("in_axes", [1, (0, 1), (0, "x")])
def test_in_axes_must_be_0_or_none(workers, in_axes):
    with pytest.raises(ValueError, match="in_axes"):
        workers.map(lambda x, y: x, in_axes=in_axes)


def test_in_axes_must_have_an_entry_for_each_argument(workers):
    with pytest.raises(ValueError, match=r"2 entries.*1 arguments"):
        workers.map(lambda x: x, in_axes=(0, None))(jnp.ones(8))


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_rows_change_places(devices):
    workers = jaxsp.Workers(4, jax.devices()[:devices])
    tree = {"a": np.arange(8.0).reshape(4, 2), "b": np.arange(4)}
    placed = workers.shard(tree)
    for rows in ([1, 2, 3, 0], [0, 1, 2, 3], [2, 2, 2, 2]):
        moved = workers.permute(placed, rows)
        jax.tree.map(
            np.testing.assert_array_equal,
            moved,
            {name: leaf[rows] for name, leaf in tree.items()},
        )
        for leaf, before in zip(moved.values(), placed.values(), strict=True):
            assert leaf.sharding.is_equivalent_to(before.sharding, leaf.ndim)
    jax.tree.map(np.testing.assert_array_equal, placed, tree)


@pytest.mark.parametrize(
    "rows", [[0, 1, 2], [0, 1, 2, 4], [-1, 0, 1, 2], [0.0, 1.0, 2.0, 3.0]]
)
def test_rows_are_workers(rows):
    workers = jaxsp.Workers(4, jax.devices()[:1])
    with pytest.raises(ValueError, match=r"rows must be (4|an array of) integers"):
        workers.permute(np.zeros(4), rows)
    with pytest.raises(ValueError, match="must be stacked"):
        workers.permute(np.zeros(3), [0, 1, 2, 3])


def test_means_of_half_precision_do_not_stop_at_256():
    """In bfloat16 257 is 256: a sum of ones stays there."""
    workers = jaxsp.Workers(512, jax.devices()[:1])
    ones = workers.shard(jnp.ones((512, 2), jnp.bfloat16))
    np.testing.assert_array_equal(workers.fetch_mean(ones), np.ones(2))


def test_another_mesh_in_the_context_is_refused(workers):
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    double = workers.map(lambda x: 2 * x)
    x = workers.shard(np.ones(8))
    for fn in (double, jax.jit(double)):
        with jax.set_mesh(mesh), pytest.raises(ValueError, match=r"set_mesh.*outside"):
            fn(x)
        np.testing.assert_array_equal(fn(x), 2 * np.ones(8))


def test_the_workers_own_mesh_in_the_context_is_fine(workers):
    axis = "devices" if workers.mode == "blocks" else "workers"
    kinds = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh(
        (len(workers.devices),), (axis,), axis_types=kinds, devices=workers.devices
    )
    mean = workers.map(lambda x: comm.mean(x, comm.no_traffic(), workers.axis_name)[0])
    for fn in (mean, jax.jit(mean)):
        with jax.set_mesh(mesh):
            np.testing.assert_array_equal(fn(jnp.arange(8.0)), np.full(8, 3.5))


def test_one_virtual_worker_computes_without_a_dimension_of_workers():
    workers = jaxsp.Workers(1, jax.devices()[:1])
    seen = []

    def product(w, x):
        index = comm.worker_index(workers.axis_name)
        return w[index] @ x + jax.lax.pmean(x, workers.axis_name).sum()

    w, x = jnp.ones((1, 2, 3, 4)), jnp.arange(20.0).reshape(1, 4, 5)
    mapped = workers.map(product)
    for equation in jax.make_jaxpr(mapped)(w, x).eqns:
        if equation.primitive.name == "dot_general":
            seen.append([v.aval.shape for v in equation.invars])
    assert seen == [[(3, 4), (4, 5)]]
    np.testing.assert_allclose(mapped(w, x), w[:, 0] @ x + x.sum())
