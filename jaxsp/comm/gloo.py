r"""Exchanges between CPU processes, as fast both ways as the network is.

Processes on CPUs talk by gloo. When two of them send each other something, by a
collective permute or an all-to-all, one message waits for the other: XLA sends before
it receives, and gloo's handshake queues behind the data. Its all-reduce receives first
and sends both ways at once. So a swap between partners is an all-reduce of two here,
in integers, whose sums wrap around and are exact for any bits,

$$x_{\text{partner}} = (x_{\text{partner}} + x) - x \pmod{2^{32}},$$

which moves as many bytes. Permutations in which nobody swaps are at the limit of the
network as they are.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

__all__ = ["all_to_all", "in_use", "send"]

Pairs = Sequence[tuple[int, int]]


def in_use(axis_name: str) -> bool:
    """Whether the devices of an axis are CPUs that may belong to several processes."""
    return (
        jax.process_count() > 1
        and jax.default_backend() == "cpu"
        and axis_name in jax.sharding.get_abstract_mesh().manual_axes
    )


def send(x: jax.Array, pairs: Pairs, axis_name: str) -> jax.Array:
    """As `lax.ppermute` of (source, target) pairs; swaps, if that is all they are."""
    there = {(source, target) for source, target in pairs if source != target}
    one_way = any((target, source) not in there for source, target in there)
    if one_way or not there or jnp.issubdtype(x.dtype, jnp.complexfloating):
        return lax.ppermute(x, axis_name, pairs)
    stay = {source for source, target in pairs if source == target}
    return _swap(x, there, stay, axis_name)


def all_to_all(x: jax.Array, axis_name: str) -> jax.Array:
    """As an all-to-all of the rows: in rounds, in each of which everybody sends one."""
    count, me = lax.axis_size(axis_name), lax.axis_index(axis_name)
    rounds = np.arange(count)
    parts = [x[me]]
    for r in range(1, count):
        if count & (count - 1) == 0:  # partners, me and me xor r
            partner = me ^ r
            pairs = [(m, m ^ r) for m in range(count)]
        else:
            partner = (me + r) % count
            pairs = [(m, (m + r) % count) for m in range(count)]
        parts.append(send(x[partner], pairs, axis_name))
    source = me ^ rounds if count & (count - 1) == 0 else (me - rounds) % count
    return jnp.stack(parts)[source]  # the round in which each one's row came


def _swap(x, there, stay, axis_name):
    """Partners' arrays; one's own where there is none to swap with, or zeros."""
    count = lax.axis_size(axis_name)
    groups = [[a, b] for a, b in sorted(there) if a < b]
    alone = sorted(set(range(count)) - {a for a, _ in there})
    words = _to_words(x)
    total = lax.psum(
        words, axis_name, axis_index_groups=[*groups, *([m] for m in alone)]
    )
    partner = _from_words(total - words, x)
    if not stay:
        return partner
    mine = jnp.asarray([m in stay for m in range(count)])[lax.axis_index(axis_name)]
    return jnp.where(mine, x, partner)


def _to_words(x):
    """The bits of an array as unsigned integers, of 32 bits where they fit."""
    if x.dtype == bool:
        return x.astype(jnp.uint8)
    kind = jnp.uint32 if x.dtype.itemsize % 4 == 0 else jnp.uint8
    return lax.bitcast_convert_type(x, kind)


def _from_words(words, like):
    if like.dtype == bool:
        return words.astype(bool)
    return lax.bitcast_convert_type(words, like.dtype)
