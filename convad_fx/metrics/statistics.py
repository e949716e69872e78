"""Bootstrap intervals, paired tests and the choice of the best, for small samples."""

from __future__ import annotations

import math
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
    """An estimate and its confidence interval.

    Args:
        value: of the statistic on the sample.
        low, high, level: the ends of the interval and its confidence level.
        n: number of independent units (images).
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
    """A confidence interval for a statistic of a sample, by resampling it with replacement.

    >>> str(bootstrap([0.5, 0.7, 0.9, 0.6, 0.8]))
    '0.700 [0.580, 0.820]'

    Percentile bootstrap (Efron and Tibshirani, *An Introduction to the Bootstrap*, 1993, chapter
    13). Units must be independent: one number per *image*, not per mask of an image. With fewer
    than about ten units the interval is too narrow.

    Args:
        values: one number per unit, one or more, finite.
        statistic: of an array (n,); the mean by default. Called once per resample.
        level: in (0, 1).
        resamples: number of resamples.
        seed: a non-negative integer; with n it determines the stream.

    Raises:
        PolicyError: an empty sample, numbers that are not finite, or a level out of range.
    """
    sample = _sample("values", values)
    _check_resampling(level, resamples, seed)
    random = np.random.default_rng([seed, len(sample)])
    drawn = sample[random.integers(0, len(sample), (resamples, len(sample)))]
    # The mean is vectorised: small samples are the rule.
    values = drawn.mean(1) if statistic is np.mean else np.array([statistic(row) for row in drawn])
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(statistic(sample)), float(low), float(high), float(level), len(sample))


@dataclass(frozen=True, slots=True)
class Paired:
    """Two methods compared on the same units.

    Args:
        difference: mean of first - second, with its bootstrap interval.
        p_value: of the null hypothesis that neither is better.
        wins, losses, ties: units where the first is larger, smaller, equal.
        test: name of the test.
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
    """Is one of two methods better on the same images? A two-sided test.

    >>> ours, theirs = [0.9, 0.8, 0.95, 0.7, 0.85, 0.9], [0.7, 0.75, 0.9, 0.6, 0.8, 0.6]
    >>> result = paired(ours, theirs)
    >>> round(result.p_value, 3), result.wins, result.losses
    (0.031, 6, 0)

    Args:
        first, second: one number per unit each, in the same order.
        test: "wilcoxon": the signed-rank test (Wilcoxon 1945; scipy.stats.wilcoxon), equal pairs
            dropped; "permutation": sign flips of the differences, all of them if there are few,
            else `resamples` (scipy.stats.permutation_test); "sign": wins against losses
            (scipy.stats.binomtest).
        level, resamples, seed: as in `bootstrap`.

    Raises:
        PolicyError: lists of different lengths, an unknown test, or as `bootstrap`.
    """
    a, b = _sample("first", first), _sample("second", second)
    if len(a) != len(b):
        raise PolicyError(
            f"{len(a)} numbers are not paired with {len(b)}", hint="one of each per image"
        )
    difference = (a - b).round(_DIGITS)  # so that equal values are ties
    wins, losses = int((difference > 0).sum()), int((difference < 0).sum())
    decided = difference[difference != 0]
    if test not in _TESTS:
        raise PolicyError(
            f"test must be one of {', '.join(_TESTS)}, not {test!r}", hint="pass 'wilcoxon'"
        )
    return Paired(
        bootstrap(difference, level=level, resamples=resamples, seed=seed),
        float(_TESTS[test](decided, resamples, seed)) if len(decided) else 1.0,
        wins,
        losses,
        len(difference) - wins - losses,
        test,
    )


@dataclass(frozen=True, slots=True)
class Best:
    """The best of several methods on the same units, and whether its lead is significant.

    Args:
        leader: index of the method with the largest mean; ties go to the baseline.
        baseline: index of the method that the others are compared with.
        gain: the leader's mean minus the baseline's: biased upwards by the choice.
        honest_gain: mean gain of choices made on resamples, on the units left out of them: an
            estimate for new units. NaN with fewer than two units.
        p_value: how often the best method would exceed the baseline as much as the leader does
            (by Student's t) if none differed from it.
        wins: for each method, the share of the resamples in which it is the best.
        level: `decided` requires a p-value of at most 1 - level.
        n: number of units.
    """

    leader: int
    baseline: int
    gain: float
    honest_gain: float
    p_value: float
    wins: tuple[float, ...]
    level: float
    n: int

    @property
    def decided(self) -> bool:
        """Whether the leader is significantly better than the baseline."""
        return self.leader != self.baseline and self.p_value <= 1 - self.level + _ROUNDING

    @property
    def needed(self) -> int:
        """The smallest n that can be significant at all: 2^-n <= 1 - level.

        >>> best_of([[1, 2, 3], [2, 3, 4]]).needed
        5
        """
        return math.ceil(-math.log2(1 - self.level) - _ROUNDING)


