"""Files that are there completely or not at all, and are on the disk."""

import contextlib
import os
import pathlib
import re
import secrets
from collections.abc import Iterator

__all__ = ["local_path", "make_directory", "replacing", "sync", "sync_tree"]


@contextlib.contextmanager
def replacing(
    path: str | os.PathLike, *, parents: bool = False
) -> Iterator[pathlib.Path]:
    """A temporary path that takes the place of `path` once the block has succeeded.

    The new content is on the disk before it gets its name, so that a reader, another
    process that writes the same file, or a machine that loses power meets the old
    content or the new one. A symbolic link stays, and what it points to is replaced.

    Args:
      path: the file to write.
      parents: whether to make its directory.

    Yields:
      The path to write to, in the same directory and with the same suffix. If the block
      raises an error it is removed, and `path` stays as it was.

    Raises:
      ValueError: if `path` exists and is not a regular file, or is as `local_path`
        refuses it.
      OSError: if it cannot be written.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     file = pathlib.Path(directory, "result.json")
      ...     with replacing(file) as temporary:
      ...         _ = temporary.write_text("{}")
      ...     file.read_text()
      '{}'
    """
    target = local_path("path", path).resolve()
    if target.exists() and not target.is_file():
        kind = "a directory" if target.is_dir() else "no regular file"
        raise ValueError(f"path must name a file to write; {path} is {kind}.")
    if parents:
        make_directory(target.parent)
    unique = f".{target.stem}.{os.getpid()}.{secrets.token_hex(4)}{target.suffix}"
    temporary = target.with_name(unique)
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    sync(target.parent)  # the new name, too, is on the disk


def local_path(name: str, path: str | os.PathLike) -> pathlib.Path:
    """A path in the file systems of this machine, with `~` written out.

    Args:
      name: what the caller calls it, for the message.
      path: what the user gave.

    Raises:
      ValueError: if it is empty, or the address of a store: nothing here could lock
        files there, or replace one at once.

    Example:
      >>> local_path("workdir", "runs/first").name
      'first'
    """
    text = os.fspath(path)
    if not text:
        raise ValueError(f"{name} must be a path, got an empty text.")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):
        raise ValueError(
            f"{name} must be a path on this machine, got {text!r}: mount the store (a "
            "bucket by gcsfuse, for example), and give the directory where it is."
        )
    return pathlib.Path(path).expanduser()


def sync(path: str | os.PathLike) -> None:
    """Return when a file, or the names in a directory, are on the disk."""
    if not os.path.isdir(path):
        with open(path, "r+b") as file:
            os.fsync(file.fileno())
        return
    with contextlib.suppress(OSError):  # not every system opens a directory
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_tree(directory: str | os.PathLike) -> None:
    """Return when a directory is on the disk with all that it holds."""
    for path, _, names in os.walk(directory, topdown=False):
        for name in names:
            sync(os.path.join(path, name))
        sync(path)


def make_directory(directory: str | os.PathLike) -> None:
    """Make a directory and its parents where there are none, with their names."""
    directory = pathlib.Path(directory).absolute()
    new = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    for path in reversed(new):
        sync(path.parent)
