r"""Train a GAN on several workers that each hold a part of the data.

A run leaves its settings, metrics.jsonl, pictures and checkpoints in --workdir. Ctrl-C
and SIGTERM end it with a checkpoint (exit code 130 or 143); --resume goes on from there
and gives the same numbers as a run that was never interrupted. --dry_run prints what a
run would cost; python -m jaxsp.gan.scores --checkpoint=WORKDIR scores what came of it.

In many processes the workers are spread over the devices of all: on one machine by
python -m jaxsp.launch, on several by --coordinator, --num_processes and --process_id,
and by no flag at all where SLURM, Open MPI or a TPU pod says who is there. --workdir
must be a directory that all processes see.

Examples:
  python examples/train_gan.py --dataset=digits --method=dp_oadam --topology=ring
  python examples/train_gan.py --dataset=mixture_ring --method=cp_oadam --workers=4
  python examples/train_gan.py --method=dqgan_adam --compressor=quantize --bits=4
  python examples/train_gan.py --dataset=mnist --method=md_gan --model=md_gan_mlp \
    --loss=acgan --workers=10 --batches_k=log --dry_run
  python examples/train_gan.py --dataset=mnist --data_dir=~/tensorflow_datasets \
    --alpha=0.3 --steps=20000 --eval_every=1000 --workdir=runs/mnist
  python examples/train_gan.py --workdir=runs/mnist ... --resume
  python -m jaxsp.launch -n 4 examples/train_gan.py --workers=8 --workdir=runs/four
"""

import contextlib
import dataclasses
import functools
import inspect
import io
import math
import os
import pathlib
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import train_gan_flags
import train_gan_methods
from absl import app, flags, logging
from train_gan_flags import BadFlagError, known, naming
from train_gan_methods import METHODS

from jaxsp import distributed
from jaxsp.gan import data, losses, md_gan, models, scores
from jaxsp.gan.data import partition
from jaxsp.gan.training import checkpoint, cost, loop

LOSSES = {
    # Without the penalty the score of digits turns for the worse after 2,000 steps.
    "non_saturating": functools.partial(losses.non_saturating, r1=1.0),
    "wasserstein": losses.wasserstein,
    "hinge": losses.hinge,
    "acgan": functools.partial(losses.acgan, r1=1.0),
}
_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


# ------------------------------------------------------------------ running


def _telling_once(function):
    """The function, of which only process 0 prints."""

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        if _is_main():
            return function(*args, **kwargs)
        with contextlib.redirect_stdout(io.StringIO()):
            return function(*args, **kwargs)

    return wrapped


