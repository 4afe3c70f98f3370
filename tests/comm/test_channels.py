"""What a channel is, what it allows, and that every averaging method takes one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsp
from jaxsp import comm, compressors, methods, topology

N = 8
KEY = jax.random.key(0)
WORKERS = jaxsp.Workers(N, devices=jax.devices()[:1])
AXIS = WORKERS.axis_name
TOP, RAND, FOUR = (
    compressors.top_k(0.25),
    compressors.rand_k(0.25),
    compressors.quantize(4),
)


@pytest.mark.parametrize(
    ("up", "down", "unbiased", "contractive"),
    [
        (None, None, True, True),
        (TOP, None, False, True),
        (RAND, None, True, False),
        (RAND, TOP, False, False),
        (compressors.natural(), compressors.natural(), True, False),
        (compressors.identity(), TOP, False, True),
        (None, RAND, True, False),
    ],
)
def test_what_a_channel_allows(up, down, unbiased, contractive):
    channel = jaxsp.channel(AXIS, up, down, key=KEY)
    assert (channel.unbiased, channel.contractive) == (unbiased, contractive)
    assert channel.plain == (up is None and down is None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(axis_name=3), "axis_name must be the name"),
        (dict(axis_name=()), "axis_name must be the name"),
        (dict(axis_name=AXIS, up="top_k"), r"up must come from jaxsp\.compressors"),
        (dict(axis_name=AXIS, down=TOP, up=0.1), "up must come from"),
        (dict(axis_name=AXIS, up=TOP, down=compressors.sign), "down must come from"),
        (dict(axis_name=AXIS, up=TOP, key=None), "key must be a typed key"),
        (dict(axis_name=AXIS, down=TOP, key=None), "key must be a typed key"),
        (dict(axis_name=AXIS, up=TOP, key=0), r"typed key such as jax\.random\.key"),
        (dict(axis_name=AXIS, key=jax.random.PRNGKey(0)), "typed key"),
        (
            dict(axis_name=AXIS, key=jax.random.split(KEY)),
            r"key must be one key.*\(2,\)",
        ),
        (dict(axis_name=AXIS, up=TOP, route="ring"), 'route must be None, "gather"'),
        (dict(axis_name=AXIS, route="gather"), "route='gather' is for payloads"),
    ],
)
def test_bad_channels(arguments, message):
    with pytest.raises(ValueError, match=message):
        jaxsp.channel(**(dict(key=KEY) | arguments))


@pytest.mark.parametrize("value", [None, 3, (), ("a", 1), TOP, ["workers"]])
def test_what_is_no_channel_is_refused_by_name(value):
    for build in (
        jaxsp.average,
        jaxsp.error_feedback_average,
        lambda c: jaxsp.sync(2, c),
        lambda c: methods.extra_step(0.1, c),
        lambda c: methods.dqgan(0.1, c),
    ):
        with pytest.raises(
            ValueError, match=r"channel must be the name .* jaxsp\.chan"
        ):
            build(value)


def test_an_axis_name_alone_is_the_plain_channel():
    x = jnp.arange(8.0).reshape(8, 1)
    for channel in (AXIS, jaxsp.channel(AXIS), jaxsp.channel(AXIS, key=KEY)):
        tx = jaxsp.average(channel)
        mean, state = WORKERS.map(lambda x, tx=tx: tx.update(x, tx.init(x)))(x)
        np.testing.assert_allclose(mean, 3.5)
        assert int(jaxsp.metrics.bits_sent(state).up[0]) == 2 * 7 * 32 // 8


def bits_of(build, channel, updates=6):
    tx = build(channel)
    z = jnp.asarray(np.random.default_rng(0).normal(size=(N, 64)), jnp.float32)
    state = WORKERS.map(tx.init)(z)
    step = jax.jit(
        WORKERS.map(lambda s, z: tx.update(z, s, z, operator_fn=lambda z: z))
    )
    for _ in range(updates):
        updates, state = step(state, z)
    assert np.isfinite(updates).all()
    return int(jaxsp.metrics.bits_sent(state).up[0])


@pytest.mark.parametrize(
    "build",
    [
        jaxsp.average,
        jaxsp.error_feedback_average,
        lambda c: jaxsp.sync(2, c),
        lambda c: methods.extra_step(0.1, c),
        lambda c: methods.extra_step_local_sgd(0.1, 2, c),
        lambda c: methods.local_extra_adam(0.1, 2, c),
        lambda c: methods.cp_oadam(0.1, c),
        lambda c: methods.dqgan(0.1, c),
        lambda c: methods.dqgan_adam(0.1, c),
    ],
)
def test_every_method_that_averages_sends_less_over_a_compressed_channel(build):
    four = compressors.contractive(FOUR)
    channel = jaxsp.channel(AXIS, four, four, key=KEY, route="sharded")
    assert bits_of(build, channel) < 0.4 * bits_of(build, AXIS)


@pytest.mark.parametrize("down", [None, TOP])
def test_a_channel_without_a_compressor_up_compresses_on_the_way_down_alone(x64, down):
    """The plain mean, and what the server's compressor makes of it."""
    X = np.random.default_rng(1).normal(size=(N, 12))
    route = None if down is None else "gather"
    channel = jaxsp.channel(AXIS, None, down, key=KEY, route=route)
    tx = jaxsp.average(channel)
    mean = WORKERS.map(lambda x: tx.update(x, tx.init(x))[0])(jnp.asarray(X))
    expected = X.mean(0)
    if down is not None:
        small = np.argsort(-abs(expected))[3:]
        expected[small] = 0.0
    np.testing.assert_allclose(mean, np.tile(expected, (N, 1)), atol=1e-14)


def test_weights_of_a_plain_channel_are_those_of_the_rows(x64):
    X = np.random.default_rng(1).normal(size=(N, 5))
    weights = jnp.asarray([2.0, 0, 0, 4, 0, 0, 2, 0])
    for channel in (AXIS, jaxsp.channel(AXIS, compressors.identity(), key=KEY)):

        def one_worker(x, channel=channel):
            made, _ = comm.exchange(x, comm.no_traffic(), channel, weights=weights)
            return made.mean

        mean = WORKERS.map(one_worker)(jnp.asarray(X))
        np.testing.assert_allclose(mean[3], np.asarray(weights) @ X / N, atol=1e-14)


def primitives(fn, *args):
    return str(jax.make_jaxpr(fn)(*args))


@pytest.mark.parametrize(
    "build",
    [
        lambda axis: jaxsp.average(axis),
        lambda axis: jaxsp.sync(1, axis),
        lambda axis: jaxsp.gossip(topology.ring(N), 3, "chebyshev", axis_name=axis),
        lambda axis: methods.dposg(0.1, topology.star(N), axis_name=axis),
    ],
    ids=["average", "sync", "gossip", "dposg"],
)
def test_leaves_are_packed_where_they_travel_and_only_there(build):
    params = {"a": jnp.ones((N, 3)), "b": jnp.ones((N, 2, 2)), "c": jnp.ones((N,))}
    for workers, packed in ((WORKERS, False), (jaxsp.Workers(N), True)):
        tx = build(workers.axis_name)
        state = jax.eval_shape(workers.map(tx.init), params)
        text = primitives(workers.map(tx.update), params, state, params)
        assert ("concatenate[dimension=0] " in text) == packed
