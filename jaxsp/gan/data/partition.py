"""Who holds which examples: partitions of a labelled data set among workers.

A partition is a list with one array of indices for each worker, sorted; every example
is on exactly one worker, and every worker holds at least one. All of it is NumPy and is
fixed by its arguments. `iid`, `dirichlet`, `by_label` and `major_classes` make one of

    labels: integers [N].
    workers: number of shares, in 1..N.
    seed: of all that is random.

and raise a `ValueError` if these do not fit.
"""

import contextlib
import difflib
import functools
import os
import pathlib
import re
from collections.abc import Callable, Sequence

import numpy as np

from jaxsp._arguments import (
    check_array,
    check_count,
    check_instance,
    check_positive,
    check_probability,
    check_seed,
    refuse,
)
from jaxsp.gan import files

__all__ = [
    "by_label",
    "dirichlet",
    "format_table",
    "iid",
    "major_classes",
    "parse",
    "plot",
    "stack",
    "table",
]

Parts = list[np.ndarray]


def iid(labels: np.ndarray, workers: int, *, seed: int) -> Parts:
    """Deals a random permutation of the examples in equal shares.

    The sizes of the shares differ by at most one; of the labels only their number
    matters.
    """
    labels = _checked(labels, workers)
    order = np.random.default_rng(check_seed(seed)).permutation(len(labels))
    return [np.sort(part) for part in np.array_split(order, workers)]


def dirichlet(
    labels: np.ndarray, workers: int, *, alpha: float, seed: int, min_size: int = 1
) -> Parts:
    r"""Splits each class in random proportions.

    $$p_c \sim \mathrm{Dir}(\alpha, \dots, \alpha) \quad \text{for each class } c,$$

    and worker $m$ gets the share $p_{cm}$ of class $c$. Small $\alpha$ puts a class on
    few workers, large $\alpha$ spreads it evenly. While a worker holds fewer than
    `min_size` examples, a random one moves to it from the worker that then holds most.
    (The published recipes draw again instead, which for small $\alpha$ may never end.)

    Args: those of every partition, and
      alpha: concentration $\alpha > 0$.
      min_size: least number of examples of a worker, at least 1.

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
    check_positive("alpha", alpha)
    check_count("min_size", min_size, maximum=len(labels) // workers)
    rng = np.random.default_rng(check_seed(seed))
    alphas = np.full(workers, min(alpha, 1e100))  # larger ones overflow
    owner = _deal(labels, lambda index: rng.dirichlet(alphas), rng)
    for worker in range(workers):
        while np.count_nonzero(owner == worker) < min_size:
            donor = np.argmax(np.bincount(owner))
            owner[rng.choice(np.flatnonzero(owner == donor))] = worker
    return [np.flatnonzero(owner == worker) for worker in range(workers)]


def by_label(labels: np.ndarray, workers: int) -> Parts:
    """Deals whole classes in contiguous blocks: the most unequal split.

    With more workers than classes, each class is split evenly among as many workers as
    its turn gives it, and a worker has one class. The numbers of classes per worker, or
    of workers per class, differ by at most one.

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
    turns = np.array_split(np.arange(workers), len(classes))
    for label, holders in zip(classes, map(len, turns), strict=True):
        members = np.flatnonzero(labels == label)
        if len(members) < holders:
            raise ValueError(
                f"workers must be fewer: with {workers} of them, class {label} goes to "
                f"{holders} but has {len(members)} examples."
            )
        parts += [members[i::holders] for i in range(holders)]
    return parts


