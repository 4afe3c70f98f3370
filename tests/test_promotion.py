"""Everything works where JAX is told to promote neither ranks nor types by itself."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
import table

import jaxsp
from jaxsp import MinMax, metrics, problems, projections, topology
from jaxsp.gan import losses, models

SETTINGS = {
    "rank": functools.partial(jax.numpy_rank_promotion, "raise"),
    "dtype": functools.partial(jax.numpy_dtype_promotion, "strict"),
}
# The Adam of optax itself needs types to be promoted.
OPTAX = {"local_extra_adam", "extragradient", "alternating_extragradient"}
OPTAX |= {"alternating", "local_extra_adam_outer", "gradient_tracking"}
KEY = jax.random.key(0)


@pytest.fixture(params=SETTINGS)
def setting(request):
    """One of the settings for the length of one test."""
    with SETTINGS[request.param]():
        yield request.param


@pytest.fixture
def dtype(setting):
    """Where types are not promoted, the one that has most to be."""
    return jnp.float32 if setting == "rank" else jnp.bfloat16


@pytest.mark.parametrize("row", table.ALL + table.LOSSY, ids=lambda row: row.name)
def test_methods(row, setting, dtype):
    workers = jaxsp.Workers(4, jax.devices()[:1])
    tx = row.build(topology.ring(4), row.rate)

    def one(z):
        def F(z: Any) -> Any:
            return jax.tree.map(jnp.tanh, z)

        z = MinMax({"a": z, "b": z[0]}, z)
        given = dict.fromkeys(table.OPERATORS, F)
        updates, _ = tx.update(F(z), tx.init(z), z, **given)
        return optax.apply_updates(z, updates)

    if setting == "rank" or row.name not in OPTAX:
        jax.eval_shape(workers.map(one), jnp.ones((4, 5, 3), dtype))


@pytest.mark.parametrize("loss", ["acgan", "wasserstein"])
@pytest.mark.parametrize(
    ("model", "shape"),
    [
        ("mlp", (8, 8, 1)),
        ("dcgan:4", (8, 8, 1)),
        ("md_gan_cnn:2", (28, 28, 1)),
        ("md_gan_cnn:2", (32, 32, 3)),
        ("resnet:4", (8, 8, 3)),
        ("sagan:4", (8, 8, 3)),
    ],
)
def test_networks_and_losses(model, shape, loss, setting, dtype):
    gan = models.parse(model, shape, 3, dtype)
    made = getattr(losses, loss)(gan)

    def gradients(samples, labels):
        z, batch = models.init(gan, KEY), (samples, labels)
        x = jax.grad(made.generator)(*z, batch, KEY)
        return x, jax.grad(made.discriminator, 1)(*z, batch, KEY)

    jax.eval_shape(gradients, jnp.ones((2, *shape)), jnp.zeros(2, jnp.int32))


def test_metrics_and_projections(setting, dtype):
    z = MinMax(jnp.ones((3, 4), dtype) / 4, jnp.ones(5, dtype))
    for project in (
        projections.simplex,
        functools.partial(projections.ball, radius=1.0),
        functools.partial(projections.l1_ball, radius=1.0),
        functools.partial(projections.box, lower=-1.0, upper=1.0),
        functools.partial(projections.box, lower=z, upper=z),
    ):
        assert jax.tree.map(jnp.shape, project(z)) == MinMax((3, 4), (5,))
    metrics.residual(lambda z: z, z)
    metrics.distance(z, z)
    metrics.consensus_distance(z.x)
    metrics.duality_gap(z.x, MinMax(jnp.ones(3, dtype), jnp.ones(4, dtype)))


@pytest.mark.parametrize(
    "problem",
    [
        problems.bilinear(2, 3, seed=0),
        problems.matrix_game(2, 3, 4, seed=0),
        problems.robust_regression(2, 4, 3, seed=0),
        problems.lower_bound_chain(topology.path(4), 5, L=1.0, mu=0.5),
    ],
)
def test_problems(problem, setting):
    problem.mean_operator(problem.z_star)
    problem.operators[0](problem.z_star)
    if problem.project is not None:
        problem.project(problem.z_star)
