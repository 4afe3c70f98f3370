r"""Training against the adversary: the step of all workers, and the loop around it.

A step of worker $m$ draws rows from its share and makes gaps in them, plays the
adversary of these rows to the end, and hands the gradient of $\theta$ there to an optax
transformation, which averages it over the workers in whatever way:

$$g_m = \nabla_\theta f_m(\theta, \delta_K(\theta; \xi_m); \xi_m), \qquad
\theta \leftarrow \theta + \mathrm{update}(g_m, \mathrm{state}_m, \theta).$$

Methods that ask for the operator at another point get it there on the same rows and
gaps, by an ascent of its own. Directory, checkpoints, records and signals are those of
`jaxsp.gan.training`; so a run goes on bit for bit, with other workers too.
"""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxsp import comm, distributed, methods, metrics
from jaxsp._arguments import check_count, check_transformation
from jaxsp.gan import data
from jaxsp.gan.bars import ProgressBar
from jaxsp.gan.data import partition
from jaxsp.gan.files import local_path, replacing
from jaxsp.gan.step import bits, fetch_losses
from jaxsp.gan.training import checkpoint, inputs, plots, records
from jaxsp.gan.training.directory import METRICS
from jaxsp.gan.training.flights import Flights
from jaxsp.gan.training.loop import TrainConfig, TrainingDivergedError
from jaxsp.gan.training.progress import Progress
from jaxsp.robust import masked_lm
from jaxsp.robust.adversary import Attack, inner_maximum
from jaxsp.robust.encoder import Albert
from jaxsp.robust.text import Text
from jaxsp.workers import Workers

__all__ = ["Program", "Result", "TrainState", "program", "train"]


class TrainState(NamedTuple):
    """What a step takes and returns, stacked over workers.

    Attributes:
      step: how many steps are done, int32.
      params: the encoder's parameters.
      opt_state: the transformation's state.
    """

    step: jax.Array
    params: Any
    opt_state: Any


@dataclasses.dataclass(frozen=True)
class Program:
    """A way of training, compiled, as `train` runs it; `program` makes it.

    Attributes:
      workers: who trains.
      settings: what must be the same when a run goes on, by name.
      init: `init(key)`, the state at step 0.
      step: `step(state, shares, sizes, key, count)` does one step and returns the state
        and, of each worker, loss and accuracy under attack, float32 (workers, 1, 2). It
        consumes `state`.
      summary: `summary(state)`, the parameters to report, mean over workers, as NumPy
        arrays.
      restart_from: `restart_from(params, step)`, a state whose optimizer starts anew.
    """

    workers: Workers
    settings: Mapping[str, Any]
    init: Callable[[jax.Array], TrainState]
    step: Callable[..., tuple[TrainState, jax.Array]]
    summary: Callable[[TrainState], Any]
    restart_from: Callable[[Any, int], TrainState]
    restart_note: str = "all workers start from the mean parameters, optimizers anew"
    steps_per_call: int = 1

    def fetch(self, values: list[jax.Array]) -> list[np.ndarray]:
        """What `step` has returned as losses, in every process."""
        return fetch_losses(values, self.workers)

    def bits(self, state: TrainState) -> tuple[int | None, int | None]:
        """Bits sent and received since the start, means over workers."""
        return bits(self.workers.fetch(comm.find_traffic(state.opt_state)))


def initializer(model: Any) -> Callable[[jax.Array], Any]:
    """The parameters of an encoder, as a function of a key, compiled."""

    @jax.jit  # one program, where each layer's operations would be many
    def draw(key):
        tokens = jnp.zeros((1, model.length), jnp.int32)
        return model.init(key, tokens, tokens)["params"]

    return draw


