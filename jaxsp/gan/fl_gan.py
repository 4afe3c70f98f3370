"""FL-GAN: a GAN on every worker, trained by federated averaging."""

from collections.abc import Sequence

import chex
import jax
import numpy as np
import optax

from jaxsp import _arguments, comm, transforms

__all__ = ["fl_gan"]


def fl_gan(
    generator_optimizer: optax.GradientTransformation,
    discriminator_optimizer: optax.GradientTransformation,
    sync_every: int,
    *,
    disc_steps: int = 1,
    weights: Sequence[float] | np.ndarray | jax.Array | None = None,
    participants: int | None = None,
    key: chex.PRNGKey | None = None,
    axis_name: comm.AxisName,
) -> optax.GradientTransformationExtraArgs:
    r"""Federated averaging of whole GANs, MD-GAN's competitor.

    Every worker $m$ trains a generator $w_m$ and a discriminator $\theta_m$ of its own
    on its own data, as a GAN on one machine is trained; every `sync_every` iterations
    both are averaged over the workers, and all go on from the mean. With descent fields
    $F_w, F_\theta$ of the two losses on worker $m$,

    $$\theta_m \leftarrow \theta_m + \mathrm{opt}_\theta(F_\theta(w_m, \theta_m))
    \quad (L \text{ times}), \qquad
    w_m \leftarrow w_m + \mathrm{opt}_w(F_w(w_m, \theta_m)),$$

    $$(w_m, \theta_m) \leftarrow \sum_j \frac{n_j}{\sum_i n_i}\, (w_j, \theta_j)
    \quad \text{after every } H \text{ iterations}.$$

    It is `jaxsp.transforms.alternating` inside `jaxsp.transforms.federated_average`,
    where the details are: the optimizers' moments are a worker's own and are never
    sent, and with `participants` only some workers, drawn for the round, take part.
    The paper averages after $E$ epochs of the local data, which are $mE/b$ iterations
    with batches of $b$ from shares of $m$ samples, and takes Adam for both players.

    What a worker computes, keeps and sends, beside a worker of MD-GAN, for $I$
    iterations and samples of $d$ numbers:

    | per worker | FL-GAN | MD-GAN |
    | --- | --- | --- |
    | computation | $O(I b (|w| + |\theta|))$ | $O(I b |\theta|)$ |
    | memory | $O(|w| + |\theta|)$ | $O(|\theta|)$ |
    | to and from the server | $|w| + |\theta|$, every $mE/b$ | $2bd$ and $bd$, each |
    | to another worker | nothing | $|\theta|$, every $mE/b$ |

    FL-GAN sends less the larger the shares are, MD-GAN where the models are larger than
    a few batches. The server's part is an all-reduce here, without a server; it is
    counted as what that sends.

    Args:
      generator_optimizer: $\mathrm{opt}_w$, for the parameters `x` of a
        `jaxsp.MinMax`; GANs are mostly trained with `optax.adam(..., b1=0.5)`.
      discriminator_optimizer: $\mathrm{opt}_\theta$, for the parameters `y`.
      sync_every: $H$, the iterations from one average to the next.
      disc_steps: $L$, the steps of the discriminator for one of the generator.
      weights: $n_m$, a positive number for each worker, such as the size of its share
        of the data; None weighs all alike.
      participants: how many workers take part in a round; None for all.
      key: a typed key that all workers share; needed with `participants`.
      axis_name: the worker axis, `Workers.axis_name`.

    Returns:
      The method, an optax transformation for parameters `MinMax(x, y)`; `update` needs
      `params` and `operator_fn`.

    Raises:
      ValueError: for a bad argument, or an `update` without `operator_fn`.

    Example:
      A game in place of a GAN, in which every worker would have the solution elsewhere:

      >>> import jax, jax.numpy as jnp
      >>> import jaxsp, optax
      >>> from jaxsp.gan.fl_gan import fl_gan
      >>> workers = jaxsp.Workers(4)
      >>> tx = fl_gan(optax.sgd(0.1), optax.sgd(0.1), 5, axis_name=workers.axis_name)
      >>> def step(z, state, a):
      ...   F = jaxsp.saddle(lambda x, y: (x - a) ** 2 + x * y - (y - a) ** 2)
      ...   updates, state = tx.update(F(z), state, z, operator_fn=F)
      ...   return optax.apply_updates(z, updates), state
      >>> z = workers.replicate(jaxsp.MinMax(0.0, 0.0))
      >>> state, step = workers.map(tx.init)(z), jax.jit(workers.map(step))
      >>> for _ in range(100):
      ...   z, state = jax.block_until_ready(step(z, state, jnp.arange(4.0)))
      >>> print(f"{float(z.x[0]):.3f} {float(z.y[0]):.3f}")  # solves the mean game
      0.600 1.800

    References:
      Hardy, Le Merrer, Sericola, MD-GAN: Multi-Discriminator Generative Adversarial
      Networks for Distributed Datasets, 2019, arXiv 1811.03850.
      McMahan, Moore, Ramage, Hampson, Agüera y Arcas, Communication-Efficient Learning
      of Deep Networks from Decentralized Data, 2017, arXiv 1602.05629.
    """
    for name, optimizer in (
        ("generator_optimizer", generator_optimizer),
        ("discriminator_optimizer", discriminator_optimizer),
    ):
        _arguments.check_transformation(name, optimizer)
    _arguments.check_unrolled("disc_steps", disc_steps)
    _arguments.check_every("sync_every", sync_every)
    return transforms.federated_average(
        transforms.alternating(
            generator_optimizer, discriminator_optimizer, disc_steps
        ),
        sync_every,
        weights=weights,
        participants=participants,
        key=key,
        axis_name=axis_name,
    )
