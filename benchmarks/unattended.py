"""Ten thousand steps in each way of running workers, with nobody watching.

    python benchmarks/unattended.py [--steps=10000] [--python=python3.13]

trains a small GAN by `examples/train_gan.py`, with gossip and with compressed averages,
on virtual workers, on eight CPU devices, in blocks of two workers on four devices, and
over four processes with one worker in each and with two. A run that hangs is killed
after `timeout` seconds and counts as a failure.
"""

import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from common import command_line, print_table

__all__ = ["MODES", "main"]

ROOT = pathlib.Path(__file__).resolve().parents[1]
LAUNCH = ("-m", "jaxsp.launch", "-n", "4")
MODES = {
    "virtual workers": ((), ("--workers=8", "--devices=1")),
    "eight devices": ((), ("--workers=8", "--devices=8")),
    "blocks of two on four devices": ((), ("--workers=8", "--devices=4")),
    "four processes": (LAUNCH, ("--workers=4",)),
    "four processes, blocks of two": (LAUNCH, ("--workers=8",)),
}
METHODS = {
    "gossip": ("--method=dp_oadam", "--topology=ring"),
    "4 bits": ("--method=dqgan_adam", "--compressor=quantize:4"),
}


def run(
    python: str, launcher: Sequence[str], flags: Sequence[str], steps: int, limit: float
) -> dict[str, float | str]:
    """One run to its end: what it came to, or why not."""
    with tempfile.TemporaryDirectory() as directory:
        workdir = pathlib.Path(directory) / "run"
        command = [python, *launcher, "examples/train_gan.py", *flags]
        command += ["--dataset=mixture_ring", "--model=mlp:16", f"--steps={steps}"]
        command += [f"--eval_every={max(1, steps // 4)}", f"--workdir={workdir}"]
        begun = time.monotonic()
        with subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as started:
            try:
                said, _ = started.communicate(timeout=limit)
            except subprocess.TimeoutExpired:
                os.killpg(started.pid, signal.SIGKILL)
                return {"failed": f"killed after {limit:.0f} s"}
        if started.returncode:
            return {"failed": " ".join(said.splitlines()[-2:])}
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
        last = json.loads(lines[-1])
        assert last["step"] == steps
        return {
            "wall": time.monotonic() - begun,
            "seconds": last["seconds"],
            "score": last["frechet_distance"],
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = command_line(__doc__)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--python", default=sys.executable, help="the interpreter")
    parser.add_argument("--timeout", type=float, default=1200, help="seconds a run")
    flags = parser.parse_args(arguments)
    failed = []

    def row(mode, name):
        launcher, where = MODES[mode]
        said = (*where, *METHODS[name])
        found = run(flags.python, launcher, said, flags.steps, flags.timeout)
        if "failed" in found:
            failed.append((mode, name))
            return [mode, name, found["failed"], "", ""]
        step = 1000 * float(found["seconds"]) / flags.steps
        numbers = [f"{step:.3g}", f"{found['wall']:.0f}", f"{found['score']:.3g}"]
        return [mode, name, *numbers]

    head = ["workers", "method", "ms a step", "s in all", "score"]
    print_table(head, itertools.starmap(row, itertools.product(MODES, METHODS)))
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
