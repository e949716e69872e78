"""How sure can one be? Intervals by bootstrap, and paired tests, for samples that are small."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from convad_fx.errors import PolicyError
from convad_fx.explain.options import check_count

Numbers = Sequence[float] | NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and where the truth may lie.

    Args:
        value: of the statistic on the sample.
        low, high: the ends of the interval.
        level: the share of such intervals that hold the truth, in the long run.
        n: how many independent units (images) it is drawn from.
    """

    value: float
    low: float
    high: float
    level: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap(
    values: Numbers,
    statistic: Callable[[NDArray[np.float64]], float] = np.mean,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """An interval for a statistic of a sample, by resampling it with replacement.

    >>> str(bootstrap([0.5, 0.7, 0.9, 0.6, 0.8]))
    '0.700 [0.580, 0.820]'

    Percentile bootstrap (Efron and Tibshirani, *An Introduction to the Bootstrap*, 1993, chapter
    13). Units must be independent: one number per *image*, not per mask of an image. With fewer
    than about ten units the interval is too narrow: say n beside it, as `Interval.n` does.

    Args:
        values: one number per unit, one or more, finite.
        statistic: of an array (n,); the mean by default. Called once per resample.
        level: in (0, 1).
        resamples: how many.
        seed: a non-negative integer; the stream depends on it and on n alone.

    Raises:
        PolicyError: an empty sample, numbers that are not finite, or a level out of range.
    """
    sample = _sample("values", values)
    if not 0 < level < 1:
        raise PolicyError(f"level must lie in (0, 1), not {level!r}", hint="0.95 is usual")
    check_count("resamples", resamples, least=1, hint="2000 are usual")
    check_count("seed", seed, least=0, hint="pass 0")
    random = np.random.default_rng([seed, len(sample)])
    drawn = sample[random.integers(0, len(sample), (resamples, len(sample)))]
    found = np.array([statistic(row) for row in drawn])
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(statistic(sample)), float(low), float(high), float(level), len(sample))


@dataclass(frozen=True, slots=True)
class Paired:
    """Two methods on the same units.

    Args:
        difference: mean of first - second, with its bootstrap interval.
        p_value: of the test that neither is better.
        wins, losses, ties: units where the first is larger, smaller, equal.
        test: its name.
    """

    difference: Interval
    p_value: float
    wins: int
    losses: int
    ties: int
    test: str


def paired(
    first: Numbers,
    second: Numbers,
    *,
    test: str = "wilcoxon",
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Paired:
    """Is one method better than another on the same images? Two-sided.

    >>> ours, theirs = [0.9, 0.8, 0.95, 0.7, 0.85, 0.9], [0.7, 0.75, 0.9, 0.6, 0.8, 0.6]
    >>> found = paired(ours, theirs)
    >>> round(found.p_value, 3), found.wins, found.losses
    (0.031, 6, 0)

    Args:
        first, second: one number per unit each, in the same order.
        test: "wilcoxon": the signed-rank test (Wilcoxon 1945; scipy.stats.wilcoxon), equal pairs
            dropped; "permutation": signs of the differences flipped, all ways if there are few,
            else `resamples` of them (scipy.stats.permutation_test); "sign": wins against losses
            (scipy.stats.binomtest).
        level, resamples, seed: as in `bootstrap`.

    Raises:
        PolicyError: lists of different lengths, an unknown test, or what `bootstrap` refuses.
    """
    a, b = _sample("first", first), _sample("second", second)
    if len(a) != len(b):
        raise PolicyError(
            f"{len(a)} numbers are not paired with {len(b)}", hint="one of each per image"
        )
    difference = a - b
    wins, losses = int((difference > 0).sum()), int((difference < 0).sum())
    decided = difference[difference != 0]
    if test not in _TESTS:
        raise PolicyError(
            f"test must be one of {', '.join(_TESTS)}, not {test!r}", hint="pass 'wilcoxon'"
        )
    p_value = _TESTS[test](decided, resamples, seed) if len(decided) else 1.0
    return Paired(
        bootstrap(difference, level=level, resamples=resamples, seed=seed),
        p_value,
        wins,
        losses,
        len(difference) - wins - losses,
        test,
    )


def _wilcoxon(decided: NDArray[np.float64], resamples: int, seed: int) -> float:
    del resamples, seed
    return float(stats.wilcoxon(decided).pvalue)


def _permutation(decided: NDArray[np.float64], resamples: int, seed: int) -> float:
    found = stats.permutation_test(
        (decided, np.zeros_like(decided)),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        n_resamples=resamples,
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def _sign(decided: NDArray[np.float64], resamples: int, seed: int) -> float:
    del resamples, seed
    return float(stats.binomtest(int((decided > 0).sum()), len(decided)).pvalue)


_TESTS: dict[str, Callable[[NDArray[np.float64], int, int], float]] = {
    "wilcoxon": _wilcoxon,
    "permutation": _permutation,
    "sign": _sign,
}


def _sample(name: str, values: Numbers) -> NDArray[np.float64]:
    sample = np.asarray(values, np.float64)
    if sample.ndim != 1 or not len(sample) or not np.isfinite(sample).all():
        raise PolicyError(
            f"{name} must be one finite number per unit, one or more, not an array of shape "
            f"{sample.shape}" + ("" if np.isfinite(sample).all() else " with gaps"),
            hint="leave units without an answer out of both lists, and say how many they were",
        )
    return sample
