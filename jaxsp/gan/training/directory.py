"""The directory of a run: whose it is, who uses it, whether all processes see it.

It holds `config.json` (what the run is), `metrics.jsonl`, pictures, and `checkpoints/`,
and `.lock`, a file on which the run that trains there holds the kernel's lock.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import logging
import os
import pathlib
import platform
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxsp import distributed
from jaxsp.gan.files import make_directory, replacing
from jaxsp.gan.training import notes

__all__ = [
    "CHECKPOINTS",
    "CONFIG",
    "METRICS",
    "WorkdirError",
    "check_directory",
    "check_run",
    "check_settings",
    "check_shared",
    "held",
    "is_of_run",
    "note_changes",
    "read_data_dir",
    "read_settings",
    "write_config",
    "written",
]

_log = logging.getLogger(__name__)

CONFIG = "config.json"
CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"
_LOCK = ".lock"
_PATIENCE = 5.0  # seconds
# What a file system says that has no locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
# What a run writes. A directory that holds any of these belongs to a run.
_RUN_FILES = (CONFIG, CHECKPOINTS, METRICS, "samples.png", "curves.png")


class WorkdirError(ValueError):
    """A directory that cannot be used: it is another run's, in use, or no directory."""


def check_directory(
    workdir: str | os.PathLike,
    settings: Mapping[str, Any],
    resume: bool,
    may_differ: Sequence[str] = (),
) -> bool:
    """Whether there is a run in `workdir`, which can then go on; writes nothing.

    Args:
      workdir: the run directory, which need not exist yet.
      settings: what must be equal for a run to go on, with values that JSON can hold.
        Names that `workdir` does not know are not compared.
      resume: whether the caller wants to go on with what is there.
      may_differ: names of settings that are not compared.

    Raises:
      WorkdirError: if a run trains there; as `check_run`; if `workdir` cannot be a
        directory.
    """
    workdir = pathlib.Path(workdir)
    _check_place(workdir)
    with contextlib.suppress(FileNotFoundError), (workdir / _LOCK).open() as file:
        _lock(file, fcntl.LOCK_SH)
    return check_run(workdir, settings, resume, may_differ)


