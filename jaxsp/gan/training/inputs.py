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
    """The shares of this process's workers, stacked, and how many examples each has.

    Of a class-conditional GAN the shares are a pair of samples and labels. All
    processes must call it.

    Raises:
      ValueError: if program, dataset and parts do not fit each other; if they or
        `others`, what else was given, are not the same in all processes.
    """
    said = {
        "batch_size": program.batch_size,
        "program": program.settings,
        "workers": (program.workers.count, program.workers.axis_name),
        "parts": list(parts),
        "dataset": (dataset.train.shape, np.asarray(dataset.train_labels)),
        **distributed.number_options(),
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
    """A checksum of all workers' data, of which each process has its workers' shares.

    All processes must call it.
    """
    sums = dict.fromkeys(workers.local, 0)
    for leaf in jax.tree.leaves(shares):
        for worker, row, size in zip(workers.local, leaf, sizes, strict=True):
            share = np.ascontiguousarray(row[:size]).data
            sums[worker] = zlib.crc32(share, sums[worker])
    every = distributed.combine(sums, workers.count)
    return zlib.crc32(every.astype("<u4").tobytes())
