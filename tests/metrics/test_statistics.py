"""Intervals cover, tests keep their level, and both agree with scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from convad_fx import metrics
from convad_fx.errors import PolicyError


def test_intervals_cover_about_as_often_as_they_say() -> None:
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        found = metrics.bootstrap(random.normal(3, 1, 40), resamples=300, level=0.9)
        assert found.low <= found.value <= found.high
        hits += found.low <= 3 <= found.high
    assert 0.82 < hits / 200 < 0.95


def test_intervals_are_scipys() -> None:
    values = np.random.default_rng(1).random(25)
    found = metrics.bootstrap(values, resamples=5000)
    theirs = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=5000, rng=np.random.default_rng(0)
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)
    assert (found.value, found.n, found.level) == (values.mean(), 25, 0.95)


def test_intervals_of_any_statistic_and_seeded() -> None:
    values = list(range(20))
    median = metrics.bootstrap(values, np.median, seed=3)
    assert median.value == 9.5
    assert median == metrics.bootstrap(values, np.median, seed=3)
    assert median != metrics.bootstrap(values, np.median, seed=4)
    wide, narrow = (metrics.bootstrap(values, level=level) for level in (0.99, 0.5))
    assert wide.low < narrow.low < narrow.high < wide.high
    single = metrics.bootstrap([2.0])
    assert (single.low, single.high, single.n) == (2, 2, 1)


@pytest.mark.parametrize("test", ["wilcoxon", "permutation", "sign"])
def test_a_test_finds_a_difference_and_keeps_its_level_where_there_is_none(test: str) -> None:
    random = np.random.default_rng(0)
    base = random.random(30)
    assert metrics.paired(base + 0.2 + 0.1 * random.random(30), base, test=test).p_value < 0.001
    small = [
        metrics.paired(*random.normal(size=(2, 14)), test=test, resamples=99).p_value
        for _ in range(150)
    ]
    assert np.mean(np.array(small) <= 0.05) < 0.11


def test_paired_by_hand() -> None:
    found = metrics.paired([1, 2, 3, 5], [0, 2, 4, 2], test="sign")
    assert (found.wins, found.losses, found.ties) == (2, 1, 1)
    assert found.difference.value == 0.75
    assert found.p_value == 1.0
    wilcoxon = metrics.paired(*(np.random.default_rng(s).random(12) for s in (0, 1)))
    assert wilcoxon.p_value == pytest.approx(
        stats.wilcoxon(*(np.random.default_rng(s).random(12) for s in (0, 1))).pvalue
    )
    mirrored = metrics.paired([0, 2, 4, 2], [1, 2, 3, 5], test="sign")
    assert (mirrored.wins, mirrored.p_value) == (found.losses, found.p_value)


@pytest.mark.parametrize("test", ["wilcoxon", "permutation", "sign"])
def test_no_difference_at_all_is_no_evidence(test: str) -> None:
    found = metrics.paired([0.3] * 6, [0.3] * 6, test=test)
    assert (found.p_value, found.ties, found.difference.high) == (1.0, 6, 0.0)
    assert metrics.paired([0.1 + 0.2, 0.5], [0.3, 0.4]).ties == 1
    assert metrics.paired([0.3, 0.5], [0.3, 0.4], test=test).p_value == 1.0


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("values must be one finite number per unit", lambda: metrics.bootstrap([])),
        ("with missing values", lambda: metrics.bootstrap([1, float("nan")])),
        (r"shape \(2, 2\)", lambda: metrics.bootstrap(np.ones((2, 2)))),
        (r"level must lie in \(0, 1\)", lambda: metrics.bootstrap([1, 2], level=1)),
        ("resamples must be", lambda: metrics.bootstrap([1, 2], resamples=0)),
        ("3 numbers are not paired with 2", lambda: metrics.paired([1, 2, 3], [1, 2])),
        ("test must be one of wilcoxon, permutation, sign, not 't'",
         lambda: metrics.paired([1, 2], [2, 1], test="t")),
    ],
)  # fmt: skip
def test_errors(message, call) -> None:
    with pytest.raises(PolicyError, match=message) as caught:
        call()
    assert caught.value.hint


# ------------------------------------------------------------------------------- best of several
def test_the_best_of_many_equals_is_seldom_taken_for_better():
    """Eleven methods that differ by noise alone: one in twenty may be called better, not one in
    four, as testing the leader alone would."""
    decided, naive, runs = 0, 0, 200
    for run in range(runs):
        values = np.random.default_rng(run).normal(0.8, 0.1, (11, 8))
        best = metrics.best_of(values, resamples=50)
        decided += best.decided
        alone = metrics.best_of(values[[0, best.leader]], resamples=50)
        naive += best.leader != 0 and alone.p_value <= 0.05
    assert decided <= 0.09 * runs
    assert naive > 0.2 * runs


def test_what_is_better_on_every_image_is_found_and_wins_again():
    random = np.random.default_rng(1)
    values = random.normal(0.7, 0.1, (5, 8))
    values[3] = values[0] + random.uniform(0.08, 0.12, 8)
    values[1] -= 1  # a hopeless one does not hide it
    values[4] = values[2] = values[0] - 0.1
    best = metrics.best_of(values)
    assert (best.leader, best.decided, best.n) == (3, True, 8)
    assert best.p_value < 0.05
    assert best.wins[3] > 0.95
    assert sum(best.wins) == pytest.approx(1)
    assert best.gain == pytest.approx(best.honest_gain, abs=0.02)
    assert best.gain == pytest.approx((values[3] - values[0]).mean())


def test_the_honest_gain_of_noise_is_nothing():
    gains, honest = [], []
    for run in range(60):
        best = metrics.best_of(np.random.default_rng(run).normal(0, 1, (11, 8)), resamples=200)
        gains.append(best.gain)
        honest.append(best.honest_gain)
    assert np.mean(gains) > 0.5
    assert abs(np.mean(honest)) < 0.25


def test_ties_go_to_the_baseline_and_then_to_the_first():
    same = [[0.5, 0.6, 0.7, 0.8, 0.9]] * 4
    best = metrics.best_of(same, baseline=2)
    assert (best.leader, best.decided, best.p_value, best.gain) == (2, False, 1.0, 0.0)
    assert best.wins == (0.0, 0.0, 1.0, 0.0)
    up = [0.6, 0.7, 0.8, 0.9, 1.0]
    assert metrics.best_of([same[0], up, up]).leader == 1


@pytest.mark.parametrize(("n", "decided"), [(1, False), (4, False), (5, True), (20, True)])
def test_five_units_are_the_fewest_that_can_decide(n, decided):
    best = metrics.best_of([np.linspace(0, 0.5, n), np.linspace(0.4, 0.9, n)])
    assert (best.decided, best.needed) == (decided, 5)
    assert best.p_value >= 2.0**-n
    assert metrics.best_of([[0.0], [1.0]], level=0.9).needed == 4


def test_methods_that_do_not_fit_are_refused():
    for values, message in (
        ([], "not paired"),
        ([[1.0], [1.0, 2.0]], "not paired"),
        ([[1.0], [float("nan")]], "method 1 must be one finite number"),
    ):
        with pytest.raises(PolicyError, match=message):
            metrics.best_of(values)
    with pytest.raises(PolicyError, match="there is no method 2"):
        metrics.best_of([[1.0], [2.0]], baseline=2)
    with pytest.raises(PolicyError, match="level"):
        metrics.best_of([[1.0]], level=1.0)
