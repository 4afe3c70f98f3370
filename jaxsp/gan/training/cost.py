"""What a training run will cost, before it is run.

`plan` counts the parameters, the bits that travel, and, from what the compiler says of
the programs, the operations and the memory of each kind of member. Nothing is trained,
and no array of the size of the networks or of the data is made.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxsp.gan import md_gan, models
from jaxsp.gan.losses import Losses
from jaxsp.gan.training.loop import TrainConfig, make_program
from jaxsp.gan.training.program import Program, Role
from jaxsp.workers import Workers

__all__ = ["Cost", "Plan", "Traffic", "format", "plan"]


class Cost(NamedTuple):
    """What one member of a kind needs for a step.

    Attributes:
      flops: floating-point operations; None where the compiler does not say.
      memory: bytes; None likewise.
    """

    flops: float | None
    memory: int | None


class Traffic(NamedTuple):
    """Bits that one member sends and receives in the whole run.

    Attributes:
      sent: bits sent.
      received: bits received.
    """

    sent: int
    received: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a training run will cost.

    Attributes:
      generator: how many parameters the generator has.
      discriminator: how many the discriminator.
      workers: how many workers.
      steps: how many steps.
      steps_per_epoch: steps in which a worker draws as many examples as it holds, mean
        over workers.
      traffic: what a member of each kind sends and receives in all steps; a worker as
        `metrics.jsonl` has it, the mean over workers. Empty where nothing travels.
      costs: what a step costs a member of each kind.
    """

    generator: int
    discriminator: int
    workers: int
    steps: int
    steps_per_epoch: float
    traffic: dict[str, Traffic]
    costs: dict[str, Cost]


def plan(
    method: "optax.GradientTransformation | md_gan.MDGan",
    gan: models.Gan,
    losses: Losses,
    workers: Workers,
    shares: Any,
    sizes: Any,
    config: TrainConfig,
) -> Plan:
    """Find what `train.train` would cost.

    *Traffic* is exact: it is what the counters of the run will say after
    `config.steps` steps, coins and random graphs included. The steps are gone through
    with everything left out that is no counter and no draw. Counters must not depend
    on floating-point parts of the state, and those of no method here do.

    *Operations* are those that XLA counts in the program it has compiled for the
    devices in use: multiplications and additions, other functions of a number apart.
    What it hands to another library as a custom call it may count as nothing. Virtual
    workers are one program, of which a worker has an equal share; so are operations
    that XLA does once for all of them. Only the step counts: no scores, no pictures, no
    swaps of discriminators.

    *Memory* is what the same program holds at most: arguments, among them the worker's
    data padded to the largest share, results, and what it needs in between, as if every
    buffer lived from beginning to end. Of a role in several programs it is that of the
    largest. What JAX itself and the compiled code take comes on top.

    Args:
      method: as in `train.train`.
      gan: as in `train.train`.
      losses: as in `train.train`.
      workers: as in `train.train`.
      shares: what `partition.stack` returns, or `jax.ShapeDtypeStruct` of the same
        shapes; a pair of samples and labels for a class-conditional GAN.
      sizes: how many examples each worker holds.
      config: as in `train.train`.

    Returns:
      The plan; see `format`.

    Raises:
      ValueError: if the method does not fit the workers or the losses.

    Example:
      >>> import jax, jaxsp, numpy as np
      >>> from jaxsp.gan import losses, models
      >>> from jaxsp.gan.training.loop import TrainConfig
      >>> gan, workers = models.mlp((2,), width=16), jaxsp.Workers(2, jax.devices()[:1])
      >>> found = plan(
      ...     jaxsp.methods.cp_oadam(1e-3, workers.axis_name),
      ...     gan,
      ...     losses.non_saturating(gan),
      ...     workers,
      ...     jax.ShapeDtypeStruct((2, 100, 2), np.float32),
      ...     [100, 60],
      ...     TrainConfig(steps=30, batch_size=8),
      ... )
      >>> found.steps_per_epoch
      10.0
      >>> numbers = found.generator + found.discriminator
      >>> found.traffic["worker"].sent == 30 * 32 * numbers  # 2 (M - 1) / M of them
      True
    """
    # One step in a call: a loop's operations are counted once, however often it runs.
    single = dataclasses.replace(config, steps_per_call=1)
    program = make_program(method, gan, losses, workers, single)
    sizes = np.asarray(sizes, np.int32)
    shapes = jax.tree.map(_shape_of, (shares, sizes))
    z: Any = jax.eval_shape(lambda: models.init(gan, jax.random.key(0)))
    if isinstance(method, md_gan.MDGan):
        traffic = _md_gan_traffic(method, gan, workers.count, config)
    else:
        traffic = _traffic(program, shapes, config)
    return Plan(
        generator=_numbers(z.x),
        discriminator=_numbers(z.y),
        workers=workers.count,
        steps=config.steps,
        steps_per_epoch=float(sizes.mean()) / config.batch_size,
        traffic=traffic,
        costs={name: _cost(role) for name, role in program.roles(*shapes).items()},
    )


