"""The flags of train_gan.py: what they are, and what their texts stand for."""

import contextlib
import difflib
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
from absl import flags

import jaxsp
from jaxsp import compressors, distributed, topology
from jaxsp.gan import data
from jaxsp.gan.data import partition

MODELS = ("mlp", "dcgan", "md_gan_mlp", "md_gan_cnn", "resnet", "sagan")
TOPOLOGIES = (
    "ring",
    "torus",
    "exponential",
    "one_peer_exponential",
    "complete",
    "star",
    "path",
    "erdos_renyi",
    "random_ring",
)
# What a compressor of that name takes after a colon, with an example.
COMPRESSORS: dict[str, tuple[type | None, str]] = {
    "quantize": (None, "quantize --bits=4"),
    "natural": (None, "natural"),
    "dithering": (int, "dithering:8"),
    "ternary": (None, "ternary"),
    "sign": (None, "sign"),
    "top_k": (float, "top_k:0.1"),
    "rand_k": (float, "rand_k:0.1"),
    "perm_k": (None, "perm_k"),
    "low_rank": (int, "low_rank:2"),
    "identity": (None, "identity"),
}
_EXAMPLES = ", ".join(example.split()[0] for _, example in COMPRESSORS.values())


class BadFlagError(ValueError):
    """A flag that cannot be used; the message is one line for the user."""


# ------------------------------------------------------------------ checking


def known(flag: str, name: str, names: Iterable[str]) -> str:
    """The name, if it is one of `names`."""
    if name in names:
        return name
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.4)
    hint = f" did you mean {near[0]}?" if near else ""
    raise BadFlagError(
        f"--{flag}={name}: there is no such {flag};{hint} write one of "
        f"{', '.join(names)}."
    )


@contextlib.contextmanager
def naming(flag: str, value: Any, *errors: type[Exception]):
    """Put a flag before what the library says of its value, on one line."""
    try:
        yield
    except BadFlagError:
        raise
    except errors as error:
        shown = f"--{flag}" if value is None else f"--{flag}={value}"
        raise BadFlagError(f"{shown}: {' '.join(str(error).split())}") from None


def check_numbers(values: Mapping[str, Any]) -> None:
    """Refuse numbers out of range, of flags given by name; None is always right."""
    for name, value in values.items():
        finite = isinstance(value, int | float) and math.isfinite(value)
        if value is None or name not in _RANGES:
            continue
        fits, words = _RANGES[name]
        if not (finite and fits(value)):
            raise BadFlagError(f"--{name}={value}: must be {words}.")


_COUNT = (lambda n: n >= 1), "at least 1"
_POSITIVE = (lambda n: n > 0), "above 0"
_FRACTION = (lambda n: 0 < n <= 1), "above 0 and at most 1"
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "workers": _COUNT,
    "steps": _COUNT,
    "batch_size": _COUNT,
    "eval_every": _COUNT,
    "rounds": _COUNT,
    "sync_every": _COUNT,
    "disc_steps": _COUNT,
    "crash_every": _COUNT,
    "bits": ((lambda n: 2 <= n <= 8), "from 2 to 8"),
    "alpha": _POSITIVE,
    "sync_epochs": _POSITIVE,
    "swap_epochs": ((lambda n: n >= 0), "at least 0, which never swaps"),
    "refresh": _FRACTION,
    "participation": _FRACTION,
    "seed": ((lambda n: 0 <= n < 2**32), "from 0 to 2^32 - 1"),
}


# ------------------------------------------------------------------ reading


def read_loss(name: str | None, conditional: bool, names: Iterable[str]) -> str:
    """The loss that two flags name together."""
    if name is None:
        return "acgan" if conditional else "non_saturating"
    known("loss", name, names)
    if conditional and name != "acgan":
        raise BadFlagError(
            f"--loss={name} knows no classes, which --conditional asks for: write "
            "--loss=acgan, or leave one of them out."
        )
    return name


def read_partition(
    text: str | None, alpha: float | None
) -> tuple[str, Callable[..., list]]:
    """The partition that two flags name together.

    Args:
      text: of --partition.
      alpha: of --alpha.

    Returns:
      Its name, and what splits the labels, a function (labels, workers, *, seed).
    """
    if alpha is not None:
        if text not in (None, "dirichlet"):
            raise BadFlagError(
                f"--alpha={alpha:g} stands for --partition=dirichlet:{alpha:g}, and "
                f"--partition={text} says otherwise: leave one of them out."
            )
        text = f"dirichlet:{alpha:g}"
    text = text or "iid"
    with naming("partition", text, ValueError):
        return text, partition.parse(text)


