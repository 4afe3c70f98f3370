"""What discriminators say of real and of generated samples."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import jaxsp
from jaxsp.gan import losses, md_gan, models, step
from jaxsp.operators import MinMax

COUNT = 4
WORKERS = jaxsp.Workers(COUNT, jax.devices()[:1])
# Worker m holds samples (m, m), and rows that are none of its.
SHARES = np.full((COUNT, 20, 2), 99.0, np.float32)
SHARES[:, :10] = np.arange(COUNT)[:, None, None]
SIZES = np.full(COUNT, 10, np.int32)


class Constant(nn.Module):
    """Samples that are all alike."""

    @nn.compact
    def __call__(self, latents):
        value = self.param("value", nn.initializers.constant(2.0), ())
        return jnp.full((len(latents), 2), 1.0) * value


class Scaled(nn.Module):
    """The first entry of a sample, times a parameter."""

    @nn.compact
    def __call__(self, samples):
        return samples[:, 0] * self.param("scale", nn.initializers.ones, ())


GAN = models.Gan(Constant(), Scaled(), 3, (2,))


@pytest.mark.parametrize("game", ["non_saturating", "hinge", "wasserstein"])
def test_every_worker_judges_its_own_data_and_its_generator(game):
    program = step.program(
        GAN, getattr(losses, game)(GAN), optax.sgd(0.1), WORKERS, batch_size=2
    )
    state = program.init(jax.random.key(0))
    x, y = np.array([2.0, 3.0, -1.0, 0.0]), np.array([1.0, -1.0, 0.5, 2.0])
    params = MinMax({"value": jnp.asarray(x)}, {"scale": jnp.asarray(y)})
    state = state._replace(params=params)
    assert program.judge is not None
    said = program.judge(state, SHARES, SIZES, jax.random.key(1))
    logits = np.arange(COUNT) * y, x * y
    assert program.probabilities == (game == "non_saturating")
    if program.probabilities:
        logits = (1 / (1 + np.exp(-d)) for d in logits)
    assert said == pytest.approx([np.mean(d) for d in logits], rel=1e-6)


def test_under_md_gan_the_living_judge_the_servers_generator():
    sgd = optax.sgd(0.1)
    method = md_gan.MDGan(sgd, sgd, alive=lambda step: [True, False, True, True])
    program = method.program(GAN, losses.hinge(GAN), WORKERS, batch_size=2)
    state = program.init(jax.random.key(0))
    key = jax.random.key(1)
    assert program.judge is not None
    assert program.judge(state, SHARES, SIZES, key) == pytest.approx([1.5, 2.0])
    state, _ = program.step(state, SHARES, SIZES, key, 1)
    x = float(state.params.x["value"])
    y = np.asarray(state.params.y["scale"])[[0, 2, 3]]
    wanted = [np.mean(np.array([0, 2, 3]) * y), np.mean(x * y)]
    assert program.judge(state, SHARES, SIZES, key) == pytest.approx(wanted, rel=1e-6)
