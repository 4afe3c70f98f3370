"""Commands: flags from a dataclass, and errors of one line.

What a command can be told is a frozen dataclass. Each field is a flag of the same name,
with its type, its default, and what `flag` says of it; the command itself is a function
of the dataclass that returns an exit code. Training, the comparison script and the
scores are commands.
"""

import contextlib
import ctypes
import dataclasses
import difflib
import json
import os
import pathlib
import sys
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from absl import app, flags

from jaxsp import distributed

__all__ = ["BadFlagError", "call", "check", "complain", "devices", "expanded"]
__all__ += ["flag", "keep_memory", "naming", "run", "with_texts"]

_DEFINE: dict[Any, Callable] = {
    str: flags.DEFINE_string,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    bool: flags.DEFINE_bool,
}


_LARGEST = 3.4e38  # that float32 can hold
_SMALLEST = 1.2e-38  # that float32 can hold, with all its digits
_FILE = "config"
_FILE_WORDS = (
    "JSON file of flags, such as config.json of an earlier run, or that run's "
    "directory. What stands on the command line wins."
)


class BadFlagError(ValueError):
    """A flag that cannot be used; the message is one line for the user."""


def flag(
    default: Any,
    words: str,
    *,
    bounds: tuple[float, float | None] | None = None,
    names: Collection[str] = (),
    colon: bool = False,
    path: bool = False,
) -> Any:
    """A field of a command's dataclass.

    Args:
      default: its default, also the flag's.
      words: what --help says.
      bounds: the least number that it may be, and the largest, or None for any that is
        finite.
      names: the names that it may be.
      colon: whether more may stand behind a name, after a colon.
      path: whether it is the name of a file or directory, perhaps from `~` on.

    Returns:
      The field, for the right-hand side of an annotation `str`, `int`, `float` or
      `bool`, each perhaps `| None`.
    """
    metadata = {"words": words, "bounds": bounds, "names": names, "colon": colon}
    return dataclasses.field(default=default, metadata=metadata | {"path": path})


def check(config: Any) -> None:
    """Refuse what `flag` does not allow; None is always allowed.

    Commands do so with their flags; a function that is also called from Python does it
    first of all.

    Raises:
      BadFlagError: if a number is out of bounds, a text is empty, there is no such
        name, or a path cannot be one.
    """
    for field in dataclasses.fields(config):
        value, names = getattr(config, field.name), field.metadata["names"]
        if value is None:
            continue
        shown = f"--{field.name}={value}"
        if value == "":
            raise BadFlagError(f"{shown} is empty: write a value, or leave it out.")
        if field.metadata["path"]:
            expanded(field.name, value)
        name = value.partition(":")[0] if field.metadata["colon"] else value
        if names and name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
            hint = f" did you mean {near[0]}?" if near else ""
            raise BadFlagError(
                f"{shown}: there is no {name};{hint} write one of {', '.join(names)}."
            )
        if field.metadata["bounds"]:
            low, high = field.metadata["bounds"]
            if not low <= value <= (high or _LARGEST):
                most = "finite in float32" if high is None else f"at most {high}"
                raise BadFlagError(f"{shown} must be at least {low} and {most}.")
        if isinstance(value, float) and 0 < abs(value) < _SMALLEST:
            raise BadFlagError(f"{shown} is 0 in float32: write 0, or a larger one.")


def expanded(name: str, value: str) -> pathlib.Path:
    """The path that a flag gives, with `~` and `~user` as the shell reads them.

    Raises:
      BadFlagError: if there is no such user, or no file can have that name.
    """
    try:
        path = pathlib.Path(value).expanduser()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.lstat()  # a null byte, or too long a name
    except (RuntimeError, ValueError, OSError) as error:
        raise BadFlagError(f"--{name}={value!r}: {_one_line(error)}") from None
    return path


def _parse(config: Any, values: flags.FlagValues, argv: Sequence[str]) -> Any:
    """The dataclass after a command line, of which argv[0] is the program."""
    flags.disclaim_key_flags()  # --helpshort shows them as the script's own
    kinds = typing.get_type_hints(type(config))
    fields = {field.name: field.metadata for field in dataclasses.fields(config)}
    for name, metadata in fields.items():
        kind, *_ = typing.get_args(kinds[name]) or [kinds[name]]
        default = getattr(config, name)
        words = metadata["words"]
        if metadata["names"]:
            words += f" One of {', '.join(metadata['names'])}."
        _DEFINE[kind](name, default, words, flag_values=values)
    flags.DEFINE_string(_FILE, None, _FILE_WORDS, flag_values=values)
    try:
        rest = values(argv)
    except flags.UnrecognizedFlagError as error:
        raise BadFlagError(_unknown(error.flagname, [*fields, _FILE])) from None
    except flags.Error as error:
        raise BadFlagError(_one_line(error)) from None
    except (OSError, RuntimeError, ValueError) as error:  # of a file of flags
        raise BadFlagError(f"--flagfile: {_one_line(error)}") from None
    if len(rest) > 1:
        raise BadFlagError(f"unexpected {rest[1]!r}: flags are written --name=value.")
    if (file := values[_FILE].value) is not None:
        _read_file(file, values, fields, getattr(config, "NOT_FLAGS", ()))
    config = type(config)(**{name: values[name].value for name in fields})
    check(config)
    return config


