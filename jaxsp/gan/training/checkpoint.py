"""Checkpoints of a run, and going on from them.

`checkpoints/STEP/` in the run's directory is written by Orbax under a temporary name
and then renamed, so that a checkpoint is there completely or not at all; all of it is
on the disk before it has its name. Over many processes each writes the rows of its own
workers, and process 0 commits. What is read back has checksums; a checkpoint that is
damaged all the same is set aside, and the run goes on from the one before.
"""

import contextlib
import itertools
import logging
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxsp import distributed
from jaxsp.gan import files
from jaxsp.gan.program import Program
from jaxsp.gan.training import directory, notes, shards
from jaxsp.gan.training.directory import WorkdirError
from jaxsp.gan.training.progress import Progress

__all__ = ["Checkpoints", "WorkdirError", "open_run", "read_generator"]

_log = logging.getLogger(__name__)


class DamagedError(WorkdirError):
    """A checkpoint that is not what was written."""


@contextlib.contextmanager
def open_run(
    workdir: str | os.PathLike | None,
    settings: Mapping[str, Any],
    free: Mapping[str, Any],
    resume: bool,
    program: Program,
    key: jax.Array,
) -> Iterator[tuple["Checkpoints", Any, Progress, str | None]]:
    """Open the directory of a run, made where there is none, and find its beginning.

    All processes must call it.

    Args:
      workdir: the directory; of None comes a run of which nothing is saved.
      settings: what must stay as it is when the run goes on, with values that JSON can
        hold.
      free: what may change then; among it `steps`, the step to train to.
      resume: whether to go on with what is there.
      program: what is run.
      key: what the parameters are drawn from at step 0.

    Yields:
      The checkpoints; the state and the progress of step 0 or of the last checkpoint;
      and, where other workers go on than have written it, how many of each, in words.

    Raises:
      WorkdirError: as `check_directory`; if not all processes see the directory; if the
        run is further than `steps`, or of other data, or the checkpoint is damaged.
    """
    # If these are others than those of a checkpoint, its summary is begun from.
    workers = {name: settings[name] for name in ("workers", "data_crc32")}
    if workdir is None:
        yield Checkpoints(None), program.init(key), Progress(**workers), None
        return
    workdir, main = pathlib.Path(workdir), distributed.is_main()
    with contextlib.ExitStack() as stack:
        with distributed.raise_together():
            if main:
                stack.enter_context(directory.held(workdir))
                directory.check_run(workdir, settings, resume, tuple(workers))
        directory.check_shared(workdir)
        with distributed.raise_together():
            if main and not (workdir / directory.CONFIG).exists():
                # First of all: without it nobody could tell whose the rest is.
                directory.write_config(workdir, settings, free)
        checkpoints = stack.enter_context(Checkpoints(workdir, settings))
        state, progress, restarted = program.init(key), Progress(**workers), None
        step = checkpoints.whole(workdir)
        if step is not None:
            progress = checkpoints.progress(step)
            same_workers = progress.workers == workers["workers"]
            with distributed.raise_together():
                if step > free["steps"]:
                    raise WorkdirError(
                        f"steps must be at least {step}, which the run in {workdir} "
                        f"has reached, got {free['steps']}."
                    )
                if same_workers:
                    directory.check_settings(workdir, workers, progress._asdict())
            if same_workers:
                state = checkpoints.restore(step, state)
            else:
                summary = checkpoints.summary(step, program.summary(state))
                state = program.restart_from(summary, step)
                restarted = f"{progress.workers} -> {workers['workers']} workers"
                progress = progress._replace(bits_before=progress.bits, **workers)
        with distributed.raise_together():
            if main:
                directory.note_changes(workdir, free)
                directory.write_config(workdir, settings, free)
                if restarted:
                    note = f"{program.restart_note}; the data are divided anew."
                    _log.warning("step %d: %s; %s", step, restarted, note)
        yield checkpoints, state, progress, restarted


