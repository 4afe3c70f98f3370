"""What must converge and what must diverge, on games where a wrong method shows."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference_compressed as loops

import jaxsp
from jaxsp import compressors, methods, theory

M, D, RATIO = 5, 20, 0.01
KEY = jax.random.key(0)
WORKERS = jaxsp.Workers(M, devices=jax.devices()[:1])
_, Z_STAR, A = loops.near_bilinear(M, D, RATIO, 0)
B = loops.near_bilinear(M, D, RATIO, 0)[0](np.zeros(D))  # F_m(0)
START = Z_STAR + np.random.default_rng(9).standard_normal(D)


def gather(up, down=None, key=KEY):
    """A channel on which every payload goes to everyone."""
    return jaxsp.channel(WORKERS.axis_name, up, down, key=key, route="gather")


def errors(tx, steps, matrices=A, offsets=B, start=START, solution=Z_STAR):
    """Relative distance to the solution after every iteration."""

    def one_worker(A, b):
        def F(z):
            return A @ z + b

        def step(carry, _):
            z, state = carry
            updates, state = tx.update(F(z), state, z, operator_fn=F)
            z = optax.apply_updates(z, updates)
            return (z, state), jnp.linalg.norm(z - solution)

        z = jnp.asarray(start)
        return jax.lax.scan(step, (z, tx.init(z)), length=steps)[1]

    out = jax.jit(WORKERS.map(one_worker))(jnp.asarray(matrices), jnp.asarray(offsets))
    return np.asarray(out)[0] / np.linalg.norm(start - solution)


# The game is within a hundredth of bilinear, with L_m = 1.
MASHA1 = {
    "rand_k": (lambda: compressors.rand_k(0.1), None, 10.0, 1.0, 0.1),
    "perm_k": (compressors.perm_k, None, 1.0, 1.0, 0.2),
    "natural": (compressors.natural, None, 9 / 8, 1.0, 9 / 32),
    "dithering": (
        lambda: compressors.dithering(4),
        None,
        compressors.dithering(4).q(D),
        1.0,
        0.15,
    ),
    "both_ways": (
        lambda: compressors.rand_k(0.1),
        compressors.natural,
        10.0,
        9 / 8,
        0.1,
    ),
}


@pytest.mark.parametrize("name", MASHA1)
def test_masha1_is_linear_at_the_theory_step(x64, name):
    up, down, q, q_server, refresh = MASHA1[name]
    step = theory.masha1(1.0, RATIO, q, q_server, workers=M, refresh=refresh)
    channel = gather(up(), down and down())
    tx = methods.masha1(step.learning_rate, channel, step.refresh)
    assert errors(tx, 7000)[-1] < 1e-11


@pytest.mark.parametrize("two_way", [False, True])
@pytest.mark.parametrize(
    ("codec", "rate"), [("top_k", 0.1265), ("sign", 0.128)], ids=["top_k", "sign"]
)
def test_masha2_is_linear(x64, codec, rate, two_way):
    codec = {"top_k": lambda: compressors.top_k(0.1), "sign": compressors.sign}[codec]()
    if two_way:
        rate *= 0.4 if "top" in codec.name else 1.0
    down = codec if two_way else None
    tx = methods.masha2(rate, gather(codec, down), 0.1)
    assert errors(tx, 30_000 if two_way else 7000)[-1] < 1e-11


def test_masha2_without_feedback_or_without_the_snapshot_diverges(x64):
    """The same game, step and compressor with which the right method converges."""
    top, rate = compressors.top_k(0.1), 0.1265
    without_feedback = jaxsp.transforms.snapshot_extragradient(
        rate,
        optax.chain(optax.scale(rate), jaxsp.average(gather(top))),
        jaxsp.transforms.Refresh(0.1, KEY),
        WORKERS.axis_name,
    )
    assert not errors(without_feedback, 7000)[-1] < 1e6
    reference = loops.masha2(
        START,
        lambda z: np.einsum("mij,j->mi", A, z) + B,
        loops.top_k(2),
        np.random.default_rng(3).random(3000) < 0.1,
        rate,
        0.1,
        blend=False,
    )[0]
    assert not np.linalg.norm(reference[-1] - Z_STAR) < 1e6


def test_compressing_operators_and_not_differences_stalls(x64):
    tx = methods.compressed_extragradient(0.1, gather(compressors.natural()))
    assert errors(tx, 7000)[-2000:].min() > 1e-2


@pytest.mark.parametrize("snapshot", ["previous", "current"])
def test_contraction_is_never_slower_than_guaranteed(x64, snapshot):
    """E V⁺ ≤ (1 − γμ/2) V, V = τ|z−z*|² + |w−z*|², as a mean over 400 draws."""
    mu, q = 0.1, 4.0
    F, solution, matrices = loops.near_bilinear(M, D, mu, 1)
    offsets = F(np.zeros(D))
    step = theory.masha1(1.0, mu, q, workers=M, refresh=0.25)
    start = solution + np.random.default_rng(1).standard_normal(D)
    rate, steps = step.learning_rate, 30

    def potential(key):
        channel = gather(compressors.rand_k(1 / q), key=key)
        tx = methods.masha1(rate, channel, step.refresh, snapshot=snapshot)

        def one_worker(A, b):
            def F(z):
                return A @ z + b

            def one_step(carry, _):
                z, state = carry
                updates, state = tx.update(F(z), state, z, operator_fn=F)
                z = optax.apply_updates(z, updates)
                w = state.snapshot
                if snapshot == "current":
                    w = jnp.where(state.stale, z, w)
                V = (1 - step.refresh) * jnp.sum((z - solution) ** 2)
                return (z, state), V + jnp.sum((w - solution) ** 2)

            z = jnp.asarray(start)
            return jax.lax.scan(one_step, (z, tx.init(z)), length=steps)[1]

        return WORKERS.map(one_worker)(jnp.asarray(matrices), jnp.asarray(offsets))[0]

    keys = jax.random.split(jax.random.key(2), 400)
    V = np.asarray(jax.jit(jax.vmap(potential))(keys)).mean(0)
    first = (2 - step.refresh) * np.sum((start - solution) ** 2)
    ratios = V / np.concatenate([[first], V[:-1]])
    guaranteed = 1 - rate * mu / 2
    assert guaranteed == pytest.approx(step.contraction)
    assert ratios.max() < guaranteed + 0.01  # the draws' own noise
    assert V[-1] < first * guaranteed**steps


def test_diana_and_ef21_reach_what_qsgda_does_not(x64):
    mu = 0.1
    F, solution, matrices = loops.near_bilinear(M, D, mu, 1)
    offsets, start = F(np.zeros(D)), np.zeros(D)

    def end(tx):
        path = errors(tx, 4000, matrices, offsets, start, solution)
        return path[-500:].max()

    natural = compressors.natural()
    assert end(methods.diana_sgda(0.03, gather(natural))) < 1e-3
    contraction = compressors.scaled(natural)
    assert end(methods.ef21_sgda(0.03, gather(contraction))) < 1e-3
    assert end(methods.qsgda(0.03, gather(natural))) > 1e-2


def test_noise_of_dqgan_falls_with_the_number_of_workers(x64):
    """The mean square distance is proportional to 1/M, from 1 to 16 workers."""

    def floor(count):
        workers = jaxsp.Workers(count, devices=jax.devices()[:1])
        top = compressors.top_k(0.3)
        tx = methods.dqgan(0.05, jaxsp.channel(workers.axis_name, top, key=KEY))
        H = jnp.array([[0.3, 1.0], [-1.0, 0.3]])
        H = jnp.kron(jnp.eye(5), H)

        def one_worker(key):
            def step(carry, key):
                z, state = carry
                noise = jax.random.normal(key, (10,))
                updates, state = tx.update(H @ z + noise, state, z)
                z = optax.apply_updates(z, updates)
                w = methods.eval_params(state, z)
                return (z, state), jnp.sum(w**2)

            z = jnp.zeros(10)
            keys = jax.random.split(key, 4000)
            return jax.lax.scan(step, (z, tx.init(z)), keys)[1]

        keys = jax.random.split(jax.random.key(1), count)
        return float(np.asarray(jax.jit(workers.map(one_worker))(keys))[0, 500:].mean())

    assert 8 < floor(1) / floor(16) < 32
