"""Every flag of every command with wrong values: one line that names it."""

import dataclasses
import importlib.util
import pathlib
import sys
import typing

import numpy as np
import pytest

from jaxsp.gan import scores
from jaxsp.gan.scores import __main__ as scores_command
from jaxsp.gan.train import __main__ as train_command
from jaxsp.gan.train.methods import METHODS
from jaxsp.gan.training import loop
from jaxsp.robust import training

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"


def example(name):
    """A script as a module of its own, as no other test sees it."""
    path, own = EXAMPLES / f"{name}.py", f"{name}_for_wrong_flags"
    spec = importlib.util.spec_from_file_location(own, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[own] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


compare_command, robust_command = map(example, ("compare", "train_robust"))
COMMANDS = (train_command, scores_command, compare_command, robust_command)
COMMANDS = {command.PROGRAM: command for command in COMMANDS}
TEXTS = ["", "nosuch", "mlp:100000000", "mlp:0", "ring:1e400", "a:b:c", "y" * 5000]
PATHS = ["", "~nosuchuser/x", "~nosuchuser", "a\0b", "y" * 5000]


def wrong_values(field, kind, rng):
    """What a flag cannot be, by its type; some of it drawn."""
    if kind is bool:
        return ["maybe", "2", ""]
    if kind is str:
        return PATHS if field.metadata["path"] else TEXTS
    huge = "1" + "0" * int(rng.integers(20, 400))
    low = (field.metadata["bounds"] or (0, None))[0]
    below = str(int(low) - int(rng.integers(1, 1000)))
    if kind is int:
        return ["", "x", "1.5", "nan", "1e3", huge, below, f"-{huge}"]
    tiny = f"{rng.uniform(1, 9):.3f}e-{rng.integers(40, 320)}"
    return ["", "x", "nan", "inf", "-inf", "1e39", "1e400", tiny, below]


def cases():
    rng = np.random.default_rng(0)
    for program, command in COMMANDS.items():
        kinds = typing.get_type_hints(command.Config)
        for field in dataclasses.fields(command.Config):
            kind, *_ = typing.get_args(kinds[field.name]) or [kinds[field.name]]
            values = wrong_values(field, kind, rng)
            yield pytest.param(
                program, field.name, values, id=f"{program}-{field.name}"
            )


@pytest.mark.parametrize(("program", "name", "values"), list(cases()))
def test_a_wrong_value_takes_one_line(
    call, tmp_path, monkeypatch, program, name, values
):
    def too_late(*args, **kwargs):
        raise AssertionError("work has begun")

    for module, function in (
        (scores, "evaluator"),
        (loop, "train"),
        (training, "train"),
    ):
        monkeypatch.setattr(module, function, too_late)
    own = [method for method, flags in METHODS.items() if name in flags]
    with_it = own[-1] if own else "dp_oadam"
    before = [f"--method={with_it}"] if program == train_command.PROGRAM else []
    before = [f"--methods={with_it}"] if program == compare_command.PROGRAM else before
    for value in values:
        if name == "model" and value.startswith("mlp:") and not before:
            continue  # it would fit no checkpoint, of which there is none
        code, out, err = call(COMMANDS[program], *before, f"--{name}={value}")
        out = out.removeprefix(f"--- 1 of 1: {with_it}\n")  # what is compared
        assert (code, out) == (2, ""), (value[:50], err)
        assert err.startswith(f"{program}: ")
        assert err.count("\n") == 1
        said = f"--{name}".removesuffix("s" if name == "methods" else "")
        assert said in err, value[:50]
        assert len(err) < 1000
    assert list(tmp_path.iterdir()) == []
