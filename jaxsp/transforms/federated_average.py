"""Federated averaging: rounds of local steps of some of the workers."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.core import Tracer

from jaxsp import _arguments, comm


class FederatedAverageState(NamedTuple):
    """What `federated_average` keeps.

    Attributes:
      count: the number of updates so far, an int32 scalar.
      inner: the state of the worker's own optimizer.
      traffic: the bits sent and received.
    """

    count: chex.Array
    inner: optax.OptState
    traffic: comm.Traffic


def federated_average(
    optimizer: optax.GradientTransformation,
    every: int,
    *,
    weights: Sequence[float] | np.ndarray | jax.Array | None = None,
    participants: int | None = None,
    key: chex.PRNGKey | None = None,
    axis_name: comm.AxisName,
) -> optax.GradientTransformationExtraArgs:
    r"""Federated averaging (FedAvg) around any optimizer.

    In every round $t = 0, 1, \dots$ some workers $S_t$ make $H$ updates of their own,
    all from the same point; then all workers go on from the weighted mean of what
    these have found,

    $$z_m \leftarrow z_m + \mathrm{opt}_m(F_m(z_m)) \quad (m \in S_t,\ H \text{ times}),
    \qquad z \leftarrow \sum_{m \in S_t} \frac{n_m}{\sum_{j \in S_t} n_j}\, z_m.$$

    Who takes part is drawn anew in every round from a key that all share: the first
    `participants` workers of `jax.random.permutation(jax.random.fold_in(key, t), M)`.
    The others stand still, with the state of their optimizer, until the round ends;
    what they compute meanwhile is thrown away (the program is the same for all
    workers), and may be anything. With all workers and equal weights it is
    `optax.chain(optimizer, jaxsp.sync(every, axis_name))`.

    The state of the optimizer is never sent: momentum and Adam's moments are a worker's
    own, and go on from round to round. That is our choice; in the paper workers make
    plain steps, which have no state. What `optimizer` itself sends is sent by all, also
    by those who do not take part: it is meant to be local.

    Everything is one all-reduce a round, in which those who do not take part add zeros,
    and is counted so. As with `jaxsp.sync`, nothing is sent in between, and workers
    agree afterwards to rounding.

    Args:
      optimizer: what a worker does in between, any optax transformation; it may call
        `operator_fn`.
      every: $H$, the updates in a round. It may be a hyperparameter of
        `optax.inject_hyperparams`.
      weights: $n_m$, a positive number for each worker, such as the size of its share
        of the data; None weighs all alike.
      participants: how many workers take part in a round; None for all.
      key: a typed key that all workers share; needed with `participants`.
      axis_name: the worker axis, `Workers.axis_name`.

    Returns:
      The transformation; `update` needs `params`.

    Raises:
      ValueError: for a bad argument, or weights or participants that do not fit the
        number of workers.

    Example:
      Of three workers two take part, and all end where these meet:

      >>> import jax, jax.numpy as jnp
      >>> import jaxsp, optax
      >>> workers = jaxsp.Workers(3)
      >>> tx = jaxsp.transforms.federated_average(
      ...   optax.sgd(1.0), 2, participants=2, key=jax.random.key(0),
      ...   axis_name=workers.axis_name)
      >>> params = jnp.zeros(3)
      >>> state, update = workers.map(tx.init)(params), jax.jit(workers.map(tx.update))
      >>> for _ in range(2):
      ...   updates, state = update(-jnp.arange(1.0, 4), state, params)
      ...   params = params + updates
      ...   print(params)
      [1. 0. 3.]
      [4. 4. 4.]

    References:
      McMahan, Moore, Ramage, Hampson, Agüera y Arcas, Communication-Efficient Learning
      of Deep Networks from Decentralized Data, 2017, arXiv 1602.05629.
    """
    optimizer = _arguments.check_transformation("optimizer", optimizer)
    every = _arguments.check_every("every", every)
    if weights is not None:
        weights = _check_weights(weights)
    if participants is not None:
        participants = _arguments.check_count("participants", participants)
        if key is None:
            raise ValueError(
                "key must be a typed key that all workers share, such as "
                "jax.random.key(0), when participants is given: it draws who they are."
            )
    shared_key: Any = None if key is None else _arguments.check_key("key", key)
    _arguments.check_axis_name(axis_name)

    def init_fn(params):
        _arguments.check_floating(params)
        return FederatedAverageState(
            count=jnp.zeros([], jnp.int32),
            inner=optimizer.init(params),
            traffic=comm.no_traffic(),
        )

    def update_fn(updates, state, params=None, **extra_args):
        params = _arguments.require_params(params)
        workers = comm.worker_count(axis_name)
        _check_fit(weights, participants, workers)
        me = comm.worker_index(axis_name)
        sizes = jnp.ones(workers) if weights is None else jnp.asarray(weights)
        present, total = jnp.array(True), sizes.sum()
        updates, inner = optimizer.update(updates, state.inner, params, **extra_args)
        if participants not in (None, workers):
            draw = jax.random.fold_in(shared_key, state.count // every)
            chosen = jax.random.permutation(draw, workers)[:participants]  # S_t
            present, total = jnp.any(chosen == me), sizes[chosen].sum()
            updates, inner = jax.tree.map(
                lambda new, old: jnp.where(present, new, old),
                (updates, inner),
                (optax.tree.zeros_like(updates), state.inner),
            )
        # The mean over all workers of these parts is the weighted mean over S_t.
        share = sizes[me] * (workers / total)  # M n_m / Σ n_j

        def averaged(updates, traffic):
            moved = optax.tree.add(params, updates)
            parts = jax.tree.map(
                lambda z: jnp.where(present, z, jnp.zeros_like(z)), moved
            )
            agreed, traffic = comm.all_reduce(parts, traffic, axis_name, share)
            return optax.tree.sub(agreed, params), traffic

        def local(updates, traffic):
            return updates, traffic

        count = jnp.asarray(optax.safe_increment(state.count))
        due = comm.shared_index(count % every == 0, axis_name)
        updates, traffic = lax.cond(due, averaged, local, updates, state.traffic)
        return updates, FederatedAverageState(count, inner, traffic)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _check_weights(weights: Any) -> Any:
    """Accept a traced array, or positive finite numbers, one a worker."""
    if isinstance(weights, Tracer):
        return weights
    values = _arguments.check_array("weights", weights, ndim=1)
    if not np.all(values > 0):
        required = "above 0, one for each worker, such as the sizes of their shares"
        _arguments.refuse("weights", required, weights)
    return values.astype(float)


def _check_fit(weights: Any, participants: int | None, workers: int) -> None:
    """Refuse weights and participants of another number of workers."""
    if weights is not None and weights.shape != (workers,):
        raise ValueError(
            f"weights must be {workers} numbers, one for each worker, got shape "
            f"{weights.shape}."
        )
    if participants is not None and participants > workers:
        raise ValueError(
            f"participants must be at most the number of workers, {workers}, got "
            f"{participants}."
        )
