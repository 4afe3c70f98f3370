"""A slow network on one Linux machine: a namespace a process, and links with a rate.

Each process gets a network namespace whose only link, a veth pair, leads to a bridge in
a namespace of its own; the machine's own network is not touched. A token bucket filter
(`tc ... tbf`) limits what leaves a process and what leaves the bridge towards it, so
that a link is full duplex with the rate both ways.

Names start with `jaxsp-net-PID-`, of the process that made them. What a process leaves
behind when it is killed is removed by the next one.
"""

import contextlib
import os
import pathlib
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from jaxsp import launch

# What all benchmarks share lies a folder above, where Python does not look by itself.
sys.path.append(str(pathlib.Path(__file__).parents[1]))

__all__ = ["Network", "counters", "parse_rate", "run"]

PREFIX = "jaxsp-net-"
PORT = 29_400
PACKET = 1514  # bytes of the largest, with Ethernet's header
NAMESPACES, HOSTS = pathlib.Path("/run/netns"), pathlib.Path("/etc/netns")
ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
UNITS = {"bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9}

# Without IPv6, whose neighbour discovery would be counted.
_NAMESPACE = """
ip netns add {name}
ip netns exec {name} sh -c \
    'all=/proc/sys/net/ipv6/conf/all/disable_ipv6; [ ! -e $all ] || echo 1 > $all'
"""
_BRIDGE = """
ip -n {name} link add bridge0 type bridge
ip -n {name} link set bridge0 up
"""
# The peers find a process by its host name, which is the machine's in all namespaces:
# in each it stands for that one's own address. Every Linux has TCP's reno.
_PROCESS = """
mkdir {hosts}/{name}
printf '127.0.0.1 localhost\n{address} {host}\n' > {hosts}/{name}/hosts
ip netns exec {name} sh -c 'echo reno > /proc/sys/net/ipv4/tcp_congestion_control'
ip -n {hub} link add {port} type veth peer name eth0 netns {name}
ip -n {hub} link set {port} master bridge0 up
ip -n {name} address add {address}/24 dev eth0
ip -n {name} link set eth0 up
ip -n {name} link set lo up
"""
# With a limit every packet is of the MTU, and is counted with its headers. Without one
# the kernel may pass on large ones, which takes it less work.
_LIMIT = """
ip -n {name} link set {link} gso_max_segs 1
tc -n {name} qdisc replace dev {link} root tbf \
    rate {rate} burst {burst} limit {queue}
"""


def parse_rate(rate: str) -> float:
    """Bits a second of a rate as `tc` writes it.

    Args:
      rate: a number and `bit`, `kbit`, `mbit` or `gbit`.

    Raises:
      ValueError: if it is something else, or not positive.

    Example:
      >>> parse_rate("100mbit")
      100000000.0
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg]?bit)", rate.strip().lower())
    if match is None or float(match[1]) <= 0:
        raise ValueError(
            "rate must be a positive number with bit, kbit, mbit or gbit, such as "
            f"100mbit, got {rate!r}."
        )
    return float(match[1]) * UNITS[match[2]]


def counters() -> tuple[int, int]:
    """Bytes (sent, received) by `eth0` of this process's namespace so far."""
    kept = pathlib.Path("/sys/class/net/eth0/statistics")
    sent, received = ((kept / f"{way}_bytes").read_text() for way in ("tx", "rx"))
    return int(sent), int(received)


def run(argv: Sequence[str], count: int) -> None:
    """Run a command in `count` processes by `jaxsp.launch`; exit if one fails."""
    command = ["env", "JAX_PLATFORMS=cpu", *argv]
    if code := launch.launch(command, count, shlex.join(["python", *sys.argv])):
        sys.exit(code)


class Network:
    """Namespaces on one bridge, there for as long as the `with` block runs.

    SIGINT, SIGTERM and SIGHUP end the block by a `SystemExit` of 128 + number, unless
    they were ignored before; while the namespaces are made or removed they wait.

    Args:
      count: how many processes.

    Raises:
      ValueError: if `count` is not from 1 to 250.
      RuntimeError: when entered, if `ip` fails; what was made is removed.
    """

    def __init__(self, count: int):
        if not 1 <= count <= 250:
            raise ValueError(f"count must be from 1 to 250, got {count}.")
        self.prefix = f"{PREFIX}{os.getpid()}-"
        self.hub = f"{self.prefix}hub"
        self.names = [f"{self.prefix}{i}" for i in range(count)]
        self._waiting: list[int] | None = None  # signals, when they have to wait
        self._handlers: dict[int, Any] = {}  # what they did before

    def __enter__(self) -> "Network":
        if sys.platform != "linux" or os.geteuid() != 0:
            raise RuntimeError("a slow network needs root on Linux.")
        before = {number: signal.getsignal(number) for number in ENDS}
        self._handlers = {n: old for n, old in before.items() if old != signal.SIG_IGN}
        for number in self._handlers:
            signal.signal(number, self._end)
        try:
            with self._undisturbed():
                self._remove()
                self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exception) -> None:
        """Remove what is of this process, or of one that has ended."""
        try:
            with self._undisturbed():
                self._remove()
        finally:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)

    def _end(self, number, frame):
        if self._waiting is None:
            self._waiting = []  # what comes after it waits until all is removed
            sys.exit(128 + number)
        self._waiting.append(number)

    @contextlib.contextmanager
    def _undisturbed(self):
        self._waiting = []
        try:
            yield
        finally:
            waiting, self._waiting = self._waiting, None
        if waiting:
            self._end(waiting[0], None)

    def _make(self):
        HOSTS.mkdir(exist_ok=True)
        _shell((_NAMESPACE + _BRIDGE).format(name=self.hub))
        known = {"hub": self.hub, "hosts": HOSTS, "host": socket.gethostname()}
        for i, name in enumerate(self.names):
            own = {"name": name, "port": f"port{i}", "address": f"10.99.0.{i + 1}"}
            _shell((_NAMESPACE + _PROCESS).format(**known, **own))

    def _remove(self):
        for path in (*NAMESPACES.glob(f"{PREFIX}*"), *HOSTS.glob(f"{PREFIX}*")):
            maker = path.name.removeprefix(PREFIX).partition("-")[0]
            if maker == str(os.getpid()) or not pathlib.Path("/proc", maker).exists():
                if path.parent == NAMESPACES:  # unless another process was quicker
                    _shell(f"ip netns delete {path.name} || true")
                shutil.rmtree(HOSTS / path.name, ignore_errors=True)

    def set_rate(self, rate: str) -> None:
        """Limit all links, each way, to a rate as `tc` writes it."""
        # The bucket lets 2 ms of traffic, or a few packets, pass at once, and 10 ms
        # wait in the queue: behind a longer one handshakes would wait as well.
        speed = parse_rate(rate) / 8
        burst = max(int(speed * 0.002), 5 * PACKET)
        limits = {"rate": rate, "burst": burst}
        limits["queue"] = max(int(speed * 0.01), 16 * PACKET)
        for i, name in enumerate(self.names):
            _shell(_LIMIT.format(name=name, link="eth0", **limits))
            _shell(_LIMIT.format(name=self.hub, link=f"port{i}", **limits))

    def run(self, argv: Sequence[str]) -> None:
        """Run a command in every namespace; exit if one fails."""
        inside = f"exec env JAXSP_COORDINATOR=10.99.0.1:{PORT} "
        inside += f'ip netns exec {self.prefix}$JAXSP_PROCESS_ID "$@"'
        run(["sh", "-c", inside, "sh", *argv], len(self.names))


def _shell(script):
    # In a session of its own: Ctrl-C is for this process alone, which cleans up.
    done = subprocess.run(
        ["sh", "-ec", script],
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip() or f"exit status {done.returncode}")