def program(
    model: Albert,
    method: optax.GradientTransformation,
    workers: Workers,
    attack: Attack,
    *,
    batch_size: int = 16,
    full_batches: int = 8,
    attack_warmup: int = 0,
) -> Program:
    """Adversarial training of an encoder; an attack of 0 steps is plain training.

    Args:
      model: the encoder.
      method: what turns a worker's gradient into an update: an average over
        `workers.axis_name` by any channel, chained with any optimizer, or a method of
        `jaxsp.methods`, which may call `operator_fn` and `full_operator_fn`.
      workers: who trains.
      attack: the adversary in training.
      batch_size: rows a worker draws for one gradient.
      full_batches: as many batches `full_operator_fn` draws, which stand for a worker's
        whole share.
      attack_warmup: steps in which perturbations grow from 0 to the attack's radius. At
        full strength from the start an encoder that knows nothing yet may never learn
        to use its context.

    Returns:
      What `train` runs; nothing is compiled yet.

    Raises:
      ValueError: for a bad argument.
    """
    check_count("batch_size", batch_size)
    check_count("full_batches", full_batches)
    check_count("attack_warmup", attack_warmup, minimum=0)
    method = check_transformation("method", method)
    loss = masked_lm.loss(model)

    def with_values(params, delta, batch, strength):
        values = loss(params, strength * delta, batch)
        return values[0], values

    operator = inner_maximum(with_values, attack, has_aux=True)

    def one_step(state, share, size, key, count):
        del count  # one step a call
        key = jax.random.fold_in(key, comm.worker_index(workers.axis_name))
        key = jax.random.fold_in(key, state.step)
        strength = (
            jnp.minimum(1.0, state.step / attack_warmup) if attack_warmup else 1.0
        )

        def field_at(params, key):
            draw_key, gap_key = jax.random.split(key)
            rows = data.draw(draw_key, share, size, batch_size)
            batch = masked_lm.mask(gap_key, rows, model.vocab_size)
            return operator(params, masked_lm.start(model, rows), batch, strength)

        def full_field_at(params):
            keys = jax.random.split(jax.random.fold_in(key, 1), full_batches)
            fields = lax.map(lambda k: field_at(params, k)[0], keys)
            return jax.tree.map(lambda x: x.mean(axis=0), fields)

        gradient, values = field_at(state.params, key)
        updates, opt_state = method.update(
            gradient,
            state.opt_state,
            state.params,
            operator_fn=lambda params: field_at(params, key)[0],
            full_operator_fn=full_field_at,
        )
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), jnp.stack(values)[None]

    draw = initializer(model)
    init_method = jax.jit(workers.map(method.init))

    def start(params, step):
        stacked = workers.replicate(params)
        opt_state = init_method(stacked)
        steps = jnp.full(workers.count, step, jnp.int32)
        return workers.shard(TrainState(steps, stacked, opt_state))

    reported = jax.jit(
        workers.map(lambda state: methods.eval_params(state.opt_state, state.params))
    )
    settings = {"batch_size": batch_size, "full_batches": full_batches}
    settings |= {f"attack_{k}": v for k, v in dataclasses.asdict(attack).items()}
    return Program(
        workers=workers,
        settings=settings | {"attack_warmup": attack_warmup},
        init=lambda key: start(draw(key), 0),
        step=jax.jit(
            workers.map(one_step, in_axes=(0, 0, 0, None, None)), donate_argnums=0
        ),
        summary=lambda state: workers.fetch_mean(reported(state)),
        restart_from=start,
    )


class Result(NamedTuple):
    """What `train` returns.

    Attributes:
      params: the parameters to report, mean over workers.
      history: the records of `metrics.jsonl`, in process 0.
      step: the step reached.
      signal: the signal that ended training early, or None.
    """

    params: Any
    history: list[dict[str, Any]]
    step: int
    signal: Any


