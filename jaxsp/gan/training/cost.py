"""What a training run will cost, before it is run.

`cost` counts the parameters, the bits that travel, and, from what the compiler says of
the programs, the operations and the memory of each kind of member. Nothing is trained,
and no array of the size of the networks or of the data is made.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsp.gan import models
from jaxsp.gan.program import Program, Role, Traffic

__all__ = ["Cost", "StepCost", "cost", "format"]


class StepCost(NamedTuple):
    """What one member of a kind needs for a step.

    Attributes:
      flops: floating-point operations; None where the compiler does not say.
      memory: bytes; None likewise.
    """

    flops: float | None
    memory: int | None


@dataclasses.dataclass(frozen=True)
class Cost:
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
    costs: dict[str, StepCost]


def cost(program: Program, shares: Any, sizes: Any, steps: int) -> Cost:
    """Find what `jaxsp.gan.training.train` would cost.

    *Traffic* is exact: it is what the counters of the run will say after `steps` steps,
    coins and random graphs included.

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
      program: what `train` would run.
      shares: what `partition.stack` returns, or `jax.ShapeDtypeStruct` of the same
        shapes; a pair of samples and labels for a class-conditional GAN.
      sizes: how many examples each worker holds.
      steps: how many steps.

    Returns:
      The cost; see `format`.

    Example:
      >>> import jax, jaxsp, numpy as np
      >>> from jaxsp.gan import losses, models, step
      >>> gan, workers = models.mlp((2,), width=16), jaxsp.Workers(2, jax.devices()[:1])
      >>> method = jaxsp.methods.cp_oadam(1e-3, workers.axis_name)
      >>> found = cost(
      ...     step.program(
      ...         gan, losses.non_saturating(gan), method, workers, batch_size=8
      ...     ),
      ...     jax.ShapeDtypeStruct((2, 100, 2), np.float32),
      ...     [100, 60],
      ...     steps=30,
      ... )
      >>> found.steps_per_epoch
      10.0
      >>> numbers = found.generator + found.discriminator
      >>> found.traffic["worker"].sent == 30 * 32 * numbers  # 2 (M - 1) / M of them
      True
    """
    sizes = np.asarray(sizes, np.int32)
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (shares, sizes)
    )
    z: Any = jax.eval_shape(lambda: models.init(program.gan, jax.random.key(0)))
    return Cost(
        generator=sum(leaf.size for leaf in jax.tree.leaves(z.x)),
        discriminator=sum(leaf.size for leaf in jax.tree.leaves(z.y)),
        workers=program.workers.count,
        steps=steps,
        steps_per_epoch=float(sizes.mean()) / program.batch_size,
        traffic=program.traffic(steps),
        costs={name: _step_cost(role) for name, role in program.roles(*shapes).items()},
    )


def _step_cost(role: Role) -> StepCost:
    """What the compiler says of a role's programs, for one member."""
    compiled: list[Any] = [lowered.compile() for lowered in role.parts]
    flops: list[Any] = [(p.cost_analysis() or {}).get("flops") for p in compiled]
    memory = [
        held
        and held.argument_size_in_bytes
        + held.output_size_in_bytes
        + held.temp_size_in_bytes
        - held.alias_size_in_bytes
        for held in (p.memory_analysis() for p in compiled)
    ]
    return StepCost(
        None if None in flops else sum(flops) / role.members,
        None if None in memory else math.ceil(max(memory) / role.members),
    )


def format(found: Cost) -> str:
    """A cost as a table to read, of several lines."""
    epochs = found.steps / found.steps_per_epoch
    head = {
        "generator": f"{found.generator:,} parameters",
        "discriminator": f"{found.discriminator:,} parameters",
        "workers": f"{found.workers:,}",
        "an epoch": f"{found.steps_per_epoch:,.4g} steps",
        "the run": f"{found.steps:,} steps, {epochs:,.4g} epochs",
    }
    names = list(found.costs)
    rows = {
        "": names,
        "operations a step": [_scaled(found.costs[n].flops, "FLOP") for n in names],
        "memory": [_scaled(found.costs[n].memory, "B") for n in names],
    }
    shares = {"a step": found.steps, "an epoch": epochs, "in the run": 1}
    for field in ("sent", "received") if found.traffic else ():
        bits = [getattr(found.traffic[name], field) for name in names]
        for when, parts in shares.items():
            rows[f"{field} {when}"] = [_scaled(n / parts / 8, "B") for n in bits]
        rows[f"{field} in bits"] = [f"{n:,}" for n in bits]
    if not found.traffic:
        rows["sent, received"] = ["nothing"] * len(names)
    first = max(map(len, [*head, *rows]))
    widths = [max(map(len, column)) for column in zip(*rows.values(), strict=True)]
    lines = [f"{name:{first}}  {text}" for name, text in head.items()]
    for name, cells in rows.items():
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
