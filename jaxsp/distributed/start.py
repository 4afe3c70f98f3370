"""Bringing the processes of a run together, and ending in good order."""

import atexit
import collections
import logging
import os
import sys
import threading
from typing import Any

import jax

from jaxsp.distributed import compare, detect
from jaxsp.distributed.errors import DistributedError, in_all
from jaxsp.distributed.failure import leave, lost_peer
from jaxsp.distributed.together import gather_text

__all__ = ["finalize", "initialize"]


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    settings: Any = None,
    initialization_timeout: float = 60.0,
    heartbeat_timeout: float = 20.0,
) -> None:
    """Bring the processes of a run together by `jax.distributed`, and compare them.

    Every process calls this once, before it uses JAX. With none of the first three
    arguments the environment decides: that of `python -m jaxsp.launch`, or what JAX
    detects (SLURM, Open MPI, TPU pods, Kubernetes); where it says nothing, or that
    there is one process, nothing is done.

    When a process is killed, the next collective of the others raises an error, within
    a second or two; run what follows in `ending_together`, which makes one line of it.
    JAX's own service ends the others too, by an abort, and may be quicker than that
    error. A process that hangs is found after `heartbeat_timeout`: then it is JAX that
    ends the others.

    Args:
      coordinator: `"host:port"` of process 0, reachable from all processes, where JAX's
        service listens.
      num_processes: how many processes there are.
      process_id: which of them this one is, from 0.
      settings: what must be the same in all processes, as JSON can hold it, for example
        the flags of a script; a difference is reported by its key.
      initialization_timeout: seconds to wait for the other processes.
      heartbeat_timeout: seconds without a sign of life after which a process counts as
        lost.

    Raises:
      DistributedError: if process 0 cannot be reached, or its port is taken; if this
        machine's name has no address; in every process, with one line, if one has
        another process count, other settings, options of JAX, XLA_FLAGS, or versions of
        Python, jax, jaxlib or jaxsp; if called twice; if the environment says that
        there are several processes, but not where.
      RuntimeError: if this process has used JAX's devices already.
      ValueError: if some but not all of the three are given, or one is out of range; if
        a process has several CPU devices, with which JAX's collectives hang.

    Example:
      >>> import jaxsp.distributed
      >>> jaxsp.distributed.initialize()  # alone: does nothing
    """
    if not heartbeat_timeout >= 1:
        raise ValueError(
            f"heartbeat_timeout must be at least 1 second, got {heartbeat_timeout!r}."
        )
    place = detect.place(coordinator, num_processes, process_id, initialization_timeout)
    if place is None:
        return
    if jax.distributed.is_initialized():
        raise DistributedError("jaxsp.distributed.initialize must be called once.")
    described = compare.describe(place.num_processes, settings)
    host, port = detect.split_address(place.coordinator)
    _check_name()
    if place.process_id:
        _reach(host, port, place.process_id, initialization_timeout)
    elif "JAX_COORDINATOR_BIND_ADDRESS" not in os.environ:
        _check_port(host, port)
    # JAX's client waits in C++, and aborts with a stack trace when its time is over.
    late = threading.Timer(
        initialization_timeout, _nobody_came, [place, initialization_timeout]
    )
    late.daemon = True
    late.start()
    _start_jax(place, host, initialization_timeout, heartbeat_timeout)
    atexit.register(_leave_after_error)
    error = _wrong_devices()
    if error is None:
        wrong = compare.disagreement(gather_text(described))
        error = DistributedError(wrong) if wrong else None
    late.cancel()
    if error is not None:
        # Together, or who is first takes the others down before they have said why.
        atexit.unregister(_leave_after_error)
        jax.distributed.shutdown()
        raise in_all(error)


def finalize() -> None:
    """Wait until all processes are here, and shut `jax.distributed` down.

    Called at the end of `ending_together`. At the end of a script without it JAX shuts
    down by itself, and waits no more than three times the heartbeat's timeout for the
    others. Without `initialize` this does nothing.
    """
    if not jax.distributed.is_initialized():
        return
    atexit.unregister(_leave_after_error)
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("jaxsp.distributed.finalize")
    jax.distributed.shutdown()


