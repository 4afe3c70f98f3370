"""Scores between two sets of features, each against a plain loop in float64."""

import tracemalloc

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxsp.gan import scores
from jaxsp.gan.scores import batches, neighbors, statistics

SEEDS = st.integers(0, 2**32 - 1)


# kernel distance


def mmd_by_loops(x, y):
    def k(a, b):
        return (sum(a * b) / len(a) + 1) ** 3

    n, m = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j)
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j)
    xy = sum(k(a, b) for a in x for b in y)
    return xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy / (n * m)


def test_kernel_distance_against_loops():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((9, 4)), 1 + rng.standard_normal((9, 4))
    wanted = mmd_by_loops(x, y)
    whole = scores.kernel_distance(x, y, subsets=3)
    np.testing.assert_allclose(whole.mean, wanted, rtol=1e-11)
    single = scores.kernel_distance(x.astype(np.float32), y.astype(np.float32))
    np.testing.assert_allclose(single.mean, wanted, rtol=1e-5)

    found = scores.kernel_distance(x, y, subsets=4, size=4, seed=7)
    rng, values = np.random.default_rng(7), []
    for _ in range(4):
        rows = [rng.choice(9, 4, replace=False) for _ in "xy"]
        values.append(mmd_by_loops(x[rows[0]], y[rows[1]]))
    wanted = (np.mean(values), np.std(values))
    np.testing.assert_allclose(found, wanted, rtol=1e-10)


