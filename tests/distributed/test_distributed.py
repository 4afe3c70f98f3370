"""Processes meet, agree or say why not, and end together."""

import contextlib
import gc
import json
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import types

import numpy as np
import pytest

import jaxsp.distributed
from jaxsp.distributed import DistributedError, detect, rendezvous
from jaxsp.distributed import run as running
from jaxsp.distributed.compare import Hello, differing_keys, disagreement
from jaxsp.distributed.watch import Watch
from jaxsp.distributed.wire import Connection, split_address
from jaxsp.launch import environment

LOOP = pathlib.Path(__file__).parents[1] / "processes" / "loop.py"


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


# Meeting, with a thread for each process.


def meet_all(*arguments, delay=0.0):
    """What `meet` returned or raised in a thread for each tuple of arguments."""
    address = f"127.0.0.1:{free_port()}"
    results = [None] * len(arguments)

    def one(place, given):
        time.sleep(delay * place)
        try:
            results[place] = rendezvous.meet(address, *given)
        except DistributedError as error:
            results[place] = error

    threads = [
        threading.Thread(target=one, args=pair, daemon=True)
        for pair in enumerate(arguments)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return results


def close(meetings):
    for meeting in meetings:
        if isinstance(meeting, rendezvous.Meeting):
            for connection in meeting.connections.values():
                connection.close()
            if meeting.listener is not None:
                meeting.listener.close()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_those_who_agree_meet_in_any_order(order):
    configuration = {"rate": 0.1, "names": ["a"]}
    meetings = meet_all(*((3, i, configuration, 20.0) for i in order), delay=0.3)
    by_number = dict(zip(order, meetings, strict=True))
    assert set(by_number[0].connections) == {1, 2}
    assert set(by_number[1].connections) == set(by_number[2].connections) == {0}
    for meeting in meetings:
        assert sorted(meeting.members) == [0, 1, 2]
        assert meeting.members[2].pid == os.getpid()
        assert meeting.port == meetings[0].port
    close(meetings)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            [(3, 0, None, 9.0), (4, 1, None, 9.0), (3, 2, None, 9.0)],
            r"process 1 \(pid \d+ on \S+\) was started with num_processes=4, process 0 "
            r"with num_processes=3: start all with the same\.",
        ),
        (
            [(3, 0, None, 9.0), (3, 1, None, 9.0), (3, 1, None, 9.0)],
            r"two processes were started with process_id=1, pid \d+ on \S+ and pid \d+ "
            r"on \S+: give each its own, from 0 to 2\.",
        ),
        (
            [(2, 0, None, 9.0), (2, 0, None, 9.0), (2, 1, None, 9.0)],
            r"two processes were started with process_id=0, .*",
        ),
        (
            [(4, 0, None, 0.7), (4, 2, None, 9.0)],
            r"processes 1, 3 of 4 did not come within 0\.7 s: start one process for "
            r"each process_id from 0 to 3, with this coordinator\.",
        ),
        (
            [(2, i, {"a": 1, "b": {"c": 2 + i}}, 9.0) for i in (0, 1)],
            r"process 1 \(pid \d+ on \S+\) has b\.c=3 where process 0 has b\.c=2: "
            r"start all with the same configuration\.",
        ),
    ],
    ids=["counts", "twice the same", "twice process 0", "missing", "configuration"],
)
def test_every_process_says_the_same_about_what_is_wrong(monkeypatch, arguments, line):
    monkeypatch.setattr(rendezvous, "_SETTLE", 1.0)
    errors = [str(error) for error in meet_all(*arguments, delay=0.3)]
    assert len(set(errors)) == 1
    assert re.fullmatch(line, errors[0]), errors[0]


def test_other_versions_are_told(monkeypatch):
    sets = iter([{"jax": "0.10.2", "Python": "3.11"}, {"jax": "9.9", "Python": "3.11"}])
    monkeypatch.setattr(rendezvous, "versions", lambda: next(sets))
    errors = [str(e) for e in meet_all((2, 0, None, 9.0), (2, 1, None, 9.0), delay=0.5)]
    assert errors[0] == errors[1]
    assert "has jax 9.9, process 0 has jax 0.10.2: install the same" in errors[0]


def test_versions_are_those_that_matter():
    assert set(rendezvous.versions()) == {"Python", "jax", "jaxlib", "jaxsp"}


