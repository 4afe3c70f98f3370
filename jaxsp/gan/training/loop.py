"""The training loop: any GAN, any losses, any method, any workers.

`train` runs a program (`jaxsp.gan.program`), records and scores what comes of it, and
leaves a run that goes on where it stopped: what is random in a step follows from the
seed, the step and the worker, so nothing random is saved, and a run that was
interrupted continues bit for bit. With another number of workers it goes on too, from
what the checkpoint's parameters come down to.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsp import distributed
from jaxsp._arguments import check_count
from jaxsp.gan import data
from jaxsp.gan.bars import ProgressBar
from jaxsp.gan.files import local_path
from jaxsp.gan.program import Program
from jaxsp.gan.training import checkpoint, directory, inputs
from jaxsp.gan.training.evaluation import Evaluation
from jaxsp.gan.training.flights import Flights, first_not_finite
from jaxsp.gan.training.records import Recorder

__all__ = ["Result", "TrainConfig", "TrainingDivergedError", "train"]


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long to train and what to record.

    Attributes:
      steps: the step to train to.
      seed: what everything random follows from.
      log_every: steps between two lines of metrics.
      eval_every: steps between two scores; there is one at the start and at the end.
      checkpoint_every: steps between two checkpoints.
      eval_samples: how many samples are generated for a score.
      description: what else makes this run what it is (method, topology, learning
        rate, ...), with values that JSON can hold. A run is resumed only if it agrees.
      progress: whether to show progress on standard error.
      skip_not_finite: whether a loss that is not finite is no divergence, because the
        method leaves such steps out (`transforms.apply_if_all_finite`). They are not in
        the means of the losses; parameters must be finite all the same.

    Raises:
      ValueError: if a number is out of range, or JSON cannot hold the description.
    """

    steps: int = 2_000
    seed: int = 0
    log_every: int = 50
    eval_every: int = 500
    checkpoint_every: int = 500
    eval_samples: int = 10_000
    description: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    progress: bool = True
    skip_not_finite: bool = False

    def __post_init__(self):
        check_count("seed", self.seed, minimum=0)
        if self.seed >= 2**32:  # of which JAX would take the last 32 bits
            raise ValueError(f"seed must be below 2**32, got {self.seed}.")
        try:
            json.dumps(self.description, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(
                "description must be what JSON can hold, such as finite numbers and "
                f"texts by name, got {self.description!r}: {error}."
            ) from None
        for name in (*_GRID, "steps", "eval_samples"):
            check_count(name, getattr(self, name))


_GRID = ("log_every", "eval_every", "checkpoint_every")


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

    def __repr__(self) -> str:
        ended = "" if self.signal is None else f", signal={self.signal.name}"
        where = f" in {self.files[0].parent}" if self.files else ""
        return (
            f"Result(step={self.step}{ended}, {len(self.history)} records, "
            f"{len(self.files)} files{where})"
        )


class TrainingDivergedError(FloatingPointError):
    """A loss or a parameter is no longer a finite number.

    Attributes:
      step: the step at which it was found.
      checkpoint: the last checkpoint, whose parameters are finite, or None.
    """

    def __init__(self, what: str, step: int, checkpoint: pathlib.Path | None):
        last = f"the last good checkpoint is {checkpoint}"
        if checkpoint is None:
            last = "there is no checkpoint"
        super().__init__(f"{what} at step {step}; {last}.")
        self.step = step
        self.checkpoint = checkpoint


def train(
    program: Program,
    dataset: data.Dataset,
    parts: Sequence[np.ndarray],
    config: TrainConfig,
    *,
    score: Callable[[Any], Mapping[str, float]] | None = None,
    callback: Callable[[dict[str, Any]], Any] | None = None,
    workdir: str | os.PathLike | None = None,
    resume: bool = False,
) -> Result:
    """Train a GAN on workers that each hold a part of the data.

    In `workdir` it leaves `config.json`, `metrics.jsonl`, `checkpoints/`, and as
    pictures `partition.png`, `samples_000000.png`, `samples.png` and `curves.png`. A
    line of metrics holds the `step`; `seconds` of training, without scores, pictures,
    checkpoints and the first call after a start, in which the step is compiled;
    `loss_generator` and `loss_discriminator`, means over the workers and the steps
    since the line before; `bits_up` and `bits_down`, sent and received since the start,
    mean over workers; `consensus_distance` of the parameters, and `consensus_relative`,
    the same divided by the norm of their mean (null for MD-GAN); and, every
    `eval_every` steps, the scores of samples from the averaged generator, and `d_real`
    and `d_fake`, what the discriminators say, mean over workers, of real samples of
    their shares and of as many of the generator they train with, as it stands. These
    are means of probabilities of being real where the losses take outputs for logits
    (`Losses.reads`), and else of the outputs themselves.

    SIGINT (Ctrl-C), SIGTERM and SIGHUP, unless they are ignored, let the steps in
    flight finish, write a checkpoint and return; a second Ctrl-C raises
    KeyboardInterrupt at once.

    Over many processes all must call it with the same arguments, and `workdir` must be
    a directory that all see, which is where each writes its workers' part of a
    checkpoint. A run can go on in another number of processes. Only process 0 calls
    `score` and `callback` and writes the rest; a signal that any process gets stops
    all at the same step; and what raises an error in one raises one in all.

    Args:
      program: what to run: `jaxsp.gan.step.program` of a method of `jaxsp.methods` or
        any optax transformation, or `jaxsp.gan.md_gan.MDGan.program`.
      dataset: what to learn.
      parts: for each worker the indices of `dataset.train` that it holds.
      config: how long to train and what to record.
      score: `score(samples)` returns numbers by name; None leaves scores out. What real
        data get, `score.floor`, is drawn beside them where there is such an attribute.
      callback: called with each record; when it returns something true, training ends
        there, with a checkpoint: a limit on seconds or bits. If that record has no
        score, another of the same step follows that has.
      workdir: the directory of the run; None writes nothing.
      resume: go on from the last checkpoint in `workdir`, or from the beginning where
        there is none. Of `config` all may change but `seed`, `eval_samples` and
        `description`. With another number of workers (and so another partition) the
        parameters go on, as `Program.restart_note` says, and not the state of the
        optimizers; the log and `metrics.jsonl` say so.

    Returns:
      The trained state, what was recorded and where.

    Raises:
      ValueError: if the arguments do not fit each other, or `batch_size` exceeds a
        share.
      checkpoint.WorkdirError: if another run trains in `workdir`; if it holds a run and
        not `resume`, or a run of another configuration, or one that is further than
        `steps`, or if not all processes see it. A `ValueError`.
      jaxsp.distributed.DistributedError: if another process has raised an error.
      TrainingDivergedError: if a loss or a parameter is not finite. Checkpoints stay.

    Example:
      >>> import jax, jaxsp
      >>> from jaxsp.gan import data, losses, models, step
      >>> from jaxsp.gan.training import TrainConfig, train
      >>> gan, workers = models.mlp((2,), width=16), jaxsp.Workers(2, jax.devices()[:1])
      >>> method = jaxsp.methods.cp_oadam(1e-3, workers.axis_name)
      >>> result = train(
      ...     step.program(gan, losses.non_saturating(gan), method, workers),
      ...     data.load("mixture_ring"),
      ...     [np.arange(100), np.arange(100, 200)],
      ...     TrainConfig(steps=10, log_every=5, progress=False),
      ... )
      >>> [record["step"] for record in result.history]
      [0, 5, 10]
    """
    if workdir is not None:
        workdir = local_path("workdir", workdir)
    alike = {"config": config, "workdir": workdir is None, "resume": resume}
    shares, sizes = inputs.prepare(program, dataset, parts, alike)
    settings, free = _settings(program, config, shares, sizes)
    if dataset.data_dir is not None:
        free["data_dir"] = dataset.data_dir
    init_key, train_key, eval_key = jax.random.split(jax.random.key(config.seed), 3)
    data_of_workers = program.workers.shard_local((shares, sizes))
    evaluation = Evaluation(
        program, score, config.eval_samples, eval_key, data_of_workers
    )
    with contextlib.ExitStack() as stack:
        run = checkpoint.open_run(workdir, settings, free, resume, program, init_key)
        checkpoints, state, progress, restarted = stack.enter_context(run)
        step, enough = progress.step, False
        recorder = Recorder(program, dataset, evaluation, callback, workdir, progress)
        shown = config.progress and distributed.is_main()
        bar = ProgressBar(config.steps, start=step, enabled=shown, each_tenth=True)
        stack.callback(bar.close)
        signals = stack.enter_context(distributed.Signals())
        flights = Flights(program, data_of_workers, train_key, signals)
        if step == 0 or restarted:
            recorder.draw_partition(parts)
            _check_finite(program, state, step, checkpoints)
            enough = recorder.record(progress, state, True, restarted)
            _save(program, state, progress, checkpoints, recorder)
        while step < config.steps and not (signals.seen or enough):
            everies = [getattr(config, name) for name in _GRID]
            end = min(config.steps, *(step - step % every + every for every in everies))
            state, losses, seconds = flights.fly(state, step, end)
            bad = None if config.skip_not_finite else first_not_finite(losses)
            if bad is not None:
                raise _diverged(bad[0], step + bad[1] + 1, checkpoints)
            progress = progress.after(losses, seconds)
            step, last = progress.step, progress.step == config.steps
            logs, scores, saves = (step % every == 0 for every in everies)
            if logs or scores or last:
                _check_finite(program, state, step, checkpoints)
                enough = recorder.record(progress, state, scores or last)
            if logs or scores:  # a last line must not change those of a longer run
                progress = progress._replace(losses=(0.0, 0.0), losses_steps=0)
            if saves:
                _save(program, state, progress, checkpoints, recorder)
            x, y = losses[:, -1].mean(axis=0)
            bar.update(step, G=x, D=y, **recorder.headline)
        _save(program, state, progress, checkpoints, recorder)
        return Result(
            state,
            program.generator(state),
            recorder.history,
            step,
            signals.seen if step < config.steps else None,
            () if workdir is None else directory.written(workdir),
        )


def _diverged(what, step, checkpoints):
    """The error, which all processes raise alike."""
    last = checkpoints.latest
    path = None if last is None else checkpoints.path(last)
    return distributed.in_all(TrainingDivergedError(what, step, path))


def _check_finite(program, state, step, checkpoints):
    if not program.finite(state):
        raise _diverged("a parameter is not finite", step, checkpoints)


def _save(program, state, progress, checkpoints, recorder):
    """Save the state, unless it is there or nothing is saved."""
    if checkpoints.lacks(progress.step):
        _check_finite(program, state, progress.step, checkpoints)
        progress = recorder.keep(progress.with_bits(program.bits(state)))
        checkpoints.save(state, program.summary(state), progress)


def _settings(program, config, shares, sizes):
    """What must stay as it is when a run goes on, and what may change."""
    settings = {
        **config.description,
        **program.settings,
        **distributed.number_options(),
        "batch_size": program.batch_size,
        "seed": config.seed,
        "eval_samples": config.eval_samples,
        "workers": program.workers.count,
        "conditional": bool(program.gan.num_classes),
        "data_crc32": inputs.checksum(shares, sizes, program.workers),
    }
    free = {name: getattr(config, name) for name in ("steps", *_GRID)}
    platform = program.workers.devices[0].platform
    return settings, {**free, "jax": jax.__version__, "platform": platform}
