"""What a process says of itself, and the one line that says how two disagree."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

__all__ = ["Hello", "differing_keys", "disagreement"]


class Hello(NamedTuple):
    """What a process says of itself.

    Attributes:
      process_id: its number, from 0.
      num_processes: how many processes it was told there are.
      host: the name of its machine.
      pid: its process id there.
      versions: of Python and of the packages that must agree.
      configuration: what must agree, as JSON text with sorted keys.
      nonce: a random text, by which a process recognizes itself.
    """

    process_id: int
    num_processes: int
    host: str
    pid: int
    versions: dict[str, str]
    configuration: str
    nonce: str

    def __str__(self) -> str:
        return f"process {self.process_id} (pid {self.pid} on {self.host})"


def disagreement(
    own: Hello, others: Sequence[Hello], timeout: float | None = None
) -> str | None:
    """How the others disagree with process 0, in one line, or None.

    Args:
      own: what process 0 says of itself.
      others: what those who came say.
      timeout: the seconds that were waited, when nobody else will come: then a missing
        process counts too.

    Returns:
      One line that names the process, what it has and what was expected, or None.

    Example:
      >>> from jaxsp.distributed.compare import Hello, disagreement
      >>> first = Hello(0, 2, "a", 11, {"jax": "0.12.0"}, "{}", "")
      >>> print(disagreement(first, [Hello(1, 2, "b", 7, {"jax": "0.10.2"}, "{}", "")]))
      process 1 (pid 7 on b) has jax 0.10.2, process 0 has jax 0.12.0: install the ...
    """
    for other in others:
        if other.num_processes != own.num_processes:
            return (
                f"{other} was started with num_processes={other.num_processes}, "
                f"process 0 with num_processes={own.num_processes}: start all with "
                "the same."
            )
    seen = {own.process_id: own}
    for other in others:
        if (twin := seen.setdefault(other.process_id, other)) is not other:
            return (
                f"two processes were started with process_id={other.process_id}, pid "
                f"{twin.pid} on {twin.host} and pid {other.pid} on {other.host}: give "
                f"each its own, from 0 to {own.num_processes - 1}."
            )
    for other in others:
        if other.versions != own.versions:
            names = _differing(other.versions, own.versions)
            return (
                f"{other} has {_listed(names, other.versions, ' ')}, process 0 has "
                f"{_listed(names, own.versions, ' ')}: install the same versions "
                "everywhere."
            )
    for other in others:
        if other.configuration != own.configuration:
            theirs, ours = (
                _flat(json.loads(hello.configuration)) for hello in (other, own)
            )
            names = _differing(theirs, ours)
            return (
                f"{other} has {_listed(names, theirs, '=')} where process 0 has "
                f"{_listed(names, ours, '=')}: start all with the same configuration."
            )
    missing = [i for i in range(own.num_processes) if i not in seen]
    if missing and timeout is not None:
        who = "process " if len(missing) == 1 else "processes "
        return (
            f"{who}{', '.join(map(str, missing))} of {own.num_processes} did not come "
            f"within {timeout:g} s: start one process for each process_id from 0 to "
            f"{own.num_processes - 1}, with this coordinator."
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
    keys = [*first, *(key for key in second if key not in first)]
    absent = object()
    return [
        key
        for key in keys
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
    return {prefix or "configuration": tree}


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
