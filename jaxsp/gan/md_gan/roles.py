"""What server and workers do in an iteration, as pure functions."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsp import comm
from jaxsp._arguments import (
    check_choice,
    check_count,
    check_instance,
    check_key,
    check_transformation,
    check_unrolled,
    refuse,
)
from jaxsp.gan import models
from jaxsp.gan.losses import Losses
from jaxsp.gan.models.gan import check_gan

__all__ = [
    "Messages",
    "assignment",
    "check_losses",
    "derangement",
    "joining",
    "messages",
    "server_generate",
    "server_update",
    "swap",
    "worker_step",
]


MOMENTS = ("stay", "travel", "reset")  # with a discriminator that is swapped


def server_generate(
    gan: models.Gan, x: Any, keys: jax.Array, batch_size: int
) -> tuple[Any, jax.Array]:
    r"""The server's $k$ batches, $X^{(j)} = G_w(Z_j)$.

    Args:
      gan: generator and discriminator.
      x: the generator's parameters.
      keys: typed keys [k], one for each batch.
      batch_size: $b$.

    Returns:
      The samples [k, b, ...], with their classes [k, b] beside them for a conditional
      GAN, and the latents [k, b, latent_size] they came from.
    """
    check_gan(gan)
    check_count("batch_size", batch_size)
    latents = jax.vmap(lambda key: models.latents(gan, key, batch_size))(keys)
    flat = latents.reshape(-1, latents.shape[-1])
    samples = models.generate(gan, x, flat)
    samples = samples.reshape(*latents.shape[:2], *samples.shape[1:])
    if not gan.num_classes:
        return samples, latents
    labels = models.labels_of(gan, flat).reshape(latents.shape[:2])
    return (samples, labels), latents


def assignment(alive: Sequence[bool], batches_k: int) -> tuple[np.ndarray, np.ndarray]:
    r"""Which of the $k$ batches each worker gets.

    Those are $X_n^g = X^{(n \bmod k)}$ and $X_n^d = X^{((n + 1) \bmod k)}$.

    Args:
      alive: for each worker whether it takes part; $n$ counts those that do, from 0.
      batches_k: $k$.

    Returns:
      For each worker the number of $X_n^g$ and that of $X_n^d$, int32 [N].
    """
    n = np.maximum(np.cumsum(_bools("alive", alive)) - 1, 0)
    k = np.int32(check_count("batches_k", batches_k))
    return (n % k).astype(np.int32), ((n + 1) % k).astype(np.int32)


def worker_step(
    losses: Losses,
    optimizer: optax.GradientTransformation,
    y: Any,
    opt_state: Any,
    batch: Any,
    fakes: tuple[Any, Any],
    key: jax.Array,
    disc_steps: int = 1,
) -> tuple[Any, Any, jax.Array, jax.Array]:
    r"""One worker's iteration: $L$ discriminator steps, then the error feedback.

    Args:
      losses: losses with `generator_on` and `discriminator_on`.
      optimizer: the discriminator's.
      y: the discriminator's parameters.
      opt_state: its optimizer's state.
      batch: real samples, with their labels for a conditional GAN.
      fakes: $X_n^d$ and $X_n^g$, likewise.
      key: the noise of the discriminator's loss (a gradient penalty), alike in all $L$
        steps, as the batch is.
      disc_steps: $L$.

    Returns:
      The new parameters and optimizer state; the feedback $F_n$, the gradient of the
      generator's mean loss over the batch with respect to each number of $X_n^g$; and
      the losses of generator (after the steps) and discriminator (before them),
      float32 [2].
    """
    generator_on, discriminator_on = check_losses(losses)
    fakes_d, fakes_g = fakes
    update = check_transformation("optimizer", optimizer).update
    check_key("key", key)
    check_unrolled("disc_steps", disc_steps)
    loss_d = jnp.zeros(())
    for i in range(disc_steps):
        value, gradient = jax.value_and_grad(discriminator_on)(y, batch, fakes_d, key)
        updates, opt_state = update(gradient, opt_state, y)
        y = optax.apply_updates(y, updates)
        loss_d = value if i == 0 else loss_d

    samples, *labels = fakes_g if isinstance(fakes_g, tuple) else (fakes_g,)
    loss_g, feedback = jax.value_and_grad(
        lambda samples: generator_on(y, (samples, *labels) if labels else samples)
    )(samples)
    return y, opt_state, feedback, jnp.stack([loss_g, loss_d]).astype(jnp.float32)


def server_update(
    gan: models.Gan,
    optimizer: optax.GradientTransformation,
    x: Any,
    opt_state: Any,
    latents: jax.Array,
    feedback: jax.Array,
    g_index: Any,
    alive: Any,
) -> tuple[Any, Any, Any]:
    r"""The server's step along the mean feedback.

    $$\Delta w = \frac1N \sum_n \Big(\frac{\partial G(Z_{j(n)})}{\partial w}\Big)^{\!T}
    F_n$$

    over the living. Feedback on the same batch is added up first, so there is one
    backward pass for each distinct batch.

    Args:
      gan: generator and discriminator.
      optimizer: the generator's.
      x: the generator's parameters.
      opt_state: its optimizer's state.
      latents: what `server_generate` returned, [k, b, latent_size].
      feedback: $F_n$ of all workers, stacked [N, b, ...].
      g_index: $j(n)$, the batch that each worker judged, integers [N].
      alive: bool [N]; what came from the others is not used, whatever it is.

    Returns:
      The new parameters and optimizer state, and $\Delta w$.
    """
    check_gan(gan)
    update = check_transformation("optimizer", optimizer).update
    alive = jnp.asarray(alive)
    mine = alive.reshape(-1, *[1] * (feedback.ndim - 1))
    feedback = jnp.where(mine, feedback, 0) / alive.sum().astype(feedback.dtype)
    summed = jnp.zeros((len(latents), *feedback.shape[1:]), feedback.dtype)
    summed = summed.at[jnp.asarray(g_index)].add(feedback)  # Σ F_n / N over j(n) = j
    flat = latents.reshape(-1, latents.shape[-1])
    samples, pull = jax.vjp(lambda x: models.generate(gan, x, flat), x)
    (gradient,) = pull(summed.reshape(samples.shape).astype(samples.dtype))
    updates, opt_state = update(gradient, opt_state, x)
    return optax.apply_updates(x, updates), opt_state, gradient


def joining(before: Any, alive: Any, step: int) -> tuple[np.ndarray, int]:
    """Who joins in a step, and from whom they copy a discriminator.

    Args:
      before: for each worker whether it took part in the step before.
      alive: whether it takes part in this one.
      step: this one's number.

    Returns:
      For each worker whether it joins, and the first that takes part in both steps.

    Raises:
      ValueError: if some join and nobody takes part in both.
    """
    before, alive = _bools("before", before), _bools("alive", alive)
    if before.shape != alive.shape:
        refuse("before", f"of the shape of alive, {alive.shape}", before)
    check_count("step", step, minimum=0)
    joins, stay = alive & ~before, alive & before
    if joins.any() and not stay.any():
        raise ValueError(
            "alive must leave a worker from one step to the next, from which those "
            f"that join copy, got none at step {step}."
        )
    return joins, int(stay.argmax())


def derangement(rng: np.random.Generator, alive: Sequence[bool]) -> np.ndarray:
    """A random permutation of the living without fixed points.

    Uniform over all of them, by rejection (about e draws). Independent targets, one
    drawn by each worker, would not be a permutation: of ten workers 3.5 would be left
    without a discriminator.

    Args:
      rng: where it is drawn from.
      alive: for each worker whether it takes part.

    Returns:
      For each worker the one whose discriminator it gets, integers [N]; the others, and
      a single one left, keep theirs.
    """
    check_instance("rng", rng, np.random.Generator, "np.random.default_rng(seed)")
    living = np.flatnonzero(_bools("alive", alive))
    permutation = np.arange(len(alive))
    if len(living) > 1:
        shuffled = rng.permutation(living)
        while (shuffled == living).any():
            shuffled = rng.permutation(living)
        permutation[living] = shuffled
    return permutation


def swap(tree: Any, permutation: Any) -> Any:
    """The workers' discriminators, changed round: row n is what row permutation[n] was.

    Args:
      tree: stacked over workers, on one device.
      permutation: integers [N], as from `derangement`.

    Returns:
      The tree. See `Workers.permute` for arrays with each row on a device of its own.
    """
    return jax.tree.map(lambda leaf: jnp.take(leaf, permutation, axis=0), tree)


def _bools(name: str, value: Any) -> np.ndarray:
    """One bool for each worker."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        refuse(name, "one bool for each worker", value)
    if array.ndim != 1 or array.dtype.kind != "b":
        refuse(name, "one bool for each worker", value)
    return array


