"""Checkpoints of a run, and going on from them.

`checkpoints/STEP/` in the run's directory is written by Orbax under a temporary name
and then renamed, so that a checkpoint is there completely or not at all. Over many
processes each writes the rows of its own workers, and process 0 commits.
"""

import contextlib
import json
import logging
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxsp import distributed
from jaxsp.gan.program import Program, named_leaves, with_named_leaves
from jaxsp.gan.training import directory, shards
from jaxsp.gan.training.directory import WorkdirError
from jaxsp.gan.training.progress import Progress, add_bits

__all__ = [
    "Checkpoints",
    "Run",
    "WorkdirError",
    "last_progress",
    "open_run",
    "read_generator",
]

_log = logging.getLogger(__name__)

_CHECKPOINTS = "checkpoints"
# What is another if the workers are others: the run then starts again from a summary.
_OF_WORKERS = ("workers", "data_crc32")


@contextlib.contextmanager
def open_run(
    workdir: str | os.PathLike | None,
    settings: Mapping[str, Any],
    free: Mapping[str, Any],
    resume: bool,
) -> Iterator["Run"]:
    """Open the directory of a run, and make it where there is none.

    Over many processes all must call it.

    Args:
      workdir: the directory; of None comes a run of which nothing is saved.
      settings: what must stay as it is when the run goes on, with values that JSON can
        hold.
      free: what may change then, for the record.
      resume: whether to go on with what is there.

    Yields:
      The run.

    Raises:
      WorkdirError: as `check_directory`; if not all processes see the directory.
    """
    if workdir is None:
        yield Run(None, settings, free, None)
        return
    workdir, main = pathlib.Path(workdir), distributed.is_main()
    with distributed.raise_together():
        if main:
            directory.check_directory(workdir, settings, resume, may_differ=_OF_WORKERS)
            workdir.mkdir(parents=True, exist_ok=True)
    directory.check_shared(workdir)
    with distributed.raise_together():
        if main and not (workdir / directory.CONFIG).exists():
            # First of all: without it nobody could tell whose the rest is.
            directory.write_config(workdir, settings, free)
    with Checkpoints(workdir) as checkpoints:
        yield Run(workdir, settings, free, checkpoints)


class Run(NamedTuple):
    """The directory of a run that `open_run` has opened.

    Over many processes all must call the methods alike.

    Attributes:
      workdir: the directory, or None.
      settings: as in `open_run`.
      free: as in `open_run`.
      checkpoints: those in the directory; None where there is none.
    """

    workdir: pathlib.Path | None
    settings: Mapping[str, Any]
    free: Mapping[str, Any]
    checkpoints: "Checkpoints | None"

    def start(
        self, program: Program, key: jax.Array, steps: int
    ) -> tuple[Any, Progress, str | None]:
        """Where training begins: at step 0, or where the last checkpoint was written.

        Args:
          program: what is run.
          key: what the parameters are drawn from at step 0.
          steps: the step to train to.

        Returns:
          The state, the progress, and, where other workers go on than have written the
          checkpoint, how many of each, in words.

        Raises:
          WorkdirError: if the run is further than `steps`, or of other data, or the
            checkpoint is damaged.
        """
        state, crc32 = program.init(key), self.settings["data_crc32"]
        progress = Progress(workers=program.workers.count, data_crc32=crc32)
        restarted = None
        if self.checkpoints is None:
            return state, progress, restarted
        what = f"the last checkpoint in {self.workdir}"
        step = self.checkpoints.latest
        distributed.check_same("train", {what: step})
        if step is not None:
            saved = self.checkpoints.progress(step)
            with distributed.raise_together():
                self._check_saved(saved, progress, steps)
            if saved.workers == progress.workers:
                state, progress = self.checkpoints.restore(step, state), saved
            else:
                summary = self.checkpoints.summary(step, program.summary(state))
                state = program.restart_from(summary, step)
                restarted = f"{saved.workers} -> {progress.workers} workers"
                progress = saved._replace(
                    bits_before=saved.bits, workers=progress.workers, data_crc32=crc32
                )
        with distributed.raise_together():
            if distributed.is_main():
                directory.write_config(self.workdir, self.settings, self.free)
                if restarted:
                    _log.warning(
                        "step %d: %s; %s; the data are divided anew.",
                        step,
                        restarted,
                        program.restart_note,
                    )
        return state, progress, restarted

    def _check_saved(self, saved, now, steps):
        if saved.step > steps:
            raise WorkdirError(
                f"steps must be at least {saved.step}, which the run in {self.workdir} "
                f"has reached, got {steps}."
            )
        name = "data_crc32"
        if saved.workers == now.workers and saved.data_crc32 != now.data_crc32:
            said = directory.difference(name, now.data_crc32, {name: saved.data_crc32})
            raise directory.other_configuration(self.workdir, [said])

    @property
    def last(self) -> pathlib.Path | None:
        """The last checkpoint, or None."""
        if self.checkpoints is None or self.checkpoints.latest is None:
            return None
        return self.checkpoints.path(self.checkpoints.latest)

    def is_behind(self, step: int) -> bool:
        """Whether there should be a checkpoint of `step` and is none."""
        return self.checkpoints is not None and self.checkpoints.latest != step

    def save(self, program: Program, state: Any, progress: Progress) -> None:
        """Write a checkpoint; returns when it is on disk.

        Args:
          program: what is run.
          state: the state.
          progress: how far the run has come.
        """
        bits = add_bits(program.bits(state), progress.bits_before)
        if self.checkpoints is not None:
            self.checkpoints.save(
                state, program.summary(state), progress._replace(bits=bits)
            )


