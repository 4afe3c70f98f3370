"""Commands: what becomes of a dataclass, and of what a user writes."""

import dataclasses
import json
import math
import subprocess
import sys

import pytest
from absl import flags

from jaxsp.gan import command
from jaxsp.gan.command import BadFlagError, flag


@dataclasses.dataclass(frozen=True)
class Config:
    graph: str = flag("ring", "Who talks.", names=("ring", "torus"))
    steps: int = flag(5, "How many.", within=command.COUNT)
    rate: float | None = flag(None, "How far.", within=command.POSITIVE)
    quick: bool = flag(False, "Whether to hurry.")
    where: str | None = flag(None, "Where.")


def parsed(*arguments, of=Config):
    values = flags.FlagValues()
    command.define(of, values)
    return values, values(["program", *arguments])


def call(main, *arguments):
    values, rest = parsed(*arguments)
    return command.call("program", Config, main, rest, values)


def test_fields_are_flags_of_their_types():
    assert command.read(Config, parsed()[0]) == Config()
    values, _ = parsed("--graph=torus", "--steps=7", "--rate=1e-3", "--quick")
    assert command.read(Config, values) == Config("torus", 7, 1e-3, True)
    with pytest.raises(flags.IllegalFlagValueError):
        parsed("--steps=many")
    with pytest.raises(flags.UnrecognizedFlagError, match="Did you mean: steps"):
        parsed("--stepz=7")


def test_a_command_inherits_flags():
    @dataclasses.dataclass(frozen=True)
    class More(Config):
        depth: int = flag(1, "How deep.")

    values, _ = parsed("--depth=2", "--steps=3", of=More)
    assert command.read(More, values) == More(steps=3, depth=2)


def test_texts_replace_fields_as_flags_do():
    config = command.with_texts(Config(steps=2), {"rate": "0.5", "quick": "true"})
    assert config == Config(steps=2, rate=0.5, quick=True)
    with pytest.raises(BadFlagError, match="--rate=fast: flag"):
        command.with_texts(config, {"rate": "fast"})


@pytest.mark.parametrize(
    ("within", "inside", "outside"),
    [
        (command.COUNT, [1, 10**9], [0, -1, math.inf, math.nan]),
        (command.POSITIVE, [1e-9, 5.0], [0, 0.0, -1e-9, math.nan, math.inf]),
        (command.FRACTION, [1e-9, 1], [0, 1 + 1e-9, math.nan]),
        (command.Range(2, 8), [2, 8], [1, 9]),
    ],
)
def test_ranges(within, inside, outside):
    assert all(value in within for value in inside)
    assert not any(value in within for value in outside)


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--steps=0", "--steps=0: must be at least 1."),
        ("--rate=0", "--rate=0.0: must be above 0."),
        ("--rate=nan", "--rate=nan: must be above 0."),
        (
            "--graph=rng:3",
            "--graph=rng:3: there is no such graph; did you mean ring? write one of "
            "ring, torus.",
        ),
        (
            "--graph=qqq",
            "--graph=qqq: there is no such graph; write one of ring, torus.",
        ),
        ("false", "unexpected 'false': flags are written --name=value."),
    ],
)
def test_a_bad_flag_takes_one_line_and_nothing_runs(argument, said, capsys):
    def main(config):
        raise AssertionError("it runs")

    assert call(main, argument) == 2
    assert capsys.readouterr().err == f"program: {said}\n"


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


def test_exit_codes():
    assert call(lambda config: None) == 0
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
            "program: Unknown command line flag 'step'. Did you mean: steps ?\n",
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
