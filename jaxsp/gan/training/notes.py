"""What a checkpoint says of itself: the run's settings, its progress, its arrays.

It is the item `note` of a checkpoint, JSON with a checksum.
"""

import json
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

from jaxsp.gan.training.progress import Progress

__all__ = ["last_settings", "make", "progress", "read"]


def make(
    settings: Mapping[str, Any], progress: Progress, layout: Mapping[str, str]
) -> dict[str, Any]:
    """The note of a checkpoint, with its checksum.

    Args:
      settings: what must stay as it is when the run goes on, as JSON can hold it.
      progress: how far the run is.
      layout: the dtype and shape of each array, by its name.
    """
    note = {"settings": settings, "progress": progress._asdict(), "layout": layout}
    note = json.loads(json.dumps(note))  # as it is read
    return note | {"crc32": _checksum(note)}


def read(checkpoint: pathlib.Path) -> dict[str, Any]:
    """The note of a checkpoint.

    Raises:
      ValueError: if it is not what was written.
      OSError: if it cannot be read.
    """
    path = checkpoint / "note" / "metadata"
    try:
        note = json.loads(path.read_bytes())
        if note.pop("crc32") == _checksum(note):
            return note
    except (ValueError, KeyError, TypeError, AttributeError):
        pass  # no JSON, or no dictionary
    raise ValueError("the checksum of note/metadata is another")


def progress(note: Mapping[str, Any]) -> Progress:
    """The progress in a note."""
    saved = note["progress"]
    lists = {k: tuple(v) for k, v in saved.items() if isinstance(v, list)}
    return Progress(**{**saved, **lists})  # JSON has no tuples


def last_settings(checkpoints: pathlib.Path) -> dict[str, Any] | None:
    """The settings in the last note that can be read, if any holds them.

    Args:
      checkpoints: the directory of a run's checkpoints.
    """
    steps = sorted(
        int(path.name) for path in checkpoints.glob("*") if path.name.isdecimal()
    )
    for step in reversed(steps):
        try:
            note = read(checkpoints / str(step))
        except (OSError, ValueError):
            continue
        if note.get("settings"):
            return note["settings"]
    return None


def _checksum(note):
    return zlib.crc32(json.dumps(note, sort_keys=True).encode())
