"""Which process of how many this is: as given, or as the environment says."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxsp.distributed.errors import DistributedError

__all__ = ["ENVIRONMENT", "Place", "place", "split_address"]

ENVIRONMENT = ("JAXSP_COORDINATOR", "JAXSP_NUM_PROCESSES", "JAXSP_PROCESS_ID")
_STEP = "SLURM_STEP_NUM_TASKS"


class Place(NamedTuple):
    """Which process of how many this is, where process 0 is, and which devices."""

    coordinator: str
    num_processes: int
    process_id: int
    local_device_ids: Sequence[int] | None = None


def place(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    timeout: float,
) -> Place | None:
    """The place of this process, or None where there is one process only.

    Raises:
      DistributedError: if the environment says that there are several processes, and
        JAX does not detect them.
      ValueError: if some but not all are given, or one is out of range.
    """
    if not timeout > 0:
        raise ValueError(
            f"initialization_timeout must be above 0 seconds, got {timeout!r}."
        )
    names = ("coordinator", "num_processes", "process_id")
    values: tuple[Any, ...] = (coordinator, num_processes, process_id)
    if all(value is None for value in values):
        values, names = tuple(os.environ.get(name) for name in ENVIRONMENT), ENVIRONMENT
        if all(value is None for value in values):
            return _as_jax_detects(timeout)
    if missing := [n for n, v in zip(names, values, strict=True) if v is None]:
        raise ValueError(
            f"{' and '.join(missing)} must be given as well: {', '.join(names)} go "
            "together, or none of them where the environment says it."
        )
    split_address(values[0])
    return _checked(values[0], _integer(names[1], values[1]), values[2], names)


def _checked(
    coordinator: str, count: int, number: Any, names: Sequence[str]
) -> Place | None:
    number = _integer(names[2], number)
    if count < 1:
        raise ValueError(f"{names[1]} must be at least 1, got {count}.")
    if not 0 <= number < count:
        raise ValueError(
            f"{names[2]} must be from 0 to {count - 1} with {names[1]}={count}, got "
            f"{number}."
        )
    return Place(coordinator, count, number) if count > 1 else None


def _integer(name: str, value: Any) -> int:
    try:
        return int(str(value))
    except ValueError:
        raise ValueError(f"{name} must be an integer, got {value!r}.") from None


def _as_jax_detects(timeout: float) -> Place | None:
    """SLURM, Open MPI, TPU pods, Kubernetes: what `jax.distributed` detects."""
    from jax._src import clusters

    coordinator, count, number, devices = (
        clusters.ClusterEnv.auto_detect_unset_distributed_params(
            os.environ.get("JAX_COORDINATOR_ADDRESS"),
            None,
            None,
            None,
            None,
            max(int(timeout), 1),
        )
    )
    # SLURM_NTASKS is the job's, also in an interactive step, which has one task.
    if count is not None and "OMPI_MCA_orte_hnp_uri" not in os.environ:
        count = _integer(_STEP, os.environ.get(_STEP, count))
    if coordinator is None or count is None or number is None:
        _check_alone("JAX_COORDINATOR_ADDRESS")
        return None
    if count == 1:
        _check_alone()
        return None
    if ids := os.environ.get("JAX_LOCAL_DEVICE_IDS"):
        devices = [int(device) for device in ids.split(",")]
    elif _one_gpu_is_visible():
        devices = None  # its number in the process is 0, whatever that of the task
    return Place(coordinator, count, number, devices)


def _one_gpu_is_visible() -> bool:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").strip()
    return bool(visible) and "," not in visible


def _check_alone(address: str = "") -> None:
    """Raise if the environment says that this is one of several processes."""
    said = [address] if os.environ.get(address) else []
    names = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"]
    # The script of a batch job has the variables of its tasks, but is no step.
    if "SLURM_STEP_ID" in os.environ and "SLURM_PROCID" in os.environ:
        names.append(_STEP if _STEP in os.environ else "SLURM_NTASKS")
    for name in names:
        count = os.environ.get(name, "")
        if count.isdecimal() and int(count) > 1:
            said.append(f"{name}={count}")
    if said:
        raise DistributedError(
            f"{said[0]} says that there are several processes, but not where they "
            "meet: give coordinator, num_processes and process_id (as flags "
            "--coordinator, --num_processes and --process_id)."
        )


def split_address(address: Any) -> tuple[str, int]:
    """Host and port of `"host:port"`; an IPv6 host stands in brackets."""
    host, _, port = str(address).rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(
            "coordinator must be host:port, for example node1:9876, with a port from 1 "
            f"to 65535, got {address!r}."
        )
    return host.removeprefix("[").removesuffix("]"), int(port)
