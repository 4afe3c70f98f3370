"""Start the processes of a run on this machine, and end them together.

`python -m jaxsp.launch -n 4 train.py --steps=100` runs `train.py --steps=100` in four
processes, in which `jaxsp.distributed.initialize()` finds the others; `-m` and the name
of a module run a module. Every line of output begins with the number of its process;
the greetings of gloo, a line for each connection, are left out.

When a process fails, a line says which and how, and the others get five seconds to end
by themselves; then SIGTERM, and five seconds later SIGKILL. The exit code is that of
the first that failed, 128 + number for a signal. SIGINT (Ctrl-C), SIGTERM and SIGHUP
are passed on, unless they were ignored before, as under nohup; the third of them kills.
On Linux the processes die with the launcher, however it ends.
"""

import argparse
import contextlib
import importlib.util
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["environment", "launch", "main"]

_GREETING = re.compile(r"\[Gloo\] Rank \d+ is connected to \d+ peer ranks")
_GRACE = 5.0  # seconds to end by oneself after a failure, and again after SIGTERM
# A process that asks Linux for SIGKILL when its parent ends (PR_SET_PDEATHSIG, 1), and
# then becomes the command. Popen's preexec_fn would fork with the launcher's threads.
_DIE_WITH_PARENT = (
    sys.executable,
    "-ISc",
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9, 0, 0, 0);"
    "os.execvp(sys.argv[1], sys.argv[1:])",
)


def environment(
    number: int, count: int, coordinator: str, command: str, base: Mapping[str, str]
) -> dict[str, str]:
    """What process `number` of `count` reads of the run, with one CPU device.

    `coordinator` is where process 0 will listen, `"host:port"`, `command` what is to be
    typed to start the run again, and `base` the environment to start from.
    """
    several = r"--xla_force_host_platform_device_count=\S*"
    return {
        "PYTHONUNBUFFERED": "1",
        **base,
        "XLA_FLAGS": re.sub(several, "", base.get("XLA_FLAGS", "")).strip(),
        "JAX_NUM_CPU_DEVICES": "1",
        "JAXSP_COORDINATOR": coordinator,
        "JAXSP_NUM_PROCESSES": str(count),
        "JAXSP_PROCESS_ID": str(number),
        "JAXSP_LAUNCH_COMMAND": command,
    }


def launch(command: Sequence[str], count: int, resume_command: str) -> int:
    """Run a command in `count` processes, and wait until all have ended.

    Args:
      command: the program and its arguments.
      count: how many processes.
      resume_command: what to type to start the run again, for messages.

    Returns:
      0, or the exit code of the first process that failed.
    """
    with socket.create_server(("127.0.0.1", 0)) as sock:
        coordinator = f"127.0.0.1:{sock.getsockname()[1]}"
    linux = sys.platform == "linux"
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
                [*_DIE_WITH_PARENT, *command] if linux else command,
                env=environment(number, count, coordinator, resume_command, os.environ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                process_group=0,
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
        for process in processes:
            process.wait()
        for number, handler in previous.items():
            signal.signal(number, handler)


def _wait(processes: Sequence[subprocess.Popen[str]], caught: Sequence[int]) -> int:
    """Wait until all have ended, and end all when one has failed."""
    first, steps = 0, []
    codes: list[Any]
    while True:
        codes = [process.poll() for process in processes]
        failed = [number for number, code in enumerate(codes) if code]
        if failed and not first:
            # Who ends with 75 says that another one was the first.
            number = min(failed, key=lambda number: codes[number] == 75)
            first, how = codes[number], f"ended with exit code {codes[number]}"
            if first < 0:
                how = f"was ended by {signal.Signals(-first).name}"
                first = 128 - first
            # Who was told to end ends so; of a wrong flag, code 2, it has told itself.
            if not caught and first != 2:
                print(f"jaxsp.launch: process {number} {how}", file=sys.stderr)
            if not caught:
                now = time.monotonic()
                steps = [(now + _GRACE, signal.SIGTERM)]
                steps += [(now + 2 * _GRACE, signal.SIGKILL)]
        if None not in codes:
            return first
        while steps and time.monotonic() > steps[0][0]:
            _signal(processes, steps.pop(0)[1])
        time.sleep(0.02)


def _signal(processes: Sequence[subprocess.Popen[str]], number: int) -> None:
    for process in processes:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)


def _prefix(number: int, pipe, target) -> None:
    """Write each line with the number of its process."""
    with pipe, contextlib.suppress(BrokenPipeError):  # whoever read the output is gone
        for line in pipe:
            if _GREETING.match(line):
                continue
            target.write(f"[{number}] {line}" + ("" if line.endswith("\n") else "\n"))
            target.flush()


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"jaxsp.launch: {message.rstrip('.')}; see --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = _Parser("python -m jaxsp.launch", description=str(__doc__).splitlines()[0])
    parser.add_argument("-n", type=int, required=True, help="how many processes")
    parser.add_argument("-m", action="store_true", help="SCRIPT is a module's name")
    # One word, and whatever follows it.
    parser.add_argument("script", nargs=argparse.PARSER, help="and its arguments")
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(given)
    program = options.script
    if program[0] == "--":  # which later versions of Python leave out
        program = program[1:]
    if options.n < 1:
        parser.error(f"-n must be at least 1 process, got {options.n}.")
    if not options.m and not os.path.exists(program[0]):
        parser.error(f"there is no script {program[0]!r}.")
    if options.m and not importlib.util.find_spec(program[0].partition(".")[0]):
        parser.error(f"there is no module {program[0]!r}.")
    again = shlex.join([sys.executable, "-m", "jaxsp.launch", *given])
    command = [sys.executable, *["-m"] * options.m, *program]
    try:
        return launch(command, options.n, again)
    except OSError as error:
        parser.error(f"-n {options.n}: cannot start as many ({error.strerror}).")


if __name__ == "__main__":
    sys.exit(main())