def _check_place(workdir):
    existing = next((p for p in (workdir, *workdir.parents) if p.exists()), workdir)
    if not existing.is_dir():
        raise WorkdirError(f"{existing} is a file, not a directory.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise WorkdirError(f"no permission to write in {existing}.")


def check_run(
    workdir: pathlib.Path,
    settings: Mapping[str, Any],
    resume: bool,
    may_differ: Sequence[str] = (),
) -> bool:
    """As `check_directory`, of a directory that nobody else uses.

    Raises:
      WorkdirError: if there is a run and not `resume`; if the run there has other
        settings, or its files are not a run's.
    """
    found = [name for name in _RUN_FILES if (workdir / name).exists()]
    if not found:
        return False
    if not resume:
        raise WorkdirError(
            f"{workdir} holds another run ({', '.join(found)}), which is never "
            "overwritten: choose another directory, or go on with it by --resume (in "
            "Python: resume=True)."
        )
    saved = read_settings(workdir)
    fixed = {k: v for k, v in saved.items() if k not in may_differ}
    check_settings(workdir, settings, fixed)
    return True


@contextlib.contextmanager
def held(workdir: pathlib.Path) -> Iterator[None]:
    """Hold a directory, made where there is none, so that no other run uses it.

    The lock is the kernel's, and ends with the process, however that ends. Where the
    file system has none, a warning says so.

    Raises:
      WorkdirError: if another run holds it; the message says which. If it cannot be a
        directory.
    """
    _check_place(workdir)
    make_directory(workdir)
    with (workdir / _LOCK).open("a+") as file:
        _lock(file, fcntl.LOCK_EX)
        now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {platform.node()} since {now}")
        file.flush()
        yield


def _lock(file, kind):
    """Lock an open file until it is closed."""
    deadline = time.monotonic() + 1.0  # a look at whether it is free takes a moment
    while True:
        try:
            return fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            file.seek(0)
            raise WorkdirError(
                f"{pathlib.Path(file.name).parent} is in use by another run "
                f"({file.read() or 'which has just begun'}): wait until it has ended, "
                "or choose another directory."
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            _log.warning("%s: its file system has no locks (%s).", file.name, error)
            return None


def check_settings(
    workdir: str | os.PathLike, settings: Mapping[str, Any], saved: Mapping[str, Any]
) -> None:
    """Raise a WorkdirError if `settings` that were saved too are not what they were."""
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


def check_shared(workdir: pathlib.Path) -> None:
    """Raise a WorkdirError in all processes if not all see the same directory.

    All must call it. Process 0, for which it must exist, writes a file there and takes
    it away again.
    """
    if distributed.is_alone():
        return
    number = distributed.process_max([secrets.randbits(30)])[0]
    token = workdir / f".shared.{number}"
    with distributed.raise_together():
        if distributed.is_main():
            token.touch()
    deadline = time.monotonic() + _PATIENCE
    while not (seen := token.exists()) and time.monotonic() < deadline:
        time.sleep(0.1)  # a network file system may take its time
    mine, count = distributed.process_index(), distributed.process_count()
    blind = distributed.combine({mine: not seen}, count)
    if distributed.is_main():
        token.unlink(missing_ok=True)
    if blind.any():
        error = WorkdirError(
            f"{workdir.absolute()} must be a directory that all processes see, on a "
            f"shared file system: process {blind.argmax()} does not see there what "
            "process 0 writes. Choose another directory."
        )
        raise distributed.in_all(error)


def read_settings(workdir: pathlib.Path) -> dict[str, Any]:
    """The settings of a run.

    They are those of its last checkpoint, which have a checksum, or where none has any
    those in `config.json`.

    Raises:
      WorkdirError: if nothing tells them.
    """
    saved = notes.last_settings(workdir / CHECKPOINTS) or _config(workdir)
    if saved is None:
        raise WorkdirError(
            f"{workdir / CONFIG} cannot be read, and no checkpoint says which run this "
            "is: put back a copy of it, or choose another directory."
        )
    return saved


def _config(workdir, part="settings"):
    """A part of `config.json`, or None if it cannot be read."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return dict(json.loads((workdir / CONFIG).read_bytes())[part])
    return None


def note_changes(workdir: pathlib.Path, free: Mapping[str, Any]) -> None:
    """Say in one line which texts in `free`, of version and device, are others now."""
    before = _config(workdir, "free") or {}
    changed = [
        f"{name} {before[name]} -> {value}"
        for name, value in free.items()
        if isinstance(value, str) and before.get(name, value) != value
        if name != "data_dir"
    ]
    if changed:
        _log.warning(
            "%s goes on with %s: its numbers may differ from those of a run without a "
            "break, in rounding or more.",
            workdir,
            ", ".join(changed),
        )


def read_data_dir(workdir: pathlib.Path) -> str | None:
    """The directory that the data of a run were read from, if it is still there."""
    found = (_config(workdir, "free") or {}).get("data_dir")
    return found if isinstance(found, str) and os.path.isdir(found) else None


def is_of_run(path: pathlib.Path) -> bool:
    """Whether a run has written, or will write, the file at a resolved path."""
    own = (*_RUN_FILES, "partition.png", "samples_000000.png")
    for parent in path.parents:
        name = path.relative_to(parent).parts[0]
        mine = name in own or name.startswith((".", "damaged_"))
        if mine and (parent / CONFIG).exists():
            return True
    return False


def write_config(
    workdir: str | os.PathLike, settings: Mapping[str, Any], free: Mapping[str, Any]
) -> None:
    """Write `config.json`: what must stay when the run goes on, and what may change."""
    text = json.dumps({"settings": dict(settings), "free": dict(free)}, indent=2)
    workdir = pathlib.Path(workdir)
    if (workdir / CHECKPOINTS).exists() and _config(workdir) is None:
        _log.warning("%s cannot be read, and is written again.", workdir / CONFIG)
    with replacing(workdir / CONFIG) as path:
        path.write_text(text + "\n")


def written(workdir: str | os.PathLike) -> tuple[pathlib.Path, ...]:
    """What a run has written that is to be looked at."""
    found = sorted(pathlib.Path(workdir).iterdir())
    return tuple(path for path in found if not path.name.startswith("."))
