import dataclasses
import logging
import os

import hypothesis
import jax
import numpy as np
import pytest
import scipy.linalg
from hypothesis import strategies as st

from jaxsp.gan import data, scores
from jaxsp.gan.data import datasets
from jaxsp.gan.scores import cache, classifier
from jaxsp.gan.scores.statistics import Statistics

SEEDS = st.integers(0, 2**32 - 1)


def spd(rng, d, rank=None):
    factor = rng.standard_normal((d, d if rank is None else rank))
    return factor @ factor.T / d


def gaussian(rng, d, rank=None):
    return rng.standard_normal(d), spd(rng, d, rank)


def distance(a, b):
    """The Fréchet distance of two sets of moments."""
    return scores.frechet_distance(a.mean, a.covariance, b.mean, b.covariance)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture(scope="module")
def evaluate(digits, tmp_path_factory):
    directory = tmp_path_factory.mktemp("digits")
    return scores.evaluator(digits, directory, progress=False)


@pytest.fixture
def small():
    """A data set too small to learn from, for the cache."""
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(40, 8, 8, 1)).astype(np.uint8)
    labels = (np.arange(40) % 3).astype(np.int32)
    return data.Dataset("small", images, labels, images[:10], labels[:10], 3)


@pytest.fixture
def trainings(monkeypatch):
    """Counts trainings, each of which returns the initial parameters scaled."""
    calls = []

    def train(params, dataset, progress):
        calls.append(dataset.name)
        return jax.tree.map(lambda p: (1 + 0.1 * len(calls)) * p, params)

    monkeypatch.setattr(classifier, "_train", train)
    return calls


# Fréchet distance


@pytest.mark.parametrize("d", [1, 3, 20])
def test_frechet_distance_against_scipy(d):
    rng = np.random.default_rng(d)
    (m1, c1), (m2, c2) = gaussian(rng, d), gaussian(rng, d)
    root = scipy.linalg.sqrtm(c1 @ c2).real
    wanted = ((m1 - m2) ** 2).sum() + np.trace(c1 + c2 - 2 * root)
    got = scores.frechet_distance(m1, c1, m2, c2)
    np.testing.assert_allclose(got, wanted, rtol=1e-8)


def test_frechet_distance_of_singular_covariances():
    zero, a, b = np.zeros(2), np.diag([4.0, 0.0]), np.diag([0.0, 9.0])
    assert scores.frechet_distance(zero, a, zero, b) == 13.0
    assert scores.frechet_distance(zero, a, zero, 0 * a) == 4.0
    assert scores.frechet_distance(zero, 0 * a, zero, 0 * a) == 0.0
    rng = np.random.default_rng(0)  # one line, two variances, in 30 dimensions
    v = rng.standard_normal(30)
    v /= np.linalg.norm(v)
    c = np.outer(v, v)
    got = scores.frechet_distance(np.zeros(30), 4 * c, np.zeros(30), 9 * c)
    np.testing.assert_allclose(got, (2 - 3) ** 2, rtol=1e-10)


def test_frechet_distance_of_orthogonal_subspaces_is_exact():
    """Square roots of rounding errors, 1e-8, must not enter."""
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.standard_normal((30, 30)))
    a, b = q[:, :10] @ q[:, :10].T, q[:, 10:] @ q[:, 10:].T
    got = scores.frechet_distance(np.zeros(30), a, np.zeros(30), b)
    np.testing.assert_allclose(got, 30, rtol=1e-12)


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_frechet_distance_to_itself_is_zero(rank):
    mean, covariance = gaussian(np.random.default_rng(0), 16, rank)
    got = scores.frechet_distance(mean, covariance, mean, covariance)
    assert 0 <= got < 1e-12 * np.trace(covariance)


