"""The run that this process takes part in: its beginning, its end, and its bad ends."""

import atexit
import builtins
import contextlib
import logging
import os
import re
import shlex
import signal
import socket
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import jax

from jaxsp.distributed import coordination, detect
from jaxsp.distributed.rendezvous import DistributedError, Meeting, meet
from jaxsp.distributed.watch import Loss, Watch
from jaxsp.distributed.wire import is_loopback, split_address

__all__ = ["EXIT_CODE", "finalize", "initialize"]

EXIT_CODE = 75  # of a process that ends because another one did: "try again"
_GRACE = 2.0  # seconds for a process to end with an error of its own
# How XLA's errors begin that a broken connection causes.
_XLA_STATUS = re.compile(
    "(ABORTED|CANCELLED|DATA_LOSS|DEADLINE_EXCEEDED|FAILED_PRECONDITION|INTERNAL"
    "|UNAVAILABLE|UNKNOWN): "
)
_SLOW_END = 10.0  # seconds for a failed process's other threads to end
_EXITS = ((sys, "exit"), (builtins, "exit"), (builtins, "quit"))


class _Run:
    """What stays open while the run goes on."""

    def __init__(self, process_id: int, meeting: Meeting, resume_command: str):
        self.process_id = process_id
        self.resume_command = resume_command
        self.exit_code = 0
        self.told = False  # the others know that this process ends with an error
        self.listener = meeting.listener
        self.last_word = threading.Lock()
        self.watch = Watch(
            process_id, meeting.connections, meeting.members, self._grace
        )
        self._exits = [
            (module, name, getattr(module, name))
            for module, name in _EXITS
            if hasattr(module, name)
        ]

    def hook(self) -> None:
        """Notice from now on how this process ends."""
        _take_excepthook()
        for module, name, _ in self._exits:
            setattr(module, name, _on_exit)

    def unhook(self) -> None:
        """Put back what `hook` replaced."""
        _give_excepthook_back()
        for module, name, exit_ in self._exits:
            setattr(module, name, exit_)

    def _grace(self, loss: Loss) -> None:
        time.sleep(_GRACE)
        self.end(loss)

    def end(self, loss: Loss) -> None:
        """Say who was lost, and end at once: nothing else ends a stuck collective."""
        with self.last_word:
            _write(
                f"jaxsp: {loss}, so process {self.process_id} ends as well. "
                f"Start all again with: {self.resume_command}"
            )
            _leave(EXIT_CODE)

    def fail(self, how: str, code: int) -> None:
        """Tell the others that this process ends with an error, and see that it does.

        Its other threads may finish what they write, unless they are stuck.
        """
        self.exit_code = code
        if not self.told:
            self.told = True
            self.watch.fail(how)
        timer = threading.Timer(_SLOW_END, _leave, [code])
        timer.daemon = True
        timer.start()


_run: _Run | None = None
_excepthook = sys.excepthook  # the one that _on_exception stands for


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    configuration: Any = None,
    resume_command: str | None = None,
    timeout: float = 60.0,
) -> None:
    """Bring the processes of a run together and start `jax.distributed`.

    Every process calls this once, before it uses JAX. Process 0 listens at
    `coordinator`, the others connect to it, and go on when all are there and were
    started alike. With none of the three the environment decides: that of
    `python -m jaxsp.launch`, or what JAX detects (SLURM, Open MPI, TPU pods,
    Kubernetes); where it says nothing, or that there is one process, nothing is done.

    From then on a process that dies ends the others: each one writes one line to stderr
    that names it and `resume_command`, and ends with exit code 75, at most 5 s after
    the death, 15 s where a whole machine vanished without closing its connections. An
    exception that nobody catches counts as death, and so does `sys.exit`, `exit` or
    `quit` with an error in the main thread. A bare `raise SystemExit(n)` is not seen,
    and the others take it for an end without an error: use `sys.exit(n)`.

    Args:
      coordinator: `"host:port"` of process 0, reachable from all processes; JAX's own
        service runs at a free port of the same host.
      num_processes: how many processes there are.
      process_id: which of them this one is, from 0.
      configuration: what must be the same in all processes, as JSON can hold it, for
        example the flags of a script; a difference is reported by its key.
      resume_command: what to type to go on after a failure. The default is the command
        of `jaxsp.launch`, or of this process.
      timeout: seconds to wait for the other processes.

    Raises:
      DistributedError: in every process, with one line that says which process is
        missing, or has another process count, configuration, or version of Python,
        jax, jaxlib or jaxsp; if process 0 cannot be reached; if called twice; if the
        environment says that there are several processes, but not where.
      RuntimeError: if this process has used JAX's devices already.
      ValueError: if some but not all of the three are given, or one is out of range; if
        a process has several CPU devices, with which JAX's collectives hang.

    Example:
      >>> import jaxsp.distributed
      >>> jaxsp.distributed.initialize()  # alone: does nothing
    """
    global _run
    with _in_one_line():
        place = detect.place(coordinator, num_processes, process_id, timeout)
    if place is None:
        return
    if _run is not None:
        raise DistributedError("jaxsp.distributed.initialize must be called once.")
    detect.check_unused()
    with _in_one_line():
        meeting = meet(
            place.coordinator,
            place.num_processes,
            place.process_id,
            configuration,
            timeout,
        )
    if resume_command is None:
        resume_command = os.environ.get("JAXSP_LAUNCH_COMMAND")
    run = _Run(place.process_id, meeting, resume_command or shlex.join(sys.orig_argv))
    _run = run
    run.hook()
    atexit.register(_at_exit)
    # What Python calls before it waits for threads, where it has that.
    getattr(threading, "_register_atexit", lambda _: None)(_before_threads_end)
    os.register_at_fork(after_in_child=_in_fork)
    run.watch.start()
    if meeting.listener is not None:
        threading.Thread(
            target=meeting.turn_away, name="jaxsp-late", daemon=True
        ).start()
    _start_jax(place, meeting.port, timeout)


