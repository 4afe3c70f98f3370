"""Workers mix their parameters with their neighbours'."""

from typing import Literal, NamedTuple

import chex
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxsp import _arguments, comm
from jaxsp.topology import TimeVarying, Topology

_UNROLLED = 8  # up to so many rounds the program has no loop


class GossipState(NamedTuple):
    """What `gossip` keeps.

    Attributes:
      count: the number of updates so far, an int32 scalar.
      traffic: the bits sent to and received from neighbours.
    """

    count: chex.Array
    traffic: comm.Traffic


def gossip(
    topology: Topology | TimeVarying,
    rounds: int = 1,
    acceleration: Literal["fastmix", "chebyshev"] | None = None,
    *,
    axis_name: comm.AxisName,
    order: Literal["adapt_then_combine", "combine_then_adapt"] = "adapt_then_combine",
    key: chex.PRNGKey | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Mix the parameters with the neighbours' in the step's update.

    $$z_m + u_m \leftarrow \sum_j (W^H)_{mj}\,(z_j + u_j)$$

    (adapt then combine), or $z_m + u_m \leftarrow \sum_j (W^H)_{mj}\, z_j + u_m$
    (combine then adapt), with $H$ rounds. An accelerated method replaces $W^H$ by
    another polynomial of degree $H$ in $W$ that keeps the mean, with
    $V^0 = V^{-1}$ the point to mix:

    * FastMix, $V^{h+1} = (1+\eta) W V^h - \eta V^{h-1}$ with
      $\eta = \frac{1-\sqrt{1-\lambda_2^2}}{1+\sqrt{1-\lambda_2^2}}$;
    * Chebyshev, $T_H\big(\tfrac{W-c}{a}\big) / T_H\big(\tfrac{1-c}{a}\big)$ with $c$
      and $a$ the middle and half-width of the interval of eigenvalues other than 1,
      the smallest polynomial there is on that interval. For an asymmetric $W$ the
      interval is $[-\lambda_2, \lambda_2]$.

    Parameters are mixed, not gradients. It belongs at the end of a chain; inside
    `extragradient(...)` it mixes the extrapolated points too.

    Args:
      topology: the mixing matrix, from `jaxsp.topology`. A time-varying sequence moves
        one matrix on in every round; of a random topology one matrix is drawn in every
        update.
      rounds: $H$, the exchanges with neighbours in each update.
      acceleration: None, `"fastmix"` or `"chebyshev"`; for a fixed matrix only.
      axis_name: the worker axis, `Workers.axis_name`.
      order: whether the update is mixed with the parameters or added after.
      key: the shared key that a random topology is drawn from, and only that needs it.

    Returns:
      The transformation; `update` needs `params`.

    Raises:
      ValueError: if an argument is not of the above, the axis has another number of
        workers than the topology, a leaf of the parameters is not floating point, or
        the accelerated polynomial would make the workers of an asymmetric matrix
        disagree more instead of less.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxsp
      >>> workers = jaxsp.Workers(4)
      >>> tx = jaxsp.gossip(jaxsp.topology.ring(4), axis_name=workers.axis_name)
      >>> params = jnp.array([0.0, 3.0, 6.0, 9.0])
      >>> state = workers.map(tx.init)(params)
      >>> updates, state = workers.map(tx.update)(jnp.zeros(4), state, params)
      >>> print(params + updates)
      [4. 3. 6. 5.]

    References:
      Xiao, Boyd, Fast Linear Iterations for Distributed Averaging, 2004.
      Liu, Morse, Accelerated Linear Iterations for Distributed Averaging, 2011
      (the iteration that later papers call FastMix).
      Scaman, Bach, Bubeck, Lee, Massoulié, Optimal Algorithms for Smooth and Strongly
      Convex Distributed Optimization in Networks, 2017, arXiv 1702.08704 (Chebyshev).
    """
    _arguments.check_topology(topology)
    rounds = _arguments.check_count("rounds", rounds, maximum=10**5)
    _arguments.check_axis_name(axis_name)
    _arguments.check_choice(
        "order", order, ("adapt_then_combine", "combine_then_adapt")
    )
    random = isinstance(topology, TimeVarying) and topology.random
    key = comm.check_draws(topology, key)
    recursion = _recursion(topology, rounds, acceleration)

    def schedule(count):
        """The matrix of each round of update `count`, as a function of the round."""
        if random:
            drawn = comm.member(topology, count, axis_name, key)
            return lambda h: drawn
        return lambda h: comm.member(topology, count * rounds + h, axis_name)

    def init_fn(params):
        _arguments.check_floating(params)
        return GossipState(count=jnp.zeros([], jnp.int32), traffic=comm.no_traffic())

    def update_fn(updates, state, params=None, **extra_args):
        del extra_args
        params = _arguments.require_params(params)
        adapt_first = order == "adapt_then_combine"
        point = optax.tree.add(params, updates) if adapt_first else params
        arrays, restore = comm.buffers(point, axis_name)
        member = schedule(state.count)

        def one_round(carry, step):
            before, mixed, traffic = carry  # V^{h-1}, V^h
            h, coefficients = step
            which = member(h)
            neighbours, traffic = comm.mix(  # W V^h
                mixed, traffic, topology, axis_name, which
            )
            if acceleration is not None:  # α W V^h + β V^h + γ V^{h-1}
                terms = zip(neighbours, mixed, before, strict=True)
                neighbours = [_combine(coefficients, *term) for term in terms]
            return (mixed, neighbours, traffic), None

        carry = arrays, arrays, state.traffic
        if rounds <= _UNROLLED:
            for step in enumerate(recursion):
                carry, _ = one_round(carry, step)
        else:  # a loop of its own, or compiling takes a second for every few rounds
            steps = jnp.arange(rounds), jnp.asarray(recursion)
            carry, _ = lax.scan(one_round, carry, steps)
        _, mixed, traffic = carry
        mixed = optax.tree.sub(restore(mixed), params)  # W (z + u) − z, or W z − z
        count = jnp.asarray(optax.safe_increment(state.count))
        updates = mixed if adapt_first else optax.tree.add(mixed, updates)
        return updates, GossipState(count, traffic)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _combine(coefficients, *terms):
    """`Σ c x` in float32 at least, so that coefficients keep their sum of 1."""
    dtype = terms[0].dtype
    wide = np.promote_types(dtype, np.float32)
    pairs = zip(coefficients, terms, strict=True)
    terms = [jnp.asarray(c, wide) * x.astype(wide) for c, x in pairs]
    return sum(terms, start=jnp.zeros((), wide)).astype(dtype)


def _recursion(topology, rounds, acceleration):
    """The (α, β, γ) of `V^{h+1} = α W V^h + β V^h + γ V^{h-1}`, a triple a round."""
    choices = (None, "fastmix", "chebyshev")
    _arguments.check_choice("acceleration", acceleration, choices)
    if acceleration is None:
        return [(1.0, 0.0, 0.0)] * rounds
    if len(topology.members) > 1:
        raise ValueError(
            f"acceleration={acceleration!r} needs one fixed mixing matrix, but the "
            "topology is time-varying: use acceleration=None."
        )
    matrix = topology.members[0]
    if acceleration == "fastmix":
        root = np.sqrt(1 - matrix.lambda2**2)
        eta = float((1 - root) / (1 + root))
        recursion = [(1 + eta, 0.0, -eta)] * rounds
    else:
        recursion = _chebyshev(matrix.spectral_interval, rounds)
    gain = _gain(matrix, recursion)
    if not matrix.is_symmetric and gain > 1:
        raise ValueError(
            f"acceleration={acceleration!r} with rounds={rounds} would multiply the "
            f"workers' disagreement by {gain:.3g} on this asymmetric mixing matrix: "
            "use acceleration=None."
        )
    return recursion


def _chebyshev(interval, rounds):
    """`T_H((W-c)/a) / T_H((1-c)/a)` as a recursion that allows a = 0."""
    low, high = interval
    c, a = (low + high) / 2, (high - low) / 2
    if c == 1:  # W = I: nothing to mix
        return [(1.0, 0.0, 0.0)] * rounds
    s = a / (1 - c)
    recursion, omega = [], 1.0  # ω_h = 2 T_{h-1}(1/s) / (s T_h(1/s)), but ω_1 = 1
    for h in range(rounds):
        if h > 0:
            omega = 1 / (1 - s**2 * omega / (2 if h == 1 else 4))
        recursion.append((omega / (1 - c), -omega * c / (1 - c), 1 - omega))
    return recursion


def _gain(matrix, recursion):
    """The largest factor by which the recursion scales an eigenvector other than 1."""
    n = matrix.size
    eigenvalues = np.linalg.eigvals(matrix.to_matrix() - np.full((n, n), 1 / n))
    before, value = np.ones_like(eigenvalues), np.ones_like(eigenvalues)
    for alpha, beta, gamma in recursion:
        before, value = value, (alpha * eigenvalues + beta) * value + gamma * before
    # W - J has the eigenvalue 0 in the place of the 1 of W, which must not count.
    keep = np.ones(n, bool)
    keep[np.argmin(np.abs(eigenvalues))] = False
    return float(np.max(np.abs(value), where=keep, initial=0.0))