@hypothesis.given(SEEDS, st.sampled_from([1, 2, 7]), st.booleans())
@hypothesis.settings(max_examples=50)
def test_frechet_distance_properties(seed, d, singular):
    rng = np.random.default_rng(seed)
    rank = max(1, d // 2) if singular else None
    (m1, c1), (m2, c2) = gaussian(rng, d, rank), gaussian(rng, d, rank)
    value = scores.frechet_distance(m1, c1, m2, c2)
    scale = np.trace(c1) + np.trace(c2) + m1 @ m1 + m2 @ m2
    assert value >= 0
    # no nearer than the means, no farther than through the two centers
    assert value >= ((m1 - m2) ** 2).sum() - 1e-10 * scale
    assert value <= ((m1 - m2) ** 2).sum() + np.trace(c1 + c2) + 1e-10 * scale
    swapped = scores.frechet_distance(m2, c2, m1, c1)
    q, _ = np.linalg.qr(rng.standard_normal((d, d)))
    turned = scores.frechet_distance(q @ m1, q @ c1 @ q.T, q @ m2, q @ c2 @ q.T)
    np.testing.assert_allclose([swapped, turned], value, atol=1e-7 * scale)


# moments


def test_moments_are_float64_and_of_one_point_too():
    moments = scores.Moments.of(np.ones((1, 2), np.float32))
    assert moments.mean.dtype == np.float64
    np.testing.assert_array_equal(moments.covariance, np.zeros((2, 2)))
    for points in (np.ones(3), np.ones((0, 3))):
        with pytest.raises(ValueError, match="points must be of shape"):
            scores.Moments.of(points)


# classifier score


def test_classifier_score_is_exact_at_its_ends():
    np.testing.assert_allclose(scores.classifier_score(np.eye(7)), 7, rtol=1e-12)
    same = np.tile([0.2, 0.8, 0.0], (9, 1))
    np.testing.assert_allclose(scores.classifier_score(same), 1, rtol=1e-12)
    two = scores.classifier_score(np.array([[0.9, 0.1], [0.1, 0.9]]))
    wanted = np.exp(0.9 * np.log(0.9 / 0.5) + 0.1 * np.log(0.1 / 0.5))
    np.testing.assert_allclose(two, wanted, rtol=1e-12)


@hypothesis.given(SEEDS, st.sampled_from([2, 5]))
@hypothesis.settings(max_examples=30)
def test_classifier_score_lies_between_1_and_classes(seed, classes):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(classes, 0.1), size=20)
    assert 1 - 1e-12 <= scores.classifier_score(p) <= classes + 1e-12


# mixtures


def test_mode_coverage_counts():
    centers = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = np.array([[0.1, 0.0], [0.0, 0.29], [0.0, 0.31], [10.0, 0.0], [5.0, 5.0]])
    found = scores.mode_coverage(points, centers, std=0.1)
    assert found.modes_covered == 2
    assert found.high_quality == 3 / 5
    np.testing.assert_array_equal(found.counts, [2, 1, 0])
    wide = scores.mode_coverage(points, centers, std=0.1, threshold=3.2)
    assert wide.high_quality == 4 / 5


def test_a_mode_is_covered_by_a_fair_share_of_all_samples():
    """At least a fifth of 1/modes; a smear that touches every mode covers none."""
    centers = 10.0 * np.arange(4)[:, None]
    smear = np.linspace(-5, 35, 4_001)[:, None]
    found = scores.mode_coverage(smear, centers, std=0.1)
    assert (found.counts > 0).all()
    assert found.modes_covered == 0
    n = 200  # of which a mode needs 10
    for k, covered in ((9, 3), (10, 4)):
        at = np.repeat(np.arange(4), [n - 40 - k, 20, 20, k])
        assert scores.mode_coverage(centers[at], centers, 0.1).modes_covered == covered


def test_evaluator_of_a_mixture():
    mixture = data.load("mixture_ring")
    evaluate = scores.evaluator(mixture)
    assert evaluate.floor["modes_covered"] == len(mixture.centers)
    assert evaluate.floor["high_quality"] > 0.98  # Rayleigh: 1 - exp(-9/2) = 0.9889
    assert evaluate.floor["frechet_distance"] < 1e-2
    collapsed = evaluate(np.tile(mixture.centers[:1], (50, 1)))
    assert collapsed["modes_covered"] == 1.0
    assert collapsed["high_quality"] == 1.0
    assert collapsed["frechet_distance"] > 100 * evaluate.floor["frechet_distance"]
    bad = evaluate(np.full((4, 2), np.inf))
    assert bad.keys() == collapsed.keys()
    assert np.isnan(list(bad.values())).all()


# stacked images


