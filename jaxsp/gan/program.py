"""What the training loop runs: a way of training, compiled, behind one interface.

The loop of `jaxsp.gan.training` knows nothing of gradients, servers or exchanges. It
calls the functions of a `Program`, which `jaxsp.gan.step.program` makes of any optax
transformation and `jaxsp.gan.md_gan.MDGan.program` of an MD-GAN. What is compiled for a
program is its own, so that nothing of it is left when it goes.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsp.gan import models
from jaxsp.workers import Workers

__all__ = ["Program", "Role", "Summary", "Traffic", "finite", "sampler"]


class Summary(NamedTuple):
    """What a state comes down to when the workers or the method's memory change.

    Attributes:
      generator: the generator to evaluate: averaged over time, and over workers.
      params: a MinMax of what training would start from again. Where all workers train
        both networks, the means over workers, of the point that the method reports;
        under MD-GAN the server's generator and the workers' discriminators, stacked.
    """

    generator: Any
    params: Any


class Traffic(NamedTuple):
    """Bits that one member sends and receives.

    Attributes:
      sent: bits sent.
      received: bits received.
    """

    sent: int
    received: int


class Role(NamedTuple):
    """What one kind of member does in a step, for the compiler to say what it costs.

    Attributes:
      parts: the lowered programs of a step, in order.
      members: how many members' work the programs do: all workers' under `vmap`.
    """

    parts: tuple[jax.stages.Lowered, ...]
    members: int


def finite() -> Callable[[Any], bool]:
    """Whether every parameter of a state is finite, compiled for one program.

    Players may be on devices of their own.
    """

    @jax.jit
    def of_tree(tree):
        return jnp.array([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]).all()

    def of_state(state):
        parts = (state.params.x, state.params.y, state.ema)
        return all(bool(of_tree(part)) for part in parts)

    return of_state


def sampler(gan: models.Gan) -> Callable[..., jax.Array]:
    """`models.sample` of a GAN, compiled; when it goes, what was compiled goes."""

    def sample(x, key, count, labels=None):
        return models.sample(gan, x, key, count, labels)

    return jax.jit(sample, static_argnums=2)


@dataclasses.dataclass(frozen=True)
class Program:
    """A way of training.

    A state is a NamedTuple of arrays with, among its fields, `params`, the parameters,
    and `ema`, the averaged generator.

    Over many processes all call the same functions in the same order. What `generator`,
    `bits` and `consensus` return, and NumPy arrays of a summary, need be right in
    process 0 only.

    Attributes:
      gan: generator and discriminator.
      workers: who trains.
      batch_size: examples a worker draws for one gradient.
      settings: what else must be the same when a run goes on, with values that JSON can
        hold.
      steps_per_call: the most steps that one call of `step` does.
      init: `init(key)`, the state at step 0.
      step: `step(state, shares, sizes, key, count)` does `count` steps and returns the
        state and the losses of generator and discriminator, float32 (workers,
        steps_per_call, 2), of which the first `count` rows are filled. It consumes
        `state`. `shares` and `sizes` are what `partition.stack` returns, on the
        workers' devices; `key` is a key all share.
      generator: `generator(state)`, the generator to evaluate, as NumPy arrays.
      bits: `bits(state)`, bits sent and received since the start, means over workers;
        None twice where nothing counts them.
      consensus: `consensus(state)`, the consensus distance of parameters that are meant
        to agree, and the same divided by the norm of their mean; None twice where there
        are none.
      summary: `summary(state)`, a `Summary` of arrays, which may lie on the devices of
        some processes and be those of the state.
      restart_from: `restart_from(summary, step)`, a state at `step` from a summary of
        any number of workers; optimizers start anew.
      restart_note: what `restart_from` does, in a few words for the log.
      roles: `roles(shares, sizes)`, what each kind of member does in a single step, by
        name; the arguments may be `jax.ShapeDtypeStruct`s.
      traffic: `traffic(steps)`, what a member of each kind sends and receives in so
        many steps, by name; a worker as `bits` has it. Empty where nothing travels.
      idle_processes: whether a process may hold none of the workers, as that of a
        server does.
      fetch: `fetch(values)`, a list of what `step` has returned as losses, as NumPy
        arrays, in every process.
      finite: `finite(state)`, whether all parameters and the averaged generator are
        finite; the same answer in every process.
      judge: `judge(state, shares, sizes, key)`, what the discriminators say of real and
        of generated samples, as `jaxsp.gan.judge.make_judge` finds it, means over
        workers, in every process; None where that is not found.
      probabilities: whether these are probabilities of being real.
    """

    gan: models.Gan
    workers: Workers
    batch_size: int
    settings: Mapping[str, Any]
    steps_per_call: int
    init: Callable[[jax.Array], Any]
    step: Callable[..., tuple[Any, jax.Array]]
    generator: Callable[[Any], Any]
    bits: Callable[[Any], tuple[int | None, int | None]]
    consensus: Callable[[Any], tuple[float | None, float | None]]
    summary: Callable[[Any], Summary]
    restart_from: Callable[[Summary, int], Any]
    restart_note: str
    roles: Callable[[Any, Any], dict[str, Role]]
    traffic: Callable[[int], dict[str, Traffic]]
    idle_processes: bool = False
    fetch: Callable[[list[jax.Array]], list[np.ndarray]] = jax.device_get
    finite: Callable[[Any], bool] = dataclasses.field(default_factory=finite)
    judge: Callable[..., tuple[float, float]] | None = None
    probabilities: bool = False

    @functools.cached_property
    def sample(self) -> Callable[..., jax.Array]:
        """The `sampler` of the networks, compiled once for all runs of the program."""
        return sampler(self.gan)
