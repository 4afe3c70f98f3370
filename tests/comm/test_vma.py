"""In a user's own `shard_map` methods work, or say what to write."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
import table
from jax.sharding import AxisType, Mesh, PartitionSpec

from jaxsp import MinMax, topology

PLAIN = table.METHODS + table.TRANSFORMS
COMPRESSED = table.COMPRESSED_METHODS + table.COMPRESSED_TRANSFORMS


def traced(row, check_vma):
    """Two steps of four workers, traced in a `shard_map`."""
    mesh = Mesh(jax.devices()[:4], (table.AXIS,), axis_types=(AxisType.Auto,))
    spec = PartitionSpec(table.AXIS)
    tx = row.build(topology.ring(4), row.rate)

    def one(z):
        z = MinMax(z[0], z[0])

        def F(z: Any) -> Any:
            return jax.tree.map(jnp.tanh, z)

        def step(carry, _):
            z, state = carry
            given = dict.fromkeys(table.OPERATORS, F)
            updates, state = tx.update(F(z), state, z, **given)
            return (optax.apply_updates(z, updates), state), None

        (z, _), _ = jax.lax.scan(step, (z, tx.init(z)), length=2)
        return jax.tree.leaves(z)[0][None]

    run = jax.shard_map(
        one, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=check_vma
    )
    return jax.eval_shape(run, jnp.ones((4, 5)))


@pytest.mark.parametrize("row", PLAIN, ids=lambda row: row.name)
def test_uncompressed_methods_work_with_the_check_on(row):
    assert traced(row, True).shape == (4, 5)


@pytest.mark.parametrize("row", COMPRESSED, ids=lambda row: row.name)
def test_compressed_methods_say_that_the_check_must_be_off(row):
    assert traced(row, False).shape == (4, 5)
    with pytest.raises(ValueError, match=r"^check_vma must be False .*jaxsp\.Workers"):
        traced(row, True)
