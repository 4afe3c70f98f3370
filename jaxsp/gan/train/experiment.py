"""A run as its flags say: from the settings to the end of training."""

import dataclasses
import functools
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxsp
from jaxsp import distributed
from jaxsp.gan import command, data, md_gan, models, scores, step
from jaxsp.gan.command import BadFlagError, naming
from jaxsp.gan.data import partition
from jaxsp.gan.files import local_path
from jaxsp.gan.train import methods
from jaxsp.gan.train.config import Config
from jaxsp.gan.training import checkpoint, cost, loop
from jaxsp.gan.training.directory import check_directory

__all__ = ["OWN", "read", "run"]

# What a run may go on with when it differs; the rest makes the run what it is.
_FREE = {"steps", "eval_every", "devices", "inception", "resume", "dry_run"}
# What may differ from process to process: where they are, and where their files are.
OWN = {"data_dir", "workdir", "inception", "coordinator", "num_processes"}
OWN |= {"process_id", "heartbeat_timeout"}
# What the last line says, of those that there are.
_HEADLINES = {
    "high_quality": "share of the samples that are on a mode",
    "modes_covered": "modes covered",
    "modes_reached": "modes of which there is a sample",
    "frechet_distance": "Frechet distance",
    "fid": "FID",
}


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
    directory = config.workdir
    if directory is None:
        directory = f"runs/{config.dataset}-{config.method}"
    with naming("workdir", config.workdir, ValueError):
        directory = local_path("workdir", directory)
    weights, going_on, evaluate = None, False, None
    with distributed.raise_together():
        config, workers, split = read(config)
        writes = distributed.is_main()
        if config.inception is not None and writes:
            with naming("inception", config.inception, ValueError, OSError):
                weights = scores.inception.load(config.inception)
        if not config.dry_run and writes:
            with naming("workdir", None, checkpoint.WorkdirError):
                going_on = check_directory(
                    directory, _settings(config), config.resume, ("workers",)
                )
    with naming("data_dir", config.data_dir, ValueError, OSError, ImportError):
        load = data.outline if config.dry_run else data.load
        loaded: Any = load(config.dataset, config.data_dir)
        loaded, read_labels = loaded if config.dry_run else (loaded, True)
    shape, labels = loaded.sample_shape, loaded.train_labels
    with distributed.raise_together():
        shared = f"{config.workers} --partition={config.partition}"
        with naming("workers", shared, ValueError):
            parts = split(labels, config.workers, seed=config.seed)
        sizes = np.array([len(part) for part in parts])
        if config.batch_size > min(sizes):
            raise BadFlagError(
                f"--batch_size={config.batch_size}: a worker holds only {min(sizes)} "
                f"examples of {config.dataset} with --partition={config.partition} and "
                f"--workers={config.workers}; write --batch_size={min(sizes)} or less."
            )
        small = "mlp" if max(shape) <= 8 else "dcgan"
        model = config.model or ("mlp:128" if len(shape) == 1 else small)
        classes = loaded.num_classes if config.loss == "acgan" else 0
        latent = config.latent_size or (4 + classes if len(shape) == 1 else None)
        config = dataclasses.replace(config, model=model, latent_size=latent)
        with naming("model", model, ValueError):
            gan = models.parse(model, shape, classes, jnp.dtype(config.dtype), latent)
            shapes: Any = jax.eval_shape(lambda: models.init(gan, jax.random.key(0)))
        x, y = (sum(leaf.size for leaf in jax.tree.leaves(p)) for p in shapes)
        _check_size(config, workers, x + y)
        method = methods.make(config, workers, sizes, x + y)
    game = methods.game(config, gan)
    options = {"batch_size": config.batch_size, "ema_decay": config.ema_decay}
    if isinstance(method, md_gan.MDGan):
        program = method.program(gan, game, workers, **options)
    else:
        turns = "disc_steps" in methods.METHODS[config.method]
        same = turns or config.second_sample == "same"
        program = step.program(gan, game, method, workers, same_sample=same, **options)

    tell = functools.partial(print, flush=True) if writes else lambda line: None
    for line in _about(config, workers):
        tell(line)
    if config.partition != "iid" and not read_labels:
        tell(
            f"note: {config.dataset} has not been read here, so shares are those of "
            "equally many examples of each class"
        )
    if config.dry_run:
        rows = (workers.count, int(max(sizes)))
        shares: Any = jax.ShapeDtypeStruct((*rows, *shape), loaded.train.dtype)
        if classes:
            shares = shares, jax.ShapeDtypeStruct(rows, jnp.int32)
        if writes:
            tell(cost.format(cost.cost(program, shares, sizes, config.steps or 0)))
        return None
    tell(f"{x:,} parameters of the generator, {y:,} of the discriminator")
    tell(f"files in {directory}")
    few = loaded.num_classes <= 100
    tell(f"who holds how many of which {'class' if few else 'hundred of classes'}:")
    tell(partition.format_table(partition.table(labels // (1 if few else 100), parts)))
    if config.resume and not going_on:
        tell(f"nothing to resume in {directory}: starting at step 0")
    with (
        distributed.raise_together(),
        naming("inception", config.inception, ValueError),
    ):
        if writes:
            evaluate = scores.evaluator(loaded, progress=progress, inception=weights)
    most = 10_000 if loaded.single is None else len(loaded.test)
    samples = min(most, len(loaded.test))  # as many as the real ones beside them
    with naming("workdir", None, checkpoint.WorkdirError, OSError):
        result = loop.train(
            program,
            loaded,
            parts,
            loop.TrainConfig(
                steps=config.steps or 0,
                seed=config.seed,
                eval_samples=samples,
                log_every=max(1, config.eval_every // 10),
                eval_every=config.eval_every,
                checkpoint_every=config.eval_every,
                description=_settings(config),
                progress=progress,
                skip_not_finite=config.skip_not_finite is not None,
            ),
            score=evaluate,
            workdir=directory,
            resume=config.resume,
            callback=callback,
        )
    if evaluate is not None and result.signal is None:
        for line in _reached(result, evaluate.floor, samples):
            tell(line)
    return result


def read(config: Config) -> tuple[Config, jaxsp.Workers, Callable[..., list]]:
    """Read a configuration, so that what is wrong shows before any data.

    Args:
      config: what the flags say.

    Returns:
      The configuration with the method's defaults, in which None stands for what has
      none and for what has no effect, of which a note is printed; the workers; and the
      partition, a function `(labels, workers, *, seed)`.

    Raises:
      BadFlagError: if a flag cannot be used.
    """
    command.check(config)
    notes: list[str] = []
    config = methods.with_defaults(config)
    if (config.decay_steps or math.inf) < (config.steps or 0):
        notes.append(f"from step {config.decay_steps} on the learning rate is 0")
    own, found = methods.own_flags(config), {}
    if config.method in methods.ADAM_FORMS:
        notes.append(
            f"the plain steps of {config.method} are slow on GANs; "
            f"--method={methods.ADAM_FORMS[config.method]} makes steps of Adam"
        )
    if config.method == "standalone" and config.workers != 1:
        notes.append("--method=standalone has one worker, which holds all data")
        found["workers"] = 1
    every, epochs, swap = config.sync_every, config.sync_epochs, config.swap_epochs
    if every is not None and epochs is not None:
        raise BadFlagError(
            f"--sync_every={every} and --sync_epochs={epochs} say the same: write one "
            "of them."
        )
    if config.skip_not_finite is not None and config.method == "md_gan":
        raise BadFlagError(
            f"--skip_not_finite={config.skip_not_finite}: md_gan is no transformation, "
            "whose steps can be left out; leave it out, or write another --method."
        )
    if swap and found.get("workers", config.workers) == 1:
        raise BadFlagError(
            f"--swap_epochs={swap}: with --workers=1 there is no other worker to swap "
            "with; write --swap_epochs=0, or more workers."
        )
    if "sync_every" in own and (every, epochs) != (None, None):
        own = own | {"sync_every": None, "sync_epochs": None}
    for name in {name for flags in methods.METHODS.values() for name in flags}:
        value = getattr(config, name)
        if value is not None and name not in own:
            notes.append(f"--{name} has no effect with --method={config.method}")
        found[name] = own.get(name) if value is None or name not in own else value
    config = dataclasses.replace(config, **found)
    with naming("partition", config.partition, ValueError):
        split = partition.parse(config.partition, config.batch_size or 1)
    workers = _workers(config)
    methods.make(config, workers, np.full(workers.count, 1_000), 1_000)
    if distributed.is_main():  # which must not look for devices before they are made
        print(end="".join(f"note: {note}\n" for note in notes))
    return config, workers, split


def _check_size(config, workers, numbers):
    """Refuse networks that cannot be held, before anything is allocated."""
    said = f"--model={config.model}: its networks have {numbers:,} parameters"
    if numbers >= 2**31:  # what XLA indexes
        raise BadFlagError(f"{said}, more than 2,147,483,647: write a smaller width.")
    here = sum(d.process_index == jax.process_index() for d in workers.devices)
    if config.dry_run or workers.devices[0].platform != "cpu" or not here:
        return
    # Parameters, gradients and two moments of every worker in this process.
    need = 16 * numbers * workers.count * here // len(workers.devices)
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if need > have:
        raise BadFlagError(
            f"{said}, for which {workers.count} workers need {need / 1e9:.3g} GB of "
            f"memory, of {have / 1e9:.3g}: write a smaller width, or fewer workers."
        )


def _about(config, workers):
    """What is said of a run before it begins, in lines."""
    yield ", ".join(f"{name} {value}" for name, value in _settings(config).items())
    if config.topology is not None:
        gap = methods.topology_of(config).spectral_gap
        yield f"topology {config.topology}, gap {gap:.3g}"
    count, used = workers.count, workers.devices
    processes = len({device.process_index for device in used})
    yield (
        f"{count} worker{'s' * (count > 1)} by {workers.mode} on {len(used)} "
        f"{used[0].platform} device{'s' * (len(used) > 1)}"
        + f" of {processes} processes"
        * (processes > 1)
    )


def _reached(result, floor, samples):
    """What a run has reached, in lines."""
    for name, words in _HEADLINES.items():
        found = [r[name] for r in result.history if r.get(name) is not None]
        if found:
            yield (
                f"step {result.step}: {words} {found[0]:.4g} -> {found[-1]:.4g} "
                f"({floor[name]:.4g} of as many real ones, {samples:,}), "
                f"{result.history[-1]['seconds']:.0f} s"
            )
    yield "written: " + ", ".join(map(str, result.files))


def _settings(config):
    """What makes a run what it is, by name."""
    found = dataclasses.asdict(config).items()
    return {k: v for k, v in found if v is not None and k not in _FREE | OWN}


def _workers(config):
    """The workers, on as many devices as asked for; of many processes on all."""
    count, alone = config.workers, distributed.is_alone()
    used = command.devices(count, config.devices)
    number = len(used)
    if config.dry_run and not alone:  # all in this process, however many there are
        used = jax.local_devices()[:1]
    elif config.method == "md_gan" and not alone:  # process 0 is the server
        used = [device for device in used if device.process_index > 0]
    if count % len(used):
        fitting = [n for n in range(1, len(jax.devices()) + 1) if count % n == 0]
        devices = f", or --devices={' or '.join(map(str, fitting))}" if alone else ""
        raise BadFlagError(
            f"--workers={count} --devices={number}: each device must have the same "
            f"number of workers; write --workers={count + -count % len(used)}{devices}."
        )
    return jaxsp.Workers(count, used)
