"""The shortest prefix found, and what is promised about it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from maskers import Counting, share

from convad_fx.explain import Evaluator
from convad_fx.explain.goals import Suffices
from convad_fx.explain.ranking import pixel_ranks
from convad_fx.explain.responsibility import Box
from convad_fx.explain.sufficient import shortest_prefix


class Prefixes:
    """A masker that passes for given numbers of kept pixels only."""

    def __init__(self, passing) -> None:
        self.passing, self.asked = passing, []

    def __call__(self, x, mask, /):
        counts = mask.sum((1, 2, 3))
        self.asked += counts.tolist()
        passes = torch.tensor([bool(self.passing(int(n))) for n in counts]).float()
        return torch.stack([1 - passes, passes], 1) * 8


@given(st.integers(0, 400))
def test_the_shortest_prefix_of_a_monotone_network_is_found(needed: int) -> None:
    masker = Prefixes(lambda n: n >= needed)
    evaluator = Evaluator(masker, torch.zeros(1, 20, 20))
    found = shortest_prefix(
        evaluator, Suffices(1, 0.9), pixel_ranks(np.zeros((20, 20), np.float32))
    )
    assert found.mask.sum() == needed
    assert found.passed
    assert evaluator.evaluations == len(masker.asked) < 60


@given(st.sets(st.integers(0, 143)))
def test_what_is_promised_where_sufficiency_is_not_monotone(passing: set[int]) -> None:
    masker = Prefixes(lambda n: n in passing or n == 144)
    found = shortest_prefix(
        Evaluator(masker, torch.zeros(1, 12, 12)),
        Suffices(1, 0.9),
        pixel_ranks(np.zeros((12, 12), np.float32)),
    )
    length = int(found.mask.sum())
    assert found.passed
    assert masker.passing(length)
    shorter = [n for n in masker.asked if n < length]
    assert not any(masker.passing(n) for n in shorter)
    assert length == 0 or length - 1 in shorter


def test_kept_pixels_are_the_most_responsible() -> None:
    values = np.random.default_rng(0).random((16, 16)).astype(np.float32)
    evaluator = Evaluator(Counting(share(Box(0, 16, 0, 16))), torch.zeros(1, 16, 16))
    found = shortest_prefix(evaluator, Suffices(1, 0.9), pixel_ranks(values))
    assert 0 < found.mask.sum() < 256
    assert values[found.mask].min() > values[~found.mask].max()
    assert found.confidence == pytest.approx(found.recheck)