def test_reverse_kl_is_of_samples_to_data():
    p, q = np.array([0.5, 0.25, 0.25, 0.0]), np.array([0.1, 0.2, 0.3, 0.4])
    wanted = sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a)
    assert scores.reverse_kl(8 * p, 100 * q) == pytest.approx(wanted, rel=1e-12)
    assert scores.reverse_kl([3, 6], [10, 20]) == 0
    assert scores.reverse_kl([3, 6], [10, 0]) == np.inf
    assert scores.reverse_kl([3, 0], [10, 0]) == 0
    with pytest.raises(ValueError, match="counts and data_counts must be"):
        scores.reverse_kl([1, 2], [1, 2, 3])


def test_evaluator_of_stacked_images(evaluate, digits, tmp_path, monkeypatch):
    """Each channel is named by the classifier of one, which is trained on one."""
    monkeypatch.setattr(datasets, "STACKED_EXAMPLES", (20_000, 3_000))
    stacked = data.load("stacked_digits")
    found = []
    monkeypatch.setattr(
        "jaxsp.gan.scores.evaluate.fit_classifier",
        lambda dataset, *_: found.append(dataset.name) or evaluate.classifier,
    )
    judge = scores.evaluator(stacked, tmp_path, progress=False)
    assert found == ["digits"]
    floor = judge.floor
    assert floor["modes_reached"] > 900
    assert floor["reverse_kl"] < 0.5
    # The same digit in every channel: ten modes, of a thousand.
    same = judge.measure(np.tile(digits.train, 3))
    assert 10 <= same.scores["modes_reached"] < 60
    assert same.counts[[0, 111, 999]].min() > 100
    assert same.scores["reverse_kl"] > 3
    assert same.scores["frechet_distance"] > 2 * floor["frechet_distance"]
    # Channels in another order are other modes.
    turned = judge.measure(stacked.test[:500, :, :, ::-1]).counts
    first = judge.measure(stacked.test[:500]).counts
    there = np.arange(1000).reshape(10, 10, 10)
    np.testing.assert_array_equal(turned[there], first[there.transpose(2, 1, 0)])
    hidden, _ = scores.features(evaluate.classifier, stacked.test[:4, :, :, 1:2])
    both = classifier.channel_features(evaluate.classifier, stacked.test[:4])[0]
    np.testing.assert_array_equal(both[:, 64:128], hidden)


# images


def test_digits_classifier_is_good(evaluate):
    assert evaluate.classifier.test_accuracy > 0.96


def test_evaluator_of_images(evaluate, digits):
    floor = evaluate.floor
    assert floor["classes_covered"] == 10
    assert 9 < floor["classifier_score"] <= 10
    zeros = evaluate(digits.train[digits.train_labels == 0])
    assert zeros["classes_covered"] == 1
    assert zeros["classifier_score"] < 1.3
    noise = np.random.default_rng(0).uniform(-1, 1, (300, 8, 8, 1))
    noise = evaluate(noise)["frechet_distance"]
    # the better of two is told from the worse: real < one class < noise
    assert floor["frechet_distance"] < 0.1 * zeros["frechet_distance"]
    assert floor["frechet_distance"] < 0.02 * noise


def test_score_is_that_of_the_parts(evaluate, digits):
    hidden, _ = scores.features(evaluate.classifier, digits.test)
    wanted = distance(evaluate.reference, scores.Moments.of(hidden))
    got = scores.classifier_frechet_distance(
        evaluate.classifier, evaluate.reference, digits.test
    )
    assert got == wanted == evaluate.floor["frechet_distance"]


def test_features_in_any_form_and_any_number(evaluate, digits):
    images = digits.train[:1203]  # two chunks and a rest
    hidden, p = scores.features(evaluate.classifier, images)
    assert hidden.shape == (1203, 64)
    assert p.shape == (1203, 10)
    np.testing.assert_allclose(p.sum(-1), 1, atol=1e-5)
    unit = images[1000:].astype(np.float32) / 127.5 - 1
    again = scores.features(evaluate.classifier, unit)
    np.testing.assert_allclose(again[0], hidden[1000:], atol=1e-4)
    np.testing.assert_allclose(again[1], p[1000:], atol=1e-4)


