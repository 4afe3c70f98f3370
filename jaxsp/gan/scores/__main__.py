r"""Score the generator of a training run, with everything that there is.

Reads the averaged generator of a checkpoint, draws samples, and prints their scores
beside those of the real test split: Fréchet and kernel distance, precision, recall,
density and coverage on the features of a small classifier, or, with the weights of the
Inception network, on its features, where the distances are FID and KID. Nothing is
downloaded.

Examples:
  python -m jaxsp.gan.scores --checkpoint=runs/digits-dp_oadam
  python -m jaxsp.gan.scores --checkpoint=runs/cifar/checkpoints/20000 \
    --samples=50000 --inception=inception.npz --output=scores.json
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxsp.gan import command, data, models, scores
from jaxsp.gan.bars import track
from jaxsp.gan.command import BadFlagError, flag, naming
from jaxsp.gan.files import local_path, replacing
from jaxsp.gan.program import sampler
from jaxsp.gan.training import checkpoint, directory
from jaxsp.gan.training.evaluation import draw_samples

__all__ = ["PROGRAM", "Config", "main", "score"]

PROGRAM = "jaxsp.gan.scores"


@dataclasses.dataclass(frozen=True)
class Config:
    """What to score, and how; the fields are the flags."""

    checkpoint: str | None = flag(
        None,
        "Directory of a run, for its last checkpoint, or RUN/checkpoints/STEP.",
        path=True,
    )
    samples: int = flag(
        10_000,
        "How many samples; FID is mostly told of 50,000.",
        bounds=(4, 10**8),  # more than the neighbours that the scores look at
    )
    dataset: str | None = flag(
        None,
        "What to compare with. Default: what the run learned.",
        names=data.NAMES,
    )
    data_dir: str | None = flag(
        None,
        "TFDS directory of the prepared data set (not for digits and the mixtures). "
        "Default: the run's, where it is there; else $TFDS_DATA_DIR, or "
        "~/tensorflow_datasets.",
        path=True,
    )
    model: str | None = flag(
        None,
        "The networks, as dcgan:64, of a run whose settings do not say. Default: what "
        "they say.",
        names=models.NAMES,
        colon=True,
    )
    conditional: bool | None = flag(
        None,
        "Samples are of a class; of a run whose settings do not say. Default: what "
        "they say, or no.",
    )
    inception: str | None = flag(
        None,
        "File of the weights of the Inception network, for FID and KID; how to make "
        "it: python tools/convert_inception.py --help. Default: the features of a "
        "small classifier are used instead.",
        path=True,
    )
    seed: int = flag(
        0,
        "What the samples follow from, together with --batch_size.",
        bounds=(0, 2**32 - 1),
    )
    batch_size: int = flag(500, "Samples generated at once.", bounds=(1, 10_000))
    output: str | None = flag(
        None,
        "JSON file to write. Default: scores_STEP.json in the run's directory, with "
        "the flags that make other scores, as scores_20000_samples=50000.json.",
        path=True,
    )
    samples_png: str | None = flag(
        None, "Picture of samples beside real data to draw. Default: none.", path=True
    )


def score(
    config: Config, cache_dir: str | None = None, progress: bool = True
) -> dict[str, Any]:
    """Score a generator.

    Args:
      config: what to score, and how.
      cache_dir: where the classifier and the statistics of the data are kept; None is
        `data.cache_dir()`.
      progress: whether to show progress on standard error.

    Returns:
      What the JSON file holds: `scores` of the samples, `floor`, those of the test
      split, `bias`, those of `Evaluator.bias`, `counts` of samples of each class, and
      `class_coverage`, the same relative to the data.

    Raises:
      BadFlagError: if a flag cannot be used.
    """
    command.check(config)
    if config.checkpoint is None:
        raise BadFlagError("--checkpoint is missing: write --checkpoint=RUN_DIR.")
    with naming("checkpoint", config.checkpoint, ValueError, OSError, KeyError):
        step, parameters, settings = checkpoint.read_generator(config.checkpoint)
    run = pathlib.Path(config.checkpoint).expanduser().resolve()
    run = run.parents[1] if run.parent.name == "checkpoints" else run
    output = config.output or run / _file_name(config, step, settings)
    output = _writable("output", output, config)
    picture = config.samples_png
    picture = picture and _writable("samples_png", picture, config, output)
    settings = _with_flags(settings, config)
    data_dir = config.data_dir or directory.read_data_dir(run)
    with (
        naming("dataset", settings["dataset"], ValueError),
        naming("data_dir", data_dir, ValueError, OSError, ImportError),
    ):
        loaded = data.load(settings["dataset"], data_dir)
    gan = _network(loaded, parameters, settings)
    with naming("inception", config.inception, ValueError, OSError):
        weights = scores.inception.load(config.inception) if config.inception else None
        evaluate = scores.evaluator(loaded, cache_dir, progress, weights, full=True)

    x = traverse_util.unflatten_dict(parameters, sep="/")
    found = evaluate.measure(_samples(gan, x, config, progress))
    counts, coverage = found.counts, None
    if counts is not None and counts.sum() > 0:
        labels = np.bincount(loaded.train_labels, minlength=loaded.num_classes)
        coverage = scores.class_coverage(counts, labels).tolist()
    features = "classifier" if evaluate.classifier else "points"
    result = {
        "checkpoint": config.checkpoint,
        "step": step,
        "dataset": loaded.name,
        "model": settings["model"],
        "samples": config.samples,
        "seed": config.seed,
        "batch_size": config.batch_size,
        "features": "inception" if config.inception else features,
        "scores": found.scores,
        "floor": evaluate.floor,
        "floor_samples": len(loaded.test),
        "bias": evaluate.bias(config.samples),
        "counts": None if counts is None else counts.tolist(),
        "class_coverage": coverage,
    }
    # JSON has no numbers that are not finite: null stands in their place.
    finite = json.loads(json.dumps(result), parse_constant=lambda name: None)
    with replacing(output) as temporary:
        temporary.write_text(json.dumps(finite, indent=2) + "\n")
    if picture:
        key, title = jax.random.key(config.seed), f"{loaded.name}, step {step}"
        draw_samples(gan, sampler(gan), x, key, loaded, picture, title)
    _print_table(result)
    print("written: " + ", ".join(str(p) for p in (output, picture) if p), flush=True)
    return result


def _with_flags(settings: dict[str, Any], config: Config) -> dict[str, Any]:
    """The settings of a run, and of those that it does not say what the flags say."""
    found = dict(settings)
    for name in ("dataset", "model", "conditional"):
        said, told = settings.get(name), getattr(config, name)
        if name != "dataset" and None not in (said, told) and said != told:
            raise BadFlagError(
                f"--{name}={told}: the run was of --{name}={said}; leave the flag out."
            )
        found[name] = said if told is None else told
    for name in ("dataset", "model"):
        if not isinstance(found[name], str):
            raise BadFlagError(f"--{name}: write it, the run's settings do not say.")
    return found


def _file_name(config: Config, step: int, settings: dict[str, Any]) -> str:
    """Of the scores: it tells of the flags with which there are other ones."""
    usual, name = Config(dataset=settings.get("dataset")), f"scores_{step}"
    for field in ("dataset", "samples", "seed", "batch_size", "inception"):
        value = getattr(config, field)
        if value is not None and value != getattr(usual, field):
            value = pathlib.Path(value).stem if field == "inception" else value
            name += f"_{field}={value}"
    return f"{name}.json"


def _writable(
    flag: str, value: str | pathlib.Path, config: Config, *others: pathlib.Path
) -> pathlib.Path:
    """A path at which nothing is lost that is needed: no device, nor of a run."""
    with naming(flag, value, ValueError):
        path = local_path(flag, value)
    real = path.resolve()
    if real.exists() and not real.is_file():
        kind = "a directory" if real.is_dir() else "not a regular file"
        raise BadFlagError(f"--{flag}={value}: it is {kind}; write another name.")
    if not os.access(real.parent, os.W_OK | os.X_OK):
        raise BadFlagError(
            f"--{flag}={value}: write the name of a file in a directory that can be "
            "written in."
        )
    read = [pathlib.Path(config.inception).expanduser()] if config.inception else []
    if real in [other.resolve() for other in (*others, *read)]:
        raise BadFlagError(f"--{flag}={value}: another flag names it; write another.")
    if directory.is_of_run(real):
        raise BadFlagError(
            f"--{flag}={value}: it is a file of a run, which is never overwritten; "
            "write another name."
        )
    return path


def _network(dataset: data.Dataset, parameters, settings) -> models.Gan:
    """The pair of networks that the parameters belong to."""
    model, classes = settings["model"], dataset.num_classes
    classes = int(classes) if settings.get("conditional") else 0
    dtype = jnp.dtype(settings.get("dtype", "float32"))
    with naming("model", model, ValueError):
        gan = models.parse(
            model, dataset.sample_shape, classes, dtype, settings.get("latent_size")
        )
    latent = jnp.zeros((1, gan.latent_size))
    tree = jax.eval_shape(gan.generator.init, jax.random.key(0), latent)["params"]
    flat: dict = traverse_util.flatten_dict(tree, sep="/")
    for name in [*parameters, *flat]:
        pair = (parameters.get(name), flat.get(name))
        there, here = (getattr(leaf, "shape", "missing") for leaf in pair)
        if there != here:
            raise BadFlagError(
                f"--model={model}: it does not fit the checkpoint: {name} is {there} "
                f"there and {here} here, for {dataset.name}."
            )
    return gan


def _samples(gan, x, config: Config, progress: bool) -> Iterator[np.ndarray]:
    """Batches of samples."""
    sample = sampler(gan)
    key, size = jax.random.key(config.seed), config.batch_size
    starts = range(0, config.samples, size)
    for i, start in enumerate(track(starts, "batches of samples", enabled=progress)):
        batch = sample(x, jax.random.fold_in(key, i), size)
        yield np.asarray(batch, np.float32)[: config.samples - start]


def _print_table(result):
    """The scores beside those of the test split."""
    print(f"{result['dataset']}, step {result['step']}, {result['features']}")
    print(f"{'':20}  {'samples':>10}  {'test split':>10}")
    print(f"{'number':20}  {result['samples']:>10,}  {result['floor_samples']:>10,}")
    for name, value in result["scores"].items():
        print(f"{name:20}  {value:>10.4g}  {result['floor'][name]:>10.4g}")
    for name, value in result["bias"].items():
        print(f"{name} of as many samples of the data's own distribution: {value:.3g}")
    if result["class_coverage"] and len(result["class_coverage"]) <= 100:
        shares = " ".join(f"{share:.2f}" for share in result["class_coverage"])
        print(f"share of each class among the samples, relative to the data: {shares}")


def main(config: Config) -> int:
    """Score as the flags say; the exit code."""
    if score(config)["counts"] is None:
        return command.complain(PROGRAM, "the generator's samples are not finite.", 1)
    return 0


if __name__ == "__main__":
    command.run(PROGRAM, Config, main)
