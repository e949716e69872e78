"""`Tuning`, the result of `tune`: measurements, the choice, and its significance."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from convad_fx.compiler.policy import Policy
from convad_fx.errors import PolicyError
from convad_fx.metrics import Best, Interval
from convad_fx.tuning.policies import policy_code, policy_options, policy_text

#: What "better" means, by aim.
CRITERIA: Mapping[str, str] = {
    "robust": "AUC of the masked network's confidence as a predictor of robust masks, whose kept "
    "pixels keep the class on other backgrounds in the original model; over random masks of an "
    "image, mean over images",
    "object": "overlap (IoU) of the explanation with the object's true mask, mean over images",
}

#: Share of the resamples that a policy must win to be named beside the leader.
_MIN_RIVAL_WINS = 0.1


@dataclass(frozen=True, slots=True)
class Explained:
    """The explanation of one image under one policy.

    Args:
        size: share of the pixels kept, in [0, 1].
        rho: share of the backgrounds on which the original model still gives the class.
        sufficient: whether it was sufficient when rechecked.
        iou: overlap with the object's true mask; None without one.
        energy: share of the responsibility on the object; None without a true mask, or where the
            map is zero.
    """

    size: float
    rho: float
    sufficient: bool
    iou: float | None
    energy: float | None


@dataclass(frozen=True, slots=True)
class Measured:
    """One image under one policy.

    Args:
        image: its name.
        auc: how often a robust random mask, whose pixels keep the class on other backgrounds, has
            more confidence than one that is not; None where all are robust, or none is. That
            depends on the original model alone, so it is None under every policy or under none.
        called_sufficient: share of the random masks that suffice for the masked network.
        robust_given_sufficient: mean rho of those; None if there are none.
        explained: the explanation, if one was made.
    """

    image: str
    auc: float | None
    called_sufficient: float
    robust_given_sufficient: float | None
    explained: Explained | None = None


@dataclass(frozen=True, slots=True)
class Trial:
    """A policy and its measurements.

    Args:
        policy: the policy.
        images: in the given order.
        score: mean of the criterion over the images that have it; None where none has.
        wins: share of the bootstrap resamples of the images in which it is the best of all.
    """

    policy: Policy
    images: tuple[Measured, ...]
    score: float | None
    wins: float

    def mean(self, name: str) -> float | None:
        """Mean over images of a field of `Measured` or `Explained`; None where none has it.

        Raises:
            PolicyError: there is no such field.
        """
        of_image = {field.name for field in dataclasses.fields(Measured)} - {"image", "explained"}
        of_explained = {field.name for field in dataclasses.fields(Explained)}
        if name not in of_image | of_explained:
            raise PolicyError(
                f"there is no measurement called {name!r}",
                hint=f"pass one of {', '.join(sorted(of_image | of_explained))}",
            )
        rows = self.images if name in of_image else [image.explained for image in self.images]
        return mean_of_known(getattr(row, name) for row in rows if row is not None)


def mean_of_known(values: Iterable[float | None]) -> float | None:
    """The mean of those that are not None; None if all are.

    >>> mean_of_known([1.0, None, 2.0]), mean_of_known([None])
    (1.5, None)
    """
    known = [float(value) for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


@dataclass(frozen=True, slots=True)
class Tuning:
    """The policy to use, and its significance; `str` gives a table that ends in a verdict.

    Args:
        aim: a key of `CRITERIA`.
        trials: all policies, in the order in which they were tried; the baseline is the first.
        leader: index of the trial with the best score; 0 where no image has the criterion.
        best: the comparison with the baseline; None where no image has the criterion.
        difference: leader minus baseline over these images, with its bootstrap interval, which is
            not corrected for the choice of the leader; None as `best`.
        gamma: the share of the confidence that was to be kept.
        seed: of everything random.
    """

    aim: str
    trials: tuple[Trial, ...]
    leader: int
    best: Best | None
    difference: Interval | None
    gamma: float
    seed: int

    @property
    def decided(self) -> bool:
        """Whether the leader is significantly better than the baseline."""
        return self.best is not None and self.best.decided

    @property
    def policy(self) -> Policy:
        """The policy to use: the leader if `decided`, else the baseline."""
        return self.trials[self.leader if self.decided else 0].policy

    @property
    def counted(self) -> int:
        """Number of images that have the criterion."""
        return 0 if self.best is None else self.best.n

    @property
    def verdict(self) -> str:
        """The conclusion, in a sentence or two."""
        best, total = self.best, len(self.trials[0].images)
        baseline, leader = (policy_text(self.trials[k].policy) for k in (0, self.leader))
        counted = _images(total)
        if self.counted < total:
            reason = {
                "robust": "all masks of the others are robust, or none is",
                "object": "the others have no true mask",
            }[self.aim]
            counted = f"{_images(self.counted)} of {total} ({reason})"
        needed = 5 if best is None else best.needed
        if best is None or self.counted < needed:
            return (
                f"No conclusion from {counted}: with fewer than {needed} no difference between "
                f"policies is significant. Keep {baseline}."
            )
        if len(self.trials) == 1:
            return f"Only {baseline} was tried: there is no choice."
        if self.leader == 0:
            return f"Keep {baseline}: none of the {len(self.trials)} is ahead of it on {counted}."
        assert self.difference is not None
        lead = (
            f"ahead of {baseline} by {best.gain:.3f} "
            f"[{self.difference.low:.3f}, {self.difference.high:.3f}] on {counted} "
            f"(p = {best.p_value:.2g}, corrected for the choice among {len(self.trials)}) and the "
            f"best in {best.wins[self.leader]:.0%} of resamples of the images"
        )
        if not self.decided:
            return f"Not significant: {leader} is {lead}. Keep {baseline}."
        rivals = [
            policy_text(trial.policy)
            for k, trial in enumerate(self.trials)
            if k != self.leader and trial.wins >= _MIN_RIVAL_WINS
        ]
        others = f" Others may be as good: {', '.join(rivals)}." if rivals else ""
        return (
            f"Use {leader}: {lead}. On images left out of the choice, such choices gain "
            f"{best.honest_gain:+.3f}.{others}"
        )

    def __str__(self) -> str:
        options = policy_options(self.policy)
        return (
            f"{_table(self)}\n\n{self.verdict}\n\n"
            f"In Python:           {policy_code(self.policy)}\n"
            f"On the command line: {options or '(no option: it is the default)'}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, for JSON."""
        return {
            "aim": self.aim,
            "criterion": CRITERIA[self.aim],
            "policy": self.policy.to_dict(),
            "options": policy_options(self.policy),
            "decided": self.decided,
            "verdict": self.verdict,
            "images": len(self.trials[0].images),
            "counted": self.counted,
            "leader": self.leader,
            "best": None if self.best is None else _plain(dataclasses.asdict(self.best)),
            "difference": None if self.difference is None else dataclasses.asdict(self.difference),
            "gamma": self.gamma,
            "seed": self.seed,
            "trials": [dataclasses.asdict(trial) for trial in self.trials],
        }


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """NaN, which JSON does not have, replaced by None."""
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in values.items()
    }


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