@pytest.mark.parametrize("size", [31, 60, 1000])
def test_spread_of_the_kernel_distance_where_subsets_are_alike(size):
    """It is about that of the whole estimate, which is known here from many."""
    means, spreads = [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        x, y = rng.standard_normal((60, 3)), 0.5 + rng.standard_normal((90, 3))
        whole = scores.kernel_distance(x, y, subsets=30)
        found = scores.kernel_distance(x, y, subsets=30, size=size)
        means.append(whole.mean)
        spreads.append(found.std)
    assert 0.7 < np.mean(spreads) / np.std(means) < 1.5


def test_spread_of_the_kernel_distance_of_few_rows():
    x = np.random.default_rng(0).standard_normal((9, 3))
    assert scores.kernel_distance(x, 1 + x[:4]).std > 0
    for rows in (2, 3):
        with pytest.raises(ValueError, match=f"at least 4 rows, got 9 and {rows}"):
            scores.kernel_distance(x, x[:rows])


@pytest.mark.parametrize("d", [1, 5, 64])
@pytest.mark.parametrize("count", [1, 2, 7, 500])
def test_what_is_a_distance_is_not_negative(d, count):
    """Of a set to itself, where rounding might take it below 0."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        points = 10.0 ** rng.integers(-6, 6) * rng.standard_normal((count, d))
        _, mean, _ = moments = scores.Moments.of(points)
        pair = mean, moments.covariance
        found = scores.frechet_distance(*pair, *pair)
        assert 0 <= found <= 1e-9 * (points**2).sum()
        assert scores.expected_frechet_distance(pair[1], count) >= 0
    assert scores.classifier_score(np.full((count, 10), 0.1)) >= 1


def test_kernel_distance_is_unbiased():
    """0 on average for samples of one distribution, even for few of them."""
    values = []
    for seed in range(400):
        x, y = np.random.default_rng(seed).standard_normal((2, 6, 3))
        values.append(scores.kernel_distance(x, y, subsets=1).mean)
    error = np.std(values) / len(values) ** 0.5
    assert abs(np.mean(values)) < 4 * error
    # the estimate with the diagonals would be about 1 off
    assert error < 0.1
    assert min(values) < 0


# neighbours


def near_by_loops(points, k):
    rows = []
    for i, p in enumerate(points):
        others = [np.linalg.norm(p - q) for j, q in enumerate(points) if j != i]
        rows.append(sorted(others)[:k])
    return np.array(rows)


def scores_by_loops(real, samples, k, k_coverage):
    radius, radius_samples = near_by_loops(real, k), near_by_loops(samples, k)
    radius_coverage = near_by_loops(real, k_coverage)[:, -1]
    radius, radius_samples = radius[:, -1], radius_samples[:, -1]

    def far(i, j):
        return np.linalg.norm(real[i] - samples[j])

    n, m = range(len(real)), range(len(samples))
    return (
        np.mean([any(far(i, j) <= radius[i] for i in n) for j in m]),
        np.mean([any(far(i, j) <= radius_samples[j] for j in m) for i in n]),
        sum(far(i, j) <= radius_coverage[i] for i in n for j in m)
        / (k_coverage * len(samples)),
        np.mean([any(far(i, j) <= radius_coverage[i] for j in m) for i in n]),
    )


@pytest.mark.parametrize("block", [2**26, 8 * 40 * 7])  # whole, and rows by sevens
@pytest.mark.parametrize("d", [1, 3, 20])
def test_neighbor_scores_against_loops(d, block, monkeypatch):
    monkeypatch.setattr(neighbors, "_BLOCK_BYTES", block)
    rng = np.random.default_rng(d)
    real = 5 + rng.standard_normal((40, d))
    samples = 5 + 0.7 * rng.standard_normal((31, d)) + 0.5
    found = scores.neighbor_distances(real, 5)
    np.testing.assert_allclose(found, near_by_loops(real, 5), rtol=1e-9)
    for k, k_coverage in ((3, 5), (5, 2)):
        wanted = scores_by_loops(real, samples, k, k_coverage)
        got = scores.neighbor_scores(real, samples, k, k_coverage)
        np.testing.assert_allclose(got, wanted, rtol=1e-12)
        again = scores.neighbor_scores(real, samples, k, k_coverage, found)
        assert again == got


@pytest.mark.parametrize("d", [2, 600])  # in float64 and in float32
def test_neighbor_scores_of_identical_sets(d):
    points = 3 + np.random.default_rng(0).standard_normal((50, d))
    points[:9] = points[0]  # nine at one place: balls of radius 0 hold them all
    got = scores.neighbor_scores(points.astype(np.float32), points.astype(np.float32))
    assert (got.precision, got.recall, got.coverage) == (1, 1, 1)
    assert got.density >= 1


@pytest.mark.parametrize("d", [20, 600])
def test_a_sample_on_a_ball_of_radius_zero_is_inside(d):
    """Whatever rounding makes of the distance."""
    for seed in range(10):
        points = 3 + np.random.default_rng(seed).standard_normal((50, d))
        sixfold = np.repeat(points, 6, axis=0)
        assert scores.neighbor_scores(sixfold, points[:33]).precision == 1


def test_neighbor_scores_tell_poor_samples_from_uniform_ones():
    rng = np.random.default_rng(0)
    real = rng.standard_normal((300, 2))
    apart = scores.neighbor_scores(real, real + 100)
    assert apart == (0, 0, 0, 0)
    collapsed = scores.neighbor_scores(real, 0.01 * rng.standard_normal((300, 2)))
    assert collapsed.precision == 1
    assert max(collapsed.recall, collapsed.coverage) < 0.2
    fresh = scores.neighbor_scores(real, rng.standard_normal((300, 2)))
    assert min(fresh.precision, fresh.recall, fresh.coverage) > 0.8
    assert 0.8 < fresh.density < 1.2


@pytest.mark.parametrize("bad", [0, -1, 2.0, True, "3", None])
def test_numbers_of_neighbours_are_whole_and_positive(bad):
    x = np.random.default_rng(0).standard_normal((9, 3))
    for name in ("k", "k_coverage"):
        with pytest.raises(ValueError, match=rf"^{name} must be (an integer|at least)"):
            scores.neighbor_scores(x, x, **{name: bad})
    with pytest.raises(ValueError, match=r"^k must be"):
        scores.neighbor_distances(x, bad)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_neighbours_of_points_that_are_not_finite(bad):
    x = np.random.default_rng(0).standard_normal((9, 3))
    spoilt = x.copy()
    spoilt[4, 1] = bad
    known = scores.neighbor_distances(x, 5)
    with pytest.raises(ValueError, match="real must be finite, got row 4 of 9"):
        scores.neighbor_scores(spoilt, x, real_distances=known)
    with pytest.raises(ValueError, match="samples must be finite, got row 4 of 9"):
        scores.neighbor_scores(x, spoilt)
    with pytest.raises(ValueError, match="points must be finite, got row 4 of 9"):
        scores.neighbor_distances(spoilt, 2)


# the bias of the Fréchet distance


def simulated(values, count, repeats):
    """Mean Fréchet distance of samples of N(0, diag(values)), and its error."""
    rng, found = np.random.default_rng(0), []
    covariance = np.diag(values)
    for _ in range(repeats):
        points = np.sqrt(values) * rng.standard_normal((count, len(values)))
        mean, here = np.zeros(len(values)), scores.Moments.of(points)
        score = scores.frechet_distance(mean, covariance, here.mean, here.covariance)
        found.append(score)
    return np.mean(found), np.std(found) / repeats**0.5


@pytest.mark.parametrize("count", [2, 5, 12, 30, 31, 100, 500])
@pytest.mark.parametrize("values", [np.ones(30), 0.8 ** np.arange(30.0)])
def test_expected_frechet_distance_against_simulation(values, count):
    wanted, error = simulated(values, count, 80)
    got = scores.expected_frechet_distance(np.diag(values), count)
    tolerance = 0.03 if count >= 10 else 0.15
    assert abs(got - wanted) < tolerance * wanted + 3 * error


def expansion(values, count):
    """The mean and Σ_ij E_ij² / 2(λ_i + λ_j), for E the error of the covariance."""
    pairs = values[:, None] * values / (values[:, None] + values)
    free = count - 1
    return values.sum() / count + (pairs.sum() / 2 + values.sum() / 4) / free


@pytest.mark.parametrize("values", [np.ones(30), 0.8 ** np.arange(30.0), np.ones(1)])
def test_expected_frechet_distance_is_its_expansion_for_many_samples(values):
    got = scores.expected_frechet_distance(np.diag(values), 10**6)
    np.testing.assert_allclose(got, expansion(values, 10**6), rtol=1e-3)


def test_expected_frechet_distance_at_its_ends():
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.standard_normal((6, 6)))
    values = np.array([3.0, 2, 1, 0.1, 0, 0])
    turned = (q * values) @ q.T
    for count in (3, 50):  # no matter how it lies, nor in what space
        wanted = scores.expected_frechet_distance(np.diag(values[:4]), count)
        got = scores.expected_frechet_distance(turned, count)
        np.testing.assert_allclose(got, wanted, rtol=1e-6)
        scaled = scores.expected_frechet_distance(7 * turned, count)
        np.testing.assert_allclose(scaled, 7 * wanted, rtol=1e-6)
    # one sample: E|p - m|² + tr C;  and no spread, no bias
    assert scores.expected_frechet_distance(np.diag(values), 1) == 2 * values.sum()
    assert scores.expected_frechet_distance(np.zeros((3, 3)), 9) == 0


# statistics of streams


@hypothesis.given(SEEDS, st.lists(st.integers(1, 30), min_size=1, max_size=8))
@hypothesis.settings(max_examples=40)
def test_statistics_do_not_depend_on_batches_or_order(seed, sizes):
    rng = np.random.default_rng(seed)
    points = 1e3 + rng.standard_normal((sum(sizes), 3))
    gathered = []
    for order in (slice(None), rng.permutation(len(points))):
        gathered.append(statistics.Statistics())
        for part in np.split(points[order], np.cumsum(sizes)[:-1]):
            gathered[-1].add(part)
    mean = points.mean(0)
    scatter = (points - mean).T @ (points - mean)
    for found in gathered:
        assert found.moments.count == len(points)
        np.testing.assert_allclose(found.moments.mean, mean, rtol=1e-13)
        np.testing.assert_allclose(found.moments.scatter, scatter, atol=1e-9)
    np.testing.assert_array_equal(gathered[0].kept, points)


def test_what_is_kept_is_spread_over_an_array_and_the_first_of_a_stream(monkeypatch):
    monkeypatch.setattr(statistics, "KEPT", 4)
    points = np.arange(10.0)[:, None]
    kept = {}
    for total in (None, 10):
        found = statistics.Statistics(total)
        for part in np.split(points, [3, 4, 9]):
            found.add(part)
        kept[total] = found.kept[:, 0].tolist()
    assert kept == {None: [0, 1, 2, 3], 10: [2, 4, 7, 9]}


def test_blocks_are_equal_however_samples_come(monkeypatch):
    monkeypatch.setattr(batches, "BLOCK", 10)
    points = np.arange(23)
    wanted = [points[:10].tolist(), points[10:20].tolist(), points[20:].tolist()]
    parts = np.split(points, [1, 2, 15])
    for samples in (points, parts, iter(parts)):
        assert [b.tolist() for b in batches.blocks(samples, ())] == wanted


def test_memory_does_not_grow_with_the_samples(monkeypatch):
    monkeypatch.setattr(statistics, "KEPT", 1000)

    def peak(count):
        gatherer, rng = statistics.Statistics(), np.random.default_rng(0)
        tracemalloc.start()
        for _ in range(count // 250):
            gatherer.add(rng.random((250, 60), np.float32))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(20_000) < 1.2 * peak(4_000)


# classes


def test_class_coverage():
    got = scores.class_coverage([10, 0, 30, 0], [50, 25, 25, 0])
    np.testing.assert_array_equal(got, [0.5, 0, 3, np.nan])


def test_classes_covered_has_a_threshold():
    assert scores.classes_covered([138, 2, 0, 0, 0, 0, 0, 0, 0, 0]) == 2
    assert scores.classes_covered([139, 1, 0, 0, 0, 0, 0, 0, 0, 0]) == 1
    assert scores.classes_covered([1, 0, 0]) == 1


ONES, GAUSS = np.ones((9, 3)), (np.zeros(3), np.eye(3))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("kernel_distance", (ONES, ONES[:, 1:]), r"x must be \[n, d\]"),
        ("kernel_distance", (ONES, ONES[:1]), "at least 4 rows, got 9 and 1"),
        ("kernel_distance", (ONES, ONES, 0), "subsets must be at least 1"),
        ("neighbor_scores", (ONES, ONES[:, 1:]), r"real must be \[n, d\]"),
        ("neighbor_scores", (ONES, ONES[:3]), "more than k = 3"),
        ("neighbor_scores", (ONES, ONES, 3, 5, ONES), r"real_distances .*\[9, >= 5\]"),
        ("frechet_distance", (*GAUSS, ONES[:, 0], np.eye(3)), r"mean2 .* shape \(9,\)"),
        ("frechet_distance", (ONES, np.eye(3), *GAUSS), "mean1"),
        ("frechet_distance", (*GAUSS, np.zeros(3), np.eye(3) * np.nan), "cov2 must be"),
        ("expected_frechet_distance", (ONES[:3], 0), "count must be at least 1"),
        ("expected_frechet_distance", (ONES[0], 5), "covariance must be"),
        ("class_coverage", ([1, 2], [1, 1, 1]), "counts and data_counts must be"),
        ("class_coverage", ([0, 0], [1, 1]), "counts and data_counts must be"),
        ("mode_coverage", (ONES, ONES, 0.0), "std must be positive"),
        ("mode_coverage", (ONES[:, 1:], ONES, 0.1), "points must be"),
    ],
)
def test_what_does_not_fit_is_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(scores, name)(*arguments)
