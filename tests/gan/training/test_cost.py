"""Costs: what the table says of parameters, traffic, operations and memory."""

import jax
import numpy as np
import optax
import pytest

import jaxsp
from jaxsp.gan import fl_gan, losses, md_gan, models, program, step
from jaxsp.gan.training import cost

COUNT, BATCH, WIDTH, LATENT = 2, 32, 64, 8
GAN = models.mlp((2,), latent_size=LATENT, width=WIDTH, depth=1)
LOSSES = losses.non_saturating(GAN)
# Multiplications and additions of either network for one sample.
FORWARD_X = 2 * (LATENT * WIDTH + WIDTH * 2)
FORWARD_Y = 2 * (2 * WIDTH + WIDTH)


def program_of(method, devices=1, count=COUNT, **options):
    workers = jaxsp.Workers(count, jax.devices()[:devices])
    made, options = method(workers.axis_name), {"batch_size": BATCH, **options}
    if isinstance(made, md_gan.MDGan):
        return made.program(GAN, LOSSES, workers, **options)
    return step.program(GAN, LOSSES, made, workers, **options)


def cost_of(program, steps=10, rows=100, sizes=(100, 60)):
    shares = jax.ShapeDtypeStruct((program.workers.count, rows, 2), np.float32)
    return cost.cost(program, shares, sizes, steps)


def planned(method, devices=1, steps=10, rows=100, **options):
    return cost_of(program_of(method, devices, **options), steps, rows)


def descent(axis):
    """Plain steps along the mean, which cost next to nothing beside the gradients."""
    return optax.chain(jaxsp.average(axis), optax.sgd(0.1))


def md(axis):
    adam = optax.adam(1e-3, b1=0.5)
    alive = lambda step: [True, step not in (3, 4)]  # noqa: E731 (leaves, comes back)
    return md_gan.MDGan(adam, adam, swap_every=3, moments="travel", alive=alive)


@pytest.fixture(scope="module")
def local():
    return planned(descent)


def test_parameters_and_epochs_are_counted(local):
    assert local.generator == LATENT * WIDTH + WIDTH + WIDTH * 2 + 2
    assert local.discriminator == 2 * WIDTH + WIDTH + WIDTH + 1
    assert (local.workers, local.steps) == (COUNT, 10)
    assert local.steps_per_epoch == 80 / BATCH


def test_operations_are_those_of_the_networks(local):
    """A gradient is some three times what it is the gradient of."""
    # The generator once; the discriminator on generated and on real samples.
    forward = BATCH * (FORWARD_X + 2 * FORWARD_Y)
    assert 2.5 * forward < local.costs["worker"].flops < 5 * forward
    server = planned(md)
    # An MD-GAN worker does nothing for the generator, and the server nothing else:
    # it generates one batch, and again for the one backward pass.
    forward = BATCH * FORWARD_Y
    assert 5 * forward < server.costs["worker"].flops < 15 * forward
    forward = BATCH * FORWARD_X
    assert 3 * forward < server.costs["server"].flops < 6 * forward
    assert server.costs["worker"].flops < local.costs["worker"].flops


def test_a_worker_costs_the_same_in_a_block(local):
    virtual, blocks = (
        cost_of(program_of(descent, devices, 4), sizes=(100,) * 4).costs["worker"]
        for devices in (1, 2)
    )
    assert 0.9 < blocks.flops / virtual.flops < 1.1
    assert 0.7 < blocks.memory / virtual.memory < 1.4


def test_memory_has_parameters_and_data(local):
    numbers = local.generator + local.discriminator
    least = 4 * (2 * numbers + 100 * 2)  # parameters, their average, data
    assert least < local.costs["worker"].memory < 10 * least
    more = planned(descent, rows=100_100).costs["worker"]
    assert more.memory - local.costs["worker"].memory == 100_000 * 2 * 4
    assert more.flops == local.costs["worker"].flops


