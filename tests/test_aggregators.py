"""Aggregates in the place of the mean: NumPy, modes, bits, and how many bad workers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference_beyond as loops
import table

import jaxsp
from jaxsp import aggregators, comm, compressors, methods

N, D = 8, 37
KEY = jax.random.key(0)


RULES = {
    "coordinate_median": (aggregators.coordinate_median(), loops.coordinate_median),
    "trimmed_mean": (aggregators.trimmed_mean(2), lambda X: loops.trimmed_mean(X, 2)),
    "geometric_median": (
        aggregators.geometric_median(),
        lambda X: loops.geometric_median(X, 8, 1e-6),
    ),
    "centered_clipping": (
        aggregators.centered_clipping(2.0),
        lambda X: loops.centered_clipping(X, 2.0, 8, loops.coordinate_median(X)),
    ),
}
EACH = pytest.mark.parametrize("rule", RULES)


def vectors(count=N, d=D):
    """Of most workers near each other, of two far away."""
    X = np.random.default_rng(0).normal(size=(count, d))
    X[1], X[4] = 1e3 * X[1], -50 * X[4]
    return X


@EACH
@pytest.mark.parametrize("count", [7, 8])
def test_rules_are_numpys_whatever_the_leaves(x64, rule, count):
    """Distances are those of the whole model, not of a leaf."""
    aggregate, loop = RULES[rule]
    X = vectors(count)
    wanted = loop(X)
    whole = aggregate.combine([jnp.asarray(X)])
    parts = [X[:, :5], X[:, 5:17].reshape(count, 3, 4), X[:, 17], X[:, 18:]]
    parts = aggregate.combine([jnp.asarray(x) for x in parts])
    np.testing.assert_allclose(whole[0], wanted, rtol=0, atol=1e-12)
    flat = np.concatenate([np.ravel(x) for x in parts])
    np.testing.assert_allclose(flat, wanted, rtol=0, atol=1e-12)
    assert np.abs(wanted - X.mean(axis=0)).max() > 1


@EACH
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, -1e38])
def test_numbers_that_are_none_do_no_harm(rule, value):
    aggregate, _ = RULES[rule]
    X = np.random.default_rng(0).normal(size=(N, D))
    X[2, 3], X[5] = value, value
    found = aggregate.combine([jnp.asarray(X, jnp.float32)])[0]
    assert np.abs(found).max() < 3


def test_what_a_rule_gives_of_equal_vectors_is_that_vector(x64):
    x = np.random.default_rng(0).normal(size=D)
    for aggregate, _ in RULES.values():
        found = aggregate.combine([jnp.tile(x, (N, 1))])[0]
        np.testing.assert_allclose(found, x, rtol=0, atol=1e-14)


# ---------------------------------------------------------- over a channel


WORKERS = {"vmap": (N, 1), "shard_map": (N, 8), "blocks": (16, 8)}


@EACH
@pytest.mark.parametrize("mode", WORKERS)
def test_all_modes_and_routes_have_the_same_aggregate(x64, rule, mode):
    aggregate, loop = RULES[rule]
    count, devices = WORKERS[mode]
    workers, X = jaxsp.Workers(count, jax.devices()[:devices]), vectors(count)
    assert workers.mode == mode
    tree = {"a": X[:, :30].reshape(count, 5, 6), "b": X[:, 30:]}
    tree = jax.tree.map(jnp.asarray, tree)
    for route in (None, "gather", "sharded")[: 3 if aggregate.coordinatewise else 2]:
        channel = jaxsp.channel(workers.axis_name, route=route, aggregate=aggregate)
        tx = jaxsp.average(channel)
        update = jax.jit(workers.map(lambda u, tx=tx: tx.update(u, tx.init(u))))
        found, state = update(tree)
        flat = np.concatenate([found["a"].reshape(count, 30), found["b"]], axis=1)
        np.testing.assert_allclose(flat[0], loop(X), rtol=0, atol=1e-12)
        assert (flat == flat[0]).all()  # bit for bit on all workers
        sharded = aggregate.coordinatewise and route != "gather"  # which is cheaper
        whole = (count - 1) * 64 * D
        blocks = 2 * (count - 1) * 64 * -(-D // count)
        sent = np.asarray(jaxsp.metrics.bits_sent(state).up)
        np.testing.assert_array_equal(sent, blocks if sharded else whole)


@EACH
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_combined_in_float32(rule, dtype):
    aggregate, loop = RULES[rule]
    X = jnp.asarray(np.random.default_rng(0).normal(size=(N, D)), dtype)
    workers = jaxsp.Workers(N, jax.devices()[:1])
    tx = jaxsp.average(jaxsp.channel(workers.axis_name, aggregate=aggregate))
    found = workers.map(lambda u: tx.update(u, tx.init(u))[0])(X)
    assert found.dtype == dtype
    wanted = loop(np.asarray(X, np.float64))
    np.testing.assert_allclose(
        found[0].astype(float), wanted, atol=2 * float(jnp.finfo(dtype).eps)
    )


@pytest.mark.parametrize("route", ["gather", "sharded"])
@pytest.mark.parametrize("down", [None, compressors.top_k(0.5)])
def test_through_compressors_it_is_of_what_arrives(x64, route, down):
    """Codes of 8 bits lose little: the median is that of the vectors, nearly."""
    workers, X = jaxsp.Workers(N, jax.devices()[:1]), vectors()
    X = np.clip(X, -3, 3)  # one scale for all of a vector
    channel = jaxsp.channel(
        workers.axis_name,
        compressors.quantize(8),
        down,
        key=KEY,
        route=route,
        aggregate=aggregators.coordinate_median(),
    )
    tx = jaxsp.average(channel)
    found, state = workers.map(lambda u: tx.update(u, tx.init(u)))(jnp.asarray(X))
    wanted = np.median(X, axis=0)
    if down is not None:
        kept = np.asarray(found[0]) != 0
        assert 0.4 < kept.mean() < 0.7
        wanted = np.where(kept, wanted, 0)
    np.testing.assert_allclose(found[0], wanted, atol=6 / 100)
    assert np.abs(found[0] - X.mean(0)).max() > 0.3
    assert int(jaxsp.metrics.bits_sent(state).up[0]) < (N - 1) * 64 * D / 4


def test_local_steps_agree_on_the_aggregate(x64):
    workers, X = jaxsp.Workers(N, jax.devices()[:1]), vectors()
    aggregate = aggregators.coordinate_median()
    tx = jaxsp.sync(2, jaxsp.channel(workers.axis_name, aggregate=aggregate))
    z, state = jnp.ones((N, D)), workers.map(tx.init)(jnp.ones((N, D)))
    for _ in range(2):
        u, state = workers.map(tx.update)(jnp.asarray(X), state, z)
        z = z + u
    np.testing.assert_allclose(
        z, np.tile(1 + 2 * np.median(X, axis=0), (N, 1)), atol=1e-12
    )


# ---------------------------------------------------------- bad workers


def corrupted(kind, bad, axis):
    """What the first `bad` workers send in the place of their gradient."""

    def update(updates, state, params=None):
        me, key = comm.worker_index(axis), jax.random.fold_in(KEY, state)
        key = comm.worker_key(key, axis)

        def wrong(g):
            if kind == "sign":
                return -10 * g
            if kind == "nan":
                return g * jnp.nan
            return 1e3 * jax.random.normal(key, g.shape, g.dtype)

        sent = jax.tree.map(lambda g: jnp.where(me < bad, wrong(g), g), updates)
        return sent, state + 1

    return optax.GradientTransformation(lambda _: jnp.zeros([], jnp.int32), update)


def distance_after(aggregate, kind, bad, heterogeneity=0.0, steps=400):
    """How far extragradient ends from the solution of the good workers' game."""
    count, spread = 10, {"heterogeneity": heterogeneity} if heterogeneity else {}
    problem = jaxsp.problems.quadratic(count, 5, L=1.0, mu=0.3, seed=2, **spread)
    workers = jaxsp.Workers(count, jax.devices()[:1])
    axis = workers.axis_name
    tx = jaxsp.extragradient(
        optax.chain(
            corrupted(kind, bad, axis),
            jaxsp.average(jaxsp.channel(axis, aggregate=aggregate)),
            optax.sgd(0.5),
        )
    )
    z = jax.tree.map(lambda x: x[0], table.ends(workers, tx, problem, steps)[0])
    return float(jaxsp.metrics.distance(z, problem.z_star))


