"""Random words that cost little more than reading the numbers they round.

`jax.random` writes its words to memory, which on a CPU takes ten times as long as the
compression they are for. Threefry is a function of a counter, so the compiler can work
each word out where it is used: it is the same generator, all twenty rounds, unrolled.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def seed(key: jax.Array) -> jax.Array:
    """Two words that stand for the key where it travels: 64 bits."""
    return jax.random.bits(key, (2,), jnp.uint32)


def threefry(
    seed: jax.Array, x: jax.Array, y: jax.Array | np.uint32
) -> tuple[jax.Array, jax.Array]:
    """Threefry-2x32 with twenty rounds: two random words for each counter `(x, y)`.

    Args:
      seed: two uint32.
      x: the first words of the counters, uint32.
      y: the second words.

    Returns:
      Both words of the result.

    References:
      Salmon, Moraes, Dror, Shaw, Parallel Random Numbers: As Easy as 1, 2, 3, 2011.
    """
    keys = (seed[0], seed[1], seed[0] ^ seed[1] ^ np.uint32(0x1BD11BDA))
    x, y = x + keys[0], y + keys[1]
    for i in range(5):
        for r in _ROTATIONS[i % 2]:
            x = x + y
            y = (y << np.uint32(r)) | (y >> np.uint32(32 - r))
            y = y ^ x
        x = x + keys[(i + 1) % 3]
        y = y + keys[(i + 2) % 3] + np.uint32(i + 1)
    return x, y


def words(seed: jax.Array, numbers: jax.Array) -> jax.Array:
    """The random words of these numbers, uint32, each a word of its own."""
    return threefry(seed, numbers, np.uint32(0))[0]


def bernoulli(probability: jax.Array, word: jax.Array) -> jax.Array:
    r"""True with a probability in [0, 1), decided by a random word.

    The probability is $\lfloor 2^{32} p \rfloor / 2^{32}$: exact for a float32 $p$ of
    at least $2^{-8}$, and never wrong by $2^{-32}$.
    """
    return word < (probability * 2.0**32).astype(jnp.uint32)


def permutation(seed: jax.Array, positions: jax.Array, d: int) -> jax.Array:
    r"""What a random permutation of $0, \dots, d-1$ has at the given positions.

    Nothing of length $d$ is drawn or sorted. A position $(l, r)$ of an $a \times b$
    grid, $a, b \approx \sqrt d$, goes through a Feistel network of eight rounds,
    $l \leftarrow l + F_i(r) \bmod a$ and $r \leftarrow r + F_i(l) \bmod b$ in turn,
    with threefry as $F_i$; a result of $d$ or more goes through again.

    Args:
      seed: two uint32.
      positions: integers from 0 below `d`, uint32.
      d: the length of the permutation, below $2^{32}$.

    Returns:
      uint32, of the shape of `positions`; different for different positions.

    References:
      Luby, Rackoff, How to Construct Pseudorandom Permutations, 1988.
      Black, Rogaway, Ciphers with Arbitrary Finite Domains, 2002 (going again).
    """
    a = math.isqrt(d - 1) + 1
    b = np.uint32(-(-d // a))
    a, end = np.uint32(a), np.uint32(d - 1)

    def two_rounds(i, grid):
        # The second word of the counter is never 0: those are the words of `words`.
        left, right = grid
        left = (left + threefry(seed, right, 2 * i + 1)[0] % a) % a
        right = (right + threefry(seed, left, 2 * i + 2)[0] % b) % b
        return left, right

    def network(carry):
        t, inside = carry
        grid = (t // b, t % b)
        grid = lax.fori_loop(np.uint32(0), np.uint32(4), two_rounds, grid)
        t = jnp.where(inside, t, grid[0] * b + grid[1])
        return t, t <= end

    start = (positions, jnp.zeros(positions.shape, bool))
    return lax.while_loop(lambda carry: ~jnp.all(carry[1]), network, start)[0]
