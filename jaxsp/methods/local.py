"""Local steps that unlike workers do not bias."""

from collections.abc import Callable
from typing import Any

import chex
import optax

from jaxsp import _arguments, comm, transforms
from jaxsp.methods.extra_step import descent

__all__ = ["fedgda_gt", "proxskip_vip"]


def fedgda_gt(
    learning_rate: optax.ScalarOrSchedule,
    sync_every: int,
    channel: comm.Channel | comm.AxisName,
) -> optax.GradientTransformationExtraArgs:
    r"""Local descent-ascent with gradient tracking: FedGDA-GT.

    With $r$ the point of the last average, where every worker has $F_m(r)$ and all know
    $F(r)$,

    $$z_m \leftarrow z_m - \eta\,\big(F_m(z_m) - F_m(r) + F(r)\big), \qquad
    z_m \leftarrow r \leftarrow \tfrac1M \textstyle\sum_j z_j \text{ after every } H
    \text{ iterations}.$$

    On strongly monotone games it converges linearly to the solution itself, where local
    steps without the correction keep a floor in proportion to $\eta$. A round has two
    exchanges, of the points and of the gradients where they meet. On bilinear games it
    diverges, as descent does. It is `drift_correction`, descent and `sync`; chain
    `extragradient(...)` between them for games that turn.

    Args:
      learning_rate: $\eta$, a number or a schedule of the iteration.
      sync_every: $H$, the iterations from one average to the next.
      channel: the worker axis, `Workers.axis_name`, or what `jaxsp.channel` makes of it
        and a key, without compressors.

    Returns:
      The method; one oracle call an iteration, `update` needs `params`.

    Raises:
      ValueError: for a bad argument.

    Example:
      Two workers that pull to 1 and to 3, one three times as hard:
      >>> import jax, jax.numpy as jnp
      >>> import jaxsp, optax
      >>> workers = jaxsp.Workers(2)
      >>> tx = jaxsp.methods.fedgda_gt(0.1, 5, workers.axis_name)
      >>> def step(z, state, pull, target):
      ...   updates, state = tx.update(pull * (z - target), state, z)
      ...   return optax.apply_updates(z, updates), state
      >>> z, step = jnp.zeros(2), jax.jit(workers.map(step))
      >>> state = workers.map(tx.init)(z)
      >>> pulls, targets = jnp.array([3.0, 1.0]), jnp.array([1.0, 3.0])
      >>> for _ in range(100):
      ...   z, state = jax.block_until_ready(step(z, state, pulls, targets))
      >>> print([round(float(x), 3) for x in z])
      [1.5, 1.5]

    References:
      Sun, Wei, A Communication-Efficient Algorithm with Linear Convergence for
      Federated Minimax Learning, 2022, arXiv 2206.01132.
    """
    sync_every = _arguments.check_every("sync_every", sync_every)
    channel = comm.as_channel(channel)
    if not channel.plain:
        raise ValueError(
            "channel must have no compressors, because what they leave out of the mean "
            f"gradient is a floor, got {channel}: leave them out, or chain "
            "drift_correction and sync with channels of their own."
        )
    return optax.chain(
        transforms.drift_correction(sync_every, channel),
        descent(learning_rate),
        transforms.sync(sync_every, channel),
    )


def proxskip_vip(
    learning_rate: optax.ScalarOrSchedule,
    channel: comm.Channel,
    probability: chex.Numeric,
    *,
    prox: Callable[[Any, Any], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Local descent-ascent with control variates and rare averages: ProxSkip-VIP.

    $$\hat z_m = z_m - \gamma\,(F_m(z_m) - h_m), \qquad
    z_m \leftarrow \mathrm{prox}_{\gamma/p}\Big(\frac1M \sum_j
    \big(\hat z_j - \tfrac\gamma p h_j\big)\Big) \text{ with probability } p,
    \text{ else } \hat z_m, \qquad
    h_m \leftarrow h_m + \frac p\gamma (z_m - \hat z_m),$$

    from $h_m = 0$, with one coin for all workers. What is sent is one model with
    probability $p$; $h_m$ comes to be $F_m(z^*)$, so that unlike workers stay at the
    solution without an exchange. For $\mu$-strongly monotone, $\ell$-cocoercive
    operators the paper's $\gamma = 1/(2\ell)$ and $p = \sqrt{\gamma\mu}$ need
    $O(\kappa \log(1/\varepsilon))$ steps and only $O(\sqrt\kappa
    \log(1/\varepsilon))$ averages, $\kappa = \ell/\mu$. On bilinear games it diverges,
    as descent does.

    Args:
      learning_rate: $\gamma$, a number or a schedule of the iteration.
      channel: what `jaxsp.channel` makes of the worker axis and a key, without
        compressors.
      probability: $p$, above 0 and at most 1.
      prox: `prox(point, gamma)`, such as a projection; None for none.

    Returns:
      The method; one oracle call an iteration, `update` needs `params`.

    Raises:
      ValueError: for a bad argument, or a channel without a key.

    References:
      Zhang, Choudhury, Stich, Loizou, Communication-Efficient Gradient Descent-Accent
      Methods for Distributed Variational Inequalities: Unified Analysis and Local
      Updates, 2023, arXiv 2306.05100 (the listing as in its authors' public code).
    """
    return transforms.prox_skip(learning_rate, channel, probability, prox=prox)
