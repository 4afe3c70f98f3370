"""The numbers of `docs/which-method.md` are those of the methods."""

import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxsp
from jaxsp import compressors, methods, theory, topology, transforms
from jaxsp.gan import fl_gan
from jaxsp.gan.train.methods import METHODS

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "which-method.md"
WORKERS, SIZE, EVERY = 8, 12_800, 10
KEY = jax.random.key(0)
RING = topology.ring(WORKERS)
DUAL = transforms.AcceleratedDualSteps(
    *theory.optimal_time_varying(1.0, 0.5, RING.chi)[1:]
)


def four_bits(axis):
    codec = compressors.quantize(4)
    return jaxsp.channel(axis, codec, codec, key=KEY)


def scaled_bits(axis):
    codec = compressors.contractive(compressors.quantize(4))
    return jaxsp.channel(axis, codec, codec, key=KEY)


def hundredth(axis, codec=compressors.rand_k):
    return jaxsp.channel(axis, codec(0.01), key=KEY)


def permuted(axis):
    return jaxsp.channel(axis, compressors.perm_k(), key=KEY)


def largest(axis):
    return hundredth(axis, compressors.top_k)


# As the page says above its table: `build(axis, refresh)`.
BUILD = {
    "cp_oadam": lambda a, p: methods.cp_oadam(0.1, a),
    "extra_step": lambda a, p: methods.extra_step(0.1, a),
    "dposg": lambda a, p: methods.dposg(0.1, RING, axis_name=a),
    "dp_oadam": lambda a, p: methods.dp_oadam(0.1, RING, axis_name=a),
    "rand_dp_oadam": lambda a, p: methods.rand_dp_oadam(
        0.1, topology.random_ring(WORKERS, pool=3), key=KEY, axis_name=a
    ),
    "qoda": lambda a, p: methods.qoda(1.0, four_bits(a)),
    "fedgda_gt": lambda a, p: methods.fedgda_gt(0.1, EVERY, a),
    "proxskip_vip": lambda a, p: methods.proxskip_vip(
        0.1, jaxsp.channel(a, key=KEY), p
    ),
    "tracked_extragradient": lambda a, p: methods.tracked_extragradient(
        0.1, RING, axis_name=a
    ),
    "tracked_optimistic": lambda a, p: methods.tracked_optimistic(
        0.1, RING, axis_name=a
    ),
    "tracked_dp_oadam": lambda a, p: methods.tracked_dp_oadam(0.1, RING, axis_name=a),
    "decentralized_extra_step": lambda a, p: methods.decentralized_extra_step(
        0.1, RING, 4, axis_name=a
    ),
    "extra_step_local_sgd": lambda a, p: methods.extra_step_local_sgd(0.1, EVERY, a),
    "local_extra_adam": lambda a, p: methods.local_extra_adam(0.1, EVERY, a),
    "pearl_sgd": lambda a, p: methods.pearl_sgd(0.1, EVERY, a),
    "fl_gan": lambda a, p: fl_gan.fl_gan(
        optax.adam(0.1), optax.adam(0.1), EVERY, axis_name=a
    ),
    "dqgan": lambda a, p: methods.dqgan(0.1, four_bits(a)),
    "dqgan_adam": lambda a, p: methods.dqgan_adam(0.1, four_bits(a)),
    "masha1": lambda a, p: methods.masha1(0.1, hundredth(a), p),
    "vr_masha1": lambda a, p: methods.vr_masha1(0.1, hundredth(a), p),
    "pp_masha1": lambda a, p: methods.pp_masha1(0.1, hundredth(a), 4, p),
    "masha2": lambda a, p: methods.masha2(0.1, largest(a), p),
    "vr_masha2": lambda a, p: methods.vr_masha2(0.1, largest(a), p),
    "optimistic_masha": lambda a, p: methods.optimistic_masha(0.1, permuted(a), p),
    "three_pillars": lambda a, p: methods.three_pillars(0.1, permuted(a), p, 4, 0.1),
    "optimal_decentralized": lambda a, p: methods.optimal_decentralized(
        0.1, RING, 1.0, 0.5, axis_name=a
    ),
    "optimal_time_varying": lambda a, p: methods.optimal_time_varying(
        0.1, RING, DUAL, axis_name=a
    ),
    "vr_optimal_decentralized": lambda a, p: methods.vr_optimal_decentralized(
        0.1, RING, 1.0, 0.5, transforms.Refresh(p, KEY), axis_name=a
    ),
    "compressed_extragradient": lambda a, p: methods.compressed_extragradient(
        0.1, four_bits(a)
    ),
    "error_feedback_extragradient": lambda a, p: methods.error_feedback_extragradient(
        0.1, scaled_bits(a)
    ),
    "cp_oadam_gq": lambda a, p: methods.cp_oadam_gq(0.1, four_bits(a)),
    "qsgda": lambda a, p: methods.qsgda(0.1, four_bits(a)),
    "diana_sgda": lambda a, p: methods.diana_sgda(0.1, hundredth(a)),
    "ef21_sgda": lambda a, p: methods.ef21_sgda(0.1, largest(a)),
}
REFRESH = 0.01
# What does not use the gradient that `update` is given.
UNUSED = {"masha1", "masha2", "vr_masha1", "vr_masha2", "pp_masha1"}
UNUSED |= {"three_pillars", "vr_optimal_decentralized"}


