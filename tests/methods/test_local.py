"""Local steps: what keeps them at the solution of unlike workers."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import table

import jaxsp
from jaxsp import MinMax, methods, projections, transforms

N, D = 8, 5
VIRTUAL = jaxsp.Workers(N, jax.devices()[:1])
AXIS = VIRTUAL.axis_name
KEYED = jaxsp.channel(AXIS, key=table.KEY)
UNLIKE = dict(L=1.0, mu=0.3, heterogeneity=1.0)


def furthest(tx, problem, steps):
    """How far from the solution the worst worker ends."""
    z, _ = table.ends(VIRTUAL, tx, problem, steps)
    return float(jax.vmap(lambda z: jaxsp.metrics.distance(z, problem.z_star))(z).max())


# ---------------------------------------------------------- unlike workers


def test_the_correction_takes_the_floor_out_of_local_steps(x64):
    problem = jaxsp.problems.quadratic(N, 4, seed=1, **UNLIKE)

    def local(rate):
        return optax.chain(optax.sgd(rate), jaxsp.sync(10, AXIS))

    floor, half = (furthest(local(rate), problem, 4000) for rate in (0.1, 0.05))
    assert floor > 1e-2
    assert 0.4 < half / floor < 0.7
    assert furthest(methods.fedgda_gt(0.1, 10, AXIS), problem, 4000) < 1e-12
    assert furthest(methods.proxskip_vip(0.1, KEYED, 0.1), problem, 20000) < 1e-10


def test_corrected_descent_diverges_on_bilinear_games_and_extragradient_does_not(x64):
    problem = jaxsp.problems.bilinear(N, 4, heterogeneity=0.5, seed=0)
    for tx in (
        methods.fedgda_gt(0.1, 5, AXIS),
        methods.proxskip_vip(0.1, KEYED, 0.2),
    ):
        assert furthest(tx, problem, 8000) > 1e3
    ahead = optax.chain(
        jaxsp.extragradient(
            optax.chain(transforms.drift_correction(10, AXIS), optax.sgd(0.3))
        ),
        jaxsp.sync(5, AXIS),
    )
    assert furthest(ahead, problem, 8000) < 1e-8


def test_proxskip_needs_fewer_averages_than_descent(x64):
    """As the square root of the condition number has it, with the paper's steps."""
    problem = jaxsp.problems.quadratic(N, 4, L=1.0, mu=0.01, heterogeneity=0.3, seed=1)
    rate = 0.05
    tx = methods.proxskip_vip(rate, KEYED, np.sqrt(rate * 0.01))
    z, state = table.ends(VIRTUAL, tx, problem, 40_000)
    averages = int(jaxsp.metrics.bits_sent(state).up[0]) / (14 * 64 * 8 // 8)
    assert 700 < averages < 1100
    gap = jax.vmap(lambda z: jaxsp.metrics.distance(z, problem.z_star))(z).max()
    assert gap < 1e-12
    descent = optax.chain(jaxsp.average(AXIS), optax.sgd(rate))
    assert furthest(descent, problem, 1100) > 0.1


def test_proxskip_ends_at_the_solution_of_a_box(x64):
    def F(z, m):
        return z - (m - 2.0)  # whose mean over eight workers is z - 1.5

    tx = methods.proxskip_vip(
        0.3, KEYED, 0.3, prox=lambda z, _: projections.box(z, -1.0, 1.0)
    )

    def run(m):
        def step(carry, _):
            z, state = carry
            updates, state = tx.update(F(z, m), state, z)
            return (z + updates, state), None

        return jax.lax.scan(step, (m, tx.init(m)), length=500)[0][0]

    z = jax.jit(VIRTUAL.map(run))(jnp.arange(8.0))
    np.testing.assert_allclose(z, 1.0, atol=1e-12)


# ---------------------------------------------------------- what travels


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda a: methods.fedgda_gt(0.1, 4, a), 2),
        (lambda a: methods.proxskip_vip(0.1, jaxsp.channel(a, key=table.KEY), 0.2), 1),
    ],
    ids=["fedgda_gt", "proxskip_vip"],
)
def test_models_are_exchanged_in_branches(build, expected):
    """Two all-reduces a round, or one; nothing between two rounds."""
    workers = jaxsp.Workers(8)
    tx = build(workers.axis_name)
    params = MinMax(jnp.zeros((8, 60)), jnp.zeros((8, 40)))
    state = jax.eval_shape(workers.map(tx.init), params)
    text = jax.jit(workers.map(tx.update)).lower(params, state, params).compile()
    text = text.as_text()
    found = r"= \(?f32\[(\d+)\].* all-reduce(?:-start)?\("
    assert re.findall(found, text) == ["100"] * expected
    entry = next(c for c in text.split("\n\n") if "ENTRY" in c)
    assert re.findall(found, entry) == []


# ---------------------------------------------------------- wrong arguments


@pytest.mark.parametrize("build", [methods.fedgda_gt, methods.proxskip_vip])
def test_points_are_averaged_whole(build):
    channel = jaxsp.channel(AXIS, jaxsp.compressors.sign(), key=table.KEY)
    arguments = (0.1, 5, channel) if build is methods.fedgda_gt else (0.1, channel, 0.5)
    with pytest.raises(ValueError, match="channel must have no compressors"):
        build(*arguments)
