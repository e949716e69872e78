"""Sets made 1-minimal: nothing else can be left out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from maskers import IMAGE, LEFT, QUICK, RIGHT, Counting, both, either, share, whole

from convad_fx.explain import Evaluator, explain
from convad_fx.explain.goals import Suffices
from convad_fx.explain.minimal import grid_blocks, shrink
from convad_fx.explain.ranking import pixel_ranks
from convad_fx.explain.sufficient import recheck


@pytest.mark.parametrize("side", [1, 3, 8])
@pytest.mark.parametrize(
    "strength", [share(LEFT), whole(LEFT), both(share(LEFT), share(RIGHT)),
                 either(share(LEFT), share(RIGHT))]
)  # fmt: skip
def test_minimal_sets_are_minimal_from_scratch(side: int, strength) -> None:
    masker = Counting(strength)
    search = replace(QUICK, minimal=side)
    why = explain(masker, IMAGE, search=search)
    assert why.minimal
    assert why.sufficient
    assert f"minimal in blocks of {side}" in str(why)
    at_least = why.gamma * why.confidence_whole
    evaluator = Evaluator(Counting(strength), IMAGE)
    label = grid_blocks((48, 64), side)
    without = [why.mask & (label != n) for n in np.unique(label[why.mask])]
    assert not evaluator.scores(without, 1).passing(at_least).any()
    plain = explain(Counting(strength), IMAGE, search=QUICK)
    assert (why.mask & ~plain.mask).sum() == 0
    assert not plain.minimal


def test_shrinking_goes_from_everything_to_the_patch() -> None:
    evaluator, goal = Evaluator(Counting(whole(LEFT)), IMAGE), Suffices(1, 0.9)
    everything = recheck(evaluator, goal, np.ones((48, 64), bool), 1.0)
    rank = pixel_ranks(np.zeros((48, 64), np.float32))
    small = shrink(evaluator, goal, everything, rank, 2)
    assert small.minimal
    expected = np.zeros((48, 64), bool)
    expected[LEFT.slices] = True  # its sides lie on the grid of 2
    assert np.array_equal(small.mask, expected)


@pytest.mark.parametrize("limit", [0, 1, 5, 20, 60])
def test_a_limit_is_kept_and_the_set_stays_sufficient(limit: int) -> None:
    evaluator, goal = Evaluator(Counting(share(LEFT)), IMAGE), Suffices(1, 0.9)
    everything = recheck(evaluator, goal, np.ones((48, 64), bool), 1.0)
    before = evaluator.evaluations
    rank = pixel_ranks(np.zeros((48, 64), np.float32))
    small = shrink(evaluator, goal, everything, rank, 2, limit=limit)
    assert evaluator.evaluations - before <= limit
    assert goal.reached(evaluator.scores([small.mask], 1))[0]
    assert not small.minimal


def test_of_two_reasons_the_more_responsible_is_kept() -> None:
    evaluator, goal = (
        Evaluator(Counting(either(share(LEFT), share(RIGHT))), IMAGE),
        Suffices(1, 0.9),
    )
    everything = recheck(evaluator, goal, np.ones((48, 64), bool), 1.0)
    for box, other in ((LEFT, RIGHT), (RIGHT, LEFT)):
        ranking = np.zeros((48, 64), np.float32)
        ranking[box.slices] = 1
        small = shrink(evaluator, goal, everything, pixel_ranks(ranking), 4)
        assert small.mask[box.slices].mean() > 0.7
        assert not small.mask[other.slices].any()


def test_rounding_undoes_the_last_steps_only() -> None:
    """Alone, sets below 300 pixels fail by a hair; they are not reported."""

    class Rounding(Counting):
        def __call__(self, x, mask, /):
            low = (len(mask) == 1) & (mask.sum((1, 2, 3)) < 300)
            return super().__call__(x, mask) - torch.tensor([0, 9.0, 0]) * low[:, None]

    evaluator, goal = Evaluator(Rounding(share(LEFT)), IMAGE), Suffices(1, 0.9)
    everything = recheck(evaluator, goal, np.ones((48, 64), bool), 1.0)
    small = shrink(evaluator, goal, everything, pixel_ranks(np.zeros((48, 64), np.float32)), 2)
    assert not small.minimal
    assert small.passed
    assert 300 <= small.mask.sum() < 48 * 64
