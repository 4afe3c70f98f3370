"""The steps that are compiled for accelerators, and what they count as sent."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxsp
from jaxsp import compressors, methods, theory, topology, transforms
from jaxsp.gan import losses, md_gan, models
from jaxsp.gan import step as gan_step

__all__ = ["GANS", "METHODS", "counted", "lower", "trainer"]

_RATE, _REFRESH, _EVERY = 0.01, 0.5, 2  # coins and local steps: both kinds in few steps
_DUAL = transforms.AcceleratedDualSteps(
    *theory.optimal_time_varying(1.0, 0.5, chi=1.0)[1:]
)
_COUNTED = 16  # steps in which the bits are counted


def _key():
    return jax.random.key(0)


def _on(axis, up, down=None):
    return jaxsp.channel(axis, up, down, key=_key())


def _four_bits():
    return compressors.scaled(compressors.quantize(4))


# Each makes a method of the number of workers and of their axis.
METHODS: dict[str, Callable[[int, Any], Any]] = {
    "extra_step": lambda n, a: methods.extra_step(_RATE, a),
    "decentralized_extra_step, Chebyshev 4": lambda n, a: (
        methods.decentralized_extra_step(_RATE, topology.ring(n), 4, axis_name=a)
    ),
    "extra_step_local_sgd, 4 bits": lambda n, a: methods.extra_step_local_sgd(
        _RATE, _EVERY, _on(a, _four_bits())
    ),
    "local_extra_adam": lambda n, a: methods.local_extra_adam(_RATE, _EVERY, a),
    "dposg, ring": lambda n, a: methods.dposg(_RATE, topology.ring(n), axis_name=a),
    "dposg, ring, combine first": lambda n, a: methods.dposg(
        _RATE, topology.ring(n), order="combine_then_adapt", axis_name=a
    ),
    "cp_oadam": lambda n, a: methods.cp_oadam(_RATE, a),
    "dp_oadam, ring": lambda n, a: methods.dp_oadam(
        _RATE, topology.ring(n), axis_name=a
    ),
    "dp_oadam, one-peer": lambda n, a: methods.dp_oadam(
        _RATE, topology.one_peer_exponential(n), axis_name=a
    ),
    "rand_dp_oadam": lambda n, a: methods.rand_dp_oadam(
        _RATE, topology.random_ring(n, pool=3), key=_key(), axis_name=a
    ),
    "qoda, 4 bits": lambda n, a: methods.qoda(1.0, _on(a, compressors.quantize(4))),
    "fedgda_gt": lambda n, a: methods.fedgda_gt(_RATE, _EVERY, a),
    "proxskip_vip": lambda n, a: methods.proxskip_vip(
        _RATE, jaxsp.channel(a, key=_key()), 1 / _EVERY
    ),
    "tracked_extragradient, ring": lambda n, a: methods.tracked_extragradient(
        _RATE, topology.ring(n), axis_name=a
    ),
    "tracked_optimistic, ring": lambda n, a: methods.tracked_optimistic(
        _RATE, topology.ring(n), axis_name=a
    ),
    "tracked_dp_oadam, ring": lambda n, a: methods.tracked_dp_oadam(
        _RATE, topology.ring(n), axis_name=a
    ),
    "compressed_gossip, sign": lambda n, a: optax.chain(
        optax.sgd(_RATE),
        transforms.compressed_gossip(
            topology.ring(n), compressors.sign(), 0.3, key=_key(), axis_name=a
        ),
    ),
    "dqgan, 4 bits both ways": lambda n, a: methods.dqgan(
        _RATE, _on(a, _four_bits(), _four_bits())
    ),
    "dqgan, sign": lambda n, a: methods.dqgan(_RATE, _on(a, compressors.sign())),
    "dqgan, top-k 1 %": lambda n, a: methods.dqgan(
        _RATE, _on(a, compressors.top_k(0.01))
    ),
    "dqgan delayed, 4 bits": lambda n, a: optax.chain(
        transforms.delay(),
        transforms.error_feedback_average(_on(a, _four_bits())),
        transforms.past_extragradient(_RATE, look_ahead=2.0),
    ),
    "dqgan_adam, 4 bits": lambda n, a: methods.dqgan_adam(_RATE, _on(a, _four_bits())),
    "cp_oadam_gq, ternary": lambda n, a: methods.cp_oadam_gq(
        _RATE, _on(a, compressors.ternary())
    ),
    "masha1, rand-k 1 %": lambda n, a: methods.masha1(
        _RATE, _on(a, compressors.rand_k(0.01)), _REFRESH
    ),
    "masha1, perm_k": lambda n, a: methods.masha1(
        _RATE, _on(a, compressors.perm_k()), _REFRESH
    ),
    "masha2, low rank 2": lambda n, a: methods.masha2(
        _RATE, _on(a, compressors.low_rank(2)), _REFRESH
    ),
    "vr_masha1, natural": lambda n, a: methods.vr_masha1(
        _RATE, _on(a, compressors.natural()), _REFRESH
    ),
    "vr_masha2, sign": lambda n, a: methods.vr_masha2(
        _RATE, _on(a, compressors.sign()), _REFRESH
    ),
    "pp_masha1, rand-k 1 %": lambda n, a: methods.pp_masha1(
        _RATE, _on(a, compressors.rand_k(0.01)), n // 2, _REFRESH
    ),
    "optimistic_masha, perm_k": lambda n, a: methods.optimistic_masha(
        _RATE, _on(a, compressors.perm_k()), _REFRESH
    ),
    "three_pillars, perm_k": lambda n, a: methods.three_pillars(
        _RATE, _on(a, compressors.perm_k()), _REFRESH, 4, _RATE
    ),
    "optimal_decentralized, ring": lambda n, a: methods.optimal_decentralized(
        _RATE, topology.ring(n), 1.0, 0.5, axis_name=a
    ),
    "optimal_time_varying, one-peer": lambda n, a: methods.optimal_time_varying(
        _RATE, topology.one_peer_exponential(n), _DUAL, 3, axis_name=a
    ),
    "vr_optimal_decentralized, ring": lambda n, a: methods.vr_optimal_decentralized(
        _RATE,
        topology.ring(n),
        1.0,
        0.5,
        transforms.Refresh(_REFRESH, _key()),
        axis_name=a,
    ),
    "pearl_sgd": lambda n, a: methods.pearl_sgd(_RATE, _EVERY, a),
    "compressed_extragradient, 8 bits": lambda n, a: methods.compressed_extragradient(
        _RATE, _on(a, compressors.quantize(8))
    ),
    "error_feedback_extragradient, sign": lambda n, a: (
        methods.error_feedback_extragradient(_RATE, _on(a, compressors.sign()))
    ),
    "qsgda, 8 bits": lambda n, a: methods.qsgda(_RATE, _on(a, compressors.quantize(8))),
    "diana_sgda, dithering 7": lambda n, a: methods.diana_sgda(
        _RATE, _on(a, compressors.dithering(7))
    ),
    "ef21_sgda, top-k 1 %": lambda n, a: methods.ef21_sgda(
        _RATE, _on(a, compressors.top_k(0.01))
    ),
}
# Networks, and the method that trains them; None is MD-GAN.
GANS: dict[str, tuple[Callable[[], models.Gan], str | None]] = {
    "gan: MLP 8, dp_oadam": (lambda: models.mlp((8, 8, 1)), "dp_oadam, ring"),
    "gan: DCGAN 28, dp_oadam": (lambda: models.dcgan((28, 28, 1)), "dp_oadam, ring"),
    "gan: DCGAN 28, dposg combine first": (
        lambda: models.dcgan((28, 28, 1)),
        "dposg, ring, combine first",
    ),
    "gan: DCGAN 28, dqgan delayed 4 bits": (
        lambda: models.dcgan((28, 28, 1)),
        "dqgan delayed, 4 bits",
    ),
    "gan: DCGAN 28, cp_oadam": (lambda: models.dcgan((28, 28, 1)), "cp_oadam"),
    "gan: DCGAN 32, dqgan_adam 4 bits": (
        lambda: models.dcgan((32, 32, 3)),
        "dqgan_adam, 4 bits",
    ),
    "gan: ResNet bfloat16, dp_oadam": (
        lambda: models.resnet((32, 32, 3), dtype=jnp.bfloat16),
        "dp_oadam, ring",
    ),
    "gan: DCGAN 28, MD-GAN": (lambda: models.dcgan((28, 28, 1)), None),
}
_ROWS, _BATCH, _CALL = 512, 16, 32  # of the trainer: a worker's data, batch, steps


def lower(name: str, devices: list[Any], workers: int, size: int) -> jax.stages.Lowered:
    """A method's step of all workers, for devices that may not be here.

    Args:
      name: of `METHODS`.
      devices: of `compilers.devices`.
      workers: how many; a multiple of the devices.
      size: how many numbers the parameters are.

    Returns:
      What compiles.
    """
    mapped = jaxsp.Workers(workers, devices)
    step, arguments = _step(name, mapped, size)
    return jax.jit(mapped.map(step), donate_argnums=(1, 2)).lower(*arguments)


def _step(name, workers, size):
    """One worker's step, and the shapes of all workers' gradient, state, parameters."""
    tx = METHODS[name](workers.count, workers.axis_name)

    def step(g, state, z):
        def field(point):
            return jax.tree.map(lambda x, y: 0.5 * x + y, point, g)

        updates, state = tx.update(
            g,
            state,
            z,
            operator_fn=field,
            full_operator_fn=field,
            dual_operator_fn=field,
            server_operator_fn=lambda point: 0.4 * point,
        )
        return optax.apply_updates(z, updates), state

    z: Any = jax.ShapeDtypeStruct((workers.count, size), np.float32)
    if name == "pearl_sgd":  # a player for each worker
        part = jax.ShapeDtypeStruct((workers.count, size // workers.count), np.float32)
        z = (part,) * workers.count
    return step, (z, jax.eval_shape(workers.map(tx.init), z), z)


def counted(name: str, workers: int, size: int) -> tuple[int, int]:
    """The bytes that a worker counts as sent in a step, at least and at most.

    Steps are gone through on virtual workers with everything left out that is no
    counter and no draw.
    """
    virtual = _virtual(workers)
    step, (g, state, z) = _step(name, virtual, size)
    mapped = virtual.map(step)

    def zeros(shape):
        return jnp.zeros(shape.shape, shape.dtype)

    def counters(tree):
        return jax.tree.map(
            lambda x: None if jnp.issubdtype(x.dtype, jnp.inexact) else x, tree
        )

    def body(held, _):
        full = jax.tree.map(
            lambda shape, x: zeros(shape) if x is None else x, state, held
        )
        nothing = jax.tree.map(zeros, (g, z))
        held = counters(mapped(nothing[0], full, nothing[1])[1])
        return held, held

    start = counters(jax.tree.map(zeros, state))
    run = jax.jit(lambda held: jax.lax.scan(body, held, length=_COUNTED)[1])
    every = jaxsp.metrics.bits_sent(run(start)).up.mean(axis=-1) / 8
    each = np.diff(every, prepend=0)
    return round(each.min()), round(each.max())


def trainer(name: str, devices: list[Any]) -> dict[str, tuple[Any, int | None]]:
    """The programs of the trainer's step by role, one worker a device.

    Args:
      name: of `GANS`.
      devices: as of `lower`.

    Returns:
      What compiles, and the bytes that a worker counts as sent. The roles of MD-GAN
      have no collectives, as what they say to each other goes from one program to the
      other: each is compiled for one device.
    """
    networks, method = GANS[name]
    gan, count = networks(), len(devices)
    loss, virtual = losses.non_saturating(gan), _virtual(count)
    if method is None:
        return _roles(gan, loss, devices[0], count)
    workers = jaxsp.Workers(count, devices)
    tx, like = (METHODS[method](count, w.axis_name) for w in (workers, virtual))
    step = gan_step.make_step(
        loss, tx, workers, batch_size=_BATCH, steps_per_call=_CALL
    )
    state = jax.eval_shape(lambda k: gan_step.init_state(gan, like, virtual, k), _key())
    twin = gan_step.program(gan, loss, like, virtual, batch_size=_BATCH)
    sent = twin.traffic(1)["worker"].sent // 8
    return {"worker": (step.lower(state, *_data(gan, count), _key(), _CALL), sent)}


def _roles(gan, loss, device, count):
    """Server and worker of MD-GAN, each on a device of its own."""
    adam = optax.adam(_RATE, b1=0.5)
    found = {}
    for role, n in (("worker", 1), ("server", count)):
        virtual = _virtual(n)
        method = md_gan.MDGan(
            adam,
            adam,
            batches_k=min(n, math.ceil(math.log2(count))),
            server_device=virtual.devices[0],
        )
        program = method.program(gan, loss, virtual, batch_size=_BATCH)
        with jax.default_device(device):  # where what has no place of its own goes
            parts = program.roles(*_data(gan, n))[role].parts
        found |= {f"{role}, {i}" if i else role: (p, 0) for i, p in enumerate(parts)}
    return found


def _virtual(count):
    return jaxsp.Workers(count, jax.devices("cpu")[:1])


def _data(gan, count):
    """Shapes of all workers' data."""
    shares = jax.ShapeDtypeStruct((count, _ROWS, *gan.sample_shape), np.uint8)
    return shares, jax.ShapeDtypeStruct((count,), np.int32)