def test_a_worker_with_a_device_costs_what_a_virtual_one_does(local):
    real = planned(descent, devices=2)
    assert real.traffic == local.traffic
    for field in cost.StepCost._fields:
        one, other = (getattr(p.costs["worker"], field) for p in (real, local))
        assert one == pytest.approx(other, rel=0.3)


@pytest.fixture
def not_compiled(monkeypatch):
    """Leaves out what the compiler is asked, where only traffic matters."""
    monkeypatch.setattr(cost, "_step_cost", lambda role: None)


def test_a_cost_does_not_depend_on_steps_in_a_call(local):
    assert planned(descent, steps_per_call=7) == local


@pytest.mark.parametrize("method", [descent, md, None])
def test_traffic_is_what_the_counters_say(method, not_compiled):
    """More rounds than one, a worker that leaves and comes back."""
    steps = 8

    def rounds(axis):
        adam, key = optax.adam(1e-3), jax.random.key(0)
        return fl_gan.fl_gan(
            adam, adam, 3, weights=[1, 2], participants=1, key=key, axis_name=axis
        )

    method = method or rounds
    found = planned(method, steps=steps)
    running = program_of(method)
    state = running.init(jax.random.key(1))
    shares, sizes = np.zeros((COUNT, 100, 2), np.float32), np.array([100, 60], np.int32)
    for _ in range(steps):
        state, _ = running.step(state, shares, sizes, jax.random.key(2), 1)
    assert found.traffic["worker"] == running.bits(state)
    if "server" in found.traffic:  # what it sends, workers receive
        size = md_gan.messages(GAN, BATCH)
        both = 2 * steps - 2  # two steps were done without the second worker
        assert found.traffic["server"] == (both * size.down, both * size.up)


def test_random_times_are_told_without_training(not_compiled):
    compressor, steps = jaxsp.compressors.rand_k(0.1), 4_000

    def masha(axis):
        key = jax.random.key(3)
        return jaxsp.methods.masha1(1e-3, jaxsp.channel(axis, compressor, key=key), 0.3)

    found = planned(masha, steps=steps)
    numbers = found.generator + found.discriminator
    vector = jax.ShapeDtypeStruct((numbers,), np.float32)
    message = compressor.bits(vector)  # to the only other worker
    refreshed = (found.traffic["worker"].sent - steps * message) / (32 * numbers)
    assert refreshed == int(refreshed)
    assert refreshed / steps == pytest.approx(0.3, abs=0.03)


def test_the_table_can_be_read(local):
    server = cost.Cost(
        generator=1_234,
        discriminator=56,
        workers=2,
        steps=40,
        steps_per_epoch=2.5,
        traffic={
            "worker": program.Traffic(8_000 * 40, 16_000_000 * 40),
            "server": program.Traffic(0, 80),
        },
        costs={
            "worker": cost.StepCost(2.5e9, 999),
            "server": cost.StepCost(None, 1_000_000),
        },
    )
    assert cost.format(server).splitlines() == [
        "generator            1,234 parameters",
        "discriminator        56 parameters",
        "workers              2",
        "an epoch             2.5 steps",
        "the run              40 steps, 16 epochs",
        "                          worker   server",
        "operations a step      2.5 GFLOP  unknown",
        "memory                     999 B     1 MB",
        "sent a step                 1 kB      0 B",
        "sent an epoch             2.5 kB      0 B",
        "sent in the run            40 kB      0 B",
        "sent in bits             320,000        0",
        "received a step             2 MB   0.25 B",
        "received an epoch           5 MB  0.625 B",
        "received in the run        80 MB     10 B",
        "received in bits     640,000,000       80",
    ]


def test_what_travels_nowhere_is_said_so():
    alone = cost.Cost(1, 1, 1, 1, 1.0, {}, {"worker": cost.StepCost(1.0, 1)})
    assert cost.format(alone).splitlines()[-1].split() == [
        "sent,",
        "received",
        "nothing",
    ]
