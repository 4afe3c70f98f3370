r"""Train a GAN on several workers that each hold a part of the data.

A run leaves its settings, metrics.jsonl, pictures and checkpoints in --workdir. Ctrl-C
and SIGTERM end it with a checkpoint (exit code 130 or 143); --resume goes on from there
and gives the same numbers as a run that was never interrupted.

Examples:
  python examples/train_gan.py --dataset=digits --method=dp_oadam --topology=ring
  python examples/train_gan.py --dataset=mixture_ring --method=cp_oadam --workers=4
  python examples/train_gan.py --dataset=mnist --data_dir=~/tensorflow_datasets \
    --partition=dirichlet:0.3 --steps=20000 --eval_every=1000 --workdir=runs/mnist
  python examples/train_gan.py --workdir=runs/mnist ... --resume
"""

import contextlib
import dataclasses
import difflib
import functools
import inspect
import math
import pathlib
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax
from absl import app, flags, logging

import jaxsp
from jaxsp import methods, topology
from jaxsp.gan import checkpoint, data, losses, models, partition, scores, train


class BadFlagError(ValueError):
    """A flag that cannot be used; the message is one line for the user."""


@dataclasses.dataclass(frozen=True)
class Method:
    """A method: what makes it, which flags it reads, and their defaults.

    Attributes:
      build: makes the transformation from a learning rate and keyword arguments, the
        flags' values among them.
      learning_rate: the default.
      flags: the flags it reads beside the learning rate, with their defaults.
    """

    build: Callable[..., optax.GradientTransformationExtraArgs]
    learning_rate: float
    flags: dict[str, Any] = dataclasses.field(default_factory=dict)


def _keyless(factory):
    """The factory, for methods that never draw a topology."""
    return lambda rate, *, key, **kwargs: factory(rate, **kwargs)


# Default learning rates: Adam-type steps, optimistic and extragradient plain steps.
ADAM, OPTIMISTIC, EXTRA = 2e-3, 0.02, 0.01
METHODS = {
    "dposg": Method(methods.dposg, OPTIMISTIC, {"topology": "ring", "rounds": 1}),
    "cp_oadam": Method(_keyless(methods.cp_oadam), ADAM),
    "dp_oadam": Method(methods.dp_oadam, ADAM, {"topology": "ring", "rounds": 1}),
    "rand_dp_oadam": Method(
        methods.rand_dp_oadam, ADAM, {"topology": "random_ring", "rounds": 1}
    ),
    "extra_step": Method(_keyless(methods.extra_step), EXTRA),
    "decentralized_extra_step": Method(
        _keyless(methods.decentralized_extra_step),
        EXTRA,
        {"topology": "ring", "rounds": 4},
    ),
    "extra_step_local_sgd": Method(
        _keyless(methods.extra_step_local_sgd), EXTRA, {"sync_every": 10}
    ),
}
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
LOSSES = {
    # Without the penalty the score of digits turns for the worse after 2,000 steps.
    "non_saturating": functools.partial(losses.non_saturating, r1=1.0),
    "wasserstein": losses.wasserstein,
    "hinge": losses.hinge,
}


