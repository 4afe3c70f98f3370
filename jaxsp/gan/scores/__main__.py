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

import contextlib
import inspect
import json
import math
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from flax import traverse_util
from tqdm import tqdm

from jaxsp.gan import data, models, scores
from jaxsp.gan.training import checkpoint as checkpoints
from jaxsp.gan.training import plots

__all__ = ["BadFlagError", "define_flags", "main", "run"]

_SHOWN = 64  # samples in the picture, or 1,000 where they are points
_LEAST = 4  # samples: more than the neighbours of one that the scores look at


class BadFlagError(ValueError):
    """A flag that cannot be used; the message is one line for the user."""


def run(
    checkpoint: str,
    samples: int = 10_000,
    dataset: str | None = None,
    data_dir: str | None = None,
    model: str | None = None,
    conditional: bool | None = None,
    inception: str | None = None,
    seed: int = 0,
    batch_size: int = 500,
    output: str | None = None,
    samples_png: str | None = None,
    cache_dir: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Score a generator as the flags of the same names say; None is a flag's default.

    Args:
      checkpoint: directory of a run, or of one of its checkpoints.
      samples: how many samples.
      dataset: what to compare with; None is what the run learned.
      data_dir: TFDS directory.
      model: for `models.parse`; None is what the run's settings say.
      conditional: whether samples are of a class; None is what the settings say.
      inception: file of the weights of the Inception network; None leaves it out.
      seed: what the samples follow from, together with `batch_size`.
      batch_size: samples generated at once.
      output: JSON file to write; None is `scores_STEP.json` in the run's directory.
      samples_png: picture to draw.
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
    for name, value, least in (
        ("samples", samples, _LEAST),
        ("batch_size", batch_size, 1),
        ("seed", seed, 0),
    ):
        if value < least:
            raise BadFlagError(f"--{name}={value}: write {least} or more.")
    with _naming("checkpoint", checkpoint, ValueError, OSError, KeyError):
        step, parameters, settings = checkpoints.read_generator(checkpoint)
    dataset = _setting("dataset", dataset, settings, "a data set")
    model = _setting("model", model, settings, "a model")
    path = _writable("output", output or _beside(checkpoint, step))
    picture = _writable("samples_png", samples_png) if samples_png else None
    with (
        _naming("dataset", dataset, ValueError),
        _naming("data_dir", data_dir, OSError, ImportError),
    ):
        loaded = data.load(dataset, data_dir)
    if conditional is not None:
        settings = settings | {"conditional": conditional}
    gan = _network(model, loaded, parameters, settings)
    weights = None
    if inception is not None:
        if len(loaded.sample_shape) != 3:
            raise BadFlagError(
                f"--inception={inception}: it judges images, and {dataset} holds "
                "points; leave the flag out."
            )
        with _naming("inception", inception, ValueError, OSError):
            weights = scores.inception.load(inception)

    judge = scores.evaluator(loaded, cache_dir, progress, weights, full=True)
    shown: list[np.ndarray] = []
    x = traverse_util.unflatten_dict(parameters, sep="/")
    drawn = _draw(gan, x, seed, samples, batch_size, shown, progress)
    found = judge.measure(drawn)
    if picture is not None:
        points = len(loaded.sample_shape) == 1
        grid = np.concatenate(shown)[: 1000 if points else _SHOWN]
        below = np.asarray(loaded.train[:2000]) if points else None
        plots.plot_samples(grid, picture, below, f"{loaded.name}, step {step}")

    labels = np.bincount(loaded.train_labels, minlength=loaded.num_classes)
    counts = found.counts
    usable = counts is not None and counts.sum() > 0
    result = {
        "checkpoint": str(checkpoint),
        "step": step,
        "dataset": loaded.name,
        "model": model,
        "samples": samples,
        "seed": seed,
        "batch_size": batch_size,
        "features": "points" if judge.classifier is None else "classifier",
        "scores": found.scores,
        "floor": judge.floor,
        "floor_samples": len(loaded.test),
        "bias": judge.bias(samples),
        "counts": None if counts is None else counts.tolist(),
        "class_coverage": (
            scores.class_coverage(counts, labels).tolist() if usable else None
        ),
    }
    if weights is not None:
        result["features"] = "inception"
    with plots.replacing(path) as temporary:
        text = json.dumps(_nullable(result), indent=2, allow_nan=False)
        temporary.write_text(text + "\n")
    _print_table(result, [str(p) for p in (path, picture) if p])
    return result


# ------------------------------------------------------------------ reading flags


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Define the flags, which `run` takes as arguments of the same names."""

    def text(name, words):
        flags.DEFINE_string(name, None, words, flag_values=values)

    def integer(name, default, words):
        flags.DEFINE_integer(name, default, words, flag_values=values)

    text(
        "checkpoint",
        "Directory of a run, whose last checkpoint is read, or of a checkpoint, "
        "RUN/checkpoints/STEP.",
    )
    integer("samples", 10_000, "How many samples; FID is mostly told of 50,000.")
    text("dataset", "What to compare with. Default: what the run learned.")
    text(
        "data_dir",
        "TFDS directory that holds the prepared data set (not for digits and the "
        "mixtures). Default: $TFDS_DATA_DIR, or ~/tensorflow_datasets.",
    )
    text(
        "model",
        "The networks, as dcgan or dcgan:64. Default: what the run's settings say.",
    )
    flags.DEFINE_bool(
        "conditional",
        None,
        "Whether samples are of a class. Default: what the run's settings say, or no.",
        flag_values=values,
    )
    text(
        "inception",
        "File of the weights of the Inception network, for FID and KID; how to make "
        "it: python -m jaxsp.gan.scores.inception --help. Default: the features of a "
        "small classifier are used instead.",
    )
    integer("seed", 0, "What the samples follow from, together with --batch_size.")
    integer("batch_size", 500, "Samples generated at once.")
    text(
        "output",
        "JSON file to write. Default: scores_STEP.json in the run's directory.",
    )
    text("samples_png", "Picture of the first samples to draw. Default: none.")


@contextlib.contextmanager
def _naming(flag: str, value: Any, *errors: type[Exception]):
    """Put a flag before what the library says of its value, on one line."""
    try:
        yield
    except BadFlagError:
        raise
    except errors as error:
        shown = f"--{flag}" if value is None else f"--{flag}={value}"
        raise BadFlagError(f"{shown}: {' '.join(str(error).split())}") from None


def _setting(name, given, settings, what) -> str:
    """What a flag says, or else the settings of the run."""
    value = given or settings.get(name)
    if not isinstance(value, str):
        raise BadFlagError(
            f"--{name}: the settings of this run do not name {what}; write --{name}=..."
        )
    return value


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
    with _naming("model", model, ValueError):
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


# ------------------------------------------------------------------ drawing, telling


def _draw(
    gan, x, seed, total, batch_size, shown: list[np.ndarray], progress
) -> Iterator[np.ndarray]:
    """Batches of samples; the first of them are kept in `shown`."""
    sample = jax.jit(models.sample, static_argnums=(0, 3))
    key = jax.random.key(seed)
    with tqdm(total=total, desc="samples", unit="sample", disable=not progress) as bar:
        for start in range(0, total, batch_size):
            batch_key = jax.random.fold_in(key, start // batch_size)
            drawn = sample(gan, x, batch_key, batch_size)
            batch = np.asarray(drawn, np.float32)[: total - start]
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


def main(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> int:
    """Score as the flags say; the exit code."""
    names = [name for name in inspect.signature(run).parameters if name in values]
    arguments: dict[str, Any] = {name: values[name].value for name in names}
    if len(argv) > 1:
        return _complain(f"unexpected {argv[1]!r}: flags are written --name=value.", 2)
    if arguments["checkpoint"] is None:
        return _complain("--checkpoint is missing: write --checkpoint=RUN_DIR.", 2)
    try:
        result = run(**arguments)
    except BadFlagError as error:
        return _complain(error, 2)
    if result["counts"] is None:
        return _complain("the generator's samples are not finite.", 1)
    return 0


def _complain(message: Any, code: int) -> int:
    print(f"jaxsp.gan.scores: {message}", file=sys.stderr)
    return code


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parse the command line; what is wrong with it takes one line."""
    try:
        rest = flags.FLAGS(argv)
        if flags.FLAGS["verbosity"].using_default_value:
            logging.set_verbosity(logging.WARNING)  # absl would choose INFO
        return rest
    except flags.Error as error:
        sys.exit(_complain(" ".join(str(error).split()), 2))


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=parse_flags)