def _unknown(given, names):
    """What is said of a flag that there is not; names the one that it may mean."""
    name = given.lower().replace("-", "_")
    initials = {"".join(word[0] for word in n.split("_")): n for n in names}
    longer = [n for n in names if n.startswith(name)]
    near = difflib.get_close_matches(name, names, n=1)
    found = [*filter(None, [initials.get(name)]), *longer, *near]
    hint = f"did you mean --{found[0]}? " if found else ""
    return f"--{given}: there is no flag of this name; {hint}--help shows all."


def _read_file(file, values, fields, ignored):
    """Give flags that are not on the command line the values that a file says."""
    path, shown = expanded(_FILE, file), f"--{_FILE}={file}"
    path = path / "config.json" if path.is_dir() else path
    with naming(_FILE, file, OSError, ValueError):  # of JSON, and of what is no text
        found = json.loads(path.read_text())
    if not isinstance(found, dict):
        raise BadFlagError(f"{shown}: it must be an object of names and values.")
    if {*found} == {"settings", "free"}:  # of a run: what must stay, and what may not
        found = {**found["settings"], **found["free"]}
    for name, value in found.items():
        if value is None or name in ignored:
            continue
        if name not in fields:
            raise BadFlagError(f"{shown}: {_unknown(name, fields)}")
        if not isinstance(value, str | int | float):
            raise BadFlagError(f"{shown}: {name} must be a number or a text.")
        if not values[name].present:
            with naming(_FILE, file, flags.Error):
                values[name].parse(str(value))


def with_texts(config: Any, texts: Mapping[str, str]) -> Any:
    """The dataclass with some fields replaced, from texts as on the command line.

    Raises:
      BadFlagError: if a flag cannot have that value.
    """
    words = [f"--{name}={text}" for name, text in texts.items()]
    return _parse(config, flags.FlagValues(), ["", *words])


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
    """What an error says, on one line, and of a very long word the beginning."""
    words = str(error).split()
    return " ".join(w if len(w) <= 250 else f"{w[:250]}..." for w in words)


def devices(workers: int, asked: int | None) -> list[Any]:
    """The devices for so many workers: `--devices` of them, or what suits.

    Alone in one process that is one CPU, or as many accelerators as fit; in many
    processes all devices of all.

    Raises:
      BadFlagError: if there are fewer, or in many processes others.
    """
    import jax

    from jaxsp import _devices

    alone = distributed.is_alone()
    if asked is not None and alone:
        with contextlib.suppress(RuntimeError):  # the devices are in use already
            jax.config.update("jax_num_cpu_devices", asked)
    used = jax.devices()
    fitting = max(n for n in range(1, len(used) + 1) if workers % n == 0)
    usual = 1 if used[0].platform == "cpu" else fitting
    number = asked or (usual if alone else len(used))
    if number > len(used) or not (alone or number == len(used)):
        raise BadFlagError(
            f"--devices={number}: there are {len(used)}; leave the flag out."
        )
    return _devices.in_a_ring(used[:number])


# ------------------------------------------------------------------ running


def run(program: str, config_type: type, main: Callable[[Any], int]) -> None:
    """Run a command with the flags of `sys.argv`, and exit with its code.

    Args:
      program: its name, which stands before its errors.
      config_type: the dataclass of what it can be told.
      main: the command, which returns an exit code.
    """
    keep_memory()
    app.define_help_flags()  # which show the doc of the script, else of main
    script = sys.modules["__main__"]
    script.__doc__ = script.__doc__ or sys.modules[main.__module__].__doc__
    sys.exit(_run(program, config_type, main, flags.FLAGS, sys.argv))


def keep_memory() -> None:
    """Let this process keep the memory that its arrays leave, where glibc serves it.

    On a CPU, XLA takes the buffers of every step anew. Of its own accord glibc gives
    large ones back at once, and the system clears each of their pages again in the next
    step, which took a fifth of all processor time of a convolutional GAN's training.
    """
    with contextlib.suppress(OSError, TypeError, AttributeError):  # other C libraries
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: no buffer is mapped by itself, and unmapped
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: what is free stays here, however much
        mallopt(-8, 1)  # M_ARENA_MAX: the heaps of threads hold no large buffers


def call(
    program: str, config_type: type, main: Callable[[Any], int], *arguments: str
) -> int:
    """Run a command, as `run` does, with flags of one's own.

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
    argv = [program, *arguments]
    return _run(program, config_type, main, flags.FlagValues(), argv)


def _run(program, config_type, main, values, argv):
    try:
        return main(_parse(config_type(), values, argv))
    except BadFlagError as error:
        if os.environ.get("JAXSP_PROCESS_ID", "0") == "0":  # process 0 speaks for all
            complain(program, error, 2)
        return 2
    except KeyboardInterrupt:
        return complain(program, "interrupted.", 130)


def complain(program: str, message: Any, code: int) -> int:
    """Write one line about what went wrong; the exit code."""
    print(f"{program}: {_one_line(message)}", file=sys.stderr, flush=True)
    return code