def run(
    method: str = "dp_oadam",
    topology: str | None = None,
    rounds: int | None = None,
    workers: int = 8,
    dataset: str = "digits",
    data_dir: str | None = None,
    partition: str = "iid",
    loss: str = "non_saturating",
    steps: int = 2_000,
    batch_size: int = 16,
    learning_rate: float | None = None,
    sync_every: int | None = None,
    seed: int = 0,
    eval_every: int = 500,
    workdir: str | None = None,
    resume: bool = False,
    devices: str = "auto",
    eval_samples: int = 10_000,
    progress: bool = True,
) -> train.Result:
    """Train as the flags of the same names say; None is a flag's default.

    Args:
      method: see `METHODS`.
      topology: see `TOPOLOGIES`.
      rounds: exchanges in a step.
      workers: how many workers.
      dataset: see `data.NAMES`.
      data_dir: TFDS directory.
      partition: who holds what.
      loss: see `LOSSES`.
      steps: the step to train to.
      batch_size: examples per worker and gradient.
      learning_rate: step size.
      sync_every: steps between two averages.
      seed: what everything random follows from.
      eval_every: steps between two scores.
      workdir: directory of the run.
      resume: whether to go on from a checkpoint.
      devices: `"auto"` or a number.
      eval_samples: samples generated for a score.
      progress: whether to show progress on standard error.

    Returns:
      What `train.train` returns.

    Raises:
      BadFlagError: if a flag cannot be used; nothing has been written then.
      train.TrainingDivergedError: if a loss or a parameter is no longer finite.
    """
    chosen = METHODS[_known("method", method, METHODS)]
    given = {"topology": topology, "rounds": rounds, "sync_every": sync_every}
    for name, value in given.items():
        if value is not None and name not in chosen.flags:
            print(f"note: --{name} has no effect with --method={method}")
    read = {
        name: default if given[name] is None else given[name]
        for name, default in chosen.flags.items()
    }
    rate = chosen.learning_rate if learning_rate is None else learning_rate
    if not (rate > 0 and math.isfinite(rate)):
        raise BadFlagError(
            f"--learning_rate={rate}: must be above 0, such as {chosen.learning_rate}."
        )
    counts = {
        "workers": workers,
        "steps": steps,
        "batch_size": batch_size,
        "eval_every": eval_every,
        **{k: v for k, v in read.items() if k != "topology"},
    }
    for name, value in counts.items():
        if value < 1:
            raise BadFlagError(f"--{name}={value}: must be at least 1.")
    if not 0 <= seed < 2**32:
        raise BadFlagError(f"--seed={seed}: must be from 0 to 2^32 - 1.")
    _known("loss", loss, LOSSES)
    _known("dataset", dataset, data.NAMES)
    split = _partition(partition)
    graph = None
    if "topology" in read:
        graph = _topology(read["topology"], workers, seed)
        if method == "decentralized_extra_step" and len(graph.members) > 1:
            raise BadFlagError(
                f"--topology={read['topology']} changes from step to step, and "
                f"--method={method} accelerates the exchange over one graph; write "
                "--topology=ring."
            )

    description = {
        "method": method,
        **read,
        "dataset": dataset,
        "partition": partition,
        "loss": loss,
        "learning_rate": rate,
    }
    directory = pathlib.Path(workdir or f"runs/{dataset}-{method}").expanduser()
    compared = {k: counts[k] for k in ("workers", "batch_size")} | {"seed": seed}
    with _naming("workdir", None, checkpoint.WorkdirError):
        going_on = checkpoint.check_directory(directory, description | compared, resume)

    team = _workers(workers, devices)
    together = f"{method} --topology={description.get('topology', '')}"
    with _naming("method", together, ValueError):
        transformation = chosen.build(
            rate,
            **(read if graph is None else read | {"topology": graph}),
            key=jax.random.fold_in(jax.random.key(seed), 1),
            axis_name=team.axis_name,
        )
    with _naming("data_dir", data_dir, FileNotFoundError, ImportError):
        loaded = data.load(dataset, data_dir)
    with _naming("workers", workers, ValueError):
        parts = split(loaded.train_labels, workers, seed=seed)
    smallest = min(map(len, parts))
    if batch_size > smallest:
        raise BadFlagError(
            f"--batch_size={batch_size}: a worker holds only {smallest} examples of "
            f"{dataset} with --partition={partition} and --workers={workers}; write "
            f"--batch_size={smallest} or less."
        )
    gan = _networks(loaded.sample_shape)
    _print_plan(description, graph, team, loaded, parts, gan, directory)
    if resume and not going_on:
        print(f"nothing to resume in {directory}: starting at step 0")

    evaluate = scores.evaluator(loaded, progress=progress)
    config = train.TrainConfig(
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        log_every=max(1, eval_every // 10),
        eval_every=eval_every,
        checkpoint_every=eval_every,
        eval_samples=eval_samples,
    )
    with _naming("workdir", None, checkpoint.WorkdirError, OSError):
        result = train.train(
            gan,
            LOSSES[loss](gan),
            transformation,
            team,
            loaded,
            parts,
            config,
            score=evaluate,
            workdir=directory,
            resume=resume,
            description=description,
            progress=progress,
        )
    _print_summary(result, evaluate.floor, directory)
    return result


# ------------------------------------------------------------------ reading flags


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Define the flags, which `run` takes as arguments of the same names."""
    text = functools.partial(flags.DEFINE_string, flag_values=values)
    integer = functools.partial(flags.DEFINE_integer, flag_values=values)
    text("method", "dp_oadam", f"What to train with: {', '.join(METHODS)}.")
    text(
        "topology",
        None,
        f"Who talks to whom: {', '.join(TOPOLOGIES)}. torus takes the squarest rows x "
        "columns that make --workers, or torus:2x4; erdos_renyi joins a pair with "
        "probability 0.5, or erdos_renyi:0.3. Default: ring, but random_ring for "
        "rand_dp_oadam.",
    )
    integer(
        "rounds",
        None,
        "Exchanges with the neighbours in a step. Default: 1, but 4 for "
        "decentralized_extra_step, which does that many in each of its half-steps.",
    )
    integer("workers", 8, "How many workers.")
    text("dataset", "digits", f"What to learn: {', '.join(data.NAMES)}.")
    text(
        "data_dir",
        None,
        "TFDS directory that holds the prepared data set (not for digits and the "
        "mixtures). Default: $TFDS_DATA_DIR, or ~/tensorflow_datasets.",
    )
    text(
        "partition",
        "iid",
        "Who holds what: iid, by_label (whole classes), or dirichlet:0.3 (each class "
        "split in random proportions; the smaller the number the more unequal).",
    )
    text(
        "loss",
        "non_saturating",
        f"The game: {', '.join(LOSSES)}. non_saturating comes with an R1 penalty of 1, "
        "wasserstein with a gradient penalty of 10.",
    )
    integer("steps", 2_000, "The step to train to.")
    integer("batch_size", 16, "Examples per worker and gradient.")
    flags.DEFINE_float(
        "learning_rate",
        None,
        f"Step size. Default: {ADAM:g} for the Adam-type methods (*_oadam); for those "
        f"with plain gradient steps, {OPTIMISTIC:g} for dposg and {EXTRA:g} for the "
        "extra-step methods.",
        flag_values=values,
    )
    integer(
        "sync_every",
        None,
        "Steps between two averages of the workers, for extra_step_local_sgd. "
        "Default: 10.",
    )
    integer("seed", 0, "What everything random follows from.")
    integer(
        "eval_every",
        500,
        "Steps between two scores, pictures and checkpoints; losses are recorded 10 "
        "times as often.",
    )
    text(
        "workdir",
        None,
        "Directory of the run, which must not hold another one. Default: "
        "runs/DATASET-METHOD.",
    )
    flags.DEFINE_bool(
        "resume",
        False,
        "Go on from the last checkpoint in --workdir, or start where there is none. "
        "The other flags must be as they were, but for --steps, --eval_every, "
        "--devices and --data_dir.",
        flag_values=values,
    )
    text(
        "devices",
        "auto",
        "How many devices: 1 for all workers on one, or as many as workers. auto: 1 "
        "on CPU, where that is faster, and as many as workers where there are as many "
        "accelerators.",
    )


def _known(flag: str, name: str, names) -> str:
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
def _naming(flag: str, value: Any, *errors: type[Exception]):
    """Put a flag before what the library says of its value, on one line."""
    try:
        yield
    except errors as error:
        shown = f"--{flag}" if value is None else f"--{flag}={value}"
        raise BadFlagError(f"{shown}: {' '.join(str(error).split())}") from None


def _partition(text: str):
    """What splits the labels; a function (labels, workers, *, seed)."""
    with _naming("partition", text, ValueError):
        return partition.parse(text)


def _topology(text: str, workers: int, seed: int):
    """The graph of that name for so many workers."""
    name, _, argument = text.partition(":")
    _known("topology", name, TOPOLOGIES)
    if argument and name not in ("torus", "erdos_renyi"):
        raise BadFlagError(f"--topology={text}: {name} takes nothing after a colon.")
    if name == "torus":
        return topology.torus(*_rows_and_columns(text, argument, workers))
    with _naming("topology", f"{text} --workers={workers}", ValueError):
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


def _workers(count: int, devices: str) -> jaxsp.Workers:
    """The workers, on as many devices as asked for."""
    if devices != "auto":
        if not devices.isdecimal() or int(devices) < 1:
            raise BadFlagError(
                f"--devices={devices}: write auto, 1 or --devices={count}, one for "
                "each worker."
            )
        with contextlib.suppress(RuntimeError):  # the devices are in use already
            jax.config.update("jax_num_cpu_devices", int(devices))
    visible = jax.devices()
    several = visible[0].platform != "cpu" and len(visible) >= count
    number = (count if several else 1) if devices == "auto" else int(devices)
    if number > len(visible):
        raise BadFlagError(
            f"--devices={devices}: this machine shows {len(visible)}; write "
            "--devices=auto."
        )
    try:
        return jaxsp.Workers(count, visible[:number])
    except ValueError:
        raise BadFlagError(
            f"--devices={devices} does not fit --workers={count}: write --devices=1 or "
            f"--devices={count}."
        ) from None


def _networks(sample_shape: Sequence[int]) -> models.Gan:
    """Dense networks for points and tiny images, convolutions for the others."""
    if len(sample_shape) == 1:
        return models.mlp(tuple(sample_shape), latent_size=16, width=128)
    if max(sample_shape) <= 8:
        return models.mlp(tuple(sample_shape))
    return models.dcgan(tuple(sample_shape))


# ------------------------------------------------------------------ telling


def _print_plan(description, graph, team, dataset, parts, gan, directory):
    """What is about to be trained, on what and where."""
    sizes = jax.eval_shape(lambda: models.init(gan, jax.random.key(0)))
    x, y = (sum(leaf.size for leaf in jax.tree.leaves(p)) for p in sizes)
    settings = {k: v for k, v in description.items() if k != "topology"}
    print(", ".join(f"{k} {v}" for k, v in settings.items()))
    if graph is not None:
        print(f"topology {description['topology']}, gap {graph.spectral_gap:.3g}")
    devices = f"{len(team.devices)} {team.devices[0].platform} device"
    print(
        f"{team.count} workers by {team.mode} on {devices}"
        + "s" * (team.mode != "vmap")
    )
    print(f"{x:,} parameters of the generator, {y:,} of the discriminator")
    print(f"files in {directory}")
    print("who holds how many of which class:")
    print(partition.format_table(partition.table(dataset.train_labels, parts)))
    sys.stdout.flush()


def _print_summary(result, floor, directory):
    """How far training came."""
    if result.signal is not None:
        return
    found = [r for r in result.history if r.get("frechet_distance") is not None]
    first, last = found[0], found[-1]
    print(
        f"step {result.step}: Frechet distance {first['frechet_distance']:.4g} -> "
        f"{last['frechet_distance']:.4g} (real test data: "
        f"{floor['frechet_distance']:.4g}), {last['seconds']:.0f} s"
    )
    print("written: " + ", ".join(str(path) for path in result.files))


def main(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> int:
    """Train as the flags say; the exit code."""
    names = [name for name in inspect.signature(run).parameters if name in values]
    arguments: dict[str, Any] = {name: values[name].value for name in names}
    if len(argv) > 1:
        return _complain(f"unexpected {argv[1]!r}: flags are written --name=value.", 2)
    try:
        result = run(**arguments)
    except BadFlagError as error:
        return _complain(error, 2)
    except train.TrainingDivergedError as error:
        return _complain(f"training diverged: {error}", 1)
    if result.signal is None:
        return 0
    again = [word for word in sys.argv if word != "--resume"] + ["--resume"]
    print(
        f"stopped by {result.signal.name} at step {result.step}, which is saved; go on "
        f"with\n  python {shlex.join(again)}"
    )
    return 128 + result.signal


def _complain(message: Any, code: int) -> int:
    print(f"train_gan.py: {message}", file=sys.stderr)
    return code


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parse the command line; what is wrong with it takes one line."""
    try:
        rest = flags.FLAGS(argv)
        if flags.FLAGS["verbosity"].using_default_value:
            logging.set_verbosity(logging.WARNING)  # absl would choose INFO
        return rest
    except flags.Error as error:
        sys.exit(_complain(" ".join(str(error).split()), 2))


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=parse_flags)
