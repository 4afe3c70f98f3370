"""Compressors block by block, and contractions made of unbiased ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsp import compressors


def roundtrip(compressor, key, x):
    return compressor.decompress(compressor.compress(key, x), x)


@pytest.mark.parametrize("d", [1, 5, 128, 300])
def test_every_block_has_a_scale_of_its_own(d):
    codec = compressors.blockwise(compressors.sign(), 128)
    x = jax.random.normal(jax.random.key(0), (d,)) * jnp.arange(1.0, d + 1)
    out = roundtrip(codec, jax.random.key(1), x)
    assert (out.shape, out.dtype) == (x.shape, x.dtype)
    width = min(d, 128)
    padded = np.pad(np.asarray(x), (0, -d % width)).reshape(-1, width)
    expected = np.abs(padded).mean(1, keepdims=True) * np.where(padded < 0, -1, 1)
    np.testing.assert_allclose(out, expected.ravel()[:d], rtol=1e-5)
    payload = codec.compress(jax.random.key(1), x)
    size = sum(8 * a.dtype.itemsize * a.size for a in jax.tree.leaves(payload))
    assert codec.bits(x) == size


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("kind", ["normal", "spike", "level"])
def test_quantizers_become_contractions_in_any_dimension(bits, kind):
    codec = compressors.contractive(compressors.quantize(bits))
    d = 4096
    x = {
        "normal": jax.random.normal(jax.random.key(0), (d,)),
        "spike": jnp.full(d, 1e-3).at[7].set(1.0),
        "level": jnp.full(d, 0.03).at[::128].set(1.0),  # close to the worst for 4 bits
    }[kind]
    keys = jax.random.split(jax.random.key(1), 50)
    out = jax.jit(jax.vmap(lambda k: roundtrip(codec, k, x)))(keys)
    loss = float(jnp.mean(jnp.sum((out - x) ** 2, 1)) / jnp.sum(x**2))
    assert loss <= 1 - 1 / codec.delta(d)
    assert codec.delta(10**9) <= 2


def test_what_is_contractive_stays_as_it_is():
    top = compressors.top_k(0.1)
    assert compressors.contractive(top) is top
    natural = compressors.contractive(compressors.natural())
    assert natural.delta(1000) == pytest.approx(8 / 7)
    assert compressors.contractive(compressors.rand_k(0.1)).name.startswith("scaled")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: compressors.blockwise(compressors.perm_k(), 8),
            "depend on the worker",
        ),
        (lambda: compressors.blockwise(compressors.sign(), 0), "size must be at least"),
        (lambda: compressors.contractive(None), "compressor must"),
    ],
)
def test_bad_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()
