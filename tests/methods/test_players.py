"""Games of several players: on every worker, and each on a worker of its own."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference_beyond as loops

import jaxsp
from jaxsp import comm, methods, transforms

SIZES = (3, 1, 4)  # numbers of each player
MODES = {"vmap": 1, "shard_map": None}


def game_of(sizes, seed=0, coupling=0.3):
    """z -> A z + b, strongly monotone, with a player for each block; and its zero."""
    d = sum(sizes)
    rng = np.random.default_rng(seed)
    A = coupling * rng.normal(size=(d, d))
    A += np.eye(d) * (0.3 - np.linalg.eigvalsh((A + A.T) / 2).min())
    b = rng.normal(size=d)
    return A, b, np.linalg.solve(A, -b)


def split(z, sizes):
    return tuple(jnp.split(z, np.cumsum(sizes)[:-1]))


def run(workers, tx, A, b, sizes, steps):
    """All iterates of all workers, [steps + 1, workers, d], and what was sent."""

    def field(z):
        joint = jnp.concatenate([jnp.ravel(x) for x in z])
        return split(A @ joint + b, sizes)

    def one(z):
        def step(carry, _):
            z, state = carry
            updates, state = tx.update(field(z), state, z, operator_fn=field)
            z = optax.apply_updates(z, updates)
            return (z, state), jnp.concatenate(z)

        (_, state), path = jax.lax.scan(step, (z, tx.init(z)), length=steps)
        return jnp.concatenate([jnp.concatenate(z)[None], path]), state

    z0 = workers.replicate(split(jnp.ones(sum(sizes)), sizes))
    path, state = jax.jit(workers.map(one))(z0)
    return np.swapaxes(path, 0, 1), np.asarray(jaxsp.metrics.bits_sent(state).up)


def owned(sizes, count):
    """For the loop: 1 where a coordinate belongs to a worker."""
    own = comm.owners(len(sizes), count)
    return np.repeat(own, sizes, axis=1).astype(float)


@pytest.mark.parametrize(
    ("sizes", "count", "devices"),
    [
        (SIZES, 3, 1),
        (SIZES, 3, 3),
        ((2,) * 8, 8, 8),
        ((2,) * 8, 8, 2),  # blocks of four workers
        ((2, 5), 8, 8),  # four workers play each
        ((2, 5), 5, 1),
        ((7,), 4, 4),  # one player: local descent
        (SIZES, 2, 2),  # one worker plays two
        (SIZES, 1, 1),
    ],
)
def test_pearl_sgd_is_the_loop(x64, sizes, count, devices):
    A, b, _ = game_of(sizes)
    workers = jaxsp.Workers(count, jax.devices()[:devices])
    tx = methods.pearl_sgd(0.05, 4, workers.axis_name)
    path, sent = run(workers, tx, A, b, sizes, 50)
    wanted = loops.local_play(
        np.ones((count, sum(sizes))),
        lambda Z: Z @ A.T + b,
        owned(sizes, count),
        0.05,
        4,
        50,
    )
    np.testing.assert_allclose(path, wanted, rtol=0, atol=1e-12)
    if len(sizes) > 1 < count:
        assert np.ptp(path[6], axis=0).max() > 1e-3  # apart in between
    whole, own = sum(sizes), max(sizes)
    reduced, told = -(-2 * (count - 1) * 64 * whole // count), (count - 1) * 64 * own
    few = len(sizes) > count
    np.testing.assert_array_equal(sent, 12 * (reduced if few else min(reduced, told)))


def test_owners_share_what_there_is():
    for parts in range(1, 9):
        for count in range(1, 9):
            own = comm.owners(parts, count)
            each, of_part = own.sum(axis=1), own.sum(axis=0)
            assert own.shape == (count, parts)
            assert np.ptp(each) <= 1
            assert np.ptp(of_part) <= 1
            assert min(of_part.min(), each.min()) == 1
            assert each.max() == 1 or of_part.max() == 1


@pytest.mark.parametrize("every", [1, 5, 20])
def test_local_play_converges_to_the_equilibrium_itself(x64, every):
    sizes = (2, 3, 2, 1)
    A, b, z_star = game_of(sizes, coupling=0.1)
    workers = jaxsp.Workers(4, jax.devices()[:1])
    tx = methods.pearl_sgd(0.2, every, workers.axis_name)
    path, _ = run(workers, tx, A, b, sizes, 2000)
    assert np.abs(path[-1] - z_star).max() < 1e-10


def test_longer_rounds_diverge_where_answers_overshoot(x64):
    """Each player's best answer to the other is further out than what it answers."""
    sizes, b, A = (1, 1), np.zeros(2), np.array([[1.0, 3.0], [-3.0, 1.0]])
    workers = jaxsp.Workers(2, jax.devices()[:1])
    ends = {}
    for every in (1, 30):
        tx = methods.pearl_sgd(0.1, every, workers.axis_name)
        ends[every] = np.abs(run(workers, tx, A, b, sizes, 300)[0][-1]).max()
    assert ends[1] < 1e-3
    assert ends[30] > 1e3


