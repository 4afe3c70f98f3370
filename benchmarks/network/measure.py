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
import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import namespaces
import report
import worker

__all__ = ["METHODS", "main", "measure"]

PORT = 29_400
METHODS = (*worker.METHODS, *worker.GANS)
LAST_WORDS = 5.0  # seconds that the others have to say what they miss
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
WORKER = pathlib.Path(worker.__file__)


def measure(
    rates: Sequence[str],
    processes: int = 4,
    parameters: int = 1_000_000,
    methods: Sequence[str] = METHODS,
    steps: int = 10,
    seconds: float = 60.0,
    mtu: int = 1500,
    tcp: str = "reno",
    loopback: bool = False,
) -> dict[str, Any]:
    """Measure methods at some rates.

    Args:
      rates: as `tc` writes them; `"none"` for links without limits.
      processes: how many, with one worker each.
      parameters: float32 numbers in the model, but for GANs.
      methods: some of `METHODS`.
      steps: how many to measure of each method.
      seconds: what a method may take at a rate; it then does fewer steps.
      mtu: the largest packet, in bytes.
      tcp: the congestion control.
      loopback: talk over the machine's loopback, without namespaces; `rates` are then
        not used.

    Returns:
      The setting, and `points`, one for each rate and method, as
      `report.summary` makes them.

    Raises:
      ValueError: if an argument is not of the above.
      RuntimeError: if the network cannot be made, or a process fails.
    """
    unknown = [name for name in methods if name not in METHODS]
    if unknown or not methods:
        raise ValueError(
            f"methods must be some of {', '.join(METHODS)}, got "
            f"{', '.join(unknown) or 'none'}."
        )
    for name, value, least in (
        ("processes", processes, 2),
        ("parameters", parameters, 1),
        ("steps", steps, 1),
        ("seconds", seconds, 0),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}.")
    limits = {
        rate: None if rate == "none" else namespaces.parse_rate(rate) for rate in rates
    }
    network = namespaces.Network(processes, None, mtu, tcp)
    result = {
        "machine": report.machine(),
        "throttled": not loopback,
        "processes": processes,
        "parameters": parameters,
        "mtu": None if loopback else mtu,
        "tcp": None if loopback else tcp,
        "points": [],
    }
    task = worker.Task(
        coordinator=f"127.0.0.1:{_free_port()}",
        num_processes=processes,
        process_id=0,
        methods=list(methods),
        parameters=parameters,
        steps=steps,
        seconds=seconds,
        rate=None,
        interface=None,
        directory="",
    )
    if loopback:
        result["points"] = _points(task, "none", lambda process, argv: argv)
        return result
    with network:
        for rate, bits in limits.items():
            network.set_rate(None if bits is None else rate)
            at_rate = dataclasses.replace(
                task,
                coordinator=f"{network.addresses[0]}:{PORT}",
                rate=bits,
                interface="eth0",
            )
            result["points"] += _points(at_rate, rate, network.command)
    return result


def _points(task, rate, command):
    """Run the processes of a task, and sum up what they found."""
    print(f"rate {rate}:", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="jaxsp-net-") as directory:
        task = dataclasses.replace(task, directory=directory)
        _run(task, command)
        paths = (
            pathlib.Path(directory) / f"process-{i}.json"
            for i in range(task.num_processes)
        )
        found = [json.loads(path.read_text()) for path in paths]
    return [
        {"method": name, "rate": rate}
        | report.summary([each[name] for each in found], task.rate)
        for name in task.methods
    ]


# ------------------------------------------------------------------ the processes


def _run(
    task: worker.Task,
    command: Callable[[int, list[str]], list[str]],
) -> None:
    """Run a process for each worker, and end them all when one fails."""
    environment = dict(os.environ, JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES="1")
    environment.pop("XLA_FLAGS", None)
    running = []
    try:
        for process in range(task.num_processes):
            own = dataclasses.replace(task, process_id=process)
            argv = [sys.executable, str(WORKER), str(os.getpid())]
            argv += [json.dumps(dataclasses.asdict(own))]
            log = pathlib.Path(task.directory) / f"process-{process}.log"
            with log.open("w") as stderr:
                running.append(
                    subprocess.Popen(
                        command(process, argv),
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=stderr,
                        stderr=None if process == 0 else stderr,
                        start_new_session=True,
                    )
                )
        codes = [None]
        while None in codes and not any(codes):
            time.sleep(0.1)
            codes = [each.poll() for each in running]
        if any(codes):
            time.sleep(LAST_WORDS)
            process = next(i for i, code in enumerate(codes) if code)
            log = pathlib.Path(task.directory) / f"process-{process}.log"
            said = log.read_text().strip().splitlines()[-5:]
            raise RuntimeError(
                f"process {process} ended with exit code {codes[process]}: "
                + "\n".join(said)
            )
    finally:
        for each in running:
            if each.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(each.pid, signal.SIGKILL)
        for each in running:
            each.wait()


def _free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _on_signal(number, frame):
    """Leave through every `finally`, once: what was made is removed there."""
    del frame
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise SystemExit(128 + number)


def main(argv: Sequence[str] | None = None) -> None:
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
    handlers = {number: signal.signal(number, _on_signal) for number in _SIGNALS}
    try:
        result = measure(
            ["none", *(r for r in flags.rate.split(",") if r)],
            flags.processes,
            flags.parameters,
            [m for m in flags.methods.split(",") if m],
            flags.steps,
            flags.seconds,
            flags.mtu,
            flags.tcp,
            loopback=flags.loopback or why is not None,
        )
    except (ValueError, RuntimeError) as error:
        parser.error(str(error))
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    print(report.markdown(result))
    if flags.output is not None:
        unfinished = flags.output.with_name(flags.output.name + ".tmp")
        unfinished.write_text(json.dumps(result, indent=2) + "\n")
        os.replace(unfinished, flags.output)


if __name__ == "__main__":
    main()
