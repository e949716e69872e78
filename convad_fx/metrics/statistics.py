"""How sure can one be? Intervals by bootstrap, and paired tests, for samples that are small."""

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
    _check_resampling(level, resamples, seed)
    random = np.random.default_rng([seed, len(sample)])
    drawn = sample[random.integers(0, len(sample), (resamples, len(sample)))]
    # at once where it can be: many small samples are the rule
    found = drawn.mean(1) if statistic is np.mean else np.array([statistic(row) for row in drawn])
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
    difference = (a - b).round(_DIGITS)  # equal ones are ties, whatever rounding did to them
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


@dataclass(frozen=True, slots=True)
class Best:
    """The best of several methods on the same units, and whether it is more than luck.

    Args:
        leader: the number of the method with the largest mean; the baseline's if that is largest.
        baseline: the number of the one that the others are compared with.
        gain: the leader's mean less the baseline's. Too large as a forecast, because the leader
            was chosen for it.
        honest_gain: how much a choice made on a resample gains on the units left out of it: what
            choosing may gain on new units. NaN with fewer than two units.
        p_value: how often some method would stand out from the baseline as much as the leader does
            (by Student's t) if none differed from it.
        wins: for each method, the share of the resamples in which it is the best.
        level: `decided` wants a p-value of at most 1 - level.
        n: units.
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
        """Whether the leader is better than the baseline by more than luck explains."""
        return self.leader != self.baseline and self.p_value <= 1 - self.level + _ROUNDING

    @property
    def needed(self) -> int:
        """With fewer units than this nothing can be decided, whatever they say: 2^-n > 1 - level.

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
    >>> found = best_of([usual, worse, better])
    >>> found.leader, round(found.gain, 2), found.decided
    (2, 0.12, False)
    >>> best_of([usual, worse, [value + 0.1 for value in usual]]).decided
    True

    The best of many leads by luck alone, so the test allows for the choice: in every unit the
    differences of all methods from the baseline change their sign together, at random (in every
    way, up to 12 units), and the largest of their Student's t is compared with the leader's: the
    single-step max-t test of Westfall and Young, *Resampling-Based Multiple Testing* (1993), by
    sign flips, one-sided. Shares of wins and the honest gain repeat the choice in every bootstrap
    resample of the units.

    Args:
        values: for each method, one finite number per unit; larger is better. Ties go to the
            baseline, then to the method named first.
        baseline: the number of the method to beat.
        level, resamples, seed: as in `bootstrap`.

    Raises:
        PolicyError: lists of different lengths, no such baseline, or what `bootstrap` refuses.
    """
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
    _check_resampling(level, resamples, seed)
    n = len(rows[0])
    less = np.stack(rows) - rows[baseline]  # (methods, n)
    # The baseline first: `argmax` gives ties to what comes first.
    order = np.array([baseline, *(k for k in range(len(rows)) if k != baseline)])
    less = less[order]
    random = np.random.default_rng([seed, n])
    means = less.mean(1)
    best = int((means > means.max() - _ROUNDING).argmax())

    drawn = random.integers(0, n, (resamples, n))
    counts = np.zeros((resamples, n))
    np.add.at(counts, (np.arange(resamples)[:, None], drawn), 1.0)
    resampled = counts @ less.T / n  # (resamples, methods)
    chosen = (resampled > resampled.max(1, keepdims=True) - _ROUNDING).argmax(1)
    wins = np.zeros(len(rows))
    wins[order] = np.bincount(chosen, minlength=len(rows)) / resamples
    out = counts == 0
    some = out.any(1)
    left_out = less[chosen] * out
    forecast = left_out[some].sum(1) / out[some].sum(1)

    # Mean over root mean square grows with Student's t, and no flip changes what it divides by.
    scale = np.sqrt((less**2).mean(1))
    scaled = less / np.where(scale > 0, scale, 1.0)[:, None]
    flipped = _signs(n, resamples, random) @ scaled.T / n
    as_good = flipped.max(1) >= scaled[best].mean() - _ROUNDING
    return Best(
        leader=int(order[best]),
        baseline=baseline,
        gain=float(means[best]),
        honest_gain=float(forecast.mean()) if some.any() else float("nan"),
        p_value=float(as_good.mean()),
        wins=tuple(map(float, wins)),
        level=float(level),
        n=n,
    )


#: Differences smaller than this come from the order of additions.
_DIGITS = 12
_ROUNDING = 10.0**-_DIGITS
_ALL_FLIPS = 12


def _signs(n: int, resamples: int, random: np.random.Generator) -> NDArray[np.float64]:
    """Every way to flip signs of n units, or `resamples` of them; no flip at all is the first."""
    if n <= _ALL_FLIPS:
        bits = np.arange(2**n)[:, None] >> np.arange(n) & 1
    else:
        bits = random.integers(0, 2, (resamples, n))
        bits[0] = 0
    return np.where(bits, -1.0, 1.0)


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


def _check_resampling(level: float, resamples: int, seed: int) -> None:
    if not 0 < level < 1:
        raise PolicyError(f"level must lie in (0, 1), not {level!r}", hint="0.95 is usual")
    check_count("resamples", resamples, minimum=1, hint="2000 are usual")
    check_count("seed", seed, minimum=0, hint="pass 0")


def _sample(name: str, values: Numbers) -> NDArray[np.float64]:
    sample = np.asarray(values, np.float64)
    if sample.ndim != 1 or not len(sample) or not np.isfinite(sample).all():
        raise PolicyError(
            f"{name} must be one finite number per unit, one or more, not an array of shape "
            f"{sample.shape}" + ("" if np.isfinite(sample).all() else " with gaps"),
            hint="leave units without an answer out of both lists, and say how many they were",
        )
    return sample