def test_a_worker_sends_its_own_player_alone():
    """One all-gather of one player, in the branch of an exchange; and nothing else."""
    workers, size = jaxsp.Workers(8), 256
    tx = methods.pearl_sgd(0.1, 3, workers.axis_name)
    z = tuple(jnp.zeros((8, size), jnp.float32) for _ in range(8))
    state = jax.jit(workers.map(tx.init))(z)
    compiled = jax.jit(workers.map(tx.update)).lower(z, state, z).compile()
    text = compiled.as_text()
    found = re.findall(r"= (\S+) (all-\w+|collective-permute)(?:-start)?\(", text)
    assert len(found) == 1
    ((shape, name),) = found
    kind, dims = re.match(r"\(?(\w+)\[([\d,]*)\]", shape).groups()
    total = {"u8": 1, "u32": 4}[kind] * np.prod([int(d) for d in dims.split(",")])
    assert (name, total) == ("all-gather", 8 * 4 * size)
    branch = next(c for c in text.split("\n\n") if "all-gather" in c)
    assert not branch.lstrip().startswith("ENTRY")
    for _ in range(3):
        _, state = jax.block_until_ready(compiled(z, state, z))
    sent = np.asarray(jaxsp.metrics.bits_sent(state).up)
    np.testing.assert_array_equal(sent, 7 * 32 * size)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_players_may_be_networks_of_several_types(x64, count):
    """Leaves and types differ from player to player, and come back as they were."""
    workers = jaxsp.Workers(count, jax.devices()[:count])
    z = {
        "actor": {"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones(3, jnp.bfloat16)},
        "critic": [jnp.ones((), jnp.float32), jnp.arange(5.0)],
        "third": jnp.ones(2, jnp.float32),
    }
    tx = transforms.sync_players(1, workers.axis_name)

    def one(z):
        own = comm.worker_index(workers.axis_name)
        u = jax.tree.map(lambda x: jnp.full_like(x, own + 1), z)
        return optax.apply_updates(z, tx.update(u, tx.init(z), z)[0])

    found = workers.map(one)(workers.replicate(z))
    shapes = jax.tree.map(lambda x: (x.shape[1:], x.dtype), found)
    assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), z)
    own = comm.owners(3, count)
    for i, (part, start) in enumerate(zip(found.values(), z.values(), strict=True)):
        moved = np.mean(np.flatnonzero(own[:, i]) + 1)
        for x, x0 in zip(jax.tree.leaves(part), jax.tree.leaves(start), strict=True):
            np.testing.assert_allclose(
                np.asarray(x, float),
                np.broadcast_to(np.asarray(x0 + moved, float), x.shape),
                rtol=1e-2,
            )


# ---------------------------------------------------------- all players everywhere


def firms(costs=(1.0, 2.0, 3.0)):
    """Who produces how much, at a price that falls with the sum: Cournot's game."""

    def loss(i):
        return lambda *q: -q[i] * (10 - sum(q) - costs[i])

    return jaxsp.game(*(loss(i) for i in range(len(costs))))


@pytest.mark.parametrize("where", ["everywhere", "own"])
def test_each_player_has_an_optimizer_of_its_own(x64, where):
    """A partition over the tuple of players, in both ways to place them."""
    F, workers = firms(), jaxsp.Workers(3, jax.devices()[:1])
    axis = workers.axis_name
    each = optax.partition(
        {
            "adam": optax.adam(optax.exponential_decay(0.2, 30, 0.9)),
            "sgd": optax.sgd(0.1),
            "heavy": optax.sgd(0.05, momentum=0.5),
        },
        ("adam", "sgd", "heavy"),
    )
    if where == "own":
        tx = optax.chain(each, transforms.sync_players(3, axis))
    else:
        tx = jaxsp.extragradient(optax.chain(jaxsp.average(axis), each))

    def one(z):
        def step(carry, _):
            z, state = carry
            updates, state = tx.update(F(z), state, z, operator_fn=F)
            return (optax.apply_updates(z, updates), state), None

        return jax.lax.scan(step, (z, tx.init(z)), length=900)[0][0]

    z = jax.jit(workers.map(one))(workers.replicate((1.0, 1.0, 1.0)))
    for quantity, wanted in zip(z, (3.0, 2.0, 1.0), strict=True):
        np.testing.assert_allclose(quantity, wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: methods.pearl_sgd(0.1, 0, "w"), "sync_every must be at least 1"),
        (lambda: methods.pearl_sgd(-0.1, 2, "w"), "learning_rate must be"),
        (lambda: transforms.sync_players(2, None), "axis_name must be the name"),
        (lambda: transforms.sync_players(1.5, "w"), "every must be an integer"),
    ],
)
def test_bad_arguments_are_named_when_built(build, message):
    with pytest.raises(ValueError, match=message):
        build()
