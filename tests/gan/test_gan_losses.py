import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxsp.gan import losses, models
from jaxsp.operators import game

KEY = jax.random.key(7)
init = jax.jit(models.init, static_argnums=0)
BUILD = {
    "non_saturating": losses.non_saturating,
    "non_saturating r1": functools.partial(losses.non_saturating, r1=0.7),
    "hinge": losses.hinge,
    "hinge r1": functools.partial(losses.hinge, r1=0.7),
    "wasserstein": losses.wasserstein,
    "wasserstein plain": functools.partial(losses.wasserstein, gradient_penalty=0.0),
}


class LinearGenerator(nn.Module):
    @nn.compact
    def __call__(self, latents):
        a = self.param("a", nn.initializers.normal(1.0), (3, 4), float)
        return (latents @ a).reshape(-1, 2, 2)


class Critic(nn.Module):
    """w . s, or w . tanh(s) where `curved`: both gradients are known."""

    curved: bool = False

    @nn.compact
    def __call__(self, samples):
        w = self.param("w", nn.initializers.normal(1.0), (4,), float)
        s = samples.reshape(-1, 4)
        return (jnp.tanh(s) if self.curved else s) @ w


def tiny(curved=False):
    gan = models.Gan(LinearGenerator(), Critic(curved), 3, (2, 2))
    return gan, init(gan, jax.random.key(0))


@functools.cache
def compiled(name, curved=False):
    """Both losses and the field of the game, compiled once for all tests."""
    gan = tiny(curved)[0]
    f_x, f_y = BUILD[name](gan)

    @jax.jit
    def everything(z, batch, key):
        args = (*z, batch, key)
        return f_x(*args), f_y(*args), game(f_x, f_y)(z, batch, key)

    return everything


def numbers(gan, z, batch, curved):
    """Latents, interpolation weights, logits and gradients, in NumPy."""
    latent_key, penalty_key = jax.random.split(KEY)
    a, w = np.asarray(z.x["a"]), np.asarray(z.y["w"])
    b = np.asarray(batch).reshape(-1, 4)
    g = np.asarray(models.latents(gan, latent_key, len(b))) @ a
    u = np.asarray(jax.random.uniform(penalty_key, (len(b), 1, 1), float)).reshape(
        -1, 1
    )
    s = u * b + (1 - u) * g
    if curved:
        slope = lambda p: w * (1 - np.tanh(p) ** 2)  # noqa: E731
        return np.tanh(b) @ w, np.tanh(g) @ w, slope(b), slope(s)
    ones = np.ones_like(b)
    return b @ w, g @ w, ones * w, ones * w


def softplus(t):
    return np.log1p(np.exp(t))


def expected(name, real, fake, at_real, at_between):
    r1 = 0.5 * 0.7 * np.mean((at_real**2).sum(-1)) if "r1" in name else 0.0
    if name.startswith("non_saturating"):
        sigma = 1 / (1 + np.exp(-fake))
        f_x = np.mean(-np.log(sigma))
        return f_x, np.mean(softplus(-real)) + np.mean(-np.log(1 - sigma)) + r1
    if name.startswith("hinge"):
        f_y = np.mean(np.maximum(0, 1 - real)) + np.mean(np.maximum(0, 1 + fake))
        return -fake.mean(), f_y + r1
    norm = np.sqrt((at_between**2).sum(-1))
    penalty = 0.0 if "plain" in name else 10 * np.mean((norm - 1) ** 2)
    return -fake.mean(), fake.mean() - real.mean() + penalty


@pytest.mark.parametrize("curved", [False, True])
@pytest.mark.parametrize("name", BUILD)
def test_formulas(name, curved, x64):
    gan, z = tiny(curved)
    batch = jax.random.normal(jax.random.key(1), (8, 2, 2))
    f_x, f_y, _ = compiled(name, curved)(z, batch, KEY)
    wanted = expected(name, *numbers(gan, z, batch, curved))
    np.testing.assert_allclose([f_x, f_y], wanted, rtol=1e-12)


