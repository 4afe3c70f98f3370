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
    pairs = tuple(sorted((int(source), int(target)) for source, target in pairs))
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return _swap(x, pairs, axis_name)
    return _differentiable_swap(x, pairs, axis_name)


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


def _swap(x, pairs, axis_name):
    """Partners' arrays; one's own of who is paired with itself, and zeros of others."""
    groups = [[a, b] for a, b in pairs if a < b]
    paired = {m for group in groups for m in group}
    count = lax.axis_size(axis_name)
    groups += [[m] for m in range(count) if m not in paired]
    words = _to_words(x)
    total = lax.psum(words, axis_name, axis_index_groups=groups)
    partner = _from_words(total - words, x)
    stay = [(m, m) in pairs for m in range(count)]
    if not any(stay):
        return partner
    return jnp.where(jnp.asarray(stay)[lax.axis_index(axis_name)], x, partner)


# Through integers no derivative passes: it is that of the permute.
_differentiable_swap = jax.custom_jvp(_swap, nondiff_argnums=(1, 2))


@_differentiable_swap.defjvp
def _swap_jvp(pairs, axis_name, primals, tangents):
    (x,), (t,) = primals, tangents
    return (
        _differentiable_swap(x, pairs, axis_name),
        lax.ppermute(t, axis_name, pairs),
    )


def _to_words(x):
    """The bits of an array as unsigned integers, of 32 bits where they come out even.

    A reduction of bytes takes much longer, and of 16 bits is one of 32 for XLA.
    """
    if x.dtype == bool:
        x = x.astype(jnp.uint8)
    each = 4 // x.dtype.itemsize
    if each <= 1:
        return lax.bitcast_convert_type(x, jnp.uint32)
    if x.size % each:
        return lax.bitcast_convert_type(x, jnp.uint8)
    return lax.bitcast_convert_type(x.reshape(-1, each), jnp.uint32)


def _from_words(words, like):
    if like.dtype == bool:
        return _from_words(words, like.astype(jnp.uint8)).astype(bool)
    return lax.bitcast_convert_type(words, like.dtype).reshape(like.shape)
