"""Latent vectors with a class, and discriminators that name it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsp.gan import losses, models

KEY = jax.random.key(5)
PLAIN = models.mlp((2,), latent_size=7, width=4)
GAN = models.mlp((2,), 4, latent_size=7, width=4)
SMALL = {
    "mlp": GAN,
    "dcgan": models.dcgan((8, 8, 1), 2, latent_size=5, width=2),
    "md_gan_cnn": models.md_gan_cnn((28, 28, 1), 2, latent_size=5, width=1),
    "resnet": models.resnet((8, 8, 1), 2, latent_size=5, width=2),
    "sagan": models.sagan((8, 10, 1), 2, latent_size=5, width=4),
}
latents = jax.jit(models.latents, static_argnums=(0, 2))
init = jax.jit(models.init, static_argnums=0)
both = jax.jit(models.discriminate_and_classify, static_argnums=0)


def test_without_classes_latents_are_normal_and_nothing_else():
    wanted = jax.random.normal(KEY, (6, 7))
    np.testing.assert_array_equal(latents(PLAIN, KEY, 6), wanted)


def test_classes_are_one_hot_and_uniform_and_the_rest_is_normal():
    n = 4000
    drawn = np.asarray(latents(GAN, KEY, n))
    free, classes = drawn[:, :3], drawn[:, 3:]
    assert drawn.shape == (n, 7)
    assert set(np.unique(classes)) == {0.0, 1.0}
    np.testing.assert_array_equal(classes.sum(1), 1)
    deviation = (classes.sum(0) - n / 4) / np.sqrt(n * 3 / 16)
    assert np.abs(deviation).max() < 4.5
    assert np.abs(free.mean(0)).max() < 4.5 / np.sqrt(n)
    assert np.abs(free.std(0) - 1).max() < 0.06
    latent_key, class_key = jax.random.split(KEY)  # a key of its own for either
    np.testing.assert_array_equal(free, jax.random.normal(latent_key, (n, 3)))
    labels = jax.random.randint(class_key, (n,), 0, 4)
    np.testing.assert_array_equal(classes.argmax(1), labels)


@pytest.mark.parametrize("make", [list, np.uint8, jnp.array])
def test_given_labels_are_taken_and_found_again(make):
    labels = [3, 0, 0, 2, 1]
    drawn = models.latents(GAN, KEY, 5, labels=make(labels))
    found = models.labels_of(GAN, drawn)
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, labels)
    random = latents(GAN, KEY, 5)
    np.testing.assert_array_equal(drawn[:, :3], random[:, :3])
    again = models.latents(GAN, KEY, 5, models.labels_of(GAN, random))
    np.testing.assert_array_equal(random, again)


def test_samples_of_a_class():
    x = init(GAN, KEY).x
    labels = jnp.array([1, 1, 3])
    drawn = models.latents(GAN, KEY, 3, labels)
    wanted = models.generate(GAN, x, drawn)
    got = jax.jit(functools.partial(models.sample, GAN, n=3))(x, KEY, labels=labels)
    np.testing.assert_allclose(got, wanted, rtol=1e-6)
    other = models.sample(GAN, x, KEY, 3, jnp.array([1, 2, 3]))
    same = np.isclose(other, got).all(1)
    assert list(same) == [True, False, True]


def test_one_pass_gives_both_answers():
    z = init(GAN, KEY)
    samples = jax.random.normal(KEY, (3, 2))
    answers = both(GAN, z.y, samples)
    for f, wanted in zip((models.discriminate, models.classify), answers, strict=True):
        got = jax.jit(f, static_argnums=0)(GAN, z.y, samples)
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SMALL)
def test_shapes_and_classes_of_every_model(name):
    gan = SMALL[name]

    def everything(key):
        z = models.init(gan, key)
        return models.discriminate_and_classify(
            gan, z.y, models.sample(gan, z.x, key, 3)
        )

    logits, class_logits = jax.eval_shape(everything, KEY)
    assert logits.shape == (3,)
    assert class_logits.shape == (3, gan.num_classes)


def test_an_unconditional_pair_has_one_answer():
    z = init(PLAIN, KEY)
    logits, nothing = models.discriminate_and_classify(PLAIN, z.y, jnp.ones((3, 2)))
    assert nothing is None
    got = models.discriminate(PLAIN, z.y, jnp.ones((3, 2)))
    np.testing.assert_array_equal(got, logits)


@pytest.mark.parametrize("name", ["md_gan_cnn", "sagan"])
def test_both_networks_have_finite_gradients_everywhere(name):
    """And a kernel that is normalized has none along itself."""
    gan = SMALL[name]
    loss = losses.acgan(gan).generator
    batch = np.zeros((4, *gan.sample_shape)), np.zeros(4, int)  # only counted
    rng = np.random.default_rng(0)
    z = jax.eval_shape(lambda key: models.init(gan, key), KEY)
    z = jax.tree.map(lambda p: jnp.array(0.3 * rng.normal(size=p.shape), p.dtype), z)
    gradient = jax.jit(jax.grad(lambda z: loss(*z, batch, KEY)))(z)
    for (path, g), p in zip(
        jax.tree.leaves_with_path(gradient), jax.tree.leaves(z), strict=True
    ):
        g, p = np.ravel(g), np.ravel(p)
        place = jax.tree_util.keystr(path)
        assert np.isfinite(g).all(), place
        # One shift of all keys moves no softmax.
        if "key']['bias" in place:
            continue
        assert np.abs(g).max() > 0, place
        if "kernel" in place:
            cosine = g @ p / np.linalg.norm(g) / np.linalg.norm(p)
            assert (abs(cosine) < 1e-4) == (name == "sagan"), place


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: models.latents(PLAIN, KEY, 2, labels=[0, 1]), "labels must be None"),
        (lambda: models.latents(GAN, KEY, 2, [0, 1, 2]), r"shape \(2,\), got .*\(3,\)"),
        (
            lambda: models.latents(GAN, KEY, 1, [0.5]),
            "labels must be an array of integers.*got",
        ),
        (lambda: models.latents(GAN, KEY, 2, [0, 4]), "from 0 to 3, got 0 to 4"),
        (lambda: models.latents(GAN, KEY, 2, [-1, 3]), "from 0 to 3, got -1 to 3"),
        (lambda: models.labels_of(PLAIN, jnp.ones((2, 7))), "gan must have classes"),
        (lambda: models.classify(PLAIN, {}, jnp.ones((2, 2))), "gan must have classes"),
    ],
)
def test_what_does_not_fit_is_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()
