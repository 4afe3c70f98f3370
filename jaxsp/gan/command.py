"""Commands: flags from a dataclass, and errors of one line.

What a command can be told is a frozen dataclass. Each field is a flag of the same name,
with its type, its default, and what `flag` says of it; the command itself is a function
of the dataclass that returns an exit code. The training script, the comparison script
and the scores are commands.
"""

import contextlib
import dataclasses
import difflib
import os
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from absl import app, flags, logging

__all__ = ["BadFlagError", "call", "complain", "flag", "naming", "run", "with_texts"]

_PARSERS = {
    str: flags.ArgumentParser,
    int: flags.IntegerParser,
    float: flags.FloatParser,
    bool: flags.BooleanParser,
}


class BadFlagError(ValueError):
    """A flag that cannot be used; the message is one line for the user."""


def flag(
    default: Any,
    words: str,
    *,
    bounds: tuple[float, float | None] | None = None,
    names: Iterable[str] | None = None,
) -> Any:
    """A field of a command's dataclass.

    Args:
      default: its default, also the flag's.
      words: what --help says.
      bounds: the least number that it may be, and the largest or None.
      names: the names that it may be, each perhaps with more after a colon.

    Returns:
      The field, for the right-hand side of an annotation `str`, `int`, `float` or
      `bool`, each perhaps `| None`.
    """
    metadata = {"words": words, "bounds": bounds, "names": names and tuple(names)}
    return dataclasses.field(default=default, metadata=metadata)


class _NameParser(flags.ArgumentParser):
    """A text that begins with one of some names."""

    def __init__(self, names: Sequence[str]):
        self._names = names

    def parse(self, argument: str) -> str:
        name = argument.partition(":")[0]
        if name in self._names:
            return argument
        near = difflib.get_close_matches(name, self._names, n=1, cutoff=0.4)
        hint = f" did you mean {near[0]}?" if near else ""
        raise ValueError(
            f"there is no {name};{hint} write one of {', '.join(self._names)}."
        )


def _define(config_type: type, values: flags.FlagValues) -> None:
    """Define a flag for each field."""
    flags.disclaim_key_flags()  # --helpshort shows them as the script's own
    kinds = typing.get_type_hints(config_type)
    for field in dataclasses.fields(config_type):
        kind, metadata = kinds[field.name], field.metadata
        if isinstance(kind, types.UnionType):
            kind = next(k for k in typing.get_args(kind) if k is not types.NoneType)
        name, default = field.name, typing.cast(Any, field.default)
        words = metadata["words"]
        if kind is bool:
            flags.DEFINE_bool(name, default, words, flag_values=values)
            continue
        parser = _PARSERS[kind](*(metadata["bounds"] or ()))
        if metadata["names"]:
            parser = _NameParser(metadata["names"])
        flags.DEFINE(parser, name, default, words, flag_values=values)


def _parse(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """Parse a command line, of which argv[0] is the program."""
    try:
        rest = values(argv)
    except flags.Error as error:
        raise BadFlagError(_one_line(error)) from None
    if len(rest) > 1:
        raise BadFlagError(f"unexpected {rest[1]!r}: flags are written --name=value.")


def _read(config_type: type, values: flags.FlagValues) -> Any:
    names = (field.name for field in dataclasses.fields(config_type))
    return config_type(**{name: values[name].value for name in names})


def with_texts(config: Any, texts: Mapping[str, str]) -> Any:
    """The dataclass with some fields replaced, from texts as on the command line.

    Raises:
      BadFlagError: if a flag cannot have that value.
    """
    values = flags.FlagValues()
    _define(type(config), values)
    _parse(values, ["", *(f"--{name}={text}" for name, text in texts.items())])
    return dataclasses.replace(config, **{name: values[name].value for name in texts})


@contextlib.contextmanager
def naming(name: str, value: Any, *errors: type[Exception]) -> Iterator[None]:
    """Put a flag before what the library says of its value, on one line."""
    try:
        yield
    except BadFlagError:
        raise
    except errors as error:
        shown = f"--{name}" if value is None else f"--{name}={value}"
        raise BadFlagError(f"{shown}: {_one_line(error)}") from None


def _one_line(error):
    return " ".join(str(error).split())


# ------------------------------------------------------------------ running


def run(program: str, config_type: type, main: Callable[[Any], int]) -> None:
    """Run a command with the flags of `sys.argv`, and exit with its code.

    Args:
      program: its name, which stands before its errors.
      config_type: the dataclass of what it can be told.
      main: the command, which returns an exit code.
    """
    values = flags.FLAGS
    _define(config_type, values)

    def parse(argv):
        try:
            _parse(values, argv)
        except BadFlagError as error:
            if os.environ.get("JAXSP_PROCESS_ID", "0") != "0":
                sys.exit(2)  # process 0 says it
            sys.exit(complain(program, error, 2))
        if values["verbosity"].using_default_value:
            logging.set_verbosity(logging.WARNING)  # absl would choose INFO
        return argv[:1]

    app.run(
        lambda argv: _run(program, main, _read(config_type, values)), flags_parser=parse
    )


def call(
    program: str, config_type: type, main: Callable[[Any], int], *arguments: str
) -> int:
    """Run a command with flags of one's own; its exit code.

    Args:
      program: as in `run`.
      config_type: as in `run`.
      main: as in `run`.
      *arguments: the command line, each `--name=value`.

    Returns:
      The exit code: 2 if a flag cannot be used, and then one line says why.

    Example:
      >>> import dataclasses
      >>> from jaxsp.gan import command
      >>> @dataclasses.dataclass(frozen=True)
      ... class Config:
      ...   steps: int = command.flag(100, "How many steps.", bounds=(1, None))
      ...   graph: str = command.flag("ring", "Which.", names=("ring", "torus"))
      >>> def main(config):
      ...   print(config)
      ...   return 0
      >>> command.call("program", Config, main, "--graph=torus")
      Config(steps=100, graph='torus')
      0
    """
    values = flags.FlagValues()
    _define(config_type, values)
    try:
        _parse(values, [program, *arguments])
    except BadFlagError as error:
        return complain(program, error, 2)
    return _run(program, main, _read(config_type, values))


def _run(program, main, config):
    try:
        return main(config)
    except BadFlagError as error:
        return complain(program, error, 2)


def complain(program: str, message: Any, code: int) -> int:
    """Write one line about what went wrong; the exit code."""
    print(f"{program}: {_one_line(message)}", file=sys.stderr, flush=True)
    return code
