"""Who holds which examples: partitions of a labelled data set among workers.

A partition is a list with one array of indices for each worker, sorted; every example
is on exactly one worker, and every worker holds at least one. All of it is NumPy and is
fixed by its arguments.
"""

import difflib
import functools
import os
import pathlib
import re
from collections.abc import Callable, Sequence

import numpy as np

from jaxsp._arguments import check_count
from jaxsp.gan import files

__all__ = [
    "by_label",
    "dirichlet",
    "format_table",
    "iid",
    "parse",
    "plot",
    "stack",
    "table",
]

_NAMES = ("iid", "by_label", "dirichlet")
_EXPECTED = "iid, by_label or dirichlet:ALPHA (for instance dirichlet:0.3)"

Parts = list[np.ndarray]


def iid(labels: np.ndarray, workers: int, *, seed: int) -> Parts:
    """Deals a random permutation of the examples in equal shares.

    Args:
      labels: integers [N]; only their number matters.
      workers: number of shares; their sizes differ by at most one.
      seed: of the permutation.

    Returns:
      Indices of each worker's examples.

    Raises:
      ValueError: if `workers` is not in 1..N.
    """
    labels = _checked(labels, workers)
    order = np.random.default_rng(seed).permutation(len(labels))
    return [np.sort(part) for part in np.array_split(order, workers)]


def dirichlet(
    labels: np.ndarray, workers: int, *, alpha: float, seed: int, min_size: int = 1
) -> Parts:
    """Splits each class in random proportions.

        p_c ~ Dir(α, ..., α) for each class c;  worker m gets the share p_cm of class c

    Small α puts a class on few workers, large α spreads it evenly. While a worker
    holds fewer than `min_size` examples, a random one moves to it from the worker that
    then holds most (the published recipes draw again instead, which for small α may
    never end).

    Args:
      labels: integers [N].
      workers: number of shares.
      alpha: concentration α > 0.
      seed: of the proportions and of which examples go where.
      min_size: least number of examples of a worker, at least 1.

    Returns:
      Indices of each worker's examples.

    Raises:
      ValueError: if `alpha` is not positive and finite, or there are fewer than
        workers · min_size examples.

    Example:
      >>> parts = dirichlet(np.arange(60) % 3, 2, alpha=0.1, seed=0)
      >>> table(np.arange(60) % 3, parts).sum(axis=0)
      array([20, 20, 20])

    References:
      Hsu, Qi, Brown: Measuring the effects of non-identical data distribution for
      federated visual classification. 2019. arXiv:1909.06335
      Yurochkin et al.: Bayesian nonparametric federated learning of neural networks.
      2019. arXiv:1905.12022 (this form, with the proportions drawn by class)
    """
    labels = _checked(labels, workers)
    if not 0 < alpha < np.inf:
        raise ValueError(f"alpha must be positive and finite; got {alpha}")
    if min_size < 1 or workers * min_size > len(labels):
        raise ValueError(
            f"min_size must be in 1..{len(labels) // workers} for {len(labels)} "
            f"examples on {workers} workers; got {min_size}"
        )
    rng = np.random.default_rng(seed)
    owner = np.empty(len(labels), int)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        p = rng.dirichlet(np.full(workers, min(alpha, 1e100)))  # larger ones overflow
        cuts = np.rint(np.cumsum(p)[:-1] * len(members)).astype(int)
        for worker, part in enumerate(np.split(members, cuts)):
            owner[part] = worker
    sizes = np.bincount(owner, minlength=workers)
    for worker in np.flatnonzero(sizes < min_size):
        while sizes[worker] < min_size:
            donor = np.argmax(sizes)
            owner[rng.choice(np.flatnonzero(owner == donor))] = worker
            sizes[donor] -= 1
            sizes[worker] += 1
    return [np.flatnonzero(owner == worker) for worker in range(workers)]


def by_label(labels: np.ndarray, workers: int) -> Parts:
    """Deals whole classes in contiguous blocks: the most unequal split.

    With more workers than classes, each class is split evenly among as many workers as
    its turn gives it, and a worker has one class. The numbers of classes per worker, or
    of workers per class, differ by at most one.

    Args:
      labels: integers [N].
      workers: number of shares.

    Returns:
      Indices of each worker's examples.

    Raises:
      ValueError: if a class has fewer examples than workers to split it among.

    Example:
      >>> table(np.arange(12) % 4, by_label(np.arange(12) % 4, 2))
      array([[3, 3, 0, 0],
             [0, 0, 3, 3]])
    """
    labels = _checked(labels, workers)
    classes = np.unique(labels)
    if workers <= len(classes):
        blocks = np.array_split(classes, workers)
        return [np.flatnonzero(np.isin(labels, block)) for block in blocks]
    parts = []
    for label, holders in zip(
        classes, np.array_split(np.arange(workers), len(classes)), strict=True
    ):
        members = np.flatnonzero(labels == label)
        if len(members) < len(holders):
            raise ValueError(
                f"workers must be fewer: with {workers} of them, class {label} goes to "
                f"{len(holders)} but has {len(members)} examples"
            )
        parts += [members[i :: len(holders)] for i in range(len(holders))]
    return parts