def test_an_unreachable_coordinator_is_named():
    (error,) = meet_all((2, 1, None, 0.3))
    assert "process 1 cannot reach process 0 at 127.0.0.1:" in str(error)
    assert "within 0.3 s (Connection refused): start process 0 there" in str(error)


def test_something_else_at_the_address_is_no_process_0():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet():
            for _ in range(2):
                sock, _ = server.accept()
                with sock:
                    sock.sendall(b"HTTP/1.1 400 Bad Request\n")
                    sock.recv(1 << 16)

        threading.Thread(target=greet, daemon=True).start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(DistributedError, match="something else answers there"):
            rendezvous.meet(address, 2, 1, timeout=0.1)


def test_a_taken_port_is_named(monkeypatch):
    monkeypatch.setattr(rendezvous, "_SETTLE", 0.1)
    monkeypatch.setattr(rendezvous, "_SILENCE", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(DistributedError, match=r"cannot listen at .* in use\."):
            rendezvous.meet(address, 2, 0, timeout=1.0)


def test_strangers_and_broken_connections_do_not_hinder_the_meeting():
    port = free_port()
    meetings = []

    def zero():
        meetings.append(rendezvous.meet(f"127.0.0.1:{port}", 2, 0, timeout=20.0))

    thread = threading.Thread(target=zero, daemon=True)
    thread.start()
    for data in (b"GET / HTTP/1.0\r\n\r\n", b"{}\n", b"[]\n", b"\n", b""):
        while True:
            try:
                with socket.create_connection(("127.0.0.1", port)) as sock:
                    sock.sendall(data)
                break
            except ConnectionRefusedError:
                time.sleep(0.01)
    meetings.append(rendezvous.meet(f"127.0.0.1:{port}", 2, 1, timeout=20.0))
    thread.join(20)
    assert len(meetings) == 2
    close(meetings)


def test_who_comes_late_is_turned_away():
    meetings = meet_all((2, 0, None, 9.0), (2, 1, None, 9.0))
    listener = meetings[0].listener
    threading.Thread(target=meetings[0].turn_away, daemon=True).start()
    host, port = listener.getsockname()[:2]
    with pytest.raises(DistributedError, match="comes too late: all 2 processes of"):
        rendezvous.meet(f"{host}:{port}", 2, 1, timeout=9.0)
    listener.shutdown(socket.SHUT_RDWR)
    close(meetings)


def test_a_host_that_is_not_loopback_is_served_on_all_interfaces():
    name = socket.gethostname()
    results = []
    address = f"{name}:{free_port()}"
    thread = threading.Thread(
        target=lambda: results.append(rendezvous.meet(address, 2, 1, timeout=20.0)),
        daemon=True,
    )
    thread.start()
    results.append(rendezvous.meet(address, 2, 0, timeout=20.0))
    thread.join(20)
    assert len(results) == 2
    close(results)


@pytest.mark.parametrize("address", ["node1", "node1:", ":80", "node1:x", "a:70000"])
def test_the_address_is_checked(address):
    with pytest.raises(ValueError, match="coordinator must be host:port"):
        split_address(address)


def test_an_address_may_be_ipv6():
    assert split_address("[fe80::1]:80") == ("fe80::1", 80)


def test_the_configuration_is_json():
    with pytest.raises(ValueError, match="configuration must be what JSON can hold"):
        rendezvous.meet("127.0.0.1:1", 2, 1, configuration={"a": object()})


def test_differences_are_found_by_key_and_kept_short():
    ours = {"a": 1, "b": [1], "c": {}, "d": "x" * 99, "e": None}
    theirs = {"a": 1.0, "b": [2], "c": {"k": 0}, "d": "x"}
    assert differing_keys(theirs, ours) == ["a", "b", "c.k", "d", "c", "e"]
    zero, one = (
        Hello(i, 2, "h", 1, {}, json.dumps(c, sort_keys=True), "")
        for i, c in enumerate((ours, theirs))
    )
    line = disagreement(zero, [one])
    assert "and 3 more" in line
    assert len(line) < 500


# Watching, with connections inside this process.


@pytest.fixture
def watches():
    """Three started watches, what they reported, and what makes process i vanish."""
    made = []

    def build(**options):
        hellos = {i: Hello(i, 3, f"host{i}", 100 + i, {}, "null", "") for i in range(3)}
        pairs = {i: [Connection(s) for s in socket.socketpair()] for i in (1, 2)}
        ends = [{i: pair[0] for i, pair in pairs.items()}]
        ends += [{0: pairs[i][1]} for i in (1, 2)]
        losses = [[] for _ in range(3)]
        for i in range(3):
            made.append(Watch(i, ends[i], hellos, losses[i].append, **options))
        return made, losses

    yield build
    for watch in made:
        watch.ended.set()
        with contextlib.suppress(RuntimeError):  # where it was not started
            watch.join(20)
        watch.close()


def test_a_closed_connection_is_a_lost_process(watches):
    all_of_them, losses = watches()
    for watch in all_of_them[:2]:
        watch.start()
    all_of_them[2].close()
    for watch in all_of_them[:2]:
        watch.join(20)
    for told in losses[:2]:
        (loss,) = told
        assert str(loss) == "process 2 (pid 102 on host2) ended unexpectedly"


def test_without_process_0_everybody_is_told_by_its_silence(watches):
    all_of_them, losses = watches()
    for watch in all_of_them[1:]:
        watch.start()
    all_of_them[0].close()  # as the kernel does for a process that dies
    for watch, told in zip(all_of_them[1:], losses[1:], strict=True):
        watch.join(20)
        assert [loss.process_id for loss in told] == [0]


def test_silence_is_a_lost_process(watches):
    all_of_them, losses = watches(beat=0.1, lost_after=1.0)
    for watch in all_of_them[:2]:
        watch.start()
    for watch in all_of_them[:2]:
        watch.join(20)
    for told in losses[:2]:
        (loss,) = told
        assert loss.process_id == 2
        assert loss.how == "gave no sign of life for 1 s"


def test_a_process_that_was_held_up_blames_nobody(watches):
    all_of_them, losses = watches(beat=0.05, lost_after=1.0)
    slow, read = all_of_them[0], all_of_them[0]._read

    def wake_up(number):
        slow._read = read
        time.sleep(1.5)
        read(number)

    slow._read = wake_up
    for watch in all_of_them[1:]:
        watch._lost_after = 60.0
    for watch in all_of_them:
        watch.start()
    assert not slow.noticed.wait(2.0)
    assert losses == [[], [], []]


def test_signs_of_life_keep_a_run_alive_until_all_say_goodbye(watches):
    all_of_them, losses = watches(beat=0.05, lost_after=1.0)
    for watch in all_of_them:
        watch.start()
    all_of_them[1].goodbye()
    all_of_them[0].goodbye()
    assert not all_of_them[1].ended.wait(1.5)  # longer than silence would be borne
    all_of_them[2].goodbye()
    for watch in all_of_them:
        assert watch.ended.wait(20)
        watch.join(20)
    assert losses == [[], [], []]


@pytest.mark.parametrize("who", [0, 1])
def test_a_failure_is_told_with_its_reason(watches, who):
    all_of_them, losses = watches()
    for watch in all_of_them:
        watch.start()
    all_of_them[who].fail("failed with ValueError: x")
    for number, watch in enumerate(all_of_them):
        if number != who:
            assert watch.noticed.wait(20)
            watch.join(20)
            (loss,) = losses[number]
            assert (loss.process_id, loss.how) == (who, "failed with ValueError: x")


# Which process this is.


@pytest.fixture
def bare(monkeypatch):
    """An environment in which nothing is to be detected."""
    for name in list(os.environ):
        if name.startswith(
            ("SLURM_", "OMPI_", "PMI_", "JAXSP_", "JAX_COORD", "TPU_", "CUDA_VISIBLE")
        ):
            monkeypatch.delenv(name)
    return monkeypatch


def test_alone_nothing_is_done(bare):
    jaxsp.distributed.initialize()
    jaxsp.distributed.initialize("127.0.0.1:1", 1, 0)
    jaxsp.distributed.barrier("alone")
    jaxsp.distributed.finalize()
    assert jaxsp.distributed.process_count() == 1
    assert jaxsp.distributed.is_main()
    np.testing.assert_array_equal(jaxsp.distributed.process_max([[3], [4]]), [[3], [4]])


def test_the_maximum_is_of_integers():
    with pytest.raises(ValueError, match="values must be integers, got float64"):
        jaxsp.distributed.process_max([0.5])


def test_the_launcher_s_environment_is_read(bare):
    for name, value in environment(2, 4, "host:99", "again", {}).items():
        bare.setenv(name, value)
    assert detect.place(None, None, None, 1.0) == detect.Place("host:99", 4, 2)
    bare.setenv("JAXSP_PROCESS_ID", "4")
    with pytest.raises(ValueError, match="JAXSP_PROCESS_ID must be from 0 to 3"):
        detect.place(None, None, None, 1.0)
    bare.delenv("JAXSP_NUM_PROCESSES")
    with pytest.raises(ValueError, match="JAXSP_NUM_PROCESSES must be given as well"):
        detect.place(None, None, None, 1.0)


def test_slurm_is_detected(bare):
    values = {"JOB_ID": "5000", "STEP_NODELIST": "n[1-3]", "NTASKS": "3", "PROCID": "2"}
    for name, value in (values | {"LOCALID": "0"}).items():
        bare.setenv(f"SLURM_{name}", value)
    place = detect.place(None, None, None, 1.0)
    assert place == detect.Place("n1:62344", 3, 2, [0])
    for visible, devices in (("0,1", [1]), ("1", None)):
        bare.setenv("SLURM_LOCALID", "1")
        bare.setenv("CUDA_VISIBLE_DEVICES", visible)
        place = detect.place(None, None, None, 1.0)
        assert place == detect.Place("n1:62344", 3, 2, devices)
    bare.setenv("SLURM_NTASKS", "1")
    assert detect.place(None, None, None, 1.0) is None


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ({"OMPI_COMM_WORLD_SIZE": "16"}, "OMPI_COMM_WORLD_SIZE=16"),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({"PMI_SIZE": "2"}, "PMI_SIZE=2"),
        ({"JAX_COORDINATOR_ADDRESS": "h:1"}, "JAX_COORDINATOR_ADDRESS"),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),  # in a batch script
        (
            {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_STEP_ID": "0"},
            "SLURM_NTASKS=4",
        ),
        (
            {
                "SLURM_NTASKS": "4",
                "SLURM_PROCID": "0",
                "SLURM_STEP_ID": "0",
                "SLURM_STEP_NUM_TASKS": "1",
            },
            None,
        ),
    ],
)
def test_several_processes_do_not_run_alone(bare, said, name):
    for key, value in said.items():
        bare.setenv(key, value)
    if name is None:
        assert detect.place(None, None, None, 1.0) is None
        return
    with pytest.raises(DistributedError, match=f"^{name} says .*--coordinator, "):
        detect.place(None, None, None, 1.0)


