"""Commands: what becomes of a dataclass, and of what a user writes."""

import dataclasses
import json
import math
import platform
import subprocess
import sys
from typing import ClassVar

import pytest

from jaxsp.gan import command
from jaxsp.gan.command import BadFlagError, flag

NO_FLAG = "there is no flag of this name;"


@dataclasses.dataclass(frozen=True)
class Config:
    NOT_FLAGS: ClassVar[frozenset[str]] = frozenset({"checksum"})

    graph: str = flag("ring", "Who talks.", names=("ring", "torus"), colon=True)
    steps: int = flag(5, "How many.", bounds=(1, None))
    rate: float | None = flag(None, "How far.", bounds=(0, 1))
    quick: bool = flag(False, "Whether to hurry.")
    where: str | None = flag(None, "Where.", path=True)
    steps_per_second: float = flag(1.0, "How fast.")
    far: float = flag(1.0, "Like the rate, without an end.", bounds=(1e-12, None))
    kind: str = flag("a", "Which.", names=("a",))


def call(main, *arguments, of=Config):
    return command.call("program", of, main, *arguments)


def read(*arguments, of=Config):
    """The dataclass that a command gets."""
    got = []
    assert call(lambda config: got.append(config) or 0, *arguments, of=of) == 0
    return got[0]


def test_fields_are_flags_of_their_types():
    assert read() == Config()
    config = read("--graph=torus:3", "--steps=7", "--rate=1e-3", "--quick", "--where=x")
    assert config == Config("torus:3", 7, 1e-3, True, "x")
    assert read("--noquick", "--rate=1") == Config(rate=1.0)


def test_a_command_inherits_flags():
    @dataclasses.dataclass(frozen=True)
    class More(Config):
        depth: int = flag(1, "How deep.")

    assert read("--depth=2", "--steps=3", of=More) == More(steps=3, depth=2)


def test_texts_replace_fields_as_flags_do():
    config = command.with_texts(Config(steps=2), {"rate": "0.5", "quick": "true"})
    assert config == Config(steps=2, rate=0.5, quick=True)
    for name, text in (("rate", "fast"), ("steps", "0"), ("graph", "rng")):
        with pytest.raises(BadFlagError, match=f"--{name}={text}"):
            command.with_texts(config, {name: text})


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--steps=0", "--steps=0 must be at least 1 and finite in float32."),
        ("--steps=many", "flag --steps=many: invalid literal for int() with base 10: "),
        ("--rate=2", "--rate=2.0 must be at least 0 and at most 1."),
        ("--rate=nan", "--rate=nan must be at least 0 and at most 1."),
        ("--far=inf", "--far=inf must be at least 1e-12 and finite in float32."),
        ("--far=nan", "--far=nan must be at least 1e-12 and finite in float32."),
        ("--kind=a:3", "--kind=a:3: there is no a:3; did you mean a? write one of a."),
        (
            "--graph=rng:3",
            "--graph=rng:3: there is no rng; did you mean ring? write one of "
            "ring, torus.",
        ),
        ("--graph=q", "--graph=q: there is no q; write one of ring, torus."),
        ("--stepz=7", f"--stepz: {NO_FLAG} did you mean --steps? --help shows all."),
        ("--st=7", f"--st: {NO_FLAG} did you mean --steps?"),
        ("--sps=7", f"--sps: {NO_FLAG} did you mean --steps_per_second?"),
        ("--Steps-per_sec", f"--Steps-per_sec: {NO_FLAG} did you mean --steps_per"),
        ("--xyz=7", f"--xyz: {NO_FLAG} --help shows all."),
        ("--where=", "--where= is empty: write a value, or leave it out."),
        ("--where=~nosuchuser/a", "--where='~nosuchuser/a': "),
        ("--where=a\0b", "--where='a\\x00b': "),
        ("--flagfile=nowhere", "ERROR:: Unable to open flagfile: "),
        ("--config=nowhere", "--config=nowhere: [Errno 2] No such file"),
        ("false", "unexpected 'false': flags are written --name=value."),
    ],
)
def test_a_bad_flag_takes_one_line_and_nothing_runs(argument, said, capsys):
    def main(config):
        raise AssertionError("it runs")

    assert call(main, argument) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"program: {said}")
    assert err.count("\n") == 1


