"""Start the processes of a run on this machine, and end them together.

`python -m jaxsp.launch -n 4 train.py --steps=100` runs `train.py --steps=100` in four
processes, in which `jaxsp.distributed.initialize()` finds the others; `-m` and the name
of a module run a module. Every line of output begins with the number of its process.

When a process fails, a line says which and how, and the others get five seconds to end
by themselves; then SIGTERM, and five seconds later SIGKILL. The exit code is that of
the first that failed, 128 + number for a signal. SIGINT (Ctrl-C), SIGTERM and SIGHUP
are passed on, unless they were ignored before, as under nohup; the third of them kills.
On Linux the processes die with the launcher, however it ends.
"""

import argparse
import contextlib
import ctypes
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence

__all__ = ["environment", "launch", "main"]

_GRACE = 5.0  # seconds to end by oneself after a failure, and again after SIGTERM


def environment(
    number: int, count: int, coordinator: str, command: str, base: Mapping[str, str]
) -> dict[str, str]:
    """The environment of one process.

    Args:
      number: which process, from 0.
      count: how many there are.
      coordinator: `"host:port"` where process 0 will listen.
      command: what started the run, for messages that say how to resume it.
      base: the environment to start from.

    Returns:
      It, with what `jaxsp.distributed.initialize()` reads, and one CPU device.

    Example:
      >>> from jaxsp.launch import environment
      >>> environment(1, 4, "127.0.0.1:9999", "train", {})["JAXSP_PROCESS_ID"]
      '1'
    """
    flags = re.sub(
        r"--xla_force_host_platform_device_count=\S*", "", base.get("XLA_FLAGS", "")
    )
    return {
        "PYTHONUNBUFFERED": "1",
        **base,
        "XLA_FLAGS": flags.strip(),
        "JAX_NUM_CPU_DEVICES": "1",
        "JAXSP_COORDINATOR": coordinator,
        "JAXSP_NUM_PROCESSES": str(count),
        "JAXSP_PROCESS_ID": str(number),
        "JAXSP_LAUNCH_COMMAND": command,
    }


def launch(
    command: Sequence[str], count: int, *, resume_command: str | None = None
) -> int:
    """Run a command in `count` processes, and wait until all have ended.

    Args:
      command: the program and its arguments.
      count: how many processes.
      resume_command: what `JAXSP_LAUNCH_COMMAND` says; the default is `command`.

    Returns:
      0, or the exit code of the first process that failed.

    Raises:
      ValueError: if `count` is not at least 1, or there is no such program.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1 process, got {count}.")
    if shutil.which(command[0]) is None:
        raise ValueError(f"{command[0]!r} is no program that can be run.")
    with socket.create_server(("127.0.0.1", 0)) as sock:
        coordinator = f"127.0.0.1:{sock.getsockname()[1]}"
    again = resume_command or shlex.join(command)
    processes: list[subprocess.Popen[str]] = []
    caught: list[int] = []

    def pass_on(number, frame):
        caught.append(number)
        _signal(processes, number if len(caught) < 3 else signal.SIGKILL)

    handled = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handled = [n for n in handled if signal.getsignal(n) != signal.SIG_IGN]
    previous = {number: signal.signal(number, pass_on) for number in handled}
    try:
        for number in range(count):
            process = subprocess.Popen(
                command,
                env=environment(number, count, coordinator, again, os.environ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                process_group=0,
                preexec_fn=_die_with(os.getpid()),
            )
            processes.append(process)
        readers = [
            threading.Thread(target=_prefix, args=(i, *pipe), daemon=True)
            for i, p in enumerate(processes)
            for pipe in ((p.stdout, sys.stdout), (p.stderr, sys.stderr))
        ]
        for reader in readers:
            reader.start()
        code = _wait(processes, caught)
        for reader in readers:
            reader.join(0.5)  # a daemon that a process left may hold a pipe open
        return code
    finally:
        _signal(processes, signal.SIGKILL)
        for number, handler in previous.items():
            signal.signal(number, handler)


def _wait(processes: Sequence[subprocess.Popen[str]], caught: Sequence[int]) -> int:
    """Wait until all have ended, and end all when one has failed."""
    first, steps = 0, []
    while None in [process.poll() for process in processes]:
        failed = [i for i, p in enumerate(processes) if p.returncode]
        if failed and not first:
            # Who ends with 75 says that another one was the first.
            number = min(failed, key=lambda i: processes[i].returncode == 75)
            first, how = _how(processes[number].returncode)
            if not caught:  # else they end as they were told
                if first != 2:  # a wrong flag, of which the process has told
                    print(f"jaxsp.launch: process {number} {how}", file=sys.stderr)
                now = time.monotonic()
                steps = [(now + _GRACE, signal.SIGTERM)]
                steps += [(now + 2 * _GRACE, signal.SIGKILL)]
        while steps and time.monotonic() > steps[0][0]:
            _signal(processes, steps.pop(0)[1])
        time.sleep(0.02)
    codes = [_how(process.returncode)[0] for process in processes]
    return first or next((code for code in codes if code), 0)


def _how(code: int) -> tuple[int, str]:
    """A process's exit code as a shell says it, and in words."""
    if code < 0:
        return 128 - code, f"was ended by {signal.Signals(-code).name}"
    return code, f"ended with exit code {code}"


def _signal(processes: Sequence[subprocess.Popen[str]], number: int) -> None:
    for process in processes:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)


def _prefix(number: int, pipe, target) -> None:
    """Write each line with the number of its process."""
    with pipe, contextlib.suppress(BrokenPipeError):  # whoever read the output is gone
        for line in pipe:
            target.write(f"[{number}] {line}" + ("" if line.endswith("\n") else "\n"))
            target.flush()


def _die_with(parent: int):
    """What has Linux kill a process when its parent dies (PR_SET_PDEATHSIG)."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl

    def ask():
        prctl(1, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it has died already
            os._exit(1)

    return ask


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxsp.launch",
        description="Run a script in several processes on this machine.",
    )
    parser.add_argument(
        "-n", type=int, required=True, metavar="COUNT", help="how many processes"
    )
    parser.add_argument(
        "-m", action="store_true", help="the script is the name of a module"
    )
    parser.add_argument(
        "script",
        nargs=argparse.PARSER,  # one word, and whatever follows it
        help="a script, or a module with -m, and its arguments",
    )
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(given)
    program = options.script
    if program[0] == "--":  # which later versions of Python leave out
        program = program[1:]
    if options.m:
        program = ["-m", *program]
    elif not os.path.exists(program[0]):
        parser.error(f"there is no script {program[0]!r}.")
    again = shlex.join([sys.executable, "-m", "jaxsp.launch", *given])
    try:
        return launch([sys.executable, *program], options.n, resume_command=again)
    except ValueError as error:
        parser.error(str(error).replace("count", "-n", 1))


if __name__ == "__main__":
    sys.exit(main())