class Checkpoints:
    """The checkpoints of one run: the last few, each whole.

    Over many processes all must make it, and call its methods, alike.

    Args:
      workdir: the run directory.
      keep: how many to keep.
    """

    def __init__(self, workdir: str | os.PathLike, keep: int = 2):
        self._directory = pathlib.Path(workdir).absolute() / _CHECKPOINTS
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, enable_async_checkpointing=False
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception) -> None:
        self._manager.close()

    @property
    def latest(self) -> int | None:
        """The step of the last checkpoint, or None."""
        return self._manager.latest_step()

    def path(self, step: int) -> pathlib.Path:
        """Where the checkpoint of `step` lies."""
        return self._directory / str(step)

    def save(self, state: Any, summary: Any, progress: Progress) -> None:
        """Write a checkpoint and drop the oldest; returns when it is on disk.

        Args:
          state: a pytree of arrays, wherever they are.
          summary: a `program.Summary`, which can be read without knowing the state;
            that of process 0 is written.
          progress: how far the run has come; likewise. Where there is a checkpoint of
            this or a later step nothing is written.
        """
        note = {"progress": progress._asdict(), "layout": _layout(state)}
        self._manager.save(
            progress.step,
            args=ocp.args.Composite(
                shards=shards.Save(state),
                summary=ocp.args.StandardSave(named_leaves(summary)),
                note=ocp.args.JsonSave(note),
            ),
        )

    def progress(self, step: int) -> Progress:
        """The progress saved with a checkpoint."""
        return _progress(self._read_note(step))

    def summary(self, step: int, like: Any) -> Any:
        """The summary saved with a checkpoint.

        Args:
          step: which.
          like: a summary of the same structure; shapes may be others.

        Returns:
          The summary, of NumPy arrays.

        Raises:
          WorkdirError: if the checkpoint holds a summary of another structure.
        """
        try:
            return with_named_leaves(like, self.named_summary(step))
        except ValueError as error:
            raise WorkdirError(
                f"the checkpoint {self.path(step)} is of another configuration: {error}"
            ) from None

    def named_summary(self, step: int) -> dict[str, np.ndarray]:
        """The leaves of the summary saved with a checkpoint, by name."""
        read: Any = self._manager.restore(
            step, args=ocp.args.Composite(summary=ocp.args.StandardRestore())
        )
        return {name: np.asarray(leaf) for name, leaf in read.summary.items()}

    def _read_note(self, step):
        read: Any = self._manager.restore(
            step, args=ocp.args.Composite(note=ocp.args.JsonRestore())
        )
        return read.note

    def restore(self, step: int, like: Any) -> Any:
        """Read a checkpoint.

        Args:
          step: which.
          like: a pytree of arrays of the same structure, shapes, dtypes and placement.

        Returns:
          The state, placed as `like` is.

        Raises:
          WorkdirError: if the checkpoint holds a state of another layout.
        """
        saved, wanted = self._read_note(step)["layout"], _layout(like)
        for name in dict.fromkeys([*saved, *wanted]):
            there, here = saved.get(name, "missing"), wanted.get(name, "missing")
            if there != here:
                raise WorkdirError(
                    f"the checkpoint {self.path(step)} is of another configuration: "
                    f"{name} is {there} there and {here} here."
                )
        try:
            read: Any = self._manager.restore(
                step, args=ocp.args.Composite(shards=shards.Restore(like))
            )
        except ValueError as error:
            raise WorkdirError(f"{self.path(step)} is damaged: {error}") from None
        return read.shards


def _progress(note):
    """The progress in a note, in which JSON has made lists of tuples."""
    saved = note["progress"]
    return Progress(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()}
    )


def last_progress(workdir: str | os.PathLike) -> Progress | None:
    """The progress saved with the last checkpoint of a run.

    One process can read it by itself.

    Args:
      workdir: the directory of the run.

    Returns:
      The progress; None where there is no checkpoint.
    """
    path = pathlib.Path(workdir) / _CHECKPOINTS
    steps = [int(p.name) for p in path.glob("*") if p.name.isdecimal()]
    if not steps:
        return None
    note = json.loads((path / str(max(steps)) / "note" / "metadata").read_text())
    return _progress(note)


def read_generator(
    path: str | os.PathLike,
) -> tuple[int, dict[str, np.ndarray], dict[str, Any]]:
    """The averaged generator of a run, without its state.

    Args:
      path: the directory of a run, whose last checkpoint is read, or of one checkpoint,
        `RUN/checkpoints/STEP`.

    Returns:
      The step, the parameters by name ("Dense_0/kernel"), and the run's settings.

    Raises:
      WorkdirError: if there is no run or no checkpoint.
    """
    path = pathlib.Path(path).expanduser()
    run, step = path, None
    if path.parent.name == _CHECKPOINTS and path.name.isdecimal():
        run, step = path.parent.parent, int(path.name)
    if not (run / _CHECKPOINTS).is_dir():
        raise WorkdirError(
            f"{path} is neither the directory of a run nor a checkpoint of one "
            f"(RUN/{_CHECKPOINTS}/STEP)."
        )
    settings = directory.read_settings(run)
    with Checkpoints(run) as checkpoints:
        step = checkpoints.latest if step is None else step
        if step is None or not checkpoints.path(step).is_dir():
            raise WorkdirError(f"there is no checkpoint in {run / _CHECKPOINTS}.")
        leaves = checkpoints.named_summary(step)
    mine = "generator/"
    generator = {
        k.removeprefix(mine): v for k, v in leaves.items() if k.startswith(mine)
    }
    return step, generator, settings


def _layout(tree: Any) -> dict[str, str]:
    """Each leaf's place, dtype and shape, in words."""
    return {
        jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
