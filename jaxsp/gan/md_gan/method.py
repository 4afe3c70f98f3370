"""MD-GAN as a way of training: its choices, checked."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np
import optax

from jaxsp._arguments import (
    check_callable,
    check_choice,
    check_count,
    check_decay,
    check_instance,
    check_transformation,
    check_unrolled,
)
from jaxsp.gan import models
from jaxsp.gan.losses import Losses
from jaxsp.gan.md_gan import run
from jaxsp.gan.md_gan.roles import MOMENTS, Messages, check_losses, joining, messages
from jaxsp.gan.models.gan import check_gan
from jaxsp.gan.program import Program, Traffic
from jaxsp.workers import Workers

__all__ = ["MDGan"]


@dataclasses.dataclass(frozen=True)
class MDGan:
    r"""MD-GAN as a way of training: its `program` is for `jaxsp.gan.training.train`.

    Server and workers are called in turn, and all of a worker's gradients in an
    iteration are on one batch.

    All discriminators start from the same parameters. With one worker, one batch and
    one discriminator step this is the standalone GAN trained in turns.

    What travels: in every iteration two generated batches to each worker and one
    feedback of a batch's size back; in every swap a discriminator from worker to
    worker. Nothing depends on the size of the generator.

    Over processes the server is process 0 and leaves the workers to others, as
    `Workers(3, devices=jax.devices()[1:])` does with four processes of a device each;
    with six workers there, two share a device. Each message then goes from process to
    process and none to who does not need it: the server sends to each worker that lives
    its two batches, also where they are one ($k = 1$), and gets its feedback and its
    two losses (64 bits that are not counted); swapped discriminators pass between
    workers. Not counted either are the losses that the server tells all once in a
    while, its generator for scores, and, for a checkpoint, copies of discriminators in
    the places of workers that are gone. A new permutation of discriminators is a new
    program: in runs that swap often, the workers compile most of the time.

    Moments of a discriminator's optimizer in a swap: the paper sends parameters, so by
    default they *stay* at the worker. They may *travel* with the discriminator they
    belong to, at the price of a swap three times as large under Adam; or all start anew
    (*reset*). A worker that joins, or comes back, copies the discriminator of the first
    living worker and starts with a new optimizer.

    Args:
      generator_optimizer: the server's, of one step an iteration.
      discriminator_optimizer: each worker's, of $L$ steps an iteration.
      batches_k: $k$, how many batches the server draws, from 1 to $N$. A worker's two
        batches are distinct where $k > 1$.
      disc_steps: $L$.
      swap_every: iterations between two swaps, $mE/b$ for every $E$ epochs of shares of
        $m$ samples; None never swaps.
      alive: `alive(step)`, for each worker whether it takes part in that iteration,
        counted from 0; None for always. The data of a worker that left are gone.
      moments: "stay", "travel" or "reset".
      server_device: where the generator lives. None is the first visible device that no
        worker has, where the workers have several; otherwise the workers' first. Over
        processes it is a device of process 0 that no worker has, by default the first.

    Raises:
      ValueError: for a number out of range.

    Example:
      >>> import jax, optax, jaxsp
      >>> from jaxsp.gan import data, losses, md_gan, models
      >>> from jaxsp.gan.data import partition
      >>> from jaxsp.gan.training import TrainConfig, train
      >>> mixture = data.load("mixture_ring")
      >>> gan, workers = models.mlp((2,), width=16), jaxsp.Workers(4, jax.devices()[:1])
      >>> adam = optax.adam(1e-3, b1=0.5)
      >>> method = md_gan.MDGan(adam, adam, batches_k=2, swap_every=5)
      >>> result = train(
      ...     method.program(gan, losses.non_saturating(gan), workers),
      ...     mixture,
      ...     partition.iid(mixture.train_labels, 4, seed=0),
      ...     TrainConfig(steps=10, log_every=10, progress=False),
      ... )
      >>> result.history[-1]["bits_down"] > 10 * 2 * 16 * 2 * 32  # and two swaps
      True

    References:
      Hardy, Le Merrer, Sericola, MD-GAN: Multi-Discriminator Generative Adversarial
      Networks for Distributed Datasets, 2019, arXiv 1811.03850.
    """

    generator_optimizer: optax.GradientTransformation
    discriminator_optimizer: optax.GradientTransformation
    batches_k: int = 1
    disc_steps: int = 1
    swap_every: int | None = None
    alive: Callable[[int], Sequence[bool]] | None = None
    moments: Literal["stay", "travel", "reset"] = "stay"
    server_device: Any = None

    def __post_init__(self):
        check_transformation("generator_optimizer", self.generator_optimizer)
        check_transformation("discriminator_optimizer", self.discriminator_optimizer)
        check_count("batches_k", self.batches_k)
        check_unrolled("disc_steps", self.disc_steps)
        if self.swap_every is not None:
            check_count("swap_every", self.swap_every)
        if self.alive is not None:
            what = "a function of the step, such as lambda step: [True, step < 100]"
            check_callable("alive", self.alive, what)
        check_choice("moments", self.moments, MOMENTS)
        if self.server_device is not None:
            check_instance("server_device", self.server_device, jax.Device, "a device")

    def program(
        self,
        gan: models.Gan,
        losses: Losses,
        workers: Workers,
        *,
        batch_size: int = 16,
        ema_decay: float = 0.999,
    ) -> Program:
        """The program of this method.

        Args:
          gan: generator and discriminator.
          losses: losses with `generator_on` and `discriminator_on`.
          workers: who holds the discriminators.
          batch_size: $b$, of a worker's real samples and of a generated batch.
          ema_decay: as in `jaxsp.gan.step.make_step`.

        Returns:
          What the training loop runs.

        Raises:
          ValueError: if the method does not fit the workers or the losses.
        """
        check_gan(gan)
        check_instance("workers", workers, Workers, "a jaxsp.Workers")
        check_count("batch_size", batch_size)
        check_decay("ema_decay", ema_decay)
        count = workers.count
        if self.batches_k > count:
            raise ValueError(
                f"batches_k must be at most {count}, the number of workers, got "
                f"{self.batches_k}: a batch nobody judges would teach nothing."
            )
        if self.swap_every is not None and count == 1:
            raise ValueError(
                f"swap_every must be None with one worker, got {self.swap_every}: "
                "there is no other to swap with."
            )
        check_losses(losses)
        return run.Run(self, gan, losses, workers, batch_size, ema_decay).program()

    def living(self, step: int, count: int) -> np.ndarray:
        """Who takes part in an iteration, bool [count].

        Raises:
          ValueError: if `alive` gives another number of workers, or none.
        """
        if self.alive is None:
            return np.ones(count, bool)
        alive = np.asarray(self.alive(step), bool)
        if alive.shape != (count,):
            raise ValueError(
                f"alive must give one bool for each of the {count} workers, got shape "
                f"{alive.shape} at step {step}."
            )
        if not alive.any():
            raise ValueError(f"alive must leave a worker, got none at step {step}.")
        return alive

    def swaps(self, step: int) -> bool:
        """Whether discriminators change places after an iteration, counted from 0."""
        return self.swap_every is not None and (step + 1) % self.swap_every == 0

    def exchanged(
        self, size: Messages, before: np.ndarray, alive: np.ndarray, step: int
    ) -> np.ndarray:
        """Bits that each worker sends and receives in an iteration, uint64 [2, N].

        Args:
          size: the sizes of the messages.
          before: who took part in the iteration before.
          alive: who takes part in this one.
          step: its number.
        """
        joins, source = joining(before, alive, step)
        swapped = size.swap if self.swaps(step) and alive.sum() > 1 else 0
        bits = np.outer([size.up + swapped, size.down + swapped], alive)
        bits[0, source] += size.join * joins.sum()
        bits[1] += size.join * joins
        return bits.astype(np.uint64)

    def traffic(
        self, gan: models.Gan, batch_size: int, count: int, steps: int
    ) -> dict[str, Traffic]:
        """What is sent and received in some steps, as the host knows beforehand.

        Args:
          gan: generator and discriminator.
          batch_size: $b$.
          count: how many workers.
          steps: how many steps.

        Returns:
          That of a worker, mean over workers, and of the server.
        """
        size = messages(gan, batch_size, self.discriminator_optimizer, self.moments)
        exchanged, lived = np.zeros((2, count), np.uint64), 0
        before = np.ones(count, bool)
        for step in range(steps):
            alive = self.living(step, count)
            exchanged += self.exchanged(size, before, alive, step)
            lived, before = lived + int(alive.sum()), alive
        return {
            "worker": Traffic(*(int(bits.sum()) // count for bits in exchanged)),
            "server": Traffic(size.down * lived, size.up * lived),
        }
