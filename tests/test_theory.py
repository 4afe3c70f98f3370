"""Step sizes, refresh probabilities and what they promise."""

import math

import numpy as np
import pytest
import reference_compressed as reference

from jaxsp import theory


def test_extra_step_by_hand():
    found = theory.extra_step([1, 3], 0.5)
    assert found == (1 / 8, 1.0, 1 - 0.5 / 8)
    assert theory.extra_step(2.0, 0.0).contraction == 1.0


def test_masha1_by_hand():
    # L̃² = (1 + 4)/2 = 5/2, C² = (3/4)((2 + 5/2) + (4·4 + 5/2)) = 69/4.
    found = theory.masha1([1, 2], 0.0, q=[2, 4], q_server=3, refresh=0.1)
    np.testing.assert_allclose(found.learning_rate, math.sqrt(0.05 / 17.25), rtol=1e-14)
    assert (found.refresh, found.contraction) == (0.1, 1.0)
    # The other branch: (1 - τ)/2μ = 0.1/2 is below √0.05/C.
    found = theory.masha1(1.0, 1.0, q=1.0, workers=3, refresh=0.1)
    np.testing.assert_allclose(found, (0.05, 0.1, 0.975), rtol=1e-14)


def test_masha1_of_equal_workers():
    # C² = L² (q + M - 1)/M; the default refresh is balanced: 1/q.
    L, q, M = 2.0, 10.0, 40
    found = theory.masha1(L, 0.01, q, workers=M)
    gamma = math.sqrt(0.1 / 2) / (L * math.sqrt((q + M - 1) / M))
    np.testing.assert_allclose(found, (gamma, 0.1, 1 - gamma * 0.005), rtol=1e-14)
    for same in (
        theory.masha1([L] * M, 0.01, q),
        theory.masha1(L, 0.01, np.full(M, q)),
        theory.masha1(np.float32(L), 0.01, 10, workers=M),
    ):
        np.testing.assert_allclose(same, found, rtol=1e-14)


def test_without_compression_the_number_of_workers_drops_out():
    for workers in (1, 7, 100):
        found = theory.masha1(4.0, 0.0, q=1.0, workers=workers)
        np.testing.assert_allclose(found, (1 / 8, 0.5, 1.0), rtol=1e-14)
    many = theory.masha1(4.0, 0.0, q=50.0, workers=10**7, refresh=0.5)
    np.testing.assert_allclose(many.learning_rate, 1 / 8, rtol=1e-5)  # the 1/M gain
    alone = theory.masha1(4.0, 0.0, q=49.0, workers=1, refresh=0.5)
    np.testing.assert_allclose(alone.learning_rate, 1 / 8 / 7, rtol=1e-14)


def test_variance_reduction_changes_the_refresh_only():
    common = dict(L=[1.0, 2.0], mu=0.1, q=10.0)
    few = theory.masha1(**common, batch_share=1 / 50)
    assert few.refresh == 1 / 50
    assert few == theory.masha1(**common, refresh=1 / 50)
    assert theory.masha1(**common, batch_share=1 / 2) == theory.masha1(**common)
    given = theory.masha1(**common, batch_share=1 / 50, refresh=0.3)
    assert given == theory.masha1(**common, refresh=0.3)


def test_partial_participation_by_hand():
    # One of M: C² = q L². All in all: between that and masha1's.
    found = theory.pp_masha1(2.0, 0.0, q=8.0, workers=4, participants=1)
    np.testing.assert_allclose(
        found, (math.sqrt(1 / 64) / (2 * math.sqrt(8)), 1 / 32, 1.0), rtol=1e-14
    )
    # b = 2: C² = L² (q/2 + (q + 3)/8) = 4 (4 + 11/8) = 21.5, doubled by the server.
    found = theory.pp_masha1(2.0, 0.0, 8.0, 2.0, workers=4, participants=2, refresh=0.1)
    np.testing.assert_allclose(found.learning_rate, math.sqrt(0.05 / 43), rtol=1e-14)
    # Without compression participation costs nothing per iteration.
    for participants in (1, 3):
        found = theory.pp_masha1(
            2.0, 0.0, 1.0, workers=3, participants=participants, refresh=0.1
        )
        np.testing.assert_allclose(found.learning_rate, math.sqrt(0.05) / 2, rtol=1e-14)


