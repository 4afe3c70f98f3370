"""Local steps: the workers' parameters are averaged once in a while."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxsp import _arguments, comm


class SyncMemory(NamedTuple):
    r"""What `sync` remembers from one average to the next.

    Attributes:
      agreed: $r$, the parameters after the last average, the same on all workers.
      outer: the state of the outer optimizer, the same on all workers; `()` without.
      residual: $e_m$, what this worker's compressor has left out; `()` without one.
      server_residual: this worker's part of the server's, as `jaxsp.comm.exchange`
        keeps it; `()` without a compressor on the way down.
      previous: the payloads before, for a compressor with a warm start; else `()`.
    """

    agreed: optax.Params
    outer: optax.OptState
    residual: optax.Params
    server_residual: optax.Params
    previous: optax.OptState


class SyncState(NamedTuple):
    """What `sync` keeps.

    Attributes:
      count: the number of updates so far, an int32 scalar.
      due: the number of updates at which the next average is, an int32 scalar.
      memory: a `SyncMemory`; `()` over a plain channel without an outer optimizer.
      traffic: the bits sent and received.
    """

    count: chex.Array
    due: chex.Array
    memory: SyncMemory | tuple[()]
    traffic: comm.Traffic


def sync(
    every: int | Callable[[chex.Numeric], chex.Numeric],
    channel: comm.Channel | comm.AxisName,
    *,
    outer: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Average the parameters after every `every`-th update, and leave the rest local.

    $$z_m + u_m \leftarrow \frac1M \sum_{j=1}^M (z_j + u_j)
    \quad\text{after updates } H, 2H, 3H, \dots$$

    It belongs at the end of a chain, after everything that changes the step. In between
    nothing is computed for it and nothing is sent (on devices; under `vmap` a
    conditional that depends on a worker's state evaluates both sides). Because an
    update is added to the parameters, workers agree afterwards to rounding, not bit for
    bit.

    Over a channel with compressors the changes since the last average travel, with
    feedback of what compressors leave out. With $r$ the parameters that all agreed on
    last, at first the initial ones, which must be the same on all workers,

    $$d_m = z_m + u_m - r + e_m, \qquad c_m = C(d_m), \qquad e_m \leftarrow d_m - c_m,$$
    $$c = C_s\Big(\frac1M \sum_m c_m + e\Big), \qquad
    e \leftarrow \frac1M \sum_m c_m + e - c, \qquad
    z_m + u_m \leftarrow r \leftarrow r + c.$$

    With an outer optimizer the mean change is not applied as it arrives but given to
    that optimizer as a pseudo-gradient,

    $$z_m + u_m \leftarrow r \leftarrow r + \mathrm{outer}(-c),$$

    over a plain channel with $c = \frac1M \sum_m (z_m + u_m - r)$. `optax.sgd(1.0)` is
    plain averaging; DiLoCo takes `optax.sgd(0.7, momentum=0.9, nesterov=True)`. Nothing
    more is sent: all workers keep the same state of it, because it sees $c$ and $r$
    alone, and no extra arguments of `update`. Its schedules count averages.

    Momentum outside is made for losses; its use on games is ours. Where local steps
    turn more than they contract it diverges: with extragradient steps of $0.3/L$ on
    bilinear games of singular values from $L/5$ to $L$, DiLoCo's numbers do so for
    $H = 1$, 10 and 100, and plain averaging converges. On a strongly monotone game with
    a symmetric operator and $\mu = L/10$, a round multiplies the error by 0.91 instead
    of 0.97 for $H = 1$, by 0.84 instead of 0.74 for $H = 10$.

    Args:
      every: $H$, the number of updates from one average to the next: a positive
        integer, a hyperparameter of `optax.inject_hyperparams`, or a schedule. A
        schedule is asked for $H$ at the start and after every average, with the number
        of updates so far; what it says is rounded, and is 1 at least.
      channel: the worker axis, `Workers.axis_name`, or what `jaxsp.channel` makes; its
        compressors must be contractive.
      outer: an optax transformation that makes the step of the agreed point from minus
        the mean change; None adds the change itself.

    Returns:
      The transformation; `update` needs `params`.

    Raises:
      ValueError: if `every` is none of the above, `channel` is neither or not
        contractive, `outer` is not a transformation, or a leaf of the parameters is not
        floating point.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxsp
      >>> workers = jaxsp.Workers(2)
      >>> tx = jaxsp.sync(2, workers.axis_name)
      >>> params = jnp.array([1.0, 3.0])
      >>> state = workers.map(tx.init)(params)
      >>> for _ in range(2):
      ...   updates, state = workers.map(tx.update)(jnp.zeros(2), state, params)
      ...   print(params + updates)
      [1. 3.]
      [2. 2.]

    References:
      Stich, Local SGD Converges Fast and Communicates Little, 2018, arXiv 1805.09767.
      Basu, Data, Karakus, Diggavi, Qsparse-local-SGD: Distributed SGD with
      Quantization, Sparsification and Local Computations, 2019, arXiv 1906.02367
      (compressed changes with feedback).
      Douillard et al., DiLoCo: Distributed Low-Communication Training of Language
      Models, 2023, arXiv 2311.08105 (the outer optimizer).
    """
    channel = comm.check_contractive(comm.as_channel(channel))
    if not callable(every):
        every = _arguments.check_every("every", every)
    if outer is not None:
        outer = _arguments.check_transformation("outer", outer)

    def steps_from(count):
        """H, the updates from this one to the next average."""
        if not callable(every):
            return jnp.asarray(every, jnp.int32)
        return jnp.maximum(jnp.round(jnp.asarray(every(count))), 1).astype(jnp.int32)

    def init_fn(params):
        _arguments.check_floating(params)
        count = jnp.zeros([], jnp.int32)
        memory: Any = ()
        if outer is not None or not channel.plain:
            agreed = jax.tree.map(lambda p: jnp.array(p, copy=True), params)
            memory = SyncMemory(
                agreed=agreed,
                outer=() if outer is None else outer.init(agreed),
                residual=() if channel.plain else optax.tree.zeros_like(params),
                server_residual=comm.no_residual(channel, params),
                previous=comm.first_payloads(channel, params),
            )
        return SyncState(count, steps_from(count), memory, comm.no_traffic())

    def exchanged(point, memory, traffic, step):
        """The point that all agree on."""
        if not isinstance(memory, SyncMemory):
            agreed, traffic = comm.mean(point, traffic, channel)  # (1/M) Σ (z_j + u_j)
            return agreed, memory, traffic
        change, residual = optax.tree.sub(point, memory.agreed), memory.residual
        if not channel.plain:
            change = optax.tree.add(change, residual)  # z + u − r + e
        made, traffic = comm.exchange(
            change,
            traffic,
            channel.at(step),
            residual=memory.server_residual,
            previous=memory.previous,
        )
        move, state = made.mean, memory.outer
        if outer is not None:
            slope = jax.tree.map(jnp.negative, move)
            move, state = outer.update(slope, state, memory.agreed)
        agreed = optax.tree.add(memory.agreed, move)  # r + c, or r + outer(−c)
        if not channel.plain:
            residual = optax.tree.sub(change, made.sent)  # e ← d − C(d)
        memory = SyncMemory(agreed, state, residual, made.residual, made.payloads)
        return agreed, memory, traffic

    def update_fn(updates, state, params=None, **extra_args):
        del extra_args
        params = _arguments.require_params(params)
        count = jnp.asarray(optax.safe_increment(state.count))

        def averaged(updates):
            point = optax.tree.add(params, updates)
            agreed, memory, traffic = exchanged(
                point, state.memory, state.traffic, state.count
            )
            due = count + steps_from(count)
            return optax.tree.sub(agreed, params), due, memory, traffic

        def local(updates):
            return updates, state.due, state.memory, state.traffic

        is_due = comm.shared_index(count >= state.due, channel.axis_name)
        updates, *kept = lax.cond(is_due, averaged, local, updates)
        return updates, SyncState(count, *kept)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
