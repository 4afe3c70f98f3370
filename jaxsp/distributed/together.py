"""What processes must decide alike, or they wait for each other for ever.

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

from jaxsp.distributed.errors import DistributedError, in_all

__all__ = [
    "Signals",
    "anywhere",
    "check_same",
    "combine",
    "gather_text",
    "is_alone",
    "is_main",
    "process_count",
    "process_index",
    "process_max",
    "raise_together",
]

_LONGEST_MESSAGE = 2_000


def process_index() -> int:
    """The number of this process, from 0; JAX's devices are looked for if need be."""
    return jax.process_index()


def process_count() -> int:
    """How many processes there are; JAX's devices are looked for if need be."""
    return jax.process_count()


def is_main() -> bool:
    """Whether this is process 0, which writes what is written once."""
    return process_index() == 0


def is_alone() -> bool:
    """Whether this is the only process; does not look for JAX's devices if it is."""
    return not jax.distributed.is_initialized() or process_count() == 1


def process_max(values: Any) -> np.ndarray:
    """The elementwise maximum over all processes, every one of which must call this.

    Args:
      values: integers, a number or an array of the same shape in every process.

    Returns:
      The maximum as an int64 array, the same in every process.

    Raises:
      ValueError: if `values` are not integers.

    Example:
      >>> from jaxsp.distributed import process_max
      >>> process_max([3, 1])
      array([3, 1])
    """
    array = np.asarray(values)
    if array.dtype.kind not in "biu":
        raise ValueError(f"values must be integers, got {array.dtype}.")
    array = array.astype(np.int64)
    # As bytes, because JAX makes int32 of int64.
    rows = _gather(np.frombuffer(array.tobytes(), np.uint8))
    return rows.view(np.int64).reshape(-1, *array.shape).max(axis=0)


def gather_text(text: str) -> list[str]:
    """The text of every process, in their order."""
    data = text.encode()
    longest = int(process_max(len(data)))
    if longest == 0:
        return [""] * process_count()
    rows = _gather(np.frombuffer(data.ljust(longest, b"\0"), np.uint8))
    return [bytes(row).rstrip(b"\0").decode(errors="replace") for row in rows]


def _gather(data: np.ndarray) -> np.ndarray:
    """Every process's bytes, stacked."""
    if process_count() == 1:
        return data[np.newaxis]
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(data))


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
    said = isinstance(error, ValueError | OSError | RuntimeError)
    text = f"{'' if said else type(error).__name__ + ': '}{error}"
    texts = gather_text("" if error is None else f"!{text[:_LONGEST_MESSAGE]}")
    failed = [number for number, text in enumerate(texts) if text]
    if not failed:
        return
    if error is None:
        first = failed[0]
        error = DistributedError(f"process {first}: {texts[first][1:]}")
    raise in_all(error)


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
    """SIGINT, SIGTERM and SIGHUP, seen by all processes when they agree, not before.

    As a context manager it takes the signals, but for those that are ignored, as SIGHUP
    is under nohup; a second SIGINT interrupts the process that it reaches.
    """

    def __init__(self):
        self._caught: list[signal.Signals] = []
        self._alone = is_alone()
        self._agreed: signal.Signals | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        # Only the main thread may set handlers.
        if threading.current_thread() is threading.main_thread():
            numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            found = {n: signal.getsignal(n) for n in numbers}
            self._before = {n: old for n, old in found.items() if old != signal.SIG_IGN}
            for number in self._before:
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