def _reach(host: str, port: int, process_id: int, timeout: float) -> None:
    """Wait until somebody listens at the address of process 0."""
    import socket
    import time

    end = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host, port), timeout=max(timeout, 1.0)).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise DistributedError(
                    f"process {process_id} cannot reach process 0 at {host}:{port} "
                    f"within {timeout:g} s ({error.strerror or error}): start process "
                    "0 there, and give all processes the same coordinator."
                ) from None
            time.sleep(min(0.1, timeout))


def _check_name() -> None:
    """Raise where this machine's name has no address here, at which gloo listens."""
    import socket

    config: Any = jax.config
    by_mpi = config.jax_cpu_collectives_implementation == "mpi"
    if by_mpi or "cpu" not in (config.jax_platforms or "cpu"):
        return
    name, why = socket.gethostname(), None
    try:
        addresses = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        for family, kind, _, _, address in addresses:
            try:
                with socket.socket(family, kind) as probe:
                    probe.bind(address)
                return
            except OSError as error:
                why = error
    except OSError as error:
        why = error
    raise DistributedError(
        f"the name of this machine, {name}, has no address at which it can listen "
        f"({why and (why.strerror or why)}), and JAX's processes on CPUs find each "
        f"other by it: write its address and {name} on a line of /etc/hosts, where all "
        f"processes are on this machine 127.0.0.1 {name}."
    )


def _is_loopback(host: str) -> bool:
    return host == "localhost" or host == "::1" or host.startswith("127.")


def _check_port(host: str, port: int) -> None:
    """Raise where somebody listens where JAX's service is to, which would join it."""
    import socket

    here = host if _is_loopback(host) else ""
    family = socket.AF_INET6 if ":" in here else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((here, port))
        except OSError as error:
            raise DistributedError(
                f"process 0 cannot listen at port {port} ({error.strerror or error}): "
                "give all processes a coordinator with another port, and each run its "
                "own."
            ) from None


def _nobody_came(place: detect.Place, timeout: float) -> None:
    leave(
        2,
        f"jaxsp: process {place.process_id} did not meet all {place.num_processes} "
        f"processes at {place.coordinator} within {timeout:g} s: start one process for "
        f"each process_id from 0 to {place.num_processes - 1}, with the same "
        "coordinator, num_processes and kind of devices.",
    )


def _start_jax(
    place: detect.Place, host: str, timeout: float, heartbeat: float
) -> None:
    chosen = getattr(jax.config, "jax_cpu_collectives_implementation", None)
    if chosen in (None, "", "none"):
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # Its service takes SIGTERM from the process, and knows neither Ctrl-C nor a run of
    # one process; `Signals` does.
    jax.config.update("jax_enable_preemption_service", False)
    # gRPC would go through grpc_proxy, https_proxy or http_proxy even to this machine;
    # JAX only warns of it.
    direct = os.environ.get("no_grpc_proxy") or os.environ.get("no_proxy", "")  # noqa: SIM112
    os.environ["no_grpc_proxy"] = f"{direct},{host}".lstrip(",")  # noqa: SIM112
    jax.config.update("jax_check_proxy_envs", False)
    jax.distributed.initialize(
        place.coordinator,
        place.num_processes,
        place.process_id,
        local_device_ids=place.local_device_ids,
        cluster_detection_method="deactivate",
        initialization_timeout=int(timeout) + 30,  # after our own
        heartbeat_timeout_seconds=int(heartbeat),
        shutdown_timeout_seconds=3 * int(heartbeat),
        coordinator_bind_address=place.coordinator if _is_loopback(host) else None,
    )


def _wrong_devices() -> ValueError | None:
    """What all raise where a process has several CPU devices."""
    counts = collections.Counter(
        device.process_index for device in jax.devices() if device.platform == "cpu"
    )
    for process, count in sorted(counts.items()):
        if count != 1:
            return ValueError(
                f"process {process} has {count} CPU devices, must have one: set "
                "JAX_NUM_CPU_DEVICES=1 and leave "
                "--xla_force_host_platform_device_count out of XLA_FLAGS."
            )
    return None


def _leave_after_error() -> None:
    """End at once where an exception ended the script: the others hear of that.

    JAX's own end would wait for them, and they for this process in a collective.
    """
    error = getattr(sys, "last_value", None)
    if error is not None:
        logging.shutdown()
        interrupted = isinstance(error, KeyboardInterrupt)
        leave(75 if lost_peer(error) else 130 if interrupted else 1)
