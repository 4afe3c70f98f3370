"""What processes must have alike, and the one line that says how two differ."""

import json
import os
import platform
from collections.abc import Sequence
from typing import Any

import jax
import jaxlib

__all__ = ["describe", "differing_keys", "disagreement", "number_options"]

# Options of JAX with which the same program computes other numbers,
_NUMBERS = (
    "jax_enable_x64",
    "jax_threefry_partitionable",
    "jax_default_prng_impl",
    "jax_random_seed_offset",
    "jax_high_dynamic_range_gumbel",
    "jax_default_matmul_precision",
)
# and those with which it ends at another place, or is another program.
_PROGRAM = (
    "jax_numpy_rank_promotion",
    "jax_numpy_dtype_promotion",
    "jax_debug_nans",
    "jax_debug_infs",
    "jax_disable_jit",
)
# Flags of XLA that a process may have for itself: what it writes down, and how many CPU
# devices it has, which must be one everywhere.
_OWN_FLAGS = ("--xla_dump", "--xla_force_host_platform_device_count")


def number_options() -> dict[str, str]:
    """The options of JAX, as they are here and now, that numbers depend on.

    Example:
      >>> from jaxsp.distributed.compare import number_options
      >>> number_options()["jax_enable_x64"]
      'False'
    """
    return _options(_NUMBERS)


def _options(names: Sequence[str]) -> dict[str, str]:
    return {name: str(getattr(jax.config, name)) for name in names}


def _xla_flags() -> dict[str, str]:
    """The flags in XLA_FLAGS by name; of one that is given twice the last counts."""
    given = [f for f in os.environ.get("XLA_FLAGS", "").split() if f[:2] == "--"]
    flags = (flag.partition("=") for flag in given if not flag.startswith(_OWN_FLAGS))
    return {name: value for name, _, value in flags}


def describe(num_processes: int, settings: Any) -> str:
    """What this process says of itself, as JSON.

    Args:
      num_processes: how many processes it was told there are.
      settings: what must be the same everywhere, as JSON can hold it.

    Raises:
      ValueError: if JSON cannot hold the settings.
    """
    import jaxsp

    try:
        json.dumps(settings)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"settings must be what JSON can hold, such as a dictionary of numbers and "
            f"texts: {error}."
        ) from None
    said = {
        "who": f"pid {os.getpid()} on {platform.node()}",
        "count": {"num_processes": num_processes},
        "versions": {
            "Python": ".".join(platform.python_version_tuple()[:2]),
            "jax": jax.__version__,
            "jaxlib": jaxlib.version.__version__,
            "jaxsp": jaxsp.__version__,
        },
        "options": _options(_NUMBERS + _PROGRAM) | _xla_flags(),
        "settings": settings,
    }
    return json.dumps(said)


def disagreement(said: Sequence[str]) -> str | None:
    """How a process differs from process 0, in one line, or None.

    Args:
      said: what each process says of itself, `describe(...)`, in their order.

    Returns:
      One line that names the process, what it has and what process 0 has.

    Example:
      >>> from jaxsp.distributed.compare import describe, disagreement
      >>> both = [describe(2, {"rate": rate}) for rate in (0.1, 0.2)]
      >>> print(disagreement(both))
      process 1 (pid ...) has rate=0.2 where process 0 has rate=0.1: start all with ...
    """
    first, *others = map(json.loads, said)
    advice = {
        "count": "start all with the same",
        "versions": "install the same versions everywhere",
        "options": "set JAX and XLA_FLAGS alike everywhere",
        "settings": "start all with the same settings",
    }
    for number, other in enumerate(others, start=1):
        for part, what_to_do in advice.items():
            theirs, ours = _flat(other[part]), _flat(first[part])
            if names := _differing(theirs, ours):
                sign = " " if part == "versions" else "="
                return (
                    f"process {number} ({other['who']}) has "
                    f"{_listed(names, theirs, sign)} where process 0 has "
                    f"{_listed(names, ours, sign)}: {what_to_do}."
                )
    return None


def differing_keys(first: Any, second: Any) -> list[str]:
    """The keys, with dots where they are nested, whose values differ.

    Example:
      >>> from jaxsp.distributed.compare import differing_keys
      >>> differing_keys({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}})
      ['b.c']
    """
    return _differing(_flat(first), _flat(second))


def _differing(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    absent = object()
    return [
        key
        for key in {**first, **second}
        if json.dumps(first.get(key), default=str)
        != json.dumps(second.get(key), default=str)
        or (first.get(key, absent) is absent) != (second.get(key, absent) is absent)
    ]


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, dict) and tree:
        found = {}
        for key, value in tree.items():
            found |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
        return found
    return {prefix or "settings": tree}


def _listed(names: list[str], values: dict[str, Any], sign: str) -> str:
    """`a=1, b=2 and 3 more`; text in quotes after `=`, and nothing over 60 letters."""

    def show(name: str) -> str:
        if name not in values:
            return f"no {name}"
        value = values[name]
        text = json.dumps(value) if sign == "=" else str(value)
        return f"{name}{sign}{text if len(text) <= 60 else text[:57] + '...'}"

    shown = ", ".join(show(name) for name in names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")