class _OnDisk(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """A temporary directory of Orbax that power loss does not take half of."""

    async def finalize(self):
        final = self.get_final()
        if final.parent.name != directory.CHECKPOINTS:  # an item, renamed before
            return await super().finalize()
        files.sync_tree(self.get())
        await super().finalize()  # writes a line or two of its own, and renames
        for path in (*final.iterdir(), final, final.parent):
            files.sync(path)


class Checkpoints(contextlib.AbstractContextManager):
    """The checkpoints of one run: the last two, each whole; none without `workdir`.

    Over many processes all must make it, and call its methods, alike. Each checkpoint
    holds the `settings` of the run.
    """

    def __init__(
        self, workdir: str | os.PathLike | None, settings: Mapping[str, Any] = {}
    ):
        self._manager: Any = None
        self._settings = settings
        if workdir is not None:
            self._directory = pathlib.Path(workdir).resolve() / directory.CHECKPOINTS
            options = ocp.CheckpointManagerOptions(
                max_to_keep=2,
                enable_async_checkpointing=False,
                temporary_path_class=_OnDisk,
            )
            self._manager = ocp.CheckpointManager(self._directory, options=options)

    def __exit__(self, *exception) -> None:
        self._manager.close()

    @property
    def latest(self) -> int | None:
        """The step of the last checkpoint, or None."""
        return None if self._manager is None else self._manager.latest_step()

    def lacks(self, step: int) -> bool:
        """Whether there should be a checkpoint of `step` and is none."""
        return self._manager is not None and self.latest != step

    def path(self, step: int) -> pathlib.Path:
        """Where the checkpoint of `step` lies."""
        return self._directory / str(step)

    def save(self, state: Any, summary: Any, progress: Progress) -> None:
        """Write a checkpoint and drop the oldest; returns when it is on disk.

        The state is a pytree of arrays, wherever they are; its `program.Summary` can be
        read without knowing it. Nothing is written where there is a checkpoint of this
        or a later step.
        """
        with distributed.raise_together():  # within Orbax the others would wait
            here = self._directory
            if not (here.is_dir() and os.access(here, os.W_OK | os.X_OK)):
                raise WorkdirError(f"{here} is no directory that can be written in.")
        note = notes.make(self._settings, progress, _layout(state))
        self._manager.save(
            progress.step,
            args=ocp.args.Composite(
                shards=shards.Save(state),
                summary=shards.Save(summary),
                note=ocp.args.JsonSave(note),
            ),
        )

    def _read(self, step, **items):
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
            raise _damaged(self.path(step), error) from None

    def _note(self, step):
        try:
            return notes.read(self.path(step))
        except (OSError, ValueError) as error:
            raise _damaged(self.path(step), error) from None

    def whole(self, workdir: pathlib.Path) -> int | None:
        """The step of the last checkpoint that is whole, or None where there is none.

        Those after it, which are damaged, are moved to `damaged_STEP` in `workdir`. All
        processes must call it.

        Raises:
          DamagedError: if the only checkpoint is damaged.
        """
        while True:
            step = self.latest
            distributed.check_same("train", {f"the last checkpoint in {workdir}": step})
            if step is None:
                return None
            with distributed.raise_together():
                error = None
                if distributed.is_main():
                    error = self._damage(step)
                    if error and len(self._manager.all_steps()) == 1:
                        raise DamagedError(
                            f"{error}. It is the only checkpoint: put back a copy, or "
                            "move it away to start at step 0."
                        )
                if error:
                    aside = _free(workdir / f"damaged_{step}")
                    self.path(step).rename(aside)
                    _log.warning("%s. It is now %s, and goes unused.", error, aside)
            if not distributed.anywhere(error is not None):
                return step
            self._manager.reload()

    def _damage(self, step):
        """What is wrong with a checkpoint, of which this process alone reads all."""
        path = self.path(step)
        try:
            note = notes.read(path)
            if notes.progress(note).step != step:
                raise ValueError("it is the checkpoint of another step")
            state, _ = (shards.read(path / item) for item in ("shards", "summary"))
            if missing := sorted(set(note["layout"]) - set(state)):
                raise ValueError(f"{', '.join(missing)} is missing")
        except PermissionError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            return _damaged(path, error)
        return None

    def progress(self, step: int) -> Progress:
        """The progress saved with a checkpoint."""
        return notes.progress(self._note(step))

    def summary(self, step: int, like: Any = None) -> Any:
        """The summary saved with a checkpoint, of NumPy arrays.

        It has the structure of `like`, but not its shapes; without it, arrays by name.

        Raises:
          WorkdirError: if the checkpoint is damaged, or holds a summary of another
            structure.
        """
        saved = self._read(step, summary=shards.Restore()).summary
        if like is None:
            return saved
        wanted = _named(like)
        names = (dict.fromkeys(tree, "present") for tree in (saved, wanted))
        self._check_same(step, *names)
        return jax.tree.unflatten(jax.tree.structure(like), map(saved.get, wanted))

    def restore(self, step: int, like: Any) -> Any:
        """The state saved with a checkpoint, placed as the arrays of `like` are.

        Raises:
          WorkdirError: if the checkpoint is damaged, or its state is not of the
            structure, shapes and dtypes of `like`.
        """
        self._check_same(step, self._note(step)["layout"], _layout(like))
        return self._read(step, shards=shards.Restore(like)).shards

    def _check_same(self, step, saved, wanted):
        for name in dict.fromkeys([*saved, *wanted]):
            there, here = saved.get(name, "missing"), wanted.get(name, "missing")
            if there != here:
                raise WorkdirError(
                    f"the checkpoint {self.path(step)} is of another configuration: "
                    f"{name} is {there} there and {here} here."
                )


def _named(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by name, as "params/x/Dense_0/kernel"."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _free(path):
    """The path, or where there is something the first of path_2, path_3, ..."""
    others = (path.with_name(f"{path.name}_{i}") for i in itertools.count(2))
    return next(p for p in itertools.chain([path], others) if not p.exists())


def _damaged(path, error):
    return DamagedError(f"{path} is damaged: {' '.join(str(error).split())[:300]}")


def _layout(tree):
    return {name: f"{x.dtype}{list(x.shape)}" for name, x in _named(tree).items()}


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
      ValueError: if `path` is the address of a store.
    """
    path = files.local_path("path", path)
    run, step = path, None
    if path.parent.name == directory.CHECKPOINTS and path.name.isdecimal():
        run, step = path.parents[1], int(path.name)
    if not (run / directory.CHECKPOINTS).is_dir():
        raise WorkdirError(
            f"{path} is neither the directory of a run nor a checkpoint of one "
            f"(RUN/{directory.CHECKPOINTS}/STEP)."
        )
    settings = directory.read_settings(run)
    with Checkpoints(run) as checkpoints:
        step = checkpoints.latest if step is None else step
        if step is None or not checkpoints.path(step).is_dir():
            raise WorkdirError(
                f"there is no checkpoint in {run / directory.CHECKPOINTS}."
            )
        leaves = checkpoints.summary(step).items()
    mine = "generator/"
    generator = {k.removeprefix(mine): v for k, v in leaves if k.startswith(mine)}
    return step, generator, settings
