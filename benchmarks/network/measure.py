"""The step time and the bytes of each method on a network that is really slow.

    python benchmarks/network/measure.py [--rate=100mbit,10mbit] [--output=network.json]

Every process has a network namespace of its own, whose link to all others lets through
`rate` each way, by the kernel's token bucket filter. Steps are timed, and bytes read
from the kernel's counters; beside them stand the bits that jaxsp counts, and the least
time they could take: bits / rate, for the busiest process and direction. The first run,
"none", has the same links without limits: what a step takes beside the network.

That needs root on Linux. Elsewhere processes talk over the machine's own loopback,
which is not throttled, and nothing but the step times is measured.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import children
import methods
import namespaces
import report
import worker
from task import Task

from jaxsp.gan.files import replacing

__all__ = ["METHODS", "main", "measure"]

PORT = 29_400
METHODS = (*methods.METHODS, *worker.GANS)
WORKER = pathlib.Path(worker.__file__)


def measure(
    task: Task,
    rates: Sequence[str],
    mtu: int = 1500,
    tcp: str = "reno",
    loopback: bool = False,
) -> dict[str, Any]:
    """Measure methods at some rates.

    Args:
      task: what each process does; what differs between processes and rates is set
        here.
      rates: as `tc` writes them; `"none"` for links without limits.
      mtu: the largest packet, in bytes.
      tcp: the congestion control.
      loopback: talk over the machine's loopback, without namespaces; `rates` are then
        not used.

    Returns:
      The setting, and `points`, one for each rate and method, as `report.summary` makes
      them.

    Raises:
      ValueError: if an argument is not of the above.
      RuntimeError: if the network cannot be made, or a process fails.
    """
    unknown = [name for name in task.methods if name not in METHODS]
    if unknown or not task.methods:
        raise ValueError(
            f"methods must be some of {', '.join(METHODS)}, got "
            f"{', '.join(unknown) or 'none'}."
        )
    least = {"num_processes": 2, "parameters": 1, "steps": 1, "seconds": 0}
    for name, minimum in least.items():
        if (value := getattr(task, name)) < minimum:
            name = name.removeprefix("num_")
            raise ValueError(f"{name} must be at least {minimum}, got {value}.")
    limits = {
        rate: None if rate == "none" else namespaces.parse_rate(rate) for rate in rates
    }
    network = namespaces.Network(task.num_processes, None, mtu, tcp)
    result = {
        "machine": report.machine(),
        "throttled": not loopback,
        "processes": task.num_processes,
        "parameters": task.parameters,
        "mtu": None if loopback else mtu,
        "tcp": None if loopback else tcp,
        "points": [],
    }
    if loopback:
        with socket.socket() as listener:  # to find a free port
            listener.bind(("127.0.0.1", 0))
            where = f"127.0.0.1:{listener.getsockname()[1]}"
        task = dataclasses.replace(task, coordinator=where)
        result["points"] = _points(task, "none", lambda process, argv: argv)
        return result
    task = dataclasses.replace(
        task, coordinator=f"{network.addresses[0]}:{PORT}", interface="eth0"
    )
    with network:
        for rate, bits in limits.items():
            network.set_rate(None if bits is None else rate)
            at_rate = dataclasses.replace(task, rate=bits)
            result["points"] += _points(at_rate, rate, network.command)
    return result


def _points(
    task: Task, rate: str, command: Callable[[int, list[str]], list[str]]
) -> list[dict[str, Any]]:
    """Run the processes of a task, and sum up what they found."""
    print(f"rate {rate}:", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="jaxsp-net-") as name:
        directory = pathlib.Path(name)

        def argv(process):
            own = dataclasses.replace(task, process_id=process, directory=name)
            said = [str(os.getpid()), json.dumps(dataclasses.asdict(own))]
            return command(process, [sys.executable, str(WORKER), *said])

        ids = range(task.num_processes)
        children.run([argv(i) for i in ids], directory)
        paths = (directory / f"process-{i}.json" for i in ids)
        found = [json.loads(path.read_text()) for path in paths]
    return [
        {"method": name, "rate": rate}
        | report.summary([each[name] for each in found], task.rate)
        for name in task.methods
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what the command line says, and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rate", default="100mbit,10mbit", help="of links, each way")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--parameters", type=int, default=1_000_000)
    parser.add_argument("--methods", default=",".join(METHODS), help="with commas")
    parser.add_argument("--steps", type=int, default=10, help="to measure of a method")
    parser.add_argument(
        "--seconds", type=float, default=60, help="for a method at a rate, or less"
    )
    parser.add_argument("--mtu", type=int, default=1500, help="bytes of a packet")
    parser.add_argument("--tcp", default="reno", help="congestion control")
    parser.add_argument("--loopback", action="store_true", help="no namespaces")
    parser.add_argument("--output", type=pathlib.Path, help="write the numbers as JSON")
    flags = parser.parse_args(argv)
    why = None if flags.loopback else namespaces.unavailable()
    if why is not None:
        print(f"No throttled network: {why}. Loopback instead.", file=sys.stderr)
    task = Task(
        num_processes=flags.processes,
        methods=[m for m in flags.methods.split(",") if m],
        parameters=flags.parameters,
        steps=flags.steps,
        seconds=flags.seconds,
    )
    rates = ["none", *(r for r in flags.rate.split(",") if r)]
    loopback = flags.loopback or why is not None
    try:
        with children.leaving_on_signals():
            result = measure(task, rates, flags.mtu, flags.tcp, loopback)
    except (ValueError, RuntimeError) as error:
        parser.error(str(error))
    print(report.markdown(result))
    if flags.output is not None:
        with replacing(flags.output) as temporary:
            temporary.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
