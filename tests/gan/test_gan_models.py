import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxsp.gan import models

KEY = jax.random.key(0)
IMAGES = [(8, 8, 1), (28, 28, 1), (32, 32, 3), (64, 64, 3), (28, 32, 4)]
GANS = {
    "mlp points": lambda **kw: models.mlp((2,), latent_size=5, width=16, **kw),
    "mlp images": lambda **kw: models.mlp((8, 8, 1), latent_size=5, width=16, **kw),
    "dcgan": lambda **kw: models.dcgan((8, 8, 2), latent_size=5, width=4, **kw),
}


# Compiled whole: operation by operation each of them would be compiled apart.
init = jax.jit(models.init, static_argnums=0)
latents = jax.jit(models.latents, static_argnums=(0, 2))
generate = jax.jit(models.generate, static_argnums=0)
sample = jax.jit(models.sample, static_argnums=(0, 3))
discriminate = jax.jit(models.discriminate, static_argnums=0)


@pytest.fixture(params=GANS)
def make(request):
    return GANS[request.param]


def conv(x, kernel):
    dims = ("NHWC", "HWIO", "NHWC")
    padding = ((1, 1), (1, 1))
    return lax.conv_general_dilated(
        x, kernel, (2, 2), padding, dimension_numbers=dims, precision="highest"
    )


def test_strided_conv_is_the_convolution():
    x = jax.random.normal(jax.random.key(0), (2, 8, 6, 3))
    module = models.StridedConv(5)
    params = jax.jit(module.init)(jax.random.key(1), x)
    params["params"]["bias"] = jnp.arange(5.0)
    expected = conv(x, params["params"]["kernel"]) + jnp.arange(5.0)
    np.testing.assert_allclose(jax.jit(module.apply)(params, x), expected, atol=1e-5)


def test_transposed_conv_is_the_transpose():
    x = jax.random.normal(jax.random.key(0), (2, 4, 3, 3))
    module = models.TransposedConv(5)
    params = jax.jit(module.init)(jax.random.key(1), x)
    params["params"]["bias"] = jnp.arange(5.0)
    kernel = params["params"]["kernel"].swapaxes(2, 3)
    like = jax.ShapeDtypeStruct((2, 8, 6, 5), jnp.float32)
    (expected,) = jax.linear_transpose(lambda y: conv(y, kernel), like)(x)
    expected += jnp.arange(5.0)
    np.testing.assert_allclose(jax.jit(module.apply)(params, x), expected, atol=1e-5)


@pytest.mark.parametrize("shape", IMAGES)
@pytest.mark.parametrize("build", [models.mlp, models.dcgan])
def test_shapes_of_images(build, shape):
    gan = build(shape, latent_size=7, width=8)
    z = jax.eval_shape(lambda key: models.init(gan, key), jax.random.key(0))
    out = jax.eval_shape(
        lambda x, key: models.sample(gan, x, key, 3), z.x, jax.random.key(0)
    )
    logits = jax.eval_shape(lambda y, s: models.discriminate(gan, y, s), z.y, out)
    assert out.shape == (3, *shape)
    assert logits.shape == (3,)
    assert out.dtype == logits.dtype == jnp.float32


def test_grid_is_halved_as_documented():
    halvings = [models.halvings(shape) for shape in IMAGES]
    assert halvings == [1, 2, 3, 4, 2]


def test_images_are_bounded_and_points_are_not():
    drawn = 100 * jax.random.normal(jax.random.key(1), (64, 5))
    for name, bounded in [("mlp images", True), ("dcgan", True), ("mlp points", False)]:
        gan = GANS[name]()
        x = init(gan, KEY).x
        largest = jnp.abs(generate(gan, x, drawn)).max()
        assert bool(largest <= 1) == bounded
        assert largest > 0.5