def major_classes(
    labels: np.ndarray, workers: int, *, share: float = 0.3, seed: int
) -> Parts:
    r"""Gives each worker two major classes, and of the others some of all.

    Worker $m$ of $M$ has the classes $2m$ and $2m + 1$ (modulo their number $C$) as its
    major ones, of each $a = \text{share} \cdot C / 2M$; what is left of a class goes to
    the workers of which it is no major class, evenly. With balanced classes that no two
    workers share, the two make up `share` of a worker's examples and workers hold
    equally many.

    Args: those of every partition, and
      share: of a worker's examples, those of its major classes.

    Raises:
      ValueError: if `share` is not in (0, 1], or the major classes have too few
        examples for it.

    Example:
      >>> labels = np.arange(400) % 10
      >>> table(labels, major_classes(labels, 4, seed=0))[0]
      array([15, 15,  8,  8,  8,  8,  8,  8, 10, 10])

    References:
      Beznosikov, Samokhin, Gasnikov: Distributed saddle-point problems: lower bounds,
      near-optimal and robust algorithms. 2020. arXiv:2010.13112 (4 workers, 30 %)
    """
    labels = _checked(labels, workers)
    check_probability("share", share)
    classes = len(np.unique(labels))
    major = np.zeros((classes, workers), bool)
    for worker in range(workers):
        major[[2 * worker % classes, (2 * worker + 1) % classes], worker] = True
    own = share * classes / (2 * workers)
    holders = major.sum(1, keepdims=True)
    if own * holders.max() > 1:
        raise ValueError(
            f"share must be at most {share / (own * holders.max()):.3g} with {classes} "
            f"classes and {workers} workers, got {share}: there are no more examples "
            "of the major classes."
        )
    rest = (1 - own * holders) / np.maximum(workers - holders, 1)
    shares = np.where(major, own, rest)
    shares /= shares.sum(1, keepdims=True)  # where all have it as a major class
    rng = np.random.default_rng(check_seed(seed))
    owner = _deal(labels, lambda index: shares[index], rng)
    parts = [np.flatnonzero(owner == worker) for worker in range(workers)]
    if not all(map(len, parts)):
        raise ValueError(
            f"workers must be fewer: {workers} of them cannot share the classes of "
            f"{len(labels)} examples so."
        )
    return parts


def _deal(labels, shares, rng):
    """Who gets each example, with `shares(i)` of the i-th class for each worker."""
    owner = np.empty(len(labels), int)
    for index, label in enumerate(np.unique(labels)):
        members = rng.permutation(np.flatnonzero(labels == label))
        cuts = np.rint(np.cumsum(shares(index))[:-1] * len(members)).astype(int)
        for worker, part in enumerate(np.split(members, cuts)):
            owner[part] = worker
    return owner


