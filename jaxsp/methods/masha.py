"""MASHA1 and MASHA2, their minibatch forms, and partial participation."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import chex
import optax

from jaxsp import _arguments, comm, transforms

__all__ = ["masha1", "masha2", "pp_masha1", "vr_masha1", "vr_masha2"]

Prox = Callable[[Any, Any], Any]
Snapshot = Literal["previous", "current"]


def masha1(
    learning_rate: optax.ScalarOrSchedule,
    channel: comm.Channel,
    refresh: chex.Numeric,
    *,
    snapshot: Snapshot = "previous",
    prox: Prox | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""MASHA1: extragradient around a snapshot, unbiased compressed differences.

    $$\bar z = \tau z + (1 - \tau) w, \qquad
    z_{1/2} = \mathrm{prox}_{\gamma h}\big(\bar z - \gamma F(w)\big), \qquad
    g = Q_s\Big(\frac1M \sum_m Q_m\big(F_m(z_{1/2}) - F_m(w)\big)\Big),$$
    $$z^+ = \mathrm{prox}_{\gamma h}\big(\bar z - \gamma (F(w) + g)\big), \qquad
    w \leftarrow z \text{ with probability } 1 - \tau,$$

    with one coin for all workers. $F_m(w)$ is exchanged uncompressed at a new snapshot,
    and only then. The workers' compressors draw independently. With the steps of
    `jaxsp.theory.masha1` it converges linearly on strongly monotone problems, exactly:
    what is compressed goes to zero. Without the snapshot's share of $\bar z$ it would
    diverge on bilinear games, without the differences stall at a floor
    (`compressed_extragradient`). With `refresh=1`, no compression
    and `snapshot="current"` it is extragradient.

    Args:
      learning_rate: $\gamma$, a number or a schedule of the iteration.
      channel: what `jaxsp.channel` makes, with unbiased compressors $Q_m$ up and $Q_s$
        down, and a key.
      refresh: $1 - \tau$. At the density of the compressor, as 0.1 for `rand_k(0.1)`,
        both kinds of messages cost the same.
      snapshot: `"previous"` takes $w \leftarrow z$, as the listing does; `"current"`
        takes $w \leftarrow z^+$, which is ours, and was a little faster where tried.
      prox: `prox(point, gamma)`, such as a projection; None for none.

    Returns:
      The method; `update` needs `params` and `operator_fn`, the worker's full operator.
      The gradient passed to `update` is not used.

    Raises:
      ValueError: for a bad argument, or a channel not unbiased or without a key.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxsp, optax
      >>> problem = jaxsp.problems.bilinear(4, 5, heterogeneity=0.3, seed=0)
      >>> workers = jaxsp.Workers(4)
      >>> third = jaxsp.compressors.rand_k(0.3)
      >>> channel = jaxsp.channel(workers.axis_name, third, key=jax.random.key(0))
      >>> tx = jaxsp.methods.masha1(0.3, channel, 0.3)
      >>> def run(data):
      ...   F = lambda z: problem.operator(z, data)
      ...   def step(carry, _):
      ...     z, state = carry
      ...     updates, state = tx.update(F(z), state, z, operator_fn=F)
      ...     return (optax.apply_updates(z, updates), state), None
      ...   z = jax.tree.map(jnp.zeros_like, problem.z_star)
      ...   return jax.lax.scan(step, (z, tx.init(z)), length=2000)[0][0]
      >>> z = jax.tree.map(lambda x: x[0], jax.jit(workers.map(run))(problem.data))
      >>> bool(jaxsp.metrics.distance(z, problem.z_star) < 1e-3)
      True

    References:
      Beznosikov, Richtárik, Diskin, Ryabinin, Gasnikov, Distributed Methods with
      Compressed Communication for Solving Variational Inequalities, with Theoretical
      Guarantees, 2022, arXiv 2110.03313 (the listing as in its first author's public
      talks).
    """
    return _unbiased(learning_rate, channel, refresh, snapshot)(prox=prox)