#: Of each column: title, argument of `Trial.mean`, format, legend.
_COLUMNS = (
    ("suffice", "called_sufficient", ".0%", "random masks that suffice for the masked network"),
    ("survive", "robust_given_sufficient", ".0%", "of backgrounds, by the original, for those"),
    ("kept", "size", ".0%", "share of the image, in explanations"),
    ("kept survives", "rho", ".0%", "of backgrounds, for explanations"),
    ("IoU", "iou", ".2f", "of explanations with the object"),
    ("energy", "energy", ".2f", "share of the responsibility that lies on the object"),
)


def _table(tuning: Tuning) -> str:
    """A row per policy, the best first, a star at the one to use; and a legend."""
    columns = [
        column
        for column in _COLUMNS
        if any(trial.mean(column[1]) is not None for trial in tuning.trials)
    ]
    rows = [["  policy", "score", "best in", *(title for title, *_ in columns)]]
    for trial in sorted(tuning.trials, key=lambda trial: -(trial.score or 0.0)):
        star = "*" if trial.policy == tuning.policy else " "
        row = [f"{star} {policy_text(trial.policy)}", "-", "-"]
        if trial.score is not None:
            row[1:] = [f"{trial.score:.3f}", f"{trial.wins:.0%}"]
        for _, name, spec, _ in columns:
            value = trial.mean(name)
            row.append("-" if value is None else format(value, spec))
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        )
        for row in rows
    ]
    legend = [
        f"score: {CRITERIA[tuning.aim]}",
        "best in: share of resamples of the images in which it has the best score",
    ]
    legend += [f"{title}: {meaning}" for title, _, _, meaning in columns]
    return "\n".join([*lines, "", *legend])
