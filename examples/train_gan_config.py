"""What train_gan.py can be told: the methods, and the flags."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from jaxsp import methods
from jaxsp.gan import data, fl_gan, losses, md_gan, names
from jaxsp.gan.command import BadFlagError, flag
from jaxsp.transforms import alternating


@dataclasses.dataclass(frozen=True)
class Method:
    """A method: what makes it, which flags it reads, and their defaults.

    Attributes:
      build: makes it of a learning rate and of keyword arguments, which get what `make`
        has under their names.
      learning_rate: the default.
      flags: the flags that it reads and not every method does, with their defaults.
      same_sample: whether all gradients of a step are of one sample.
      contractive: whether unbiased compressors must be made contractions.
    """

    build: Callable[..., Any]
    learning_rate: float
    flags: dict[str, Any] = dataclasses.field(default_factory=dict)
    same_sample: bool = False
    contractive: bool = False


def _adam(rate):
    return optax.adam(rate, b1=0.5, b2=0.9)


def _md_gan(
    rate, workers, batches_k, disc_steps, swap_epochs, moments, crash_every, in_steps
):
    swap_every = in_steps(swap_epochs) if swap_epochs and workers > 1 else None
    alive = crash_every and functools.partial(_alive, workers, crash_every)
    batches_k = _batches_k(batches_k, workers)
    adam = _adam(rate)
    return md_gan.MDGan(adam, adam, batches_k, disc_steps, swap_every, alive, moments)


def _batches_k(text: str, workers: int) -> int:
    """A number of batches, where "log" is the logarithm of the number of workers."""
    if text == "log":
        return max(1, math.ceil(math.log2(workers)))
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= workers):
        raise BadFlagError(
            f"--batches_k={text}: write log, or a number from 1 to {workers}, as "
            "many as there are workers."
        )
    return int(text)


def _alive(count, crash_every, step):
    """Who is left at a step, of workers of which the last crashes first."""
    return np.arange(count) < max(1, count - step // crash_every)


def _fl_gan(rate, sync_every, disc_steps, participants, sizes, key, axis_name):
    return fl_gan.fl_gan(
        _adam(rate),
        _adam(rate),
        sync_every,
        disc_steps=disc_steps,
        weights=sizes,
        participants=participants,
        key=key,
        axis_name=axis_name,
    )


def _standalone(rate, disc_steps):
    return alternating(_adam(rate), _adam(rate), disc_steps)


# Default learning rates: optimistic Adam, Adam of players who take turns (with 2e-3
# the discriminators of md_gan win), optimistic and extragradient plain steps.
ADAM, TURNS, OPTIMISTIC, EXTRA = 2e-3, 1e-3, 0.02, 0.01
_PLAIN = {"compressor": "none", "down": "none"}
_CODES, _RANDOM, _LARGEST = (
    {"compressor": name, "down": "none"} for name in ("quantize", "rand_k", "top_k")
)
_RING, _DRAWN = {"topology": "ring", "rounds": 1}, {"topology": "random_ring"}
_LOCAL = {"sync_every": 10, "sync_epochs": None} | _PLAIN
_FEDERATED = {"sync_every": None, "sync_epochs": 1.0, "participation": 1.0}
_SWAPS = {"swap_epochs": 1.0, "moments": "stay", "batches_k": "log"}
_TURNS = {"disc_steps": 1}
_REFRESH = {"refresh": None}
METHODS = {
    # Whole gradients or parameters, exchanged in every step.
    "extra_step": Method(methods.extra_step, EXTRA, _PLAIN),
    "decentralized_extra_step": Method(
        methods.decentralized_extra_step, EXTRA, _RING | {"rounds": 4}
    ),
    "dposg": Method(methods.dposg, OPTIMISTIC, _RING),
    "cp_oadam": Method(methods.cp_oadam, ADAM, _PLAIN),
    "dp_oadam": Method(methods.dp_oadam, ADAM, _RING),
    "rand_dp_oadam": Method(methods.rand_dp_oadam, ADAM, _DRAWN),
    # Steps of their own, averaged once in a while.
    "extra_step_local_sgd": Method(methods.extra_step_local_sgd, EXTRA, _LOCAL),
    "local_extra_adam": Method(methods.local_extra_adam, ADAM, _LOCAL),
    "fl_gan": Method(_fl_gan, TURNS, _FEDERATED | _TURNS, same_sample=True),
    # A generator on a server, a discriminator on every worker.
    "md_gan": Method(
        _md_gan, TURNS, _SWAPS | _TURNS | {"crash_every": None}, same_sample=True
    ),
    # One worker with all data, to compare with.
    "standalone": Method(_standalone, TURNS, _TURNS, same_sample=True),
    # Compressed messages.
    "dqgan": Method(methods.dqgan, OPTIMISTIC, _CODES),
    "dqgan_adam": Method(methods.dqgan_adam, ADAM, _CODES),
    "cp_oadam_gq": Method(methods.cp_oadam_gq, ADAM, _CODES),
    "masha1": Method(methods.masha1, EXTRA, _RANDOM | _REFRESH),
    "masha2": Method(methods.masha2, EXTRA, _LARGEST | _REFRESH, contractive=True),
    "pp_masha1": Method(
        methods.pp_masha1, EXTRA, _RANDOM | _REFRESH | {"participation": 0.5}
    ),
    "qsgda": Method(methods.qsgda, EXTRA, _CODES),
    "diana_sgda": Method(methods.diana_sgda, EXTRA, _CODES),
    "ef21_sgda": Method(methods.ef21_sgda, EXTRA, _LARGEST, contractive=True),
}


def defaults(name: str, none: str = "none") -> str:
    """Which methods have which default for a flag, in words; `none` is that of None."""
    groups: dict[str, list[str]] = {}
    for method, entry in METHODS.items():
        own = {"learning_rate": entry.learning_rate} | entry.flags
        if name in own:
            value = none if own[name] is None else str(own[name])
            groups.setdefault(value, []).append(method)
    listed = "; ".join(f"{v} for {', '.join(ms)}" for v, ms in groups.items())
    return f"Default: {listed}."


# ------------------------------------------------------------------ the flags

LOSSES = {
    # Without the penalty the score of digits turns for the worse after 2,000 steps.
    "non_saturating": functools.partial(losses.non_saturating, r1=1.0),
    "wasserstein": losses.wasserstein,
    "hinge": losses.hinge,
    "acgan": functools.partial(losses.acgan, r1=1.0),
}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
MODELS = ("mlp", "dcgan", "md_gan_mlp", "md_gan_cnn", "resnet", "sagan")
_COUNT, _AT_LEAST_0, _FRACTION, _SEED = (1, None), (0, None), (0, 1), (0, 2**32 - 1)


def _one_of(numbers):
    """Names, each with the number that it stands for."""
    return ", ".join(k if n is None else f"{k}:{n}" for k, n in numbers.items())


def _own(name, words, none="none", **limits):
    """A flag that only some methods read, each with a default of its own."""
    return flag(None, f"{words} {defaults(name, none)}", **limits)


@dataclasses.dataclass(frozen=True)
class Config:
    """What to train, and how; the fields are the flags."""

    method: str = flag(
        "dp_oadam", f"What to train with: {', '.join(METHODS)}.", names=METHODS
    )
    dataset: str = flag(
        "digits", f"What to learn: {', '.join(data.NAMES)}.", names=data.NAMES
    )
    data_dir: str | None = flag(
        None,
        "TFDS directory that holds the data set, or into which it is put when it is "
        "used first (not for digits and the mixtures). Default: $TFDS_DATA_DIR, or "
        "~/tensorflow_datasets.",
    )
    workers: int = flag(8, "How many; standalone always has one.", bounds=_COUNT)
    partition: str = flag(
        "iid",
        "Who holds what: iid, by_label (whole classes), or dirichlet:0.3 (each class "
        "split in random proportions; the smaller the number the more unequal).",
    )
    model: str | None = flag(
        None,
        f"The networks: {', '.join(MODELS)}; with their width after a colon, as "
        "dcgan:32. Default: mlp for points and 8x8 images, dcgan for others.",
        names=MODELS,
    )
    dtype: str = flag(
        "float32",
        "Type of the networks' arithmetic, float32 or bfloat16; parameters and what "
        "travels stay float32.",
        names=DTYPES,
    )
    loss: str = flag(
        "non_saturating",
        f"The game: {', '.join(LOSSES)}. non_saturating and acgan come with an R1 "
        "penalty of 1, wasserstein with a gradient penalty of 10; with acgan samples "
        "are of a class that is asked for.",
        names=LOSSES,
    )
    steps: int = flag(2_000, "The step to train to.", bounds=_COUNT)
    batch_size: int = flag(16, "Examples per worker and gradient.", bounds=_COUNT)
    learning_rate: float | None = _own(
        "learning_rate", "Step size.", bounds=(1e-12, None)
    )
    topology: str | None = _own(
        "topology",
        f"Who talks to whom: {_one_of(names.TOPOLOGIES)} (which joins a pair with that "
        "probability). torus takes the squarest rows x columns, or torus:2x4.",
        names=names.TOPOLOGIES,
    )
    rounds: int | None = _own(
        "rounds",
        "Exchanges in a step (in each half of decentralized_extra_step).",
        bounds=_COUNT,
    )
    compressor: str | None = _own(
        "compressor",
        f"What workers send through: {_one_of(names.COMPRESSORS)}; a name alone takes "
        "this number. The masha1 family and diana_sgda need one that is unbiased; "
        "where errors are fed back one that is only unbiased is made a contraction.",
        names=names.COMPRESSORS,
    )
    down: str | None = _own(
        "down", "What the server sends through, likewise.", names=names.COMPRESSORS
    )
    refresh: float | None = _own(
        "refresh",
        "Probability that the snapshot moves, and a whole gradient is exchanged. "
        "balanced is when these cost as much as the compressed messages. The masha "
        "methods compare gradients at two points, which here come of different "
        "batches: on GANs they are a heuristic.",
        "balanced",
        bounds=_FRACTION,
    )
    sync_every: int | None = _own(
        "sync_every", "Steps between two averages of the workers.", bounds=_COUNT
    )
    sync_epochs: float | None = _own(
        "sync_epochs",
        "The same, in epochs: E is max(1, round(E x mean share / batch size)) steps.",
        bounds=_AT_LEAST_0,
    )
    participation: float | None = _own(
        "participation",
        "Share of the workers that take part in a round of fl_gan, drawn anew for "
        "each, or in a step of pp_masha1.",
        bounds=_FRACTION,
    )
    batches_k: str | None = _own(
        "batches_k",
        "Batches that the server generates in a step, from 1 to --workers; log is "
        "ceil(log2(workers)).",
    )
    disc_steps: int | None = _own(
        "disc_steps", "Discriminator steps for one of the generator.", bounds=_COUNT
    )
    swap_epochs: float | None = _own(
        "swap_epochs",
        "Epochs between two swaps of discriminators among workers; 0 never swaps.",
        bounds=_AT_LEAST_0,
    )
    moments: str | None = _own(
        "moments",
        "What becomes of the discriminators' moments in a swap: stay, travel or reset.",
        names=("stay", "travel", "reset"),
    )
    crash_every: int | None = _own(
        "crash_every",
        "One worker more is lost, with its data, every so many steps, until one is "
        "left.",
        "never",
        bounds=_COUNT,
    )
    seed: int = flag(0, "What everything random follows from.", bounds=_SEED)
    eval_every: int = flag(
        500,
        "Steps between two scores, pictures and checkpoints; losses are recorded 10 "
        "times as often.",
        bounds=_COUNT,
    )
    inception: str | None = flag(
        None,
        "File of the weights of the Inception network, for FID and KID beside the "
        "other scores (slow without an accelerator); how to make it: python "
        "tools/convert_inception.py --help.",
    )
    workdir: str | None = flag(
        None,
        "Directory of the run, which must not hold another one. Default: "
        "runs/DATASET-METHOD.",
    )
    resume: bool = flag(
        False,
        "Go on from the last checkpoint in --workdir, or start where there is none. "
        "The other flags must be as they were, but for --steps, --eval_every, "
        "--devices, --data_dir, --inception, and --workers: with another number of "
        "workers the networks go on, on data divided anew, and the optimizers do not.",
    )
    dry_run: bool = flag(
        False,
        "Only print what a run would cost: parameters, bytes, operations and memory. "
        "Trains nothing, and leaves nothing in --workdir.",
    )
    devices: int | None = flag(
        None,
        "How many devices, a number that divides --workers: each has as many workers. "
        "Default: 1 on CPU, where that is faster, and as many accelerators as fit; in "
        "many processes all devices of all.",
        bounds=_COUNT,
    )
    coordinator: str | None = flag(
        None,
        "HOST:PORT of process 0, which the others reach, to train in many processes; "
        "with --num_processes and --process_id. Not needed under python -m "
        "jaxsp.launch, SLURM, Open MPI and on TPU pods.",
    )
    num_processes: int | None = flag(None, "How many processes, with --coordinator.")
    process_id: int | None = flag(None, "Which of them, from 0, with --coordinator.")
    heartbeat_timeout: float = flag(
        20.0,
        "Seconds without a sign of life after which a process counts as lost.",
        bounds=_COUNT,
    )


def resolve(config: Any) -> Any:
    """The configuration with the method's defaults, and nothing that it does not read.

    Args:
      config: what the flags say.

    Returns:
      Another, in which None stands for what has no default and for what has no effect;
      a note is printed of the latter.

    Raises:
      BadFlagError: if flags contradict each other.
    """
    chosen = METHODS[config.method]
    if config.method == "standalone" and config.workers != 1:
        print("note: --method=standalone has one worker, which holds all data")
        config = dataclasses.replace(config, workers=1)
    if None not in (config.sync_every, config.sync_epochs):
        raise BadFlagError(
            f"--sync_every={config.sync_every} and --sync_epochs={config.sync_epochs} "
            "say the same: write one of them."
        )
    if config.swap_epochs and config.workers == 1:
        raise BadFlagError(
            f"--swap_epochs={config.swap_epochs}: with --workers=1 there is no other "
            "worker to swap with; write --swap_epochs=0, or more workers."
        )
    own = dict(chosen.flags)
    if None not in (config.sync_every, own.get("sync_epochs")):
        own["sync_epochs"] = None
    if None not in (config.sync_epochs, own.get("sync_every")):
        own["sync_every"] = None
    own["learning_rate"] = chosen.learning_rate
    found = {}
    for name in {n for entry in METHODS.values() for n in entry.flags} | {*own}:
        value = getattr(config, name)
        if value is not None and name not in own:
            print(f"note: --{name} has no effect with --method={config.method}")
        found[name] = own.get(name) if value is None or name not in own else value
    return dataclasses.replace(config, **found)
