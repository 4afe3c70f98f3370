r"""Mixing matrices, fixed and time-varying, with their spectra.

The functions of `jaxsp.topology` make them. A topology is a doubly stochastic matrix
$W$, one row for each receiving worker, stored as the weighted permutations that it is
the sum of:

$$W = \mathrm{diag}(s) + \sum_r \mathrm{diag}(w_r) P_r.$$

$P_r$ is a full permutation, in which every worker receives one payload and sends one:
one collective permute.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from jaxsp._arguments import check_array, check_flag, check_instance, shown

__all__ = ["TimeVarying", "Topology"]

Matrix = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Topology:
    r"""A fixed mixing matrix $W$ and the permutations that apply it.

    Made by the functions of `jaxsp.topology`; compared by identity; its arrays are
    read-only. The eigenvalues of $W$ are $\lambda_1 = 1, \lambda_2, \dots$

    Attributes:
      name: what the topology is called in messages.
      self_weights: $s$, of shape $(n,)$: the diagonal of $W$.
      permutations: of shape $(R, n)$: in permutation $r$ worker $m$ receives from
        worker `permutations[r, m]`.
      weights: $w_r$, of shape $(R, n)$: what worker $m$ multiplies with what it
        receives in permutation $r$.

    Example:
      >>> from jaxsp import topology
      >>> pair = topology.ring(2)
      >>> pair.permutations, pair.weights, pair.self_weights
      (array([[1, 0]]), array([[0.5, 0.5]]), array([0.5, 0.5]))
      >>> pair.to_matrix()
      array([[0.5, 0.5],
             [0.5, 0.5]])
    """

    name: str
    self_weights: Matrix
    permutations: npt.NDArray[np.int64]
    weights: Matrix

    def __post_init__(self):
        check_instance("name", self.name, str, "a text")
        for field, ndim in (("self_weights", 1), ("permutations", 2), ("weights", 2)):
            integer = field == "permutations"
            array = check_array(field, getattr(self, field), ndim, integer)
            array = np.array(array, np.int64 if integer else np.float64)
            array.setflags(write=False)
            object.__setattr__(self, field, array)
        n = len(self.self_weights)
        shape = np.shape(self.permutations)
        if shape[1:] != (n,) or np.shape(self.weights) != shape:
            raise ValueError(
                "permutations and weights must both be of shape (permutes, n), n = "
                f"{n} as self_weights has, got {shape} and {np.shape(self.weights)}; "
                "from_matrix(W) makes them from a mixing matrix"
            )
        if (np.sort(self.permutations, axis=1) != np.arange(n)).any():
            raise ValueError(
                f"each row of permutations must hold 0, …, {n - 1} once each, got "
                f"{shown(self.permutations)}; from_matrix(W) makes them from a mixing "
                "matrix"
            )

    def __repr__(self):
        return (
            f"Topology({self.name!r}, size={self.size}, "
            f"permutes={self.permutes}, lambda2={self.lambda2:.4g})"
        )

    @property
    def size(self) -> int:
        """The number of workers $n$."""
        return len(self.self_weights)

    @property
    def permutes(self) -> int:
        """The collective permutes $R$ of one mixing."""
        return len(self.permutations)

    @property
    def members(self) -> tuple["Topology", ...]:
        """The topology itself, as the only member of a constant sequence."""
        return (self,)

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """The matrices of `members`."""
        return (self.to_matrix(),)

    def to_matrix(self) -> Matrix:
        """$W$ as a new float64 array; row $m$ weighs what worker $m$ receives."""
        matrix = np.diag(self.self_weights)
        worker = np.arange(self.size)
        for sources, weights in zip(self.permutations, self.weights, strict=True):
            matrix[worker, sources] += weights
        return matrix

    def messages(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Payloads that each worker really sends and receives in one mixing.

        What a worker receives from itself costs nothing. Edges of weight 0, which
        complete the permutations of an asymmetric graph, are moved, and counted.

        Returns:
          `(sent, received)`, integer arrays of shape $(n,)$.

        Example:
          >>> from jaxsp import topology
          >>> topology.path(4).messages()
          (array([1, 2, 2, 1]), array([1, 2, 2, 1]))
        """
        moved = self.permutations != np.arange(self.size)
        sent = np.bincount(self.permutations[moved], minlength=self.size)
        return sent, moved.sum(axis=0)

    @functools.cached_property
    def is_symmetric(self) -> bool:
        r"""Whether $W = W^\top$, to 1e-12."""
        matrix = self.to_matrix()
        return np.allclose(matrix, matrix.T, rtol=0.0, atol=1e-12)

    @functools.cached_property
    def is_circulant(self) -> bool:
        """Whether each row of $W$ is the one above, shifted by one."""
        shifts = (self.permutations - np.arange(self.size)) % self.size
        return all(
            (array == array[..., :1]).all()
            for array in (shifts, self.weights, self.self_weights)
        )

    @functools.cached_property
    def spectrum(self) -> npt.NDArray[np.floating | np.complexfloating]:
        """The eigenvalues of $W$ but one eigenvalue 1, in any order.

        Of a circulant matrix they are the Fourier transform of its first row.
        """
        if self.is_circulant:
            row = np.zeros(self.size)
            np.add.at(row, self.permutations[:, 0], self.weights[:, 0])
            row[0] += self.self_weights[0]
            return np.fft.fft(row)[1:]
        if self.is_symmetric:
            return np.linalg.eigvalsh(self.to_matrix())[:-1]
        # J = 11ᵀ/n takes the eigenvalue 1 to 0 and moves no other one.
        found = np.linalg.eigvals(self.to_matrix() - 1 / self.size)
        return np.delete(found, np.abs(found).argmin())

    @functools.cached_property
    def spectral_interval(self) -> tuple[float, float]:
        r"""An interval (lo, hi) with every eigenvalue of $W$ but one eigenvalue 1.

        The smallest one for symmetric $W$, where all are real; $(-|\lambda_2|,
        |\lambda_2|)$ otherwise; (0, 0) for one worker.
        """
        if self.size == 1:
            return 0.0, 0.0
        if self.is_symmetric:
            values = np.clip(_snap(self.spectrum.real, self.size), -1.0, 1.0)
            return float(values.min()), float(values.max())
        radius = float(min(_snap(np.abs(self.spectrum), self.size).max(), 1.0))
        return -radius, radius

    @property
    def lambda2(self) -> float:
        r"""$|\lambda_2|$, the largest modulus in the spectrum without one eigenvalue 1.

        For symmetric $W$ one mixing shrinks the distance from consensus by it. It is
        1 where the graph is disconnected (or bipartite without self weights), 0 for
        one worker and for the complete graph.
        """
        return max(map(abs, self.spectral_interval))

    @property
    def spectral_gap(self) -> float:
        r"""$1 - |\lambda_2|$."""
        return 1.0 - self.lambda2

    @functools.cached_property
    def chi(self) -> float:
        r"""The condition number $\chi = \sigma_{\max} / \sigma_{\min}^+$ of $I - W$.

        For symmetric $W$ singular values are eigenvalues, and this is the
        $\lambda_{\max}(I - W) / \lambda_{\min}^+(I - W)$ of decentralized rates.
        Infinite where the graph is disconnected; 1 for one worker.
        """
        if self.size == 1:
            return 1.0
        if self.is_symmetric or self.is_circulant:  # W is normal
            singular = np.abs(1 - self.spectrum)
        else:
            laplacian = np.eye(self.size) - self.to_matrix()
            singular = np.linalg.svd(laplacian, compute_uv=False)[:-1]
        singular = _snap(singular, self.size)
        smallest = singular.min()
        return float(singular.max() / smallest) if smallest > 0.0 else math.inf

    @functools.cached_property
    def diameter(self) -> float:
        r"""Hops of the longest shortest path; `math.inf` where disconnected.

        Edges are the off-diagonal entries $W_{mj} \ne 0$, directed from $j$ to $m$:
        after `diameter` mixings, and no fewer, every worker has heard from every other
        one.
        """
        return _diameter((self,))


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TimeVarying:
    r"""A sequence of mixing matrices, used in turn or drawn at random.

    Attributes:
      name: what the topology is called in messages.
      members: the topologies $W_1, \dots, W_T$, all of one size.
      random: False: step $t = 0, 1, \dots$ uses `members[t % T]`. True: the
        transformation that mixes draws a member for every step, uniformly, from a key
        that all workers share.

    Raises:
      ValueError: no members, a member that is no `Topology`, or different sizes.

    Example:
      >>> from jaxsp import topology
      >>> one_peer = topology.one_peer_exponential(8)
      >>> one_peer
      TimeVarying('one_peer_exponential', size=8, members=3, random=False, lambda2=0)
      >>> one_peer.members[2].permutations
      array([[4, 5, 6, 7, 0, 1, 2, 3]])
    """

    name: str
    members: tuple[Topology, ...]
    random: bool = False

    def __post_init__(self):
        check_instance("name", self.name, str, "a text")
        check_flag("random", self.random)
        if not isinstance(self.members, Iterable):
            raise ValueError(
                f"members must be topologies, got {shown(self.members)}; write "
                "from_sequence([ring(4), complete(4)])"
            )
        object.__setattr__(self, "members", tuple(self.members))
        if not self.members:
            raise ValueError(
                "members must hold at least one topology, got none; write "
                "from_sequence([ring(4), complete(4)])"
            )
        for member in self.members:
            if not isinstance(member, Topology):
                raise ValueError(
                    f"members must be fixed topologies, got {shown(member)}; write "
                    "from_sequence([...]) with topologies or matrices"
                )
        sizes = sorted({member.size for member in self.members})
        if len(sizes) > 1:
            raise ValueError(
                f"members must all have the same size, got sizes {sizes}; write "
                "from_sequence([ring(4), complete(4)])"
            )

    def __repr__(self):
        return (
            f"TimeVarying({self.name!r}, size={self.size}, "
            f"members={len(self.members)}, random={self.random}, "
            f"lambda2={self.lambda2:.4g})"
        )

    @property
    def size(self) -> int:
        """The number of workers $n$."""
        return self.members[0].size

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        r"""$W_1, \dots, W_T$."""
        return tuple(member.to_matrix() for member in self.members)

    def to_matrix(self, index: int = 0) -> Matrix:
        """The matrix of `members[index % T]`."""
        return self.members[index % len(self.members)].to_matrix()

    @property
    def is_symmetric(self) -> bool:
        """Whether every member is symmetric."""
        return all(member.is_symmetric for member in self.members)

    @functools.cached_property
    def lambda2(self) -> float:
        r"""The contraction of the distance from consensus, for each step.

        With $J = 11^\top/n$: in turn, $\|W_T \cdots W_1 - J\|_2^{1/T}$, the geometric
        mean over one period, which is 0 where a period averages exactly; drawn,
        $\sqrt{\|\mathbb E[W^\top W] - J\|_2}$, in mean square, in the worst direction.
        A sequence with one symmetric member has the member's own $|\lambda_2|$.
        """
        if self.size == 1:
            return 0.0
        if self.random:
            square = sum(map(_gram, self.members)) / len(self.members)
            values = np.linalg.eigvalsh(square - 1 / self.size)
            return float(np.sqrt(_snap(values, self.size)[-1]))
        if all(member.is_circulant for member in self.members):
            product = np.prod([member.spectrum for member in self.members], axis=0)
            norm = np.abs(product).max()
        else:
            product = functools.reduce(lambda product, W: W @ product, self.matrices)
            norm = np.linalg.norm(product - 1 / self.size, 2)
        return float(_snap(norm, self.size) ** (1 / len(self.members)))

    @property
    def spectral_gap(self) -> float:
        r"""$1 - \lambda_2$, with the $\lambda_2$ of this class."""
        return 1.0 - self.lambda2

    @property
    def chi(self) -> float:
        r"""$\chi = 1 / (1 - \lambda_2^2)$, with the $\lambda_2$ of this class.

        The $\chi$ of time-varying networks: a step multiplies the squared distance from
        consensus by $1 - 1/\chi$. It is not the ratio that `Topology.chi` is, which is
        infinite for members that are not connected by themselves.

        References:
          Kovalev, Gasanov, Gasnikov, Richtárik, *Lower bounds and optimal algorithms
          for smooth and strongly convex decentralized optimization over
          time-varying networks*, NeurIPS 2021, arXiv 2106.04469.
        """
        return 1 / (1 - self.lambda2**2) if self.lambda2 < 1 else math.inf

    @functools.cached_property
    def diameter(self) -> float:
        """Hops of the longest shortest path in the union of the members' graphs."""
        return _diameter(self.members)


