"""Files that are there completely or not at all."""

import contextlib
import os
import pathlib
import secrets
from collections.abc import Iterator

__all__ = ["replacing"]


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
      ValueError: if `path` exists and is not a regular file.
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
    target = pathlib.Path(path).resolve()
    if target.exists() and not target.is_file():
        kind = "a directory" if target.is_dir() else "no regular file"
        raise ValueError(f"path must name a file to write; {path} is {kind}.")
    if parents:
        target.parent.mkdir(parents=True, exist_ok=True)
    unique = f".{target.stem}.{os.getpid()}.{secrets.token_hex(4)}{target.suffix}"
    temporary = target.with_name(unique)
    try:
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not every system opens a directory
        descriptor = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # the new name, too, is on the disk
        finally:
            os.close(descriptor)