def test_an_error_at_the_start_is_one_line_unless_it_is_caught(bare, capfd):
    def hook(*_):
        pass

    bare.setattr(sys, "excepthook", hook)
    bare.setenv("PMI_SIZE", "2")
    for _ in range(2):
        try:
            jaxsp.distributed.initialize()
        except DistributedError as error:
            sys.excepthook(type(error), error, None)
        lines = capfd.readouterr().err.splitlines()
        assert [line.startswith("jaxsp: PMI_SIZE=2 says ") for line in lines] == [True]
        gc.collect()
        assert sys.excepthook is hook


def test_the_exit_code_is_that_of_the_last_exit_in_the_main_thread(monkeypatch):
    run = types.SimpleNamespace(exit_code=0)
    monkeypatch.setattr(running, "_run", run)

    def leave(*code):
        with pytest.raises(SystemExit) as info:
            running._on_exit(*code)
        assert info.value.code == (code[0] if code else None)
        return run.exit_code

    assert [leave(3), leave(), leave("why"), leave(None)] == [3, 0, 1, 0]
    thread = threading.Thread(target=leave, args=[3])
    thread.start()
    thread.join()
    assert run.exit_code == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("h:1", 2, None), "process_id must be given as well"),
        ((None, 2, 0), "coordinator must be given as well"),
        (("h:1", 2, 2), "process_id must be from 0 to 1 with num_processes=2, got 2"),
        (("h:1", 0, 0), "num_processes must be at least 1, got 0"),
        (("h:1", "two", 0), "num_processes must be an integer, got 'two'"),
        (("h", 2, 0), "coordinator must be host:port"),
    ],
)
def test_what_is_given_is_checked(given, message):
    with pytest.raises(ValueError, match=message):
        jaxsp.distributed.initialize(*given)


