"""DQGAN, MASHA and the baselines against NumPy loops fed the very same messages."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference_beyond as beyond
import reference_compressed as loops
import table
from covering import pairwise

import jaxsp
from jaxsp import compressors, methods, transforms

M, D = 8, 12
KEY = jax.random.key(5)
AXIS = jaxsp.Workers(1).axis_name
MODES = {"vmap": 1, "shard_map": M}
STEPS = 100


def workers(mode):
    return jaxsp.Workers(M, devices=jax.devices()[: MODES[mode]])


@functools.cache
def sent_up(compressor, split):
    """Compiled once a compressor: what arrives of what worker m sends."""

    @jax.jit
    def arrived(key, m, k, v):
        up, _ = exchange_keys(key, k, split)
        each = compressor.for_worker(m, M)
        own = up if compressor.shared_key else jax.random.fold_in(up, m)
        return each.decompress(each.compress(own, v), v)

    return arrived


@functools.cache
def sent_down(compressor, split):
    """The same for the server."""

    @jax.jit
    def arrived(key, k, v):
        _, down = exchange_keys(key, k, split)
        return compressor.decompress(compressor.compress(down, v), v)

    return arrived


def exchange_keys(key, k, split):
    """The keys of update k; `split` in `average`, which draws participants too."""
    key_k = jax.random.fold_in(key, k)
    if split:
        key_k = jax.random.fold_in(key_k, 0)
    return jax.random.split(jax.random.fold_in(key_k, 0))


def messages(compressor, key, split=False):
    """Q(m, k, v) as the route "gather" draws it from the channel's key."""
    arrived = sent_up(compressor, split)
    return lambda m, k, v: np.asarray(arrived(key, m, k, jnp.asarray(v)))


def averaged(compressor, key):
    """The same for `average`."""
    return messages(compressor, key, split=True)


def server(compressor, key, split):
    """Q_s(k, v) of the server."""
    arrived = sent_down(compressor, split)
    return lambda k, v: np.asarray(arrived(key, k, jnp.asarray(v)))


@functools.cache
def coins(refresh):
    """Whether the snapshot is taken anew, iteration by iteration."""
    coin_key = jax.random.fold_in(KEY, 1)
    return [
        bool(jax.random.bernoulli(jax.random.fold_in(coin_key, k), refresh))
        for k in range(STEPS)
    ]


class Game:
    """A smooth monotone game that differs from worker to worker."""

    def __init__(self, seed=0, affine=False, same=False):
        rng = np.random.default_rng(seed)
        A = rng.normal(size=(M, D, D)) / np.sqrt(D)
        if same:
            A = np.repeat(A[:1], M, 0)
        self.H = (A - A.transpose(0, 2, 1)) / 2 + 0.2 * np.eye(D)
        self.h = rng.normal(size=(M, D))
        self.bend = 0.0 if affine else 0.3

    def __call__(self, z):
        """Rows F_m at one point, or at the workers' own."""
        z = np.asarray(z)
        rows = np.broadcast_to(z, (M, D)) if z.ndim == 1 else z
        linear = np.einsum("mij,mj->mi", self.H, rows)
        return linear + self.bend * np.tanh(rows) + self.h

    def operator(self, z, H, h):
        return H @ z + self.bend * jnp.tanh(z) + h


def trajectory(mode, tx, game, steps=STEPS, full=False):
    """The parameters of all workers `[steps + 1, M, D]`, and the reported ones."""

    def one_worker(z, H, h):
        def F(z):
            return game.operator(z, H, h)

        def server(z):  # of worker 0, which all know
            return game.operator(z, game.H[0], game.h[0])

        extra = {"server_operator_fn": server}
        extra |= {"full_operator_fn": F} if full else {}

        def step(carry, _):
            z, state = carry
            updates, state = tx.update(F(z), state, z, operator_fn=F, **extra)
            z = optax.apply_updates(z, updates)
            return (z, state), (z, methods.eval_params(state, z))

        _, (path, shown) = jax.lax.scan(step, (z, tx.init(z)), length=steps)
        return jnp.concatenate([z[None], path]), jnp.concatenate([z[None], shown])

    start = jnp.tile(start_point(), (M, 1))
    path, shown = jax.jit(workers(mode).map(one_worker))(start, game.H, game.h)
    return np.asarray(path).swapaxes(0, 1), np.asarray(shown).swapaxes(0, 1)


def start_point():
    return np.random.default_rng(9).normal(size=D)