def read_batches_k(text: str, workers: int) -> int:
    """A number of batches, where "log" is the logarithm of the number of workers."""
    if text == "log":
        return max(1, math.ceil(math.log2(workers)))
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= workers):
        raise BadFlagError(
            f"--batches_k={text}: write log, or a number from 1 to {workers}, as "
            "many as there are workers."
        )
    return int(text)


def read_compressor(flag: str, text: str, bits: int | None) -> compressors.Compressor:
    """The compressor that a text names, such as "top_k:0.1"."""
    name, colon, argument = text.partition(":")
    if name not in COMPRESSORS:
        near = difflib.get_close_matches(name, list(COMPRESSORS), n=1, cutoff=0.4)
        hint = f" did you mean {near[0]}?" if near else ""
        raise BadFlagError(
            f"--{flag}={text}: there is no such compressor;{hint} write one of "
            f"{_EXAMPLES}."
        )
    kind, example = COMPRESSORS[name]
    build = getattr(compressors, name)
    if name == "quantize":
        build = functools.partial(build, bits)
    if kind is None:
        if colon:
            raise BadFlagError(
                f"--{flag}={text}: {name} takes nothing after a colon; write "
                f"--{flag}={example.replace(' ', ', ')}."
            )
        return build()
    try:
        number = kind(argument)
    except ValueError:
        raise BadFlagError(
            f"--{flag}={text}: {name} takes a number after a colon; write "
            f"--{flag}={example}."
        ) from None
    with naming(flag, text, ValueError):
        return build(number)


def read_topology(text: str, workers: int, seed: int):
    """The graph of that name for so many workers."""
    name, _, argument = text.partition(":")
    known("topology", name, TOPOLOGIES)
    if argument and name not in ("torus", "erdos_renyi"):
        raise BadFlagError(f"--topology={text}: {name} takes nothing after a colon.")
    if name == "torus":
        return topology.torus(*_rows_and_columns(text, argument, workers))
    with naming("topology", f"{text} --workers={workers}", ValueError):
        if name == "erdos_renyi":
            try:
                chance = float(argument or 0.5)
            except ValueError:
                raise ValueError("write a probability, as erdos_renyi:0.3.") from None
            return topology.erdos_renyi(workers, chance, seed)
        if name == "random_ring":
            return topology.random_ring(workers, seed=seed)
        return getattr(topology, name)(workers)


def _rows_and_columns(text: str, argument: str, workers: int) -> tuple[int, int]:
    """Rows and columns of a torus of so many workers, both at least 2."""
    rows = next(r for r in range(math.isqrt(workers), 0, -1) if workers % r == 0)
    columns = workers // rows
    if argument:
        sides = argument.split("x")
        if len(sides) != 2 or not all(s.isdecimal() for s in sides):
            raise BadFlagError(f"--topology={text}: write rows x columns as torus:2x4.")
        rows, columns = map(int, sides)
    if rows * columns != workers or min(rows, columns) < 2:
        fits = [
            n for n in range(4, workers + 5) if any(n % k == 0 for k in range(2, n))
        ]
        near = min(fits, key=lambda n: abs(n - workers))
        raise BadFlagError(
            f"--workers={workers} does not fit --topology={text}, which needs rows x "
            f"columns of at least 2 each; write --workers={near} --topology=torus, or "
            "--topology=ring."
        )
    return rows, columns


def set_devices(devices: str) -> None:
    """Show as many CPU devices as asked for, where JAX has not looked for any yet."""
    if devices.isdecimal() and int(devices) > 0 and distributed.is_alone():
        with contextlib.suppress(RuntimeError):  # the devices are in use already
            jax.config.update("jax_num_cpu_devices", int(devices))


