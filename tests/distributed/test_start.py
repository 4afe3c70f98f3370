"""Processes meet, agree or say why not, and end together."""

import ast
import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import jaxsp.distributed
from jaxsp.distributed import DistributedError, compare, detect, lost_peer
from jaxsp.launch import environment

LOOP = pathlib.Path(__file__).parents[1] / "processes" / "loop.py"


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


# What differs.


def said(**changes):
    """What a process says of itself, with other values at some places."""
    found = json.loads(compare.describe(2, {"a": 1, "b": {"c": 2}}))
    for path, value in changes.items():
        part, _, name = path.partition("__")
        found[part] = found[part] | {name: value}
    return json.dumps(found)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"versions__jax": "9.9"}, r"has jax 9\.9 where process 0 has jax .*: install"),
        (
            {"count__num_processes": 3},
            "has num_processes=3 where process 0 has num_processes=2: start all with",
        ),
        (
            {"options__jax_enable_x64": "True"},
            'has jax_enable_x64="True" where process 0 has jax_enable_x64="False": set',
        ),
        (
            {"options__--xla_x": "3"},
            'has --xla_x="3" where process 0 has no --xla_x: set JAX and XLA_FLAGS',
        ),
        (
            {"settings__b": {"c": 3}},
            r"has b\.c=3 where process 0 has b\.c=2: start all with the same settings",
        ),
        ({"settings__d": None}, "has d=null where process 0 has no d"),
    ],
)
def test_a_difference_is_one_line(changes, line):
    assert compare.disagreement([said(), said()]) is None
    found = compare.disagreement([said(), said(), said(**changes)])
    assert found.startswith(f"process 2 (pid {os.getpid()} on ")
    with pytest.raises(AssertionError, match=line):
        raise AssertionError(found)


def test_differences_are_found_by_key_and_kept_short():
    ours = {"a": 1, "b": [1], "c": {}, "d": "x" * 99, "e": None}
    theirs = {"a": 1.0, "b": [2], "c": {"k": 0}, "d": "x"}
    assert compare.differing_keys(theirs, ours) == ["a", "b", "c.k", "d", "c", "e"]
    line = compare.disagreement([compare.describe(2, c) for c in (ours, theirs)])
    assert "and 3 more" in line
    assert len(line) < 500


@pytest.mark.parametrize(
    ("option", "value", "computes"),
    [
        ("enable_x64", True, True),
        ("threefry_partitionable", False, True),
        ("default_prng_impl", "rbg", True),
        ("default_matmul_precision", "highest", True),
        ("numpy_rank_promotion", "raise", False),
        ("numpy_dtype_promotion", "strict", False),
        ("debug_nans", True, False),
    ],
)
def test_options_of_jax_are_compared_as_they_are_now(option, value, computes):
    """And those on which numbers depend are part of a run."""
    before, numbers = compare.describe(2, None), compare.number_options()
    with getattr(jax, option)(value):
        found = compare.disagreement([before, compare.describe(2, None)])
        assert f'has jax_{option}="{value}" where process 0 has jax_{option}=' in found
        now = compare.number_options()
    changed = {name for name in now if now[name] != numbers[name]}
    assert changed == ({f"jax_{option}"} if computes else set())