def points(out):
    """The iterates of a reference, whatever else it returns."""
    return np.asarray(out[0] if isinstance(out, tuple) else out)


UNBIASED = {
    "rand_k": compressors.rand_k(0.25),
    "perm_k": compressors.perm_k(),
    "natural": compressors.natural(),
    "dithering": compressors.dithering(4),
}
CONTRACTIVE = {
    "top_k": compressors.top_k(0.25),
    "sign": compressors.sign(),
    "scaled": compressors.scaled(compressors.rand_k(0.5)),
}
BOTH, SNAPSHOTS = (False, True), ("previous", "current")
RAND, TOP = compressors.rand_k(0.5), compressors.top_k(0.5)


def gather(up, down=None):
    """A channel on which every payload goes to everyone."""
    return jaxsp.channel(AXIS, up, down, key=KEY, route="gather")


@pairwise(codec=UNBIASED, two_way=BOTH, mode=MODES, snapshot=SNAPSHOTS)
def test_masha1(x64, codec, two_way, mode, snapshot):
    game, up = Game(), UNBIASED[codec]
    down = UNBIASED["natural"] if two_way else None
    tx = methods.masha1(0.1, gather(up, down), 0.3, snapshot=snapshot)
    ours, _ = trajectory(mode, tx, game)
    exchange_key = jax.random.fold_in(KEY, 0)
    theirs = loops.masha1(
        start_point(),
        game,
        averaged(up, exchange_key),
        coins(0.3),
        0.1,
        0.3,
        Qs=server(down, exchange_key, True) if two_way else None,
        snapshot=snapshot,
    )
    np.testing.assert_allclose(ours, spread(theirs), rtol=0, atol=1e-12)


def spread(out):
    """A shared trajectory for every worker."""
    return np.repeat(points(out)[:, None], M, axis=1)


@pairwise(codec=CONTRACTIVE, two_way=BOTH, mode=MODES, snapshot=SNAPSHOTS)
def test_masha2(x64, codec, two_way, mode, snapshot):
    game, up = Game(), CONTRACTIVE[codec]
    down = TOP if two_way else None
    tx = methods.masha2(0.02, gather(up, down), 0.3, snapshot=snapshot)
    ours, _ = trajectory(mode, tx, game)
    exchange_key = jax.random.fold_in(KEY, 0)
    theirs = loops.masha2(
        start_point(),
        game,
        messages(up, exchange_key),
        coins(0.3),
        0.02,
        0.3,
        Cs=server(down, exchange_key, False) if two_way else None,
        snapshot=snapshot,
    )
    np.testing.assert_allclose(ours, spread(theirs), rtol=0, atol=1e-12)