def read_workers(
    count: int, devices: str, method: str, dry_run: bool = False
) -> jaxsp.Workers:
    """The workers, on as many devices as asked for.

    Args:
      count: how many workers.
      devices: of --devices.
      method: its name; the server of md_gan has process 0 for itself.
      dry_run: whether they do not train: then they are all in one process.

    Returns:
      The workers. In many processes they are on all devices.

    Raises:
      BadFlagError: if that does not fit.
    """
    fits = [n for n in range(1, count + 1) if count % n == 0]
    if devices != "auto" and (not devices.isdecimal() or int(devices) < 1):
        raise BadFlagError(
            f"--devices={devices}: write auto or a number that divides "
            f"--workers={count}, from 1 to --devices={count}, one for each worker."
        )
    if not distributed.is_alone():
        visible = jax.local_devices()[:1] if dry_run else jax.devices()
        if method == "standalone" and not dry_run:
            raise BadFlagError(
                "--method=standalone has one worker: start one process, and not "
                f"{jax.process_count()}."
            )
        if dry_run:
            return _spread(count, "auto", False, visible)
        return _spread(count, devices, method == "md_gan", visible)
    visible = jax.devices()
    if devices != "auto":
        number = int(devices)
    elif visible[0].platform == "cpu":
        number = 1
    else:
        number = max(n for n in fits if n <= len(visible))
    if number > len(visible):
        raise BadFlagError(
            f"--devices={devices}: this machine shows {len(visible)}; write "
            "--devices=auto."
        )
    if number not in fits:
        raise BadFlagError(
            f"--devices={devices} does not fit --workers={count}: every device has as "
            f"many workers; write --devices={_either(fits)}, or --workers="
            f"{_either(_near(count, number))}."
        )
    return jaxsp.Workers(count, visible[:number])


def _spread(count, devices, served, visible):
    """The workers on all devices of all processes, but for that of a server."""
    if devices not in ("auto", str(len(visible))):
        raise BadFlagError(
            f"--devices={devices}: in {jax.process_count()} processes all "
            f"{len(visible)} devices are used; write --devices=auto."
        )
    if served:
        visible = [device for device in visible if device.process_index > 0]
    if count % len(visible):
        free = " beside that of the server" * served
        raise BadFlagError(
            f"--workers={count} does not fit {jax.process_count()} processes with "
            f"{len(visible)} devices{free}: every device has as many workers; write "
            f"--workers={_either(_near(count, len(visible)))}."
        )
    return jaxsp.Workers(count, visible)


def _near(count, devices):
    """Numbers of workers near `count` that fit so many devices."""
    below = count // devices * devices
    return [n for n in (below, below + devices) if n]


def _either(numbers):
    """Some numbers in words."""
    *some, last = map(str, numbers)
    return f"{', '.join(some)} or {last}" if some else last


# ------------------------------------------------------------------ defining


