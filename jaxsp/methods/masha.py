"""MASHA1 and MASHA2, their minibatch forms, and partial participation."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import optax

from jaxsp import _arguments, comm, transforms
from jaxsp.comm import compressed
from jaxsp.comm.compressed import Schedule
from jaxsp.compressors import Compressor

__all__ = ["masha1", "masha2", "pp_masha1", "vr_masha1", "vr_masha2"]

Prox = Callable[[Any, Any], Any]


def masha1(
    learning_rate: optax.ScalarOrSchedule,
    up: Compressor,
    down: Compressor | None,
    refresh: chex.Numeric,
    *,
    key: chex.PRNGKey,
    axis_name: comm.AxisName,
    prox: Prox | None = None,
    schedule: Schedule | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""MASHA1: extragradient around an anchor with unbiased compressed differences.

    $$\bar z = \tau z + (1 - \tau) w, \qquad
    z_{1/2} = \mathrm{prox}_{\gamma h}\big(\bar z - \gamma F(w)\big), \qquad
    g = Q_s\Big(\frac1M \sum_m Q_m\big(F_m(z_{1/2}) - F_m(w)\big)\Big),$$
    $$z \leftarrow \mathrm{prox}_{\gamma h}\big(\bar z - \gamma (F(w) + g)\big), \qquad
    w \leftarrow z \text{ with probability } 1 - \tau,$$

    with one coin for all workers. $F_m(w)$ is exchanged uncompressed when the anchor
    moves, and only then. The workers' compressors draw independently. With the steps of
    `jaxsp.theory.masha1` it converges linearly on strongly monotone problems, exactly:
    what is compressed goes to zero. Without the anchor's share of $\bar z$ it would
    diverge on bilinear games, without the differences stall at a floor
    (`compressed_extragradient`). With `refresh=1` and no compression it is
    extragradient.

    Args:
      learning_rate: $\gamma$, a number or a schedule of the iteration.
      up: $Q_m$, unbiased.
      down: $Q_s$, unbiased, or None for none.
      refresh: $1 - \tau$. At the density of `up`, as 0.1 for `rand_k(0.1)`, both kinds
        of messages cost the same.
      key: a key that all workers share.
      axis_name: the worker axis, `Workers.axis_name`.
      prox: `prox(point, gamma)`, such as a projection; None for none.
      schedule: how payloads travel, as in `jaxsp.compressed_average`.

    Returns:
      The method; `update` needs `params` and `operator_fn`, the worker's full operator.
      The gradient passed to `update` is not used.

    Raises:
      ValueError: for a bad argument, or a compressor that is not unbiased.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxsp, optax
      >>> problem = jaxsp.problems.bilinear(4, 5, heterogeneity=0.3, seed=0)
      >>> workers = jaxsp.Workers(4)
      >>> tx = jaxsp.methods.masha1(
      ...     0.3,
      ...     jaxsp.compressors.rand_k(0.3),
      ...     None,
      ...     0.3,
      ...     key=jax.random.key(0),
      ...     axis_name=workers.axis_name,
      ... )
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
      Guarantees, 2022, arXiv 2110.03313 (reconstructed).
    """
    return _unbiased(
        learning_rate, up, down, refresh, key, axis_name, prox, schedule, "full"
    )


