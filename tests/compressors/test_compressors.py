"""Compressors: NumPy references fed with the same random words, and the constants.

What each is held to, whatever the vector: unbiased within five standard errors, its
second moment below q, contraction by delta, a payload of the promised size, shape and
dtype kept.
"""

import functools
import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsp
from jaxsp import compressors
from jaxsp.compressors import counter_rng, packing

KEY = jax.random.key(3)
UNBIASED = [
    compressors.identity(),
    compressors.rand_k(0.3),
    compressors.perm_k().for_worker(1, 3),
    compressors.natural(),
    compressors.dithering(1),
    compressors.dithering(5),
    compressors.ternary(),
    *(compressors.quantize(bits) for bits in range(2, 9)),
]
CONTRACTIVE = [
    compressors.top_k(0.3),
    compressors.sign(),
    compressors.low_rank(1),
    compressors.scaled(compressors.quantize(3)),
    compressors.scaled(compressors.rand_k(0.3)),
]
ALL = UNBIASED + CONTRACTIVE
# One for every way of coding.
SOME = [c for c in ALL if c.name not in ("ternary()", "dithering(1)", "identity()")]
SOME = [c for c in SOME if c.name not in (f"quantize({b})" for b in (2, 3, 5, 6, 7))]
names = functools.partial(pytest.mark.parametrize, ids=str)


# ------------------------------------------------------------------ references


def threefry(seed, x, y):
    """Threefry-2x32, twenty rounds."""
    k = [int(seed[0]), int(seed[1])]
    k.append(k[0] ^ k[1] ^ 0x1BD11BDA)
    mask = np.uint64(0xFFFFFFFF)
    x = (np.asarray(x, np.uint64) + np.uint64(k[0])) & mask
    y = (np.asarray(y, np.uint64) + np.uint64(k[1])) & mask
    rotations = [13, 15, 26, 6, 17, 29, 16, 24]
    for r in range(20):
        x = (x + y) & mask
        s = np.uint64(rotations[r % 8])
        y = ((y << s) | (y >> (np.uint64(32) - s))) & mask ^ x
        if r % 4 == 3:
            i = r // 4 + 1
            x = (x + np.uint64(k[i % 3])) & mask
            y = (y + np.uint64(k[(i + 1) % 3] + i)) & mask
    return x.astype(np.uint32), y.astype(np.uint32)


def words(key, d):
    return threefry(np.asarray(counter_rng.seed(key)), np.arange(d), 0)[0]


def bernoulli(p, word):
    return word < np.floor(p.astype(np.float64) * 2.0**32)


