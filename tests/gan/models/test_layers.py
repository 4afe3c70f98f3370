"""Convolutions, spectral normalization and attention against what they are."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxsp.gan import models

KEY = jax.random.key(3)


def conv(x, kernel, stride, padding):
    dims = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), (padding, padding), dimension_numbers=dims
    )


def parameters(module, x):
    """Drawn kernels, and biases that are not zero."""
    params = jax.jit(module.init)(KEY, x)["params"]
    return {**params, "bias": jnp.arange(1.0, 1 + params["bias"].size)}


@pytest.mark.parametrize(
    ("make", "stride", "width"),
    [
        (models.conv, 1, 5),
        (functools.partial(models.conv, strides=2), 2, 5),
        (models.strided_conv, 2, 8),
    ],
)
def test_convolutions(make, stride, width, x64):
    x = jax.random.normal(KEY, (2, 6, width, 3))
    module = make(4, jnp.float64)
    params = parameters(module, x)
    wanted = conv(x, params["kernel"], stride, (1, 1))
    got = jax.jit(module.apply)({"params": params}, x)
    np.testing.assert_allclose(got, wanted + params["bias"], atol=1e-13)


@pytest.mark.parametrize(
    ("make", "pad"),
    [(models.transposed_conv, (1, 1)), (models.wide_transposed_conv, (1, 2))],
)
def test_transposed_convolutions(make, pad, x64):
    x = jax.random.normal(KEY, (2, 4, 3, 3))
    module = make(2, jnp.float64)
    params = parameters(module, x)
    kernel = params["kernel"].swapaxes(2, 3)
    like = jax.ShapeDtypeStruct((2, 8, 6, 2), x.dtype)
    (wanted,) = jax.linear_transpose(lambda y: conv(y, kernel, 2, pad), like)(x)
    got = jax.jit(module.apply)({"params": params}, x)
    np.testing.assert_allclose(got, wanted + params["bias"], atol=1e-13)


def test_conv_with_a_kernel_for_each_worker():
    x = jax.random.normal(KEY, (3, 2, 6, 4, 2))
    module = models.conv(4, strides=2, spectral=True)
    keys = jax.random.split(KEY, 3)
    params = jax.jit(jax.vmap(lambda key: module.init(key, x[0])))(keys)
    together = jax.jit(jax.vmap(module.apply)).lower(params, x)
    alone = jax.jit(lambda params, x: lax.map(lambda a: module.apply(*a), (params, x)))
    np.testing.assert_allclose(together.compile()(params, x), alone(params, x), 1e-4)
    text = together.as_text()
    assert "dot_general" in text
    assert "convolution" not in text


def kernel_of(values, shape):
    """A kernel with these singular values, and the vectors of the first."""
    rows, columns = int(np.prod(shape[:-1])), shape[-1]
    rng = np.random.default_rng(1)
    left = np.linalg.qr(rng.normal(size=(rows, columns)))[0]
    right = np.linalg.qr(rng.normal(size=(columns, columns)))[0]
    return jnp.array((left * values) @ right.T).reshape(shape), left[:, 0], right[:, 0]


def largest(kernel):
    return np.linalg.svd(np.asarray(kernel).reshape(-1, kernel.shape[-1]))[1][0]


def test_normalized_kernels_have_norm_one(x64):
    """As exactly as documented: with a gap, crowded, wide, of one column."""
    spread = kernel_of(5 * 0.7 ** np.arange(16), (3, 3, 4, 16))[0]
    rng = np.random.default_rng(0)
    crowded = rng.normal(size=(3, 3, 16, 64))
    wide = 0.01 * rng.normal(size=(8, 128))
    for kernel, most in [(spread, 1.001), (crowded, 1.07), (wide, 1.15)]:
        normalized = jax.jit(models.spectral_normalize)(kernel)
        assert 1 - 1e-9 <= largest(normalized) < most
        np.testing.assert_allclose(
            np.asarray(normalized) * float(kernel.max() / normalized.max()), kernel
        )
    column = rng.normal(size=(9, 1))
    normalized = jax.jit(models.spectral_normalize)(column)
    np.testing.assert_allclose(largest(normalized), 1.0)


def test_more_iterations_are_closer_and_never_above(x64):
    kernel = np.random.default_rng(0).normal(size=(3, 3, 8, 32))
    norms = jax.jit(lambda k: [models.spectral_norm(k, i) for i in (1, 3, 10, 30, 90)])
    found = [float(norm) for norm in norms(kernel)]
    assert found == sorted(found)
    assert found[0] < 0.9 * largest(kernel)
    np.testing.assert_allclose(found[-1], largest(kernel), rtol=1e-4)


def test_a_zero_kernel_stays_zero_and_its_gradient_finite():
    f = lambda kernel: models.spectral_normalize(kernel).sum()  # noqa: E731
    value, gradient = jax.jit(jax.value_and_grad(f))(jnp.zeros((3, 2)))
    assert value == 0
    assert jnp.isfinite(gradient).all()


def test_gradient_of_a_normalized_kernel(x64):
    """(G − ⟨G, W/σ⟩ u vᵀ) / σ with the singular vectors u and v."""
    kernel, u, v = kernel_of(np.array([3.0, 0.3, 0.2, 0.1]), (2, 3, 4))
    direction = jax.random.normal(KEY, kernel.shape)
    loss = lambda k: jnp.vdot(direction, models.spectral_normalize(k))  # noqa: E731
    got = jax.jit(jax.grad(loss))(kernel)
    inner = np.vdot(direction, kernel / 3)
    outer = np.outer(u, v).reshape(kernel.shape)
    np.testing.assert_allclose(got, (direction - inner * outer) / 3, rtol=1e-8)


def test_singular_vectors_are_constants_of_the_gradient(x64):
    """After one iteration, far from the end, the gradient is still one u vᵀ."""
    kernel = np.random.default_rng(0).normal(size=(12, 8))
    norm = jax.value_and_grad(lambda kernel: models.spectral_norm(kernel, 1))
    value, gradient = jax.jit(norm)(kernel)
    values = np.linalg.svd(gradient)[1]
    np.testing.assert_allclose(values, [1.0] + 7 * [0.0], atol=1e-12)
    np.testing.assert_allclose(np.vdot(gradient, kernel), value)
    assert value < 0.95 * largest(kernel)


@pytest.mark.parametrize(
    ("module", "bound"),
    [(models.dense(8, spectral=True), 1), (models.conv(8, spectral=True), 3)],
)
def test_spectral_layers_are_lipschitz(module, bound):
    """In the worst direction, found by power iteration on the layer itself."""
    shape = (1, 6, 6, 4)
    params = jax.jit(module.init)(KEY, jnp.zeros(shape))
    params = jax.tree.map(lambda p: 50 * np.asarray(p), params)
    linear = lambda x: module.apply(params, x)  # noqa: E731

    @jax.jit
    def stretch(x):
        def body(_, x):
            y = jax.vjp(linear, x)[1](jax.jvp(linear, (x,), (x,))[1])[0]
            return y / jnp.linalg.norm(y)

        x = lax.fori_loop(0, 30, body, x)
        return jnp.linalg.norm(jax.jvp(linear, (x,), (x,))[1])

    found = stretch(jax.random.normal(KEY, shape))
    assert 0.5 * bound < found < 1.15 * bound


def test_discriminator_is_lipschitz_whatever_its_kernels():
    """And every logit sees its own sample alone.

    A halving block stretches by at most (1 + 3 · 3) / 2, the last by 1 + 3 · 3, the sum
    of 4 x 4 pixels by 4; the estimates of σ leave 15 % a kernel.
    """
    gan = models.resnet((8, 8, 1), latent_size=3, width=2)

    @jax.jit
    def logits_and_slopes(factor):
        y = gan.discriminator.init(KEY, jnp.zeros((1, 8, 8, 1)))["params"]
        y = jax.tree.map(lambda p: factor * p if p.ndim > 1 else p, y)
        samples = jax.random.normal(KEY, (16, 8, 8, 1))
        logits, pull = jax.vjp(lambda s: models.discriminate(gan, y, s), samples)
        slopes = pull(jnp.arange(16.0) % 2)[0].reshape(16, -1)
        return logits, jnp.linalg.norm(slopes, axis=1)

    logits, slopes = logits_and_slopes(1.0)
    assert 0 < slopes.max() < 5 * 10 * 4 * 1.15**5
    assert not slopes[::2].any()
    assert jnp.abs(logits).max() > 1e-2
    for factor in (100.0, 0.01):
        again = logits_and_slopes(factor)
        np.testing.assert_allclose(again, (logits, slopes), rtol=1e-3, atol=1e-5)


def test_attention_is_its_formula(x64):
    """Pixel by pixel, on an image of odd height."""
    module = models.SelfAttention(dtype=jnp.float64)
    x = jax.random.normal(KEY, (2, 5, 4, 16))
    params = jax.jit(module.init)(KEY, x)["params"]
    assert params["gamma"] == 0
    apply = jax.jit(module.apply)
    np.testing.assert_array_equal(apply({"params": params}, x), x)

    rng = np.random.default_rng(2)
    params = jax.tree.map(lambda p: rng.normal(size=p.shape), params)
    sizes = {n: p["kernel"].shape[1] for n, p in params.items() if n != "gamma"}
    assert sizes == {"query": 2, "key": 2, "value": 8, "out": 16}

    def linear(name, vector):
        layer = params[name]
        return vector @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])

    wanted = np.zeros(x.shape)
    for image, out in zip(np.asarray(x), wanted, strict=True):
        blocks = [
            [image[2 * i + a, 2 * j + b] for a in (0, 1) for b in (0, 1)]
            for i in range(2)
            for j in range(2)
        ]
        pooled = {
            name: [np.max([linear(name, p) for p in block], axis=0) for block in blocks]
            for name in ("key", "value")
        }
        for i, j in np.ndindex(5, 4):
            q = linear("query", image[i, j])
            weights = np.exp([q @ k for k in pooled["key"]])
            weights /= weights.sum()
            seen = sum(w * v for w, v in zip(weights, pooled["value"], strict=True))
            out[i, j] = image[i, j] + float(params["gamma"]) * linear("out", seen)
    np.testing.assert_allclose(apply({"params": params}, x), wanted, rtol=1e-10)


def test_spectral_attention_normalizes_its_kernels():
    module = models.SelfAttention(spectral=True)
    x = jax.random.normal(KEY, (1, 4, 4, 8))
    params = jax.jit(module.init)(KEY, x)["params"] | {"gamma": jnp.float32(1)}
    large = jax.tree.map(lambda p: 9 * p if p.ndim > 1 else p, params)
    first, second = (jax.jit(module.apply)({"params": p}, x) for p in (params, large))
    np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-6)