def vr_masha1(
    learning_rate: optax.ScalarOrSchedule,
    up: Compressor,
    down: Compressor | None,
    refresh: chex.Numeric,
    *,
    key: chex.PRNGKey,
    axis_name: comm.AxisName,
    prox: Prox | None = None,
    schedule: Schedule | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""`masha1` with differences of minibatch operators.

    $F_m(z_{1/2}) - F_m(w)$ becomes the mean over a minibatch of differences at the same
    indices: `operator_fn` is the minibatch operator, called at both points, and
    `full_operator_fn` the full one, called where the anchor moves. A balanced `refresh`
    is the smaller of the density of `up` and the minibatch's share of the data.

    Args:
      learning_rate: $\gamma$, a number or a schedule of the iteration.
      up: unbiased.
      down: unbiased, or None for none.
      refresh: the probability that the anchor moves.
      key: a key that all workers share.
      axis_name: the worker axis, `Workers.axis_name`.
      prox: `prox(point, gamma)`, such as a projection; None for none.
      schedule: how payloads travel, as in `jaxsp.compressed_average`.

    Returns:
      The method; `update` needs `params`, `operator_fn` and `full_operator_fn`.

    Raises:
      ValueError: for a bad argument, or a compressor that is not unbiased.

    References:
      As `masha1`.
    """
    return _unbiased(
        learning_rate, up, down, refresh, key, axis_name, prox, schedule, "minibatch"
    )


def pp_masha1(
    learning_rate: optax.ScalarOrSchedule,
    up: Compressor,
    participants: int,
    refresh: chex.Numeric,
    *,
    key: chex.PRNGKey,
    axis_name: comm.AxisName,
    prox: Prox | None = None,
    schedule: Schedule | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""`masha1` with partial participation.

    $$g = \frac1b \sum_{i=1}^b Q\big(F_{m_i}(z_{1/2}) - F_{m_i}(w)\big),$$

    with $b$ workers drawn independently, with replacement, by the shared key; all take
    part when the anchor moves. A balanced `refresh` is $b/M$ times the density of `up`.

    Every worker of a collective program sends its payload, of whatever weight; those
    not drawn are counted too. What participation saves here is nothing; it models
    workers that are away.

    Args:
      learning_rate: $\gamma$, a number or a schedule of the iteration.
      up: $Q$, unbiased.
      participants: $b$, at least 1.
      refresh: the probability that the anchor moves.
      key: a key that all workers share.
      axis_name: the worker axis, `Workers.axis_name`.
      prox: `prox(point, gamma)`, such as a projection; None for none.
      schedule: how payloads travel, as in `jaxsp.compressed_average`.

    Returns:
      The method; `update` needs `params` and `operator_fn`.

    Raises:
      ValueError: for a bad argument, or a compressor that is not unbiased.

    References:
      As `masha1`.
    """
    participants = _arguments.check_count("participants", participants)
    return _unbiased(
        learning_rate,
        up,
        None,
        refresh,
        key,
        axis_name,
        prox,
        schedule,
        "full",
        participants,
    )


def masha2(
    learning_rate: optax.ScalarOrSchedule,
    up: Compressor,
    down: Compressor | None,
    refresh: chex.Numeric,
    *,
    key: chex.PRNGKey,
    axis_name: comm.AxisName,
    schedule: Schedule | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""MASHA2: extragradient around an anchor with contractive compressed differences.

    $$c_m = C_m\big(\gamma F_m(z_{1/2}) - \gamma F_m(w) + e_m\big), \qquad
    e_m \leftarrow \gamma F_m(z_{1/2}) - \gamma F_m(w) + e_m - c_m,$$
    $$c = C_s\Big(\frac1M \sum_m c_m + e\Big), \qquad
    e \leftarrow \frac1M \sum_m c_m + e - c, \qquad
    z \leftarrow \bar z - \gamma F(w) - c,$$

    with $\bar z$, $z_{1/2}$, the coin and the anchor of `masha1`. The residuals are
    kept when the anchor moves. Without them, or without the anchor, it diverges on
    nearly bilinear games with top-10% or sign. `jaxsp.theory.masha2` gives a step to
    start from; four to eight times that has held on every game tried.

    Args:
      learning_rate: $\gamma$, a number or a schedule of the iteration.
      up: $C_m$, contractive.
      down: $C_s$, contractive, or None for none.
      refresh: $1 - \tau$.
      key: a key that all workers share.
      axis_name: the worker axis, `Workers.axis_name`.
      schedule: how payloads travel, as in `jaxsp.compressed_average`.

    Returns:
      The method; `update` needs `params` and `operator_fn`, the worker's full operator.
      The gradient passed to `update` is not used.

    Raises:
      ValueError: for a bad argument, or a compressor that is not contractive.

    References:
      As `masha1`.
    """
    return _contractive(
        learning_rate, up, down, refresh, key, axis_name, schedule, "full"
    )


def vr_masha2(
    learning_rate: optax.ScalarOrSchedule,
    up: Compressor,
    down: Compressor | None,
    refresh: chex.Numeric,
    *,
    key: chex.PRNGKey,
    axis_name: comm.AxisName,
    schedule: Schedule | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""`masha2` with differences of minibatch operators, as `vr_masha1` takes them.

    Args:
      learning_rate: $\gamma$, a number or a schedule of the iteration.
      up: contractive.
      down: contractive, or None for none.
      refresh: the probability that the anchor moves.
      key: a key that all workers share.
      axis_name: the worker axis, `Workers.axis_name`.
      schedule: how payloads travel, as in `jaxsp.compressed_average`.

    Returns:
      The method; `update` needs `params`, `operator_fn` and `full_operator_fn`.

    Raises:
      ValueError: for a bad argument, or a compressor that is not contractive.

    References:
      As `masha1`.
    """
    return _contractive(
        learning_rate, up, down, refresh, key, axis_name, schedule, "minibatch"
    )


def _unbiased(
    learning_rate,
    up,
    down,
    refresh,
    key,
    axis_name,
    prox,
    schedule,
    differences,
    participants=None,
):
    """`s = γ Q_s((1/M) Σ Q_m(Δ_m))` around the anchor."""
    compressed.check_compressor("up", up)
    compressed.check_compressor("down", down, optional=True)
    compressed.check_unbiased("up", up)
    compressed.check_unbiased("down", down)
    exchange_key, coin_key = jax.random.split(_arguments.check_key("key", key))
    difference = optax.chain(
        transforms.compressed_average(
            up,
            down,
            key=exchange_key,
            axis_name=axis_name,
            schedule=schedule,
            participants=participants,
        ),
        optax.scale_by_learning_rate(learning_rate, flip_sign=False),
    )
    return transforms.anchored_extragradient(
        learning_rate,
        difference,
        refresh,
        key=coin_key,
        axis_name=axis_name,
        differences=differences,
        prox=prox,
    )


def _contractive(
    learning_rate, up, down, refresh, key, axis_name, schedule, differences
):
    """`s = C_s((1/M) Σ C_m(γ Δ_m + e_m) + e)` around the anchor."""
    compressed.check_compressor("up", up)
    compressed.check_compressor("down", down, optional=True)
    compressed.check_contractive("up", up)
    compressed.check_contractive("down", down)
    exchange_key, coin_key = jax.random.split(_arguments.check_key("key", key))
    difference = optax.chain(
        optax.scale_by_learning_rate(learning_rate, flip_sign=False),
        transforms.error_feedback_average(
            up, down, key=exchange_key, axis_name=axis_name, schedule=schedule
        ),
    )
    return transforms.anchored_extragradient(
        learning_rate,
        difference,
        refresh,
        key=coin_key,
        axis_name=axis_name,
        differences=differences,
    )