def _snap(values: npt.ArrayLike, size: int) -> npt.NDArray[np.floating]:
    """Values within rounding of -1, 0 or 1 made exact, so that they can be tested."""
    nearest = np.rint(values)
    tolerance = 8 * size * np.finfo(np.float64).eps
    return np.where(np.abs(values - nearest) < tolerance, nearest, values)


def _gram(member: Topology) -> Matrix:
    r"""$W^\top W$, of a sparse $W$ from the pairs of nonzero numbers in its rows."""
    if member.permutes**2 > member.size:
        matrix = member.to_matrix()
        return matrix.T @ matrix
    senders = np.vstack([np.arange(member.size), member.permutations])
    weights = np.vstack([member.self_weights, member.weights])
    gram = np.zeros((member.size, member.size))
    for r, s in itertools.product(range(len(senders)), repeat=2):
        gram[senders[r], senders[s]] += weights[r] * weights[s]
    return gram


def _diameter(members: Sequence[Topology]) -> float:
    """Mixings until every worker has heard from every other one, or infinity."""
    from scipy.sparse import csgraph  # a quarter of a second

    union = sum(member.to_matrix() for member in members)
    # One worker stands for all where they are alike.
    start = 0 if all(member.is_circulant for member in members) else None
    hops = csgraph.shortest_path(union, unweighted=True, indices=start).max()
    return int(hops) if np.isfinite(hops) else math.inf
