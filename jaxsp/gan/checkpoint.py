"""What a run leaves in its directory so that it can go on: settings and checkpoints.

A run directory holds `config.json` (what the run is), `metrics.jsonl`, pictures, and
`checkpoints/STEP/`, written by Orbax under a temporary name and then renamed, so that a
checkpoint is there completely or not at all.
"""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxsp.gan import report
from jaxsp.gan.program import named_leaves, with_named_leaves

__all__ = [
    "Checkpoints",
    "WorkdirError",
    "check_directory",
    "check_equal",
    "read_generator",
    "write_config",
]

_CONFIG = "config.json"
_CHECKPOINTS = "checkpoints"
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


def check_equal(
    name: str, saved: Any, settings: Mapping[str, Any], workdir: str | os.PathLike
) -> None:
    """Raise a WorkdirError if a setting is not what a checkpoint was made with."""
    if saved != settings[name]:
        raise WorkdirError(
            f"{workdir} holds a run with another configuration: "
            f"{_difference(name, settings[name], {name: saved})}. Resume it as it was, "
            "or choose another directory."
        )


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
    with report.replacing(pathlib.Path(workdir) / _CONFIG) as path:
        path.write_text(text + "\n")


class Checkpoints:
    """The checkpoints of one run: the last few, each whole.

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
          state: a pytree of arrays.
          summary: a `program.Summary`, which can be read without knowing the state.
          progress: what else goes on from here, with values that JSON can hold.
        """
        note = {"progress": dict(progress), "layout": _layout(state)}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
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
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        restored: Any = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(shapes))
        )
        return restored.state


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