def test_masha2_by_hand():
    found = theory.masha2([1.0, 7.0], 0.0, delta=4.0)  # L̃ = 5
    np.testing.assert_allclose(found[:2], (0.5 / 20, 0.25), rtol=1e-14)
    assert found.contraction is None
    both = theory.masha2([1.0, 7.0], 0.0, delta=4.0, delta_server=4.0)
    np.testing.assert_allclose(both.learning_rate, 0.5 / 80, rtol=1e-14)
    assert theory.masha2(1.0, 1.0, delta=1.0).learning_rate == 0.25  # (1 - τ)/2μ
    assert theory.masha2(1.0, 0.0, delta=1.0).refresh == 0.5
    reduced = theory.masha2(5.0, 0.0, 4.0, 4.0, batch_share=1 / 16)
    np.testing.assert_allclose(reduced[:2], (0.25 / 80, 1 / 16), rtol=1e-14)


@pytest.mark.parametrize(
    "base",
    [
        theory.extra_step(2.0, 0.5),
        theory.masha1(2.0, 0.5, 10.0, workers=3),
        theory.pp_masha1(2.0, 0.5, 10.0, workers=3, participants=2),
        theory.masha2(2.0, 0.5, 10.0),
    ],
    ids=["extra_step", "masha1", "pp_masha1", "masha2"],
)
def test_of_a_larger_step_nothing_is_promised(base):
    half, twice = base.times(0.5), base.times(2)
    assert half.learning_rate == base.learning_rate / 2
    assert twice.learning_rate == base.learning_rate * 2
    assert half.refresh == twice.refresh == base.refresh
    assert twice.contraction is None
    if base.contraction is None:
        assert half.contraction is None
    else:
        assert 1 - half.contraction == pytest.approx((1 - base.contraction) / 2)


@pytest.mark.parametrize("ratio", [0.01, 0.3, 0.9])
@pytest.mark.parametrize("q", [1.0, 10.0])
def test_masha1_keeps_its_promise(ratio, q):
    """The mean of V⁺/V over draws is below the promised contraction."""
    M, d = 5, 20
    F, z_star, _ = reference.near_bilinear(M, d, ratio, seed=0)
    gamma, refresh, contraction = theory.masha1(1.0, ratio, q, workers=M)
    rng = np.random.default_rng(0)
    Q = reference.rand_k(round(d / q), rng)
    for _ in range(10):
        z0 = z_star + rng.standard_normal(d)  # w = z here, later not
        coins = rng.random(5) < refresh
        z, w = reference.masha1(z0, F, Q, coins, gamma, refresh)
        V = (1 - refresh) * np.sum((z[-1] - z_star) ** 2) + np.sum(
            (w[-1] - z_star) ** 2
        )
        ratios = []
        for _ in range(60):
            at, center = F(w[-1]), (1 - refresh) * z[-1] + refresh * w[-1]
            half = center - gamma * at.mean(axis=0)
            g = at.mean(axis=0) + reference.up(Q, 0, F(half) - at).mean(axis=0)
            new = center - gamma * g
            expected = np.sum((new - z_star) ** 2)  # the coin's mean, exactly
            expected += (1 - refresh) * np.sum((w[-1] - z_star) ** 2)
            ratios.append(expected / V)
        assert np.mean(ratios) <= contraction


