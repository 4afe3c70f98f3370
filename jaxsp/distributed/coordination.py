"""JAX's coordination service in a process of its own.

Where the service runs inside process 0, as JAX starts it, and process 0 dies, every
other process is aborted by JAX within milliseconds, with a page of C++ and no chance to
say what happened. Run as a script this module is the service: it lives until process 0
says that all is over, or some seconds longer than process 0. It needs jaxlib alone.
"""

import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

__all__ = ["apart"]

_LINGER = 8.0  # seconds, in which the other processes end


class _Service:
    """What JAX takes for its service: something to shut down."""

    def __init__(self, address: str, num_processes: int, **options: Any):
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        arguments = {"address": address, "num": num_processes, "options": options}
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps(arguments), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline().strip()
        if answer != "ready":
            self._process.kill()
            self._process.communicate()
            raise RuntimeError(
                f"JAX's coordination service did not start: {answer or 'it ended'}"
            )

    def shutdown(self) -> None:
        """End the service, in which no process takes part any more."""
        try:
            self._process.communicate("shutdown\n", timeout=10)
        except (subprocess.TimeoutExpired, OSError):
            self._process.kill()
            self._process.communicate()


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Let `jax.distributed.initialize` start its service in a process of its own."""
    _jax: Any = importlib.import_module("jaxlib._jax")

    original = _jax.get_distributed_runtime_service
    _jax.get_distributed_runtime_service = _Service
    try:
        yield
    finally:
        _jax.get_distributed_runtime_service = original


def _serve() -> None:
    parent = os.getppid()
    # What ends the run reaches this process as well, and must not end it first.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _jax: Any = importlib.import_module("jaxlib._jax")
    arguments = json.loads(sys.stdin.readline())
    try:
        service = _jax.get_distributed_runtime_service(
            arguments["address"], arguments["num"], **arguments["options"]
        )
    except Exception as error:
        print(" ".join(str(error).split()), flush=True)
        return
    print("ready", flush=True)
    # A forked child of process 0 may hold the pipe open: its parent tells as well.
    while os.getppid() == parent and not select.select([sys.stdin], [], [], 1.0)[0]:
        pass
    if os.getppid() == parent and sys.stdin.readline():
        service.shutdown()
    else:
        time.sleep(_LINGER)
    os._exit(0)


if __name__ == "__main__":
    _serve()
