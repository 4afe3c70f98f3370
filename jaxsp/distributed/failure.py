"""How a process ends when something fails, in it or in another one."""

import contextlib
import logging
import os
import re
import shlex
import sys
import traceback
from collections.abc import Iterator

import jax

from jaxsp.distributed.errors import raised_in_all

__all__ = ["EXIT_CODE", "ending_together", "leave", "lost_peer"]

EXIT_CODE = 75  # of a process that ends because another one did: "try again"

# What collectives and JAX's service say when a process is gone.
_LOST = re.compile(
    "Gloo|NCCL|nccl[A-Z]|oordination service|Connection (closed|reset) by peer"
    "|Socket closed|Broken pipe|heartbeat"
)


def lost_peer(error: BaseException | None) -> bool:
    """Whether an error, or one that it was made of, says that a process is gone.

    A collective whose connection breaks raises a `ValueError` on CPUs and a
    `jax.errors.JaxRuntimeError` elsewhere.
    """
    while error is not None:
        by_jax = isinstance(error, ValueError | jax.errors.JaxRuntimeError)
        if by_jax and _LOST.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def ending_together(resume_command: str | None = None) -> Iterator[None]:
    """Run a block of which no process ends alone while others wait for it.

    At the end of the block all processes wait for each other, and `jax.distributed` is
    shut down. An error of this process ends it at once, with its traceback, so that the
    others' next collective fails; an error that all raise is raised as ever. Where
    another process is gone, this one ends with exit code 75 and one line on stderr that
    says how to go on. Alone it does nothing.

    Args:
      resume_command: what to type to go on after a failure. The default is the command
        of `jaxsp.launch`, or of this process.

    Example:
      >>> import jaxsp.distributed
      >>> jaxsp.distributed.initialize()
      >>> with jaxsp.distributed.ending_together("python train.py --resume"):
      ...     print(jaxsp.distributed.process_count())
      1
    """
    from jaxsp.distributed.start import finalize

    if not jax.distributed.is_initialized():
        yield
        return
    again = resume_command or os.environ.get("JAXSP_LAUNCH_COMMAND")
    again = again or shlex.join(sys.orig_argv)
    try:
        yield
        finalize()
    except SystemExit as error:
        _finish(error.code, finalize)
        raise
    except BaseException as error:
        if raised_in_all(error):
            finalize()
            raise
        if lost_peer(error):
            leave(
                EXIT_CODE,
                f"jaxsp: another process is gone, so process {jax.process_index()} "
                f"ends as well. Start all again with: {again}",
            )
        traceback.print_exc()
        leave(130 if isinstance(error, KeyboardInterrupt) else 1)


def _finish(code, finalize):
    """End as `sys.exit` with a code would; with 0 when all do."""
    if code in (None, 0):
        finalize()
        return
    known = isinstance(code, int)
    leave(code & 0xFF if known else 1, None if known else str(code))


def leave(code: int, line: str | None = None) -> None:
    """End this process now, whatever its other threads and JAX wait for.

    Args:
      code: the exit code.
      line: what to write to stderr before, if anything.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    if line is not None:
        with contextlib.suppress(OSError):
            os.write(2, f"{line}\n".encode())
    os._exit(code)
