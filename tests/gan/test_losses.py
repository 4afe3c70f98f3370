import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import jaxsp
from jaxsp.gan import losses, md_gan, models
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
    "relativistic": functools.partial(losses.relativistic, gamma=0.7),
    "relativistic plain": functools.partial(losses.relativistic, gamma=0.0),
}


class LinearGenerator(nn.Module):
    @nn.compact
    def __call__(self, latents):
        shape = latents.shape[1], 4
        a = self.param("a", nn.initializers.normal(1.0), shape, float)
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


@pytest.fixture
def batch(x64):
    return jax.random.normal(jax.random.key(1), (8, 2, 2))


@functools.cache
def compiled(name, curved=False):
    """Both losses and the field of the game, compiled once for all tests."""
    gan = tiny(curved)[0]
    f_x, f_y, *_ = BUILD[name](gan)

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
    u = np.asarray(jax.random.uniform(penalty_key, (len(b), 1, 1), float))[:, 0]
    s = u * b + (1 - u) * g
    if curved:
        slope = lambda p: w * (1 - np.tanh(p) ** 2)  # noqa: E731
        return np.tanh(b) @ w, np.tanh(g) @ w, slope(b), slope(s), slope(g)
    flat = np.ones_like(b) * w
    return b @ w, g @ w, flat, flat, flat


def softplus(t):
    return np.log1p(np.exp(t))


def expected(name, real, fake, at_real, at_between, at_fake):
    if name.startswith("relativistic"):
        steep = np.mean((at_real**2).sum(-1)) + np.mean((at_fake**2).sum(-1))
        f_y = np.mean(softplus(-(real - fake)))
        weight = 0.0 if "plain" in name else 0.7
        return np.mean(softplus(-(fake - real))), f_y + weight / 2 * steep
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
def test_formulas(name, curved, batch):
    gan, z = tiny(curved)
    f_x, f_y, _ = compiled(name, curved)(z, batch, KEY)
    wanted = expected(name, *numbers(gan, z, batch, curved))
    np.testing.assert_allclose([f_x, f_y], wanted, rtol=1e-12)


PENALIZED = "wasserstein", "hinge r1", "non_saturating r1", "relativistic"


@pytest.mark.parametrize("name", PENALIZED)
def test_field_through_the_penalty_against_finite_differences(name, batch):
    _, z = tiny(curved=True)
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
def test_minus_the_field_lowers_each_players_own_loss(name, batch):
    _, z = tiny(curved=True)
    f = compiled(name, True)
    f_x, f_y, field = f(z, batch, KEY)
    new = jax.tree.map(lambda p, g: p - 1e-4 * g, z, field)
    assert f(z._replace(x=new.x), batch, KEY)[0] < f_x
    assert f(z._replace(y=new.y), batch, KEY)[1] < f_y


def with_labels(gan, samples):
    labels = jnp.arange(len(samples), dtype=jnp.int32) % max(gan.num_classes, 1)
    return (samples, labels) if gan.num_classes else samples


PAIRS = {
    "mlp": models.mlp((2,), latent_size=3, width=7, depth=1),
    "conditional": models.mlp((2,), 2, latent_size=5, width=7, depth=1),
    "spectral": models.resnet((8, 8, 1), latent_size=3, width=1),
}


@pytest.mark.parametrize(
    ("build", "pair"),
    [
        (losses.non_saturating, "mlp"),
        (losses.wasserstein, "mlp"),
        (losses.relativistic, "mlp"),
        (losses.acgan, "conditional"),
        (losses.hinge, "spectral"),
    ],
)
def test_players_share_one_pass_of_the_generator(build, pair):
    gan = PAIRS[pair]
    z = jax.eval_shape(lambda key: models.init(gan, key), KEY)
    f_x, f_y, *_ = build(gan)

    def both(z, batch, key):
        return f_x(*z, batch, key) + 2 * f_y(*z, batch, key)

    def dots(f):
        batch = with_labels(gan, jnp.ones((8, *gan.sample_shape)))
        text = jax.jit(f).lower(z, batch, KEY).compile().as_text()
        return text.count(" dot(") + text.count("__onednn$matmul")

    alone = dots(lambda z, b, k: f_y(*z, b, k))
    assert dots(both) == alone > 2


class TwoHeads(nn.Module):
    """Logit w . tanh(s), class logits s V."""

    @nn.compact
    def __call__(self, samples):
        s = samples.reshape(-1, 4)
        w = self.param("w", nn.initializers.normal(1.0), (4,), float)
        v = self.param("v", nn.initializers.normal(1.0), (4, 3), float)
        return jnp.tanh(s) @ w, s @ v


CONDITIONAL = models.Gan(LinearGenerator(), TwoHeads(), 5, (2, 2), 3)
BUILD_CONDITIONAL = {
    **BUILD,
    "acgan": losses.acgan,
    "acgan weighted": functools.partial(losses.acgan, class_weight=0.3, r1=0.7),
}


def conditional(labels_type=jnp.int32):
    z = init(CONDITIONAL, jax.random.key(0))
    batch = jax.random.normal(jax.random.key(1), (8, 2, 2))
    return z, (batch, jnp.array([0, 1, 2, 2, 1, 0, 0, 0], labels_type))


