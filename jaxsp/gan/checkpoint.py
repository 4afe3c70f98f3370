"""What a run leaves in its directory so that it can go on: settings and checkpoints.

A run directory holds `config.json` (what the run is), `metrics.jsonl`, pictures, and
`checkpoints/STEP/`, written by Orbax under a temporary name and then renamed, so that a
checkpoint is there completely or not at all.
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxsp.gan import report

__all__ = ["Checkpoints", "WorkdirError", "check_directory", "write_config"]

_CONFIG = "config.json"
_CHECKPOINTS = "checkpoints"
# What a run writes. A directory that holds any of these belongs to a run.
_RUN_FILES = (_CONFIG, _CHECKPOINTS, "metrics.jsonl", "samples.png", "curves.png")


class WorkdirError(ValueError):
    """A directory that cannot be used: it holds another run, or is no directory."""


def check_directory(
    workdir: str | os.PathLike, settings: Mapping[str, Any], resume: bool
) -> bool:
    """Whether a run in `workdir` can go on; writes nothing.

    Args:
      workdir: the run directory, which need not exist yet.
      settings: what must be equal for a run to go on, with values that JSON can hold.
        Names that `workdir` does not know are not compared.
      resume: whether the caller wants to go on with what is there.

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
    try:
        saved = json.loads((workdir / _CONFIG).read_text())["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        raise WorkdirError(
            f"{workdir} holds {', '.join(found)} but no readable {_CONFIG}, so "
            "there is no telling which run this is: choose another directory."
        ) from None
    different = [
        f"{name} is {value!r} now and {saved[name]!r} there"
        for name, value in json.loads(json.dumps(dict(settings))).items()
        if name in saved and saved[name] != value
    ]
    if different:
        raise WorkdirError(
            f"{workdir} holds a run with another configuration: "
            f"{'; '.join(different)}. Resume it as it was, or choose another directory."
        )
    return True


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

    def save(self, step: int, state: Any, progress: Mapping[str, Any]) -> None:
        """Write a checkpoint and drop the oldest; returns when it is on disk.

        Args:
          step: the step that the state has reached. Where there is a checkpoint of
            this or a later step nothing is written.
          state: a pytree of arrays.
          progress: what else goes on from here, with values that JSON can hold.
        """
        note = {"progress": dict(progress), "layout": _layout(state)}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), note=ocp.args.JsonSave(note)
            ),
        )

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """Read a checkpoint.

        Args:
          step: which.
          like: a pytree of arrays of the same structure, shapes, dtypes and placement.

        Returns:
          The state, placed as `like` is, and the progress saved with it.

        Raises:
          WorkdirError: if the checkpoint holds a state of another layout.
        """
        read: Any = self._manager.restore(
            step, args=ocp.args.Composite(note=ocp.args.JsonRestore())
        )
        saved, wanted = read.note["layout"], _layout(like)
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
        return restored.state, dict(read.note["progress"])


def _layout(tree: Any) -> dict[str, str]:
    """Each leaf's place, dtype and shape, in words."""
    return {
        jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