BAD = pytest.mark.parametrize("kind", ["sign", "noise", "nan"])
FIT = {
    "coordinate_median": aggregators.coordinate_median(),
    "trimmed_mean": aggregators.trimmed_mean(3),
    "geometric_median": aggregators.geometric_median(),
    "centered_clipping": aggregators.centered_clipping(1e-3),
}


@BAD
@pytest.mark.parametrize("rule", FIT)
def test_three_bad_workers_of_ten_do_no_harm_where_the_mean_diverges(x64, rule, kind):
    # Of the order of the radius, and of eps.
    floor = {"centered_clipping": 1e-2, "geometric_median": 1e-5}.get(rule, 1e-8)
    assert distance_after(FIT[rule], kind, 3) < floor
    alone = distance_after(None, kind, 3)
    assert not alone < 10  # or not a number
    assert distance_after(FIT[rule], kind, 0) < 1e-8


@BAD
def test_where_good_workers_differ_a_floor_stays(x64, kind):
    alike, apart = (
        distance_after(aggregators.coordinate_median(), kind, 3, heterogeneity=h)
        for h in (0.01, 0.1)
    )
    assert 0 < alike < 0.1 * 1.0
    assert alike < apart < 1.0


@BAD
def test_too_many_bad_workers_break_every_rule(x64, kind):
    """Six of ten, but that whole vectors leave out what is no number; and four where
    three are trimmed."""
    rules = ["coordinate_median", "geometric_median", "centered_clipping"]
    for rule in rules[: 1 if kind == "nan" else 3]:
        assert not distance_after(FIT[rule], kind, 6) < 0.5
    assert not distance_after(FIT["trimmed_mean"], kind, 4) < 0.5


