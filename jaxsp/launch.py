"""Start the processes of a run on this machine, and end them together.

`python -m jaxsp.launch -n 4 train.py --steps=100` runs `train.py --steps=100` in four
processes, in which `jaxsp.distributed.initialize()` finds the others; `-m` and the name
of a module run a module. Every line of output begins with the number of its process.

When one process fails the others get some seconds to end by themselves, which they do
with a line that says why; then SIGTERM, then SIGKILL. The exit code is that of the
first that failed, 128 + number for a signal. SIGINT (Ctrl-C), SIGTERM and SIGHUP are
passed on, unless they were ignored before, as under nohup; the third of them kills.
However the launcher ends, its processes end too, and what they started, if that is
still in their process group; a daemon, in a group of its own, goes on.
"""

import argparse
import contextlib
import os
import re
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any

__all__ = ["environment", "launch", "main"]

_ALONE = 4.0  # seconds that the others have to end by themselves after a failure
_TERM = 5.0  # seconds between SIGTERM and SIGKILL
_TICK = 0.05
_LONGEST = 1 << 16  # bytes of a line that are kept back for its end

# What becomes the command, after asking Linux (PR_SET_PDEATHSIG) to be killed when the
# launcher dies.
_TIE = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    os._exit(1)  # it has died already
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit(f"jaxsp.launch: {sys.argv[2]} cannot be run: {error.strerror}")
"""

# A process that outlives the launcher to kill whatever it left: it reads the process
# groups, and at the end of its input, which comes when the launcher is no more, kills
# those that were not taken back.
_GUARD = """
import os, signal, sys
left = set()
for line in sys.stdin:
    group = int(line)
    left = left | {group} if group > 0 else left - {-group}
for group in left:
    try:
        os.killpg(group, signal.SIGKILL)
    except OSError:
        pass
"""


class _Process:
    """One process of the run, leader of a process group of its own."""

    def __init__(self, number: int, command: Sequence[str], env: Mapping[str, str]):
        self.number = number
        self.code: int | None = None
        self._popen = subprocess.Popen(
            _tied(command),
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
        )
        self.group = self._popen.pid
        self.outputs: list[_Output] = []
        for pipe, target in (
            (self._popen.stdout, sys.stdout),
            (self._popen.stderr, sys.stderr),
        ):
            assert pipe is not None
            self.outputs.append(_Output(number, pipe, target))

    def look(self) -> bool:
        """Whether the process has ended; it stays a zombie, so that its id is kept."""
        if self.code is None:
            if hasattr(os, "waitid"):
                how = os.WEXITED | os.WNOHANG | os.WNOWAIT
                status = os.waitid(os.P_PID, self.group, how)
                if status is not None:
                    exited = status.si_code == os.CLD_EXITED
                    self.code = status.si_status + (0 if exited else 128)
            elif (code := self._popen.poll()) is not None:
                self.code = code if code >= 0 else 128 - code
        return self.code is not None

    def signal(self, number: int) -> None:
        """Send a signal to the whole group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.group, number)

    def clear(self) -> None:
        """Kill what is left of the group, and forget it."""
        self.signal(signal.SIGKILL)
        self._popen.wait()
        for output in self.outputs:
            output.pipe.close()  # which a daemon may hold open


class _Output:
    """Lines of a pipe, written with the number of their process."""

    def __init__(self, number: int, pipe: IO[bytes], target: Any):
        self.pipe = pipe
        self._prefix = f"[{number}] ".encode()
        self._target = target
        self._rest = b""
        os.set_blocking(pipe.fileno(), False)

    def pump(self) -> bool:
        """Pass on what is there; False at the end."""
        try:
            data = self.pipe.read(_LONGEST)
        except OSError:
            data = b""
        if data is None:
            return True
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        self._write(lines)
        if not data or len(self._rest) >= _LONGEST:
            self.finish()
        return bool(data)

    def finish(self) -> None:
        """Pass on a line that has no end yet."""
        if self._rest:
            self._write([self._rest])
            self._rest = b""

    def _write(self, lines: Sequence[bytes]) -> None:
        if not lines:
            return
        text = b"".join(self._prefix + line + b"\n" for line in lines)
        stream = getattr(self._target, "buffer", None)
        if stream is None:
            self._target.write(text.decode(errors="replace"))
        else:
            stream.write(text)
        self._target.flush()


