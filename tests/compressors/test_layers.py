"""A compressor for each layer of a model."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsp
from jaxsp import MinMax, comm, compressors

KEY = jax.random.key(4)
TWO, FOUR, EIGHT = (compressors.quantize(b) for b in (2, 4, 8))


def model():
    rng = np.random.default_rng(0)

    def array(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return MinMax({"w": array(30, 2), "b": array(5)}, [array(4), array()])


def mixed():
    """One for a leaf, for a branch, and trees within the tree."""
    inner = compressors.per_leaf({"w": TWO, "b": compressors.identity()})
    return compressors.per_leaf(MinMax(inner, FOUR))


def test_every_leaf_goes_through_its_own():
    z, whole = model(), mixed()
    codecs = whole.for_leaves(z)
    assert [c.name for c in codecs] == ["identity()"] + ["quantize(2)"] + [
        "quantize(4)"
    ] * 2  # dictionaries are sorted
    payloads = whole.compress(KEY, z)
    expected = [
        c.compress(jax.random.fold_in(KEY, i), x)
        for i, (c, x) in enumerate(zip(codecs, jax.tree.leaves(z), strict=True))
    ]
    jax.tree.map(np.testing.assert_array_equal, payloads, expected)
    back = whole.decompress(payloads, z)
    for c, payload, x, found in zip(
        codecs, expected, *map(jax.tree.leaves, (z, back)), strict=True
    ):
        np.testing.assert_array_equal(found, c.decompress(payload, x))
    # Two of three have a scale: 5 numbers, 60 at 2 bits, 4 and 1 at 4 bits.
    assert whole.bits(z) == 5 * 32 + (60 * 2 + 32) + (4 * 4 + 32) + (8 + 32)
    jax.tree.map(np.testing.assert_array_equal, comm.encode(whole, KEY, z), payloads)
    jax.tree.map(np.testing.assert_array_equal, comm.decode(whole, payloads, z), back)


def test_constants_are_those_of_the_worst():
    unbiased = compressors.per_leaf({"a": TWO, "b": EIGHT})
    assert unbiased.q(100) == TWO.q(100) > EIGHT.q(100)
    assert unbiased.delta is None
    signs = compressors.per_leaf([compressors.sign(), compressors.top_k(0.5)])
    assert signs.delta(100) == compressors.sign().delta(100) == 100
    assert signs.q is None
    exact = compressors.per_leaf([compressors.identity()] * 2)
    assert exact.q(9) == exact.delta(9) == 1


def test_what_makes_another_of_one_does_so_in_each_layer():
    pair = {"a": TWO, "b": EIGHT}
    each = {
        compressors.scaled: ("scaled(quantize(2))", "scaled(quantize(8))"),
        compressors.contractive: (
            "scaled(quantize(2))",
            "blockwise(quantize(8), 32768)",
        ),
        lambda c: compressors.blockwise(c, 7): (
            "blockwise(quantize(2), 7)",
            "blockwise(quantize(8), 7)",
        ),
        compressors.per_leaf: ("quantize(2)", "quantize(8)"),
    }
    z = {"a": jnp.ones(3), "b": jnp.ones(4)}
    for change, names in each.items():
        made = change(compressors.per_leaf(pair))
        assert made.per_leaf
        assert tuple(c.name for c in made.for_leaves(z)) == names


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "compressor must come from jaxsp.compressors.* got {}"),
        ({"a": TWO, "b": 4}, "compressor must come from jaxsp.compressors.* got 4"),
        (
            [FOUR, compressors.top_k(0.1)],
            r"compressor must be .* got top_k\(0.1\), which states no q, and "
            r"quantize\(4\), which states no delta: write contractive\(quantize\(4\)\)",
        ),
    ],
)
def test_refuses_what_is_no_tree_of_compressors(tree, message):
    with pytest.raises(ValueError, match=message):
        compressors.per_leaf(tree)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"w": TWO}, r"compressor .* got per_leaf\(.*, which has none for \['b'\]"),
        ([TWO, FOUR], r"compressor must have one .* none for \['b'\]: write a tree"),
        (
            {"w": TWO, "b": FOUR, "c": FOUR},
            r"compressor must .* got per_leaf\(.*, of which \['c'\] is no layer of",
        ),
        ({"w": {"kernel": TWO}, "b": FOUR}, r"none for \['w'\]"),
    ],
)
def test_a_tree_that_does_not_fit_is_refused(tree, message):
    z = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    codec = compressors.per_leaf(tree)
    with pytest.raises(ValueError, match=message):
        codec.bits(z)
    workers = jaxsp.Workers(2, jax.devices()[:1])
    tx = jaxsp.average(jaxsp.channel(workers.axis_name, codec, key=KEY))
    with pytest.raises(ValueError, match=message):
        workers.map(lambda z: tx.update(z, tx.init(z))[0])(workers.replicate(z))


def test_masked_layers_need_no_compressor_and_leave_the_others_theirs():
    """Each player's part of a model is compressed as in the whole tree."""
    workers, z = jaxsp.Workers(2, jax.devices()[:1]), model()
    channel = jaxsp.channel(workers.axis_name, mixed(), key=KEY)
    tx = optax.partition(
        {"x": jaxsp.average(channel), "y": optax.set_to_zero()}, MinMax("x", "y")
    )
    alone = compressors.per_leaf(mixed().layers.x)
    alone = jaxsp.average(jaxsp.channel(workers.axis_name, alone, key=KEY))
    copies = workers.replicate(z)
    ours = workers.map(lambda z: tx.update(z, tx.init(z), z)[0])(copies)
    theirs = workers.map(lambda z: alone.update(z, alone.init(z), z)[0])(copies.x)
    jax.tree.map(np.testing.assert_array_equal, ours.x, theirs)
    assert not np.array_equal(ours.x["w"], copies.x["w"])
    # A branch without parameters is no wrong one.
    some = compressors.per_leaf({"w": FOUR, "nothing": TWO})
    assert some.for_leaves({"w": 1.0, "nothing": {}}) == [FOUR]