# ---------------------------------------------------------- what is refused


MEDIAN = aggregators.coordinate_median()
SIGN, RAND = compressors.sign(), compressors.rand_k(0.5)


def over(*codecs, aggregate=MEDIAN):
    return jaxsp.channel("w", *codecs, key=KEY, aggregate=aggregate)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: jaxsp.channel("w", aggregate="median"), "aggregate must come from"),
        (
            lambda: jaxsp.channel("w", aggregate=aggregators.coordinate_median),
            "aggregate must come from",
        ),
        (
            lambda: jaxsp.channel(
                "w", route="sharded", aggregate=aggregators.geometric_median()
            ),
            'route must be "gather" for geometric_median',
        ),
        (lambda: over(compressors.perm_k()), r"aggregate must be None with perm_k"),
        (lambda: jaxsp.channel("w", SIGN, aggregate=MEDIAN), "key must be"),
        (
            lambda: jaxsp.error_feedback_average(over(SIGN)),
            "channel must be one of the",
        ),
        (lambda: jaxsp.sync(2, over(SIGN)), "channel must be one of the mean"),
        (lambda: methods.dqgan(0.1, over(SIGN)), "channel must be one of the mean"),
        (
            lambda: methods.dqgan_adam(0.1, over(SIGN)),
            "channel must be one of the mean",
        ),
        (lambda: methods.ef21_sgda(0.1, over(SIGN)), "channel must be one of the mean"),
        (lambda: methods.ef21_sgda(0.1, over()), "channel must be one of the mean"),
        (
            lambda: methods.diana_sgda(0.1, over(RAND)),
            "channel must be one of the mean",
        ),
        (lambda: methods.masha1(0.1, over(RAND), 0.5), "channel must be one of the"),
        (lambda: methods.masha2(0.1, over(SIGN), 0.5), "channel must be one of the"),
        (lambda: methods.masha2(0.1, over(), 0.5), "channel must be one of the mean"),
        (lambda: jaxsp.average(over(), 2), "channel must be one of the mean"),
        (lambda: aggregators.trimmed_mean(-1), "b must be at least 0"),
        (lambda: aggregators.geometric_median(0), "iterations must be at least 1"),
        (lambda: aggregators.centered_clipping(0.0), "radius must be finite and above"),
        (lambda: aggregators.Aggregator("mine", 3), "combine must be a function"),
    ],
)
def test_what_cannot_work_is_refused_when_built(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_what_does_not_fit_the_workers_is_refused_when_traced():
    workers = jaxsp.Workers(4, jax.devices()[:1])
    wrong = aggregators.Aggregator("mine", lambda stacks: stacks)
    rules = {"b must be below half .*trimmed_mean": aggregators.trimmed_mean(2)}
    rules["the aggregator mine must combine stacks of shapes"] = wrong
    for message, rule in rules.items():
        tx = jaxsp.average(jaxsp.channel(workers.axis_name, aggregate=rule))
        with pytest.raises(ValueError, match=message):
            workers.map(lambda u, tx=tx: tx.update(u, tx.init(u)))(jnp.ones((4, 3)))


def test_an_aggregator_of_ones_own(x64):
    workers = jaxsp.Workers(4, jax.devices()[:1])
    largest = aggregators.Aggregator(
        "largest()", lambda stacks: [x.max(axis=0) for x in stacks], True
    )
    tx = methods.qsgda(0.5, jaxsp.channel(workers.axis_name, aggregate=largest))
    u = jnp.arange(8.0).reshape(4, 2)
    found = workers.map(lambda u: tx.update(u, tx.init(u))[0])(u)
    np.testing.assert_array_equal(found, np.tile([-3.0, -3.5], (4, 1)))


def test_methods_that_take_a_channel_take_an_aggregate(x64):
    """And differ from the mean, where one worker is far off."""
    workers = jaxsp.Workers(4, jax.devices()[:1])
    game = table.make_game(4, 3)
    z0 = np.zeros((4, 3))
    for build in (
        methods.extra_step,
        methods.cp_oadam,
        methods.dqgan,
        methods.dqgan_adam,
        lambda lr, c: methods.local_extra_adam(lr, 2, c),
        lambda lr, c: methods.extra_step_local_sgd(lr, 2, c),
    ):
        ends = [
            table.trajectory(workers, build(0.1, c), game, z0, 4)[0][-1]
            for c in (workers.axis_name, jaxsp.channel("workers", aggregate=MEDIAN))
        ]
        assert np.isfinite(ends[1]).all()
        assert np.abs(ends[1] - ends[0]).max() > 1e-3
