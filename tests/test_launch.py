"""Processes are started, heard, and ended together."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from jaxsp import launch

CHILD = pathlib.Path(__file__).parent / "processes" / "child.py"


@pytest.fixture
def run(monkeypatch, capfd):
    """Launch child.py; its exit code, and the sorted lines of stdout and stderr."""
    monkeypatch.setenv("PYTHONPATH", str(CHILD.parents[2]))

    def start(count, *arguments, **options):
        command = [sys.executable, str(CHILD), *arguments]
        code = launch.launch(command, count, options.pop("resume_command", "again"))
        said = capfd.readouterr()
        return code, sorted(said.out.splitlines()), sorted(said.err.splitlines())

    return start


def alive(pid):
    """Whether a process runs; a zombie does not."""
    done = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True
    )
    return bool(done.stdout.strip()) and not done.stdout.strip().startswith("Z")


def all_end(pids):
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(alive(pid) for pid in pids)


def pids(lines):
    return [int(line.split()[-1]) for line in lines if " pid " in line]


def test_lines_begin_with_the_number_of_their_process(run):
    """All but those by which gloo greets."""
    code, out, err = run(2, "talk")
    assert code == 0
    assert out == [f"[{i}] {line}" for i in (0, 1) for line in ("no end", "one", "two")]
    assert err == ["[0] wrong", "[1] wrong"]


def test_processes_find_each_other_and_have_one_device(run, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--a --xla_force_host_platform_device_count=8 --b")
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "8")
    code, out, _ = run(2, "environment", "--x", "y z", resume_command="again 'x y'")
    assert code == 0
    first, second = (line.removeprefix(f"[{i}] ") for i, line in enumerate(out))
    assert first == second
    assert re.fullmatch(
        r"127\.0\.0\.1:\d+\|2\|1\|--a +--b\|again 'x y'\|\['--x', 'y z'\]", first
    )


def test_one_that_fails_ends_the_others(run, monkeypatch):
    monkeypatch.setattr(launch, "_GRACE", 0.3)
    code, out, err = run(3, "fail")
    assert code == 7
    assert err == ["jaxsp.launch: process 1 ended with exit code 7"]
    assert len(out) == len(pids(out)) == 2
    assert not any(alive(pid) for pid in pids(out))


def test_the_exit_code_is_of_the_first_that_failed(run):
    code, _, err = run(2, "killed")
    assert code == 128 + signal.SIGKILL
    assert err == ["jaxsp.launch: process 0 was ended by SIGKILL"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("", "the following arguments are required: -n, script"),
        ("-n 2", "the following arguments are required: script"),
        ("-n 0 x.py", "-n must be at least 1 process, got 0"),
        ("-n two x.py", "argument -n: invalid int value: 'two'"),
        ("-n 2 no-such.py", "there is no script 'no-such.py'"),
        ("-n 2 -m no.such", "there is no module 'no.such'"),
    ],
)
def test_what_is_wrong_is_one_line(capfd, words, line):
    with pytest.raises(SystemExit) as ended:
        launch.main(words.split())
    assert ended.value.code == 2
    assert capfd.readouterr().err == f"jaxsp.launch: {line}; see --help\n"


def test_too_many_processes_are_none(capfd, monkeypatch):
    started = []

    class Popen(subprocess.Popen):
        def __init__(self, *args, **options):
            if started:
                raise OSError(24, "Too many open files")
            silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            super().__init__(*args, **options | silent)
            started.append(self.pid)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    with pytest.raises(SystemExit) as ended:
        launch.main(["-n", "2", str(CHILD), "sleep"])
    assert ended.value.code == 2
    line = "-n 2: cannot start as many (Too many open files); see --help"
    assert capfd.readouterr().err == f"jaxsp.launch: {line}\n"
    monkeypatch.undo()
    assert all_end(started)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_an_ignored_signal_stays_ignored(run, monkeypatch, number):
    previous = signal.signal(number, signal.SIG_IGN)
    try:
        seen = []
        wait = launch._wait
        monkeypatch.setattr(
            launch,
            "_wait",
            lambda *given: seen.append(signal.getsignal(number)) or wait(*given),
        )
        assert run(1, "talk")[0] == 0
        assert seen == [signal.getsignal(number)] == [signal.SIG_IGN]
    finally:
        signal.signal(number, previous)


def test_the_command_line_passes_arguments_on(run, capfd, monkeypatch):
    monkeypatch.chdir(CHILD.parents[2])
    code = launch.main(["-n", "1", "-m", "tests.processes.child", "environment", "-n"])
    assert code == 0
    (line,) = capfd.readouterr().out.splitlines()
    command = r"\S+ -m jaxsp.launch -n 1 -m tests.processes.child environment -n"
    assert re.fullmatch(rf"\[0\] 127.*\|{command}\|\['-n'\]", line)


@pytest.mark.parametrize("first", [[], ["--"]])
def test_the_script_gets_its_double_dashes(tmp_path, capfd, first):
    script = tmp_path / "echo.py"
    script.write_text("import sys; print(sys.argv[1:])")
    for given in (["--", "-n", "--"], ["--"], ["-n", "--", "x"]):
        assert launch.main(["-n", "1", *first, str(script), *given]) == 0
        assert capfd.readouterr().out == f"[0] {given}\n"


@pytest.fixture
def launcher(tmp_path):
    """A launcher that is a process of its own, and what it has written."""
    started = []

    def start(count, event):
        path = tmp_path / "out.txt"
        # A job in the background ignores SIGINT; what has a handler is reset.
        previous = signal.signal(signal.SIGINT, signal.default_int_handler)
        with path.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "jaxsp.launch", "-n", str(count), CHILD, event],
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(CHILD.parents[2])},
            )
        signal.signal(signal.SIGINT, previous)
        started.append((process, path))
        return process, path

    yield start
    for process, path in started:
        process.kill()
        process.wait()
        assert all_end(pids(path.read_text().splitlines()))


def wait_for(path, count):
    """The process ids that are written there, when `count` of them are."""
    deadline = time.monotonic() + 60
    while len(found := pids(path.read_text().splitlines())) < count:
        assert time.monotonic() < deadline, path.read_text()
        time.sleep(0.05)
    return found


def test_ctrl_c_is_passed_on(launcher):
    process, path = launcher(3, "interrupt")
    wait_for(path, 3)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 5
    lines = path.read_text().splitlines()
    assert sorted(line for line in lines if " pid " not in line) == [
        f"[{i}] interrupted" for i in range(3)
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="by a call of Linux")
def test_no_process_outlives_a_launcher_that_is_killed(launcher):
    process, path = launcher(2, "sleep")
    found = wait_for(path, 2)
    assert all(alive(pid) for pid in found)
    process.kill()
    assert all_end(found)