def _tied(command: Sequence[str]) -> list[str]:
    """The command, on Linux by way of what ties it to the life of this process."""
    if not sys.platform.startswith("linux"):
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _TIE, str(os.getpid()), *command]


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
    command: Sequence[str],
    count: int,
    *,
    timeout: float | None = None,
    resume_command: str | None = None,
) -> int:
    """Run a command in `count` processes, and wait until all have ended.

    Args:
      command: the program and its arguments.
      count: how many processes.
      timeout: seconds after which all are ended; None for no limit.
      resume_command: what `JAXSP_LAUNCH_COMMAND` says; the default is `command`.

    Returns:
      0, or the exit code of the first process that failed; 124 after `timeout`.

    Raises:
      ValueError: if `count` is not at least 1, or `timeout` not above 0; if there is no
        such program.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1 process, got {count}.")
    if timeout is not None and not timeout > 0:
        raise ValueError(f"timeout must be above 0 seconds, got {timeout}.")
    if shutil.which(command[0]) is None:
        raise ValueError(f"{command[0]!r} is no program that can be run.")
    with socket.create_server(("127.0.0.1", 0)) as sock:
        coordinator = f"127.0.0.1:{sock.getsockname()[1]}"
    caught: list[int] = []
    previous = {
        number: signal.signal(number, lambda got, _: caught.append(got))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) != signal.SIG_IGN
    }
    guard = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _GUARD],
        stdin=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    processes: list[_Process] = []
    try:
        for number in range(count):
            env = environment(
                number,
                count,
                coordinator,
                resume_command or shlex.join(command),
                os.environ,
            )
            processes.append(_Process(number, command, env))
            _tell(guard, processes[-1].group)
        return _attend(processes, caught, timeout)
    finally:
        for process in processes:
            process.clear()
            _tell(guard, -process.group)
        guard.communicate()
        for number, handler in previous.items():
            signal.signal(number, handler)


def _tell(guard: subprocess.Popen[str], group: int) -> None:
    assert guard.stdin is not None
    with contextlib.suppress(OSError):  # the guard was killed
        guard.stdin.write(f"{group}\n")
        guard.stdin.flush()


def _attend(processes: list[_Process], caught: list[int], timeout: float | None) -> int:
    """Pass output and signals on until all have ended."""
    started = time.monotonic()
    first = 0  # the exit code of the first that failed
    steps: list[tuple[float, int]] = []  # when to send which signal
    passed = 0  # how many signals were passed on
    running = list(processes)
    with selectors.DefaultSelector() as selector:
        for process in processes:
            for output in process.outputs:
                selector.register(output.pipe, selectors.EVENT_READ, output)
        while running:
            _pump(selector, _TICK)
            now = time.monotonic()
            for process in [p for p in running if p.look()]:
                running.remove(process)
                if process.code and not first:
                    first = process.code
                    steps = _ending(now + _ALONE)
            if timeout is not None and now - started > timeout and not first:
                print(f"jaxsp.launch: ended after {timeout:g} s", file=sys.stderr)
                first = 124
                steps = _ending(now)
            while len(caught) > passed:
                passed += 1
                steps += [(now, caught[passed - 1] if passed < 3 else signal.SIGKILL)]
            for when, number in [step for step in steps if step[0] <= now]:
                steps.remove((when, number))
                for process in running:
                    process.signal(number)
        end = time.monotonic() + 0.5
        while selector.get_map() and time.monotonic() < end:
            _pump(selector, _TICK)  # what was still in the pipes
        for process in processes:
            for output in process.outputs:
                output.finish()
    return first


def _ending(start: float) -> list[tuple[float, int]]:
    return [(start, signal.SIGTERM), (start + _TERM, signal.SIGKILL)]


def _pump(selector: selectors.BaseSelector, timeout: float) -> None:
    if not selector.get_map():
        time.sleep(timeout)
    for key, _ in selector.select(timeout):
        if not key.data.pump():
            selector.unregister(key.fileobj)
            key.data.pipe.close()


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
        "--timeout", type=float, metavar="SECONDS", help="end all after so many seconds"
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
    again = [sys.executable, "-m", "jaxsp.launch", *given]
    try:
        return launch(
            [sys.executable, *program],
            options.n,
            timeout=options.timeout,
            resume_command=shlex.join(again),
        )
    except ValueError as error:
        parser.error(str(error).replace("count", "-n", 1))
    except BrokenPipeError:  # whoever read the output has gone
        sys.stdout = None
        return 1


if __name__ == "__main__":
    sys.exit(main())
