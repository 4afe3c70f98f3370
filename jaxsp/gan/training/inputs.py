"""What a program is trained on: whether it fits, each worker's share, a checksum."""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxsp import distributed
from jaxsp.gan import data
from jaxsp.gan.data import partition
from jaxsp.gan.program import Program
from jaxsp.workers import Workers

__all__ = ["checksum", "prepare"]


def prepare(
    program: Program,
    dataset: data.Dataset,
    parts: Sequence[np.ndarray],
    others: Mapping[str, Any],
) -> tuple[Any, np.ndarray]:
    """The shares of this process's workers, stacked.

    All processes must call it.

    Args:
      program: what is run.
      dataset: what is learned.
      parts: for each worker the indices of its examples.
      others: what else all processes must have been given alike, by name.

    Returns:
      Shares, of images or of images and labels, and how many examples each has.

    Raises:
      ValueError: if these do not fit each other, or are others in another process.
    """
    said = {
        "batch_size": program.batch_size,
        "program": program.settings,
        "workers": (program.workers.count, program.workers.axis_name),
        "parts": list(parts),
        "dataset": (dataset.train.shape, np.asarray(dataset.train_labels)),
    }
    distributed.check_same("train", {**others, **said})
    with distributed.raise_together():
        _check(program, dataset, parts)
        rows = max(len(part) for part in parts)
        mine = [parts[m] for m in program.workers.local]
        shares, sizes = partition.stack(dataset.train, mine, rows)
        if program.gan.num_classes:
            labels = np.asarray(dataset.train_labels, np.int32)
            shares = shares, partition.stack(labels, mine, rows)[0]
        return shares, sizes


def _check(program, dataset, parts):
    gan, workers = program.gan, program.workers
    used = {device.process_index for device in workers.devices}
    if not program.idle_processes and len(used) < jax.process_count():
        raise ValueError(
            f"workers must live in all {jax.process_count()} processes, got some in "
            f"{sorted(used)} only: write jaxsp.Workers({workers.count}) without "
            "devices, or start fewer processes."
        )
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
    if program.batch_size > sizes[worker]:
        raise ValueError(
            f"batch_size must be at most {sizes[worker]}, as many examples as worker "
            f"{worker} holds, got {program.batch_size}."
        )
    if gan.num_classes and gan.num_classes != dataset.num_classes:
        raise ValueError(
            f"gan is conditional on {gan.num_classes} classes, but {dataset.name} has "
            f"{dataset.num_classes}: build it with num_classes={dataset.num_classes}."
        )


def checksum(shares: Any, sizes: np.ndarray, workers: Workers) -> int:
    """A checksum of all workers' data, of which each process has some.

    Args:
      shares: those of this process's workers, stacked.
      sizes: how many examples each has.
      workers: all workers.

    Returns:
      The checksum, the same in every process.
    """
    leaves, sums = jax.tree.leaves(shares), {}
    for row, (worker, size) in enumerate(zip(workers.local, sizes, strict=True)):
        crc = 0
        for leaf in leaves:
            crc = zlib.crc32(np.ascontiguousarray(leaf[row, :size]).data, crc)
        sums[worker] = crc
    every = distributed.combine(sums, workers.count)
    return zlib.crc32(every.astype("<u4").tobytes())
