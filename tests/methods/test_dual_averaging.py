"""QODA: what its point and its rate are, and that it needs no rate."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference_beyond as beyond
import table

import jaxsp
from jaxsp import MinMax, compressors, methods

N, D = 8, 5
VIRTUAL = jaxsp.Workers(N, jax.devices()[:1])
AXIS = VIRTUAL.axis_name


def test_the_point_to_report_is_the_averaged_one(x64):
    game, z0 = table.make_game(N, D), np.tile(np.arange(D) / D, (N, 1))
    path, state = table.trajectory(VIRTUAL, methods.qoda(1.0, AXIS), game, z0, 30)
    X = table.qoda(z0, game.stacked, 1.0, 30)[1]
    ours = methods.eval_params(state, jnp.asarray(path[-1]))
    np.testing.assert_allclose(ours, X[-1], rtol=0, atol=1e-12)
    assert np.abs(ours - path[-1]).max() > 1e-4


def end(tx, scale):
    """How large the points of a bilinear game are after some hundred steps."""
    F = jaxsp.saddle(lambda x, y: scale * x @ y)

    def run(z):
        def step(carry, _):
            z, state = carry
            updates, state = tx.update(F(z), state, z)
            return (optax.apply_updates(z, updates), state), None

        z, state = jax.lax.scan(step, (z, tx.init(z)), length=600)[0]
        return methods.eval_params(state, z)

    z = jax.jit(VIRTUAL.map(run))(VIRTUAL.replicate(MinMax(jnp.ones(9), jnp.ones(9))))
    return float(jnp.abs(z.x).max())


@pytest.mark.parametrize("scale", [0.3, 1.0, 30.0])
def test_one_rate_is_right_for_games_of_every_scale(x64, scale):
    codes = jaxsp.channel(AXIS, compressors.quantize(4), key=table.KEY)
    for channel in (AXIS, codes):
        assert end(methods.qoda(1.0, channel), scale) < 0.05
    if scale > 1:
        assert not end(jaxsp.transforms.past_extragradient(1.0), scale) < 1e6
    # What looks ahead is what converges.
    descent = optax.chain(jaxsp.average(AXIS), optax.sgd(0.1 / scale))
    assert end(descent, scale) > 1


def test_layers_of_their_own_bits_follow_the_loop(x64):
    """Each layer's message is what its own compressor makes of it alone."""
    game, z0 = table.make_game(N, D), np.tile(np.arange(D) / D, (N, 1))
    codes = jaxsp.channel(AXIS, table.TWO_AND_EIGHT, key=table.KEY, route="gather")
    method = table.in_two(methods.qoda(1.0, codes))
    path, _ = table.trajectory(VIRTUAL, method, game, z0, 30)

    @jax.jit
    def sent(m, k, v):
        out, at_k = [], jax.random.fold_in(table.KEY, k)
        for i, (bits, part) in enumerate(((8, v[:2]), (2, v[2:]))):
            up, _ = jax.random.split(jax.random.fold_in(at_k, i))
            codec, own = compressors.quantize(bits), jax.random.fold_in(up, m)
            out.append(codec.decompress(codec.compress(own, part), part))
        return jnp.concatenate(out)

    def messages(m, k, v):
        return np.asarray(sent(m, k, v))

    def at_one(z):
        return game.stacked(np.tile(z, (N, 1)))

    half, _ = beyond.qoda(z0[0], at_one, messages, 1.0, 30)
    np.testing.assert_allclose(path[:, 0], half, rtol=0, atol=1e-12)
    exact = table.qoda(z0, game.stacked, 1.0, 30)[0][:, 0]
    assert np.abs(half - exact).max() > 1e-2


def test_new_bits_go_on_from_the_old_state():
    """What the method remembers does not depend on the bits."""
    z = VIRTUAL.replicate({"a": jnp.linspace(-1.0, 1.0, 6), "b": 0.01 * jnp.ones(4)})
    state, sent = None, []
    for bits in (2.9, 8):
        codecs = compressors.allocate_bits(z, bits)
        layers = compressors.per_leaf(codecs)
        tx = methods.qoda(1.0, jaxsp.channel(AXIS, layers, key=table.KEY))
        state = VIRTUAL.map(tx.init)(z) if state is None else state
        before = jax.tree.structure(state)
        updates, state = VIRTUAL.map(tx.update)(z, state, z)
        assert jax.tree.structure(state) == before
        z = optax.apply_updates(z, updates)
        sent.append(int(jaxsp.metrics.bits_sent(state).up[0]))
    assert int(state.count[0]) == 2
    assert sent[1] - sent[0] > sent[0]


def test_biased_compressors_are_refused():
    top = jaxsp.channel(AXIS, compressors.top_k(0.1), key=table.KEY)
    with pytest.raises(ValueError, match="unbiased"):
        methods.qoda(1.0, top)
