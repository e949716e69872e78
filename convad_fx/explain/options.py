"""The options of the search, and their ranges: checked in one place and in one wording."""

from __future__ import annotations

import math
from dataclasses import dataclass

from convad_fx.errors import PolicyError

SPLITS = ("uniform", "binomial", "beta-binomial")
QUEUES = ("area", "intersection", "all")
ORDERS = ("responsibility", "spatial")

#: The most that a combination must keep where `Search.confidence` is left open.
STRICT = 0.9


def check_count(name: str, value: object, *, least: int, hint: str) -> None:
    """Refuses what is not a whole number of at least `least`.

    >>> check_count("seed", 1.5, least=0, hint="pass 0")
    Traceback (most recent call last):
    convad_fx.errors.PolicyError: seed must be a whole number of at least 0, not 1.5; pass 0
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise PolicyError(
            f"{name} must be a whole number of at least {least}, not {value!r}", hint=hint
        )


def check_share(name: str, value: object, *, zero: bool, hint: str) -> None:
    """Refuses what is not a number in [0, 1], or in (0, 1] unless `zero` is allowed."""
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else None
    if number is None or not 0 <= number <= 1 or (number == 0 and not zero):  # NaN fails, too
        raise PolicyError(
            f"{name} must lie in {'[' if zero else '('}0, 1], not {value!r}", hint=hint
        )


def check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Refuses what is none of the names allowed."""
    if value not in allowed:
        raise PolicyError(
            f"{name} must be one of {', '.join(allowed)}, not {value!r}",
            hint=f"the default is {Search.__dataclass_fields__[name].default}",
        )


def check_class(target: int, classes: int, *, or_none: bool = False) -> None:
    """Refuses a class that the model does not have; the hint may name None, where that is taken."""
    if target not in range(classes):
        raise PolicyError(
            f"target {target!r} is no class of this network",
            hint=f"pass a number from 0 to {classes - 1}"
            + ", or None for the network's answer" * or_none,
        )


@dataclass(frozen=True, slots=True)
class Search:
    """How much is asked, and how. docs/search.md says what the defaults were chosen from.

    >>> Search(partitions=5).evaluations          # never more masks than this
    560

    The first group steers the responsibility of pixels, the second what is made of it.

    Args:
        partitions: random partitions whose responsibilities are added up (ReX: iters); more make
            smoother maps.
        min_box: boxes of this many pixels (area) or fewer are not split further.
        max_splits: boxes split per partition; each costs 14 masks.
        depth: how often a part may be split again, or None for no limit (ReX: tree_depth).
        confidence: a combination passes if the class is the target and its confidence is at least
            this share of that on the whole image; in [0, 1]. At 0 the class decides alone, as in
            ReX by default (ReX: confidence_filter). None: what the set itself must keep, `gamma`,
            but at most `STRICT`: parts that keep all of the confidence are seldom met.
        weighted: passing combinations count by their confidence relative to the whole image's
            (at most 1, in sixty-fourths) instead of one each.
        split: where a box is cut: "uniform", or nearer the middle: "binomial" (p = 1/2) or
            "beta-binomial".
        split_shape: the two positive parameters of the beta distribution; (1, 1) is uniform.
        queue: inside which passing combinations the search goes on: "area": the smallest;
            "intersection": the smallest of those that contain the parts common to all that pass
            (if there are none, the part that most of them share); "all": every one.
        queue_len: how many of them are followed, for "area" and "intersection".
        stable: stop when the ranking of the pixels is this reliable, in (0, 1]; None: never. It is
            estimated from two independent halves of the partitions (see `agreement`).
        order: how pixels are added until they suffice: by "responsibility" alone, or "spatial":
            those in the smallest passing disc around the peak first (ReX's spatial strategy).
        minimal: if positive, the set found is shrunk until no block of this many pixels' side can
            be left out; 0: not at all.
        budget: the most masks to ask about, all steps together, or None.

    Raises:
        PolicyError: a field out of its range.
    """

    partitions: int = 10
    min_box: int = 10
    max_splits: int = 8
    confidence: float | None = None
    depth: int | None = None
    weighted: bool = False
    split: str = "uniform"
    split_shape: tuple[float, float] = (2.0, 2.0)
    queue: str = "area"
    queue_len: int = 1
    stable: float | None = None
    order: str = "spatial"
    minimal: int = 0
    budget: int | None = None

    def __post_init__(self) -> None:
        for name in ("partitions", "min_box", "max_splits", "queue_len"):
            default = Search.__dataclass_fields__[name].default
            check_count(name, getattr(self, name), least=1, hint=f"the default is {default}")
        for name in ("depth", "budget"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), least=1, hint="None sets no limit")
        check_count("minimal", self.minimal, least=0, hint="0 leaves the set as it is found")
        if self.confidence is not None:
            hint = "at 0 the class decides alone, as in ReX"
            check_share("confidence", self.confidence, zero=True, hint=hint)
        if self.stable is not None:
            check_share("stable", self.stable, zero=False, hint="0.9 is strict; None never stops")
        weighted: object = self.weighted
        if not isinstance(weighted, bool):
            raise PolicyError(
                f"weighted must be True or False, not {weighted!r}", hint="the default is False"
            )
        check_choice("split", self.split, SPLITS)
        check_choice("queue", self.queue, QUEUES)
        check_choice("order", self.order, ORDERS)
        given: object = self.split_shape
        shape = list(given) if isinstance(given, tuple | list) else []
        if len(shape) != 2 or not all(
            isinstance(n, int | float) and 0 < n < math.inf for n in shape
        ):
            raise PolicyError(
                f"split_shape must be two positive numbers, not {given!r}",
                hint="(1, 1) is uniform; larger numbers cut nearer the middle",
            )
        # As a tuple of floats whatever it came as: JSON knows lists only.
        object.__setattr__(self, "split_shape", (float(shape[0]), float(shape[1])))

    @property
    def evaluations(self) -> int:
        """The most masks that responsibility can cost."""
        most = self.partitions * self.max_splits * 14  # proper combinations of four parts
        return most if self.budget is None else min(most, self.budget)