def train(
    program: Program,
    text: Text,
    config: TrainConfig,
    evaluate: Callable[[Any], Mapping[str, float]],
    *,
    show: Callable[[Any], str] | None = None,
    workdir: str | os.PathLike | None = None,
    resume: bool = False,
) -> Result:
    """Train on workers that each hold an equal random part of the rows.

    In `workdir` it leaves `config.json`, `checkpoints/`, `metrics.jsonl`, and, every
    `eval_every` steps anew, `curves.png` (losses against steps, bytes and seconds) and
    `samples.txt`. A line of metrics holds the `step`; `seconds` of training; `loss` and
    `accuracy` under attack on the rows trained on, means over the workers and the steps
    since the line before; `bits_up` and `bits_down`; `consensus_distance`; and, every
    `eval_every` steps, what `evaluate` says.

    SIGINT and SIGTERM end it with a checkpoint. Over many processes all must call it,
    and process 0 evaluates and writes.

    Args:
      program: what to run.
      text: what to learn; `train` is used.
      config: how long, and what to record; `eval_samples` is not used.
      evaluate: numbers by name of parameters, such as `masked_lm.evaluator` makes.
      show: what to write to `samples.txt` of parameters.
      workdir: the directory of the run; None writes nothing.
      resume: go on from the last checkpoint in `workdir`, if any.

    Returns:
      The parameters and what was recorded.

    Raises:
      ValueError: if there are fewer rows than workers.
      checkpoint.WorkdirError: as `jaxsp.gan.training.train`; a `ValueError`.
      TrainingDivergedError: if the loss or a parameter is not finite.
    """
    if workdir is not None:
        workdir = local_path("workdir", workdir)
    workers, rows = program.workers, text.train
    if len(rows) < workers.count:
        raise ValueError(
            f"text must have a row for each of the {workers.count} workers, got "
            f"{len(rows)}: take more text, shorter rows, or fewer workers."
        )
    parts = partition.iid(np.zeros(len(rows), int), workers.count, seed=config.seed)
    mine = [parts[m] for m in workers.local]
    shares, sizes = partition.stack(rows, mine, max(map(len, parts)))
    settings = {
        **config.description,
        **program.settings,
        **distributed.number_options(),
        "seed": config.seed,
        "workers": workers.count,
        "data_crc32": inputs.checksum(shares, sizes, workers),
    }
    every = {k: getattr(config, f"{k}_every") for k in ("log", "eval", "checkpoint")}
    init_key, train_key = jax.random.split(jax.random.key(config.seed))
    with contextlib.ExitStack() as stack:
        platform = workers.devices[0].platform
        free: Any = {"steps": config.steps, **every, "platform": platform}
        like: Any = program  # of which it uses what a GAN's has too
        run = checkpoint.open_run(workdir, settings, free, resume, like, init_key)
        checkpoints, state, progress, restarted = stack.enter_context(run)
        step, main = progress.step, distributed.is_main()
        recorder = _Recorder(workdir if main else None, step, evaluate, show)
        shown = config.progress and main
        bar = ProgressBar(config.steps, start=step, enabled=shown, each_tenth=True)
        stack.callback(bar.close)
        signals = stack.enter_context(distributed.Signals())
        flights = Flights(
            program, workers.shard_local((shares, sizes)), train_key, signals
        )

        def save():
            if checkpoints.lacks(step):
                saved = progress.with_bits(program.bits(state))
                checkpoints.save(state, program.summary(state), saved)

        if step == 0 or restarted:
            recorder.record(program, state, progress, True)
            save()
        while step < config.steps and not signals.seen:
            end = min(config.steps, *(step - step % n + n for n in every.values()))
            state, values, seconds = flights.fly(state, step, end)
            progress = progress.after(values, seconds)
            step = progress.step
            logs, scores, saves = (step % n == 0 for n in every.values())
            last = step == config.steps
            if not np.isfinite(values).all():
                raise _diverged("a loss is not finite", step, checkpoints)
            if (logs or scores or saves or last) and not _finite(program, state):
                raise _diverged("a parameter is not finite", step, checkpoints)
            if logs or scores or last:
                recorder.record(program, state, progress, scores or last)
            if logs or scores:
                progress = progress._replace(losses=(0.0, 0.0), losses_steps=0)
            if saves:
                save()
            loss, accuracy = values[:, -1].mean(axis=0)
            bar.update(step, loss=loss, accuracy=accuracy, **recorder.last)
        save()
        ended = signals.seen if step < config.steps else None
        return Result(program.summary(state), recorder.history, step, ended)


def _finite(program, state):
    leaves = jax.tree.leaves(program.workers.fetch_mean(state.params))
    return all(np.isfinite(leaf).all() for leaf in leaves)


def _diverged(what, step, checkpoints):
    last = checkpoints.latest
    path = None if last is None else checkpoints.path(last)
    return distributed.in_all(TrainingDivergedError(what, step, path))


class _Recorder:
    """Writes metrics, curves and samples; where `workdir` is None only remembers."""

    def __init__(self, workdir, start, evaluate, show):
        self._workdir = None if workdir is None else pathlib.Path(workdir)
        self._evaluate, self._show = evaluate, show
        # Compiled for this run, and gone with it.
        self._disagreement = jax.jit(lambda z: metrics.consensus_distance(z))
        self.history, self.last = [], {}
        if self._workdir is not None:
            self.history = records.keep_records(
                self._workdir / METRICS,
                lambda r: r["step"] < start or r["step"] == start > 0,
            )

    def record(self, program, state, progress: Progress, scored: bool) -> None:
        """Add a line, in all processes; with scores it comes with the rest."""
        up, down = progress.with_bits(program.bits(state)).bits
        loss, accuracy = progress.losses
        count = progress.losses_steps
        line = {
            "step": progress.step,
            "seconds": round(progress.seconds, 3),
            "loss": loss / count if count else None,
            "accuracy": accuracy / count if count else None,
            "bits_up": up,
            "bits_down": down,
            "consensus_distance": float(self._disagreement(state.params)),
        }
        params = program.summary(state) if scored else None
        with distributed.raise_together():
            if distributed.is_main():
                self._write(line, params)

    def _write(self, line, params):
        if params is not None:
            line |= self._evaluate(params)
            self.last = {k: v for k, v in line.items() if k.endswith("_loss")}
        path = self._workdir and self._workdir / METRICS
        self.history.append(records.write_record(path, line))
        if params is None or self._workdir is None:
            return
        names = [name for name in line if name.endswith("_loss")]
        if names:
            title = f"validation, step {line['step']}"
            runs = {"this run": self.history}
            plots.plot_comparison(runs, self._workdir / "curves.png", names, title)
        if self._show is not None:
            with replacing(self._workdir / "samples.txt") as temporary:
                temporary.write_text(self._show(params))
