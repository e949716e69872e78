"""The order in which pixels join a set."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from maskers import IMAGE, LEFT, RIGHT, Counting, either, share

from convad_fx.explain import Evaluator
from convad_fx.explain.goals import Suffices
from convad_fx.explain.ranking import pixel_ranks, spatial_ranks
from convad_fx.explain.responsibility import Box
from convad_fx.explain.sufficient import shortest_prefix

shapes = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)


@given(hnp.arrays(np.float32, shapes, elements=st.sampled_from([0, 1 / 3, 0.5, 1, 7])))
def test_ranks_follow_responsibility_and_are_all_different(values: np.ndarray) -> None:
    rank = pixel_ranks(values)
    assert sorted(rank.ravel().tolist()) == list(range(values.size))
    in_order = values.ravel()[np.argsort(rank.ravel())]
    assert (np.diff(in_order) <= 0).all()
    assert np.array_equal(pixel_ranks(values.copy()), rank)


def test_a_plateau_fills_from_the_side_of_the_peak() -> None:
    values = np.zeros((64, 64), np.float32)
    values[20:40, 10:60] = 1
    values[28:32, 50:54] = 2
    rank = pixel_ranks(values)
    assert rank[28:32, 50:54].max() == 15
    first = np.argwhere(rank < 100)
    assert np.abs(first - [30, 52]).max() < 12


def test_without_any_responsibility_the_middle_comes_first() -> None:
    rank = pixel_ranks(np.zeros((15, 15), np.float32))
    assert rank[7, 7] == 0


def test_discs_hold_together_what_order_scatters() -> None:
    """Two patches suffice each; the map favours one half of each."""
    ranking = np.zeros((48, 64), np.float32)
    ranking[4:14, 6:16] = 2
    ranking[30:42, 44:56] = 2
    ranking[8, 8] = 3
    masker = Counting(either(share(LEFT), share(RIGHT)))
    evaluator, goal = Evaluator(masker, IMAGE), Suffices(1, 0.9)
    ranks = pixel_ranks(ranking)
    scattered = shortest_prefix(evaluator, goal, ranks).mask
    compact = shortest_prefix(evaluator, goal, spatial_ranks(evaluator, goal, ranks)).mask
    assert scattered[RIGHT.slices].any()
    assert not compact[RIGHT.slices].any()
    assert compact.sum() < scattered.sum()


@given(st.integers(0, 2**32), st.booleans())
def test_spatial_ranks_are_ranks_and_keep_to_the_smallest_disc(seed: int, limited: bool) -> None:
    random = np.random.default_rng(seed)
    values = random.random((12, 15)).astype(np.float32)
    within = random.random((12, 15)) < 0.8 if limited else None
    rank = pixel_ranks(values, within)
    box = Box(0, 12, 0, 15)
    evaluator = Evaluator(Counting(share(box)), torch.zeros(1, 12, 15))
    ranks = spatial_ranks(evaluator, Suffices(1, 0.0), rank, within)
    assert sorted(ranks.ravel().tolist()) == list(range(180))
    row, column = np.argwhere(rank == 0)[0]
    assert ranks[row, column] == 0
    if within is not None and within.any():
        assert ranks[within].max() == within.sum() - 1
    # What lies in the first passing disc comes first, in the old order.
    distance = np.hypot(*(np.mgrid[:12, :15] - np.array([row, column])[:, None, None]))
    allowed = np.ones((12, 15), bool) if within is None else within
    radius = 1.2 ** np.arange(24) * max(1.0, 12 * 25 / 224)
    passing = [r for r in radius if (disc := (distance <= r) & allowed).mean() > 0.5 and disc.any()]
    if passing and passing[0] < distance.max():
        disc = (distance <= passing[0]) & allowed
        assert ranks[disc].max() == disc.sum() - 1
        assert (np.diff(rank[disc][np.argsort(ranks[disc])]) > 0).all()
