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
  python examples/train_gan.py --method=dqgan_adam --compressor=quantize:4
  python examples/train_gan.py --dataset=mnist --method=md_gan --model=md_gan_mlp \
    --loss=acgan --workers=10 --batches_k=log --dry_run
  python examples/train_gan.py --dataset=mnist --data_dir=~/tensorflow_datasets \
    --partition=dirichlet:0.3 --steps=20000 --eval_every=1000 --workdir=runs/mnist
  python examples/train_gan.py --workdir=runs/mnist ... --resume
  python -m jaxsp.launch -n 4 examples/train_gan.py --workers=8 --workdir=runs/four
"""

import contextlib
import dataclasses
import inspect
import os
import pathlib
import shlex
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from train_gan_config import DTYPES, LOSSES, METHODS, Config, resolve

import jaxsp
from jaxsp import compressors, distributed
from jaxsp.gan import command, data, md_gan, models, names, scores, step
from jaxsp.gan.command import BadFlagError, naming
from jaxsp.gan.data import partition
from jaxsp.gan.training import checkpoint, cost, loop
from jaxsp.gan.training.directory import check_directory

PROGRAM = "train_gan.py"
# What a run may go on with when it differs; the rest makes the run what it is.
_FREE = {"steps", "eval_every", "devices", "inception", "resume", "dry_run"}
# What may differ from process to process: where they are, and where their files are.
_OWN = {"data_dir", "workdir", "inception", "coordinator", "num_processes"}
_OWN |= {"process_id", "heartbeat_timeout"}


def run(
    config: Config,
    progress: bool = True,
    callback: Callable[[dict[str, Any]], Any] | None = None,
) -> loop.Result | None:
    """Train as a configuration says.

    In many processes, which `distributed.initialize` has brought together, all must
    call it; only process 0 prints.

    Args:
      config: what to train, and how.
      progress: whether to show progress on standard error.
      callback: as in `loop.train`.

    Returns:
      What `loop.train` returns; None of a dry run.

    Raises:
      BadFlagError: if a flag cannot be used; nothing has been written then.
      distributed.DistributedError: if another process has raised an error.
      loop.TrainingDivergedError: if a loss or a parameter is no longer finite.
    """
    if config.devices is not None and distributed.is_alone():
        with contextlib.suppress(RuntimeError):  # the devices are in use already
            jax.config.update("jax_num_cpu_devices", config.devices)
    with distributed.raise_together():
        config, workers, split = read(config)
        weights, going_on = None, False
        if config.inception is not None and _is_main():
            with naming("inception", config.inception, ValueError, OSError):
                weights = scores.inception.load(config.inception)
        directory = config.workdir or f"runs/{config.dataset}-{config.method}"
        directory = pathlib.Path(directory).expanduser()
        if not config.dry_run and _is_main():
            with naming("workdir", None, checkpoint.WorkdirError):
                going_on = check_directory(
                    directory, _settings(config), config.resume, ("workers",)
                )
    with naming("data_dir", config.data_dir, OSError, ImportError):
        loaded = data.load(config.dataset, config.data_dir, download=not config.dry_run)
    with distributed.raise_together():
        with naming("workers", config.workers, ValueError):
            parts = split(loaded.train_labels, config.workers, seed=config.seed)
        sizes = np.array([len(part) for part in parts])
        if config.batch_size > min(sizes):
            raise BadFlagError(
                f"--batch_size={config.batch_size}: a worker holds only {min(sizes)} "
                f"examples of {config.dataset} with --partition={config.partition} and "
                f"--workers={config.workers}; write --batch_size={min(sizes)} or less."
            )
        model = config.model or _model(loaded.sample_shape)
        classes = loaded.num_classes if config.loss == "acgan" else 0
        dtype = DTYPES[config.dtype]
        with naming("model", model, ValueError):
            gan = models.parse(model, loaded.sample_shape, classes, dtype)
            shapes: Any = jax.eval_shape(lambda: models.init(gan, jax.random.key(0)))
        x, y = (sum(leaf.size for leaf in jax.tree.leaves(p)) for p in shapes)
        method = make(config, workers, sizes, x + y)
    config = dataclasses.replace(config, model=model)
    program = _program(config, gan, method, workers)
    _tell_start(config, workers)
    if config.dry_run:
        if _is_main():
            _tell_cost(program, loaded, sizes, config.steps)
        return None
    _tell(f"{x:,} parameters of the generator, {y:,} of the discriminator")
    _tell(f"files in {directory}")
    _tell("who holds how many of which class:")
    _tell(partition.format_table(partition.table(loaded.train_labels, parts)))
    if config.resume and not going_on:
        _tell(f"nothing to resume in {directory}: starting at step 0")

    evaluate = None
    with (
        distributed.raise_together(),
        naming("inception", config.inception, ValueError),
    ):
        if _is_main():
            evaluate = scores.evaluator(loaded, progress=progress, inception=weights)
    with naming("workdir", None, checkpoint.WorkdirError, OSError):
        result = loop.train(
            program,
            loaded,
            parts,
            loop.TrainConfig(
                steps=config.steps,
                seed=config.seed,
                log_every=max(1, config.eval_every // 10),
                eval_every=config.eval_every,
                checkpoint_every=config.eval_every,
                description=_settings(config),
                progress=progress,
            ),
            score=evaluate,
            workdir=directory,
            resume=config.resume,
            callback=callback,
        )
    if evaluate is not None and result.signal is None:
        _tell_scores(result, evaluate.floor)
    return result


def read(config: Config) -> tuple[Config, jaxsp.Workers, Callable[..., list]]:
    """Read a configuration, so that what is wrong shows before any data.

    Args:
      config: what the flags say.

    Returns:
      The configuration with the method's defaults, the workers, and the partition, a
      function (labels, workers, *, seed).

    Raises:
      BadFlagError: if a flag cannot be used.
    """
    config = resolve(config)
    with naming("partition", config.partition, ValueError):
        split = partition.parse(config.partition)
    workers = _workers(config)
    make(config, workers, np.full(workers.count, 1_000), 1_000)
    return config, workers, split


def _is_main():
    """Whether this process tells and writes; does not look for devices if alone."""
    return distributed.is_alone() or distributed.is_main()


def _settings(config):
    """What makes a run what it is, by name."""
    found = dataclasses.asdict(config).items()
    return {k: v for k, v in found if v is not None and k not in _FREE | _OWN}


def _workers(config):
    """The workers, on as many devices as asked for; of many processes on all."""
    count, alone, visible = config.workers, distributed.is_alone(), jax.devices()
    fitting = [n for n in range(1, len(visible) + 1) if count % n == 0]
    usual = 1 if visible[0].platform == "cpu" else max(fitting)
    number = config.devices or (usual if alone else len(visible))
    if number > len(visible) or not (alone or number == len(visible)):
        raise BadFlagError(
            f"--devices={number}: there are {len(visible)}; leave the flag out."
        )
    visible = visible[:number]
    if config.dry_run and not alone:  # all in this process, however many there are
        visible = jax.local_devices()[:1]
    elif config.method == "md_gan" and not alone:  # process 0 is the server
        visible = [device for device in visible if device.process_index > 0]
    with naming("workers", f"{count} --devices={number}", ValueError):
        return jaxsp.Workers(count, visible)


def _model(sample_shape):
    """Dense networks for points and tiny images, convolutions for the others."""
    if len(sample_shape) == 1:
        return "mlp:128"
    return "mlp" if max(sample_shape) <= 8 else "dcgan"


# ------------------------------------------------------------------ the method


def make(config: Any, workers: jaxsp.Workers, sizes: np.ndarray, numbers: int) -> Any:
    """Make the method that a configuration names.

    Args:
      config: what `resolve` has returned.
      workers: who trains.
      sizes: how many examples each worker holds.
      numbers: how many numbers the parameters of both networks are.

    Returns:
      An optax transformation, or an `md_gan.MDGan`.

    Raises:
      BadFlagError: if a flag cannot be used.
    """
    chosen, count = METHODS[config.method], workers.count
    key = jax.random.fold_in(jax.random.key(config.seed), 1)

    def in_steps(epochs):
        return max(1, round(epochs * float(np.mean(sizes)) / config.batch_size))

    values = dataclasses.asdict(config) | {
        "axis_name": workers.axis_name,
        "key": key,
        "sizes": sizes,
        "in_steps": in_steps,
    }
    if config.sync_epochs is not None:
        values["sync_every"] = in_steps(config.sync_epochs)
    if config.participation is not None:
        values["participants"] = max(1, round(config.participation * count))
    if config.topology is not None:
        values["topology"] = _topology(config)
    up, down = _read_compressors(config)
    if chosen.contractive:
        up, down = (c and compressors.contractive(c) for c in (up, down))
    values["channel"] = jaxsp.channel(workers.axis_name, up, down, key=key)
    if "refresh" in chosen.flags and config.refresh is None:
        vector = jax.ShapeDtypeStruct((numbers,), jnp.float32)
        sent = 32 * numbers if up is None else up.for_worker(0, count).bits(vector)
        density = sent / (32 * numbers)
        values["refresh"] = min(1.0, density * (config.participation or 1.0))
    takes = [*inspect.signature(chosen.build).parameters][1:]
    given = {name: values[name] for name in takes if name in values}
    texts = [f"--{n}={getattr(config, n)}" for n in _TEXTS if n in chosen.flags]
    with naming("method", " ".join([config.method, *texts]), ValueError):
        return chosen.build(config.learning_rate, **given)


def _program(config, gan, method, workers):
    """What the training loop runs, or what is asked for its cost."""
    game, batch_size = LOSSES[config.loss](gan), config.batch_size
    if not isinstance(method, md_gan.MDGan):
        same = METHODS[config.method].same_sample
        options: Any = {"batch_size": batch_size, "same_sample": same}
        return step.program(gan, game, method, workers, **options)
    if config.dry_run:  # all in this process
        method = dataclasses.replace(method, server_device=workers.devices[0])
    return method.program(gan, game, workers, batch_size=batch_size)


_TEXTS = ("topology", "compressor", "down")  # what a method may refuse


def _topology(config):
    """The graph of a configuration."""
    with naming(
        "topology", f"{config.topology} --workers={config.workers}", ValueError
    ):
        return names.parse_topology(config.topology, config.workers, config.seed)


def _read_compressors(config):
    """What workers and server send through, each a compressor or None."""
    for flag in ("compressor", "down"):
        text = getattr(config, flag) or "none"
        with naming(flag, text, ValueError):
            yield names.parse_compressor(text)


# ------------------------------------------------------------------ telling


def _tell(line):
    """Print, in process 0."""
    if _is_main():
        print(line, flush=True)


def _tell_start(config, workers):
    """What is about to be trained, and where."""
    _tell(", ".join(f"{name} {value}" for name, value in _settings(config).items()))
    if config.topology is not None:
        gap = _topology(config).spectral_gap
        _tell(f"topology {config.topology}, gap {gap:.3g}")
    used = workers.devices
    processes = len({device.process_index for device in used})
    _tell(
        f"{workers.count} worker{'s' * (workers.count > 1)} by {workers.mode} on "
        f"{len(used)} {used[0].platform} device{'s' * (len(used) > 1)}"
        + f" of {processes} processes"
        * (processes > 1)
    )


def _tell_cost(program, dataset, sizes, steps):
    """What a run would cost."""
    rows = (len(sizes), int(max(sizes)))
    samples = (*rows, *dataset.sample_shape)
    shapes: Any = jax.ShapeDtypeStruct(samples, dataset.train.dtype)
    if program.gan.num_classes:
        shapes = shapes, jax.ShapeDtypeStruct(rows, jnp.int32)
    _tell(cost.format(cost.cost(program, shapes, sizes, steps)))


def _tell_scores(result, floor):
    """How far training came."""
    for name, words in (("frechet_distance", "Frechet distance"), ("fid", "FID")):
        found = [r[name] for r in result.history if r.get(name) is not None]
        if found:
            _tell(
                f"step {result.step}: {words} {found[0]:.4g} -> {found[-1]:.4g} (real "
                f"test data: {floor[name]:.4g}), {result.history[-1]['seconds']:.0f} s"
            )
    _tell("written: " + ", ".join(str(path) for path in result.files))


# ------------------------------------------------------------------ the command line


def main(config: Config) -> int:
    """Train as the flags say; the exit code."""
    words = os.environ.get("JAXSP_LAUNCH_COMMAND", f"python {shlex.join(sys.argv)}")
    words = [word for word in shlex.split(words) if word != "--resume"]
    again = shlex.join([*words, "--resume"])
    shared = dataclasses.asdict(config).items()
    try:
        with naming("coordinator", config.coordinator, ValueError):
            distributed.initialize(
                config.coordinator,
                config.num_processes,
                config.process_id,
                settings={k: v for k, v in shared if k not in _OWN},
                heartbeat_timeout=config.heartbeat_timeout,
            )
        with distributed.ending_together(again):
            result = run(config)
            if result is None or result.signal is None:
                return 0
            _tell(
                f"stopped by {result.signal.name} at step {result.step}, which is "
                f"saved; go on with\n  {again}"
            )
            return 128 + result.signal
    except (BadFlagError, distributed.DistributedError) as error:
        return _end(error, error, 2)
    except loop.TrainingDivergedError as error:
        return _end(error, f"training diverged: {error}", 1)


def _end(error, message, code):
    """Tell what went wrong, once if it did in all processes; the exit code."""
    if not distributed.raised_in_all(error) or distributed.is_main():
        command.complain(PROGRAM, message, code)
    return code


if __name__ == "__main__":
    command.run(PROGRAM, Config, main)
