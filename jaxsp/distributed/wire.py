"""JSON objects over a TCP connection, one a line."""

import json
import socket
import threading
from typing import Any

__all__ = ["Connection", "is_loopback", "listen", "split_address"]

_LONGEST = 1 << 24  # bytes of one message
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}


class Connection:
    """A socket on which JSON objects travel, one a line.

    Args:
      sock: a connected stream socket, which the connection owns from now on.
    """

    def __init__(self, sock: socket.socket):
        sock.settimeout(5.0)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self._lock = threading.Lock()
        self._rest = b""

    def fileno(self) -> int:
        """The file descriptor, so that a selector takes the connection."""
        return self._sock.fileno()

    def send(self, message: dict[str, Any]) -> None:
        """Send one object; any thread may.

        Raises:
          OSError: if the other end is gone.
        """
        with self._lock:
            self._sock.sendall(json.dumps(message).encode() + b"\n")

    def tell(self, message: dict[str, Any]) -> bool:
        """Send one object, and say whether the other end was there to be told."""
        try:
            self.send(message)
        except OSError:
            return False
        return True

    def receive(self, timeout: float = 5.0) -> list[dict[str, Any]]:
        """Wait for bytes and return the objects that they complete, maybe none.

        Raises:
          EOFError: if the other end has closed.
          OSError: if the connection broke, or nothing came within `timeout` seconds.
          ValueError: if what came is not lines of JSON objects.
        """
        self._sock.settimeout(timeout)
        data = self._sock.recv(1 << 16)
        self._sock.settimeout(5.0)
        if not data:
            raise EOFError
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LONGEST:
            raise ValueError("the message is too long")
        messages = [json.loads(line) for line in lines]
        if not all(isinstance(message, dict) for message in messages):
            raise ValueError("the message is no JSON object")
        return messages

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()


def split_address(address: str) -> tuple[str, int]:
    """`"host:port"` as host and port; an IPv6 host stands in brackets.

    Raises:
      ValueError: if it is not of that form.
    """
    host, colon, port = str(address).rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 65536):
        raise ValueError(
            f"coordinator must be host:port of process 0, for example "
            f"node1:12345, got {address!r}."
        )
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether only processes on the same machine reach this host."""
    return host in _LOOPBACK


def listen(host: str, port: int) -> socket.socket:
    """A listening socket: on loopback if that is the host, else on all interfaces.

    A host may have several addresses, and call itself by another than the others do.

    Raises:
      OSError: if the port is taken.
    """
    if is_loopback(host):
        family = socket.AF_INET6 if host == "::1" else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=4096)
    if socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", port), family=socket.AF_INET6, backlog=4096, dualstack_ipv6=True
        )
    return socket.create_server(("", port), backlog=4096)
