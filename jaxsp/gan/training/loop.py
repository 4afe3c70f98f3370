"""The training loop: any GAN, any losses, any method, any workers.

`train` runs a program (`jaxsp.gan.training.program`), records and scores what comes of
it, and leaves a run that goes on where it stopped: what is random in a step follows
from the seed, the step and the worker, so nothing random is saved, and a run that was
interrupted continues bit for bit. With another number of workers it goes on too, from
what the checkpoint's parameters come down to.

Over many processes all call `train` alike. Each holds the data of its own workers,
process 0 writes and scores, and whatever decides how long they go on is agreed on:
`jaxsp.distributed`.
"""

import contextlib
import dataclasses
import logging
import os
import pathlib
import signal
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from jaxsp import distributed
from jaxsp.gan import data, md_gan, models
from jaxsp.gan.data import partition
from jaxsp.gan.losses import Losses
from jaxsp.gan.step import program as local_program
from jaxsp.gan.training import checkpoint, plots
from jaxsp.gan.training.program import Program
from jaxsp.gan.training.records import Recorder, add_bits
from jaxsp.workers import Workers

__all__ = ["Result", "TrainConfig", "TrainingDivergedError", "make_program", "train"]

_log = logging.getLogger(__name__)

# JAX 0.10 on several CPU devices deadlocks when 64 steps with collectives are in
# flight; and a signal is seen, and the bar moved, when one of these is complete.
_MOST_CALLS_IN_FLIGHT = 32
_SECONDS_IN_FLIGHT = 0.5


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long to train and what to record.

    Attributes:
      steps: the step to train to.
      batch_size: examples a worker draws for one gradient.
      seed: what everything random follows from.
      log_every: steps between two lines of metrics.
      eval_every: steps between two scores; there is one at the start and at the end.
      checkpoint_every: steps between two checkpoints.
      eval_samples: how many samples are generated for a score.
      ema_decay: d in ema ← d ema + (1 − d) generator. Step t uses
        min(d, (1 + t) / (10 + t)), so that the start is forgotten early on.
      steps_per_call: steps compiled into one call, in a loop on the device. None means
        1 on CPU, where a convolution inside such a loop is 3 to 4 times slower, and 32
        elsewhere.
      same_sample: whether a method's second gradient in a step is taken on the sample
        of the first (batch, latents and noise), as alternating steps usually are, or on
        a sample of its own, as the theory of extragradient asks.

    Raises:
      ValueError: if a number is out of range.
    """

    steps: int = 2_000
    batch_size: int = 16
    seed: int = 0
    log_every: int = 50
    eval_every: int = 500
    checkpoint_every: int = 500
    eval_samples: int = 10_000
    ema_decay: float = 0.999
    steps_per_call: int | None = None
    same_sample: bool = False

    def __post_init__(self):
        least = {"steps": 1, "seed": 0}
        for field in dataclasses.fields(self):
            name, value = field.name, getattr(self, field.name)
            if name in ("ema_decay", "same_sample"):
                continue
            if name == "steps_per_call" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                raise ValueError(f"{name} must be an integer, got {value!r}.")
            if value < least.get(name, 1):
                raise ValueError(
                    f"{name} must be at least {least.get(name, 1)}, got {value}."
                )
        if not 0 <= self.ema_decay < 1:
            raise ValueError(
                f"ema_decay must be at least 0 and below 1, got {self.ema_decay}."
            )


# What may change when a run is resumed: it does not touch the trajectory.
_FREE = ("steps", "log_every", "eval_every", "checkpoint_every", "steps_per_call")
# What is another if the workers are others: the run then goes on from a summary.
_ELASTIC = ("workers", "data_crc32")
_CRC32_FORMAT = 2  # of each worker's share by itself, then of these


class Result(NamedTuple):
    """What `train` returns.

    Attributes:
      state: the last state: a `step.TrainState`, or an `md_gan.MDGanState`.
      generator: the generator's averaged parameters, mean over workers.
      history: the records of `metrics.jsonl`, in process 0; elsewhere there are none.
      step: the step reached.
      signal: the signal that ended training early, or None.
      files: what was written.
    """

    state: Any
    generator: Any
    history: list[dict[str, Any]]
    step: int
    signal: signal.Signals | None
    files: tuple[pathlib.Path, ...]


class TrainingDivergedError(FloatingPointError):
    """A loss or a parameter is no longer a finite number.

    Attributes:
      step: the step at which it was found.
      checkpoint: the last checkpoint, whose parameters are finite, or None.
    """

    def __init__(self, what: str, step: int, checkpoint: pathlib.Path | None):
        kept = (
            "there is no checkpoint"
            if checkpoint is None
            else f"the last good checkpoint is {checkpoint}"
        )
        super().__init__(f"{what} at step {step}; {kept}.")
        self.step = step
        self.checkpoint = checkpoint


def train(
    gan: models.Gan,
    losses: Losses,
    method: "optax.GradientTransformation | md_gan.MDGan",
    workers: Workers,
    dataset: data.Dataset,
    parts: Sequence[np.ndarray],
    config: TrainConfig,
    *,
    score: Callable[[Any], Mapping[str, float]] | None = None,
    callback: Callable[[dict[str, Any]], Any] | None = None,
    workdir: str | os.PathLike | None = None,
    resume: bool = False,
    description: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Result:
    """Train a GAN on workers that each hold a part of the data.

    In `workdir` it leaves `config.json`, `metrics.jsonl`, `checkpoints/`, and as
    pictures `partition.png`, `samples_000000.png`, `samples.png` and `curves.png`. A
    line of metrics holds the `step`; `seconds` of training, without scores, pictures,
    checkpoints and the first call after a start, in which the step is compiled;
    `loss_generator` and `loss_discriminator`, means over the workers and the steps
    since the line before; `bits_up` and `bits_down`, sent and received since the start,
    mean over workers; `consensus_distance` of the parameters (null for MD-GAN); and,
    every `eval_every` steps, the scores of samples from the averaged generator.

    SIGINT (Ctrl-C) and SIGTERM let the steps in flight finish, write a checkpoint and
    return; a second Ctrl-C raises KeyboardInterrupt at once.

    Over many processes all must call it with the same arguments, and `workdir` must be
    a directory that all see, which is where each writes its workers' part of a
    checkpoint. A run can go on in another number of processes. Only process 0 calls
    `score` and `callback` and writes the rest; a signal that any process gets stops
    all at the same step; and what raises an error in one raises one in all.

    Args:
      gan: generator and discriminator.
      losses: their losses.
      method: a method of `jaxsp.methods`, or any optax transformation, with which every
        worker trains both networks; or an `md_gan.MDGan`.
      workers: who trains.
      dataset: what to learn.
      parts: for each worker the indices of `dataset.train` that it holds.
      config: how long to train and what to record.
      score: `score(samples)` returns numbers by name; None leaves scores out.
      callback: called with each record; when it returns something true, training ends
        there, with a checkpoint: a limit on seconds or bits. If that record has no
        score, another of the same step follows that has.
      workdir: the directory of the run; None writes nothing.
      resume: go on from the last checkpoint in `workdir`, or from the beginning where
        there is none. Of `config` all may change but `batch_size`, `seed`, `ema_decay`,
        `eval_samples` and `same_sample`. With another number of workers (and so another
        partition) the parameters go on, as `Program.adopted` says, and not the state of
        the optimizers; the log and `metrics.jsonl` say so.
      description: what else makes this run what it is (method, topology, learning
        rate, ...), with values that JSON can hold. A run is resumed only if it agrees.
      progress: whether to show progress on standard error.

    Returns:
      The trained state, what was recorded and where.

    Raises:
      ValueError: if the arguments do not fit each other, or `batch_size` exceeds a
        share.
      checkpoint.WorkdirError: if `workdir` holds a run and not `resume`, or a run of
        another configuration, or one that is further than `steps`, or if not all
        processes see it. A `ValueError`.
      jaxsp.distributed.DistributedError: if another process has raised an error.
      TrainingDivergedError: if a loss or a parameter is not finite. Checkpoints stay.

    Example:
      >>> import jax, jaxsp
      >>> from jaxsp.gan import data, losses, models
      >>> from jaxsp.gan.data import partition
      >>> from jaxsp.gan.training.loop import TrainConfig, train
      >>> mixture = data.load("mixture_ring")
      >>> gan, workers = models.mlp((2,), width=16), jaxsp.Workers(2, jax.devices()[:1])
      >>> method = jaxsp.methods.cp_oadam(1e-3, workers.axis_name)
      >>> result = train(
      ...     gan,
      ...     losses.non_saturating(gan),
      ...     method,
      ...     workers,
      ...     mixture,
      ...     [np.arange(100), np.arange(100, 200)],
      ...     TrainConfig(steps=10, log_every=5),
      ...     progress=False,
      ... )
      >>> [record["step"] for record in result.history]
      [0, 5, 10]
    """
    main = distributed.is_main()
    distributed.check_same(
        "train",
        {
            "config": config,
            "description": description,
            "workers": (workers.count, workers.axis_name),
            "parts": list(parts),
            "dataset": (dataset.train.shape, np.asarray(dataset.train_labels)),
            "workdir": workdir is None,
            "resume": resume,
        },
    )
    with distributed.raise_together():
        _check_arguments(gan, workers, dataset, parts, config)
        _check_processes(method, workers)
        shares, sizes = _stack(gan, dataset, parts, workers.local)
    settings = {
        **(description or {}),
        **{k: v for k, v in dataclasses.asdict(config).items() if k not in _FREE},
        "workers": workers.count,
        "conditional": bool(gan.num_classes),
        "data_crc32": _crc32(shares, sizes, workers),
    }
    with distributed.raise_together():
        if workdir is not None and main:
            checkpoint.check_directory(workdir, settings, resume, may_differ=_ELASTIC)

    init_key, train_key, eval_key = jax.random.split(jax.random.key(config.seed), 3)
    program = make_program(method, gan, losses, workers, config)
    per_call, step_fn = program.steps_per_call, program.step
    state = program.init(init_key)
    grid = (config.log_every, config.eval_every, config.checkpoint_every)
    step, seconds, totals, steps_in_totals = 0, 0.0, np.zeros(2), 0
    bits_before, adopted = [0, 0], None

    with contextlib.ExitStack() as stack:
        checkpoints = None
        if workdir is not None:
            workdir = pathlib.Path(workdir)
            free = {k: getattr(config, k) for k in _FREE}
            with distributed.raise_together():
                if main:
                    workdir.mkdir(parents=True, exist_ok=True)
            checkpoint.check_shared(workdir)
            with distributed.raise_together():
                if main and not (workdir / "config.json").exists():
                    # First of all: without it nobody could tell whose the rest is.
                    checkpoint.write_config(workdir, settings, free)
            checkpoints = stack.enter_context(checkpoint.Checkpoints(workdir))
            saved = checkpoints.latest
            distributed.check_same(
                "train", {f"the last checkpoint in {workdir}": saved}
            )
            if saved is not None:
                with distributed.raise_together():
                    if saved > config.steps:
                        raise checkpoint.WorkdirError(
                            f"steps must be at least {saved}, which the run in "
                            f"{workdir} has reached, got {config.steps}."
                        )
                note = checkpoints.note(saved)
                step, seconds, bits_before = saved, note["seconds"], note["bits_before"]
                totals, steps_in_totals = np.array(note["totals"]), note["steps"]
                if note["workers"] == workers.count:
                    now = settings["data_crc32"]
                    if note.get("data_crc32_format", 1) < _CRC32_FORMAT:
                        now = _padded_crc32(gan, dataset, parts)
                    with distributed.raise_together():
                        checkpoint.check_equal(
                            "data_crc32", note["data_crc32"], now, workdir
                        )
                    state = checkpoints.restore(saved, state)
                else:
                    summary = checkpoints.summary(saved, program.summary(state))
                    state = program.adopt(summary, saved, init_key)
                    bits_before = note["bits"]
                    adopted = f"{note['workers']} -> {workers.count} workers"
                    if main:
                        _log.warning(
                            "step %d: %s; %s; the data are divided anew.",
                            saved,
                            adopted,
                            program.adopted,
                        )
            with distributed.raise_together():
                if main:
                    checkpoint.write_config(workdir, settings, free)
                if main and (step == 0 or adopted):
                    counts = partition.table(dataset.train_labels, parts)
                    partition.plot(counts, workdir / "partition.png")
        with distributed.raise_together():
            recorder = Recorder(
                gan, dataset, config, program, eval_key, score, callback, workdir, step
            )
        stack.callback(recorder.close)
        bar = plots.Progress(config.steps, step, enabled=progress and main)
        stack.callback(bar.close)
        signals = stack.enter_context(distributed.Signals())
        shares, sizes = workers.shard_local((shares, sizes))

        def fail(what, at):
            kept = None
            if checkpoints is not None and checkpoints.latest is not None:
                kept = checkpoints.path(checkpoints.latest)
            raise distributed.in_all(TrainingDivergedError(what, at, kept))

        def record(means, scored):
            if scored and not program.finite(state):
                fail("a parameter is not finite", step)
            note = {"workers": adopted} if adopted and means is None else {}
            return recorder.record(
                step, seconds, means, state, scored, bits_before, note
            )

        def save():
            if checkpoints is not None and checkpoints.latest != step:
                if not program.finite(state):
                    fail("a parameter is not finite", step)
                note = {
                    "seconds": seconds,
                    "totals": totals.tolist(),
                    "steps": steps_in_totals,
                    "workers": workers.count,
                    "data_crc32": settings["data_crc32"],
                    "data_crc32_format": _CRC32_FORMAT,
                    "bits_before": bits_before,
                    "bits": add_bits(program.bits(state), bits_before),
                }
                checkpoints.save(step, state, program.summary(state), note)

        enough = counting = False
        if step == 0 or adopted:
            enough = record(None, scored=True)
            save()
        calls = 1
        while step < config.steps and not (signals.seen or enough):
            # Some calls are in flight together, up to the next step on the grid.
            end = min(config.steps, *(step - step % every + every for every in grid))
            dispatched, reached, flight = time.monotonic(), step, []
            while reached < end and len(flight) < calls and not signals.seen:
                count = min(per_call, end - reached)
                state, values = step_fn(state, shares, sizes, train_key, count)
                flight.append((values, count))
                reached += count
            if not flight:
                break
            fetched = program.fetch([v for v, _ in flight])
            values = np.concatenate(
                [v[:, :n] for v, (_, n) in zip(fetched, flight, strict=True)], axis=1
            )
            if (bad := _first_not_finite(values)) is not None:
                fail(bad[0], step + bad[1] + 1)
            step = reached
            means = values.mean(axis=0, dtype=np.float64)
            for mean in means:  # one by one: the sum does not depend on the flights
                totals, steps_in_totals = totals + mean, steps_in_totals + 1
            jax.block_until_ready(state)
            took = time.monotonic() - dispatched
            # Everything is compiled in the first call after a start: it is not counted.
            seconds, counting = seconds + counting * took, True
            calls = len(flight) * _SECONDS_IN_FLIGHT / took
            calls = int(np.clip(calls, 1, _MOST_CALLS_IN_FLIGHT))
            (calls,) = signals.agree([calls])  # what the next flight depends on

            last = step == config.steps
            logged = step % config.log_every == 0 or step % config.eval_every == 0
            if logged or last:
                scored = last or step % config.eval_every == 0
                enough = record(totals / steps_in_totals, scored)
                if enough and not scored:  # it ends here: what has been reached?
                    record(totals / steps_in_totals, scored=True)
            if logged:  # a last line off the grid must not change those of a longer run
                totals, steps_in_totals = np.zeros(2), 0
            if last or signals.seen or enough or step % config.checkpoint_every == 0:
                save()
            bar.update(
                step, loss_G=means[-1, 0], loss_D=means[-1, 1], **recorder.headline
            )
        if signals.seen:  # a signal may come after the line that saves
            save()
        generator = program.generator(state)
    return Result(
        state,
        generator,
        recorder.history,
        step,
        signals.seen if step < config.steps else None,
        recorder.files,
    )


def make_program(
    method: "optax.GradientTransformation | md_gan.MDGan",
    gan: models.Gan,
    losses: Losses,
    workers: Workers,
    config: TrainConfig,
) -> Program:
    """The program that `train` runs with the same arguments.

    Args:
      method: as in `train`.
      gan: as in `train`.
      losses: as in `train`.
      workers: as in `train`.
      config: as in `train`.

    Returns:
      The program; nothing is compiled yet.

    Raises:
      ValueError: if the method does not fit the workers or the losses.
    """
    per_call = config.steps_per_call
    if per_call is None:
        per_call = 1 if workers.devices[0].platform == "cpu" else 32
    options = {"batch_size": config.batch_size, "ema_decay": config.ema_decay}
    if isinstance(method, md_gan.MDGan):
        return method.program(gan, losses, workers, **options)
    options |= {"steps_per_call": per_call, "same_sample": config.same_sample}
    return local_program(method, gan, losses, workers, **options)


def _first_not_finite(values):
    """What is wrong in losses (workers, steps, 2), and at which of the steps."""
    bad = ~np.isfinite(values)
    if not bad.any():
        return None
    at = int(bad.any(axis=(0, 2)).argmax())
    worker, player = np.argwhere(bad[:, at])[0]
    name = ("generator", "discriminator")[player]
    return f"the {name} loss of worker {worker} is {values[worker, at, player]}", at


def _stack(gan, dataset, parts, local):
    """The shares of some workers, stacked: of images, or of images and labels."""
    rows, mine = max(len(part) for part in parts), [parts[m] for m in local]
    shares, sizes = partition.stack(dataset.train, mine, rows)
    if not gan.num_classes:
        return shares, sizes
    labels, _ = partition.stack(np.asarray(dataset.train_labels, np.int32), mine, rows)
    return (shares, labels), sizes


def _crc32(shares, sizes, workers):
    """A checksum of all workers' data, of which each process has some."""
    leaves, sums = jax.tree.leaves(shares), {}
    for row, (worker, size) in enumerate(zip(workers.local, sizes, strict=True)):
        crc = 0
        for leaf in leaves:
            crc = zlib.crc32(np.ascontiguousarray(leaf[row, :size]).data, crc)
        sums[worker] = crc
    every = distributed.combine(sums, workers.count)
    return zlib.crc32(every.astype("<u4").tobytes())


