"""Limits on evaluations: of one step, and of all steps of an explanation together."""

from __future__ import annotations

from convad_fx.errors import PolicyError
from convad_fx.explain.evaluator import Evaluator
from convad_fx.explain.options import Search
from convad_fx.explain.ranking import MAX_DISCS
from convad_fx.explain.sufficient import max_prefix_evaluations


class EvaluationLimit:
    """At most `limit` evaluations from now on; None: no limit."""

    def __init__(self, evaluator: Evaluator, limit: int | None) -> None:
        self._evaluator = evaluator
        self._end = None if limit is None else evaluator.evaluations + limit

    @property
    def left(self) -> int | None:
        """Evaluations left, or None without a limit."""
        return None if self._end is None else self._end - self._evaluator.evaluations

    def allows(self, evaluations: int) -> bool:
        """Whether so many more evaluations are within the limit."""
        return self.left is None or evaluations <= self.left


class ExplanationBudget:
    """Divides `Search.budget` among the steps of one explanation.

    Args:
        evaluator: counts the evaluations.
        search: the options.
        spent: evaluations made already.
        contrastive: whether a contrast is wanted.

    Raises:
        PolicyError: the budget is smaller than what the steps after the search may need.
    """

    def __init__(
        self, evaluator: Evaluator, search: Search, spent: int, *, contrastive: bool
    ) -> None:
        height, width = evaluator.shape
        prefix = max_prefix_evaluations(height * width)
        self._set = prefix + (MAX_DISCS if search.order == "spatial" else 0)
        self._contrast = prefix + 1 if contrastive else 0
        self._minimal = search.minimal > 0
        required = 2 + self._set + self._contrast  # 2: the whole image, and the empty mask
        if search.budget is not None and search.budget < required:
            raise PolicyError(
                f"a budget of {search.budget} is too small: once pixels are ranked, finding the "
                f"set takes up to {required} masks for {height} x {width} pixels",
                hint=f"pass a budget of {required} plus the cost of the search, for example 2000",
            )
        left = None if search.budget is None else search.budget - spent
        self._limit = EvaluationLimit(evaluator, left)

    def for_search(self) -> int | None:
        """All but what finding the set needs; two thirds of it if the set is then shrunk."""
        left = self._except(self._set + self._contrast)
        return left * 2 // 3 if left is not None and self._minimal else left

    def for_shrinking(self) -> int | None:
        """All but the contrast's share; half of it if the contrast is shrunk as well."""
        left = self._except(self._contrast)
        return left // 2 if left is not None and self._contrast else left

    def for_contrast(self) -> int | None:
        """All but the last evaluation."""
        return self._except(1)

    def _except(self, reserved: int) -> int | None:
        left = self._limit.left
        return None if left is None else left - reserved