@_telling_once
def run(
    method: str = "dp_oadam",
    topology: str | None = None,
    rounds: int | None = None,
    sync_every: int | None = None,
    sync_epochs: float | None = None,
    participation: float | None = None,
    batches_k: str | None = None,
    disc_steps: int | None = None,
    swap_epochs: float | None = None,
    moments: str | None = None,
    crash_every: int | None = None,
    compressor: str | None = None,
    bits: int | None = None,
    down: str | None = None,
    refresh: float | None = None,
    workers: int = 8,
    dataset: str = "digits",
    data_dir: str | None = None,
    partition: str | None = None,
    alpha: float | None = None,
    model: str | None = None,
    conditional: bool = False,
    dtype: str = "float32",
    loss: str | None = None,
    steps: int = 2_000,
    batch_size: int = 16,
    learning_rate: float | None = None,
    seed: int = 0,
    eval_every: int = 500,
    inception: str | None = None,
    workdir: str | None = None,
    resume: bool = False,
    dry_run: bool = False,
    devices: str = "auto",
    eval_samples: int = 10_000,
    progress: bool = True,
    callback: Callable[[dict[str, Any]], Any] | None = None,
) -> loop.Result | None:
    """Train as the flags of the same names say; None is a flag's default.

    In many processes, which `distributed.initialize` has brought together, all must
    call it; only process 0 prints.

    Args:
      method: see `METHODS`.
      topology: who talks to whom.
      rounds: exchanges in a step.
      sync_every: steps between two averages.
      sync_epochs: the same in epochs.
      participation: share of the workers that take part.
      batches_k: batches that the server of `md_gan` generates.
      disc_steps: discriminator steps for one of the generator.
      swap_epochs: epochs between two swaps of discriminators.
      moments: what becomes of their moments then.
      crash_every: steps from the loss of one worker to that of the next.
      compressor: what workers send through.
      bits: of a number, for `quantize`.
      down: what the server sends through.
      refresh: how often an anchor moves.
      workers: how many workers.
      dataset: see `data.NAMES`.
      data_dir: TFDS directory.
      partition: who holds what.
      alpha: of a Dirichlet partition.
      model: the networks.
      conditional: whether samples are of a class.
      dtype: of the networks' arithmetic.
      loss: see `LOSSES`.
      steps: the step to train to.
      batch_size: examples per worker and gradient.
      learning_rate: step size.
      seed: what everything random follows from.
      eval_every: steps between two scores.
      inception: file of the weights of the Inception network.
      workdir: directory of the run.
      resume: whether to go on from a checkpoint.
      dry_run: whether to print only what it would cost.
      devices: `"auto"` or a number that divides `workers`.
      eval_samples: samples generated for a score.
      progress: whether to show progress on standard error.
      callback: as in `loop.train`.

    Returns:
      What `loop.train` returns; None of a dry run.

    Raises:
      BadFlagError: if a flag cannot be used; nothing has been written then.
      distributed.DistributedError: if another process has raised an error.
      loop.TrainingDivergedError: if a loss or a parameter is no longer finite.
    """
    train_gan_flags.set_devices(devices)
    with distributed.raise_together():
        chosen = METHODS[known("method", method, METHODS)]
        given = {
            "topology": topology,
            "rounds": rounds,
            "sync_every": sync_every,
            "sync_epochs": sync_epochs,
            "participation": participation,
            "batches_k": batches_k,
            "disc_steps": disc_steps,
            "swap_epochs": swap_epochs,
            "moments": moments,
            "crash_every": crash_every,
            "compressor": compressor,
            "bits": bits,
            "down": down,
            "refresh": refresh,
        }
        for name, value in given.items():
            if value is not None and name not in chosen.flags:
                print(f"note: --{name} has no effect with --method={method}")
        if method == "standalone" and workers != 1:
            print("note: --method=standalone has one worker, which holds all data")
            workers = 1
        train_gan_flags.check_numbers(
            {
                "workers": workers,
                "steps": steps,
                "batch_size": batch_size,
                "eval_every": eval_every,
                "alpha": alpha,
                "seed": seed,
            }
        )
        choices = train_gan_methods.read(method, given, workers, seed)
        rate = chosen.learning_rate if learning_rate is None else learning_rate
        if not (rate > 0 and math.isfinite(rate)):
            raise BadFlagError(
                f"--learning_rate={rate}: must be above 0, such as "
                f"{chosen.learning_rate}."
            )
        known("dataset", dataset, data.NAMES)
        loss = train_gan_flags.read_loss(loss, conditional, LOSSES)
        known("dtype", dtype, _DTYPES)
        if model is not None:
            known("model", model.partition(":")[0], train_gan_flags.MODELS)
        partition, split = train_gan_flags.read_partition(partition, alpha)
        weights = None
        if inception is not None and _is_main():
            if dataset.startswith("mixture"):
                raise BadFlagError(
                    f"--inception={inception}: it judges images, and {dataset} holds "
                    "points; leave the flag out."
                )
            with naming("inception", inception, ValueError, OSError):
                weights = scores.inception.load(inception)

        description = {
            "method": method,
            **choices.flags,
            "dataset": dataset,
            "partition": partition,
            "loss": loss,
            "conditional": loss == "acgan",
            "dtype": dtype,
            "learning_rate": rate,
        }
        directory = pathlib.Path(workdir or f"runs/{dataset}-{method}").expanduser()
        going_on = False
        if not dry_run and _is_main():
            settings: dict[str, Any] = {"workers": workers, "batch_size": batch_size}
            settings |= {"seed": seed} | ({} if model is None else {"model": model})
            with naming("workdir", None, checkpoint.WorkdirError):
                going_on = checkpoint.check_directory(
                    directory, description | settings, resume, may_differ=("workers",)
                )

        team = train_gan_flags.read_workers(workers, devices, method, dry_run)
        key = jax.random.fold_in(jax.random.key(seed), 1)
        build = functools.partial(
            train_gan_methods.build, method, rate, choices, team, key, batch_size
        )
        texts = [f"--{k}={choices.flags[k]}" for k in _TEXTS if k in choices.flags]
        with naming("method", " ".join([method, *texts]), ValueError):
            # What is wrong shows before data.
            build(np.full(workers, batch_size), 1_000)
    with naming("data_dir", data_dir, OSError, ImportError):
        try:
            loaded = data.load(dataset, data_dir, download=not dry_run)
        except FileNotFoundError:
            if not dry_run:
                raise
            raise BadFlagError(
                f"--dry_run prepares no data, and {dataset} is not prepared yet: write "
                "--data_dir=DIR if it lies elsewhere, or leave --dry_run out once."
            ) from None
    with distributed.raise_together():
        with naming("workers", workers, ValueError):
            parts = split(loaded.train_labels, workers, seed=seed)
        sizes = np.array([len(part) for part in parts])
        if batch_size > min(sizes):
            raise BadFlagError(
                f"--batch_size={batch_size}: a worker holds only {min(sizes)} examples "
                f"of {dataset} with --partition={partition} and --workers={workers}; "
                f"write --batch_size={min(sizes)} or less."
            )
        model = model or _model(loaded.sample_shape)
        classes = loaded.num_classes if loss == "acgan" else 0
        with naming("model", model, ValueError):
            gan = models.parse(model, loaded.sample_shape, classes, _DTYPES[dtype])
            shapes: Any = jax.eval_shape(lambda: models.init(gan, jax.random.key(0)))
        numbers = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        trained_with = build(sizes, numbers)
    config = loop.TrainConfig(
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        log_every=max(1, eval_every // 10),
        eval_every=eval_every,
        checkpoint_every=eval_every,
        eval_samples=eval_samples,
        same_sample=chosen.same_sample,
    )
    description["model"] = model
    _print_start(description, choices.values.get("topology"), team)
    if dry_run and not _is_main():
        return None
    if dry_run:
        if isinstance(trained_with, md_gan.MDGan):
            # All in this process, however many there are.
            trained_with = dataclasses.replace(
                trained_with, server_device=team.devices[0]
            )
        found = cost.plan(
            trained_with,
            gan,
            LOSSES[loss](gan),
            team,
            _shapes_of_shares(loaded, sizes, classes),
            sizes,
            config,
        )
        print(cost.format(found))
        return None
    _print_data(shapes, loaded, parts, directory)
    if going_on:
        _print_elastic(directory, workers)
    elif resume:
        print(f"nothing to resume in {directory}: starting at step 0")

    evaluate = None
    with distributed.raise_together():
        if _is_main():
            evaluate = scores.evaluator(loaded, progress=progress, inception=weights)
    with naming("workdir", None, checkpoint.WorkdirError, OSError):
        result = loop.train(
            gan,
            LOSSES[loss](gan),
            trained_with,
            team,
            loaded,
            parts,
            config,
            score=evaluate,
            workdir=directory,
            resume=resume,
            description=description,
            progress=progress,
            callback=callback,
        )
    if evaluate is not None:
        _print_summary(result, evaluate.floor)
    return result


_TEXTS = ("topology", "compressor", "down")  # what a method may refuse


def _model(sample_shape: Sequence[int]) -> str:
    """Dense networks for points and tiny images, convolutions for the others."""
    if len(sample_shape) == 1:
        return "mlp:128"
    return "mlp" if max(sample_shape) <= 8 else "dcgan"


def _is_main():
    """Whether this process tells and writes; does not look for devices if alone."""
    return distributed.is_alone() or distributed.is_main()


def _shapes_of_shares(loaded, sizes, classes):
    """The shapes of what `partition.stack` would return."""
    rows = (len(sizes), int(max(sizes)))
    samples = jax.ShapeDtypeStruct((*rows, *loaded.sample_shape), loaded.train.dtype)
    return (samples, jax.ShapeDtypeStruct(rows, jnp.int32)) if classes else samples


# ------------------------------------------------------------------ telling


def _print_start(description, graph, team):
    """What is about to be trained, and where."""
    settings = {k: v for k, v in description.items() if k != "topology"}
    print(", ".join(f"{k} {v}" for k, v in settings.items() if v is not None))
    if graph is not None:
        print(f"topology {description['topology']}, gap {graph.spectral_gap:.3g}")
    devices = f"{len(team.devices)} {team.devices[0].platform} device"
    processes = len({device.process_index for device in team.devices})
    print(
        f"{team.count} worker{'s' * (team.count > 1)} by {team.mode} on {devices}"
        + "s" * (team.mode != "vmap")
        + f" of {processes} processes" * (processes > 1)
    )


def _print_data(shapes, dataset, parts, directory):
    """How large the networks are, and who holds what."""
    x, y = (sum(leaf.size for leaf in jax.tree.leaves(p)) for p in shapes)
    print(f"{x:,} parameters of the generator, {y:,} of the discriminator")
    print(f"files in {directory}")
    print("who holds how many of which class:")
    print(partition.format_table(partition.table(dataset.train_labels, parts)))
    sys.stdout.flush()


def _print_elastic(directory, workers):
    """That a run goes on with another number of workers, where it does."""
    found = checkpoint.last_progress(directory)
    if found is None:
        return
    step, before = found[0], found[1]["workers"]
    if before != workers:
        print(
            f"--workers={workers}, and this run had {before} until step {step}: the "
            "networks go on, the data are divided anew, the optimizers start anew"
        )
        sys.stdout.flush()


def _print_summary(result, floor):
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
    if "fid" in last:
        print(
            f"FID {first['fid']:.4g} -> {last['fid']:.4g} (real test data: "
            f"{floor['fid']:.4g})"
        )
    print("written: " + ", ".join(str(path) for path in result.files))


# ------------------------------------------------------------------ the command line


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Define the flags, which `run` takes as arguments of the same names."""
    train_gan_flags.define(values, METHODS, LOSSES)


def main(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> int:
    """Train as the flags say; the exit code."""
    names = [name for name in inspect.signature(run).parameters if name in values]
    arguments: dict[str, Any] = {name: values[name].value for name in names}
    if len(argv) > 1:
        return _complain(f"unexpected {argv[1]!r}: flags are written --name=value.", 2)
    again = _command_to_resume()
    try:
        _begin(values, arguments, again)
        result = run(**arguments)
    except BadFlagError as error:
        return _end(error, _complain(error, 2, once=distributed.raised_in_all(error)))
    except loop.TrainingDivergedError as error:
        said = f"training diverged: {error}"
        return _end(distributed.in_all(error), _complain(said, 1, once=True))
    except distributed.DistributedError as error:
        # Of another process that has said so itself, or nobody could begin.
        once = distributed.raised_in_all(error)
        return _end(error, _complain(" ".join(str(error).split()), 2, once=once))
    if result is None or result.signal is None:
        return 0
    if _is_main():
        print(
            f"stopped by {result.signal.name} at step {result.step}, which is saved; "
            f"go on with\n  {again}"
        )
        sys.stdout.flush()
    distributed.finalize()
    return 128 + result.signal


# What may differ from process to process: where they are, and where their files are.
_OF_ONE_PROCESS = ("data_dir", "inception", "workdir")


def _begin(values, arguments, again):
    """Join the other processes, if there are any."""
    together = ("coordinator", "num_processes", "process_id")
    with naming("coordinator", values["coordinator"].value, ValueError):
        distributed.initialize(
            *(values[name].value for name in together),
            configuration={
                name: value
                for name, value in arguments.items()
                if name not in _OF_ONE_PROCESS
            },
            resume_command=again,
        )


def _end(error, code):
    """The exit code; what all processes end with they end with together."""
    if distributed.raised_in_all(error):
        distributed.finalize()
    return code


def _command_to_resume():
    """What to type to go on."""
    command = os.environ.get("JAXSP_LAUNCH_COMMAND")
    if command is None:
        command = f"python {shlex.join(sys.argv)}"
    words = [word for word in shlex.split(command) if word != "--resume"]
    return shlex.join([*words, "--resume"])


def _complain(
    message: Any, code: int, program: str = "train_gan.py", once: bool = False
) -> int:
    if not once or _is_main():
        print(f"{program}: {message}", file=sys.stderr)
        sys.stderr.flush()
    return code


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parse the command line; what is wrong with it takes one line."""
    try:
        rest = flags.FLAGS(argv)
        if flags.FLAGS["verbosity"].using_default_value:
            logging.set_verbosity(logging.WARNING)  # absl would choose INFO
        return rest
    except flags.Error as error:
        program = pathlib.Path(argv[0]).name  # compare.py reads its flags here too
        if os.environ.get("JAXSP_PROCESS_ID", "0") != "0":
            sys.exit(2)  # process 0 says it
        sys.exit(_complain(" ".join(str(error).split()), 2, program))


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=parse_flags)
