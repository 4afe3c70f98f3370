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
import math
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from tqdm import tqdm

from jaxsp.gan import command, data, models, scores
from jaxsp.gan.command import BadFlagError, flag, naming
from jaxsp.gan.files import replacing
from jaxsp.gan.training import checkpoint, plots

__all__ = ["PROGRAM", "Config", "main", "score"]

PROGRAM = "jaxsp.gan.scores"
_SHOWN = 64  # samples in the picture, or 1,000 where they are points


@dataclasses.dataclass(frozen=True)
class Config:
    """What to score, and how; the fields are the flags."""

    checkpoint: str | None = flag(
        None,
        "Directory of a run, whose last checkpoint is read, or of a checkpoint, "
        "RUN/checkpoints/STEP.",
    )
    samples: int = flag(
        10_000,
        "How many samples; FID is mostly told of 50,000.",
        bounds=(4, None),  # more than the neighbours that the scores look at
    )
    dataset: str | None = flag(
        None, "What to compare with. Default: what the run learned."
    )
    data_dir: str | None = flag(
        None,
        "TFDS directory that holds the prepared data set (not for digits and the "
        "mixtures). Default: $TFDS_DATA_DIR, or ~/tensorflow_datasets.",
    )
    model: str | None = flag(
        None,
        "The networks, as dcgan or dcgan:64. Default: what the run's settings say.",
    )
    conditional: bool | None = flag(
        None,
        "Whether samples are of a class. Default: what the run's settings say, or no.",
    )
    inception: str | None = flag(
        None,
        "File of the weights of the Inception network, for FID and KID; how to make "
        "it: python tools/convert_inception.py --help. Default: the features of a "
        "small classifier are used instead.",
    )
    seed: int = flag(
        0,
        "What the samples follow from, together with --batch_size.",
        bounds=(0, 2**32 - 1),
    )
    batch_size: int = flag(500, "Samples generated at once.", bounds=(1, None))
    output: str | None = flag(
        None, "JSON file to write. Default: scores_STEP.json in the run's directory."
    )
    samples_png: str | None = flag(
        None, "Picture of the first samples to draw. Default: none."
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
      What the JSON file holds: `scores` of the samples, `floor`, the same scores of the
      test split, `bias`, what as many samples of the data's own distribution would
      score against as many data as the training split has, `counts` of samples per
      class and `class_coverage`, the same relative to the data.

    Raises:
      BadFlagError: if a flag cannot be used.
    """
    if config.checkpoint is None:
        raise BadFlagError("--checkpoint is missing: write --checkpoint=RUN_DIR.")
    with naming("checkpoint", config.checkpoint, ValueError, OSError, KeyError):
        step, parameters, settings = checkpoint.read_generator(config.checkpoint)
    settings = settings | {
        name: getattr(config, name)
        for name in ("dataset", "model", "conditional")
        if getattr(config, name) is not None
    }
    path = _writable("output", config.output or _beside(config.checkpoint, step))
    picture = config.samples_png and _writable("samples_png", config.samples_png)
    dataset, model = (_setting(name, settings) for name in ("dataset", "model"))
    with (
        naming("dataset", dataset, ValueError),
        naming("data_dir", config.data_dir, OSError, ImportError),
    ):
        loaded = data.load(dataset, config.data_dir)
    gan = _network(model, loaded, parameters, settings)
    with naming("inception", config.inception, ValueError, OSError):
        weights = scores.inception.load(config.inception) if config.inception else None
        evaluate = scores.evaluator(loaded, cache_dir, progress, weights, full=True)
    shown: list[np.ndarray] = []
    x = traverse_util.unflatten_dict(parameters, sep="/")
    found = evaluate.measure(_samples(gan, x, config, shown, progress))
    if picture:
        points = len(loaded.sample_shape) == 1
        grid = np.concatenate(shown)[: 1000 if points else _SHOWN]
        below = np.asarray(loaded.train[:2000]) if points else None
        plots.plot_samples(grid, picture, below, f"{loaded.name}, step {step}")

    features = "points" if evaluate.classifier is None else "classifier"
    counts, coverage = found.counts, None
    if counts is not None and counts.sum() > 0:
        labels = np.bincount(loaded.train_labels, minlength=loaded.num_classes)
        coverage = scores.class_coverage(counts, labels).tolist()
    result = {
        "checkpoint": config.checkpoint,
        "step": step,
        "dataset": loaded.name,
        "model": model,
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
    with replacing(path) as temporary:
        text = json.dumps(_nullable(result), indent=2, allow_nan=False)
        temporary.write_text(text + "\n")
    _print_table(result, [str(p) for p in (path, picture) if p])
    return result


# ------------------------------------------------------------------ reading


def _setting(name: str, settings: Mapping[str, Any]) -> str:
    """A setting of the run, or what its flag says in its place."""
    if not isinstance(settings.get(name), str):
        raise BadFlagError(
            f"--{name}: the settings of this run do not say which; write --{name}=..."
        )
    return settings[name]


def _beside(checkpoint: str, step: int) -> pathlib.Path:
    """The default file of scores, in the directory of the run."""
    path = pathlib.Path(checkpoint).expanduser().absolute()
    if path.parent.name == "checkpoints":
        path = path.parent.parent
    return path / f"scores_{step}.json"


def _writable(flag: str, value: str | pathlib.Path) -> pathlib.Path:
    """A path to write to, in a directory that exists."""
    path = pathlib.Path(value).expanduser()
    if path.is_dir():
        fault = "it is a directory"
    elif not path.parent.is_dir():
        fault = f"there is no directory {path.parent}"
    elif not os.access(path.parent, os.W_OK | os.X_OK):
        fault = f"no permission to write in {path.parent}"
    else:
        return path
    raise BadFlagError(f"--{flag}={value}: {fault}; write the name of a file.")


def _network(model, dataset: data.Dataset, parameters, settings) -> models.Gan:
    """The pair of networks that the parameters belong to."""
    classes = int(dataset.num_classes) if settings.get("conditional") else 0
    dtype = jnp.dtype(settings.get("dtype", "float32"))
    with naming("model", model, ValueError):
        gan = models.parse(model, dataset.sample_shape, classes, dtype)
    latent = jnp.zeros((1, gan.latent_size))
    shapes = jax.eval_shape(gan.generator.init, jax.random.key(0), latent)
    flat: dict = traverse_util.flatten_dict(shapes["params"], sep="/")
    here = {name: tuple(leaf.shape) for name, leaf in flat.items()}
    there = {name: tuple(leaf.shape) for name, leaf in parameters.items()}
    for name in dict.fromkeys([*there, *here]):
        if there.get(name) != here.get(name):
            raise BadFlagError(
                f"--model={model}: it does not fit the checkpoint: {name} is "
                f"{there.get(name, 'missing')} there and {here.get(name, 'missing')} "
                f"here, for {dataset.name}."
            )
    return gan


# ------------------------------------------------------------------ sampling, telling


def _samples(
    gan, x, config: Config, shown: list[np.ndarray], progress: bool
) -> Iterator[np.ndarray]:
    """Batches of samples; the first of them are put into `shown`."""
    sample = jax.jit(models.sample, static_argnums=(0, 3))
    key, total = jax.random.key(config.seed), config.samples
    with tqdm(total=total, desc="samples", unit="sample", disable=not progress) as bar:
        for i, start in enumerate(range(0, total, config.batch_size)):
            batch = sample(gan, x, jax.random.fold_in(key, i), config.batch_size)
            batch = np.asarray(batch, np.float32)[: total - start]
            if sum(map(len, shown)) < 1000:
                shown.append(batch)
            yield batch
            bar.update(len(batch))


def _nullable(value):
    """The value with null for numbers that are not finite, as JSON wants it."""
    if isinstance(value, dict):
        return {name: _nullable(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_nullable(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print_table(result, written):
    """The scores beside those of the test split."""
    found, floor = result["scores"], result["floor"]
    width = max(map(len, found))
    print(f"{result['dataset']}, step {result['step']}, {result['features']}")
    print(f"{'':{width}}  {'samples':>10}  {'test split':>10}")
    numbers = f"{result['samples']:>10,}  {result['floor_samples']:>10,}"
    print(f"{'number':{width}}  {numbers}")
    for name, value in found.items():
        print(f"{name:{width}}  {value:>10.4g}  {floor[name]:>10.4g}")
    for name, value in result["bias"].items():
        print(
            f"{result['samples']:,} samples of the data's own distribution would have "
            f"a {name} of about {value:.3g}, not 0."
        )
    if result["class_coverage"] is not None:
        shares = " ".join(f"{share:.2f}" for share in result["class_coverage"])
        print(f"share of each class among the samples, relative to the data: {shares}")
    print("written: " + ", ".join(written))
    sys.stdout.flush()


def main(config: Config) -> int:
    """Score as the flags say; the exit code."""
    if score(config)["counts"] is None:
        return command.complain(PROGRAM, "the generator's samples are not finite.", 1)
    return 0


if __name__ == "__main__":
    command.run(PROGRAM, Config, main)
