"""Ten thousand steps in each way of running workers, with nobody watching.

    python benchmarks/unattended.py [--steps=10000] [--python=python3.13]

trains a small GAN by `examples/train_gan.py`, with gossip and with compressed averages,
on virtual workers, on eight CPU devices, in blocks of two workers on four devices, and
over four processes with one worker in each and with two. A run that hangs is killed
after `timeout` seconds and counts as a failure.
"""

import itertools
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from common import command_line, print_table

from jaxsp.gan.training.records import read_metrics

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


def run(python: str, mode: str, method: str, steps: int, limit: float) -> list[str]:
    """One run to its end: ms a step, seconds and score, or why not.

    Raises:
      RuntimeError: if it fails.
    """
    launcher, where = MODES[mode]
    with tempfile.TemporaryDirectory() as workdir:
        command = [python, *launcher, "examples/train_gan.py", *where, *METHODS[method]]
        command += ["--dataset=mixture_ring", "--model=mlp:16", f"--steps={steps}"]
        command += [f"--eval_every={max(1, steps // 4)}", f"--workdir={workdir}"]
        begun = time.monotonic()
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=limit,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"killed after {limit:.0f} s") from None
        if done.returncode:
            raise RuntimeError(" ".join(done.stdout.splitlines()[-2:]))
        wall = time.monotonic() - begun
        last = read_metrics(pathlib.Path(workdir) / "metrics.jsonl")[-1]
    assert last["step"] == steps
    step = f"{1000 * last['seconds'] / steps:.3g}"
    return [step, f"{wall:.0f}", f"{last['frechet_distance']:.3g}"]


def main() -> int:
    parser = command_line(__doc__)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--python", default=sys.executable, help="the interpreter")
    parser.add_argument("--timeout", type=float, default=1200, help="seconds a run")
    flags = parser.parse_args()
    failed = []

    def row(mode, method):
        try:
            found = run(flags.python, mode, method, flags.steps, flags.timeout)
        except RuntimeError as error:
            failed.append(mode)
            found = [str(error), "", ""]
        return [mode, method, *found]

    head = ["workers", "method", "ms a step", "s in all", "score"]
    print_table(head, itertools.starmap(row, itertools.product(MODES, METHODS)))
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
