"""`Search`, the options of the search, and the range checks that all functions share."""

from __future__ import annotations

import math
from dataclasses import dataclass

from convad_fx.errors import PolicyError

SPLITS = ("uniform", "binomial", "beta-binomial")
QUEUES = ("area", "intersection", "all")
ORDERS = ("responsibility", "spatial")

#: Upper bound of the default of `Search.confidence`, which is otherwise `gamma`.
MAX_DEFAULT_CONFIDENCE = 0.9


def check_count(name: str, value: object, *, minimum: int, hint: str) -> None:
    """Raise unless the value is a whole number of at least `minimum`.

    >>> check_count("seed", 1.5, minimum=0, hint="pass 0")
    Traceback (most recent call last):
    convad_fx.errors.PolicyError: seed must be a whole number of at least 0, not 1.5; pass 0
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise PolicyError(
            f"{name} must be a whole number of at least {minimum}, not {value!r}", hint=hint
        )


def check_share(name: str, value: object, *, allow_zero: bool, hint: str) -> None:
    """Raise unless the value is a number in [0, 1], or in (0, 1] without `allow_zero`."""
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else None
    # NaN fails the comparison.
    if number is None or not 0 <= number <= 1 or (number == 0 and not allow_zero):
        raise PolicyError(
            f"{name} must lie in {'[' if allow_zero else '('}0, 1], not {value!r}", hint=hint
        )


def check_class(target: int, classes: int, *, allow_none: bool = False) -> None:
    """Raise unless 0 <= target < classes; the hint mentions None where the caller accepts it."""
    if target not in range(classes):
        raise PolicyError(
            f"target {target!r} is not a class of this network",
            hint=f"pass a number from 0 to {classes - 1}"
            + ", or None for the network's answer" * allow_none,
        )


@dataclass(frozen=True, slots=True)
class Search:
    """The options of the search; docs/search.md has their names in ReX and the measurements.

    >>> Search(partitions=5).evaluations          # upper bound of the masks for the map
    560

    Args:
        partitions: random partitions whose responsibilities are summed.
        min_box: boxes of this many pixels (area) or fewer are not split further.
        max_splits: boxes split per partition; each costs 14 masks.
        depth: how often a part may be split again; None: no limit.
        confidence: the share of the whole image's confidence that a combination must keep to pass,
            in [0, 1]; at 0 only the class counts. None: `gamma`, at most 0.9.
        weighted: combinations count by their confidence relative to the whole image's (at most 1,
            in sixty-fourths) instead of 1 each.
        split: how cuts are drawn: "uniform", or more often near the middle: "binomial" (p = 1/2)
            or "beta-binomial".
        split_shape: the two positive parameters of the beta distribution; (1, 1) is uniform.
        queue: the passing combinations in which the search continues: "area": the smallest;
            "intersection": the smallest of those with the parts common to all that pass; "all".
        queue_len: number of them, for "area" and "intersection".
        stable: stop when the ranking is this reliable, in (0, 1] (`reliability`); None: never.
        order: how pixels are added: by "responsibility" alone, or "spatial": those in the smallest
            passing disc around the peak first.
        minimal: side in pixels of the blocks in which the set is made 1-minimal; 0: not at all.
        budget: the most masks to evaluate, all steps together; None: no limit.

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
            check_count(name, getattr(self, name), minimum=1, hint=_default_hint(name))
        for name in ("depth", "budget"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), minimum=1, hint="None sets no limit")
        check_count("minimal", self.minimal, minimum=0, hint="0 leaves the set as it is found")
        if self.confidence is not None:
            hint = "at 0 only the class counts, as in ReX"
            check_share("confidence", self.confidence, allow_zero=True, hint=hint)
        if self.stable is not None:
            hint = "0.9 is strict; None never stops"
            check_share("stable", self.stable, allow_zero=False, hint=hint)
        weighted: object = self.weighted
        if not isinstance(weighted, bool):
            raise PolicyError(
                f"weighted must be True or False, not {weighted!r}", hint=_default_hint("weighted")
            )
        for name, choices in (("split", SPLITS), ("queue", QUEUES), ("order", ORDERS)):
            value = getattr(self, name)
            if value not in choices:
                raise PolicyError(
                    f"{name} must be one of {', '.join(choices)}, not {value!r}",
                    hint=_default_hint(name),
                )
        # A tuple of floats, also where JSON gave a list.
        object.__setattr__(self, "split_shape", _beta_parameters(self.split_shape))

    @property
    def evaluations(self) -> int:
        """Upper bound of the masks that the responsibility map costs."""
        limit = self.partitions * self.max_splits * 14  # proper combinations of four parts
        return limit if self.budget is None else min(limit, self.budget)


def _default_hint(name: str) -> str:
    return f"the default is {Search.__dataclass_fields__[name].default}"


def _beta_parameters(value: object) -> tuple[float, float]:
    numbers = list(value) if isinstance(value, tuple | list) else []
    if len(numbers) != 2 or not all(
        isinstance(n, int | float) and 0 < n < math.inf for n in numbers
    ):
        raise PolicyError(
            f"split_shape must be two positive numbers, not {value!r}",
            hint="(1, 1) is uniform; larger numbers cut nearer the middle",
        )
    return float(numbers[0]), float(numbers[1])
