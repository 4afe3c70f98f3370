"""What many processes must decide alike, or they wait for each other for ever.

All processes run one program, and what one of them sees by itself must not change the
order in which they talk: the time that steps take, a signal, a full disk. Everything
here is for all processes together, called in the same order, and costs nothing where
there is one.
"""

import contextlib
import signal
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxsp.distributed.collective import process_count, process_index, process_max
from jaxsp.distributed.rendezvous import DistributedError

__all__ = [
    "Signals",
    "anywhere",
    "check_same",
    "combine",
    "in_all",
    "is_alone",
    "raise_together",
    "raised_in_all",
]

_LONGEST_MESSAGE = 2_000  # bytes
_MARK = "_jaxsp_raised_in_all_processes"


def is_alone() -> bool:
    """Whether this is the only process; does not look for JAX's devices if it is."""
    return not jax.distributed.is_initialized() or process_count() == 1


@contextlib.contextmanager
def raise_together() -> Iterator[None]:
    """What raises in one process raises in all.

    The block must not call what all processes do together. Where it raised the error is
    the same as ever, elsewhere it is a `DistributedError` that says what.
    """
    if is_alone():
        yield
        return
    error = None
    try:
        yield
    except Exception as raised:
        error = raised
    mine, count = process_index(), process_count()
    failed = count - int(process_max([0 if error is None else count - mine])[0])
    if failed == count:
        return
    message = np.zeros(_LONGEST_MESSAGE, np.uint8)
    if failed == mine:
        said = isinstance(error, ValueError | OSError | RuntimeError)
        text = f"{'' if said else type(error).__name__ + ': '}{error}"
        text = text.encode()[:_LONGEST_MESSAGE]
        message[: len(text)] = np.frombuffer(text, np.uint8)
    text = bytes(process_max(message).astype(np.uint8)).rstrip(b"\0")
    if error is None:
        said = text.decode(errors="replace")
        error = DistributedError(f"process {failed}: {said}")
    raise in_all(error)


def in_all(error: Exception) -> Exception:
    """The error, marked as one that all processes raise."""
    setattr(error, _MARK, True)
    return error


def raised_in_all(error: BaseException | None) -> bool:
    """Whether an error, or one that it was made of, was raised in all processes."""
    while error is not None:
        if getattr(error, _MARK, False):
            return True
        error = error.__cause__ or error.__context__
    return False


def anywhere(fact: bool) -> bool:
    """Whether it is so in any process."""
    return bool(process_max([int(fact)])[0])


def combine(values: Mapping[int, int], size: int) -> np.ndarray:
    """A vector of which each process knows some entries.

    Args:
      values: entries of at least 0 that this process knows, by position.
      size: the length of the vector.

    Returns:
      The vector, int64, in all processes; where nobody knows an entry, 0.
    """
    vector = np.zeros(size, np.int64)
    for position, value in values.items():
        vector[position] = value
    return process_max(vector)


def check_same(what: str, values: Mapping[str, Any]) -> None:
    """Raise a ValueError in all processes if not all have the same values.

    Args:
      what: the function that is called, for the message.
      values: by name what must be equal: arrays, or what `repr` tells apart.
    """
    if is_alone():
        return
    sums = np.array([_crc32(value) for value in values.values()], np.int64)
    differ = process_max(sums) != -process_max(-sums)
    if differ.any():
        names = [name for name, is_bad in zip(values, differ, strict=True) if is_bad]
        raise in_all(
            ValueError(
                f"{what} must be called with the same arguments in all processes, and "
                f"{', '.join(names)} is not the same."
            )
        )


def _crc32(value):
    crc = 0
    for leaf in jax.tree.leaves(value):
        if isinstance(leaf, np.ndarray):
            crc = zlib.crc32(np.ascontiguousarray(leaf).data, crc)
        crc = zlib.crc32(repr(getattr(leaf, "shape", leaf)).encode(), crc)
    return crc


class Signals:
    """SIGINT and SIGTERM, seen by all processes when they agree, and not before.

    As a context manager it takes the signals; a second SIGINT interrupts the process
    that it reaches.
    """

    def __init__(self):
        self._caught: list[signal.Signals] = []
        self._alone = is_alone()
        self._agreed: signal.Signals | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        # Only the main thread may set handlers.
        if threading.current_thread() is threading.main_thread():
            numbers = (signal.SIGINT, signal.SIGTERM)
            self._before = {n: signal.getsignal(n) for n in numbers}
            for number in numbers:
                signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception) -> None:
        for number, old in self._before.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)

    def _handle(self, number, frame):
        if self._caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._caught.append(signal.Signals(number))

    @property
    def seen(self) -> signal.Signals | None:
        """The signal that ends the run: in many processes the one agreed on."""
        if self._alone:
            return self._caught[0] if self._caught else None
        return self._agreed

    def agree(self, least: Sequence[int]) -> list[int]:
        """Tell each other of signals, and find the smallest of some numbers.

        Args:
          least: numbers of this process.

        Returns:
          For each the smallest of all processes.
        """
        mine = int(self._caught[0]) if self._caught else 0
        number, *negative = process_max([mine, *(-n for n in least)]).tolist()
        if number:
            self._agreed = signal.Signals(number)
        return [-n for n in negative]
