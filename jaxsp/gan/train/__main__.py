r"""Train a GAN on several workers that each hold a part of the data.

A run leaves its settings, metrics.jsonl, pictures and checkpoints in --workdir, which
in many processes must be a directory that all of them see. Ctrl-C, SIGTERM and SIGHUP
end it with a checkpoint (exit code 130, 143 or 129); --resume goes on from there and
gives the same numbers as a run that was never interrupted.

Examples:
  python -m jaxsp.gan.train --dataset=digits --method=dp_oadam --topology=ring
  python -m jaxsp.gan.train --method=md_gan --loss=acgan --workers=10 --dry_run
  python -m jaxsp.gan.train --dataset=mnist --data_dir=~/tensorflow_datasets \
    --partition=dirichlet:0.3 --steps=20000 --eval_every=1000 --workdir=runs/mnist
  python -m jaxsp.launch -n 4 -m jaxsp.gan.train --workers=8 --workdir=runs/four
  python -m jaxsp.gan.scores --checkpoint=runs/mnist
"""

import dataclasses
import os
import shlex
import sys

from absl import flags

from jaxsp import distributed
from jaxsp.gan import command
from jaxsp.gan.command import BadFlagError, naming
from jaxsp.gan.train.config import Config
from jaxsp.gan.train.experiment import OWN, run
from jaxsp.gan.training import loop

__all__ = ["PROGRAM", "Config", "console", "main"]

PROGRAM = "jaxsp.gan.train"


def main(config: Config) -> int:
    """Train as the flags say; the exit code."""
    again = resume_command()
    shared = dataclasses.asdict(config).items()
    try:
        with naming("coordinator", config.coordinator, ValueError):
            distributed.initialize(
                config.coordinator,
                config.num_processes,
                config.process_id,
                settings={k: v for k, v in shared if k not in OWN},
                heartbeat_timeout=config.heartbeat_timeout,
            )
        with distributed.ending_together(again):
            try:
                result = run(config)
            except KeyboardInterrupt:  # before training, or a second time
                sys.exit(command.complain(PROGRAM, "interrupted.", 130))
            if result is None or result.signal is None:
                return 0
            if distributed.is_main():
                print(
                    f"stopped by {result.signal.name} at step {result.step}, which is "
                    f"saved; go on with\n  {again}",
                    flush=True,
                )
            return 128 + result.signal
    except (BadFlagError, distributed.DistributedError) as error:
        message, code, raised = error, 2, error
    except loop.TrainingDivergedError as error:
        message, code, raised = f"training diverged: {error}", 1, error
    if not distributed.raised_in_all(raised) or distributed.is_main():
        command.complain(PROGRAM, message, code)
    return code


def resume_command() -> str:
    """What to type to go on with this run, however it was started."""
    words = shlex.split(os.environ.get("JAXSP_LAUNCH_COMMAND", "")) or sys.orig_argv
    return shlex.join([*(w for w in words if w not in ("--resume", "--")), "--resume"])


def console() -> None:
    """The command `jaxsp-train` of an installed package."""
    flags.disclaim_key_flags()  # --helpshort shows them as that command's own
    command.run(PROGRAM, Config, main)


if __name__ == "__main__":
    command.run(PROGRAM, Config, main)