def _padded_crc32(gan, dataset, parts):
    """The checksum that earlier versions took, of all shares with their padding."""
    sizes = np.array([len(part) for part in parts], np.int32)
    crc = zlib.crc32(sizes.data)
    labels = np.asarray(dataset.train_labels, np.int32)
    for array in [dataset.train, labels][: 2 if gan.num_classes else 1]:
        for part in parts:
            share, _ = partition.stack(array, [part], sizes.max())
            crc = zlib.crc32(share.data, crc)
    return crc


def _check_processes(method, workers):
    """Refuse workers that leave a process with nothing to do."""
    used = {device.process_index for device in workers.devices}
    count = jax.process_count()
    if not isinstance(method, md_gan.MDGan) and len(used) not in (count, 0):
        raise ValueError(
            f"workers must live in all {count} processes, got some in "
            f"{sorted(used)} only: write jaxsp.Workers({workers.count}) without "
            "devices, or start fewer processes."
        )


def _check_arguments(gan, workers, dataset, parts, config):
    if len(parts) != workers.count:
        raise ValueError(
            f"parts must have one share for each of the {workers.count} workers, got "
            f"{len(parts)}."
        )
    if tuple(gan.sample_shape) != tuple(dataset.train.shape[1:]):
        raise ValueError(
            f"gan makes samples of shape {tuple(gan.sample_shape)}, but those of "
            f"{dataset.name} have shape {tuple(dataset.train.shape[1:])}."
        )
    sizes = [len(part) for part in parts]
    worker = int(np.argmin(sizes))
    if config.batch_size > sizes[worker]:
        raise ValueError(
            f"batch_size must be at most {sizes[worker]}, as many examples as worker "
            f"{worker} holds, got {config.batch_size}."
        )
    if gan.num_classes and gan.num_classes != dataset.num_classes:
        raise ValueError(
            f"gan is conditional on {gan.num_classes} classes, but {dataset.name} has "
            f"{dataset.num_classes}: build it with num_classes={dataset.num_classes}."
        )
