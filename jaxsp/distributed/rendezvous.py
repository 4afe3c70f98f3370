"""The meeting of all processes before the run: who is there, and do they agree.

Process 0 listens, the others connect and say what they were started with. Process 0
compares, and tells everybody to go on, or in one line what is wrong.
"""

import contextlib
import json
import os
import platform
import selectors
import socket
import time
import uuid
from typing import Any, NamedTuple, NoReturn

import jax
import jaxlib.version

from jaxsp.distributed.compare import Hello, disagreement
from jaxsp.distributed.wire import Connection, is_loopback, listen, split_address

__all__ = ["DistributedError", "Meeting", "meet", "versions"]

_SETTLE = 3.0  # seconds in which the others may still come when something is wrong
_BEAT = 1.0  # seconds between signs of life to those who wait
_SILENCE = 10.0  # seconds without one after which process 0 is given up


class DistributedError(RuntimeError):
    """The processes of a run could not be brought together; one line says why."""


class Meeting(NamedTuple):
    """What a process knows when all have met.

    Attributes:
      connections: to every other process on process 0, to process 0 on the others.
      members: what each process said of itself.
      port: where process 0 runs JAX's own coordination service.
      listener: on process 0 the socket at which it was found, else None.
    """

    connections: dict[int, Connection]
    members: dict[int, Hello]
    port: int
    listener: socket.socket | None

    def turn_away(self) -> None:
        """On process 0, tell whoever comes later that nobody is missing."""
        assert self.listener is not None
        while True:
            try:
                connection = Connection(self.listener.accept()[0])
            except OSError:
                return  # the run is over
            try:
                late = Hello(**connection.receive()[0])
                twin = self.members.get(late.process_id, self.members[0])
                connection.tell(
                    {
                        "error": f"{late} comes too late: all {twin.num_processes} "
                        f"processes of this run have met, {twin} among them. End "
                        "that run first, or choose another port."
                    }
                )
            except (EOFError, OSError, ValueError, TypeError, IndexError):
                pass
            connection.close()


def versions() -> dict[str, str]:
    """What must be the same in all processes: Python to its minor version, packages."""
    import jaxsp

    return {
        "Python": ".".join(platform.python_version_tuple()[:2]),
        "jax": jax.__version__,
        "jaxlib": jaxlib.version.__version__,
        "jaxsp": jaxsp.__version__,
    }


def meet(
    coordinator: str,
    num_processes: int,
    process_id: int,
    configuration: Any = None,
    timeout: float = 60.0,
) -> Meeting:
    """Wait until all processes are there, and compare what they were started with.

    Args:
      coordinator: `"host:port"` at which process 0 listens and the others find it.
      num_processes: how many processes there are.
      process_id: which of them this one is, from 0.
      configuration: what must be the same in all of them, as JSON can hold it.
      timeout: seconds to wait for the others.

    Returns:
      The meeting, with its connections open.

    Raises:
      DistributedError: in every process with the same line, if some process is missing
        or started otherwise than process 0; or if process 0 cannot be reached.
      ValueError: if `coordinator` is not host:port, or `configuration` not JSON.
    """
    host, port = split_address(coordinator)
    try:
        text = json.dumps(configuration, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"configuration must be what JSON can hold (dicts, lists, strings, "
            f"numbers), got {type(configuration).__name__}: {error}."
        ) from None
    hello = Hello(
        process_id,
        num_processes,
        socket.gethostname(),
        os.getpid(),
        versions(),
        text,
        uuid.uuid4().hex,
    )
    deadline = time.monotonic() + timeout
    if process_id:
        return _join(host, port, hello, deadline, timeout)
    try:
        listener = listen(host, port)
    except OSError as error:
        # Perhaps another process with this id: if so, it tells everybody.
        soon = min(deadline, time.monotonic() + 2 * _SETTLE)
        with contextlib.suppress(_NobodyError):
            _join(host, port, hello, soon, timeout)
        raise DistributedError(
            f"process 0 cannot listen at {coordinator}: {_reason(error)}. Choose "
            "another port, or end what uses this one."
        ) from None
    try:
        return _gather(listener, host, hello, deadline, timeout)
    except BaseException:
        listener.close()
        raise


class _NobodyError(DistributedError):
    """Nobody who speaks this protocol was found at the address."""


def _reason(error: OSError) -> str:
    if error.errno and error.errno > 0:  # which a name that is not found has not
        return os.strerror(error.errno)
    return error.strerror or str(error) or type(error).__name__


