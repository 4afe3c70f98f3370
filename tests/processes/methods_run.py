"""What each of several processes runs: every method, on workers of all of them."""

import functools
import itertools
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(__file__)))

import jaxsp
from jaxsp import comm, topology

if __name__ == "__main__":
    jaxsp.distributed.initialize()  # before the table makes a key

import table

STEPS, D = 12, 6
# One of every kind of exchange.
KINDS = ("extra_step", "dposg", "rand_dp_oadam", "gossip_one_peer", "sync")
KINDS += ("federated_average", "compressed_gossip", "dqgan_gather", "masha1_sharded")
# With one worker in each process, of every kind of step too.
STEPS_TOO = ("decentralized_extra_step_chebyshev", "local_extra_adam", "cp_oadam")
STEPS_TOO += ("dqgan_sharded", "masha2_gather", "local_sharded", "diana_gather")
STEPS_TOO += ("error_feedback_average", "apply_if_all_finite", "vr_masha1")
STEPS_TOO += ("median_cp_oadam", "extra_step_geometric_median")


def rows(times, count):
    """The methods, by how many workers a process has: of eight processes all."""
    known = [row for row in (*table.ALL, *table.LOSSY) if row.name != "alternating"]
    if times == 2:
        return [row for row in known if row.name in KINDS]
    return [row for row in known if count > 4 or row.name in KINDS + STEPS_TOO]


def run(row, workers):
    """All iterates of a method, [steps + 1, workers, d]."""
    count = workers.count
    game = table.Game(*(a.astype(np.float32) for a in table.make_game(count, D)))
    z0 = np.random.default_rng(5).normal(size=(count, D)).astype(np.float32)
    tx = row.build(topology.ring(count), row.rate, workers.axis_name)
    path, _ = table.trajectory(workers, tx, game, z0, STEPS)
    return path


def check_exchanges(workers):
    """What travels arrives, bit for bit, whether by swaps or not."""
    n, axis = workers.count, workers.axis_name
    rng = np.random.default_rng(n)

    def on_all(fn, x):
        return workers.fetch(jax.jit(workers.map(fn))(x))

    kinds = (np.float32, jnp.bfloat16, np.int8, np.uint16, bool)
    for dtype, size in itertools.product(kinds, (3, 4)):  # of words too
        x = np.asarray(5 * rng.normal(size=(n, n, size))).astype(dtype)
        around = np.arange(n)
        for sources in (
            around[::-1],  # pairs
            np.roll(around, n // 2),
            np.roll(around, 1),
            np.where(around < 2, 1 - around, around),  # one pair, and some who stay
            around,
            rng.permutation(n),
        ):
            moved = on_all(
                functools.partial(comm.permute, sources=sources, axis_name=axis), x
            )
            np.testing.assert_array_equal(moved, x[sources])
        copied = workers.permute(workers.shard(x), np.full(n, n - 1))
        np.testing.assert_array_equal(workers.fetch(copied), x[np.full(n, n - 1)])
        if dtype is not bool:
            turned = on_all(
                lambda row: comm.transpose(row, comm.no_traffic(), axis)[0], x
            )
            np.testing.assert_array_equal(turned, x.swapaxes(0, 1))
    odd = np.full((n, 2), np.nan, np.float32)
    odd[0], odd[1] = -0.0, np.inf
    moved = on_all(
        functools.partial(comm.permute, sources=around[::-1], axis_name=axis), odd
    )
    np.testing.assert_array_equal(moved.view(np.uint32), odd[::-1].view(np.uint32))


def check_derivatives(workers):
    """What a worker's loss says of another's point comes back to that one."""
    n = workers.count
    x = np.random.default_rng(2).normal(size=(n, 3)).astype(np.float32)
    virtual = jaxsp.Workers(n, jax.local_devices()[:1])
    graph = topology.ring(n)
    found = []
    for each in (workers, virtual):

        def disagreement(row, axis=each.axis_name):
            return ((row - comm.mix(row, comm.no_traffic(), graph, axis)[0]) ** 2).sum()

        def both(row, loss=disagreement):
            return jax.grad(loss)(row), jax.jvp(loss, (row,), (jnp.ones_like(row),))[1]

        found.append(each.fetch(jax.jit(each.map(both))(x)))
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    assert np.abs(found[0][0]).max() > 0.1


def check_players(workers):
    """Players of unequal lengths, as many as workers, and two: each from its own."""
    n, axis = workers.count, workers.axis_name
    for players in (n, 2):
        z = tuple(np.zeros((n, 2 + i), np.float32) for i in range(players))
        tx = jaxsp.transforms.sync_players(1, axis)

        def told(*z, tx=tx):
            moved = tuple(jnp.full_like(x, comm.worker_index(axis)) for x in z)
            return tx.update(moved, tx.init(z), z)[0]

        found = workers.fetch(jax.jit(workers.map(told))(*z))
        own = comm.owners(players, n)
        for i, x in enumerate(found):
            np.testing.assert_array_equal(x, np.flatnonzero(own[:, i]).mean())


def check_mixing(workers):
    """On graphs with and without partners for all."""
    n = workers.count
    x = np.random.default_rng(1).normal(size=(n, 5)).astype(np.float32)
    for graph in (
        topology.star(n),
        topology.path(n),
        topology.complete(n),
        topology.exponential(n),
        topology.erdos_renyi(n, 0.5, seed=1),
        topology.from_matrix(table.graphs(n)["asymmetric"].to_matrix()),
    ):
        mixed = jax.jit(
            workers.map(
                lambda r, g=graph: comm.mix(r, comm.no_traffic(), g, workers.axis_name)[
                    0
                ]
            )
        )
        np.testing.assert_allclose(
            workers.fetch(mixed(x)), graph.to_matrix() @ x, rtol=0, atol=1e-5
        )


def check_without_workers():
    """A process may hold nothing of some workers, even if one process has all."""
    workers = jaxsp.Workers(2, [jax.devices()[1]])
    assert len(workers.local) == 2 * (jax.process_index() == 1)
    placed = workers.shard_local(np.ones((len(workers.local), 3), np.float32))
    assert placed.shape == (2, 3)
    if workers.local:
        assert float(jax.jit(jnp.sum)(placed)) == 6
    else:
        assert not placed.addressable_shards


def check_another_order():
    """Workers may lie on the processes' devices in any order."""
    devices = jax.devices()[::2] + jax.devices()[1::2]
    workers = jaxsp.Workers(len(devices), devices)
    check_exchanges(workers)
    placed = workers.shard_local(np.array(workers.local, np.int32))
    np.testing.assert_array_equal(workers.fetch(placed), np.arange(workers.count))


def main(path):
    check_without_workers()
    check_another_order()
    found = {}
    for times in (1, 2):
        workers = jaxsp.Workers(times * jaxsp.distributed.process_count())
        assert workers.spans_processes
        assert len(workers.local) == times
        check_exchanges(workers)
        check_mixing(workers)
        check_players(workers)
        check_derivatives(workers)
        for row in rows(times, jaxsp.distributed.process_count()):
            found[f"{row.name}-{times}"] = run(row, workers)
    if jaxsp.distributed.is_main():
        np.savez(path, **found)
    jaxsp.distributed.finalize()


if __name__ == "__main__":
    main(sys.argv[1])