def test_flags_of_xla_are_compared_but_for_what_they_write(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1 --xla_b --xla_a=2")
    one = compare.describe(2, None)
    own = "--xla_dump_to=/there --xla_force_host_platform_device_count=8"
    monkeypatch.setenv("XLA_FLAGS", f"--xla_b  {own} --xla_a=2")
    assert compare.disagreement([one, compare.describe(2, None)]) is None
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1 --xla_b")
    found = compare.disagreement([one, compare.describe(2, None)])
    assert 'has --xla_a="1" where process 0 has --xla_a="2": set JAX and' in found


def test_the_settings_are_json():
    with pytest.raises(ValueError, match="settings must be what JSON can hold"):
        compare.describe(2, {"a": object()})


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
    jaxsp.distributed.finalize()
    assert jaxsp.distributed.process_count() == 1
    assert jaxsp.distributed.is_main()
    np.testing.assert_array_equal(jaxsp.distributed.process_max([[3], [4]]), [[3], [4]])


def test_alone_a_block_is_what_it_is():
    with jaxsp.distributed.ending_together():
        pass
    with pytest.raises(SystemExit), jaxsp.distributed.ending_together():
        sys.exit(3)
    with pytest.raises(KeyError), jaxsp.distributed.ending_together():
        raise KeyError("lost")


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


def test_an_interactive_step_of_a_larger_job_is_alone(bare):
    """Its SLURM_NTASKS is the job's."""
    values = {"JOB_ID": "5000", "STEP_NODELIST": "n1", "NTASKS": "4", "PROCID": "0"}
    values |= {"LOCALID": "0", "STEP_ID": "4294967290", "JOB_NAME": "interactive"}
    for name, value in values.items():
        bare.setenv(f"SLURM_{name}", value)
    assert detect.place(None, None, None, 1.0).num_processes == 4
    bare.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert detect.place(None, None, None, 1.0) is None
    jaxsp.distributed.initialize()
    bare.setenv("SLURM_STEP_NUM_TASKS", "2")
    assert detect.place(None, None, None, 1.0).num_processes == 2


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


@pytest.mark.parametrize("address", ["node1", "node1:", ":80", "node1:x", "a:70000"])
def test_the_address_is_checked(address):
    with pytest.raises(ValueError, match="coordinator must be host:port"):
        detect.split_address(address)


def test_an_address_may_be_ipv6():
    assert detect.split_address("[fe80::1]:80") == ("fe80::1", 80)


@pytest.mark.parametrize("name", ["initialization_timeout", "heartbeat_timeout"])
def test_the_timeouts_are_checked(name):
    with pytest.raises(ValueError, match=f"{name} must be"):
        jaxsp.distributed.initialize("h:1", 2, 0, **{name: 0})


@pytest.mark.parametrize(
    ("host", "why"),
    [("127.0.0.1", "Connection refused"), ("no-such-host.invalid", "")],
)
def test_a_coordinator_that_is_not_there_is_one_line(host, why):
    with pytest.raises(DistributedError, match=rf"process 1 cannot reach .*\({why}"):
        jaxsp.distributed.initialize(
            f"{host}:{free_port()}", 2, 1, initialization_timeout=0.3
        )


@pytest.mark.parametrize(
    "found",
    [
        socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
        [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("203.0.113.7", 0))],
    ],
)
def test_a_machine_whose_name_has_no_address_here_is_named(monkeypatch, found):
    def getaddrinfo(*given, **options):
        if isinstance(found, OSError):
            raise found
        return found

    monkeypatch.setattr(socket, "gethostname", lambda: "node7")
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    said = r"^the name of this machine, node7, has no address .*\((Name|Cannot).*\), .*"
    with pytest.raises(
        DistributedError, match=said + r"a line of /etc/hosts.* node7\."
    ):
        jaxsp.distributed.initialize("127.0.0.1:1", 2, 1)


@pytest.mark.parametrize("host", ["127.0.0.1", "node7"])
def test_a_port_that_is_taken_is_one_line(host):
    """Also where JAX's service of another run would share it."""
    everywhere = host == "node7"
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("" if everywhere else host, 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = (
            rf"process 0 cannot listen at port {port} \(Address already in use\): give"
        )
        with pytest.raises(DistributedError, match=said):
            jaxsp.distributed.initialize(f"{host}:{port}", 2, 0)


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer"), True),
        (jax.errors.JaxRuntimeError("INTERNAL: NCCL operation failed"), True),
        (ValueError("learning_rate must be above 0"), False),
        (BrokenPipeError("Broken pipe"), False),
        (None, False),
    ],
)
def test_what_a_lost_peer_looks_like(error, lost):
    assert lost_peer(error) == lost
    if lost:
        made = RuntimeError("made of it")
        made.__cause__ = error
        assert lost_peer(made)


def test_the_library_imports_no_sockets_and_starts_no_processes():
    for path in (LOOP.parents[2] / "jaxsp").rglob("*.py"):
        if path.name == "launch.py" or "gan" in path.parts:
            continue
        for node in ast.parse(path.read_text()).body:
            names = [a.name for a in getattr(node, "names", [])]
            names.append(getattr(node, "module", None))
            assert not {"socket", "subprocess"} & {*names}, path