def parse(text: str, min_size: int = 1) -> Callable[..., Parts]:
    """Reads a partition from a flag.

    It is `iid`, `by_label`, `dirichlet:ALPHA[:MIN_SIZE]` or `major_classes[:SHARE]`.

    Args:
      text: as above; `dirichlet(0.3)` is read as `dirichlet:0.3`.
      min_size: the least share of `dirichlet`, where the text gives none; less where
        there are not so many examples.

    Returns:
      A function `(labels, workers, *, seed) -> partition`; `by_label` ignores the seed.

    Raises:
      ValueError: if the text is none of these.

    Example:
      >>> parts = parse("dirichlet:0.3")(np.arange(60) % 3, 4, seed=0)
      >>> len(parts)
      4
    """
    check_instance("text", text, str, "a text, such as iid")
    check_count("min_size", min_size)
    text = text.strip()
    if text == "iid":
        return iid
    if text == "by_label":
        return lambda labels, workers, *, seed: by_label(labels, workers)
    if match := re.fullmatch(r"dirichlet(?::([^:]+)(?::0*([1-9]\d*))?|\((.+)\))", text):
        with contextlib.suppress(ValueError):
            alpha, least = float(match[1] or match[3]), match[2]
            if 0 < alpha < np.inf and least:
                return functools.partial(dirichlet, alpha=alpha, min_size=int(least))
            if 0 < alpha < np.inf:
                return lambda labels, workers, *, seed: dirichlet(
                    labels,
                    workers,
                    alpha=alpha,
                    seed=seed,
                    min_size=max(1, min(min_size, len(labels) // max(workers, 1))),
                )
    if match := re.fullmatch(r"major_classes(?::(.+))?", text):
        with contextlib.suppress(ValueError):
            share = float(match[1] or 0.3)
            if 0 < share <= 1:
                return functools.partial(major_classes, share=share)
    name = re.split("[:(]", text)[0]
    names = ("iid", "by_label", "dirichlet", "major_classes")
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near and near[0] != name else ""
    raise ValueError(
        "partition must be iid, by_label, major_classes:SHARE with a share of at most "
        "1, or dirichlet:ALPHA, ALPHA positive and finite as in dirichlet:0.3, perhaps "
        f"with a least share as in dirichlet:0.3:50; got {text!r}{hint}"
    )


def stack(
    array: np.ndarray, parts: Sequence[np.ndarray], rows: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Stacks the shares along a leading worker axis, padded with zeros at the end.

    The result takes workers · (largest share) rows of memory: for a very unequal
    partition, up to as many times the data set as there are workers.

    Args:
      array: [N, ...], images or labels. Of a memory-mapped file only the rows that
        are in `parts` are read.
      parts: a partition, or what some workers have of one.
      rows: how many rows each share is padded to; None is the largest share. With the
        parts of some workers it should be the largest share of all.

    Returns:
      shares: [workers, rows, ...], of the type of `array`.
      sizes: int32 [workers]: rows sizes[m], ... of shares[m] are padding.

    Raises:
      ValueError: if a worker holds nothing, so that it could draw nothing, or more
        than `rows`; or if there is no worker and `rows` is None.
    """
    array = np.asarray(array)
    parts = _checked_parts(parts, len(array) if array.ndim else 0)
    sizes = np.array([len(part) for part in parts], np.int32)
    if (rows is None and not sizes.size) or not sizes.all():
        raise ValueError(
            f"parts must give every worker an example, got sizes {sizes.tolist()}."
        )
    most = int(sizes.max(initial=0))
    rows = most if rows is None else check_count("rows", rows, minimum=most)
    shares = np.zeros((len(parts), rows, *array.shape[1:]), array.dtype)
    for share, part in zip(shares, parts, strict=True):
        share[: len(part)] = array[part]
    return shares, sizes


def table(labels: np.ndarray, parts: Sequence[np.ndarray]) -> np.ndarray:
    """Counts who holds how many examples of which class: integers [workers, classes].

    Args:
      labels: integers [N], from 0.
      parts: a partition of them.
    """
    labels = check_array("labels", labels, ndim=1, integer=True)
    parts = _checked_parts(parts, len(labels))
    if labels.size and labels.min() < 0:
        refuse("labels", "integers of at least 0", labels)
    classes = int(labels.max(initial=0)) + 1
    return np.stack([np.bincount(labels[part], minlength=classes) for part in parts])


def format_table(counts: np.ndarray) -> str:
    """Writes the counts of `table` as text, a line for each worker, with totals.

    Example:
      >>> print(format_table(np.array([[3, 0], [1, 12]])))
      worker   0   1  total
           0   3   0      3
           1   1  12     13
       total   4  12     16
    """
    counts = check_array("counts", counts, ndim=2, integer=True)
    full = np.vstack([counts, np.sum(counts, axis=0)])
    totals = full.sum(axis=1)
    heads = [*range(len(counts)), "total"]
    width = max(3, len(str(full.max())))
    end = max(5, len(str(totals.max())))
    lines = []
    rows = zip(heads, full, totals, strict=True)
    for head, cells, total in [("worker", range(full.shape[1]), "total"), *rows]:
        body = "".join(f" {cell:>{width}}" for cell in cells)
        lines.append(f"{head:>6}{body}  {total:>{end}}")
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

    counts = check_array("counts", counts, ndim=2, integer=True)
    check_instance("path", path, str | os.PathLike, "a path")
    path = pathlib.Path(path)
    workers, classes = counts.shape
    size = min(2 + 0.5 * classes, 16), min(1.2 + 0.35 * workers, 16)
    figure = Figure(figsize=size, layout="constrained")
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


def _checked_parts(parts, count: int) -> Parts:
    """Which of `count` examples each worker has, by index."""
    if not isinstance(parts, Sequence | np.ndarray):
        refuse("parts", "one array of indices for each worker", parts)
    checked = []
    for i, part in enumerate(parts):
        name = f"parts[{i}]"
        part = check_array(name, part, ndim=1, integer=True)
        if part.size and not 0 <= part.min() <= part.max() < count:
            refuse(name, f"indices of examples, from 0 to {count - 1}", part)
        checked.append(part)
    return checked


def _checked(labels: np.ndarray, workers: int) -> np.ndarray:
    """The labels as an array, if they can be shared among the workers."""
    labels = check_array("labels", labels, ndim=1, integer=True)
    check_count("workers", workers, maximum=len(labels))  # an example for each
    return labels