@pytest.mark.parametrize(
    "images",
    [
        np.full((3, 8, 8, 1), 1.01),
        np.full((3, 8, 8, 1), -1.01, np.float32),
        np.full((3, 8, 8, 1), 255.0, np.float16),
        np.full((3, 8, 8, 1), np.nan),
        np.zeros((3, 8, 8, 1), np.int32),
    ],
)
def test_levels_are_refused_alike_by_both_networks(images, evaluate):
    message = r"images must be uint8, or floating in \[-1, 1\], got "
    network = scores.inception.Inception({}, "")
    with pytest.raises(ValueError, match=message):
        scores.inception.features(network, images)
    with pytest.raises(ValueError, match=message):
        scores.features(evaluate.classifier, images)
    if np.isfinite(images).all():
        with pytest.raises(ValueError, match=message):
            evaluate(images)
    scores.features(evaluate.classifier, np.full((3, 8, 8, 1), 1.0005))


# the bias of both sides


@pytest.mark.parametrize("count", [10_000, 1500, 297, 20])
def test_bias_is_what_the_data_score_against_as_many_data(count):
    """On Gaussian features, of which 1,500 are the training split."""
    values = 0.9 ** np.arange(24.0)
    found = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        train, samples = (
            np.sqrt(values) * rng.standard_normal((n, 24)) for n in (1500, count)
        )
        whole = Statistics(1500)
        whole.add(train)
        zeros = np.zeros(1500, int)
        dataset = data.Dataset("gaussian", train, zeros, train, zeros, 1)
        evaluate = scores.Evaluator(dataset, None, whole)
        score = distance(evaluate.reference, scores.Moments.of(samples))
        found.append(score / evaluate.bias(count)["frechet_distance"])
    error = np.std(found) / len(found) ** 0.5
    assert error < 0.05
    assert abs(np.mean(found) - 1) < 0.03 + 3 * error


# the cache


def test_what_is_cached_is_read_for_the_same_data_only(small, trainings, tmp_path):
    first = scores.fit_classifier(small, tmp_path, progress=False)
    second = scores.fit_classifier(small, tmp_path, progress=False)
    assert trainings == ["small"]
    jax.tree.map(np.testing.assert_array_equal, first, second)
    (file,) = tmp_path.iterdir()  # no temporary file is left
    assert file.name.startswith("classifier-small-")
    scores.fit_classifier(dataclasses.replace(small, train=255 - small.train), tmp_path)
    turned = dataclasses.replace(small, train_labels=small.train_labels[::-1])
    scores.fit_classifier(turned, tmp_path, progress=False)
    assert len(trainings) == len(list(tmp_path.iterdir())) == 3


def test_the_accuracy_is_that_on_the_test_split_given(small, trainings, tmp_path):
    first = scores.fit_classifier(small, tmp_path, progress=False)
    answers = scores.features(first, small.test)[1]
    right = dataclasses.replace(small, test_labels=answers.argmax(-1).astype(np.int32))
    wrong = dataclasses.replace(right, test_labels=(right.test_labels + 1) % 3)
    other = dataclasses.replace(small, test=255 - small.test)
    again = [scores.fit_classifier(d, tmp_path, False) for d in (right, wrong, other)]
    assert len(list(tmp_path.iterdir())) == 4
    for found, dataset in zip(again, (right, wrong, other), strict=True):
        answers = scores.features(found, dataset.test)[1].argmax(-1)
        assert found.test_accuracy == (answers == dataset.test_labels).mean()


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_cached_files_have_the_permissions_of_new_files(umask, tmp_path):
    before = os.umask(umask)
    try:
        cache.cached(tmp_path, "a", lambda: {"a": np.ones(3)})
    finally:
        os.umask(before)
    (path,) = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def zeros_inside(content):
    middle = len(content) // 2
    return content[:middle] + bytes(64) + content[middle + 64 :]


def without(word):
    return lambda arrays: arrays.pop(next(name for name in arrays if word in name))


def not_numbers(arrays):
    arrays.update({n: a * np.nan for n, a in arrays.items() if n != "sha256"})


