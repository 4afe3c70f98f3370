"""Processes that run side by side to their end, and what is left of them removed."""

import contextlib
import math
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence

__all__ = ["leaving_on_signals", "run"]

LAST_WORDS = 5.0  # seconds that the others have to say what they miss
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(
    commands: Sequence[Sequence[str]],
    directory: pathlib.Path,
    limit: float = math.inf,
) -> None:
    """Run commands side by side, each with JAX on one CPU device.

    Args:
      commands: the command lines. The first one's errors go where ours go.
      directory: where the rest of what number i says is written to `process-i.log`.
      limit: seconds until all must have ended.

    Raises:
      RuntimeError: if one fails, with its last words, or they take longer than `limit`.
        All are ended then.
    """
    environment = dict(os.environ, JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES="1")
    environment.pop("XLA_FLAGS", None)
    directory.mkdir(parents=True, exist_ok=True)
    logs = [directory / f"process-{i}.log" for i in range(len(commands))]
    deadline, running = time.monotonic() + limit, []
    try:
        for argv, path in zip(commands, logs, strict=True):
            with path.open("w") as log:
                running.append(
                    subprocess.Popen(
                        argv,
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log if running else None,
                        start_new_session=True,
                    )
                )
        while None in (codes := [each.poll() for each in running]) and not any(codes):
            if time.monotonic() > deadline:
                raise RuntimeError(f"{directory} took more than {limit:.0f} s.")
            time.sleep(0.1)
        if any(codes):
            time.sleep(LAST_WORDS)
            i = next(i for i, code in enumerate(codes) if code)
            said = "\n".join(logs[i].read_text().strip().splitlines()[-5:])
            raise RuntimeError(f"process {i} ended with exit code {codes[i]}: {said}")
    finally:
        for each in running:
            if each.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(each.pid, signal.SIGKILL)
            each.wait()


@contextlib.contextmanager
def leaving_on_signals() -> Iterator[None]:
    """Leave through every `finally`, once: what was made is removed there."""

    def leave(number, frame):
        del frame
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    handlers = {number: signal.signal(number, leave) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
