"""Starting a script in several processes, and leaving none behind."""

import os
import pathlib
import signal
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]


def launch(count, script, *arguments, seconds=300, environment=None):
    """Run `script` in `count` processes by `jaxsp.launch`; its exit code and output.

    All are killed after so many seconds: a process that waits for another that is
    gone does not hear anything else.
    """
    command = [sys.executable, "-m", "jaxsp.launch", "-n", str(count)]
    command += [str(HERE / script), *map(str, arguments)]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as started:
        try:
            output, _ = started.communicate(timeout=seconds)
        finally:
            if started.poll() is None:
                os.killpg(started.pid, signal.SIGKILL)
    return started.returncode, output