def parse(text: str) -> Callable[..., Parts]:
    """Reads a partition from a flag: `iid`, `by_label`, `dirichlet:ALPHA`.

    Args:
      text: as above; `dirichlet(0.3)` is read as `dirichlet:0.3`.

    Returns:
      A function (labels, workers, *, seed) -> indices of each worker's examples. The
      seed does nothing for `by_label`.

    Raises:
      ValueError: if the text is none of these.

    Example:
      >>> parts = parse("dirichlet:0.3")(np.arange(60) % 3, 4, seed=0)
      >>> len(parts)
      4
    """
    match = re.fullmatch(r"(\w+)(?::(\S*)|\((\S*)\))?", text.strip())
    name = match[1] if match else text
    number = match[2] or match[3] if match else None
    if name not in _NAMES:
        near = difflib.get_close_matches(name, _NAMES, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"partition must be {_EXPECTED}; got {text!r}{hint}")
    if (name == "dirichlet") != (number is not None):
        raise ValueError(
            f"partition must be {_EXPECTED}: dirichlet takes a number and the others "
            f"take none; got {text!r}"
        )
    if name == "iid":
        return iid
    if name == "by_label":
        return lambda labels, workers, *, seed: by_label(labels, workers)
    try:
        alpha = float(number or "")
    except ValueError:
        alpha = np.nan
    if not 0 < alpha < np.inf:
        raise ValueError(
            f"partition must be {_EXPECTED}, ALPHA positive and finite; got {text!r}"
        )
    return functools.partial(dirichlet, alpha=alpha)


def stack(
    array: np.ndarray, parts: Sequence[np.ndarray], rows: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Stacks the shares along a leading worker axis, padded with zeros at the end.

    The result takes workers · (largest share) rows of memory: for a very unequal
    partition, up to as many times the data set as there are workers.

    Args:
      array: [N, ...], images or labels. Of a memory-mapped file only the rows that
        are in `parts` are read.
      parts: indices of each worker's examples.
      rows: how many rows each share is padded to; None is the largest share. Where
        `parts` are those of some workers, it is the largest of all.

    Returns:
      shares: [workers, rows, ...], of the type of `array`.
      sizes: int32 [workers]: rows sizes[m], ... of shares[m] are padding.

    Raises:
      ValueError: if a worker holds nothing, so that it could draw nothing, or more
        than `rows`; or if there is no worker and `rows` is None.
    """
    array = np.asarray(array)
    sizes = np.array([len(part) for part in parts], np.int32)
    if (rows is None and not sizes.size) or not sizes.all():
        raise ValueError(
            f"parts must give every worker an example; got sizes {sizes.tolist()}"
        )
    most = int(sizes.max(initial=0))
    rows = most if rows is None else check_count("rows", rows, minimum=most)
    shares = np.zeros((len(parts), rows, *array.shape[1:]), array.dtype)
    for share, part in zip(shares, parts, strict=True):
        share[: len(part)] = array[part]
    return shares, sizes


def table(labels: np.ndarray, parts: Sequence[np.ndarray]) -> np.ndarray:
    """Counts who holds how many examples of which class.

    Args:
      labels: integers [N], from 0.
      parts: indices of each worker's examples.

    Returns:
      Integers [workers, classes].
    """
    labels = np.asarray(labels)
    classes = int(labels.max()) + 1
    return np.stack([np.bincount(labels[part], minlength=classes) for part in parts])


def format_table(counts: np.ndarray) -> str:
    """Writes the counts of `table` as text, with totals.

    Args:
      counts: integers [workers, classes].

    Returns:
      One line per worker under a line of class labels, and a line of totals.

    Example:
      >>> print(format_table(np.array([[3, 0], [1, 12]])))
      worker   0   1  total
           0   3   0      3
           1   1  12     13
       total   4  12     16
    """
    counts = np.asarray(counts)
    totals = counts.sum(axis=0)
    rows = [(str(worker), row) for worker, row in enumerate(counts)]
    rows = [("worker", range(len(totals))), *rows, ("total", totals)]
    ends = ["total", *counts.sum(axis=1), totals.sum()]
    width = max(3, len(str(totals.max())))
    end_width = max(5, len(str(totals.sum())))
    lines = []
    for (head, cells), end in zip(rows, ends, strict=True):
        body = "".join(f" {cell:>{width}}" for cell in cells)
        lines.append(f"{head:>6}{body}  {end:>{end_width}}")
    return "\n".join(lines)


def plot(counts: np.ndarray, path: str | os.PathLike) -> None:
    """Draws who holds what as a heat map, workers down and classes across.

    Args:
      counts: integers [workers, classes], from `table`.
      path: where the picture goes; the ending chooses the format, as in `x.png`.

    Raises:
      ValueError: if matplotlib writes no such format.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    counts = np.asarray(counts)
    path = pathlib.Path(path)
    workers, classes = counts.shape
    figure = Figure(
        figsize=(min(2 + 0.5 * classes, 16), min(1.2 + 0.35 * workers, 16)),
        layout="constrained",
    )
    axes = figure.subplots()
    image = axes.imshow(counts, cmap="Blues", vmin=0, aspect="auto")
    axes.set(xlabel="class", ylabel="worker")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=25, steps=[1, 2, 5, 10], integer=True))
    if counts.size <= 400:
        for (row, column), count in np.ndenumerate(counts):
            color = "white" if count > counts.max() / 2 else "black"
            axes.text(
                column, row, str(count), ha="center", va="center", color=color, size=7
            )
    figure.colorbar(image, label="examples")
    with files.replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format=path.suffix[1:] or "png")


def _checked(labels: np.ndarray, workers: int) -> np.ndarray:
    """The labels as an array, if they can be shared among the workers."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            "labels must be a one-dimensional array of integers; "
            f"got {labels.dtype} {list(labels.shape)}"
        )
    if not 1 <= workers <= len(labels):
        raise ValueError(
            f"workers must be in 1..{len(labels)}, the number of examples; "
            f"got {workers}"
        )
    return labels
