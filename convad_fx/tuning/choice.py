"""What was measured, what follows from it, and how sure that is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from convad_fx.compiler.policy import Policy
from convad_fx.errors import PolicyError
from convad_fx.metrics import Best, Interval
from convad_fx.tuning.spelling import policy_code, policy_options, policy_text

#: What "better" means, by aim.
CRITERIA: Mapping[str, str] = {
    "robust": "how well the masked network's confidence tells masks whose kept pixels keep the "
    "class on other backgrounds in the original model from masks whose pixels do not: AUC over "
    "random masks of an image, mean over images",
    "object": "how well the sufficient part found covers the object's true mask: IoU, mean over "
    "images",
}

#: A policy that wins in this share of the resamples may be the best as well.
_RIVAL = 0.1


@dataclass(frozen=True, slots=True)
class Explained:
    """The explanation of one image under one policy.

    Args:
        size: share of the pixels kept, in [0, 1].
        rho: share of the backgrounds on which the original model still gives the class.
        sufficient: whether it was sufficient when asked again.
        iou: overlap with the object's true mask; None without one.
        energy: share of the responsibility on the object; None without a true mask or without a
            map, because nothing needed to be kept or nothing was learnt.
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
        auc: how often a random mask whose pixels keep the class on other backgrounds has more
            confidence than one whose pixels do not; None where all masks do, or none does. That
            depends on the original model alone, so it is None under every policy or under none.
        called_sufficient: share of the random masks that are sufficient to the masked network.
        robust_given_sufficient: mean rho of those; None if there are none.
        explained: the explanation, where one was asked for.
    """

    image: str
    auc: float | None
    called_sufficient: float
    robust_given_sufficient: float | None
    explained: Explained | None = None


@dataclass(frozen=True, slots=True)
class Trial:
    """A policy, and what was measured of it.

    Args:
        policy: the one tried.
        images: in the order in which they were given.
        score: mean of the criterion over the images that count; None where none counts.
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
                f"nothing called {name!r} was measured",
                hint=f"pass one of {', '.join(sorted(of_image | of_explained))}",
            )
        rows = self.images if name in of_image else [one.explained for one in self.images]
        values = [getattr(row, name) for row in rows if row is not None]
        found = [float(value) for value in values if value is not None]
        return math.fsum(found) / len(found) if found else None


@dataclass(frozen=True, slots=True)
class Tuning:
    """Which policy to use, and how sure that is. `str` of it is a table that ends in a verdict.

    Args:
        aim: what was tuned for, a key of `CRITERIA`.
        trials: all policies, in the order in which they were tried; the baseline is the first.
        leader: the number of the trial with the best score; 0 where nothing counts.
        best: how sure it is that the leader is better than the baseline; None where no image
            counts.
        difference: leader less baseline over the images that count, with its bootstrap interval,
            which does not allow for the choice of the leader; None as `best`.
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
        """Whether the leader is better than the baseline by more than luck explains."""
        return self.best is not None and self.best.decided

    @property
    def policy(self) -> Policy:
        """The one to use: the leader where that is decided, else the baseline."""
        return self.trials[self.leader if self.decided else 0].policy

    @property
    def counted(self) -> int:
        """Images that say something about the criterion."""
        return 0 if self.best is None else self.best.n

    @property
    def verdict(self) -> str:
        """What follows, in a sentence or two for people."""
        given = len(self.trials[0].images)
        baseline, leader = (policy_text(self.trials[k].policy) for k in (0, self.leader))
        counted = f"{_images(self.counted)} of {given}" if self.counted < given else _images(given)
        why = {
            "robust": "the masks of the others all keep the class, or none does",
            "object": "the others have no true mask",
        }[self.aim]
        remark = f" ({why})" if self.counted < given else ""
        if self.best is None or self.counted < self.best.needed:
            needed = 5 if self.best is None else self.best.needed
            return (
                f"Nothing can be said from {counted}{remark}: with fewer than {needed} no policy "
                f"can be told from another, whatever the numbers. Keep {baseline}."
            )
        if len(self.trials) == 1:
            return f"Only {baseline} was tried: there is nothing to choose from."
        best = self.best
        if self.leader == 0:
            return f"Keep {baseline}: none of the {len(self.trials)} is ahead of it on {counted}."
        assert self.difference is not None
        interval = f"[{self.difference.low:.3f}, {self.difference.high:.3f}]"
        ahead = (
            f"ahead of {baseline} by {best.gain:.3f} {interval} on {counted}{remark} "
            f"(p = {best.p_value:.2g}, the choice among {len(self.trials)} allowed for)"
        )
        again = f"It is the best again in {best.wins[self.leader]:.0%} of resamples of the images"
        if not self.decided:
            return (
                f"Cannot tell: {leader} is {ahead}. {again}. That is what luck explains: keep "
                f"{baseline}."
            )
        others = [
            policy_text(trial.policy)
            for k, trial in enumerate(self.trials)
            if k != self.leader and trial.wins >= _RIVAL
        ]
        told = f" It is not told apart from {', '.join(others)}." if others else ""
        return (
            f"Use {leader}: {ahead}. {again}; on images that had no part in the choice such "
            f"choices gain {best.honest_gain:+.3f}.{told}"
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
    """Without NaN, which is no JSON."""
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in values.items()
    }


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


#: Heads of the columns, what `Trial.mean` gives them, how it is written, and what it is.
_COLUMNS = (
    (
        "suffice",
        "called_sufficient",
        ".0%",
        "random masks that the masked network calls sufficient",
    ),
    ("survive", "robust_given_sufficient", ".0%", "of backgrounds, by the original, for those"),
    ("kept", "size", ".0%", "of the picture, in explanations"),
    ("kept survives", "rho", ".0%", "of backgrounds, for explanations"),
    ("IoU", "iou", ".2f", "of explanations with the object"),
    ("energy", "energy", ".2f", "share of the responsibility that lies on the object"),
)


def _table(tuning: Tuning) -> str:
    """The best first, a star at the one to use, and what the columns mean."""
    columns = [
        column
        for column in _COLUMNS
        if any(trial.mean(column[1]) is not None for trial in tuning.trials)
    ]
    rows = [["  policy", "score", "best in", *(head for head, *_ in columns)]]
    for trial in sorted(tuning.trials, key=lambda trial: -(trial.score or 0.0)):
        star = "*" if trial.policy == tuning.policy else " "
        row = [f"{star} {policy_text(trial.policy)}", "-", "-"]
        if trial.score is not None:
            row[1:] = [f"{trial.score:.3f}", f"{trial.wins:.0%}"]
        for _, name, form, _ in columns:
            value = trial.mean(name)
            row.append("-" if value is None else format(value, form))
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        )
        for row in rows
    ]
    legend = [f"score: {CRITERIA[tuning.aim]}"]
    legend.append("best in: share of resamples of the images in which it has the best score")
    legend += [f"{head}: {meaning}" for head, _, _, meaning in columns]
    return "\n".join([*lines, "", *legend])
