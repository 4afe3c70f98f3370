r"""A mixing matrix as a weighted sum of full permutations.

A collective permute moves one payload into and one out of every worker, so a mixing
matrix $W$ costs as many of them as it needs permutations $P_r$ in

$$W = \mathrm{diag}(s) + \sum_r \mathrm{diag}(w_r) P_r, \qquad
(P_r)_{mj} = 1 \text{ where } j = \mathtt{permutations}[r, m].$$

Every edge $j \to m$ of $W$ (an off-diagonal $W_{mj} \ne 0$) has to lie in one
permutation, and a permutation holds at most one edge into and one out of a worker: the
permutations are a proper edge colouring of the bipartite graph of receivers and
senders. König's theorem says that the largest degree $\Delta$ is enough, and fewer are
never possible.

References:
  Kőnig, *Über Graphen und ihre Anwendung auf Determinantentheorie und
  Mengenlehre*, Mathematische Annalen 77, 1916.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["colour", "decompose", "matchings"]


def decompose(
    matrix: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    r"""Write the off-diagonal part of a square matrix as weighted permutations.

    Where the support is circulant, every permutation is a cyclic shift; otherwise they
    are the colours of an edge colouring. Both give $\Delta$ of them, the largest number
    of off-diagonal entries in a row or a column. Permutations are made full by self
    loops, which move nothing, and, only where a worker has more edges in than out or
    the reverse, by edges of weight 0, which do move a payload.

    Args:
      matrix: a square matrix $W$; $W_{mj}$ weighs what $m$ receives from $j$.

    Returns:
      `(permutations, weights)`, both of shape $(\Delta, n)$: in permutation $r$ worker
      $m$ receives from `permutations[r, m]` and weighs it with `weights[r, m]`. Weights
      are copies of entries of $W$.

    Example:
      >>> import numpy as np
      >>> W = np.array([[0.5, 0.5, 0.0], [0.5, 0.25, 0.25], [0.0, 0.25, 0.75]])
      >>> permutations, weights = decompose(W)
      >>> permutations
      array([[1, 0, 2],
             [0, 2, 1]])
      >>> weights
      array([[0.5 , 0.5 , 0.  ],
             [0.  , 0.25, 0.25]])
    """
    remaining = np.array(matrix, dtype=np.float64)
    np.fill_diagonal(remaining, 0.0)
    support = remaining != 0
    worker = np.arange(len(support))
    by_shift = support[worker[:, None], (worker[:, None] + worker) % len(support)]
    if (by_shift == by_shift[0]).all():
        shifts = np.flatnonzero(by_shift[0])
        permutations = (worker + shifts[:, None]) % len(support)
    else:
        receivers, senders = np.nonzero(support)
        edges = list(zip(receivers.tolist(), senders.tolist(), strict=True))
        permutations = colour(edges, len(support))
    weights = np.empty(permutations.shape)
    for r, sources in enumerate(permutations):
        weights[r] = remaining[worker, sources]
        remaining[worker, sources] = 0.0  # a weight-0 edge may repeat a real one
    return permutations.astype(np.int64), weights


def colour(edges: Sequence[tuple[int, int]], n: int) -> npt.NDArray[np.int64]:
    r"""Colour the edges with $\Delta$ colours, one full permutation a colour.

    One edge after another takes a colour that is free at both of its ends. Where there
    is none, some $a$ is free at the receiver and some $b$ at the sender; swapping $a$
    and $b$ along the path that leaves the sender with $a$ frees $a$ there too. The path
    reaches receivers by edges of colour $a$ only, hence never this one.

    Args:
      edges: pairs (receiver, sender) of different workers; a pair may repeat.
      n: the number of workers.

    Returns:
      Integers of shape $(\Delta, n)$: in permutation $r$ worker $m$ receives from entry
      `[r, m]`. Where that is $m$ itself, nothing moves.
    """
    edges = _regular(edges, n)
    colours = len(edges) // n
    source = [[-1] * n for _ in range(colours)]  # source[c][receiver] = sender
    target = [[-1] * n for _ in range(colours)]  # target[c][sender] = receiver
    free_in, free_out = [(1 << colours) - 1] * n, [(1 << colours) - 1] * n  # bit sets
    for receiver, sender in edges:
        both = free_in[receiver] & free_out[sender]
        colour = _lowest(both or free_in[receiver])
        if not both:
            other = _lowest(free_out[sender])
            path = _alternating_path(source, target, sender, colour, other)
            for m, j, c in path:
                source[c][m] = target[c][j] = -1
            for m, j, c in path:
                swapped = colour + other - c
                source[swapped][m], target[swapped][j] = j, m
                free_in[m] ^= 1 << colour | 1 << other  # twice inside the path
                free_out[j] ^= 1 << colour | 1 << other
        source[colour][receiver], target[colour][sender] = sender, receiver
        free_in[receiver] ^= 1 << colour
        free_out[sender] ^= 1 << colour
    return np.array(source, dtype=np.int64)


def matchings(edges: Sequence[tuple[int, int]], n: int) -> npt.NDArray[np.int64] | None:
    r"""As `colour`, with permutations in which workers change places in pairs.

    Returns:
      Integers of shape $(\Delta, n)$, each row its own inverse; None where that takes
      more than $\Delta$ or is not known: if an edge has no counterpart, or the graph
      has an odd cycle.
    """
    if sorted(edges) != sorted((j, m) for m, j in edges):
        return None
    side = _two_sides(edges, n)
    if side is None:
        return None
    found = colour([(m, j) for m, j in edges if side[m] == 0], n)
    real, swaps = set(edges), np.tile(np.arange(n), (len(found), 1))
    for r, sources in enumerate(found.tolist()):
        for m, j in enumerate(sources):
            if (m, j) in real and side[m] == 0:
                swaps[r, m], swaps[r, j] = j, m
    return swaps


def _two_sides(edges: Sequence[tuple[int, int]], n: int) -> list[int] | None:
    """A side, 0 or 1, for each worker, with every edge between the two."""
    neighbours: list[list[int]] = [[] for _ in range(n)]
    for m, j in edges:
        neighbours[m].append(j)
    side = [-1] * n
    for first in range(n):
        if side[first] >= 0:
            continue
        side[first], waiting = 0, [first]
        while waiting:
            m = waiting.pop()
            for j in neighbours[m]:
                if side[j] < 0:
                    side[j] = 1 - side[m]
                    waiting.append(j)
                elif side[j] == side[m]:
                    return None
    return side


def _alternating_path(
    source: list[list[int]], target: list[list[int]], sender: int, a: int, b: int
) -> list[tuple[int, int, int]]:
    """Edges (receiver, sender, colour) of the path from `sender` by a, b, a, ..."""
    path = []
    while (receiver := target[a][sender]) >= 0:
        path.append((receiver, sender, a))
        if (sender := source[b][receiver]) < 0:
            break
        path.append((receiver, sender, b))
    return path


def _regular(edges: Sequence[tuple[int, int]], n: int) -> list[tuple[int, int]]:
    r"""The edges, and loops and others that fill all degrees up to $\Delta$."""
    lack_in, lack_out = (
        np.bincount([edge[end] for edge in edges], minlength=n) for end in (0, 1)
    )
    degree = max(lack_in.max(), lack_out.max())
    lack_in, lack_out = degree - lack_in, degree - lack_out
    loops = np.minimum(lack_in, lack_out)
    worker = np.arange(n)
    looped = np.repeat(worker, loops)
    filled = np.repeat(worker, lack_in - loops), np.repeat(worker, lack_out - loops)
    return [
        *edges,
        *zip(looped.tolist(), looped.tolist(), strict=True),
        *zip(filled[0].tolist(), filled[1].tolist(), strict=True),
    ]


def _lowest(bits: int) -> int:
    return (bits & -bits).bit_length() - 1