def measure(name, refresh):
    """Oracle calls of a step, bytes sent for a parameter, and memory in models."""
    workers, calls = jaxsp.Workers(WORKERS, jax.devices()[:1]), []
    tx = BUILD[name](workers.axis_name, refresh)

    def F(z):
        calls.append(z)
        return z

    def step(z, state):
        more = {"full_operator_fn": F} if name.startswith("vr_") else {}
        if name == "vr_optimal_decentralized":
            more["dual_operator_fn"] = F
        updates, state = tx.update(
            z, state, z, operator_fn=F, server_operator_fn=lambda z: z, **more
        )
        return optax.apply_updates(z, updates), state

    half = jnp.ones((WORKERS, SIZE // 2))
    z: Any = jaxsp.MinMax(half, half)
    if name == "pearl_sgd":  # a player for each worker
        z = (jnp.ones((WORKERS, SIZE // WORKERS)),) * WORKERS
    state, step = jax.jit(workers.map(tx.init))(z), jax.jit(workers.map(step))
    size = sum(x.nbytes for x in jax.tree.leaves(z))
    kept = sum(x.nbytes for x in jax.tree.leaves(state) if x.dtype == jnp.float32)
    sent = []
    for _ in range(2):  # the first steps may send more
        for _ in range(EVERY):
            z, state = step(z, state)
        sent.append(int(jaxsp.metrics.bits_sent(state).up[0]))
    return len(calls), (sent[1] - sent[0]) / EVERY / 8 / SIZE, kept / size


def numbers(name):
    """Gradients, bytes and memory as the page has them."""
    calls, travels, kept = measure(name, 1e-9)
    if "masha" in name or name == "three_pillars":
        travels += REFRESH * (measure(name, 1.0)[1] - travels)
    if name not in UNUSED:
        calls += 1
    if name == "proxskip_vip":
        travels = measure(name, 1.0)[1] / EVERY
    return calls, f"{travels:.2g}", f"{kept:.3g}"


def costs():
    """By method the cells of the table of costs."""
    rows = re.findall(
        r"^\| \{py:obj\}`(\w+) <([\w.]+)>`[^|]*\|(.*)\|$",
        PAGE.read_text(),
        re.MULTILINE,
    )
    return {name: [c.strip() for c in cells.split("|")] for name, _, cells in rows}


@pytest.mark.parametrize("name", BUILD)
def test_costs_are_those_of_the_method(name):
    gradients, travels, memory = numbers(name)
    told = costs()[name]
    assert told[2:] == [travels, memory]
    # Of a branch that is not always taken both numbers are there.
    counted = [int(n) for n in re.findall(r"\d+", told[0])]
    assert gradients in (counted[0], counted[-1], sum(counted))


def test_the_page_has_every_method():
    every = {*methods.__all__, *METHODS} - {"eval_params"}
    lines = re.findall(r"^\| (`.*?) \|", PAGE.read_text(), re.MULTILINE)
    words = {name for line in lines for name in re.findall(r"`(\w+)`", line)}
    assert {*BUILD} == {*costs()} == every - {"md_gan", "standalone"}
    assert words >= every
