"""Commands: flags from a dataclass, and errors of one line.

What a command can be told is a frozen dataclass. Each field is a flag of the same name,
with its type, its default, and what `flag` says of it; the command itself is a function
of the dataclass that returns an exit code. The training script, the comparison script
and the scores are commands.
"""

import contextlib
import dataclasses
import difflib
import functools
import math
import os
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from absl import app, flags, logging

__all__ = [
    "COUNT",
    "FRACTION",
    "POSITIVE",
    "SEED",
    "BadFlagError",
    "Range",
    "call",
    "check",
    "complain",
    "define",
    "flag",
    "known",
    "naming",
    "one_line",
    "read",
    "run",
    "with_texts",
]


class BadFlagError(ValueError):
    """A flag that cannot be used; the message is one line for the user."""


class Range(NamedTuple):
    """The numbers that a flag may have.

    Attributes:
      least: the smallest, or with `above` the largest that is too small.
      most: the largest.
      above: whether `least` is excluded.
    """

    least: float
    most: float = math.inf
    above: bool = False

    def __contains__(self, value: Any) -> bool:
        low = value > self.least if self.above else value >= self.least
        return math.isfinite(value) and low and value <= self.most

    def __str__(self) -> str:
        low = f"{'above' if self.above else 'at least'} {self.least}"
        return low if self.most == math.inf else f"{low} and at most {self.most}"


COUNT = Range(1)
POSITIVE = Range(0, above=True)
FRACTION = Range(0, 1, above=True)
SEED = Range(0, 2**32 - 1)

_DEFINE = {
    str: flags.DEFINE_string,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    bool: flags.DEFINE_bool,
}


# ------------------------------------------------------------------ defining flags


def flag(
    default: Any,
    words: str,
    *,
    within: Range | None = None,
    names: Iterable[str] | None = None,
) -> Any:
    """A field of a command's dataclass.

    Args:
      default: its default, also the flag's.
      words: what --help says.
      within: the numbers that it may be, besides None.
      names: the names that it may be, besides None.

    Returns:
      The field, for the right-hand side of an annotation `str`, `int`, `float` or
      `bool`, each perhaps `| None`.

    Example:
      >>> import dataclasses
      >>> from jaxsp.gan import command
      >>> @dataclasses.dataclass(frozen=True)
      ... class Config:
      ...   steps: int = command.flag(100, "How many steps.", within=command.COUNT)
      ...   graph: str = command.flag("ring", "Which.", names=("ring", "torus"))
      >>> command.check(Config(graph="rng"))
      Traceback (most recent call last):
      jaxsp.gan.command.BadFlagError: --graph=rng: there is no such graph; did you \
mean ring? write one of ring, torus.
    """
    metadata = {"words": words, "within": within, "names": names}
    return dataclasses.field(default=default, metadata=metadata)


def define(config_type: type, values: flags.FlagValues = flags.FLAGS) -> None:
    """Define a flag for each field of a command's dataclass."""
    flags.disclaim_key_flags()  # --helpshort shows them as the script's own
    kinds = typing.get_type_hints(config_type)
    for field in dataclasses.fields(config_type):
        kind = kinds[field.name]
        if isinstance(kind, types.UnionType):
            kind = next(k for k in typing.get_args(kind) if k is not types.NoneType)
        words = field.metadata["words"]
        _DEFINE[kind](field.name, field.default, words, flag_values=values)


def read(config_type: type, values: flags.FlagValues = flags.FLAGS) -> Any:
    """A command's dataclass, of flags that have been parsed."""
    names = (field.name for field in dataclasses.fields(config_type))
    return config_type(**{name: values[name].value for name in names})


def with_texts(config: Any, texts: Mapping[str, str]) -> Any:
    """The dataclass with some fields replaced, from texts as on the command line.

    Raises:
      BadFlagError: if a text is not of the flag's type.
    """
    values = flags.FlagValues()
    define(type(config), values)
    for name, text in texts.items():
        with naming(name, text, flags.Error):
            values(["", f"--{name}={text}"])
    return dataclasses.replace(config, **{name: values[name].value for name in texts})


# ------------------------------------------------------------------ checking them


def check(config: Any) -> None:
    """Raise a BadFlagError if a field is not within its range or among its names."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        within, names = field.metadata["within"], field.metadata["names"]
        if value is None:
            continue
        if within is not None and value not in within:
            raise BadFlagError(f"--{field.name}={value}: must be {within}.")
        if names is not None:
            known(field.name, value, names)


def known(name: str, text: str, names: Iterable[str]) -> str:
    """What stands before a colon in a flag's text, if it is one of `names`."""
    names = list(names)
    first = text.partition(":")[0]
    if first in names:
        return first
    near = difflib.get_close_matches(first, names, n=1, cutoff=0.4)
    hint = f" did you mean {near[0]}?" if near else ""
    raise BadFlagError(
        f"--{name}={text}: there is no such {name};{hint} write one of "
        f"{', '.join(names)}."
    )


@contextlib.contextmanager
def naming(name: str, value: Any, *errors: type[Exception]) -> Iterator[None]:
    """Put a flag before what the library says of its value, on one line."""
    try:
        yield
    except BadFlagError:
        raise
    except errors as error:
        shown = f"--{name}" if value is None else f"--{name}={value}"
        raise BadFlagError(f"{shown}: {one_line(error)}") from None


def one_line(error: BaseException) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split())


# ------------------------------------------------------------------ running


def run(program: str, config_type: type, main: Callable[[Any], int | None]) -> NoReturn:
    """Run a command with the flags of `sys.argv`, and exit with its code.

    Args:
      program: its name, which stands before its errors.
      config_type: the dataclass of what it can be told.
      main: the command; 0 is the exit code of None.
    """
    define(config_type)
    app.run(
        lambda argv: call(program, config_type, main, argv),
        flags_parser=functools.partial(_parse, program),
    )
    raise AssertionError("app.run does not return")


def call(
    program: str,
    config_type: type,
    main: Callable[[Any], int | None],
    argv: Sequence[str],
    values: flags.FlagValues = flags.FLAGS,
) -> int:
    """Run a command with flags that have been parsed; the exit code.

    Args:
      program: as in `run`.
      config_type: as in `run`.
      main: as in `run`.
      argv: what was not a flag, behind the program.
      values: the flags.

    Returns:
      The exit code: 2 if a flag cannot be used, and then one line says why.
    """
    try:
        if len(argv) > 1:
            raise BadFlagError(
                f"unexpected {argv[1]!r}: flags are written --name=value."
            )
        config = read(config_type, values)
        check(config)
        return main(config) or 0
    except BadFlagError as error:
        return complain(program, error, 2)


def complain(program: str, message: Any, code: int) -> int:
    """Write one line about what went wrong; the exit code."""
    print(f"{program}: {message}", file=sys.stderr)
    sys.stderr.flush()
    return code


def _parse(program: str, argv: Sequence[str]) -> list[str]:
    """Parse the command line; what is wrong with it takes one line."""
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        if os.environ.get("JAXSP_PROCESS_ID", "0") != "0":
            sys.exit(2)  # process 0 says it
        sys.exit(complain(program, one_line(error), 2))
    if flags.FLAGS["verbosity"].using_default_value:
        logging.set_verbosity(logging.WARNING)  # absl would choose INFO
    return rest