def test_the_timeout_is_checked():
    with pytest.raises(ValueError, match="timeout must be above 0"):
        jaxsp.distributed.initialize("h:1", 2, 0, timeout=0)


def test_jax_must_not_be_in_use():
    jaxsp.distributed.process_count()
    with pytest.raises(RuntimeError, match="before the first use of JAX"):
        jaxsp.distributed.initialize("h:1", 2, 0)


# Real processes.


class Processes:
    """`count` processes of loop.py, each with its output in a file."""

    def __init__(self, folder, count, *arguments):
        address = f"127.0.0.1:{free_port()}"
        root = str(LOOP.parents[2])
        base = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
        base["PYTHONPATH"] = root
        self.files = [folder / f"{i}.txt" for i in range(count)]
        self.all = []
        for number, path in enumerate(self.files):
            with path.open("w") as file:
                self.all.append(
                    subprocess.Popen(
                        [sys.executable, LOOP, *arguments],
                        env=environment(number, count, address, "launched", base),
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )

    def wait_for(self, text):
        """Wait until every process has written the text."""
        deadline = time.monotonic() + 60
        while not all(text in path.read_text() for path in self.files):
            assert time.monotonic() < deadline, self.texts()
            assert all(process.poll() is None for process in self.all), self.texts()
            time.sleep(0.05)

    def codes(self):
        return [process.wait(timeout=60) for process in self.all]

    def texts(self):
        """What each process wrote, without what C++ says when it connects."""
        return [
            "".join(
                line
                for line in path.read_text().splitlines(keepends=True)
                if not line.startswith("[Gloo]")
            )
            for path in self.files
        ]

    def kill(self):
        for process in self.all:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def start(tmp_path):
    started = []

    def begin(count, *arguments):
        started.append(Processes(tmp_path, count, *arguments))
        return started[-1]

    yield begin
    for processes in started:
        processes.kill()


def test_a_run_that_ends_well(start):
    run = start(3, "end")
    assert run.codes() == [0, 0, 0], run.texts()
    for number, text in enumerate(run.texts()):
        assert text == (
            f"process {number} is at barrier 'of process {number}', another one at a "
            "different barrier: all processes must do the same in the same order.\n"
            "done\n"
        )


@pytest.mark.parametrize(
    ("event", "count", "victim", "number"),
    [
        ("fork", 3, 1, signal.SIGKILL),
        ("run", 3, 0, signal.SIGKILL),
        ("run", 2, 1, signal.SIGTERM),
    ],
)
def test_the_death_of_one_process_is_the_end_of_all(
    start, event, count, victim, number
):
    run = start(count, event, str(victim))
    run.wait_for("loops")
    time.sleep(random.random() / 4)
    run.all[victim].send_signal(number)
    codes = [-number if i == victim else 75 for i in range(count)]
    assert run.codes() == codes, run.texts()
    for number, text in enumerate(run.texts()):
        if number != victim:
            pid, host = run.all[victim].pid, socket.gethostname()
            assert text == (
                f"loops\njaxsp: process {victim} (pid {pid} on {host}) ended "
                f"unexpectedly, so process {number} ends as well. Start all again "
                "with: python again.py\n"
            )


@pytest.mark.parametrize(
    ("event", "who", "code", "how"),
    [
        ("raise", 0, 1, "failed with ValueError: a bug,"),
        ("exit", 1, 3, "ended with exit code 3,"),
        ("quit", 1, 4, "ended with exit code 4,"),
        ("devices", 1, 1, "failed with ValueError: process 1 has 2 CPU devices"),
    ],
)
def test_an_error_in_one_process_is_the_end_of_all(start, event, who, code, how):
    run = start(2, event, str(who))
    codes = run.codes()
    texts = run.texts()
    if event == "devices":  # which every process sees
        assert set(codes) <= {1, 75}
        for text in texts:
            assert "process 1 has 2 CPU devices, must have one: set" in text
        return
    assert codes == [code if i == who else 75 for i in range(2)], texts
    (line,) = (t for t in texts[1 - who].splitlines() if t != "loops")
    assert f"{how} so process {1 - who} ends as well. Start" in line
    assert texts[who].count("Traceback") == (event == "raise")


def test_what_is_wrong_at_the_start_is_one_line_everywhere(start):
    run = start(2, "differ", "1")
    assert run.codes() == [1, 1]
    lines = set(run.texts())
    assert len(lines) == 1
    (line,) = lines
    assert line.count("\n") == 1
    assert line.startswith("jaxsp: process 1 (pid ")
    assert "has seed.data=true where process 0 has seed.data=false: start all" in line
