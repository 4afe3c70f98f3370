"""PowerSGD's warm start: the last payload is where the next power iteration begins."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxsp
from jaxsp import compressors


def left_out(workers, steps):
    """What a rank-2 payload of the same matrix leaves out, step by step."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(40, 40)))[0]
    matrix = (basis * 0.8 ** np.arange(40)) @ basis.T
    u = jnp.asarray(np.stack([matrix] * 2), jnp.float32)
    rank_2, key = compressors.low_rank(2), jax.random.key(0)
    tx = jaxsp.error_feedback_average(jaxsp.channel(workers.axis_name, rank_2, key=key))
    state = jax.jit(workers.map(tx.init))(u)
    update = jax.jit(workers.map(tx.update))
    out = []
    for _ in range(steps):
        fresh = state._replace(residual=jnp.zeros_like(u))  # the matrix, each time
        mean, state = jax.block_until_ready(update(u, fresh))
        out.append(float(jnp.linalg.norm(mean[0] - u[0]) / jnp.linalg.norm(u[0])))
    return (
        np.array(out),
        np.linalg.norm(0.8 ** np.arange(2, 40)) / np.linalg.norm(0.8 ** np.arange(40)),
        state,
    )


def test_error_feedback_starts_from_the_last_payload():
    for devices in (1, 2):
        workers = jaxsp.Workers(2, devices=jax.devices()[:devices])
        errors, best, state = left_out(workers, 12)
        assert errors[0] > 1.05 * best  # one power iteration from a random start
        assert errors[-1] < 1.01 * best  # as good as the singular vectors
        bits = jaxsp.metrics.bits_sent(state)
        assert int(bits.up[0]) == 12 * 2 * 80 * 32  # two factors of 40 x 2


def test_the_route_that_was_asked_for_is_kept():
    """Blocks of a vector have no payload of the whole to start from."""
    rank_2, key = compressors.low_rank(2), jax.random.key(0)
    tx = jaxsp.error_feedback_average(
        jaxsp.channel("workers", rank_2, key=key, route="sharded")
    )
    assert tx.init(jnp.zeros((40, 40))).previous == ()


def test_a_model_without_leaves_keeps_its_state():
    """A partition whose label nobody has leaves nothing to send."""
    workers = jaxsp.Workers(2, devices=jax.devices()[:1])
    rank_2, key = compressors.low_rank(2), jax.random.key(0)
    tx = jaxsp.error_feedback_average(jaxsp.channel(workers.axis_name, rank_2, key=key))
    state = tx.init({})
    _, after = jax.eval_shape(
        workers.map(lambda _: tx.update({}, state, {})), jnp.zeros(2)
    )
    assert jax.tree.structure(after) == jax.tree.structure(state)
