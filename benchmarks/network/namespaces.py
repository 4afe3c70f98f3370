"""A slow network on one Linux machine: a namespace a process, and links with a rate.

Each process gets a network namespace whose only link, a veth pair, leads to a bridge in
a namespace of its own; the machine's own network is not touched. A token bucket filter
(`tc ... tbf`) limits what leaves a process and what leaves the bridge towards it, so
that a link is full duplex with the rate both ways.

Names start with `jaxsp-net-PID-`, of the process that made them. It holds a lock for as
long as it lives; what it leaves behind when it is killed is found by the next one.
"""

import contextlib
import fcntl
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence

__all__ = [
    "Network",
    "counters",
    "leftovers",
    "parse_rate",
    "remove",
    "unavailable",
]

PREFIX = "jaxsp-net-"
NAMESPACES = pathlib.Path("/run/netns")
HOSTS = pathlib.Path("/etc/netns")
_UNITS = {"bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9}


def parse_rate(rate: str) -> float:
    """Bits a second of a rate as `tc` writes it.

    Args:
      rate: a number and `bit`, `kbit`, `mbit` or `gbit`.

    Returns:
      Bits a second.

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
    return float(match[1]) * _UNITS[match[2]]


def counters(interface: str = "eth0") -> tuple[int, int]:
    """Bytes (sent, received) by an interface of this process's namespace so far."""
    kept = pathlib.Path("/sys/class/net", interface, "statistics")
    sent, received = ((kept / f"{way}_bytes").read_text() for way in ("tx", "rx"))
    return int(sent), int(received)


def unavailable() -> str | None:
    """Why this machine cannot have such a network, in one line; None if it can."""
    if sys.platform != "linux":
        return f"network namespaces are Linux's, and this is {sys.platform}"
    if os.geteuid() != 0:
        return "making network namespaces needs root, and this is another user"
    for tool in ("ip", "tc", "unshare"):
        if shutil.which(tool) is None:
            return f"the command {tool} is not installed"
    tried = subprocess.run(
        ["unshare", "--net", "true"], capture_output=True, text=True, check=False
    )
    if tried.returncode:
        return f"the kernel refuses a network namespace: {tried.stderr.strip()}"
    return None


class Network:
    """Namespaces on one bridge, there for as long as the `with` block runs.

    Args:
      count: how many processes.
      rate: of each link, each way, as `tc` writes it; None for no limit.
      mtu: the largest packet without Ethernet's header, in bytes.
      tcp: the congestion control, the same on every machine. Every Linux has reno;
        others must be in `net.ipv4.tcp_allowed_congestion_control`.

    Attributes:
      names: the processes' namespaces.
      addresses: their IPv4 addresses.

    Raises:
      ValueError: if an argument is not of the above.
      RuntimeError: when entered, if `ip` or `tc` fails; what was made is removed.
    """

    def __init__(
        self, count: int, rate: str | None, mtu: int = 1500, tcp: str = "reno"
    ):
        if not 1 <= count <= 250:
            raise ValueError(f"count must be from 1 to 250, got {count}.")
        if rate is not None:
            parse_rate(rate)
        if not 576 <= mtu <= 65_000:
            raise ValueError(f"mtu must be from 576 to 65000 bytes, got {mtu}.")
        if not re.fullmatch("[a-z0-9_]+", tcp):
            raise ValueError(f"tcp must be a name such as reno or bbr, got {tcp!r}.")
        self.rate, self.mtu, self.tcp = rate, mtu, tcp
        self.run = str(os.getpid())
        self.hub = f"{PREFIX}{self.run}-hub"
        self.names = [f"{PREFIX}{self.run}-{i}" for i in range(count)]
        self.addresses = [f"10.99.0.{i + 1}" for i in range(count)]
        self._lock = None

    def __enter__(self) -> "Network":
        remove(leftovers())
        self._lock = _lock_path(self.run).open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exception) -> None:
        try:
            remove([*self.names, self.hub])
        finally:
            if self._lock is not None:
                _lock_path(self.run).unlink(missing_ok=True)
                self._lock.close()
                self._lock = None

    def command(self, process: int, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` in a process's namespace."""
        return ["ip", "netns", "exec", self.names[process], *argv]

    def set_rate(self, rate: str | None) -> None:
        """Give all links another rate, or None for no limit."""
        if rate is not None:
            parse_rate(rate)
        self.rate = rate
        for i, name in enumerate(self.names):
            self._limit(name, "eth0")
            self._limit(self.hub, f"port{i}")

    def _make(self):
        _call("ip", "netns", "add", self.hub)
        _call("ip", "-n", self.hub, "link", "add", "bridge0", "type", "bridge")
        _quiet(self.hub)
        _call("ip", "-n", self.hub, "link", "set", "bridge0", "mtu", str(self.mtu))
        _call("ip", "-n", self.hub, "link", "set", "bridge0", "up")
        hosts = "127.0.0.1 localhost\n{} " + socket.gethostname() + "\n"
        for i, name in enumerate(self.names):
            # The peers find a process by its host name, which is the machine's in all
            # namespaces: in each it stands for that one's own address.
            (HOSTS / name).mkdir(parents=True)
            (HOSTS / name / "hosts").write_text(hosts.format(self.addresses[i]))
            _call("ip", "netns", "add", name)
            _quiet(name)
            _setting(name, "net.ipv4.tcp_congestion_control", self.tcp)
            port = f"port{i}"
            _call(
                *("ip", "-n", self.hub, "link", "add", port, "type", "veth"),
                *("peer", "name", "eth0", "netns", name),
            )
            for where, link in ((name, "eth0"), (self.hub, port)):
                _call("ip", "-n", where, "link", "set", link, "mtu", str(self.mtu))
                self._limit(where, link)
            _call("ip", "-n", self.hub, "link", "set", port, "master", "bridge0", "up")
            _call(
                "ip",
                "-n",
                name,
                "address",
                "add",
                f"{self.addresses[i]}/24",
                "dev",
                "eth0",
            )
            _call("ip", "-n", name, "link", "set", "eth0", "up")
            _call("ip", "-n", name, "link", "set", "lo", "up")

    def _limit(self, namespace, link):
        # With a limit every packet is of the MTU, and is counted with its headers.
        # Without one the kernel may pass on large ones, which takes it less work.
        segments = "65535" if self.rate is None else "1"
        _call("ip", "-n", namespace, "link", "set", link, "gso_max_segs", segments)
        which = ("-n", namespace, "qdisc")
        if self.rate is None:
            _call("tc", *which, "del", "dev", link, "root", check=False)
            return
        # The bucket lets 2 ms of traffic, or a few packets, pass at once, and 10 ms
        # wait in the queue: behind a longer one handshakes would wait as well.
        speed, packet = parse_rate(self.rate) / 8, self.mtu + 14
        burst = max(int(speed * 0.002), 5 * packet)
        queue = max(int(speed * 0.01), 16 * packet)
        _call(
            *("tc", *which, "replace", "dev", link, "root", "tbf"),
            *("rate", self.rate, "burst", str(burst), "limit", str(queue)),
        )


def leftovers() -> list[str]:
    """Names of namespaces whose makers have ended without removing them."""
    found = set()
    for folder in (NAMESPACES, HOSTS):
        if folder.is_dir():
            found |= {path.name for path in folder.glob(f"{PREFIX}*")}
    lives = {run: _lives(run) for run in {_run(name) for name in found}}
    return sorted(name for name in found if not lives[_run(name)])


def remove(names: Sequence[str]) -> None:
    """Remove namespaces with the processes and links in them, and their hosts files.

    Args:
      names: namespaces that a `Network` made; those that are gone are passed over.

    Raises:
      ValueError: if one has another name.
    """
    for name in names:
        if not name.startswith(PREFIX):
            raise ValueError(f"names must start with {PREFIX!r}, got {name!r}.")
    for name in names:
        if (NAMESPACES / name).exists():
            listed = _call("ip", "netns", "pids", name, check=False)
            for pid in listed.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            _call("ip", "netns", "delete", name, check=False)
        shutil.rmtree(HOSTS / name, ignore_errors=True)
    with contextlib.suppress(OSError):
        HOSTS.rmdir()  # if it is empty
    for run in {_run(name) for name in names}:
        if not _lives(run):
            _lock_path(run).unlink(missing_ok=True)


def _run(name):
    return name.removeprefix(PREFIX).partition("-")[0]


def _lock_path(run):
    return pathlib.Path("/run") / f"{PREFIX}{run}.lock"


def _lives(run):
    """Whether the process that made the names of a run still holds its lock."""
    try:
        with _lock_path(run).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _quiet(namespace):
    """No IPv6 in a namespace: its neighbour discovery would be counted."""
    setting = "net.ipv6.conf.{}.disable_ipv6"
    for which in ("all", "default"):
        _setting(namespace, setting.format(which), "1")


def _setting(namespace, name, value):
    path = "/proc/sys/" + name.replace(".", "/")
    script = f'if [ -e "{path}" ]; then echo "{value}" > "{path}"; fi'
    _call("ip", "netns", "exec", namespace, "sh", "-c", script)


def _call(*argv, check=True):
    # In a session of its own: Ctrl-C is for this process alone, which cleans up.
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, start_new_session=True
    )
    if check and done.returncode:
        why = done.stderr.strip() or f"exit status {done.returncode}"
        raise RuntimeError(f"{' '.join(argv)}: {why}")
    return done.stdout