class Messages(NamedTuple):
    r"""What one worker exchanges in one event, in bits, of samples of $d$ numbers.

    Attributes:
      down: from the server, every iteration: $X_n^g$ and $X_n^d$, $2bd$ numbers.
      up: to the server, every iteration: $F_n$, $bd$ numbers.
      swap: to another worker, every swap: its discriminator, $|\theta|$ numbers, with
        its optimizer's state where that travels too. As much is received.
      join: to a worker that joins, from one that lives: a discriminator.
    """

    down: int
    up: int
    swap: int
    join: int


def messages(
    gan: models.Gan,
    batch_size: int,
    discriminator_optimizer: optax.GradientTransformation | None = None,
    moments: str = "stay",
) -> Messages:
    """The sizes of the messages, of the arrays as they travel.

    Args:
      gan: generator and discriminator.
      batch_size: $b$.
      discriminator_optimizer: needed where its state travels.
      moments: as in `MDGan`.

    Returns:
      Bits by kind of message. A conditional GAN's samples travel with their classes.
    """
    check_gan(gan)
    check_choice("moments", moments, MOMENTS)
    if discriminator_optimizer is not None:
        check_transformation("discriminator_optimizer", discriminator_optimizer)
    key = jax.eval_shape(lambda: jax.random.key(0))
    z: Any = jax.eval_shape(lambda key: models.init(gan, key), key)
    fakes, _ = jax.eval_shape(
        lambda x, key: server_generate(gan, x, key[None], batch_size), z.x, key
    )
    samples = fakes[0] if gan.num_classes else fakes
    model = comm.dense_bits(z.y)
    state = 0
    if moments == "travel" and discriminator_optimizer is not None:
        state = comm.dense_bits(jax.eval_shape(discriminator_optimizer.init, z.y))
    return Messages(
        down=2 * comm.dense_bits(fakes),
        up=comm.dense_bits(samples),
        swap=model + state,
        join=model,
    )


def check_losses(losses: Losses) -> tuple[Any, Any]:
    """The losses as functions of samples, or a ValueError if there are none."""
    check_instance("losses", losses, Losses, "of jaxsp.gan.losses")
    if losses.generator_on is None or losses.discriminator_on is None:
        raise ValueError(
            "losses must have generator_on and discriminator_on, the losses as "
            "functions of generated samples, which is all an MD-GAN worker sees: those "
            "of jaxsp.gan.losses have them."
        )
    return losses.generator_on, losses.discriminator_on