def test_same_key_same_result(make):
    gan = make()
    first = init(gan, KEY)
    again = init(gan, KEY)
    other = init(gan, jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    draw = [sample(gan, first.x, jax.random.key(k), 4) for k in (2, 2, 3)]
    np.testing.assert_array_equal(draw[0], draw[1])
    assert not np.allclose(draw[0], draw[2])
    assert not np.allclose(draw[0], sample(gan, other.x, jax.random.key(2), 4))


def test_every_sample_stands_alone(make):
    gan = make()
    z = init(gan, KEY)
    drawn = latents(gan, jax.random.key(1), 6)
    samples = generate(gan, z.x, drawn)
    logits = discriminate(gan, z.y, samples)
    one = generate(gan, z.x, drawn[2:3])
    np.testing.assert_allclose(one[0], samples[2], atol=1e-6)
    one = discriminate(gan, z.y, samples[2:3])
    np.testing.assert_allclose(one[0], logits[2], atol=1e-6)


@pytest.mark.parametrize("name", ["mlp points", "dcgan"])
def test_vmap_over_workers_with_own_parameters(name):
    gan = GANS[name]()
    zs = [init(gan, jax.random.key(k)) for k in range(3)]
    drawn = jnp.stack([latents(gan, jax.random.key(k), 4) for k in range(3)])

    def logits(z, drawn):
        return models.discriminate(gan, z.y, models.generate(gan, z.x, drawn))

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *zs)
    together = jax.jit(jax.vmap(logits))(stacked, drawn)
    for z, one, got in zip(zs, drawn, together, strict=True):
        wanted = discriminate(gan, z.y, generate(gan, z.x, one))
        np.testing.assert_allclose(got, wanted, atol=1e-5)


def shapes(gan):
    """Parameters, samples and logits, as shapes and types."""

    def everything(key):
        z = models.init(gan, key)
        samples = models.sample(gan, z.x, key, 2)
        return z, samples, models.discriminate(gan, z.y, samples)

    return jax.eval_shape(everything, KEY)


def test_bfloat16_keeps_float32_around_it(make):
    leaves = jax.tree.leaves(shapes(make(dtype=jnp.bfloat16)))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}


def test_bfloat16_computes_in_bfloat16():
    gan, full = GANS["dcgan"](dtype=jnp.bfloat16), GANS["dcgan"]()
    z = init(full, KEY)
    out, expected = (sample(g, z.x, KEY, 8) for g in (gan, full))
    error = jnp.abs(out - expected).max() / jnp.abs(expected).max()
    assert 1e-5 < error < 0.05
    for f, *args in [
        (models.discriminate, z.y, out),
        (models.generate, z.x, jnp.zeros((2, 5))),
    ]:
        program = str(jax.make_jaxpr(functools.partial(f, gan))(*args))
        products = [line for line in program.splitlines() if "dot_general" in line]
        assert len(products) == 2
        assert all("bf16" in line for line in products)


def test_float64_everywhere_when_asked_for(make, x64):
    leaves = jax.tree.leaves(shapes(make(dtype=jnp.float64)))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float64")}


def test_norm_is_an_option():
    def build(norm, key):
        return models.init(models.dcgan((8, 8, 1), norm=norm), key).x

    names = [
        str(jax.eval_shape(lambda k, n=norm: build(n, k), jax.random.key(0)))
        for norm in (True, False)
    ]
    assert "LayerNorm" in names[0]
    assert "LayerNorm" not in names[1]


def test_gan_is_a_static_argument(make):
    traced = []

    def draw(gan, x):
        traced.append(gan)
        return models.sample(gan, x, KEY, 2)

    draw = jax.jit(draw, static_argnums=0)
    x = shapes(make())[0].x
    for _ in range(2):  # an equal pair traces nothing new
        assert draw.eval_shape(make(), x).shape[0] == 2
    assert len(traced) == 1


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: models.mlp((8, 8)), r"sample_shape must be .*got \(8, 8\)"),
        (lambda: models.mlp((0,)), "sample_shape"),
        (lambda: models.mlp((2,), width=0), "width must be .*got 0"),
        (lambda: models.mlp((2,), latent_size=-1), "latent_size"),
        (lambda: models.dcgan((2,)), "sample_shape"),
        (lambda: models.dcgan((9, 9, 1)), "even height and width"),
        (lambda: models.dcgan((6, 6, 1)), "even height and width"),
        (lambda: models.dcgan((8, 8, 1), width=0), "width"),
    ],
)
def test_what_does_not_fit_is_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()
