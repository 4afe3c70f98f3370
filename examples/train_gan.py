r"""Train a GAN on several workers that each hold a part of the data.

A run leaves its settings, metrics.jsonl, pictures and checkpoints in --workdir, which
in many processes must be a directory that all of them see. Ctrl-C and SIGTERM end it
with a checkpoint (exit code 130 or 143); --resume goes on from there and gives the same
numbers as a run that was never interrupted.

Examples:
  python examples/train_gan.py --dataset=digits --method=dp_oadam --topology=ring
  python examples/train_gan.py --method=md_gan --loss=acgan --workers=10 --dry_run
  python examples/train_gan.py --dataset=mnist --data_dir=~/tensorflow_datasets \
    --partition=dirichlet:0.3 --steps=20000 --eval_every=1000 --workdir=runs/mnist
  python -m jaxsp.launch -n 4 examples/train_gan.py --workers=8 --workdir=runs/four
  python -m jaxsp.gan.scores --checkpoint=runs/mnist
"""

import contextlib
import dataclasses
import functools
import inspect
import math
import os
import pathlib
import shlex
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from train_gan_config import BUILDERS, LOSSES, METHODS, Config, own_flags, with_defaults

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
# What the last line says, of those that there are.
_HEADLINES = {
    "high_quality": "share of the samples that are on a mode",
    "modes_covered": "modes covered",
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
    directory = config.workdir or f"runs/{config.dataset}-{config.method}"
    directory = pathlib.Path(directory).expanduser()
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
    with naming("data_dir", config.data_dir, OSError, ImportError):
        loaded = data.load(config.dataset, config.data_dir, download=not config.dry_run)
    shape, labels = loaded.sample_shape, loaded.train_labels
    with distributed.raise_together():
        with naming("workers", config.workers, ValueError):
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
        method = make(config, workers, sizes, x + y)
    loss, weight, _ = LOSSES[config.loss]
    game = loss(gan, **{weight: config.penalty})
    options = {"batch_size": config.batch_size, "ema_decay": config.ema_decay}
    if isinstance(method, md_gan.MDGan):
        program = method.program(gan, game, workers, **options)
    else:
        same = "disc_steps" in METHODS[config.method]  # of players who take turns
        program = step.program(gan, game, method, workers, same_sample=same, **options)

    tell = functools.partial(print, flush=True) if writes else lambda line: None
    tell(", ".join(f"{name} {value}" for name, value in _settings(config).items()))
    if config.topology is not None:
        tell(f"topology {config.topology}, gap {_topology(config).spectral_gap:.3g}")
    count, used = workers.count, workers.devices
    processes = len({device.process_index for device in used})
    tell(
        f"{count} worker{'s' * (count > 1)} by {workers.mode} on {len(used)} "
        f"{used[0].platform} device{'s' * (len(used) > 1)}"
        + f" of {processes} processes"
        * (processes > 1)
    )
    if config.dry_run:
        rows = (count, int(max(sizes)))
        shares: Any = jax.ShapeDtypeStruct((*rows, *shape), loaded.train.dtype)
        if classes:
            shares = shares, jax.ShapeDtypeStruct(rows, jnp.int32)
        if writes:
            tell(cost.format(cost.cost(program, shares, sizes, config.steps or 0)))
        return None
    tell(f"{x:,} parameters of the generator, {y:,} of the discriminator")
    tell(f"files in {directory}")
    tell("who holds how many of which class:")
    tell(partition.format_table(partition.table(labels, parts)))
    if config.resume and not going_on:
        tell(f"nothing to resume in {directory}: starting at step 0")
    with (
        distributed.raise_together(),
        naming("inception", config.inception, ValueError),
    ):
        if writes:
            evaluate = scores.evaluator(loaded, progress=progress, inception=weights)
    samples = min(10_000, len(loaded.test))  # as many as the real ones beside them
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
            ),
            score=evaluate,
            workdir=directory,
            resume=config.resume,
            callback=callback,
        )
    if evaluate is not None and result.signal is None:
        for name, words in _HEADLINES.items():
            found = [r[name] for r in result.history if r.get(name) is not None]
            if found:
                tell(
                    f"step {result.step}: {words} {found[0]:.4g} -> {found[-1]:.4g} "
                    f"({evaluate.floor[name]:.4g} of as many real ones, {samples:,}), "
                    f"{result.history[-1]['seconds']:.0f} s"
                )
        tell("written: " + ", ".join(map(str, result.files)))
    return result