BAD = [
    (lambda: theory.extra_step(0.0, 0.0), "L must be above 0"),
    (lambda: theory.extra_step("1", 0.0), "L must be an array of finite"),
    (lambda: theory.extra_step([], 0.0), "L must be above 0, a number or"),
    (lambda: theory.extra_step([[1.0]], 0.0), "a number or an array of one"),
    (lambda: theory.extra_step([1.0, np.nan], 0.0), r"L\[1\] must be finite"),
    (lambda: theory.extra_step(1.0, -0.1), "mu must be between 0 and"),
    (lambda: theory.extra_step(1.0, 1.1), "mu must be between 0 and"),
    (lambda: theory.extra_step(1.0, None), "mu must be between 0 and .* got None"),
    (lambda: theory.extra_step(1.0, 0.1).times(0), "factor must be above 0"),
    (lambda: theory.masha1(1.0, 0.1, 2.0), "workers must be given"),
    (lambda: theory.masha1(1.0, 0.1, 2.0, workers=0), "workers must be at least 1"),
    (lambda: theory.masha1(1.0, 0.1, 2.0, workers=2.0), "workers must be an integer"),
    (lambda: theory.masha1([1, 2], 0.1, [2, 3, 4]), "must agree in length"),
    (lambda: theory.masha1([1, 2], 0.1, 2.0, workers=3), "must agree in length"),
    (lambda: theory.masha1([1, 2], 0.1, 0.5), "q must be at least 1"),
    (lambda: theory.masha1([1, 2], 0.1, 2.0, 0.5), "q_server must be at least 1"),
    (lambda: theory.masha1([1], 0.1, 2.0, refresh=0.0), "refresh must be above 0"),
    (lambda: theory.masha1([1], 0.1, 2.0, refresh=1.0), "use theory.extra_step"),
    (
        lambda: theory.pp_masha1([1, 1], 0.1, 2.0, participants=3),
        "participants must be at most workers = 2",
    ),
    (lambda: theory.masha1([1], 0.1, 2.0, batch_share=2), "batch_share must be above"),
    (
        lambda: theory.masha2(1.0, 0.1, 2.0, batch_share=True),
        "batch_share must be above 0 .* got True",
    ),
    (lambda: theory.masha2(1.0, 0.1, 0.9), "delta must be at least 1"),
    (
        lambda: theory.masha2(1.0, 0.1, 2.0, math.inf),
        "delta_server must be at least 1.* got inf",
    ),
    (lambda: theory.masha2(1.0, 0.1, 2.0, refresh=0.6), "at most 1/2"),
    (lambda: theory.optimistic_masha(1.0, 0.1, 0.1), "workers must be given where L"),
    (lambda: theory.three_pillars([1, 1], 0.1, 0.0), "delta must be above 0 without"),
    (lambda: theory.optimal_decentralized(1.0, 2.0, 4.0), "mu must be between 0 and"),
    (lambda: theory.optimal_decentralized(1.0, 0.1, 0.5), "chi must be at least 1"),
    (lambda: theory.optimal_time_varying(1.0, 0.0, 4.0), "mu must be above 0, at most"),
    (lambda: theory.optimal_time_varying(1.0, 0.1, 0.5), "chi must be at least 1"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_steps_for_like_workers_by_hand():
    # √γ/2δ = 0.5/0.4 and γ/4μ = 0.25/0.4 are above 1/2L.
    found = theory.optimistic_masha([1.0, 3.0], 0.1, 0.2, workers=4)
    np.testing.assert_allclose(found, (1 / 4, 1 / 4, 1 - 0.25 * 0.1 / 2), rtol=1e-14)
    assert theory.optimistic_masha(2.0, 0.0, 5.0, refresh=0.25).learning_rate == 0.05
    assert theory.optimistic_masha(2.0, 2.0, 0.0, refresh=0.1).learning_rate == 0.0125
    assert theory.optimistic_masha([1.0] * 5, 0.0, 1.0).refresh == 1 / 5
    # H = ⌈100/(1 · √10)⌉, γ = p/μ = 0.1 below √p/2δ = 0.158 and H/L = 0.32.
    found = theory.three_pillars(100.0, 1.0, 1.0, workers=10)
    np.testing.assert_allclose(found, (0.1, 0.1, 32, 1 / 220), rtol=1e-14)
    found = theory.three_pillars(2.0, 0.0, 0.0, refresh=0.25, local_steps=8)
    np.testing.assert_allclose(found, (4.0, 0.25, 8, 1 / 4.5), rtol=1e-14)
    assert theory.three_pillars(2.0, 0.1, 2.0, workers=4).local_steps == 1


def test_steps_of_the_optimal_decentralized_method_by_hand():
    found = theory.optimal_decentralized([1.0, 2.0], 0.1, chi=4.0)  # s = 1
    np.testing.assert_allclose(found, (1 / 4, 2.0, 3 / 8, 1.0), rtol=1e-14)
    found = theory.optimal_decentralized(2.0, 0.5, chi=36.0)  # s = √(36/4) = 3
    np.testing.assert_allclose(found, (1 / 12, 6.0, 1 / 8, 1.0), rtol=1e-14)


def test_steps_for_changing_graphs_by_hand():
    found = theory.optimal_time_varying([1.0, 2.0], 0.5, chi=16.0)
    expected = (0.235, 1.36, 1 / 320, 1.0, 0.15, 0.0025, 0.015, 0.07 / 1.36, 57.6)
    np.testing.assert_allclose(found, (*expected, 1 - 1 / 320), rtol=1e-14)
    found = theory.optimal_time_varying(1.0, 0.5, chi=400.0)  # η_y = 3.4
    np.testing.assert_allclose(found.learning_rate, 1 / 3.4, rtol=1e-14)