def finalize() -> None:
    """End the run in good order: wait until all processes are done, then shut down.

    Called at the end of a script by itself; to be called where a process goes on
    afterwards, alone. Without `initialize` it does nothing.
    """
    global _run
    run = _run
    if run is None:
        return
    run.watch.goodbye()
    run.watch.ended.wait()  # if a process is lost now, the watch ends this one
    run.watch.join()
    _run = None
    atexit.unregister(_at_exit)
    run.unhook()
    if run.listener is not None:
        with contextlib.suppress(OSError):  # else `accept` keeps the port
            run.listener.shutdown(socket.SHUT_RDWR)
        run.listener.close()
    jax.distributed.shutdown()
    run.watch.close()


def _start_jax(place: detect.Place, port: int, timeout: float) -> None:
    host, _ = split_address(place.coordinator)
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if jax.config.values["jax_cpu_collectives_implementation"] in (None, "", "none"):
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    on_sigterm = signal.getsignal(signal.SIGTERM)
    with coordination.apart():
        jax.distributed.initialize(
            address,
            place.num_processes,
            place.process_id,
            local_device_ids=place.local_device_ids,
            cluster_detection_method="deactivate",
            initialization_timeout=max(int(timeout), 30),
            shutdown_timeout_seconds=30,
            coordinator_bind_address=address if is_loopback(host) else None,
        )
    # JAX catches SIGTERM, to tell of preemption, and a process would not end by it.
    if on_sigterm is not None and (
        threading.current_thread() is threading.main_thread()
    ):
        signal.signal(signal.SIGTERM, on_sigterm)
    counts: dict[int, int] = {}
    for device in jax.devices():
        if device.platform == "cpu":
            counts[device.process_index] = counts.get(device.process_index, 0) + 1
    for process, count in sorted(counts.items()):
        if count != 1:
            raise ValueError(
                f"process {process} has {count} CPU devices, must have one: set "
                "JAX_NUM_CPU_DEVICES=1 and leave "
                "--xla_force_host_platform_device_count out of XLA_FLAGS."
            )


@contextlib.contextmanager
def _in_one_line() -> Iterator[None]:
    """Have a DistributedError from here written as one line, unless it is caught."""
    try:
        yield
    except DistributedError as error:
        if _run is None:
            _take_excepthook()
            weakref.finalize(error, _forget).atexit = False
        raise


def _forget() -> None:
    if _run is None:
        _give_excepthook_back()


def _take_excepthook() -> None:
    global _excepthook
    if sys.excepthook is not _on_exception:
        _excepthook, sys.excepthook = sys.excepthook, _on_exception


def _give_excepthook_back() -> None:
    if sys.excepthook is _on_exception:
        sys.excepthook = _excepthook


def _on_exception(
    kind: type[BaseException], value: BaseException, traceback: TracebackType | None
) -> None:
    run = _run
    if isinstance(value, DistributedError) and run is None:
        _write(f"jaxsp: {value}")
        return
    if run is None:
        _excepthook(kind, value, traceback)
        return
    if _from_xla(value) and run.watch.noticed.wait(1.0):
        # A collective that failed because of the loss; process 0 has told the others.
        assert run.watch.lost is not None
        run.end(run.watch.lost)
    first = (str(value).splitlines() or [""])[0]
    run.fail(
        f"failed with {kind.__name__}" + (f": {first}" if first else ""),
        130 if issubclass(kind, KeyboardInterrupt) else 1,
    )
    _excepthook(kind, value, traceback)


def _from_xla(error: BaseException | None) -> bool:
    """Whether XLA raised it, as JaxRuntimeError or (in dispatch) as ValueError."""
    while error is not None:
        if _XLA_STATUS.match(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _on_exit(code: Any = None) -> Any:
    """Stands for `sys.exit`: nothing else tells at the end how a process ends."""
    # In another thread it ends no more than that thread.
    if _run is not None and threading.current_thread() is threading.main_thread():
        known = code is None or isinstance(code, int)
        _run.exit_code = (code or 0) if known else 1
    raise SystemExit(code)


def _before_threads_end() -> None:
    """Tell of an error at once: the process may wait long for its threads."""
    if _run is not None and (code := _run.exit_code & 0xFF):
        _run.fail(f"ended with exit code {code}", code)


def _at_exit() -> None:
    if _run is None:
        return
    code = _run.exit_code & 0xFF
    if code == 0:
        try:
            finalize()
            return
        except KeyboardInterrupt:
            code = 130
    if _run is not None:
        _run.fail(f"ended with exit code {code}", code)
    logging.shutdown()
    _leave(code)  # before JAX's own end, which waits minutes for the others


def _in_fork() -> None:
    """A forked child is no process of the run, and must not hold its connections."""
    global _run
    if _run is not None:
        _run.watch.close()
        _run.unhook()
        if _run.listener is not None:
            _run.listener.close()
    _run = None


def _write(line: str) -> None:
    """Write to stderr, whatever lock the main thread may hold."""
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())


def _leave(code: int) -> None:
    """End this process now, with its output flushed if that is possible."""

    def flush() -> None:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()

    thread = threading.Thread(target=flush, daemon=True)
    thread.start()
    thread.join(0.5)
    os._exit(code)
