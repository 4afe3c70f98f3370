"""While a run goes on: who is alive, who has finished, who is lost.

Every process keeps its connection to process 0, which tells the others when one of them
is lost. A process that dies closes its connection, which is noticed at once; one whose
machine vanishes falls silent.
"""

import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxsp.distributed.compare import Hello
from jaxsp.distributed.wire import Connection

__all__ = ["Loss", "Watch"]


class Loss(NamedTuple):
    """A process that is no more, and what is known of its end."""

    process_id: int
    host: str
    pid: int
    how: str

    def __str__(self) -> str:
        return f"process {self.process_id} (pid {self.pid} on {self.host}) {self.how}"


class Watch:
    """A thread that knows when another process ends.

    Args:
      process_id: which process this is.
      connections: to every other process on process 0, to process 0 on the others.
      members: what each process said of itself.
      on_loss: called once, in the thread, when a process is lost.
      beat: seconds between signs of life.
      lost_after: seconds of silence after which a process counts as lost.

    Attributes:
      lost: the first loss, or None.
      noticed: set with `lost`.
      ended: set when all processes have said goodbye.
    """

    def __init__(
        self,
        process_id: int,
        connections: Mapping[int, Connection],
        members: Mapping[int, Hello],
        on_loss: Callable[[Loss], Any],
        *,
        beat: float = 1.0,
        lost_after: float = 10.0,
    ):
        self.lost: Loss | None = None
        self.noticed = threading.Event()
        self.ended = threading.Event()
        self._process_id = process_id
        self._connections = dict(connections)
        self._members = dict(members)
        self._on_loss = on_loss
        self._beat = beat
        self._lost_after = lost_after
        self._finished: set[int] = set()  # who has said goodbye
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._loop, name="jaxsp-watch")
        self._thread.daemon = True

    def start(self) -> None:
        """Start to watch."""
        self._thread.start()

    def fail(self, how: str) -> None:
        """Tell the others that this process ends with an error."""
        if self._process_id:
            self._connections[0].tell({"failed": how})
            return
        own = self._members[0]
        self._tell_all({"lost": Loss(0, own.host, own.pid, how)._asdict()})

    def goodbye(self) -> None:
        """Tell the others that this process has finished; `ended` is set when all have.

        It goes on watching until then.
        """
        if self._process_id:
            self._connections[0].tell({"goodbye": True})
        else:
            self._finished.add(0)
            self._wake.send(b"x")

    def close(self) -> None:
        """Close all connections, when the thread has ended or in a forked child."""
        for connection in self._connections.values():
            connection.close()
        self._wake.close()
        self._woken.close()

    def join(self, timeout: float | None = None) -> None:
        """Wait for the thread to end, which it does after `ended` or a loss."""
        self._thread.join(timeout)

    def _loop(self) -> None:
        now = time.monotonic()
        heard = dict.fromkeys(self._connections, now)
        last_beat = last_turn = now
        with selectors.DefaultSelector() as selector:
            for number, connection in self._connections.items():
                selector.register(connection, selectors.EVENT_READ, number)
            selector.register(self._woken, selectors.EVENT_READ)
            while self.lost is None and not self.ended.is_set():
                for key, _ in selector.select(self._beat / 2):
                    if key.data is None:
                        self._woken.recv(64)
                    else:
                        heard[key.data] = time.monotonic()
                        self._read(key.data)
                now = time.monotonic()
                if now - last_turn > 3 * self._beat:
                    # This process itself was held up: nobody else is to blame.
                    heard = dict.fromkeys(heard, now)
                last_turn = now
                if now - last_beat >= self._beat:
                    last_beat = now
                    self._tell_all({"beat": True})
                for number, when in heard.items():
                    if now - when > self._lost_after:
                        self._lose(
                            number, f"gave no sign of life for {self._lost_after:g} s"
                        )
                everybody = {self._process_id, *self._connections}
                if not self._process_id and self._finished >= everybody:
                    self._tell_all({"end": True})
                    self.ended.set()

    def _read(self, number: int) -> None:
        try:
            messages = self._connections[number].receive()
        except (EOFError, OSError, ValueError):
            self._lose(number, "ended unexpectedly")
            return
        for message in messages:
            if "failed" in message:
                self._lose(number, message["failed"])
            elif "lost" in message:
                self._notice(Loss(**message["lost"]))
            elif "goodbye" in message:
                self._finished.add(number)
            elif "end" in message:
                self.ended.set()

    def _lose(self, number: int, how: str) -> None:
        member = self._members[number]
        self._notice(Loss(number, member.host, member.pid, how))

    def _notice(self, loss: Loss) -> None:
        if self.lost is not None or self.ended.is_set():
            return
        if not self._process_id:
            self._tell_all({"lost": loss._asdict()})
        self.lost = loss
        self.noticed.set()
        self._on_loss(loss)

    def _tell_all(self, message: dict[str, Any]) -> None:
        for connection in self._connections.values():
            connection.tell(message)