def define(
    values: flags.FlagValues, methods: Mapping[str, Any], losses: Iterable[str]
) -> None:
    """Define the flags.

    Args:
      values: where.
      methods: by name, each with a `learning_rate` and `flags`, the flags it reads with
        their defaults.
      losses: the names of the losses.
    """
    flags.disclaim_key_flags()  # --helpshort shows them as the script's own
    text = functools.partial(flags.DEFINE_string, flag_values=values)
    integer = functools.partial(flags.DEFINE_integer, flag_values=values)
    number = functools.partial(flags.DEFINE_float, flag_values=values)
    boolean = functools.partial(flags.DEFINE_bool, flag_values=values)

    def of_methods(define, name, words, show: Callable[[Any], str] = str):
        """A flag that only some methods read."""
        found = {n: m.flags[name] for n, m in methods.items() if name in m.flags}
        define(name, None, f"{words} {_defaults(found, show)}")

    text("method", "dp_oadam", f"What to train with: {', '.join(methods)}.")
    text("dataset", "digits", f"What to learn: {', '.join(data.NAMES)}.")
    text(
        "data_dir",
        None,
        "TFDS directory that holds the data set, or into which it is put when it is "
        "used first (not for digits and the mixtures). Default: $TFDS_DATA_DIR, or "
        "~/tensorflow_datasets.",
    )
    integer("workers", 8, "How many workers; standalone always has one.")
    text(
        "partition",
        None,
        "Who holds what: iid, by_label (whole classes), or dirichlet:0.3 (each class "
        "split in random proportions; the smaller the number the more unequal). "
        "Default: iid.",
    )
    number("alpha", None, "The same as --partition=dirichlet:ALPHA.")
    text(
        "model",
        None,
        f"The networks: {', '.join(MODELS)}; with their width after a colon, as "
        "dcgan:32. Default: mlp for points and 8x8 images, dcgan for others.",
    )
    boolean(
        "conditional",
        False,
        "Generate samples of a class that is asked for, with --loss=acgan.",
    )
    text(
        "dtype",
        "float32",
        "Type of the networks' arithmetic, float32 or bfloat16; parameters and what "
        "travels stay float32.",
    )
    text(
        "loss",
        None,
        f"The game: {', '.join(losses)}. non_saturating and acgan come with an R1 "
        "penalty of 1, wasserstein with a gradient penalty of 10; acgan is "
        "conditional. Default: non_saturating, or acgan with --conditional.",
    )
    integer("steps", 2_000, "The step to train to.")
    integer("batch_size", 16, "Examples per worker and gradient.")
    number(
        "learning_rate",
        None,
        f"Step size. {_defaults({n: m.learning_rate for n, m in methods.items()})}",
    )
    of_methods(
        text,
        "topology",
        f"Who talks to whom: {', '.join(TOPOLOGIES)}. torus takes the squarest rows x "
        "columns that make --workers, or torus:2x4; erdos_renyi joins a pair with "
        "probability 0.5, or erdos_renyi:0.3.",
    )
    of_methods(
        integer,
        "rounds",
        "Exchanges with the neighbours in a step (in each half of "
        "decentralized_extra_step).",
    )
    of_methods(
        text,
        "compressor",
        f"What workers send through: {_EXAMPLES}. The masha1 family, qsgda and "
        "diana_sgda need one that is unbiased; for the others one that is only "
        "unbiased is made a contraction.",
    )
    of_methods(integer, "bits", "Bits of a number, from 2 to 8, for quantize.")
    of_methods(
        text, "down", "What the server sends through, likewise; none for as it is."
    )
    of_methods(
        number,
        "refresh",
        "Probability that the anchor moves, and a whole gradient is exchanged. "
        "balanced is when these cost as much as the compressed messages. The masha "
        "methods compare gradients at two points, which here come of different "
        "batches: on GANs they are a heuristic.",
        lambda value: "balanced",
    )
    of_methods(
        integer, "sync_every", "Steps between two averages of the workers.", _other
    )
    of_methods(
        number,
        "sync_epochs",
        "The same, in epochs: E is max(1, round(E x mean share / batch size)) steps.",
        _other,
    )
    of_methods(
        number,
        "participation",
        "Share of the workers that take part in a round of fl_gan, drawn anew for "
        "each, or in a step of pp_masha1.",
    )
    of_methods(
        text,
        "batches_k",
        "Batches that the server generates in a step, from 1 to --workers; log is "
        "ceil(log2(workers)).",
    )
    of_methods(integer, "disc_steps", "Discriminator steps for one of the generator.")
    of_methods(
        number,
        "swap_epochs",
        "Epochs between two swaps of discriminators among workers; 0 never swaps.",
    )
    of_methods(
        text,
        "moments",
        "What becomes of the discriminators' moments in a swap: stay, travel or reset.",
    )
    of_methods(
        integer,
        "crash_every",
        "One worker more is lost, with its data, every so many steps, until one is "
        "left.",
        lambda value: "never",
    )
    integer("seed", 0, "What everything random follows from.")
    integer(
        "eval_every",
        500,
        "Steps between two scores, pictures and checkpoints; losses are recorded 10 "
        "times as often.",
    )
    text(
        "inception",
        None,
        "File of the weights of the Inception network, for FID and KID beside the "
        "other scores (slow without an accelerator); how to make it: python "
        "tools/convert_inception.py --help.",
    )
    text(
        "workdir",
        None,
        "Directory of the run, which must not hold another one. Default: "
        "runs/DATASET-METHOD.",
    )
    boolean(
        "resume",
        False,
        "Go on from the last checkpoint in --workdir, or start where there is none. "
        "The other flags must be as they were, but for --steps, --eval_every, "
        "--devices, --data_dir, --inception, and --workers: with another number of "
        "workers the networks go on, on data divided anew, and the optimizers do not.",
    )
    boolean(
        "dry_run",
        False,
        "Only print what a run would cost: parameters, bytes, operations and memory. "
        "Trains nothing, and leaves nothing in --workdir.",
    )
    text(
        "devices",
        "auto",
        "How many devices, a number that divides --workers: each has as many workers. "
        "auto: 1 on CPU, where that is faster, and as many accelerators as fit; in "
        "many processes all devices of all.",
    )
    text(
        "coordinator",
        None,
        "HOST:PORT of process 0, which the others reach, to train in many processes; "
        "with --num_processes and --process_id. Not needed under python -m "
        "jaxsp.launch, SLURM, Open MPI and on TPU pods.",
    )
    integer("num_processes", None, "How many processes there are, with --coordinator.")
    integer("process_id", None, "Which of them this is, from 0, with --coordinator.")


def _other(value) -> str:
    return "none" if value is None else f"{value:g}"


def _defaults(of: Mapping[str, Any], show: Callable[[Any], str] = str) -> str:
    """Which methods have which default, in words."""
    groups: dict[str, list[str]] = {}
    for name, value in of.items():
        groups.setdefault(show(value), []).append(name)
    listed = "; ".join(f"{v} for {', '.join(names)}" for v, names in groups.items())
    return f"Default: {listed}."
