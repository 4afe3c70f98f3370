"""Mixing matrices, fixed and time-varying, with their spectra.

The functions of `jaxsp.topology` make them. A topology is a doubly stochastic matrix
W, one row for each receiving worker, stored as the rounds of communication that
apply it:

    W = diag(self_weights) + Σ_r diag(weights[r]) P_r,

where P_r is a full permutation: in round r worker m receives from worker
`permutations[r, m]`. A round costs one collective permutation.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["TimeVarying", "Topology"]

Matrix = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Topology:
    """A fixed mixing matrix W and the rounds that apply it.

    Made by the functions of `jaxsp.topology`; compared by identity; its arrays are
    read-only. λ₁ = 1, λ₂, … are the eigenvalues of W, J = 11ᵀ/n.

    Attributes:
      name: what the topology is called in messages.
      self_weights: (n,) the diagonal of W.
      permutations: (R, n) in round r worker m receives from `permutations[r, m]`.
      weights: (R, n) what worker m multiplies with what it receives in round r.

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
        n = len(self.self_weights)
        shape = np.shape(self.permutations)
        if shape[1:] != (n,) or np.shape(self.weights) != shape:
            raise ValueError(
                "permutations and weights must both be of shape (rounds, n) with n = "
                f"{n} as self_weights has, got {shape} and {np.shape(self.weights)}; "
                "from_matrix(W) makes them from a mixing matrix"
            )
        if (np.sort(self.permutations, axis=1) != np.arange(n)).any():
            raise ValueError(
                f"each row of permutations must hold 0, …, {n - 1} once each, got "
                f"{self.permutations}; from_matrix(W) makes them from a mixing matrix"
            )
        for field, dtype in (
            ("self_weights", np.float64),
            ("permutations", np.int64),
            ("weights", np.float64),
        ):
            array = np.array(getattr(self, field), dtype=dtype)
            array.setflags(write=False)
            object.__setattr__(self, field, array)

    def __repr__(self):
        return (
            f"Topology({self.name!r}, size={self.size}, "
            f"rounds={len(self.permutations)}, lambda2={self.lambda2:.4g})"
        )

    @property
    def size(self) -> int:
        """Number of workers n."""
        return len(self.self_weights)

    @property
    def members(self) -> tuple["Topology", ...]:
        """The topology itself, as the only member of a constant sequence."""
        return (self,)

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """The matrices of `members`."""
        return (self.to_matrix(),)

    def to_matrix(self) -> Matrix:
        """W as a new (n, n) float64 array; row m weighs what worker m receives."""
        matrix = np.diag(self.self_weights)
        worker = np.arange(self.size)
        for sources, weights in zip(self.permutations, self.weights, strict=True):
            matrix[worker, sources] += weights
        return matrix

    def messages(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Payloads that each worker really sends and receives in one mixing.

        A round in which m receives from itself costs it nothing. Edges of weight 0
        that complete an asymmetric round are moved, and counted.

        Returns:
          `(sent, received)`, integer arrays of shape (n,).

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
        """Whether W = Wᵀ, to 1e-12."""
        matrix = self.to_matrix()
        return np.allclose(matrix, matrix.T, rtol=0.0, atol=1e-12)

    @functools.cached_property
    def spectral_interval(self) -> tuple[float, float]:
        """Interval (lo, hi) with every eigenvalue of W but one eigenvalue 1.

        The smallest one, (λ_min, second largest λ), for symmetric W, where all are
        real; (−|λ₂|, |λ₂|) otherwise; (0, 0) for one worker.
        """
        if self.size == 1:
            return 0.0, 0.0
        if self.is_symmetric:
            eigenvalues = np.linalg.eigvalsh(self.to_matrix())
            eigenvalues = np.clip(_snap(eigenvalues), -1.0, 1.0)
            return float(eigenvalues[0]), float(eigenvalues[-2])
        # J takes the place of the eigenvalue 1 and moves no other one.
        deviation = self.to_matrix() - 1 / self.size
        moduli = _snap(np.abs(np.linalg.eigvals(deviation)))
        radius = min(float(moduli.max()), 1.0)
        return -radius, radius

    @property
    def lambda2(self) -> float:
        """Largest |eigenvalue| of W, one eigenvalue 1 left out: |λ₂|.

        For symmetric W one mixing shrinks the distance from consensus by it. It is
        1 where the graph is disconnected (or bipartite without self weights), 0 for
        one worker and for the complete graph.
        """
        return max(map(abs, self.spectral_interval))

    @property
    def spectral_gap(self) -> float:
        """1 − |λ₂|."""
        return 1.0 - self.lambda2

    @functools.cached_property
    def chi(self) -> float:
        """Condition number χ = σ_max / σ_min⁺ of I − W.

        For symmetric W singular values are eigenvalues, and this is the
        λ_max(I − W) / λ_min⁺(I − W) of decentralized rates. Infinite where the graph
        is disconnected; 1 for one worker.
        """
        if self.size == 1:
            return 1.0
        if self.is_symmetric:
            lo, hi = self.spectral_interval
            largest, smallest = 1.0 - lo, 1.0 - hi
        else:
            laplacian = np.eye(self.size) - self.to_matrix()
            singular = _snap(np.linalg.svd(laplacian, compute_uv=False))
            largest, smallest = float(singular[0]), float(singular[-2])
        return largest / smallest if smallest > 0.0 else math.inf

    @functools.cached_property
    def diameter(self) -> float:
        """Hops of the longest shortest path; `math.inf` where disconnected.

        Edges are the off-diagonal entries W[m, j] ≠ 0, directed from j to m: after
        `diameter` mixings, and no fewer, every worker has heard from every other one.
        """
        return _diameter((self,))


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TimeVarying:
    """A sequence of mixing matrices, used in turn or drawn at random.

    Attributes:
      name: what the topology is called in messages.
      members: the topologies W_1, …, W_T, all of one size.
      random: False: step t = 0, 1, … uses `members[t % T]`. True: every step uses
        a member drawn uniformly, from a key that all workers share, by the
        transformation that mixes.

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
        object.__setattr__(self, "members", tuple(self.members))
        if not self.members:
            raise ValueError(
                "members must hold at least one topology, got none; write "
                "from_sequence([ring(4), complete(4)])"
            )
        for member in self.members:
            if not isinstance(member, Topology):
                raise ValueError(
                    f"members must be fixed topologies, got {member!r}; write "
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
        """Number of workers n."""
        return self.members[0].size

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """W_1, …, W_T."""
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
        """Contraction of the distance from consensus, for each step.

        In turn: ‖W_T ⋯ W_1 − J‖₂^{1/T}, the geometric mean over one period; 0 where a
        period averages exactly. Drawn: √‖E[WᵀW] − J‖₂, in mean square, in the worst
        direction. A sequence with one symmetric member has the member's own λ₂.
        """
        if self.random:
            deviations = [W - 1 / self.size for W in self.matrices]
            square = sum(D.T @ D for D in deviations) / len(deviations)
            return float(np.sqrt(_snap(np.linalg.eigvalsh(square))[-1]))
        product = functools.reduce(lambda product, W: W @ product, self.matrices)
        singular = np.linalg.svd(product - 1 / self.size, compute_uv=False)
        return float(_snap(singular)[0] ** (1 / len(self.members)))

    @property
    def spectral_gap(self) -> float:
        """1 − λ₂, with the λ₂ of this class."""
        return 1.0 - self.lambda2

    @property
    def chi(self) -> float:
        """χ = 1 / (1 − λ₂²), with the λ₂ of this class.

        The χ of time-varying networks: a step multiplies the squared distance from
        consensus by 1 − 1/χ. It is not the ratio that `Topology.chi` is, which
        is infinite for members that are not connected by themselves.

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


def _snap(spectrum: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Values within rounding of −1, 0 or 1 made exact, so that they can be tested."""
    nearest = np.rint(spectrum)
    tolerance = 8 * len(spectrum) * np.finfo(np.float64).eps
    return np.where(np.abs(spectrum - nearest) < tolerance, nearest, spectrum)


def _diameter(members: Sequence[Topology]) -> float:
    """Mixings until every worker has heard from every other one, or infinity."""
    heard = np.eye(members[0].size, dtype=bool)  # heard[m, j]: from j to m
    for hops in itertools.count():
        if heard.all():
            return hops
        before = heard.copy()
        for member in members:
            for sources, weights in zip(
                member.permutations, member.weights, strict=True
            ):
                edges = weights != 0
                heard[edges] |= before[sources[edges]]
        if (heard == before).all():
            break
    return math.inf