def best_of(
    values: Sequence[Numbers] | NDArray[np.floating],
    baseline: int = 0,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Best:
    """Which of several methods is the best on the same units, and is it better than the baseline?

    >>> usual, better, worse = [0.7, 0.6, 0.8, 0.5, 0.9, 0.6], [0.8] * 6, [0.5] * 6
    >>> result = best_of([usual, worse, better])
    >>> result.leader, round(result.gain, 2), result.decided
    (2, 0.12, False)
    >>> best_of([usual, worse, [value + 0.1 for value in usual]]).decided
    True

    The best of many methods leads by chance alone, so the test corrects for the choice: the
    one-sided single-step max-t test of Westfall and Young, *Resampling-Based Multiple Testing*
    (1993), by sign flips of all differences of a unit together (all patterns up to 12 units). Wins
    and the honest gain repeat the choice in bootstrap resamples of the units.

    Args:
        values: for each method, one finite number per unit; larger is better. Ties go to the
            baseline, then to the first method.
        baseline: index of the method to beat.
        level, resamples, seed: as in `bootstrap`.

    Raises:
        PolicyError: lists of different lengths, no such baseline, or as `bootstrap`.
    """
    rows = _paired_rows(values, baseline)
    _check_resampling(level, resamples, seed)
    n = len(rows[0])
    # The baseline first: `argmax` resolves ties in favour of the first.
    order = np.array([baseline, *(k for k in range(len(rows)) if k != baseline)])
    gains = (np.stack(rows) - rows[baseline])[order]
    random = np.random.default_rng([seed, n])
    means = gains.mean(1)
    best = int(_first_largest(means))
    shares, honest_gain = _repeated_choice(gains, resamples, random)
    wins = np.zeros(len(rows))
    wins[order] = shares
    return Best(
        leader=int(order[best]),
        baseline=baseline,
        gain=float(means[best]),
        honest_gain=honest_gain,
        p_value=_max_t_p_value(gains, best, resamples, random),
        wins=tuple(map(float, wins)),
        level=float(level),
        n=n,
    )


def _paired_rows(
    values: Sequence[Numbers] | NDArray[np.floating], baseline: int
) -> list[NDArray[np.float64]]:
    """The numbers of each method; raises unless they are paired and `baseline` is one of them."""
    rows = [_sample(f"method {number}", row) for number, row in enumerate(values)]
    if not rows or len({len(row) for row in rows}) > 1:
        raise PolicyError(
            f"methods with {[len(row) for row in rows]} numbers are not paired",
            hint="one of each per image, and one method or more",
        )
    if baseline not in range(len(rows)):
        raise PolicyError(
            f"there is no method {baseline!r}", hint=f"pass a number from 0 to {len(rows) - 1}"
        )
    return rows


#: Decimals; smaller differences come from the order of additions.
_DIGITS = 12
_ROUNDING = 10.0**-_DIGITS
#: Up to this many units, all sign patterns are tried.
_MAX_UNITS_FOR_ALL_FLIPS = 12


def _first_largest(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Index of the first value along the last axis that equals the largest up to rounding."""
    first: NDArray[np.int64] = (values > values.max(-1, keepdims=True) - _ROUNDING).argmax(-1)
    return first


def _repeated_choice(
    gains: NDArray[np.float64], resamples: int, random: np.random.Generator
) -> tuple[NDArray[np.float64], float]:
    """Share of resamples that each method (methods, n) wins; mean gain on the units left out."""
    methods, n = gains.shape
    drawn = random.integers(0, n, (resamples, n))
    counts = np.zeros((resamples, n))
    np.add.at(counts, (np.arange(resamples)[:, None], drawn), 1.0)
    chosen = _first_largest(counts @ gains.T / n)
    left_out = counts == 0
    some_left_out = left_out.any(1)
    totals = (gains[chosen] * left_out)[some_left_out].sum(1)
    forecast = totals / left_out[some_left_out].sum(1)
    return (
        np.bincount(chosen, minlength=methods) / resamples,
        float(forecast.mean()) if some_left_out.any() else float("nan"),
    )


def _max_t_p_value(
    gains: NDArray[np.float64], best: int, resamples: int, random: np.random.Generator
) -> float:
    """How often the largest t of all methods (methods, n) reaches that of the best, by sign flips.

    The mean over the root mean square grows with Student's t, and no flip changes the latter.
    """
    n = gains.shape[1]
    scale = np.sqrt((gains**2).mean(1))
    scaled = gains / np.where(scale > 0, scale, 1.0)[:, None]
    if n <= _MAX_UNITS_FOR_ALL_FLIPS:
        flips = np.arange(2**n)[:, None] >> np.arange(n) & 1
    else:
        flips = random.integers(0, 2, (resamples, n))
        flips[0] = 0  # the data themselves
    flipped = np.where(flips, -1.0, 1.0) @ scaled.T / n
    return float((flipped.max(1) >= scaled[best].mean() - _ROUNDING).mean())


def _permutation(decided: NDArray[np.float64], resamples: int, seed: int) -> float:
    if len(decided) == 1:  # scipy requires two; both signs are as extreme
        return 1.0
    result = stats.permutation_test(
        (decided, np.zeros_like(decided)),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        n_resamples=resamples,
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


_TESTS: dict[str, Callable[[NDArray[np.float64], int, int], float]] = {
    "wilcoxon": lambda decided, *_: stats.wilcoxon(decided).pvalue,
    "permutation": _permutation,
    "sign": lambda decided, *_: stats.binomtest(int((decided > 0).sum()), len(decided)).pvalue,
}


def _check_resampling(level: float, resamples: int, seed: int) -> None:
    if not 0 < level < 1:
        raise PolicyError(f"level must lie in (0, 1), not {level!r}", hint="0.95 is usual")
    check_count("resamples", resamples, minimum=1, hint="2000 is usual")
    check_count("seed", seed, minimum=0, hint="pass 0")


def _sample(name: str, values: Numbers) -> NDArray[np.float64]:
    sample = np.asarray(values, np.float64)
    if sample.ndim != 1 or not len(sample) or not np.isfinite(sample).all():
        raise PolicyError(
            f"{name} must be one finite number per unit, one or more, not an array of shape "
            f"{sample.shape}" + ("" if np.isfinite(sample).all() else " with missing values"),
            hint="leave units without an answer out of both lists, and report their number",
        )
    return sample
