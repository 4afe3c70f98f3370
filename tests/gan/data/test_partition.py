"""Partitions are partitions, and skewed the way their name says."""

import contextlib
import pathlib

import hypothesis
import jax
import matplotlib.figure
import matplotlib.image
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxsp.gan.data import partition

LABELS = np.arange(1000, dtype=np.int32) % 10


def assert_partition(parts, examples, workers, min_size=1):
    assert len(parts) == workers
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(examples))
    assert min(len(part) for part in parts) >= min_size
    assert all((np.diff(part) > 0).all() for part in parts)


labelled = st.lists(st.integers(0, 6), min_size=1, max_size=60).map(np.array)
seeds = st.integers(0, 2**32 - 1)


@hypothesis.given(labelled, st.data(), seeds)
def test_iid_deals_equal_shares(labels, data, seed):
    workers = data.draw(st.integers(1, len(labels)))
    parts = partition.iid(labels, workers, seed=seed)
    assert_partition(parts, len(labels), workers)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


@hypothesis.given(labelled, st.data(), seeds, st.floats(5e-324, 1.7e308))
def test_dirichlet_deals_each_example_once(labels, data, seed, alpha):
    workers = data.draw(st.integers(1, len(labels)))
    min_size = data.draw(st.integers(1, len(labels) // workers))
    parts = partition.dirichlet(
        labels, workers, alpha=alpha, seed=seed, min_size=min_size
    )
    assert_partition(parts, len(labels), workers, min_size)


@hypothesis.given(labelled, st.data())
def test_by_label_deals_whole_classes(labels, data):
    classes, counts = np.unique(labels, return_counts=True)
    workers = data.draw(st.integers(1, len(classes) * counts.min()))
    parts = partition.by_label(labels, workers)
    assert_partition(parts, len(labels), workers)
    held = (partition.table(labels, parts) > 0)[:, classes]
    per_worker, per_class = held.sum(axis=1), held.sum(axis=0)
    if workers <= len(classes):
        assert (per_class == 1).all()
        assert np.ptp(per_worker) <= 1
    else:
        assert (per_worker == 1).all()
        assert np.ptp(per_class) <= 1
    # Blocks are contiguous: workers in order hold classes in order.
    assert (np.diff(np.argmax(held, axis=1)) >= 0).all()


def test_by_label_label_sets():
    def sets(workers):
        parts = partition.by_label(LABELS, workers)
        return [sorted(set(LABELS[part].tolist())) for part in parts]

    assert sets(1) == [list(range(10))]
    assert sets(4) == [[0, 1, 2], [3, 4, 5], [6, 7], [8, 9]]
    assert sets(12) == [[0], [0], [1], [1], *([c] for c in range(2, 10))]
    parts = partition.by_label(LABELS, 12)
    assert [len(part) for part in parts] == [50] * 4 + [100] * 8


def test_seed_fixes_the_partition():
    for name in ("iid", "dirichlet:0.5"):
        deal = partition.parse(name)
        first, again, other = (deal(LABELS, 5, seed=s) for s in (1, 1, 2))
        jax.tree.map(np.testing.assert_array_equal, first, again)
        assert any(set(a) != set(b) for a, b in zip(first, other, strict=True))


def test_iid_is_not_sorted_by_class():
    ordered = np.repeat(np.arange(10), 100)
    counts = partition.table(ordered, partition.iid(ordered, 4, seed=0))
    # Hypergeometric with mean 25 and standard deviation 4.1.
    assert (np.abs(counts - 25) < 17).all()
    assert np.ptp(counts) > 2


def test_dirichlet_proportions_have_the_moments_of_dirichlet():
    # Of Dir(α, ..., α) over W workers: mean 1/W, variance (W − 1) / (W² (W α + 1)).
    workers, classes, size = 4, 500, 100
    labels = np.repeat(np.arange(classes), size)
    for alpha in (0.1, 1.0, 10.0):
        parts = partition.dirichlet(labels, workers, alpha=alpha, seed=0)
        proportions = partition.table(labels, parts) / size
        variance = (workers - 1) / (workers**2 * (workers * alpha + 1))
        error = 5 * np.sqrt(variance / classes)
        np.testing.assert_allclose(proportions.mean(axis=1), 1 / workers, atol=error)
        np.testing.assert_allclose(proportions.var(), variance, rtol=0.12)


def test_dirichlet_concentrates_and_evens_out():
    def counts(alpha):
        parts = partition.dirichlet(LABELS, 4, alpha=alpha, seed=3)
        return partition.table(LABELS, parts)

    assert (counts(1e-6).max(axis=0) >= 99).all()
    for alpha in (1e9, 1.7e308):
        assert np.abs(counts(alpha) - 25).max() <= 1


def test_dirichlet_examples_of_a_class_are_shuffled():
    labels = np.zeros(1000, int)
    parts = partition.dirichlet(labels, 2, alpha=1e9, seed=0)
    assert abs(parts[0].mean() - 499.5) < 60


def test_major_classes_make_up_their_share():
    """The paper's partition: 4 parts, two major classes of 30 %, the rest evenly."""
    labels = np.arange(50_000, dtype=np.int32) % 10
    parts = partition.major_classes(labels, 4, seed=3)
    assert_partition(parts, 50_000, 4)
    counts = partition.table(labels, parts)
    np.testing.assert_allclose(counts.sum(1), 12_500, atol=5)
    for worker, row in enumerate(counts):
        assert row[2 * worker : 2 * worker + 2].sum() == pytest.approx(3750, abs=2)
        rest = np.delete(row, [2 * worker, 2 * worker + 1])
        assert rest.max() < 1.25 * rest.min()
    again = partition.major_classes(labels, 4, seed=4)
    assert any((a != b).any() for a, b in zip(parts, again, strict=True))


@hypothesis.given(labelled, st.data(), seeds, st.floats(0.01, 1))
def test_major_classes_are_a_partition_or_refused(labels, data, seed, share):
    workers = data.draw(st.integers(1, len(labels)))
    parts = None
    with contextlib.suppress(ValueError):
        parts = partition.major_classes(labels, workers, share=share, seed=seed)
    if parts is not None:
        assert_partition(parts, len(labels), workers)


def test_a_share_that_the_classes_do_not_have_is_refused():
    with pytest.raises(ValueError, match=r"share must be at most 0\.8 with 10 classes"):
        partition.major_classes(LABELS, 4, share=0.9, seed=0)
    with pytest.raises(ValueError, match="share must be above 0"):
        partition.major_classes(LABELS, 4, share=0.0, seed=0)


def test_parse_passes_the_major_share_on():
    for text, share in (("major_classes", 0.3), ("major_classes:0.5", 0.5)):
        got = partition.parse(text)(LABELS, 4, seed=5)
        expected = partition.major_classes(LABELS, 4, share=share, seed=5)
        jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_parse_passes_the_concentration_on():
    expected = {"by_label": partition.by_label(LABELS, 3)}
    for text in ("dirichlet:0.3", "dirichlet(0.3)", " dirichlet:3e-1 "):
        expected[text] = partition.dirichlet(LABELS, 3, alpha=0.3, seed=5)
    for text, parts in expected.items():
        got = partition.parse(text)(LABELS, 3, seed=5)
        jax.tree.map(np.testing.assert_array_equal, got, parts)


def test_parse_passes_the_least_share_on():
    given = dict(alpha=0.01, seed=5)
    for text, default, least in (
        ("dirichlet:0.01:20", 1, 20),
        ("dirichlet:0.01:20", 30, 20),
        ("dirichlet:0.01", 30, 30),
        ("dirichlet:0.01", 1000, 100),  # more than there are
    ):
        got = partition.parse(text, default)(LABELS, 10, seed=5)
        expected = partition.dirichlet(LABELS, 10, min_size=least, **given)
        jax.tree.map(np.testing.assert_array_equal, got, expected)
        assert min(map(len, got)) == least


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dirichlet:0.3:0", "a least share as in dirichlet:0.3:50"),
        ("dirichlet:0.3:", "a least share"),
        ("dirichlet:0.3:2.5", "a least share"),
        ("dirichlet:x:2", "ALPHA positive and finite"),
        ("dirchlet:0.3", "did you mean 'dirichlet'"),
        ("by-label", "did you mean 'by_label'"),
        ("", "iid, by_label, major_classes:SHARE .* or dirichlet:ALPHA"),
        ("major_classes:2", "a share of at most 1"),
        ("major_class", "did you mean 'major_classes'"),
        ("dirichlet", "dirichlet:ALPHA"),
        ("iid:3", "got 'iid:3'$"),
        ("dirichlet:0.3)", "as in dirichlet:0.3"),
        ("dirichlet:x", "ALPHA positive and finite"),
        ("dirichlet:0", "ALPHA positive and finite"),
        ("dirichlet:nan", "ALPHA positive and finite"),
        ("dirichlet:inf", "ALPHA positive and finite"),
    ],
)
def test_parse_refuses(text, message):
    with pytest.raises(ValueError, match=message):
        partition.parse(text)


