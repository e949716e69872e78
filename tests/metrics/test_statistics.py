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


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("values must be one finite number per unit", lambda: metrics.bootstrap([])),
        ("with gaps", lambda: metrics.bootstrap([1, float("nan")])),
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