def read(config: Config) -> tuple[Config, jaxsp.Workers, Callable[..., list]]:
    """Read a configuration, so that what is wrong shows before any data.

    Args:
      config: what the flags say.

    Returns:
      The configuration with the method's defaults, in which None stands for what has
      none and for what has no effect, of which a note is printed; the workers; and the
      partition, a function (labels, workers, *, seed).

    Raises:
      BadFlagError: if a flag cannot be used.
    """
    command.check(config)
    config = with_defaults(config)
    if (config.decay_steps or math.inf) < (config.steps or 0):
        print(f"note: from step {config.decay_steps} on the learning rate is 0")
    own, found = own_flags(config), {}
    if config.method == "standalone" and config.workers != 1:
        print("note: --method=standalone has one worker, which holds all data")
        found["workers"] = 1
    every, epochs, swap = config.sync_every, config.sync_epochs, config.swap_epochs
    if every is not None and epochs is not None:
        raise BadFlagError(
            f"--sync_every={every} and --sync_epochs={epochs} say the same: write one "
            "of them."
        )
    if swap and found.get("workers", config.workers) == 1:
        raise BadFlagError(
            f"--swap_epochs={swap}: with --workers=1 there is no other worker to swap "
            "with; write --swap_epochs=0, or more workers."
        )
    if "sync_every" in own and (every, epochs) != (None, None):
        own = own | {"sync_every": None, "sync_epochs": None}
    for name in {name for flags in METHODS.values() for name in flags}:
        value = getattr(config, name)
        if value is not None and name not in own:
            print(f"note: --{name} has no effect with --method={config.method}")
        found[name] = own.get(name) if value is None or name not in own else value
    config = dataclasses.replace(config, **found)
    with naming("partition", config.partition, ValueError):
        split = partition.parse(config.partition)
    workers = _workers(config)
    make(config, workers, np.full(workers.count, 1_000), 1_000)
    return config, workers, split


def _settings(config):
    """What makes a run what it is, by name."""
    found = dataclasses.asdict(config).items()
    return {k: v for k, v in found if v is not None and k not in _FREE | _OWN}


def _workers(config):
    """The workers, on as many devices as asked for; of many processes on all."""
    count, alone = config.workers, distributed.is_alone()
    if config.devices is not None and alone:
        with contextlib.suppress(RuntimeError):  # the devices are in use already
            jax.config.update("jax_num_cpu_devices", config.devices)
    used = jax.devices()
    fitting = [n for n in range(1, len(used) + 1) if count % n == 0]
    usual = 1 if used[0].platform == "cpu" else max(fitting)
    number = config.devices or (usual if alone else len(used))
    if number > len(used) or not (alone or number == len(used)):
        raise BadFlagError(
            f"--devices={number}: there are {len(used)}; leave the flag out."
        )
    used = used[:number]
    if config.dry_run and not alone:  # all in this process, however many there are
        used = jax.local_devices()[:1]
    elif config.method == "md_gan" and not alone:  # process 0 is the server
        used = [device for device in used if device.process_index > 0]
    if count % len(used):
        devices = f", or --devices={' or '.join(map(str, fitting))}" if alone else ""
        raise BadFlagError(
            f"--workers={count} --devices={number}: each device must have the same "
            f"number of workers; write --workers={count + -count % len(used)}{devices}."
        )
    return jaxsp.Workers(count, used)


# ------------------------------------------------------------------ the method


