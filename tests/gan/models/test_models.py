import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from jaxsp.gan import models

KEY = jax.random.key(0)
IMAGES = [(8, 8, 1), (28, 28, 1), (32, 32, 3), (64, 64, 3), (28, 32, 4)]
GANS = {
    "mlp points": lambda **kw: models.mlp((2,), latent_size=5, width=16, **kw),
    "mlp images": lambda **kw: models.mlp((8, 8, 1), latent_size=5, width=16, **kw),
    "dcgan": lambda **kw: models.dcgan((8, 8, 2), latent_size=5, width=4, **kw),
}
LARGE = {
    "md_gan_cnn": lambda **kw: models.md_gan_cnn(
        (28, 28, 1), 2, latent_size=5, width=1, **kw
    ),
    "sagan": lambda **kw: models.sagan((8, 8, 2), 2, latent_size=5, width=4, **kw),
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


@pytest.fixture(params=GANS | LARGE)
def make_any(request):
    """For tests that compile nothing."""
    return (GANS | LARGE)[request.param]


def shapes(gan):
    """Parameters, two samples and what is said of them, as shapes and types."""

    def everything(key):
        z = models.init(gan, key)
        samples = models.sample(gan, z.x, key, 2)
        return z, samples, models.discriminate(gan, z.y, samples)

    return jax.eval_shape(everything, KEY)


@pytest.mark.parametrize("shape", IMAGES)
@pytest.mark.parametrize(
    "build", [models.mlp, models.dcgan, models.resnet, models.sagan]
)
def test_shapes_of_images(build, shape):
    _, out, logits = shapes(build(shape, latent_size=7, width=8))
    assert out.shape == (2, *shape)
    assert logits.shape == (2,)
    assert out.dtype == logits.dtype == jnp.float32


def test_grid_is_halved_as_documented():
    assert [models.halvings(shape) for shape in IMAGES] == [1, 2, 3, 4, 2]


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
    first, again, other = (init(gan, jax.random.key(k)) for k in (0, 0, 1))
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


def test_bfloat16_keeps_float32_around_it(make_any):
    leaves = jax.tree.leaves(shapes(make_any(dtype=jnp.bfloat16)))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}


def products(f, *args):
    """Types of the matrix products in a program: the vectors' are left out."""
    program = str(jax.make_jaxpr(f)(*args))
    found = re.findall(r":(\w+)\[([\d,]*)\] = dot_general", program)
    return [dtype for dtype, shape in found if "," in shape]


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("mlp images", (3, 3)),
        ("dcgan", (2, 2)),
        ("md_gan_cnn", (3, 7)),
        # Dense layers, convolutions, attention: 1 + 3 + 6 and 5 + 6 + 2, no 1x1
        # convolution where the channels stay.
        ("sagan", (11, 13)),
    ],
)
def test_every_matrix_product_is_in_bfloat16(name, count):
    gan = (GANS | LARGE)[name](dtype=jnp.bfloat16)
    z, samples, _ = shapes(gan)
    drawn = jnp.zeros((2, 5))
    made = products(functools.partial(models.generate, gan), z.x, drawn)
    seen = products(
        functools.partial(models.discriminate_and_classify, gan), z.y, samples
    )
    assert (len(made), len(seen)) == count
    assert {*made, *seen} == {"bf16"}


def test_bfloat16_is_close():
    gan, full = GANS["dcgan"](dtype=jnp.bfloat16), GANS["dcgan"]()
    z = init(full, KEY)
    out, expected = (sample(g, z.x, KEY, 8) for g in (gan, full))
    error = jnp.abs(out - expected).max() / jnp.abs(expected).max()
    assert 1e-5 < error < 0.05


def test_float64_everywhere_when_asked_for(make_any, x64):
    leaves = jax.tree.leaves(shapes(make_any(dtype=jnp.float64)))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float64")}


def test_norm_is_an_option():
    for norm in (True, False):
        z, *_ = shapes(GANS["dcgan"](norm=norm))
        assert any("LayerNorm" in name for name in z.x) == norm


def test_gan_is_a_static_argument(make_any):
    traced = []

    def draw(gan, x):
        traced.append(gan)
        return models.sample(gan, x, KEY, 2)

    draw = jax.jit(draw, static_argnums=0)
    x = shapes(make_any())[0].x
    for _ in range(2):  # an equal pair traces nothing new
        assert draw.eval_shape(make_any(), x).shape[0] == 2
    assert len(traced) == 1


SIZES = {  # of the parameters
    ("mlp", (28, 28, 1), 0): (283_920, 267_009),
    ("mlp", (28, 28, 1), 10): (283_920, 269_579),
    ("dcgan", (28, 28, 1), 0): (237_345, 36_513),
    ("dcgan", (32, 32, 3), 10): (299_043, 188_139),
    ("md_gan_mlp", (28, 28, 1), 10): (716_560, 670_219),
    ("md_gan_mlp", (28, 28, 1), 0): (716_560, 665_089),
    ("md_gan_cnn", (28, 28, 1), 10): (736_705, 1_848_459),
    ("md_gan_cnn", (32, 32, 3), 10): (2_932_035, 1_662_891),
    ("resnet", (28, 28, 1), 0): (2_214_529, 562_753),
    ("resnet", (32, 32, 3), 0): (2_307_075, 2_367_425),
    ("resnet", (64, 64, 3), 10): (3_488_259, 3_550_155),
    ("sagan", (32, 32, 3), 0): (2_327_780, 2_372_658),
    ("sagan", (64, 64, 3), 10): (3_508_964, 3_555_388),
}