# Real processes.


class Processes:
    """`count` processes of loop.py, each with its output in a file."""

    def __init__(self, folder, count, *arguments):
        address = f"127.0.0.1:{free_port()}"
        base = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
        base["PYTHONPATH"] = str(LOOP.parents[2])
        base |= {
            f"{of}_proxy": "http://127.0.0.1:9" for of in ("http", "https", "grpc")
        }
        base |= {"no_proxy": ""}
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

    def codes(self, but=None):
        """The exit codes, but of a process that does not end; it is killed."""
        found = [
            None if i == but else process.wait(timeout=90)
            for i, process in enumerate(self.all)
        ]
        self.kill()
        return found

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


LINE = "jaxsp: another process is gone, so process {} ends as well. Start all again "


def test_a_run_that_ends_well(start):
    run = start(3, "end")
    assert run.codes() == [0, 0, 0], run.texts()
    assert run.texts() == ["done\n"] * 3


@pytest.mark.parametrize(
    ("event", "code", "count"),
    [("kill", -signal.SIGKILL, 3), ("raise", 1, 2), ("exit", 3, 2), ("words", 1, 2)],
)
def test_an_end_of_one_process_is_the_end_of_all(start, event, code, count):
    run = start(count, event, "1")
    begun = time.monotonic()
    codes = run.codes()
    assert codes[1] == code, run.texts()
    assert time.monotonic() - begun < 60
    for number in {0, count - 1} - {1}:  # JAX's service ends them too, in many words
        assert codes[number] in (75, -signal.SIGABRT), run.texts()
        if codes[number] == 75:
            line = f"{LINE.format(number)}with: python again.py\n"
            assert run.texts()[number].endswith(line)
    assert run.texts()[1].count("Traceback") == (event == "raise")
    assert ("the reason" in run.texts()[1]) == (event == "words")


def test_the_end_of_process_0_is_the_end_of_all(start):
    """JAX's service is gone: its clients abort, if they are not quicker."""
    run = start(2, "kill", "0")
    codes = run.codes()
    assert codes[0] == -signal.SIGKILL
    assert codes[1] in (75, -signal.SIGABRT), run.texts()


@pytest.mark.parametrize(
    ("event", "who", "codes"),
    [
        ("bare raise", 1, {1}),  # nobody waits: the exception is seen at the exit
        ("bare exit", 3, {-signal.SIGABRT, 1, 3, 75}),  # JAX waits 3 heartbeats
        ("bare kill", -signal.SIGKILL, {-signal.SIGKILL}),
    ],
)
def test_scripts_that_know_nothing_of_it_end_too(start, event, who, codes):
    run = start(2, event, "1")
    first, second = run.codes()
    assert second in codes, run.texts()
    assert first in (75, 1, -signal.SIGABRT), run.texts()


def test_a_process_that_hangs_is_found_by_its_heartbeat(start):
    run = start(2, "stop", "1")
    first, _ = run.codes(but=1)
    assert first in (75, -signal.SIGABRT), run.texts()


def test_what_one_raises_all_raise(start):
    run = start(2, "together")
    assert run.codes() == [1, 1], run.texts()
    first, second = run.texts()
    assert first.endswith("DistributedError: process 1: no space left\n")
    assert second.endswith("OSError: no space left\n")


@pytest.mark.parametrize(
    ("event", "line"),
    [
        ("options", 'has jax_threefry_partitionable="False" where process 0 has'),
        ("devices", "process 1 has 2 CPU devices, must have one: set"),
    ],
)
def test_what_is_wrong_at_the_start_is_the_same_line_everywhere(start, event, line):
    run = start(2, event, "1")
    assert run.codes() == [1, 1]
    lines = {text.splitlines()[-1] for text in run.texts()}
    assert len(lines) == 1
    assert line in lines.pop()


def test_who_waits_in_vain_says_so_in_one_line(tmp_path):
    code = "import jaxsp.distributed as d; d.initialize({!r}, 2, 0, {}=1.5)".format(
        f"127.0.0.1:{free_port()}", "initialization_timeout"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(LOOP.parents[2])},
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 2
    said = "jaxsp: process 0 did not meet all 2 processes at 127.0.0.1:"
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1
