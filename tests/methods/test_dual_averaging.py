"""QODA: what its point and its rate are, and that it needs no rate."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
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


def test_biased_compressors_are_refused():
    top = jaxsp.channel(AXIS, compressors.top_k(0.1), key=table.KEY)
    with pytest.raises(ValueError, match="unbiased"):
        methods.qoda(1.0, top)