def test_penalties_of_a_linear_critic_are_exact(x64):
    _, z = tiny()
    batch = jnp.ones((8, 2, 2))
    z = z._replace(y={"w": jnp.array([2.0, 0.0, 1.0, 2.0])})  # |w| = 3
    for name, plain, penalty in [
        ("wasserstein", "wasserstein plain", 10 * (3 - 1) ** 2),
        ("non_saturating r1", "non_saturating", 0.7 / 2 * 3**2),
        ("hinge r1", "hinge", 0.7 / 2 * 3**2),
    ]:
        values = [compiled(n)(z, batch, KEY)[1] for n in (name, plain)]
        np.testing.assert_allclose(values[0] - values[1], penalty, rtol=1e-12)


@pytest.mark.parametrize("name", ["wasserstein", "hinge r1", "non_saturating r1"])
def test_field_through_the_penalty_against_finite_differences(name, x64):
    _, z = tiny(curved=True)
    batch = jax.random.normal(jax.random.key(1), (8, 2, 2))
    f = compiled(name, True)
    field = f(z, batch, KEY)[2].y["w"]
    for i in range(4):
        h = 1e-5 * np.eye(4)[i]
        sides = [f(z._replace(y={"w": z.y["w"] + s * h}), batch, KEY) for s in (1, -1)]
        difference = (sides[0][1] - sides[1][1]) / 2e-5
        np.testing.assert_allclose(field[i], difference, rtol=1e-6, atol=1e-8)


def test_gradient_penalty_of_a_flat_critic_is_finite(x64):
    _, z = tiny()
    z = z._replace(y={"w": jnp.zeros(4)})
    _, value, field = compiled("wasserstein")(z, jnp.ones((8, 2, 2)), KEY)
    np.testing.assert_allclose(value, 10.0, rtol=1e-9)
    assert jnp.isfinite(field.y["w"]).all()


@pytest.mark.parametrize("scale", [1e3, -1e3])
def test_logistic_loss_of_large_logits_is_linear_and_finite(scale, x64):
    gan, z = tiny()
    z = z._replace(y={"w": scale * jnp.ones(4)})
    batch = jnp.ones((8, 2, 2))
    f_x, f_y, field = compiled("non_saturating")(z, batch, KEY)
    real, fake, *_ = numbers(gan, z, batch, False)
    np.testing.assert_allclose(f_x, np.maximum(0, -fake).mean(), atol=0.2)
    wanted = np.maximum(0, -real).mean() + np.maximum(0, fake).mean()
    np.testing.assert_allclose(f_y, wanted, atol=0.2)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(field))


@pytest.mark.parametrize("name", BUILD)
def test_minus_the_field_lowers_each_players_own_loss(name, x64):
    _, z = tiny(curved=True)
    batch = jax.random.normal(jax.random.key(1), (8, 2, 2))
    f = compiled(name, True)
    f_x, f_y, field = f(z, batch, KEY)
    new = jax.tree.map(lambda p, g: p - 1e-4 * g, z, field)
    assert f(z._replace(x=new.x), batch, KEY)[0] < f_x
    assert f(z._replace(y=new.y), batch, KEY)[1] < f_y


@pytest.mark.parametrize("name", ["non_saturating", "wasserstein"])
def test_players_share_one_pass_of_the_generator(name):
    gan = models.mlp((2,), latent_size=3, width=7, depth=1)
    z = init(gan, jax.random.key(0))
    f_x, f_y = BUILD[name](gan)

    def both(z, batch, key):
        return f_x(*z, batch, key) + 2 * f_y(*z, batch, key)

    def dots(f):
        text = jax.jit(f).lower(z, jnp.ones((8, 2)), KEY).compile().as_text()
        return text.count(" dot(") + text.count("__onednn$matmul")

    alone = dots(lambda z, b, k: f_y(*z, b, k))
    assert dots(both) == alone > 2


def test_key_decides(x64):
    _, z = tiny(curved=True)
    batch = jax.random.normal(jax.random.key(1), (8, 2, 2))
    f = compiled("wasserstein", True)
    values = [float(f(z, batch, jax.random.key(k))[1]) for k in (1, 1, 2)]
    assert values[0] == values[1] != values[2]


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_penalties_that_are_no_weights_are_refused(value):
    gan, _ = tiny()
    with pytest.raises(ValueError, match="r1 must be at least 0"):
        losses.non_saturating(gan, r1=value)
    with pytest.raises(ValueError, match="r1 must be at least 0"):
        losses.hinge(gan, r1=value)
    with pytest.raises(ValueError, match="gradient_penalty must be at least 0"):
        losses.wasserstein(gan, gradient_penalty=value)
