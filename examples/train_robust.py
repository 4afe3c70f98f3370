r"""Adversarial training of a transformer on several workers with compressed gradients.

The encoder learns to fill gaps in a text while an adversary shifts the embedding of
every row as far as --radius allows. A run leaves its settings, metrics.jsonl,
curves.png, samples.txt (what the attack changes), tokenizer.json and checkpoints in
--workdir. Ctrl-C and SIGTERM end it with a checkpoint; --resume goes on from there and
gives the same numbers as a run that was never interrupted.

Examples:
  python examples/train_robust.py --method=error_feedback --compressor=quantize:4
  python examples/train_robust.py --attack_steps=0 --workdir=runs/plain
  python examples/train_robust.py --text='books/*.txt' --model=base --length=128
  python -m jaxsp.launch -n 2 examples/train_robust.py --workdir=runs/two
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxsp
from jaxsp import compressors, distributed, methods
from jaxsp.gan import command, names
from jaxsp.gan.command import BadFlagError, flag, naming
from jaxsp.gan.files import replacing
from jaxsp.gan.train.__main__ import resume_command
from jaxsp.gan.training import TrainConfig, TrainingDivergedError, checkpoint
from jaxsp.robust import Attack, adversary, encoder, masked_lm, training
from jaxsp.robust import text as texts

PROGRAM = "train_robust.py"
_COUNT, _AT_LEAST_0 = (1, 2**31 - 1), (0, None)
# Of each method the learning rate and the compressor. With an optimizer the rate is
# AdamW's; the others take plain steps.
METHODS: dict[str, tuple[float, str]] = {
    "average": (5e-3, "none"),
    "error_feedback": (5e-3, "quantize:4"),
    "masha1": (0.1, "quantize:4"),
    "masha2": (0.1, "top_k:0.1"),
    "vr_masha1": (0.1, "quantize:4"),
    "vr_masha2": (0.1, "top_k:0.1"),
}
_MEANS = {"average": jaxsp.average, "error_feedback": jaxsp.error_feedback_average}
_OPTIMIZERS = {"adamw": optax.adamw, "lamb": optax.lamb}
# What is cut into the workers' blocks; of the rest every worker gathers all messages,
# and the way down costs nothing.
_SHARDED = ("quantize", "dithering", "natural", "ternary", "sign")
_FREE = {"steps", "eval_every", "eval_rows", "devices", "resume"}


@dataclasses.dataclass(frozen=True)
class Config:
    """What to train, and how; the fields are the flags."""

    method: str = flag(
        "average",
        "How gradients meet: as a mean through --compressor, perhaps with feedback of "
        "what that leaves out, and then --optimizer; or by a MASHA method, of plain "
        "steps. vr_ compares gradients on the same rows.",
        names=METHODS,
    )
    compressor: str | None = flag(
        None,
        "What workers send through, with a number after a colon. Default: none of "
        "average, top_k:0.1 of masha2 and vr_masha2, quantize:4 of others.",
        names=names.COMPRESSORS,
        colon=True,
    )
    down: str | None = flag(
        None,
        "What the server sends through. Default: the same if it rounds every number, "
        "else none, as all workers then get all messages.",
        names=names.COMPRESSORS,
        colon=True,
    )
    refresh: float | None = flag(
        None,
        "Probability that the snapshot of a MASHA method moves. Default: when whole "
        "gradients cost as much as compressed ones.",
        bounds=(1e-12, 1),
    )
    optimizer: str = flag("adamw", "Of average, error_feedback.", names=_OPTIMIZERS)
    learning_rate: float | None = flag(
        None,
        "Default: 0.005 with an optimizer, 0.1 of MASHA methods.",
        bounds=(1e-12, None),
    )
    warmup_steps: int = flag(50, "Steps in which the rate grows from 0.", bounds=_COUNT)
    decay_steps: int | None = flag(
        None, "The step at which it has fallen to 0, by a cosine.", bounds=_COUNT
    )
    weight_decay: float = flag(0.01, "Of the optimizer.", bounds=_AT_LEAST_0)
    text: str | None = flag(
        None,
        "Files of text, with commas between, or patterns. Default: the docstrings of "
        "Python's standard library and the topics of its help.",
    )
    model: str = flag("tiny", "The encoder's size.", names=encoder.PRESETS)
    vocab_size: int | None = flag(
        None, "Most tokens. Default: the model's.", bounds=(258, 2**31 - 1)
    )
    length: int | None = flag(
        None, "Tokens of a row. Default: the model's.", bounds=(2, 2**31 - 1)
    )
    workers: int = flag(4, "How many.", bounds=_COUNT)
    devices: int | None = flag(
        None,
        "How many devices, a number that divides --workers. Default: 1 on CPU, "
        "elsewhere, and in many processes, as many as fit.",
        bounds=_COUNT,
    )
    batch_size: int = flag(16, "Rows per worker and gradient.", bounds=_COUNT)
    full_batches: int = flag(
        8, "Batches of a snapshot's gradient in vr_ methods.", bounds=_COUNT
    )
    radius: float = flag(
        1.5,
        "How far a row's embedding is shifted; that of each token has the norm of the "
        "square root of the embedding size, 5.7 in tiny.",
        bounds=_AT_LEAST_0,
    )
    norm: str = flag(
        "l2", "Of the shift of a row, or largest entry.", names=adversary.NORMS
    )
    attack_steps: int = flag(
        2, "Steps of the attack in training; 0 trains plainly.", bounds=_AT_LEAST_0
    )
    attack_warmup: int = flag(
        400,
        "Steps in which the shift grows to --radius. At full strength from the start "
        "the encoder does not learn to use its context.",
        bounds=_AT_LEAST_0,
    )
    eval_attack_steps: int = flag(10, "Steps of the one in validation.", bounds=_COUNT)
    eval_rows: int = flag(512, "Rows of validation, at most.", bounds=_COUNT)
    steps: int = flag(1000, "The step to train to.", bounds=_COUNT)
    eval_every: int = flag(
        100, "Steps between validations and checkpoints.", bounds=_COUNT
    )
    seed: int = flag(0, "What everything random follows from.", bounds=(0, 2**32 - 1))
    workdir: str = flag("runs/robust", "Directory of the run.", path=True)
    resume: bool = flag(
        False,
        "Go on from the last checkpoint in --workdir, or start if there is none. The "
        "other flags must be as they were, but for --steps, --eval_every, "
        "--eval_rows, --devices and --workers.",
    )


def run(config: Config, progress: bool = True) -> training.Result:
    """Train as a configuration says; what `training.train` returns.

    Raises:
      BadFlagError: if a flag cannot be used; nothing has been written then.
      TrainingDivergedError: if the loss or a parameter is no longer finite.
    """
    command.check(config)
    workers = _workers(config)
    preset = encoder.PRESETS[config.model]
    vocab_size = config.vocab_size or preset["vocab_size"]
    length = config.length or preset["length"]
    attack = Attack(config.radius, config.attack_steps, config.norm)
    stronger = dataclasses.replace(attack, steps=config.eval_attack_steps)
    make(config, workers, 1000)  # what is wrong shows before any text
    with naming("text", config.text, ValueError, OSError):
        text = texts.load(config.text, vocab_size, length)
    model = encoder.albert(config.model, text.tokenizer.get_vocab_size(), length)
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens, tokens)
    numbers = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    program = training.program(
        model,
        make(config, workers, numbers),
        workers,
        attack,
        batch_size=config.batch_size,
        full_batches=config.full_batches,
        attack_warmup=config.attack_warmup,
    )
    rows = text.valid[: config.eval_rows]
    evaluate = masked_lm.evaluator(model, stronger, rows)
    shown = rows[:: max(1, len(rows) // 8)][:8]
    if progress and distributed.is_main():
        print(
            f"{numbers:,} parameters; {text.train.size:,} tokens for training, "
            f"{text.valid.size:,} for validation, {len(rows)} rows of it used\n"
            f"{workers}; files in {config.workdir}",
            flush=True,
        )
    settings = dataclasses.asdict(config).items()
    description = {k: v for k, v in settings if v is not None and k not in _FREE}
    del description["workers"], description["workdir"]
    with naming("workdir", config.workdir, checkpoint.WorkdirError, OSError):
        result = training.train(
            program,
            text,
            TrainConfig(
                steps=config.steps,
                seed=config.seed,
                log_every=max(1, config.eval_every // 10),
                eval_every=config.eval_every,
                checkpoint_every=config.eval_every,
                description=description,
                progress=progress,
            ),
            evaluate,
            show=masked_lm.changes(model, stronger, shown, text.tokenizer),
            workdir=config.workdir,
            resume=config.resume,
        )
        if distributed.is_main():
            with replacing(f"{config.workdir}/tokenizer.json") as temporary:
                text.tokenizer.save(str(temporary))
    return result


def make(
    config: Config, workers: jaxsp.Workers, numbers: int
) -> optax.GradientTransformationExtraArgs:
    """The method of a configuration, of an encoder of so many parameters."""
    usual_rate, usual = METHODS[config.method]
    name = config.compressor or usual
    down = config.down or (name if name.partition(":")[0] in _SHARDED else "none")
    found: list[Any] = []
    for label, value in (("compressor", name), ("down", down)):
        with naming(label, value, ValueError):
            found.append(names.parse_compressor(value))
    if config.method in ("error_feedback", "masha2", "vr_masha2"):
        found = [c and compressors.contractive(c) for c in found]
    rate: Any = config.learning_rate or usual_rate
    warm = config.warmup_steps
    if config.decay_steps is not None and config.decay_steps <= warm:
        raise BadFlagError(
            f"--decay_steps={config.decay_steps} must be above --warmup_steps={warm}."
        )
    then = optax.constant_schedule(rate)
    if config.decay_steps is not None:
        then = optax.cosine_decay_schedule(rate, config.decay_steps - warm)
    first = optax.linear_schedule(rate / warm, rate, max(warm - 1, 1))
    rate = optax.join_schedules([first, then], [warm])
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    with naming(
        "method", f"{config.method} --compressor={name} --down={down}", ValueError
    ):
        channel = jaxsp.channel(workers.axis_name, *found, key=key)
        if config.method in _MEANS:
            optimizer = _OPTIMIZERS[config.optimizer]
            return optax.chain(
                _MEANS[config.method](channel),
                optimizer(rate, weight_decay=config.weight_decay),
            )
        vector, up = jax.ShapeDtypeStruct((numbers,), jnp.float32), found[0]
        density = (
            up.for_worker(0, workers.count).bits(vector) / (32 * numbers) if up else 1
        )
        refresh = config.refresh or min(1.0, density)
        return getattr(methods, config.method)(rate, channel, refresh)


def _workers(config):
    used = command.devices(config.workers, config.devices)
    if config.workers % len(used):
        raise BadFlagError(
            f"--devices={len(used)}: each must have the same number of the "
            f"{config.workers} workers; write --devices=1, or other --workers."
        )
    return jaxsp.Workers(config.workers, used)


def main(config: Config) -> int:
    """Train as the flags say; the exit code."""
    again = resume_command()
    shared = dataclasses.asdict(config)
    del shared["workdir"]
    try:
        distributed.initialize(settings=shared)
        with distributed.ending_together(again):
            result = run(config)
        if distributed.is_main():
            last = next(r for r in reversed(result.history) if "robust_loss" in r)
            print(
                f"step {last['step']}: clean loss {last['clean_loss']:.4f}, under "
                f"attack {last['robust_loss']:.4f}; {last['bits_up'] / 8e6:.2f} MB "
                f"sent and {last['bits_down'] / 8e6:.2f} MB received by a worker"
            )
        if result.signal is None:
            return 0
        if distributed.is_main():
            print(
                f"stopped at step {result.step}, which is saved; go on with\n  {again}"
            )
        return 128 + result.signal
    except (BadFlagError, distributed.DistributedError) as error:
        message, code, raised = error, 2, error
    except TrainingDivergedError as error:
        message, code, raised = f"training diverged: {error}", 1, error
    if not distributed.raised_in_all(raised) or distributed.is_main():
        command.complain(PROGRAM, message, code)
    return code


if __name__ == "__main__":
    command.run(PROGRAM, Config, main)