def _shape_of(leaf):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _numbers(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


# ------------------------------------------------------------------ traffic


def _traffic(program: Program, shapes, config: TrainConfig) -> dict[str, Traffic]:
    """What the counters in the state will say, of a program that is one function."""
    key = jax.random.key(0)
    state = jax.eval_shape(program.init, key)
    leaves, treedef = jax.tree.flatten(state)
    exact = [not jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves]

    def counters(state):
        return [x for x, e in zip(jax.tree.leaves(state), exact, strict=True) if e]

    def with_zeros(counters, zeros):
        rest = iter(counters)
        return treedef.unflatten(
            [next(rest) if e else zeros(x) for x, e in zip(leaves, exact, strict=True)]
        )

    def zeros(x):
        return jnp.zeros(x.shape, x.dtype)

    def one_step(carried, _):
        # Nothing that comes of the zeros is returned, so the compiler drops it all.
        state = with_zeros(carried, zeros)
        state, _ = program.step(state, *jax.tree.map(zeros, shapes), key, 1)
        return counters(state), None

    @jax.jit
    def after():
        start = counters(program.init(key))
        return lax.scan(one_step, start, length=config.steps)[0]

    nothing = with_zeros(after(), lambda x: np.broadcast_to(np.float32(0), x.shape))
    sent, received = program.bits(nothing)
    if sent is None or received is None:
        return {}
    return {"worker": Traffic(sent, received)}


def _md_gan_traffic(method, gan, count, config) -> dict[str, Traffic]:
    """The same for an MD-GAN, whose host says who takes part and who swaps."""
    size = md_gan.messages(
        gan, config.batch_size, method.discriminator_optimizer, method.moments
    )
    up, down, server = [0] * count, [0] * count, [0, 0]
    before = np.ones(count, bool)
    for step in range(config.steps):
        alive = method.living(step, count)
        joins, source = md_gan.joining(before, alive, step)
        for joining in np.flatnonzero(joins):
            up[source] += size.join
            down[joining] += size.join
        living = np.flatnonzero(alive).tolist()
        due = method.swap_every is not None and (step + 1) % method.swap_every == 0
        swapped = size.swap if due and len(living) > 1 else 0
        for n in living:
            up[n] += size.up + swapped
            down[n] += size.down + swapped
        server[0] += size.down * len(living)
        server[1] += size.up * len(living)
        before = alive
    return {
        "worker": Traffic(sum(up) // count, sum(down) // count),
        "server": Traffic(*server),
    }


# ------------------------------------------------------------------ operations, memory


def _cost(role: Role) -> Cost:
    """What the compiler says of a role's programs, for one member."""
    flops, memory = [], []
    for lowered in role.parts:
        compiled = lowered.compile()
        said: Any = compiled.cost_analysis() or {}
        flops.append(said.get("flops"))
        held: Any = compiled.memory_analysis()
        memory.append(
            held
            and held.argument_size_in_bytes
            + held.output_size_in_bytes
            + held.temp_size_in_bytes
            - held.alias_size_in_bytes
        )
    return Cost(
        None if None in flops else sum(flops) / role.members,
        None if None in memory else math.ceil(max(memory) / role.members),
    )


# ------------------------------------------------------------------ telling


def format(plan: Plan) -> str:
    """A plan as a table to read.

    Args:
      plan: the plan.

    Returns:
      Lines of text.
    """
    epochs = plan.steps / plan.steps_per_epoch
    head = [
        ("generator", f"{plan.generator:,} parameters"),
        ("discriminator", f"{plan.discriminator:,} parameters"),
        ("workers", f"{plan.workers:,}"),
        ("an epoch", f"{plan.steps_per_epoch:,.4g} steps"),
        ("the run", f"{plan.steps:,} steps, {epochs:,.4g} epochs"),
    ]
    names = list(plan.costs)
    rows = [
        ("", names),
        ("operations a step", [_scaled(plan.costs[n].flops, "FLOP") for n in names]),
        ("memory", [_scaled(plan.costs[n].memory, "B") for n in names]),
    ]
    if plan.traffic:
        shares = {
            "a step": 1 / plan.steps,
            "an epoch": 1 / epochs,
            "in the run": 1.0,
        }
        for field, done in enumerate(("sent", "received")):
            for when, share in shares.items():
                cells = [
                    _scaled(share * plan.traffic[n][field] / 8, "B")
                    if n in plan.traffic
                    else "-"
                    for n in names
                ]
                rows.append((f"{done} {when}", cells))
            rows.append(
                (
                    "  in bits",
                    [
                        f"{plan.traffic[n][field]:,}" if n in plan.traffic else "-"
                        for n in names
                    ],
                )
            )
    else:
        rows.append(("sent, received", ["nothing"] * len(names)))
    first = max(len(name) for name, _ in [*head, *rows])
    widths = [max(len(cells[i]) for _, cells in rows) for i in range(len(names))]
    lines = [f"{name:{first}}  {text}" for name, text in head]
    for name, cells in rows:
        aligned = [f"{cell:>{w}}" for cell, w in zip(cells, widths, strict=True)]
        lines.append(f"{name:{first}}  {'  '.join(aligned)}".rstrip())
    return "\n".join(lines)


def _scaled(number: float | None, unit: str) -> str:
    """A number of a unit with the prefix that leaves one to three digits."""
    if number is None:
        return "unknown"
    power = 0
    while number >= 999.5 and power < 6:
        number, power = number / 1000, power + 1
    return f"{number:.3g} {' kMGTPE'[power].strip()}{unit}"
