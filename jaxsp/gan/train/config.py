"""What training can be told: its flags."""

import dataclasses
from typing import ClassVar

from jaxsp import distributed
from jaxsp.gan import data, models, names
from jaxsp.gan.command import flag
from jaxsp.gan.train.methods import LOSSES, METHODS

__all__ = ["Config"]

_COUNT, _AT_LEAST_0, _SHARE = (1, 2**31 - 1), (0, None), (0, 1)
_DECAY = (0, 1 - 1e-9)


def _own(name, words, none="none", **limits):
    """A flag that only some methods read; `none` is what the default None does."""
    groups: dict[str, list[str]] = {}
    for method, own in METHODS.items():
        if name in own:
            value = none if own[name] is None else str(own[name])
            if isinstance(own[name], tuple):
                value = "{} ({} of points)".format(*own[name])
            groups.setdefault(value, []).append(method)
    listed = "; ".join(f"{v} for {', '.join(ms)}" for v, ms in groups.items())
    return flag(None, f"{words} Default: {listed}.", **limits)


@dataclasses.dataclass(frozen=True)
class Config:
    """What to train, and how; the fields are the flags."""

    # What else the file of a run's settings says: what follows from these, and JAX's.
    NOT_FLAGS: ClassVar[frozenset[str]] = frozenset(
        {"same_sample", "eval_samples", "conditional", "data_crc32", "log_every"}
        | {"checkpoint_every", "jax", "platform", *distributed.number_options()}
    )

    method: str = flag("dp_oadam", "What to train with.", names=METHODS)
    dataset: str = flag("digits", "What to learn.", names=data.NAMES)
    data_dir: str | None = flag(
        None,
        "TFDS directory that holds the data set, or into which it is put when it is "
        "used first (not for digits and the mixtures). Default: $TFDS_DATA_DIR, or "
        "~/tensorflow_datasets.",
        path=True,
    )
    workers: int = flag(8, "How many; standalone always has one.", bounds=_COUNT)
    partition: str = flag(
        "iid",
        "Who holds what: iid, by_label (whole classes), or dirichlet:0.3 (each class "
        "split in random proportions; the smaller the number the more unequal). To a "
        "worker that would hold less than a batch examples move from the one that "
        "holds most; after another colon, as in dirichlet:0.3:50, less than that. "
        "major_classes:0.3 gives each two classes that make up 30 % of its share.",
    )
    model: str | None = flag(
        None,
        "The networks; with their width after a colon, as dcgan:32. Default: mlp for "
        "points and 8x8 images, dcgan for others.",
        names=models.NAMES,
        colon=True,
    )
    dtype: str = flag(
        "float32",
        "Type of the networks' arithmetic; parameters and what travels stay float32.",
        names=("float32", "bfloat16"),
    )
    loss: str = flag(
        "non_saturating",
        "The game; with acgan samples are of a class that is asked for.",
        names=LOSSES,
    )
    penalty: float | None = flag(
        None,
        "Weight of the gradient penalty: R1, of relativistic R1 and R2, of "
        "wasserstein that of WGAN-GP. Default: 1 (0.05 of points), 10 of "
        "wasserstein, none of hinge of images.",
        bounds=_AT_LEAST_0,
    )
    latent_size: int | None = flag(
        None,
        "Length of a latent vector. Default: the model's own, of points 4 and the "
        "classes.",
        bounds=_COUNT,
    )
    steps: int | None = flag(
        None, "The step to train to. Default: 2000, of points 30000.", bounds=_COUNT
    )
    batch_size: int | None = flag(
        None,
        "Examples per worker and gradient. Default: 16, of points 64.",
        bounds=_COUNT,
    )
    learning_rate: float | None = _own(
        "learning_rate", "Step size.", bounds=(1e-12, None)
    )
    warmup_steps: int | None = flag(
        None, "Steps in which it grows from 0. Default: none.", bounds=_COUNT
    )
    decay_steps: int | None = flag(
        None,
        "The step at which it has fallen to 0, by a cosine. Default: never, of points "
        "30000.",
        bounds=_COUNT,
    )
    b1: float | None = _own("b1", "Decay of the first moment.", bounds=_DECAY)
    b2: float | None = _own("b2", "Decay of the second moment.", bounds=_DECAY)
    ema_decay: float = flag(
        0.999, "Decay of the generator's average, which is scored.", bounds=_DECAY
    )
    topology: str | None = _own(
        "topology",
        "Who talks to whom. torus takes the squarest rows x columns, or torus:2x4; "
        "erdos_renyi:0.3 joins a pair with that probability, 0.5 if none is given.",
        names=names.TOPOLOGIES,
        colon=True,
    )
    rounds: int | None = _own(
        "rounds",
        "Exchanges in a step (in each half of decentralized_extra_step).",
        bounds=_COUNT,
    )
    compressor: str | None = _own(
        "compressor",
        "What workers send through, with a number after a colon: quantize:8 bits, "
        "dithering:8 levels, top_k:0.1 or rand_k:0.1 of the numbers, low_rank:2, which "
        "are what a name alone takes. The masha1 family and diana_sgda need one that "
        "is unbiased; where errors are fed back such a one is made a contraction.",
        names=names.COMPRESSORS,
        colon=True,
    )
    down: str | None = _own(
        "down",
        "What the server sends through, likewise.",
        names=names.COMPRESSORS,
        colon=True,
    )
    refresh: float | None = _own(
        "refresh",
        "Probability that the snapshot moves, and a whole gradient is exchanged. "
        "balanced is when these cost as much as the compressed messages, and, of "
        "vr_masha1 and vr_masha2, their gradients at most those of the batches. These "
        "two go through all of a worker's data at a snapshot, with one latent for each "
        "example, and compare two points on one batch, the other masha methods on two: "
        "on GANs all are a heuristic.",
        "balanced",
        bounds=(1e-12, 1),
    )
    second_sample: str | None = _own(
        "second_sample",
        "Whether the second gradient of a step is taken on a batch and latents of its "
        "own, as the theory of extragradient asks, or on those of the first.",
        names=("own", "same"),
    )
    sync_every: int | None = _own(
        "sync_every", "Steps between two averages of the workers.", bounds=_COUNT
    )
    sync_epochs: float | None = _own(
        "sync_epochs",
        "The same, in epochs: E is max(1, round(E x mean share / batch size)) steps.",
        bounds=_AT_LEAST_0,
    )
    outer_learning_rate: float | None = _own(
        "outer_learning_rate",
        "What an average's change is multiplied by before all make it.",
        "1",
        bounds=(1e-12, None),
    )
    outer_momentum: float | None = _own(
        "outer_momentum",
        "Nesterov momentum from one average's change to the next.",
        bounds=_DECAY,
    )
    participation: float | None = _own(
        "participation",
        "Share of the workers that take part in a round of fl_gan, drawn anew for "
        "each, or in a step of pp_masha1.",
        bounds=_SHARE,
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
        "What becomes of the discriminators' moments in a swap.",
        names=("stay", "travel", "reset"),
    )
    crash_every: int | None = _own(
        "crash_every",
        "One worker more is lost, with its data, every so many steps, until one is "
        "left.",
        "never",
        bounds=_COUNT,
    )
    skip_not_finite: int | None = flag(
        None,
        "All workers leave out a step in which a gradient or an update of any is not "
        "finite, at most so many in a row; not with md_gan. Default: such a step ends "
        "the run.",
        bounds=_COUNT,
    )
    seed: int = flag(0, "What everything random follows from.", bounds=(0, 2**32 - 1))
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
        path=True,
    )
    workdir: str | None = flag(
        None,
        "Directory of the run, which must not hold another one. Default: "
        "runs/DATASET-METHOD.",
        path=True,
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
    num_processes: int | None = flag(
        None, "How many processes, with --coordinator.", bounds=_COUNT
    )
    process_id: int | None = flag(
        None, "Which of them, from 0, with --coordinator.", bounds=(0, 2**31 - 1)
    )
    heartbeat_timeout: float = flag(
        20.0,
        "Seconds without a sign of life after which a process counts as lost.",
        bounds=_COUNT,
    )
