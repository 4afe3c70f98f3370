"""One step late: what is stable, and what may travel beside a gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import table

import jaxsp
from jaxsp import methods, topology, transforms

N = 8
WORKERS = jaxsp.Workers(N, jax.devices()[:1])
AXIS = WORKERS.axis_name


def end(tx, F, steps=4000):
    """How far from the solution 0 the parameters end, from a point of ones."""

    @jax.jit
    @WORKERS.map
    def run(z):
        def step(carry, _):
            z, state = carry
            updates, state = tx.update(F(z), state, z, operator_fn=F)
            return (optax.apply_updates(z, updates), state), None

        return jax.lax.scan(step, (z, tx.init(z)), length=steps)[0][0]

    z = run(WORKERS.replicate(jnp.ones(2)))
    return float(jnp.linalg.norm(z[0]))


def turned(degrees):
    """L a z with L = 1 and a of this angle: 0 is strongly monotone, 90 a rotation."""
    x, y = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix = jnp.array([[x, -y], [y, x]])
    return lambda z: matrix @ z


# The largest stable steps, as the docstring has them.
DESCENT = {0: 1.0, 60: 0.346}
OPTIMISTIC = {0: 0.618, 60: 0.478}
LOOKING_TWO_STEPS = {0: 0.391, 60: 0.364, 90: 0.28}
LIMITS = {"descent": DESCENT, "one": OPTIMISTIC, "two": LOOKING_TWO_STEPS}


@pytest.mark.parametrize(
    ("kind", "degrees"), [(kind, a) for kind, of in LIMITS.items() for a in of]
)
def test_the_largest_stable_step(x64, kind, degrees):
    def tx(rate):
        if kind == "descent":
            parts = transforms.delay(), jaxsp.average(AXIS), optax.sgd(rate)
            return optax.chain(*parts)
        return table.delayed(rate, jaxsp.average(AXIS), 1.0 if kind == "one" else 2.0)

    limit, F = LIMITS[kind][degrees], turned(degrees)
    assert end(tx(0.98 * limit), F) < 1e-3
    assert not end(tx(1.02 * limit), F) < 1e3


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_on_rotations_a_delayed_gradient_needs_two_steps_of_look_ahead(x64, rate):
    F, average = turned(90), jaxsp.average(AXIS)
    assert end(transforms.past_extragradient(rate), F) < 0.01
    assert not end(table.delayed(rate, average, 1.0), F) < 100
    assert end(table.delayed(rate, average, 2.0), F) < 0.01


def test_inside_extragradient_a_delay_makes_descent_of_it(x64):
    F, average = turned(90), jaxsp.average(AXIS)
    inner = average, optax.sgd(0.1)
    assert end(jaxsp.extragradient(optax.chain(*inner)), F) < 1e-3
    late = jaxsp.extragradient(optax.chain(transforms.delay(), *inner))
    assert not end(late, F) < 100


SIGN = jaxsp.channel(AXIS, jaxsp.compressors.sign(), key=table.KEY)
RING = topology.ring(N)
BESIDE = {
    "dposg": methods.dposg(0.1, RING, axis_name=AXIS, order="combine_then_adapt"),
    "dp_oadam": methods.dp_oadam(0.1, RING, axis_name=AXIS),
    "delayed": table.delayed(0.1, jaxsp.average(AXIS)),
    "delayed, compressed": table.delayed(0.1, jaxsp.error_feedback_average(SIGN)),
}
AFTER = {
    "dposg": methods.dposg(0.1, RING, axis_name=AXIS),
    "cp_oadam": methods.cp_oadam(0.1, AXIS),
    "dqgan": methods.dqgan(0.1, SIGN),
}


def moves_of_others(tx):
    """How the first worker's gradient changes the others' updates of that step."""
    z = jnp.asarray(np.random.default_rng(0).normal(size=(N, 5)), jnp.float32)
    state = WORKERS.map(tx.init)(z)
    update = jax.jit(WORKERS.map(tx.update))
    for _ in range(3):
        updates, state = update(jnp.sin(z), state, z)
        z = z + updates
    one, _ = update(jnp.sin(z), state, z)
    other, _ = update(jnp.sin(z).at[0].add(1.0), state, z)
    return float(jnp.abs(one - other)[1:].max())


@pytest.mark.parametrize("name", BESIDE)
def test_what_travels_does_not_wait_for_the_gradient(name):
    assert moves_of_others(BESIDE[name]) == 0


@pytest.mark.parametrize("name", AFTER)
def test_and_elsewhere_it_does(name):
    assert moves_of_others(AFTER[name]) > 1e-3