def box(z, gamma=None):
    """A projection that cuts."""
    return z.clip(-0.5, 0.5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("codec", UNBIASED)
def test_optimistic_masha(x64, codec, mode):
    game, up = Game(), UNBIASED[codec]
    prox = box if codec == "rand_k" else None
    tx = methods.optimistic_masha(0.05, gather(up), 0.3, 0.9, prox=prox)
    ours, _ = trajectory(mode, tx, game)
    exchange_key = jax.random.fold_in(KEY, 0)
    theirs = beyond.optimistic_masha(
        start_point(),
        game,
        averaged(up, exchange_key),
        coins(0.3),
        0.05,
        0.3,
        0.9,
        prox,
    )
    np.testing.assert_allclose(ours, spread(theirs), rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("codec", "projected"), [("rand_k", True), ("perm_k", False), ("natural", False)]
)
def test_three_pillars(x64, codec, projected, mode):
    game, up = Game(), UNBIASED[codec]
    project = box if projected else None
    tx = methods.three_pillars(0.3, gather(up), 0.3, 3, 0.05, project=project)
    ours, _ = trajectory(mode, tx, game)
    theirs = beyond.three_pillars(
        start_point(),
        game,
        lambda u: game(u)[0],
        averaged(up, jax.random.fold_in(KEY, 0)),
        coins(0.3),
        0.3,
        0.05,
        3,
        0.3,
        project,
    )
    np.testing.assert_allclose(ours, spread(theirs), rtol=0, atol=1e-12)
    assert np.abs(ours[-1] - ours[0]).max() > 0.1


def test_both_take_schedules_of_the_iteration(x64):
    game, up = Game(), UNBIASED["rand_k"]
    sent = averaged(up, jax.random.fold_in(KEY, 0))

    def rate(k):
        return 0.1 / (1 + jnp.asarray(k, float) / 20)

    ours, _ = trajectory("vmap", methods.optimistic_masha(rate, gather(up), 0.3), game)
    theirs = beyond.optimistic_masha(
        start_point(), game, sent, coins(0.3), rate, 0.3, 1.0
    )
    np.testing.assert_allclose(ours, spread(theirs), rtol=0, atol=1e-12)
    tx = methods.three_pillars(rate, gather(up), 0.3, 2, lambda k: rate(k) / 3)
    ours, _ = trajectory("vmap", tx, game)
    theirs = beyond.three_pillars(
        start_point(),
        game,
        lambda u: game(u)[0],
        sent,
        coins(0.3),
        rate,
        lambda k: rate(k) / 3,
        2,
        0.3,
    )
    np.testing.assert_allclose(ours, spread(theirs), rtol=0, atol=1e-12)


def momentum():
    """An outer optimizer, and its loop."""
    return optax.sgd(0.7, momentum=0.5, nesterov=True), loops.nesterov(0.7, 0.5)


@pairwise(codec=CONTRACTIVE, adam=BOTH, two_way=BOTH, mode=MODES)
def test_local_steps(x64, adam, codec, two_way, mode):
    """Two-way with an outer optimizer, one-way without."""
    game, up = Game(), CONTRACTIVE[codec]
    outer, outer_loop = momentum() if two_way else (None, None)
    down, rate = TOP if two_way else None, 0.003 if adam else 0.1
    method, local = methods.extra_step_local_sgd, loops.extra_steps
    if adam:
        method, local = methods.local_extra_adam, loops.extra_adam_steps
    ours, _ = trajectory(mode, method(rate, 3, gather(up, down), outer=outer), game)
    theirs = loops.local_steps(
        np.tile(start_point(), (M, 1)),
        local(game, rate),
        3,
        STEPS,
        messages(up, KEY),
        server(down, KEY, False) if two_way else loops.exactly,
        outer_loop,
    )
    assert np.abs(theirs[-1] - theirs[0]).max() > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


@pairwise(codec=CONTRACTIVE, two_way=BOTH, mode=MODES)
def test_delayed_feedback(x64, codec, two_way, mode):
    game, up = Game(), CONTRACTIVE[codec]
    down = TOP if two_way else None
    average = jaxsp.error_feedback_average(gather(up, down))
    ours, _ = trajectory(mode, table.delayed(0.05, average), game)
    theirs = loops.delayed_optimistic(
        np.tile(start_point(), (M, 1)),
        game,
        0.05,
        STEPS,
        2.0,
        messages(up, KEY),
        server(down, KEY, False) if two_way else loops.exactly,
    )
    assert np.abs(theirs[-1] - theirs[0]).max() > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


@pairwise(codec=CONTRACTIVE, two_way=BOTH, mode=MODES)
def test_dqgan(x64, codec, two_way, mode):
    game, up = Game(), CONTRACTIVE[codec]
    down = TOP if two_way else None
    tx = methods.dqgan(0.05, gather(up, down))
    ours, shown = trajectory(mode, tx, game)
    halves, w = loops.dqgan(
        start_point(),
        game,
        messages(up, KEY),
        0.05,
        STEPS,
        Qs=server(down, KEY, False) if two_way else None,
    )
    np.testing.assert_allclose(ours, halves, rtol=0, atol=1e-12)
    np.testing.assert_allclose(shown, spread(w), rtol=0, atol=1e-12)
    assert (shown == shown[:, :1]).all()  # w is one, bit for bit


def test_dqgan_takes_a_schedule_of_the_iteration(x64):
    game, up = Game(), CONTRACTIVE["top_k"]

    def rate(k):
        return 0.1 / (1 + jnp.asarray(k, float) / 20)

    ours, _ = trajectory("vmap", methods.dqgan(rate, gather(up)), game)
    halves, _ = loops.dqgan(start_point(), game, messages(up, KEY), rate, STEPS)
    np.testing.assert_allclose(ours, halves, rtol=0, atol=1e-12)


ALL = {
    "identity": compressors.identity,
    "top_k": lambda: compressors.top_k(0.1),
    "rand_k": lambda: compressors.rand_k(0.3),
    "perm_k": compressors.perm_k,
    "natural": compressors.natural,
    "dithering": lambda: compressors.dithering(2),
    "ternary": compressors.ternary,
    "quantize_2": lambda: compressors.quantize(2),
    "quantize_4": lambda: compressors.quantize(4),
    "sign": compressors.sign,
    "scaled": lambda: compressors.scaled(compressors.ternary()),
}


@pytest.mark.parametrize(
    ("codec", "two_way", "route"),
    [
        *((codec, False, "gather") for codec in ALL),
        *((codec, True, "sharded") for codec in ALL),
        *((codec, True, "gather") for codec in ("top_k", "dithering")),
    ],
)
def test_mean_half_point_of_dqgan_is_uncompressed_whatever_the_codec(
    x64, codec, two_way, route
):
    game, codec = Game(affine=True, same=True), ALL[codec]()
    down = compressors.top_k(0.3) if two_way else None
    channel = jaxsp.channel(AXIS, codec, down, key=KEY, route=route)
    tx = methods.dqgan(0.2, channel)
    ours, _ = trajectory("vmap", tx, game, 100)
    theirs = loops.optimistic(start_point(), game, 0.2, 100)
    scale = max(1.0, np.abs(ours).max())  # the workers' own points may be far apart
    np.testing.assert_allclose(ours.mean(1), theirs, rtol=0, atol=1e-12 * scale)


@pytest.mark.parametrize("codec", ["top_k", "sign"])
def test_feedback_in_the_push_alone_diverges_where_dqgan_converges(x64, codec):
    """A bilinear game: E|w| of the one grows without end."""
    rng = np.random.default_rng(0)
    d, rate = 20, 0.2
    B = np.linalg.qr(rng.normal(size=(d // 2, d // 2)))[0]
    H = np.block([[np.zeros_like(B), B], [-B.T, np.zeros_like(B)]])
    codec = {"top_k": lambda: compressors.top_k(0.1), "sign": compressors.sign}[codec]()
    one_step = optax.chain(
        transforms.error_feedback_average(gather(codec)),
        transforms.past_extragradient(rate),
    )
    two_step = methods.dqgan(rate, gather(codec))

    def end(tx, steps=4000):
        def one_worker(z):
            def step(carry, _):
                z, state = carry
                updates, state = tx.update(jnp.asarray(H) @ z, state, z)
                return (optax.apply_updates(z, updates), state), None

            (z, state), _ = jax.lax.scan(step, (z, tx.init(z)), length=steps)
            return methods.eval_params(state, z)

        z = jax.jit(workers("vmap").map(one_worker))(jnp.ones((M, d)))
        return float(jnp.abs(z.mean(0)).max())

    assert end(two_step) < 1e-3
    assert not end(one_step) < 10


@pytest.mark.parametrize("mode", MODES)
def test_pp_masha1(x64, mode):
    game, up, b = Game(), RAND, 3
    tx = methods.pp_masha1(0.05, gather(up), b, 0.2)
    ours, _ = trajectory(mode, tx, game)
    exchange_key = jax.random.fold_in(KEY, 0)
    participants = []
    for k in range(STEPS):
        draw_key = jax.random.fold_in(jax.random.fold_in(exchange_key, k), 1)
        participants.append(np.asarray(jax.random.randint(draw_key, (b,), 0, M)))
    theirs = loops.masha1(
        start_point(),
        game,
        averaged(up, exchange_key),
        coins(0.2),
        0.05,
        0.2,
        participants=participants,
    )
    np.testing.assert_allclose(ours, spread(theirs), rtol=0, atol=1e-12)


R = 6


def terms_of():
    """R affine terms a worker, whose mean is its F_m: what they add to it."""
    rng = np.random.default_rng(4)
    shift = rng.normal(size=(M, R, D))
    shift -= shift.mean(1, keepdims=True)
    tilt = 0.2 * rng.normal(size=(M, R, D))
    tilt -= tilt.mean(1, keepdims=True)
    return shift, tilt


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("which", ["vr_masha1", "vr_masha2"])
def test_variance_reduced_masha(x64, which, mode):
    game = Game()
    shift, tilt = terms_of()
    rng = np.random.default_rng(8)
    batches = rng.integers(0, R, size=(STEPS, M, 2))
    up = {"vr_masha1": RAND, "vr_masha2": TOP}[which]
    rate = {"vr_masha1": 0.05, "vr_masha2": 0.02}[which]
    tx = getattr(methods, which)(rate, gather(up), 0.2)

    def one_worker(z, H, h, shift, tilt, batches):
        def F(z):
            return game.operator(z, H, h)

        def step(carry, batch):
            z, state = carry

            def sampled(z):
                return F(z) + (shift[batch] + tilt[batch] * z).mean(0)

            updates, state = tx.update(
                F(z), state, z, operator_fn=sampled, full_operator_fn=F
            )
            z = optax.apply_updates(z, updates)
            return (z, state), z

        _, path = jax.lax.scan(step, (z, tx.init(z)), batches)
        return jnp.concatenate([z[None], path])

    start = jnp.tile(start_point(), (M, 1))
    ours = jax.jit(workers(mode).map(one_worker))(
        start, game.H, game.h, shift, tilt, jnp.asarray(batches.swapaxes(0, 1))
    )
    exchange_key = jax.random.fold_in(KEY, 0)
    draw, loop = {
        "vr_masha1": (averaged, loops.masha1),
        "vr_masha2": (messages, loops.masha2),
    }[which]

    def sampled(k, z):
        added = shift + tilt * z
        return game(z) + np.stack(
            [added[m][batches[k, m]].mean(axis=0) for m in range(M)]
        )

    theirs = loop(
        start_point(),
        game,
        draw(up, exchange_key),
        coins(0.2),
        rate,
        0.2,
        sampled=sampled,
    )
    ours = np.asarray(ours).swapaxes(0, 1)
    np.testing.assert_allclose(ours, spread(theirs), rtol=0, atol=1e-12)


def test_masha_without_compression_and_always_renewed_is_extragradient(x64):
    game = Game()
    theirs = spread(loops.extragradient(start_point(), game, 0.1, STEPS))
    for method in (methods.masha1, methods.masha2):
        for channel in (gather(compressors.identity()), jaxsp.channel(AXIS, key=KEY)):
            tx = method(0.1, channel, 1.0, snapshot="current")
            ours, _ = trajectory("vmap", tx, game)
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


def test_masha1_with_a_projection(x64):
    game, up = Game(), RAND

    def prox(z, gamma):
        return jnp.clip(z, -0.5, 0.5)

    tx = methods.masha1(0.05, gather(up), 0.5, prox=prox)
    ours, _ = trajectory("vmap", tx, game)
    exchange_key = jax.random.fold_in(KEY, 0)
    theirs = loops.masha1(
        start_point(),
        game,
        averaged(up, exchange_key),
        coins(0.5),
        0.05,
        0.5,
        prox=lambda v, gamma: np.clip(v, -0.5, 0.5),
    )
    np.testing.assert_allclose(ours, spread(theirs), rtol=0, atol=1e-12)
    assert np.abs(ours[1:]).max() == 0.5


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["ceg", "eg_ef", "qsgda", "diana_sgda", "ef21_sgda"])
def test_baselines(x64, name, mode):
    game, rand, top = Game(), RAND, TOP
    z0, rate = start_point(), 0.05
    tx, theirs = {
        "ceg": lambda: (
            methods.compressed_extragradient(rate, gather(rand)),
            loops.ceg(z0, game, averaged(rand, KEY), rate, STEPS),
        ),
        "eg_ef": lambda: (
            methods.error_feedback_extragradient(rate, gather(top)),
            loops.eg_ef(z0, game, messages(top, KEY), rate, STEPS),
        ),
        "qsgda": lambda: (
            methods.qsgda(rate, gather(rand)),
            loops.qsgda(z0, game, averaged(rand, KEY), rate, STEPS),
        ),
        "diana_sgda": lambda: (
            methods.diana_sgda(rate, gather(rand)),
            loops.diana_sgda(z0, game, messages(rand, KEY), rate, 0.5, STEPS),
        ),
        "ef21_sgda": lambda: (
            methods.ef21_sgda(rate, gather(top)),
            loops.ef21_sgda(z0, game, messages(top, KEY), rate, STEPS),
        ),
    }[name]()
    ours, _ = trajectory(mode, tx, game)
    np.testing.assert_allclose(ours, spread(theirs), rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("graph", ["ring", "star", "asymmetric"])
def test_compressed_gossip_is_choco(x64, graph, mode):
    import table

    graph, top = table.graphs(M)[graph], CONTRACTIVE["top_k"]
    tx = jaxsp.compressed_gossip(graph, top, 0.3, key=KEY, axis_name=AXIS)

    def one_worker(z):
        def step(carry, _):
            z, state = carry
            updates, state = tx.update(jnp.zeros_like(z), state, z)
            z = optax.apply_updates(z, updates)
            return (z, state), z

        _, path = jax.lax.scan(step, (z, tx.init(z)), length=60)
        return jnp.concatenate([z[None], path])

    X = np.random.default_rng(2).normal(size=(M, D))
    ours = np.asarray(jax.jit(workers(mode).map(one_worker))(jnp.asarray(X)))

    # Top-k draws nothing: any key will do.
    theirs = loops.choco(X, graph.to_matrix(), messages(top, KEY), 0.3, 60)
    np.testing.assert_allclose(ours.swapaxes(0, 1), theirs, rtol=0, atol=1e-12)
    np.testing.assert_allclose(ours[:, -1].mean(0), X.mean(0), atol=1e-13)
    spread_ratio = np.linalg.norm(ours[:, -1] - X.mean(0)) / np.linalg.norm(
        X - X.mean(0)
    )
    assert spread_ratio < 0.5


SIGN, NATURAL = compressors.sign(), compressors.natural()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: methods.masha1(0.1, gather(SIGN), 0.5),
            r"channel must be unbiased, and sign\(\) is not",
        ),
        (
            lambda: methods.masha1(0.1, gather(NATURAL, SIGN), 0.5),
            r"channel must be unbiased, and sign\(\) is not",
        ),
        (
            lambda: methods.masha2(0.1, gather(RAND), 0.5),
            r"channel must be contractive.*scaled\(",
        ),
        (lambda: methods.masha1(0.1, AXIS, 0.5), "key must be a typed key"),
        (lambda: methods.masha2(0.1, None, 0.5), r"jaxsp\.channel"),
        (
            lambda: jaxsp.error_feedback_average(gather(RAND)),
            "channel must be contractive",
        ),
        (lambda: methods.diana_sgda(0.1, gather(TOP)), "channel must be unbiased"),
        (lambda: methods.ef21_sgda(0.1, gather(RAND)), "channel must be contractive"),
        (lambda: methods.ef21_sgda(0.1, gather(TOP, TOP)), "no compressor on the way"),
        (
            lambda: methods.masha1(0.1, gather(NATURAL), 0.0),
            "refresh must be above 0",
        ),
        (
            lambda: methods.masha1(0.1, gather(NATURAL), 1.5),
            "refresh must be above 0 and at most 1",
        ),
        (
            lambda: methods.masha1(0.1, gather(NATURAL), 0.5, snapshot="old"),
            'snapshot must be "previous" or "current"',
        ),
        (
            lambda: methods.optimistic_masha(0.1, gather(SIGN), 0.5),
            r"channel must be unbiased, and sign\(\) is not",
        ),
        (
            lambda: methods.optimistic_masha(0.1, gather(NATURAL), 0.5, -1.0),
            "momentum must be finite and at least 0",
        ),
        (
            lambda: transforms.optimistic_snapshot(
                0.1,
                optax.identity(),
                transforms.Refresh(0.5, KEY, "current"),
                axis_name=AXIS,
            ),
            'snapshot must be "previous" here',
        ),
        (
            lambda: methods.three_pillars(0.1, gather(NATURAL), 0.5, 0, 0.1),
            "local_steps must be at least 1",
        ),
        (
            lambda: methods.three_pillars(0.1, gather(NATURAL), 0.5, 1, 0.0),
            "local_learning_rate must be finite and above 0",
        ),
        (
            lambda: methods.pp_masha1(0.1, gather(NATURAL), 0, 0.5),
            "participants",
        ),
        (lambda: jaxsp.average(AXIS, participants=2), "key must be a typed key"),
    ],
)
def test_bad_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_the_minibatch_forms_ask_for_the_full_operator():
    tx = methods.vr_masha1(0.1, gather(compressors.natural()), 0.5)
    z = jnp.ones((1, 4))
    one = jaxsp.Workers(1, devices=jax.devices()[:1])
    with pytest.raises(ValueError, match="full_operator_fn"):
        one.map(lambda z: tx.update(z, tx.init(z), z, operator_fn=lambda z: z))(z)


def test_the_servers_steps_ask_for_the_servers_operator():
    tx = methods.three_pillars(0.1, gather(compressors.natural()), 0.5, 1, 0.1)
    z = jnp.ones((1, 4))
    one = jaxsp.Workers(1, devices=jax.devices()[:1])
    with pytest.raises(ValueError, match="server_operator_fn is required"):
        one.map(lambda z: tx.update(z, tx.init(z), z, operator_fn=lambda z: z))(z)