def vr_masha1(
    learning_rate: optax.ScalarOrSchedule,
    channel: comm.Channel,
    refresh: chex.Numeric,
    *,
    snapshot: Snapshot = "previous",
    prox: Prox | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""`masha1` with differences of minibatch operators.

    $F_m(z_{1/2}) - F_m(w)$ becomes the mean over a minibatch of differences at the same
    indices: `operator_fn` is the minibatch operator, called at both points, and
    `full_operator_fn` the full one, called at a new snapshot. A balanced `refresh` is
    the smaller of the compressor's density and the minibatch's share of the data.

    Args:
      learning_rate: $\gamma$, a number or a schedule of the iteration.
      channel: what `jaxsp.channel` makes, with unbiased compressors, and a key.
      refresh: the probability of a new snapshot.
      snapshot: `"previous"` or `"current"`, as in `masha1`.
      prox: `prox(point, gamma)`, such as a projection; None for none.

    Returns:
      The method; `update` needs `params`, `operator_fn` and `full_operator_fn`.

    Raises:
      ValueError: for a bad argument, or a channel not unbiased or without a key.

    References:
      As `masha1`.
    """
    around = _unbiased(learning_rate, channel, refresh, snapshot)
    return around(prox=prox, differences="minibatch")


def pp_masha1(
    learning_rate: optax.ScalarOrSchedule,
    channel: comm.Channel,
    participants: int,
    refresh: chex.Numeric,
    *,
    snapshot: Snapshot = "previous",
    prox: Prox | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""`masha1` with partial participation.

    $$g = \frac1b \sum_{i=1}^b Q\big(F_{m_i}(z_{1/2}) - F_{m_i}(w)\big),$$

    with $b$ workers drawn independently, with replacement, by the shared key; all take
    part at a new snapshot. A balanced `refresh` is $b/M$ times the density of the
    compressor.

    Every worker of a collective program sends its payload, of whatever weight; those
    not drawn are counted too. What participation saves here is nothing; it models
    workers that are away.

    Args:
      learning_rate: $\gamma$, a number or a schedule of the iteration.
      channel: what `jaxsp.channel` makes, with unbiased compressors, and a key.
      participants: $b$, at least 1.
      refresh: the probability of a new snapshot.
      snapshot: `"previous"` or `"current"`, as in `masha1`.
      prox: `prox(point, gamma)`, such as a projection; None for none.

    Returns:
      The method; `update` needs `params` and `operator_fn`.

    Raises:
      ValueError: for a bad argument, or a channel not unbiased or without a key.

    References:
      As `masha1`.
    """
    participants = _arguments.check_count("participants", participants)
    around = _unbiased(learning_rate, channel, refresh, snapshot, participants)
    return around(prox=prox)


def masha2(
    learning_rate: optax.ScalarOrSchedule,
    channel: comm.Channel,
    refresh: chex.Numeric,
    *,
    snapshot: Snapshot = "previous",
) -> optax.GradientTransformationExtraArgs:
    r"""MASHA2: extragradient around a snapshot, contractive compressed differences.

    $$c_m = C_m\big(\gamma F_m(z_{1/2}) - \gamma F_m(w) + e_m\big), \qquad
    e_m \leftarrow \gamma F_m(z_{1/2}) - \gamma F_m(w) + e_m - c_m,$$
    $$c = C_s\Big(\frac1M \sum_m c_m + e\Big), \qquad
    e \leftarrow \frac1M \sum_m c_m + e - c, \qquad
    z \leftarrow \bar z - \gamma F(w) - c,$$

    with $\bar z$, $z_{1/2}$, the coin and the snapshot of `masha1`. The residuals are
    kept at a new snapshot. Without them, or without the snapshot, it diverges on
    nearly bilinear games with top-10% or sign. `jaxsp.theory.masha2` gives a step to
    start from; four to eight times that has held on every game tried.

    Args:
      learning_rate: $\gamma$, a number or a schedule of the iteration.
      channel: what `jaxsp.channel` makes, with contractive compressors $C_m$ up and
        $C_s$ down, and a key.
      refresh: $1 - \tau$.
      snapshot: `"previous"` or `"current"`, as in `masha1`.

    Returns:
      The method; `update` needs `params` and `operator_fn`, the worker's full operator.
      The gradient passed to `update` is not used.

    Raises:
      ValueError: for a bad argument, or a channel not contractive or without a key.

    References:
      As `masha1`.
    """
    return _contractive(learning_rate, channel, refresh, snapshot)()


def vr_masha2(
    learning_rate: optax.ScalarOrSchedule,
    channel: comm.Channel,
    refresh: chex.Numeric,
    *,
    snapshot: Snapshot = "previous",
) -> optax.GradientTransformationExtraArgs:
    r"""`masha2` with differences of minibatch operators, as `vr_masha1` takes them.

    Args:
      learning_rate: $\gamma$, a number or a schedule of the iteration.
      channel: what `jaxsp.channel` makes, with contractive compressors, and a key.
      refresh: the probability of a new snapshot.
      snapshot: `"previous"` or `"current"`, as in `masha1`.

    Returns:
      The method; `update` needs `params`, `operator_fn` and `full_operator_fn`.

    Raises:
      ValueError: for a bad argument, or a channel not contractive or without a key.

    References:
      As `masha1`.
    """
    around = _contractive(learning_rate, channel, refresh, snapshot)
    return around(differences="minibatch")


def unbiased_exchange(learning_rate, channel, participants=None):
    """`γ Q_s((1/M) Σ Q_m(Δ_m))` of what comes in, and the channel, checked."""
    _arguments.check_learning_rate(learning_rate)
    channel = comm.check_unbiased(comm.check_key(comm.as_channel(channel)))
    exchange = optax.chain(
        transforms.average(channel.at(0), participants),
        optax.scale_by_learning_rate(learning_rate, flip_sign=False),
    )
    return exchange, channel


def _unbiased(learning_rate, channel, refresh, snapshot, participants=None):
    """The same around the snapshot."""
    exchange, channel = unbiased_exchange(learning_rate, channel, participants)
    return _around(learning_rate, exchange, channel, refresh, snapshot)


def _contractive(learning_rate, channel, refresh, snapshot):
    """`s = C_s((1/M) Σ C_m(γ Δ_m + e_m) + e)` around the snapshot."""
    _arguments.check_learning_rate(learning_rate)
    channel = comm.check_mean(comm.check_key(comm.as_channel(channel)))
    comm.check_contractive(channel)
    exchange = optax.chain(
        optax.scale_by_learning_rate(learning_rate, flip_sign=False),
        transforms.error_feedback_average(channel.at(0)),
    )
    return _around(learning_rate, exchange, channel, refresh, snapshot)


def _around(learning_rate, exchange, channel, refresh, snapshot):
    """The method but for its variants, whose coin has a key of its own."""
    return functools.partial(
        transforms.snapshot_extragradient,
        learning_rate,
        exchange,
        transforms.Refresh(refresh, channel.at(1).key, snapshot),
        channel.axis_name,
    )