def make(config: Any, workers: jaxsp.Workers, sizes: np.ndarray, numbers: int) -> Any:
    """Make the method that a configuration names.

    Args:
      config: what `read` has returned.
      workers: who trains.
      sizes: how many examples each worker holds.
      numbers: how many numbers the parameters of both networks are.

    Returns:
      An optax transformation, or an `md_gan.MDGan`.

    Raises:
      BadFlagError: if a flag cannot be used.
    """
    own, build, count = METHODS[config.method], BUILDERS[config.method], workers.count
    rate, turns = _rate(config), config.disc_steps or 1
    key = jax.random.fold_in(jax.random.key(config.seed), 1)

    def in_steps(epochs):
        steps = epochs * float(np.mean(sizes)) / config.batch_size
        return max(1, round(min(steps, 2**31 - 1)))

    def adam(rate):
        return optax.adam(rate, config.b1, config.b2) if config.b1 is not None else None

    values = dataclasses.asdict(config) | {
        "learning_rate": rate,
        "axis_name": workers.axis_name,
        "key": key,
        "weights": sizes,
        "generator_optimizer": adam(rate),
        # Which counts its own steps.
        "discriminator_optimizer": adam(
            (lambda count: rate(count // turns)) if callable(rate) else rate
        ),
        "server_device": workers.devices[0] if config.dry_run else None,
    }
    if config.sync_epochs is not None:
        values["sync_every"] = in_steps(config.sync_epochs)
    if config.swap_epochs and count > 1:
        values["swap_every"] = in_steps(config.swap_epochs)
    if config.crash_every is not None:  # the last worker first
        values["alive"] = lambda step: (
            np.arange(count) < max(1, count - step // config.crash_every)
        )
    if (batches := config.batches_k) is not None:
        k = str(max(1, math.ceil(math.log2(count)))) if batches == "log" else batches
        if not (k.isdecimal() and 1 <= int(k) <= count):
            raise BadFlagError(
                f"--batches_k={k}: write log, or a number from 1 to {count}, as many "
                "as there are workers."
            )
        values["batches_k"] = int(k)
    if config.participation is not None:
        values["participants"] = max(1, round(config.participation * count))
    if config.topology is not None:
        values["topology"] = _topology(config)
    up, down = map(functools.partial(_compressor, config), ("compressor", "down"))
    values["channel"] = jaxsp.channel(workers.axis_name, up, down, key=key)
    if "refresh" in own and config.refresh is None:
        vector = jax.ShapeDtypeStruct((numbers,), jnp.float32)
        sent = 32 * numbers if up is None else up.for_worker(0, count).bits(vector)
        density = sent / (32 * numbers)
        values["refresh"] = min(1.0, density * (config.participation or 1.0))
    takes = inspect.signature(build).parameters
    texts = [n for n in ("topology", "compressor", "down") if n in own]
    texts = " ".join([config.method, *(f"--{n}={getattr(config, n)}" for n in texts)])
    with naming("method", texts, ValueError):
        return build(**{name: values[name] for name in takes if name in values})


def _rate(config):
    """The learning rate, a schedule if it is to change."""
    rate, warm, decay = config.learning_rate, config.warmup_steps, config.decay_steps
    if decay is not None and decay <= (warm or 0):
        raise BadFlagError(
            f"--decay_steps={decay} must be above --warmup_steps={warm}."
        )
    if warm is None and decay is None:
        return rate
    warm, then = warm or 0, optax.constant_schedule(rate)
    if decay is not None:
        then = optax.cosine_decay_schedule(rate, decay - warm)
    first = optax.linear_schedule(rate / max(warm, 1), rate, max(warm - 1, 1))
    return optax.join_schedules([first, then], [warm]) if warm else then


def _topology(config):
    """The graph of a configuration."""
    texts = f"{config.topology} --workers={config.workers}"
    with naming("topology", texts, ValueError):
        return names.parse_topology(config.topology, config.workers, config.seed)


def _compressor(config, flag):
    """What workers or server send through; None for nothing."""
    with naming(flag, getattr(config, flag), ValueError):
        found = names.parse_compressor(getattr(config, flag) or "none")
    contractive = METHODS[config.method].get("compressor") == "top_k"
    return compressors.contractive(found) if found and contractive else found


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
            if distributed.is_main():
                print(
                    f"stopped by {result.signal.name} at step {result.step}, which is "
                    f"saved; go on with\n  {again}",
                    flush=True,
                )
            return 128 + result.signal
    except (BadFlagError, distributed.DistributedError) as error:
        message, code, raised = error, 2, error
    except loop.TrainingDivergedError as error:
        message, code, raised = f"training diverged: {error}", 1, error
    if not distributed.raised_in_all(raised) or distributed.is_main():
        command.complain(PROGRAM, message, code)
    return code


if __name__ == "__main__":
    command.run(PROGRAM, Config, main)