def permutation(key, positions, d):
    """A Feistel network on a grid of about √d by √d, again until below d."""
    seed = np.asarray(counter_rng.seed(key))
    a = math.isqrt(d - 1) + 1
    b = -(-d // a)
    out = []
    for t in positions:
        while True:
            left, right = divmod(int(t), b)
            for i in range(4):
                left = (left + int(threefry(seed, right, 2 * i + 1)[0]) % a) % a
                right = (right + int(threefry(seed, left, 2 * i + 2)[0]) % b) % b
            t = left * b + right
            if t < d:
                break
        out.append(t)
    return np.array(out)


def stochastic(levels, norm):
    def reference(v, key):
        scale = norm(v).astype(v.dtype)
        step = scale * v.dtype.type(1 / levels)
        y = np.abs(v) / scale * v.dtype.type(levels)
        whole = np.floor(y)
        level = whole + bernoulli(y - whole, words(key, v.size))
        return np.sign(v) * (level.astype(v.dtype) * step)

    return reference


def natural(v, key):
    mantissa, exponent = np.frexp(np.abs(v))  # |v| = mantissa 2^exponent
    up = bernoulli(2 * mantissa - 1, words(key, v.size))
    return np.sign(v) * np.ldexp(np.ones_like(v), exponent - 1 + up)


def top_k(v, key):
    order = np.argsort(-np.abs(v), kind="stable")[: round(0.3 * v.size)]
    return np.where(np.isin(np.arange(v.size), order), v, 0)


def rand_k(v, key):
    k = round(0.3 * v.size)
    kept = np.isin(np.arange(v.size), permutation(key, range(k), v.size))
    return np.where(kept, v * v.dtype.type(v.size / k), 0)


def perm_k(v, key):
    size = -(-v.size // 3)
    shift = words(key, size) % 3
    group, number = np.arange(v.size) % size, np.arange(v.size) // size
    return np.where(number == (1 + shift[group]) % 3, 3 * v, 0)


def low_rank(v, key):
    m = math.isqrt(v.size)
    V = np.append(v, np.zeros(-v.size % m)).reshape(-1, m)
    P, _ = np.linalg.qr(V @ np.asarray(jax.random.normal(key, (m, 1), v.dtype)))
    return (P @ (P.T @ V)).ravel()[: v.size]


def largest(v):
    return np.max(np.abs(v))


REFERENCES = {
    "top_k(0.3)": top_k,
    "rand_k(0.3)": rand_k,
    "perm_k(), one of 3": perm_k,
    "natural()": natural,
    "dithering(1)": stochastic(1, np.linalg.norm),
    "dithering(5)": stochastic(5, np.linalg.norm),
    "ternary()": stochastic(1, largest),
    **{f"quantize({b})": stochastic(2 ** (b - 1) - 1, largest) for b in range(2, 9)},
    "sign()": lambda v, key: np.where(v < 0, -1, 1) * np.mean(np.abs(v)),
    "low_rank(1)": low_rank,
}
TO_ROUNDING = {"sign()", "low_rank(1)", "dithering(1)", "dithering(5)"}


@functools.cache
def round_trip(compressor):
    """Compress and decompress, compiled once a shape; and for many keys."""

    def once(key, x):
        return compressor.decompress(compressor.compress(key, x), x)

    return jax.jit(once), jax.jit(jax.vmap(once, in_axes=(0, None)))


@pytest.mark.parametrize("name", REFERENCES)
def test_equals_numpy(name):
    compressor = next(c for c in ALL if c.name == name)
    # More than a round part of 1,024 numbers, and a rest that fills no byte.
    rng = np.random.default_rng(0)
    v = rng.normal(size=1024 + 13) * np.exp(rng.normal(size=1024 + 13))
    v = v.astype(np.float32)
    theirs = REFERENCES[name](v, KEY)
    ours = np.asarray(round_trip(compressor)[0](KEY, jnp.asarray(v)))
    rtol = 2e-5 if name in TO_ROUNDING else 1.2e-7  # one unit in the last place
    np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=rtol * 1e-1)


def test_equals_numpy_in_float64(x64):
    v = np.random.default_rng(1).normal(size=77)
    for name in ("natural()", "quantize(5)", "top_k(0.3)", "rand_k(0.3)"):
        compressor = next(c for c in ALL if c.name == name)
        ours = round_trip(compressor)[0](KEY, jnp.asarray(v))
        assert ours.dtype == np.float64
        np.testing.assert_allclose(ours, REFERENCES[name](v, KEY), rtol=2.3e-16)


# ------------------------------------------------------------------ constants


@st.composite
def vectors(draw, d):
    """Vectors of every sort."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["normal", "wide", "spike", "ties", "zeros", "worst"]))
    x = rng.normal(size=d)
    if kind == "wide":
        x = x * 10.0 ** rng.uniform(-6, 6, d)
    elif kind == "spike":
        x = np.where(np.arange(d) == rng.integers(d), x, 0)
    elif kind == "ties":
        x = rng.integers(-2, 3, d)
    elif kind == "zeros":
        x = np.zeros(d)
    elif kind == "worst":  # of max-scaled rounding at some number of levels
        x = np.full(d, 1 / np.sqrt(d) / rng.integers(1, 9))
        x[rng.integers(d)] = 1
    scale = 10.0 ** draw(st.sampled_from([0, -25, 30]))
    return (x * scale).astype(np.float32)


KEYS = 512


@names("compressor", UNBIASED)
@pytest.mark.parametrize("d", [1, 13])
def test_unbiased_with_second_moment_below_q(compressor, d):
    many = round_trip(compressor)[1]

    @hypothesis.settings(max_examples=12)
    @hypothesis.given(vectors(d), st.integers(0, 2**31 - 1))
    def check(x, seed):
        out = many(jax.random.split(jax.random.key(seed), KEYS), x)
        size = np.linalg.norm(x.astype(np.float64)) or 1.0
        v, Q = x / size, np.asarray(out, np.float64) / size
        assert not Q[:, v == 0].any()
        for direction in (v, np.ones(d), np.cos(np.arange(d)), np.eye(d)[d // 2]):
            samples = (Q - v) @ direction
            error = samples.std() / np.sqrt(KEYS)
            # A rounding that happens once in KEYS draws may not have been seen.
            unseen = 10 / KEYS * np.abs(direction).max() if error < 1e-15 else 1e-6
            assert abs(samples.mean()) <= 5 * error + unseen
        squares = (Q**2).sum(1)
        error = squares.std() / np.sqrt(KEYS)
        q = compressor.q(d)
        assert squares.mean() <= q * (v**2).sum() * (1 + 1e-6) + 5 * error

    check()


@names("compressor", [*CONTRACTIVE, compressors.identity()])
@pytest.mark.parametrize("d", [1, 13, 30])
def test_contractive(compressor, d):
    many = round_trip(compressor)[1]
    random = "scaled" in compressor.name or "low_rank" in compressor.name

    @hypothesis.settings(max_examples=12)
    @hypothesis.given(vectors(d), st.integers(0, 2**31 - 1))
    def check(x, seed):
        out = many(jax.random.split(jax.random.key(seed), KEYS), x)
        size = np.linalg.norm(x.astype(np.float64)) or 1.0
        v, C = x / size, np.asarray(out, np.float64) / size
        squares = ((C - v) ** 2).sum(1)
        bound = (1 - 1 / compressor.delta(d)) * (v**2).sum() + 1e-6
        if random:
            assert squares.mean() <= bound + 5 * squares.std() / np.sqrt(KEYS)
        else:
            assert np.all(squares <= bound)
        if "low_rank" in compressor.name:  # a projection never expands
            assert np.all(squares <= 1 + 1e-6)

    check()


def excess(v, levels):
    """E|Q(v)|² / |v|² of rounding to levels of the largest magnitude, exactly."""
    y = levels * np.abs(v) / np.max(np.abs(v))
    f = y - np.floor(y)
    return 1 + np.sum(f * (1 - f)) / np.sum(y**2)


@pytest.mark.parametrize("bits", range(2, 9))
def test_q_of_quantize_is_attained_and_never_passed(bits):
    levels, rng = 2 ** (bits - 1) - 1, np.random.default_rng(bits)
    q = compressors.quantize(bits).q
    for d in (2, 10, 1000):
        for _ in range(200):
            v = rng.uniform(size=d) ** rng.uniform(0.1, 30)
            assert excess(v, levels) <= q(d) * (1 + 1e-12)
        # The eigenvector: one large number, and all others below the first level.
        root = np.sqrt(1 + (d - 1) / levels**2)
        v = np.append(np.full(d - 1, 1 / levels / (1 + root)), 1)
        assert excess(v, levels) == pytest.approx(q(d), rel=1e-9)
    assert compressors.ternary().q(50) == pytest.approx(compressors.quantize(2).q(50))


def test_constants():
    d = 100
    assert compressors.rand_k(0.25).q(d) == compressors.top_k(0.25).delta(d) == 4
    assert compressors.top_k(1e-9).delta(d) == d
    assert compressors.natural().q(d) == 9 / 8
    assert compressors.dithering(2).q(d) == 1 + 10 / 2
    assert compressors.dithering(50).q(d) == 1 + d / 50**2
    assert compressors.ternary().q(d) == 5.5
    assert compressors.sign().delta(d) == d
    assert compressors.perm_k().for_worker(0, 7).q(d) == 7
    assert compressors.low_rank(2).delta(d) == 5
    scaled = compressors.scaled(compressors.natural())
    assert scaled.q is None
    assert scaled.delta(d) == 9 / 8
    assert compressors.identity().q(d) == compressors.identity().delta(d) == 1


def test_unbiased_is_not_contractive_until_scaled():
    x = jax.random.normal(KEY, (1000,))
    keys = jax.random.split(KEY, 20)

    def error(compressor):
        out = round_trip(compressor)[1](keys, x)
        return float(jnp.mean(jnp.sum((out - x) ** 2, 1)) / jnp.sum(x**2))

    assert error(compressors.quantize(2)) == pytest.approx(1.6, abs=0.4)
    assert error(compressors.dithering(4)) == pytest.approx(6.0, abs=0.8)
    assert error(compressors.scaled(compressors.quantize(2))) < 1
    assert error(compressors.scaled(compressors.dithering(4))) < 1


# ------------------------------------------------------------------ random words


def test_threefry_is_threefry():
    # Known answers of the generator's authors, and JAX's own.
    ones = np.uint32(0xFFFFFFFF)
    pi = np.array([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], np.uint32)
    for key, counter, answer in [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((ones, ones), (ones, ones), (0x1CB996FC, 0xBB002BE7)),
        (pi[2:], pi[:2], (0xC4923A9C, 0x483DF7A0)),
    ]:
        seed, (x, y) = np.array(key, np.uint32), np.array(counter, np.uint32)
        assert [int(w) for w in counter_rng.threefry(jnp.asarray(seed), x, y)] == [
            *answer
        ]
        assert [int(w) for w in threefry(seed, x, y)] == [*answer]


def test_happens_as_often_as_it_should():
    for p in (0.0, 2.0**-9, 0.3, 1 - 2.0**-24):
        p = np.float32(p)
        bound = int(float(p) * 2**32)  # so many words of 2^32
        assert not counter_rng.bernoulli(p, np.uint32(bound))
        assert bound == 0 or counter_rng.bernoulli(p, np.uint32(bound - 1))


@pytest.mark.parametrize("d", [1, 2, 3, 5, 6, 1000])
def test_permutation_is_one_and_takes_every_place_alike(d):
    count = 4000 if d < 10 else 4
    seeds = jax.random.bits(KEY, (count, 2), jnp.uint32)
    positions = jnp.arange(d, dtype=jnp.uint32)
    out = jax.jit(jax.vmap(lambda s: counter_rng.permutation(s, positions, d)))(seeds)
    out = np.asarray(out)
    assert np.all(np.sort(out, axis=1) == np.arange(d))
    if 1 < d < 10:  # ordered pairs at the first two positions: chi-square
        pairs = np.bincount(out[:, 0] * d + out[:, 1], minlength=d * d)
        pairs = pairs[~np.eye(d, dtype=bool).ravel()]
        expected = count / (d * (d - 1))
        freedom = d * (d - 1) - 1
        chi2 = np.sum((pairs - expected) ** 2 / expected)
        assert abs(chi2 - freedom) < 5 * np.sqrt(2 * freedom)


# ------------------------------------------------------------------ payloads


@pytest.mark.parametrize("d", [1, 9, 1024 + 77, 64 * 1024, 64 * 1024 + 1])
def test_packing_is_undone(d):
    rng = np.random.default_rng(d)
    codes = [jnp.asarray(rng.integers(0, 2**b, d), jnp.uint32) for b in range(1, 9)]

    @jax.jit
    def through(codes):
        packed = [packing.pack(c, b, lambda c, _: c) for b, c in enumerate(codes, 1)]
        return packed, [
            packing.unpack([p], b, d, lambda c: c) for b, p in enumerate(packed, 1)
        ]

    packed, out = through(codes)
    for bits in range(1, 9):
        np.testing.assert_array_equal(out[bits - 1], codes[bits - 1])
        assert packed[bits - 1].dtype == np.uint8
        assert packed[bits - 1].size == packing.packed_size(d, bits)
        # At most a group of eight codes more than the bits, or a tile of a long one.
        more = packed[bits - 1].size - d * bits / 8
        assert 0 <= more < bits * (1 if d < 64 * 1024 or bits == 8 else 128)


def test_bits():
    like = jax.ShapeDtypeStruct((40, 60), jnp.float32)  # 2,400 = 2,048 + 352
    d = 2400
    expected = {
        compressors.identity(): 32 * d,
        compressors.top_k(0.01): 24 * (32 + 16),
        compressors.rand_k(0.01): 24 * 32 + 64,
        compressors.perm_k().for_worker(0, 7): 343 * 32 + 64 + 32,
        compressors.natural(): 9 * d,
        compressors.dithering(1): 2 * d + 32,
        compressors.dithering(3): 3 * d + 32,
        compressors.dithering(4): 4 * d + 32,
        compressors.dithering(127): 8 * d + 32,
        compressors.ternary(): 2 * d + 32,
        compressors.sign(): d + 32,
        compressors.low_rank(3): 32 * 3 * (40 + 60),
        compressors.low_rank(25): 32 * d,  # the matrix itself is smaller
        **{compressors.quantize(b): b * d + 32 for b in range(2, 9)},
        compressors.scaled(compressors.ternary()): 2 * d + 32,
    }
    for compressor, bits in expected.items():
        assert compressor.bits(like) == bits, compressor
    half = jax.ShapeDtypeStruct((200,), jnp.bfloat16)
    assert compressors.top_k(0.1).bits(half) == 20 * (16 + 8)
    assert compressors.natural().bits(half) == 9 * 200
    assert compressors.quantize(4).bits(half) == 4 * 200 + 32


@names("compressor", ALL)
def test_payload_is_what_bits_says_and_keeps_shape_and_dtype(compressor, x64):
    dtypes = (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64, jnp.float32)
    shapes = ((), (1,), (5, 7), (2, 3, 4), (1031,))
    for dtype, shape in zip(dtypes, shapes, strict=True):
        like = jax.ShapeDtypeStruct(shape, dtype)

        def once(key, x, like=like):
            payload = compressor.compress(key, x)
            return payload, compressor.decompress(payload, like)

        payload, out = jax.eval_shape(once, KEY, like)
        assert (out.shape, out.dtype) == (shape, dtype)
        size = sum(8 * a.size * a.dtype.itemsize for a in jax.tree.leaves(payload))
        assert compressor.bits(like) == size


def test_half_precision_and_float64_values(x64):
    x = np.random.default_rng(5).normal(size=(3, 11))

    def all_of_them(key, x):
        return [c.decompress(c.compress(key, x), x) for c in SOME]

    for dtype, tolerance in ((jnp.bfloat16, 0.02), (jnp.float16, 3e-3)):
        # The same number, so that the same words round it the same way.
        given = jnp.asarray(jnp.asarray(x, dtype), jnp.float32)
        exact = jax.jit(all_of_them)(KEY, given)
        ours = jax.jit(all_of_them)(KEY, given.astype(dtype))
        for compressor, a, b in zip(SOME, exact, ours, strict=True):
            if "low_rank" not in compressor.name:  # whose start has another type
                a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
                np.testing.assert_allclose(
                    a, b, rtol=tolerance, err_msg=str(compressor)
                )


@names("compressor", ALL)
def test_zero_stays_zero_and_nonfinite_is_never_finite(compressor):
    once = round_trip(compressor)[0]
    assert not np.any(once(KEY, jnp.zeros(13)))
    for bad in (np.nan, np.inf, -np.inf):
        for place in range(0, 13, 3):
            x = jnp.ones(13).at[place].set(bad)
            assert not np.all(np.isfinite(once(KEY, x)))
    for huge in (3e38, 1e-37):
        assert np.all(np.isfinite(once(KEY, jnp.full(13, huge) / 13)))


@names("unbiased", [compressors.rand_k(0.01), compressors.perm_k().for_worker(1, 100)])
def test_scaled_of_a_few_numbers_does_not_overflow_on_the_way(unbiased):
    x = jnp.full(1000, 1e4, jnp.float16)
    out = np.asarray(round_trip(compressors.scaled(unbiased))[0](KEY, x))
    np.testing.assert_array_equal(out[out != 0], np.float16(1e4))
    assert np.count_nonzero(out) == 10


def test_natural_at_the_ends_of_its_range(x64):
    once = round_trip(compressors.natural())[0]
    for dtype, top in ((jnp.float32, 2.0**127), (jnp.float16, 2.0**15)):
        x = jnp.full(9, jnp.finfo(dtype).max, dtype)
        assert set(np.asarray(once(KEY, -x), np.float64)) == {-top}
    for p in (1 / 4, 1 / 2):  # float64: either 0 or the smallest, unbiased
        out = np.asarray(once(KEY, jnp.full(4000, p * 2.0**-126))) * 2.0**126
        assert set(out) == {0.0, 1.0}
        assert abs(out.mean() - p) < 5 * np.sqrt(p * (1 - p) / 4000)


@pytest.mark.parametrize(("times", "dtype"), [(300, np.uint16), (65537, np.uint32)])
def test_top_k_breaks_ties_by_index_and_keeps_exactly_k(times, dtype):
    v = jnp.asarray(np.tile([1.0, -2.0, 2.0, 0.0], times).astype(np.float32))
    for fraction in (0.001, 0.2, 0.6, 0.9, 1.0):
        payload = jax.jit(compressors.top_k(fraction).compress)(KEY, v)
        order = np.argsort(-np.abs(np.asarray(v)), kind="stable")
        expected = np.sort(order[: max(1, round(fraction * v.size))])
        np.testing.assert_array_equal(payload.indices, expected)
        assert payload.indices.dtype == dtype


# ------------------------------------------------------------------ workers


TOGETHER = [*SOME, compressors.blockwise(compressors.quantize(4), 8)]
TOGETHER = [c for c in TOGETHER if c.for_worker(0, 1).total is not None]


@names("compressor", TOGETHER)
@pytest.mark.parametrize("count", [1, 3, 8, 19])
def test_total_is_the_weighted_sum(compressor, count, x64):
    shape = (5, 29)
    x = jax.random.normal(KEY, (count, *shape), jnp.float64)
    like, weights = x[0], jnp.linspace(-1, 2, count)
    mine = [compressor.for_worker(m, count) for m in range(count)]

    @jax.jit
    def both(x):
        keys = [
            KEY if compressor.shared_key else jax.random.key(m) for m in range(count)
        ]
        payloads = [c.compress(k, v) for c, k, v in zip(mine, keys, x, strict=True)]
        each = [c.decompress(p, like) for c, p in zip(mine, payloads, strict=True)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *payloads)
        total = mine[0].total(stacked, weights, like)
        return total, jnp.einsum("m,mij->ij", weights, jnp.stack(each))

    total, expected = both(x)
    assert total.shape == shape
    assert total.dtype == x.dtype
    np.testing.assert_allclose(total, expected, rtol=1e-12, atol=1e-12)


@names("compressor", TOGETHER)
def test_what_adds_up_has_one_order(compressor):
    """A scatter whose places repeat adds up in any order on GPUs."""
    x, first = jnp.ones(2000), compressor.for_worker(0, 9)
    payload = first.compress(KEY, x)
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * 9), payload)
    total = str(jax.make_jaxpr(lambda s: first.total(s, jnp.ones(9), x))(stacked))
    assert total.count("= scatter") == total.count("unique_indices=True")


def test_all_modes_agree():
    """In a scan, under vmap and under shard_map as one at a time."""
    count, d = 4, 37
    x = jax.random.normal(KEY, (count, d))
    keys = jax.random.split(KEY, count)

    def one_worker(key, x):
        def step(x, key):
            out = [c.decompress(c.compress(key, x), x) for c in SOME]
            return x + 1, jnp.stack(out)

        return jax.lax.scan(step, x, jax.random.split(key, 2))[1]

    virtual = jaxsp.Workers(count, devices=jax.devices()[:1])
    real = jaxsp.Workers(count, devices=jax.devices()[:count])
    assert (virtual.mode, real.mode) == ("vmap", "shard_map")
    alone = np.stack([jax.jit(one_worker)(keys[m], x[m]) for m in range(count)])
    for workers in (virtual, real):
        out = jax.jit(workers.map(one_worker))(keys, x)
        np.testing.assert_allclose(out, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("d", [2, 12, 13])
def test_perm_k_covers_the_vector(d):
    workers = jaxsp.Workers(3, devices=jax.devices()[:1])
    x = jax.random.normal(KEY, (d,))

    def one(_):
        index = jaxsp.comm.worker_index(workers.axis_name)
        perm = compressors.perm_k().for_worker(index, workers.count)
        return perm.decompress(perm.compress(KEY, x), x)

    out = workers.map(one)(jnp.zeros(3))
    assert np.all(np.count_nonzero(out, axis=0) == 1)
    np.testing.assert_allclose(out.mean(0), x, rtol=1e-6)


@pytest.mark.parametrize("d", [6, 64 * 128 * 3 + 5])
def test_perm_k_deals_out_alike_and_each_group_by_itself(d):
    """A number's worker is uniform, and two groups' shifts are independent."""
    count, draws = 3, 3000 if d < 10 else 30
    x = jnp.ones(d)

    @jax.jit
    @jax.vmap
    def owner(key):
        perm = [compressors.perm_k().for_worker(m, count) for m in range(count)]
        sent = [c.decompress(c.compress(key, x), x) > 0 for c in perm]
        return jnp.argmax(jnp.stack(sent), 0)

    owners = np.asarray(owner(jax.random.split(KEY, draws)))
    for m in range(count):
        share = np.mean(owners == m, axis=0)
        sigma = np.sqrt(2 / 9 / draws)
        assert np.abs(share - 1 / 3).max() < (4 if d < 10 else 7) * sigma
    if d < 10:  # the two groups are the even places and the odd ones
        pairs = np.bincount(owners[:, 0] * count + owners[:, 1], minlength=9)
        assert np.sum((pairs - draws / 9) ** 2) / (draws / 9) < 8 + 5 * 4
        np.testing.assert_array_equal((owners[:, 0] - owners[:, 2]) % 3, 2)


def test_perm_k_anyone_can_decompress():
    x, perm = jax.random.normal(KEY, (10,)), compressors.perm_k()
    assert perm.shared_key
    payload = perm.for_worker(2, 3).compress(KEY, x)
    np.testing.assert_array_equal(
        perm.for_worker(0, 3).decompress(payload, x),
        perm.for_worker(2, 3).decompress(payload, x),
    )
    scaled = compressors.per_leaf(compressors.scaled(perm)).for_worker(2, 3)
    assert scaled.per_leaf
    assert scaled.shared_key
    assert scaled.delta(10) == 3
    np.testing.assert_allclose(
        3 * scaled.decompress(scaled.compress(KEY, x), x),
        perm.for_worker(2, 3).decompress(payload, x),
        rtol=1e-6,
    )


def test_rand_k_workers_draw_different_places():
    x, rand = jnp.ones(1000), compressors.rand_k(0.1)
    out = round_trip(rand)[1](jax.random.split(KEY, 16), x)
    assert float(jnp.sum((out.mean(0) - x) ** 2) / 1000) == pytest.approx(
        9 / 16, rel=0.2
    )


# ------------------------------------------------------------------ low rank


def matrix(singular_values, seed=0):
    rng = np.random.default_rng(seed)
    U, _ = np.linalg.qr(rng.normal(size=(20, 12)))
    V, _ = np.linalg.qr(rng.normal(size=(12, 12)))
    return jnp.asarray(U * singular_values @ V.T, jnp.float32)


@pytest.mark.parametrize("decay", [1.0, 0.7, 0.1])
def test_low_rank_is_as_good_as_its_proof(decay):
    X = matrix(decay ** np.arange(12))
    out = round_trip(compressors.low_rank(3))[1](jax.random.split(KEY, KEYS), X)
    errors = np.asarray(jnp.sum((out - X) ** 2, (1, 2)) / jnp.sum(X**2))
    assert errors.mean() <= 1 - 3 / 12 + 5 * errors.std() / np.sqrt(KEYS)
    if decay == 1.0:  # attained where all singular values are equal
        np.testing.assert_allclose(errors, 1 - 3 / 12, rtol=1e-4)


def test_low_rank_warm_start_finds_the_singular_vectors():
    low_rank = compressors.low_rank(3)
    X = matrix(0.8 ** np.arange(12))
    best = np.sum(0.8 ** (2 * np.arange(3, 12)))
    warm = jax.jit(low_rank.warm)
    payload = jax.tree.map(jnp.zeros_like, low_rank.compress(KEY, X))
    errors = []
    for _ in range(40):
        payload = warm(KEY, X, payload)
        errors.append(float(jnp.sum((low_rank.decompress(payload, X) - X) ** 2)))
    random = low_rank.decompress(low_rank.compress(KEY, X), X)
    # Zeros are no help: the start is random.
    assert errors[0] == pytest.approx(float(jnp.sum((random - X) ** 2)), rel=1e-5)
    assert errors[0] > 1.05 * best
    assert errors[-1] == pytest.approx(best, rel=1e-3)


def test_low_rank_is_exact_on_low_rank():
    X = matrix(np.where(np.arange(12) < 3, 1.0, 0))
    out = round_trip(compressors.low_rank(3))[0](KEY, X)
    np.testing.assert_allclose(out, X, atol=1e-5)
    assert compressors.low_rank(3).per_leaf


def test_per_leaf():
    sign = compressors.sign()
    leafwise = compressors.per_leaf(sign)
    assert not sign.per_leaf
    assert leafwise.per_leaf
    assert leafwise.name == "per_leaf(sign())"
    assert compressors.per_leaf(leafwise) is leafwise


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: compressors.top_k(0),
            "fraction must be above 0 .* got 0",
        ),
        (lambda: compressors.rand_k(1.5), "fraction .* as 0.01, got 1.5"),
        (lambda: compressors.top_k("1%"), "fraction must be above 0 .* got '1%'"),
        (lambda: compressors.top_k(math.nan), "fraction .* got nan"),
        (lambda: compressors.quantize(1), "bits must be at least 2, got 1"),
        (lambda: compressors.quantize(9), "bits must be at most 8, got 9"),
        (lambda: compressors.quantize(4.0), "bits must be an integer, got 4.0"),
        (lambda: compressors.dithering(0), "levels must be at least 1, got 0"),
        (lambda: compressors.dithering(128), "levels must be at most 127.* got 128"),
        (lambda: compressors.low_rank(0), "rank must be at least 1, got 0"),
        (
            lambda: compressors.scaled(compressors.sign()),
            r"unbiased must be an unbiased compressor, got sign\(\).* write sign\(\)",
        ),
        (lambda: compressors.scaled("sign"), "unbiased must come from .* got 'sign'"),
        (lambda: compressors.per_leaf(None), "compressor must come from .* got None"),
        (lambda: compressors.perm_k().q(3), "perm_k.* write perm_k.*for_worker"),
        (lambda: compressors.perm_k().compress(KEY, jnp.ones(3)), "for_worker"),
        (
            lambda: compressors.perm_k().for_worker(3, 3),
            "index must be at most 2",
        ),
        (lambda: compressors.perm_k().for_worker(0, 0), "count must be at least 1"),
    ],
)
def test_refuses(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@names("compressor", ALL)
def test_refuses_arrays_that_cannot_be_compressed(compressor):
    with pytest.raises(ValueError, match=r"x must be .* got int32: convert"):
        compressor.compress(KEY, jnp.arange(3))
    with pytest.raises(ValueError, match=r"x must have .* got shape \(0, 2\)"):
        compressor.compress(KEY, jnp.zeros((0, 2)))
    with pytest.raises(ValueError, match="key must be a typed key"):
        compressor.compress(jnp.zeros(2, jnp.uint32), jnp.ones(3))


BEYOND = jax.ShapeDtypeStruct((2**31 + 8,), jnp.bfloat16)
INDEXING = [
    compressors.top_k(1e-6),
    compressors.rand_k(1e-6),
    compressors.perm_k().for_worker(0, 4),
    compressors.sign(),
    compressors.natural(),
    compressors.dithering(4),
    compressors.quantize(4),
    compressors.ternary(),
]


@names("compressor", INDEXING)
def test_more_numbers_than_places_are_refused(compressor):
    with pytest.raises(ValueError, match=r"at most 2147483647 .* 2147483656: .*blockw"):
        compressor.bits(BEYOND)


def test_blocks_take_more_numbers_than_places():
    blocks = compressors.blockwise(compressors.top_k(1e-3), 2**20)
    payload = jax.eval_shape(blocks.compress, KEY, BEYOND)
    out = jax.eval_shape(lambda p: blocks.decompress(p, BEYOND), payload)
    assert (out.shape, out.dtype) == (BEYOND.shape, BEYOND.dtype)
    assert compressors.identity().bits(BEYOND) == 16 * (2**31 + 8)
