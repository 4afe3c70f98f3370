"""What a run leaves in its directory so that it can go on: settings and checkpoints.

A run directory holds `config.json` (what the run is), `metrics.jsonl`, pictures, and
`checkpoints/STEP/`, written by Orbax under a temporary name and then renamed, so that a
checkpoint is there completely or not at all. Over many processes each writes the rows
of its own workers and process 0 commits; the directory must be one that all see.
"""

import json
import os
import pathlib
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

from jaxsp import distributed
from jaxsp.gan.training import plots, shards
from jaxsp.gan.training.program import named_leaves, with_named_leaves

__all__ = [
    "Checkpoints",
    "WorkdirError",
    "check_directory",
    "check_equal",
    "check_shared",
    "last_progress",
    "read_generator",
    "write_config",
]

_CONFIG = "config.json"
_CHECKPOINTS = "checkpoints"
_PATIENCE = 5.0  # seconds
# What a run writes. A directory that holds any of these belongs to a run.
_RUN_FILES = (_CONFIG, _CHECKPOINTS, "metrics.jsonl", "samples.png", "curves.png")


class WorkdirError(ValueError):
    """A directory that cannot be used: it holds another run, or is no directory."""


def check_directory(
    workdir: str | os.PathLike,
    settings: Mapping[str, Any],
    resume: bool,
    may_differ: Sequence[str] = (),
) -> bool:
    """Whether a run in `workdir` can go on; writes nothing.

    Args:
      workdir: the run directory, which need not exist yet.
      settings: what must be equal for a run to go on, with values that JSON can hold.
        Names that `workdir` does not know are not compared.
      resume: whether the caller wants to go on with what is there.
      may_differ: names of settings that are not compared.

    Returns:
      True if there is a run and `resume`; False if there is none.

    Raises:
      WorkdirError: if there is a run and not `resume`; if the run there has other
        settings, or its files are not a run's; if `workdir` cannot be a directory.
    """
    workdir = pathlib.Path(workdir)
    existing = next((p for p in (workdir, *workdir.parents) if p.exists()), workdir)
    if not existing.is_dir():
        raise WorkdirError(f"{existing} is a file, not a directory.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise WorkdirError(f"no permission to write in {existing}.")
    found = [name for name in _RUN_FILES if (workdir / name).exists()]
    if not found:
        return False
    if not resume:
        raise WorkdirError(
            f"{workdir} holds another run ({', '.join(found)}), which is never "
            "overwritten: choose another directory, or go on with it by --resume (in "
            "Python: resume=True)."
        )
    saved = _read_settings(workdir)
    different = [
        _difference(name, value, saved)
        for name, value in json.loads(json.dumps(dict(settings))).items()
        if name in saved and saved[name] != value and name not in may_differ
    ]
    if different:
        raise WorkdirError(
            f"{workdir} holds a run with another configuration: "
            f"{'; '.join(different)}. Resume it as it was, or choose another directory."
        )
    return True


def check_equal(name: str, saved: Any, now: Any, workdir: str | os.PathLike) -> None:
    """Raise a WorkdirError if a value is not what a checkpoint was made with."""
    if saved != now:
        raise WorkdirError(
            f"{workdir} holds a run with another configuration: "
            f"{_difference(name, now, {name: saved})}. Resume it as it was, or choose "
            "another directory."
        )


def check_shared(workdir: str | os.PathLike) -> None:
    """Raise a WorkdirError in all processes if not all see the same directory.

    All must call it. Process 0 writes a file and takes it away again.

    Args:
      workdir: the run directory, which exists where process 0 runs.
    """
    if distributed.is_alone():
        return
    main, number = distributed.is_main(), secrets.randbits(30)
    number = int(distributed.process_max([number if main else 0])[0])
    token = pathlib.Path(workdir) / f".shared.{number}"
    with distributed.raise_together():
        if main:
            token.touch()
    deadline = time.monotonic() + _PATIENCE
    while not (seen := token.exists()) and time.monotonic() < deadline:
        time.sleep(0.1)  # a network file system may take its time
    blind = distributed.process_count() - distributed.process_index()
    found = int(distributed.process_max([0 if seen else blind])[0])
    if main:
        token.unlink(missing_ok=True)
    if found:
        error = WorkdirError(
            f"{pathlib.Path(workdir).absolute()} must be a directory that all "
            "processes see, on a shared file system: process "
            f"{distributed.process_count() - found} does not see there what process 0 "
            "writes. Choose another directory."
        )
        raise distributed.in_all(error)


def _difference(name, value, saved):
    return f"{name} is {value!r} now and {saved[name]!r} there"


def _read_settings(workdir):
    try:
        return dict(json.loads((workdir / _CONFIG).read_text())["settings"])
    except (OSError, ValueError, KeyError, TypeError):
        found = ", ".join(name for name in _RUN_FILES if (workdir / name).exists())
        raise WorkdirError(
            f"{workdir} holds {found or 'nothing'} but no readable {_CONFIG}, so "
            "there is no telling which run this is: choose another directory."
        ) from None


def write_config(
    workdir: str | os.PathLike, settings: Mapping[str, Any], free: Mapping[str, Any]
) -> None:
    """Write `config.json`, all at once.

    Args:
      workdir: the run directory, which exists.
      settings: what must stay as it is when the run is resumed.
      free: what may change then, for the record.
    """
    text = json.dumps({"settings": dict(settings), "free": dict(free)}, indent=2)
    with plots.replacing(pathlib.Path(workdir) / _CONFIG) as path:
        path.write_text(text + "\n")


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

    def save(
        self, step: int, state: Any, summary: Any, progress: Mapping[str, Any]
    ) -> None:
        """Write a checkpoint and drop the oldest; returns when it is on disk.

        Args:
          step: the step that the state has reached. Where there is a checkpoint of
            this or a later step nothing is written.
          state: a pytree of arrays, wherever they are.
          summary: a `program.Summary`, which can be read without knowing the state;
            that of process 0 is written.
          progress: what else goes on from here, with values that JSON can hold;
            likewise.
        """
        note = {"progress": dict(progress), "layout": _layout(state)}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                shards=shards.Save(state),
                summary=ocp.args.StandardSave(named_leaves(summary)),
                note=ocp.args.JsonSave(note),
            ),
        )

    def note(self, step: int) -> dict[str, Any]:
        """The progress saved with a checkpoint."""
        return dict(self._read_note(step)["progress"])

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
        if not (self.path(step) / "summary").is_dir():
            raise WorkdirError(
                f"the checkpoint {self.path(step)} has no summary: it was written by "
                "another version, which can resume it and nothing else."
            )
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
        if not (self.path(step) / "shards").is_dir():
            return self._restore_standard(step, like)
        try:
            read: Any = self._manager.restore(
                step, args=ocp.args.Composite(shards=shards.Restore(like))
            )
        except ValueError as error:
            raise WorkdirError(f"{self.path(step)} is damaged: {error}") from None
        return read.shards

    def _restore_standard(self, step, like):
        """A state that an earlier version wrote, whole on the host of each process."""
        whole = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=SingleDeviceSharding(jax.local_devices()[0])
            ),
            like,
        )
        read: Any = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(whole))
        )
        return jax.tree.map(shards.place, read.state, like)


def last_progress(workdir: str | os.PathLike) -> tuple[int, dict[str, Any]] | None:
    """The step of the last checkpoint of a run, and what `Checkpoints.note` says of it.

    One process can read it by itself.

    Args:
      workdir: the directory of the run.

    Returns:
      The step and the progress; None where there is no checkpoint.
    """
    directory = pathlib.Path(workdir) / _CHECKPOINTS
    steps = [int(p.name) for p in directory.glob("*") if p.name.isdecimal()]
    if not steps:
        return None
    note = json.loads((directory / str(max(steps)) / "note" / "metadata").read_text())
    return max(steps), dict(note["progress"])


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
    settings = _read_settings(run)
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