@pytest.mark.parametrize(
    ("name", "class_weight", "r1"), [("acgan", 1.0, 0.0), ("acgan weighted", 0.3, 0.7)]
)
def test_acgan_formulas(name, class_weight, r1, x64):
    z, (batch, labels) = conditional(jnp.uint8)
    f_x, f_y, *_ = BUILD_CONDITIONAL[name](CONDITIONAL)
    got = jax.jit(lambda *args: (f_x(*args), f_y(*args)))(*z, (batch, labels), KEY)
    drawn = np.asarray(models.latents(CONDITIONAL, jax.random.split(KEY)[0], 8))
    a, w, v = (np.asarray(p) for p in (z.x["a"], z.y["w"], z.y["v"]))
    b, g, classes = np.asarray(batch).reshape(8, 4), drawn @ a, drawn[:, 2:].argmax(1)

    def entropy(s, labels):
        odds = np.exp(s @ v)
        told = odds[np.arange(8), labels] / odds.sum(1)
        return class_weight * np.mean(-np.log(told))

    fake, real = np.tanh(g) @ w, np.tanh(b) @ w
    penalty = r1 / 2 * np.mean(((w * (1 - np.tanh(b) ** 2)) ** 2).sum(1))
    wanted_x = np.mean(softplus(-fake)) + entropy(g, classes)
    wanted_y = np.mean(softplus(-real)) + np.mean(softplus(fake)) + penalty
    wanted_y += entropy(b, np.asarray(labels)) + entropy(g, classes)
    np.testing.assert_allclose(got, [wanted_x, wanted_y], rtol=1e-12)


@pytest.mark.parametrize("name", BUILD_CONDITIONAL)
def test_losses_of_samples_after_generate_are_the_losses(name, x64):
    """On latents as the losses draw them; labels change no loss but acgan's."""
    gan = CONDITIONAL
    z, batch = conditional()
    loss = BUILD_CONDITIONAL[name](gan)

    @jax.jit
    def values(z, batch):
        latent_key, penalty_key = jax.random.split(KEY)
        drawn = models.latents(gan, latent_key, 8)
        fakes = models.generate(gan, z.x, drawn), models.labels_of(gan, drawn)
        pairs = [(batch, fakes)]
        if "acgan" not in name:
            pairs += [(batch[0], fakes[0])]
        whole = loss.generator(*z, batch, KEY), loss.discriminator(*z, batch, KEY)
        on_x, on_y = loss.generator_on, loss.discriminator_on
        if on_x is None:  # of real samples too
            return whole[1:], [(on_y(z.y, b, f, penalty_key),) for b, f in pairs]
        return whole, [(on_x(z.y, f), on_y(z.y, b, f, penalty_key)) for b, f in pairs]

    whole, parts = values(z, batch)
    for part in parts:
        np.testing.assert_allclose(part, whole, rtol=1e-13)


def test_generator_gradient_passes_through_samples(x64):
    """∇x f_x is the pull-back of what a holder of the samples alone computes."""
    gan, (z, batch) = CONDITIONAL, conditional()
    loss = losses.acgan(gan)

    @jax.jit
    def both(z):
        drawn = models.latents(gan, jax.random.split(KEY)[0], 8)
        fakes, pull = jax.vjp(lambda x: models.generate(gan, x, drawn), z.x)
        labels = models.labels_of(gan, drawn)
        feedback = jax.grad(lambda s: loss.generator_on(z.y, (s, labels)))(fakes)
        return pull(feedback)[0], jax.grad(loss.generator)(*z, batch, KEY)

    jax.tree.map(lambda p, w: np.testing.assert_allclose(p, w, rtol=1e-12), *both(z))


def test_labels_where_they_do_not_belong_or_are_missing():
    gan, z = tiny()
    z_c, (samples, labels) = conditional()
    with pytest.raises(ValueError, match="gan must have classes for acgan"):
        losses.acgan(gan)
    with pytest.raises(ValueError, match="batch must be samples alone"):
        losses.hinge(gan).generator(*z, (samples, labels), KEY)
    loss = losses.acgan(CONDITIONAL)
    with pytest.raises(ValueError, match=r"batch must be a pair \(samples, labels\)"):
        loss.discriminator_on(z_c.y, samples, (samples, labels), KEY)
    with pytest.raises(ValueError, match=r"fakes must be a pair \(samples, labels\)"):
        loss.generator_on(z_c.y, samples)


def test_key_decides(batch):
    _, z = tiny(curved=True)
    f = compiled("wasserstein", True)
    values = [float(f(z, batch, jax.random.key(k))[1]) for k in (1, 1, 2)]
    assert values[0] == values[1] != values[2]


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("build", "name"),
    [
        (losses.non_saturating, "r1"),
        (losses.hinge, "r1"),
        (losses.wasserstein, "gradient_penalty"),
        (losses.relativistic, "gamma"),
        (losses.acgan, "r1"),
        (losses.acgan, "class_weight"),
    ],
)
def test_penalties_that_are_no_weights_are_refused(build, name, value):
    with pytest.raises(ValueError, match=f"{name} must be finite and at least 0"):
        build(CONDITIONAL, **{name: value})


def test_relativistic_needs_pairs_and_md_gan_refuses_it():
    gan, z = tiny()
    loss = losses.relativistic(gan)
    assert loss.generator_on is None
    with pytest.raises(ValueError, match="fakes must be as many as the samples"):
        loss.discriminator_on(z.y, jnp.ones((8, 2, 2)), jnp.ones((4, 2, 2)), KEY)
    with pytest.raises(ValueError, match="losses must have generator_on"):
        md_gan.MDGan(optax.sgd(0.1), optax.sgd(0.1)).program(
            gan, loss, jaxsp.Workers(2, jax.devices()[:1])
        )