def test_impossible_partitions_are_refused():
    with pytest.raises(ValueError, match="workers must be at most 1000, got 1001"):
        partition.iid(LABELS, 1001, seed=0)
    with pytest.raises(ValueError, match="workers must be"):
        partition.by_label(LABELS, 0)
    with pytest.raises(
        ValueError, match="labels must be an array of integers in 1 dim"
    ):
        partition.iid(np.zeros((3, 2), int), 2, seed=0)
    with pytest.raises(ValueError, match=r"labels must be .* integers"):
        partition.by_label(np.zeros(3), 2)
    with pytest.raises(ValueError, match="min_size must be at most 333, got 334"):
        partition.dirichlet(LABELS, 3, alpha=1.0, seed=0, min_size=334)
    for alpha in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="alpha must be finite and above 0"):
            partition.dirichlet(LABELS, 3, alpha=alpha, seed=0)
    with pytest.raises(ValueError, match="class 0 goes to 2 but has 1 examples"):
        partition.by_label(np.array([0, 1, 1, 1]), 3)


PARTS = [np.array([4]), np.array([0, 2, 5]), np.array([1, 3])]


def test_stack_pads_with_zeros():
    images = np.arange(1, 25, dtype=np.uint8).reshape(6, 2, 2)
    shares, sizes = partition.stack(images, PARTS)
    assert shares.shape == (3, 3, 2, 2)
    assert shares.dtype == np.uint8
    assert sizes.dtype == np.int32
    assert sizes.tolist() == [1, 3, 2]
    for share, size, part in zip(shares, sizes, PARTS, strict=True):
        np.testing.assert_array_equal(share[:size], images[part])
        assert not share[size:].any()


