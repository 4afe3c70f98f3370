"""How many bits each layer gets under a budget."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsp
from jaxsp import compressors
from jaxsp.compressors import allocation
from jaxsp.gan import data, losses, models

KEY = jax.random.key(4)
FOUR = compressors.quantize(4)


def best_of_all(errors, costs, budget):
    """The least error of all assignments, one by one."""
    rows = np.arange(len(errors))
    return min(
        errors[rows, choice].sum()
        for choice in itertools.product(range(errors.shape[1]), repeat=len(errors))
        if costs[rows, choice].sum() <= budget
    )


@pytest.mark.parametrize("kind", ["quantizers", "alike", "any", "ties"])
def test_no_other_assignment_has_less_error(kind):
    rng, widths = np.random.default_rng(1), np.array([2, 4, 8])
    for _ in range(100):
        layers = rng.integers(1, 7)
        sizes = np.exp(rng.uniform(0, 8, layers)).astype(int)
        errors = (1 / (2.0 ** (widths - 1) - 1) ** 2) * np.ones((layers, 1))
        if kind == "quantizers":
            errors *= rng.exponential(size=(layers, 1))
        elif kind == "alike":  # each number as good as any other
            errors *= sizes[:, None] * rng.uniform(0.99, 1.01, (layers, 3))
        elif kind == "any":  # not even falling
            errors = rng.exponential(size=(layers, 3))
        costs = sizes[:, None] * widths
        budget = int(sizes.sum() * rng.uniform(2, 9))
        chosen = allocation._least_errors(errors, costs, budget)
        rows = np.arange(layers)
        assert costs[rows, chosen].sum() <= budget
        assert errors[rows, chosen].sum() == pytest.approx(
            best_of_all(errors, costs, budget), rel=1e-9
        )


def test_of_many_layers_the_error_is_the_least_to_a_hundredth(monkeypatch):
    """More partial choices than are kept, against all that no other beats."""
    rng, widths = np.random.default_rng(1), np.arange(2, 9)
    sizes = np.exp(rng.uniform(3, 9, 12)).astype(int)
    errors = (sizes * rng.uniform(0.8, 1.2, 12))[:, None]
    errors = errors / (2.0 ** (widths - 1) - 1) ** 2
    costs, budget, rows = sizes[:, None] * widths, int(4.4 * sizes.sum()), np.arange(12)
    exact = allocation._least_errors(errors, costs, budget)
    least = errors[rows, exact].sum()
    monkeypatch.setattr(allocation, "_MANY", 2)
    chosen = allocation._least_errors(errors, costs, budget)
    assert costs[rows, chosen].sum() <= budget
    assert least <= errors[rows, chosen].sum() <= 1.01 * least


def gradients(seed=0):
    """Of three workers: layers whose sizes, scales and shapes differ."""
    rng = np.random.default_rng(seed)

    def array(scale, *shape):
        return jnp.asarray(scale * rng.standard_t(4, size=(3, *shape)), jnp.float32)

    return {"in": array(1.0, 30, 9), "out": array(0.01, 70, 5), "bias": array(0.3, 7)}


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_the_error_is_the_expected_one_of_the_compressor(bits):
    codec, draws, g = compressors.quantize(bits), 400, gradients()["in"]

    @jax.jit
    @jax.vmap
    def errors(key):
        keys = jax.random.split(key, len(g))
        arrived = jax.vmap(lambda k, v: codec.decompress(codec.compress(k, v), v))
        return jnp.sum((arrived(keys, g) - g) ** 2)

    found = np.asarray(errors(jax.random.split(KEY, draws)), np.float64)
    expected = allocation.expected_error(
        np.asarray(g, np.float64).reshape(len(g), -1), bits
    )
    deviation = found.std() / np.sqrt(draws)
    assert abs(found.mean() - expected) < 5 * deviation
    assert deviation < 0.05 * expected


def test_on_gradients_of_a_gan_layers_of_unlike_bits_err_less():
    """The next gradients of four workers, at the bits that the last ones chose."""
    digits = data.load("digits")
    gan = models.mlp(digits.sample_shape, digits.num_classes, width=32, depth=2)
    both = losses.acgan(gan, r1=1.0)
    operator = jaxsp.game(both.generator, both.discriminator)
    init = jax.jit(lambda key: models.init(gan, key))

    @jax.jit
    @jax.vmap
    def gradient(key, z):
        rows = jax.random.randint(key, (16,), 0, len(digits.train))
        images = data.to_unit(jnp.asarray(digits.train)[rows])
        return operator(z, (images, jnp.asarray(digits.train_labels)[rows]), key)

    def error(codecs, g):
        pairs = zip(codecs, jax.tree.leaves(g), strict=True)
        return sum(
            allocation.expected_error(
                np.asarray(x, np.float64).reshape(4, -1), int(c.name[9])
            )
            for c, x in pairs
        )

    for seed in range(5):
        z = init(jax.random.key(seed))
        z = jax.tree.map(lambda x: jnp.broadcast_to(x, (4, *x.shape)), z)
        now, later = (
            gradient(jax.random.split(jax.random.key(i), 4), z)
            for i in (seed, 100 + seed)
        )
        chosen = jax.tree.leaves(compressors.allocate_bits(now, 4))
        sizes = [x[0].size for x in jax.tree.leaves(now)]
        spent = sum(int(c.name[9]) * n for c, n in zip(chosen, sizes, strict=True))
        assert spent <= 4 * sum(sizes)
        assert 1.3 * error(chosen, later) < error([FOUR] * len(sizes), later)


def test_the_budget_goes_where_the_error_is():
    g = gradients()
    chosen = compressors.allocate_bits(g, 5)
    assert jax.tree.structure(chosen) == jax.tree.structure(g)
    widths = {name: int(c.name[9]) for name, c in chosen.items()}
    assert widths["in"] > widths["out"] == 2
    spent = sum(widths[name] * x[0].size for name, x in g.items())
    assert spent <= 5 * sum(x[0].size for x in g.values())
    one = jax.tree.map(lambda x: x[0], g)  # sent: the codes, and a scale of each
    sent = compressors.per_leaf(chosen).bits(one)
    assert spent + 3 * 32 <= sent <= spent + 3 * 40
    # What is in the budget of all is what they get.
    whole = compressors.allocate_bits(g, 8.0)
    assert {c.name for c in whole.values()} == {"quantize(8)"}
    least = compressors.allocate_bits(g, 3, choices=(3,))
    assert {c.name for c in least.values()} == {"quantize(3)"}
    # A layer without a gradient takes the fewest; half precision and NumPy do too.
    g["out"] = np.zeros((3, 70, 5), np.float16)
    g["bias"] = g["bias"].astype(jnp.bfloat16)
    assert compressors.allocate_bits(g, 5)["out"].name == "quantize(2)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((gradients(), 1.9), "bits must be at least 2, the least of choices.* got 1.9"),
        ((gradients(), 4, (4, 9)), "choices must be at most 8, got 9"),
        ((gradients(), 4, ()), r"choices must be a list of bits.* got \(\)"),
        (({}, 4), "gradients must be a tree of at least one array, got {}"),
        (
            ({"w": jnp.ones((2, 3)), "b": jnp.ones(3)}, 4),
            r"gradients must be stacked .* gradients\['w'\] has the shape \(2, 3\) "
            r"beside 3 others: for one gradient g write",
        ),
        ((jnp.float32(1), 4), r"gradients must be stacked .* has the shape \(\): for"),
        (({"w": jnp.arange(3)}, 4), r"gradients\['w'\] must be an array of floating"),
        (({"w": jnp.zeros((3, 0))}, 4), r"gradients\['w'\] must be an array of float"),
        (({"w": jnp.full((2, 3), jnp.nan)}, 4), r"gradients\['w'\].* must be finite"),
    ],
)
def test_refuses_what_bits_cannot_be_chosen_of(arguments, message):
    with pytest.raises(ValueError, match=message):
        compressors.allocate_bits(*arguments)