def test_a_file_gives_the_flags_that_are_not_on_the_command_line(tmp_path):
    found = {"steps": 7, "rate": 0.5, "quick": True, "checksum": 3, "where": None}
    run = {"settings": {"steps": 7, "checksum": 3}, "free": {"graph": "torus:2"}}
    for i, (content, config) in enumerate(
        ((found, Config(steps=7, rate=0.5, quick=True)), (run, Config("torus:2", 7)))
    ):
        path = tmp_path / str(i) / "config.json"
        path.parent.mkdir()
        path.write_text(json.dumps(content))
        assert read(f"--config={path}") == read(f"--config={path.parent}") == config
        more = dataclasses.replace(config, steps=9)
        assert read(f"--config={path}", "--steps=9") == more
        assert read("--steps=9", f"--config={path}") == more


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "Expecting property name"),
        ("[1]", "it must be an object of names and values."),
        ('{"stepz": 7}', f"--stepz: {NO_FLAG} did you mean --steps?"),
        ('{"steps": [7]}', "steps must be a number or a text."),
        ('{"steps": "many"}', "flag --steps=many: invalid literal"),
        ('{"quick": 3}', "flag --quick=3: "),
    ],
)
def test_a_file_that_is_wrong_is_named(tmp_path, capsys, content, said):
    path = tmp_path / "file.json"
    path.write_text(content)
    assert call(lambda config: 0, f"--config={path}") == 2
    err = capsys.readouterr().err
    assert err.startswith(f"program: --config={path}: {said}")
    assert err.count("\n") == 1


def test_what_a_file_says_is_checked_as_flags_are(tmp_path, capsys):
    path = tmp_path / "file.json"
    path.write_text('{"steps": 0}')
    assert call(lambda config: 0, f"--config={path}") == 2
    assert "--steps=0 must be at least 1" in capsys.readouterr().err


def test_flags_can_stand_in_a_file_of_lines(tmp_path):
    path = tmp_path / "flags"
    path.write_text("--steps=7\n# a comment\n--quick\n")
    assert read(f"--flagfile={path}", "--steps=8") == Config(steps=8, quick=True)


def test_an_interrupt_takes_one_line(capsys):
    def main(config):
        raise KeyboardInterrupt

    assert call(main) == 130
    assert capsys.readouterr().err == "program: interrupted.\n"


def test_what_the_library_says_stands_behind_the_flag(capsys):
    def main(config):
        with command.naming("where", config.where, ValueError, OSError):
            raise error

    error = OSError("there\nis no  disk")
    assert call(main, "--where=/d") == 2
    assert capsys.readouterr().err == "program: --where=/d: there is no disk\n"
    error = KeyError("another")
    with pytest.raises(KeyError):
        call(main)
    error = BadFlagError("--other: has its name already.")
    assert call(main) == 2
    assert capsys.readouterr().err == "program: --other: has its name already.\n"


def test_the_exit_code_is_what_the_command_returns():
    assert call(lambda config: config.steps, "--steps=130") == 130


PROGRAM = """
'''A program.'''
import dataclasses, json, sys
from jaxsp.gan import command

@dataclasses.dataclass(frozen=True)
class Config:
    steps: int = command.flag(5, "How many.")

def main(config):
    print(json.dumps(dataclasses.asdict(config)))
    return 3

if __name__ == "__main__":
    command.run("program", Config, main)
"""


@pytest.mark.parametrize(
    ("argument", "code", "out", "err"),
    [
        ("--steps=2", 3, json.dumps({"steps": 2}) + "\n", ""),
        (
            "--step=2",
            2,
            "",
            f"program: --step: {NO_FLAG} did you mean --steps? --help shows all.\n",
        ),
        ("--helpshort", 1, "--steps: How many.", ""),
    ],
)
def test_as_a_program(tmp_path, argument, code, out, err):
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, tmp_path / "program.py", argument],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (code, err)
    assert out in done.stdout


FAULTS = """
import ctypes, dataclasses, resource, sys, threading
from jaxsp.gan import command

@dataclasses.dataclass(frozen=True)
class Config:
    pass

def main(config):
    libc, size = ctypes.CDLL(None), 2**26
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    counts = []

    def use():
        for _ in range(5):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            buffer = libc.malloc(size)
            ctypes.memset(buffer, 1, size)
            libc.free(buffer)
            after = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            counts.append(after - before)

    thread = threading.Thread(target=use)  # as XLA computes in some
    thread.start()
    thread.join()
    print(min(counts))
    return 0

if __name__ == "__main__":
    getattr(command, sys.argv.pop())("program", Config, main)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries")
@pytest.mark.parametrize(
    ("how", "low", "high"),
    [("run", 0, 5), ("call", 2**26 // 2**21, math.inf)],  # of the largest pages
)
def test_only_a_programs_buffers_are_kept(tmp_path, how, low, high):
    """Page faults of a buffer like one that was free a moment ago."""
    (tmp_path / "program.py").write_text(FAULTS)
    words = [sys.executable, tmp_path / "program.py", how]
    faults = int(subprocess.run(words, capture_output=True, check=True).stdout)
    assert low <= faults < high