def test_some_workers_shares_are_rows_of_all(tmp_path):
    """As a process stacks them, from a file of which it reads those rows only."""
    np.save(tmp_path / "images.npy", np.arange(24, dtype=np.uint8).reshape(6, 4))
    images = np.load(tmp_path / "images.npy", mmap_mode="r")
    shares, sizes = partition.stack(images, PARTS)
    for some in ([0], [2, 0], []):
        mine, held = partition.stack(images, [PARTS[m] for m in some], rows=3)
        assert mine.shape == (len(some), 3, 4)
        np.testing.assert_array_equal(mine, shares[some])
        np.testing.assert_array_equal(held, sizes[some])
        assert held.dtype == np.int32
    with pytest.raises(ValueError, match="rows must be at least 3, got 2"):
        partition.stack(images, PARTS, rows=2)


def test_stack_refuses_an_empty_share():
    with pytest.raises(ValueError, match="every worker"):
        partition.stack(np.arange(2), [])
    with pytest.raises(ValueError, match=r"every worker an example.*\[2, 0\]"):
        partition.stack(np.arange(2), [np.arange(2), np.arange(0)])


def test_table_and_its_text():
    labels = np.array([0, 0, 2, 2, 2])
    counts = partition.table(labels, [np.array([0, 2]), np.array([1, 3, 4])])
    np.testing.assert_array_equal(counts, [[1, 0, 1], [1, 0, 2]])
    assert partition.format_table(counts * 10_000).splitlines() == [
        "worker     0     1     2  total",
        "     0 10000     0 10000  20000",
        "     1 10000     0 20000  30000",
        " total 20000     0 30000  50000",
    ]


def test_plot_writes_one_picture_whose_darkest_cell_is_the_largest(tmp_path):
    counts = np.zeros((4, 10), int)
    counts[3, 9] = 7
    partition.plot(counts, tmp_path / "shares.png")
    assert [path.name for path in tmp_path.iterdir()] == ["shares.png"]
    picture = matplotlib.image.imread(tmp_path / "shares.png")[..., :3]
    # Without the colour bar, which begins at 0.88: dark blue at the lower right.
    height, width = picture.shape[:2]
    blue = (picture[..., 2] > 0.3) & (picture[..., 0] < 0.1)
    rows, columns = np.nonzero(blue[:, : int(0.86 * width)])
    assert rows.min() > height / 2
    assert columns.min() > width / 2


def test_plot_leaves_the_old_picture_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "shares.png"
    path.write_text("old")

    def fill_the_disk(self, written, **kwargs):
        pathlib.Path(written).write_text("half a pic")
        raise OSError("no space left on device")

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", fill_the_disk)
    with pytest.raises(OSError, match="no space"):
        partition.plot(np.eye(2, dtype=int), path)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["shares.png"]


def test_plot_refuses_an_unknown_format(tmp_path):
    with pytest.raises(ValueError, match="txt"):
        partition.plot(np.eye(2, dtype=int), tmp_path / "shares.txt")
    assert not list(tmp_path.iterdir())