def _join(
    host: str, port: int, hello: Hello, deadline: float, timeout: float
) -> Meeting:
    """What the processes other than 0 do."""
    reason = "no answer"
    while True:
        connection = None
        try:
            left = deadline - time.monotonic()
            connection = Connection(
                socket.create_connection((host, port), timeout=min(max(left, 0.1), 5.0))
            )
            connection.send(hello._asdict())
            meeting = _answer(connection)
            if meeting is not None:
                return meeting
            reason = "it closed the connection"
        except ValueError:
            reason = "something else answers there"
        except OSError as error:
            reason = _reason(error)
        except BaseException:
            if connection is not None:
                connection.close()
            raise
        if connection is not None:
            connection.close()
        if time.monotonic() >= deadline:
            raise _NobodyError(
                f"process {hello.process_id} cannot reach process 0 at {host}:{port} "
                f"within {timeout:g} s ({reason}): start process 0 there, or check "
                "the address and the firewall."
            )
        time.sleep(min(0.2, max(0.0, deadline - time.monotonic())))


def _answer(connection: Connection) -> Meeting | None:
    """What process 0 decides, or None if it goes away first."""
    while True:
        try:
            messages = connection.receive(_SILENCE)
        except EOFError:
            return None
        for message in messages:
            if "error" in message:
                raise DistributedError(message["error"])
            if "port" in message:
                members = [Hello(**member) for member in message["members"]]
                return Meeting(
                    {0: connection},
                    {member.process_id: member for member in members},
                    message["port"],
                    None,
                )
            if "waiting" not in message:
                raise ValueError("not the protocol of this module")


def _gather(
    listener: socket.socket, host: str, own: Hello, deadline: float, timeout: float
) -> Meeting:
    """What process 0 does."""
    arrived: dict[Connection, Hello] = {}
    strangers: set[Connection] = set()  # connected, and have not said hello yet
    probe = None if is_loopback(host) else _probe(host, listener, own)
    settled = float("inf")
    next_beat = time.monotonic() + _BEAT
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        if probe is not None:
            selector.register(probe, selectors.EVENT_READ)
        while True:
            now = time.monotonic()
            wrong = disagreement(own, list(arrived.values()))
            hellos = [own, *arrived.values()]
            expected = max(hello.num_processes for hello in hellos)
            complete = {h.process_id for h in hellos} >= set(range(expected))
            if complete or now >= min(deadline, settled):
                break
            if wrong and settled == float("inf"):
                settled = now + _SETTLE
            if now >= next_beat:
                next_beat = now + _BEAT
                for connection in arrived:
                    connection.tell({"waiting": True})
            for key, _ in selector.select(0.2):
                if key.fileobj is listener:
                    sock, _ = listener.accept()
                    connection = Connection(sock)
                    strangers.add(connection)
                    selector.register(connection, selectors.EVENT_READ)
                    continue
                connection: Any = key.fileobj
                try:
                    messages = connection.receive()
                    if connection is probe:  # it reached another process 0
                        for message in messages:
                            if "error" in message:
                                strangers.add(connection)
                                _refuse(arrived, strangers, message["error"])
                        continue
                    came = [Hello(**message) for message in messages]
                except (EOFError, OSError, ValueError, TypeError):
                    came = None  # gone, or not one of us
                if came and came[0].nonce != own.nonce:
                    strangers.discard(connection)
                    arrived[connection] = came[0]
                elif came is None or came:
                    selector.unregister(connection)
                    strangers.discard(connection)
                    arrived.pop(connection, None)
                    connection.close()
    if probe is not None:
        strangers.add(probe)
    wrong = wrong or disagreement(own, list(arrived.values()), timeout)
    if wrong:
        _refuse(arrived, strangers, wrong)
    for connection in strangers:
        connection.close()
    members = sorted((own, *arrived.values()))
    go = {"port": _free_port(host), "members": [m._asdict() for m in members]}
    _tell_all(arrived, go)
    connections = {hello.process_id: c for c, hello in arrived.items()}
    return Meeting(
        connections, {m.process_id: m for m in members}, go["port"], listener
    )


def _refuse(
    arrived: dict[Connection, Hello], strangers: set[Connection], line: str
) -> NoReturn:
    _tell_all(arrived, {"error": line})
    for connection in (*arrived, *strangers):
        connection.close()
    raise DistributedError(line)


def _tell_all(arrived: dict[Connection, Hello], message: dict[str, Any]) -> None:
    for connection in arrived:
        connection.tell(message)


def _probe(host: str, listener: socket.socket, own: Hello) -> Connection | None:
    """Connect to the address oneself: is it this process that the others find there?"""
    try:
        port = listener.getsockname()[1]
        connection = Connection(socket.create_connection((host, port), timeout=2.0))
        connection.send(own._asdict())
    except OSError:
        return None
    return connection


def _free_port(host: str) -> int:
    with listen(host, 0) as sock:
        return sock.getsockname()[1]
