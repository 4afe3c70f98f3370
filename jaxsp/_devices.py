"""Which devices so many workers use, and what to write where they do not fit."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax

from jaxsp import _arguments


def chosen(count: int, devices: Sequence[Any] | None) -> list[Any]:
    """The devices given, or the default ones; a ValueError if they do not fit."""
    given = devices is not None
    devices = _checked(devices) if given else in_a_ring(_default(count))
    if not devices or count % len(devices):
        raise ValueError(_misfit(count, len(devices), given))
    if len(set(devices)) < len(devices):
        raise ValueError(
            f"devices must be different, got {devices}: each of Workers({count}) on "
            "fewer devices has its block by itself."
        )
    return devices


def in_a_ring(devices: list[Any]) -> list[Any]:
    """TPU chips in an order in which each is next to the one before, all around.

    JAX's order goes from one host's square of chips to the next, and jumps. Compilers
    let a collective permute run beside other work where all that travels goes equally
    far in one dimension: on a large slice that is a ring of neighbours, and not a ring
    in JAX's order. The others are left in their order: other devices, one chip in
    width, an odd number, a part of a slice that is no box.
    """
    if not all(d.platform == "tpu" and hasattr(d, "coords") for d in devices):
        return devices
    at = {tuple(d.coords): d for d in devices}
    sides = [sorted(set(side)) for side in zip(*at, strict=True)]
    widths = [len(side) for side in sides]
    if len(at) < len(devices) or math.prod(widths) != len(at):
        return devices
    fitting = [i for i, n in enumerate(widths) if n > 1 and len(at) // n % 2 == 0]
    if not fitting:
        return devices
    axis = fitting[0]
    # Lines along the axis: there and back through all of them but for one chip of each,
    # and home by these.
    lines: list[tuple[Any, ...]] = [()]
    for side in sides[:axis] + sides[axis + 1 :]:
        turns = enumerate(lines)
        lines = [(*x, y) for i, x in turns for y in (side[::-1] if i % 2 else side)]
    home, *others = sides[axis]
    ring = [
        (line, x)
        for i, line in enumerate(lines)
        for x in (others[::-1] if i % 2 else others)
    ]
    ring += [(line, home) for line in reversed(lines)]
    return [at[(*line[:axis], x, *line[axis:])] for line, x in ring]


def _checked(devices: Any) -> list[Any]:
    found = list(devices) if isinstance(devices, Iterable) else [devices]
    if isinstance(devices, jax.Device) or not all(
        isinstance(device, jax.Device) for device in found
    ):
        required = "a sequence of devices, such as jax.devices()"
        _arguments.refuse("devices", required, devices)
    return found


def _default(count: int) -> list[Any]:
    """The devices for so many workers: as many of each process."""
    devices = jax.devices()
    processes: dict[int, list[Any]] = {}
    for device in devices:
        processes.setdefault(device.process_index, []).append(device)
    if len(processes) == 1:
        return devices[:count]
    # Between processes gloo is in time with one device of each only.
    each = 1 if devices[0].platform == "cpu" else min(map(len, processes.values()))
    if count < each * len(processes):
        each = max(1, count // len(processes))
    return [device for some in processes.values() for device in some[:each]]


def _misfit(count: int, devices: int, given: bool) -> str:
    """That so many workers do not fit so many devices, and what does."""
    if not devices:
        return "devices must not be empty: leave it out, or write jax.devices()[:1]."
    below = count // devices * devices
    near = [f"Workers({n})" for n in (below, below + devices) if n]
    most = min(count, len(jax.devices()))
    fitting = [n for n in range(1, most + 1) if count % n == 0]
    *some, last = map(str, fitting)
    fit = f"{', '.join(some)} or {last}" if some else last
    there = "devices" if given else "jax.devices()"
    return (
        f"count must be a multiple of the number of devices, got count={count} and "
        f"{devices} in {there}: write {' or '.join(near)}, or give {fit} "
        f"device{'s' * bool(some)}."
    )