@pytest.mark.parametrize(
    ("content", "arrays"),
    [
        (lambda content: content[: len(content) // 2], None),
        (zeros_inside, None),
        (lambda content: b"", None),
        (lambda content: b"not an archive", None),
        (None, without("kernel")),
        (None, without("test_accuracy")),
        (None, without("sha256")),
        (None, not_numbers),
    ],
)
def test_a_spoilt_cache_is_reported_and_replaced(
    content, arrays, small, trainings, tmp_path, caplog
):
    scores.fit_classifier(small, tmp_path, progress=False)
    (path,) = tmp_path.iterdir()
    if content:
        path.write_bytes(content(path.read_bytes()))
    else:
        with np.load(path) as file:
            changed = dict(file)
        arrays(changed)
        np.savez(path, **changed)
    with caplog.at_level(logging.WARNING):
        again = scores.fit_classifier(small, tmp_path, progress=False)
    assert len(trainings) == 2
    assert "making it anew" in caplog.text
    third = scores.fit_classifier(small, tmp_path, progress=False)
    assert len(trainings) == 2
    jax.tree.map(np.testing.assert_array_equal, again, third)


def test_a_cache_that_cannot_be_written_is_no_error(small, trainings, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        scores.fit_classifier(small, tmp_path / "file", progress=False)
    assert "could not be written" in caplog.text


def test_points_have_no_classifier(tmp_path):
    with pytest.raises(ValueError, match="dataset must have images"):
        scores.fit_classifier(data.load("mixture_ring"), tmp_path)


def test_training_is_deterministic(small, tmp_path, monkeypatch):
    monkeypatch.setattr(classifier, "_STEPS", 20)
    runs = [scores.fit_classifier(small, tmp_path / n, False) for n in ("a", "b")]
    jax.tree.map(np.testing.assert_array_equal, *runs)


# Inception's place, streams, and everything at once


@pytest.fixture
def network(monkeypatch):
    """A stand-in for the Inception network: projections of pixels to 12 numbers."""
    rng = np.random.default_rng(0)
    calls = []

    def features(inception, images, batch_size=50, progress=False):
        calls.append(len(images))
        pixels = np.asarray(data.to_unit(images)).reshape(len(images), -1)
        return (pixels @ inception["w"]).astype(np.float32)

    monkeypatch.setattr(scores.inception, "features", features)
    return {"w": rng.standard_normal((64, 12))}, features, calls


PLAIN = {"frechet_distance", "classifier_score", "classes_covered"}
NEAR = {"precision", "recall", "density", "coverage", "least_class_coverage"}
KID = {"fid", "kid", "kid_std"}
KERNEL = {"kernel_distance", "kernel_distance_std"}


@pytest.mark.parametrize(
    ("with_network", "full", "names"),
    [
        (False, False, PLAIN),
        (False, True, PLAIN | NEAR | KERNEL),
        (True, False, PLAIN | KID),
        (True, True, PLAIN | NEAR | KID),
    ],
)
def test_each_score_is_that_of_the_features_it_is_named_for(
    with_network, full, names, small, trainings, network, tmp_path
):
    weights, features, _ = network
    evaluate = scores.evaluator(
        small, tmp_path, False, weights if with_network else None, full
    )
    samples = np.random.default_rng(1).integers(256, size=(70, 8, 8, 1), dtype=np.uint8)
    found = evaluate(samples)
    assert found.keys() == evaluate.floor.keys() == names
    hidden = [
        scores.features(evaluate.classifier, i)[0] for i in (small.train, samples)
    ]
    inner = [features(weights, i) for i in (small.train, samples)]
    wanted = distance(*map(scores.Moments.of, hidden))
    np.testing.assert_allclose(found["frechet_distance"], wanted, rtol=1e-6)
    pair, kernel = (inner, "kid") if with_network else (hidden, "kernel_distance")
    if with_network:
        wanted = distance(*map(scores.Moments.of, pair))
        np.testing.assert_allclose(found["fid"], wanted, rtol=1e-6)
    if kernel in names:
        wanted = scores.kernel_distance(*pair)
        got = found[kernel], found[f"{kernel}_std"]
        np.testing.assert_allclose(got, wanted, rtol=1e-5)
    if full:
        wanted = scores.neighbor_scores(*pair)._asdict()
        assert {name: found[name] for name in wanted} == wanted
        counts = evaluate.measure(samples).counts
        assert counts.sum() == 70
        ratios = (counts / 70) / (np.bincount(small.train_labels) / 40)
        np.testing.assert_allclose(found["least_class_coverage"], ratios.min())
    bad = evaluate(np.full((9, 8, 8, 1), np.nan))
    assert bad.keys() == names
    assert np.isnan(list(bad.values())).all()


def test_samples_may_come_in_batches(small, trainings, network, tmp_path):
    evaluate = scores.evaluator(small, tmp_path, False, network[0], full=True)
    samples = np.random.default_rng(1).integers(256, size=(90, 8, 8, 1), dtype=np.uint8)
    whole = evaluate(samples)
    for cuts in ([1, 40, 41], [], range(10, 90, 10)):
        found = evaluate(iter(np.split(samples, list(cuts))))
        np.testing.assert_allclose(list(found.values()), list(whole.values()), 1e-10)
    with pytest.raises(ValueError, match="at least one sample, got none"):
        evaluate(iter([]))
    with pytest.raises(ValueError, match="samples must be of shape"):
        evaluate(iter([samples, samples[:, :4]]))
    broken = samples / 127.5 - 1
    assert np.isfinite(evaluate(iter(np.split(broken, 9)))["fid"])
    broken[80] = np.inf
    assert np.isnan(evaluate(iter(np.split(broken, 9)))["fid"])


def test_features_of_the_data_are_read_from_the_cache(
    small, trainings, network, tmp_path, caplog
):
    weights, _, calls = network
    first = scores.evaluator(small, tmp_path, False, weights, full=True)
    assert sum(calls) == len(small.train) + len(small.test)
    assert not list(tmp_path.glob("*.part"))
    files = sorted(tmp_path.glob("features-small-*"))
    assert len(files) == 3  # of the classifier, and of the network for both splits

    second = scores.evaluator(small, tmp_path, False, weights, full=True)
    assert len(calls) == 2
    assert second.floor == first.floor
    samples = small.train[:20]
    assert second(samples) == first(samples)
    calls.clear()

    # other weights and other data have files of their own
    scores.evaluator(small, tmp_path, False, {"w": weights["w"] + 1})
    assert sum(calls) == len(small.train) + len(small.test)
    turned = dataclasses.replace(small, train=small.train[::-1], test=small.test[::-1])
    scores.evaluator(turned, tmp_path, False, weights)
    assert sum(calls) == 2 * (len(small.train) + len(small.test))
    calls.clear()

    for path in files:  # a damaged one is reported and replaced
        path.write_bytes(zeros_inside(path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        third = scores.evaluator(small, tmp_path, False, weights, full=True)
    assert caplog.text.count("making it anew") == 3
    assert sum(calls) == len(small.train) + len(small.test)
    assert third.floor == first.floor


def test_too_few_samples_are_warned_of_once(
    small, trainings, network, tmp_path, caplog
):
    evaluate = scores.evaluator(small, tmp_path, False, network[0])
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        evaluate(small.train[:13])  # 12 numbers of the network, 64 of the classifier
    (one,) = (record.getMessage() for record in caplog.records)
    assert one.startswith("frechet_distance of 13 samples in 64 dimensions")
    with caplog.at_level(logging.WARNING):
        evaluate(small.train[:12])
        evaluate(small.train[:12])
    (_, two) = (record.getMessage() for record in caplog.records)
    assert two.startswith("fid of 12 samples in 12 dimensions")

    said = float(two.split("about ")[1].split(" ")[0])
    assert two.endswith(" against the 40 of the training split.")
    assert evaluate.bias(12)["fid"] == pytest.approx(said, rel=0.01)


def test_points_in_full_and_without_inception(monkeypatch):
    monkeypatch.setattr(scores.statistics, "KEPT", 200)
    mixture = data.load("mixture_ring")
    evaluate = scores.evaluator(mixture, full=True)
    assert evaluate.floor["recall"] > 0.7
    batches = np.split(mixture.test[:90], 3)
    whole = evaluate(mixture.test[:90])
    assert evaluate(iter(batches)) == whole
    wanted = distance(evaluate.reference, scores.Moments.of(mixture.test[:90]))
    assert whole["frechet_distance"] == pytest.approx(wanted, rel=1e-9)
    modes = scores.mode_coverage(mixture.test[:90], mixture.centers, mixture.std)
    assert whole["high_quality"] == pytest.approx(modes.high_quality)
    with pytest.raises(ValueError, match="inception scores images"):
        scores.evaluator(mixture, inception="anything")
