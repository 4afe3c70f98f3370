"""Each leaf of a model by itself, by one compressor or each layer by another."""

import dataclasses
from typing import Any

import jax

from jaxsp import _arguments
from jaxsp.compressors.compressor import Compressor, check_compressor


def per_leaf(compressor: Any) -> Compressor:
    r"""The same compressor for each leaf of a model by itself, or one for each layer.

    The packed model has one scale and one budget: `top_k(0.01)` may spend it all on
    one layer, and one large number coarsens `quantize(4)` for all layers. Leaf by leaf,
    each has its own scale, at least one number of each leaf is kept, and the constants
    are those of the largest leaf, not of the model; but every leaf has its overhead: a
    scale, a seed, at least one number.

    A tree of compressors gives each layer its own: as many bits as
    `jaxsp.compressors.allocate_bits` has chosen for it, or low rank for matrices and
    whole numbers for biases. The whole is unbiased if all of them are, with the largest
    $q$, and contractive if all are, with the largest $\delta$: the sum of the layers'
    errors is at most the worst share of the sum of their squares.

    Args:
      compressor: any compressor, or a tree of them like the parameters' or like its
        first branches, such as `MinMax(quantize(4), quantize(8))`; below a branch, each
        leaf is compressed by itself. Where `optax.masked` or `optax.partition` hides
        parameters, their compressors wait.

    Returns:
      A compressor whose `per_leaf` is True. One of a tree compresses whole models.

    Raises:
      ValueError: if `compressor` is no compressor or tree of them, or some of a tree
        are only unbiased and others only contractive. A tree that does not fit the
        parameters is refused where it meets them.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxsp import compressors
      >>> print(compressors.per_leaf(compressors.sign()))
      per_leaf(sign())
      >>> two, eight = compressors.quantize(2), compressors.quantize(8)
      >>> mixed = compressors.per_leaf({"kernel": two, "bias": eight})
      >>> model = {"kernel": jnp.ones((20, 10)), "bias": jnp.ones(10)}
      >>> print(mixed.bits(model))  # 2 x 200 + 8 x 10, and two scales
      544
      >>> codes = mixed.compress(jax.random.key(0), model)
      >>> print(mixed.decompress(codes, model)["bias"][:3])
      [1. 1. 1.]
    """
    if not isinstance(compressor, Compressor):
        return _of_layers(compressor)
    if compressor.per_leaf:
        return compressor
    return dataclasses.replace(
        compressor, per_leaf=True, name=f"per_leaf({compressor.name})"
    )


def _of_layers(tree):
    """What compresses a whole model by a tree of compressors."""
    parts = jax.tree.leaves(tree)
    for part in parts or [tree]:  # a tree without leaves is none
        check_compressor("compressor", part)
    # A tree within the tree is a branch of it.
    layers = jax.tree.map(lambda c: c if c.layers is None else c.layers, tree)
    no_q = [c for c in parts if c.q is None]
    no_delta = [c for c in parts if c.delta is None]
    if no_q and no_delta:
        raise ValueError(
            "compressor must be a tree of unbiased compressors or of contractive ones, "
            f"got {no_q[0]}, which states no q, and {no_delta[0]}, which states no "
            f"delta: write contractive({no_delta[0]}) for this one, or scaled."
        )

    def largest(constants):
        return None if None in constants else lambda d: max(f(d) for f in constants)

    def for_worker(index, count):
        return _of_layers(jax.tree.map(lambda c: c.for_worker(index, count), layers))

    def compress_each(key, model, how):
        parts = zip(whole.for_leaves(model), jax.tree.leaves(model), strict=True)
        return [
            how(c, jax.random.fold_in(key, i), x, i) for i, (c, x) in enumerate(parts)
        ]

    def compress(key, model):
        return compress_each(key, model, lambda c, key, x, i: c.compress(key, x))

    def warm(key, model, previous):
        def one(c, key, x, i):
            return c.warm(key, x, previous[i]) if c.warm else c.compress(key, x)

        return compress_each(key, model, one)

    def decompress(payloads, like):
        leaves, structure = jax.tree.flatten(like)
        of_all = zip(whole.for_leaves(like), payloads, leaves, strict=True)
        return structure.unflatten([c.decompress(p, x) for c, p, x in of_all])

    whole = Compressor(
        f"per_leaf({_arguments.shown(layers)})",
        compress,
        decompress,
        q=largest([c.q for c in parts]),
        delta=largest([c.delta for c in parts]),
        per_leaf=True,
        shared_key=any(c.shared_key for c in parts),
        worker=for_worker if any(c.worker for c in parts) else None,
        warm=warm if any(c.warm for c in parts) else None,
        layers=layers,
    )
    return whole