@pytest.mark.parametrize(("name", "shape", "num_classes"), SIZES)
def test_numbers_of_parameters(name, shape, num_classes):
    z, *_ = shapes(models.parse(name, shape, num_classes))
    found = tuple(sum(leaf.size for leaf in jax.tree.leaves(p)) for p in z)
    assert found == SIZES[name, shape, num_classes]


def test_md_gan_counts_of_the_paper():
    """One channel in for every kernel; on MNIST no bias of dense layers."""
    for shape, stated, biased in [
        ((28, 28, 1), (628_058, 286_048), False),
        ((32, 32, 3), (628_110, 100_203), True),
    ]:
        z, *_ = shapes(models.md_gan_cnn(shape))
        for params, wanted in zip(z, stated, strict=True):
            counted = 0
            for layer in params.values():
                kernel, bias = layer["kernel"].shape, layer["bias"].size
                if len(kernel) == 4:
                    counted += kernel[0] * kernel[1] * kernel[3] + bias
                else:
                    counted += kernel[0] * kernel[1] + bias * biased
            assert counted == wanted
    assert models.md_gan_mlp() == models.parse("md_gan_mlp", (28, 28, 1), 10)


def test_parse_builds_what_the_functions_build():
    shape, half = (28, 28, 1), jnp.bfloat16
    for name in ("mlp", "dcgan", "md_gan_mlp", "md_gan_cnn", "resnet", "sagan"):
        build = getattr(models, name)
        assert models.parse(name, shape) == build(shape, 0)
        wide = build(shape, 10, width=24, dtype=half)
        assert models.parse(f"{name}:24", shape, 10, half) == wide
        assert wide != build(shape, 10, width=24)
        assert (wide.num_classes, wide.sample_shape) == (10, shape)


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
        (lambda: models.resnet((9, 9, 1)), "even height and width"),
        (lambda: models.sagan((8, 8)), "sample_shape"),
        (lambda: models.sagan((8, 8, 1), width=1.5), "width must be .*got 1.5"),
        (lambda: models.md_gan_cnn((64, 64, 3)), r"must be \(28, 28, .*got \(64, 64"),
        (lambda: models.mlp((2,), -1), "num_classes must be .*got -1"),
        (lambda: models.mlp((2,), 64), "larger than num_classes.*got 64 and 64"),
        (lambda: models.parse("biggan", (8, 8, 1)), "mlp, dcgan, .*got 'biggan'"),
        (lambda: models.parse("", (8, 8, 1)), "must be one of"),
        (lambda: models.parse("dcgan:", (8, 8, 1)), "width .* got 'dcgan:'"),
        (lambda: models.parse("dcgan:0", (8, 8, 1)), "positive whole number"),
        (lambda: models.parse("dcgan:-2", (8, 8, 1)), "positive whole number"),
        (lambda: models.parse("dcgan:8:8", (8, 8, 1)), "positive whole number"),
        (lambda: models.parse("dcgan", (2,)), "sample_shape"),
    ],
)
def test_what_does_not_fit_is_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()


# ---------------------------------------------------------------- modules of one's own


class Own(nn.Module):
    """A layer after a dense one."""

    layer: nn.Module
    size: int

    @nn.compact
    def __call__(self, inputs):
        outputs = self.layer(nn.Dense(self.size)(inputs))
        return outputs[:, 0] if self.size == 1 else outputs


@pytest.mark.parametrize("name", ["generator", "discriminator"])
@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.BatchNorm(use_running_average=False), "batch_stats.*write nn.GroupNorm"),
        (nn.BatchNorm(use_running_average=True), "batch_stats.*write nn.GroupNorm"),
        (nn.Dropout(0.5, deterministic=False), "deterministic=True.*layer needs"),
    ],
)
def test_networks_with_more_than_parameters_are_refused(name, layer, message):
    def init(**changed):
        pair = {"generator": Own(nn.LayerNorm(), 2)} | changed
        pair = {"discriminator": Own(nn.LayerNorm(), 1)} | pair
        return models.init(models.Gan(**pair, latent_size=3, sample_shape=(2,)), KEY)

    init()
    size = 2 if name == "generator" else 1
    with pytest.raises(ValueError, match=f"^{name} must .*{message}"):
        init(**{name: Own(layer, size)})


class OfNnx(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, inputs):
        return self.layer(inputs)


def test_modules_of_nnx_are_bridged():
    judge = Own(nn.LayerNorm(), 1)
    for module in (OfNnx, OfNnx(nnx.Rngs(0))):
        with pytest.raises(ValueError, match=r"^generator .*to_linen\(OfNnx, \.\.\.\)"):
            models.Gan(module, judge, 3, (2,))
    gan = models.Gan(nnx.bridge.to_linen(OfNnx), judge, 3, (2,))
    z = models.init(gan, jax.random.key(0))
    assert models.sample(gan, z.x, jax.random.key(1), 5).shape == (5, 2)
