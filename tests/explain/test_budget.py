"""Limits on evaluations, counted on a real evaluator."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from maskers import Counting, always

from convad_fx.errors import PolicyError
from convad_fx.explain import Evaluator, Search
from convad_fx.explain.budget import EvaluationLimit, ExplanationBudget
from convad_fx.explain.ranking import MAX_DISCS
from convad_fx.explain.sufficient import max_prefix_evaluations


def evaluator_after(evaluations: int) -> Evaluator:
    evaluator = Evaluator(Counting(always), torch.zeros(1, 8, 8))
    spend(evaluator, evaluations)
    return evaluator


def spend(evaluator: Evaluator, evaluations: int) -> None:
    evaluator.logits(np.arange(64).reshape(8, 8) < n for n in range(evaluations))


def test_a_limit_counts_from_where_it_is_set() -> None:
    evaluator = evaluator_after(5)
    limit, unlimited = EvaluationLimit(evaluator, 10), EvaluationLimit(evaluator, None)
    spend(evaluator, 4)
    assert (limit.left, unlimited.left) == (6, None)
    assert [limit.allows(n) for n in (6, 7)] == [True, False]
    assert unlimited.allows(10**9)


@pytest.mark.parametrize("minimal", [0, 4])
@pytest.mark.parametrize("contrastive", [False, True])
def test_the_steps_share_the_budget(minimal: int, contrastive: bool) -> None:
    evaluator, prefix = evaluator_after(3), max_prefix_evaluations(64)
    search = Search(budget=1000, minimal=minimal)
    budget = ExplanationBudget(evaluator, search, 1, contrastive=contrastive)
    contrast = prefix + 1 if contrastive else 0
    for_search = 999 - prefix - MAX_DISCS - contrast
    assert budget.for_search() == (for_search * 2 // 3 if minimal else for_search)
    assert budget.for_shrinking() == ((999 - contrast) // 2 if contrastive else 999)
    spend(evaluator, 9)
    assert budget.for_contrast() == 999 - 9 - 1


def test_a_budget_too_small_names_the_least() -> None:
    least = 2 + max_prefix_evaluations(64)
    search = Search(budget=least - 1, order="responsibility")
    with pytest.raises(PolicyError, match=f"up to {least} masks for 8 x 8 pixels; .* of {least}"):
        ExplanationBudget(evaluator_after(1), search, 1, contrastive=False)
    no_limit = ExplanationBudget(evaluator_after(1), Search(), 1, contrastive=True)
    assert no_limit.for_search() is no_limit.for_shrinking() is no_limit.for_contrast() is None
