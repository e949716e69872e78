"""The search, against what its definition says by hand."""

from __future__ import annotations

from fractions import Fraction
from itertools import chain, combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from maskers import Counting, both, share, whole

from convad_fx.explain import Evaluator, Search
from convad_fx.explain.responsibility import (
    Box,
    BoxSplit,
    Branch,
    proper_combinations,
    responsibility,
    split_box,
)

IMAGE = torch.zeros(1, 32, 40)
PATCH = Box(6, 12, 20, 28)

boxes = st.builds(
    lambda top, height, left, width: Box(top, top + height, left, left + width),
    *(st.integers(0, 9), st.integers(1, 12)) * 2,
)
seeds = st.integers(0, 2**32)


def painted(*parts: Box) -> np.ndarray:
    mask = np.zeros((24, 24), int)
    for part in parts:
        mask[part.slices] += 1
    return mask


@given(boxes, seeds)
def test_parts_tile_the_box(box: Box, seed: int) -> None:
    parts = split_box(box, np.random.default_rng(seed))
    assert np.array_equal(painted(*parts), painted(box))  # every pixel once
    assert all(part.area > 0 for part in parts)
    lines = (box.bottom - box.top > 1) + (box.right - box.left > 1)
    assert len(parts) == 2**lines


def test_every_place_to_cut_is_as_likely() -> None:
    random = np.random.default_rng(0)
    cuts = [split_box(Box(0, 5, 0, 9), random)[0] for _ in range(4000)]
    for ends, places in (([c.bottom for c in cuts], 5), ([c.right for c in cuts], 9)):
        counts = np.bincount(ends, minlength=places)
        assert counts[0] == 0
        assert counts[1:].min() > 0.8 * 4000 / (places - 1)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_proper_combinations_are_all_subsets_but_the_empty_and_the_whole(parts: int) -> None:
    subsets = chain.from_iterable(combinations(range(parts), n) for n in range(parts + 1))
    expected = set(subsets) - {(), tuple(range(parts))}
    found = proper_combinations(parts)
    assert set(found) == expected
    assert len(found) == len(expected) == 2**parts - 2
    assert sorted(found, key=len) == list(found)


@given(boxes, seeds)
def test_masks_keep_the_combination_and_the_rest_alone(box: Box, seed: int) -> None:
    rest = (Box(22, 24, 22, 24),)
    box_split = BoxSplit(split_box(box, np.random.default_rng(seed)), rest)
    masks = list(box_split.masks((24, 24)))
    assert len(masks) == len(box_split.combinations)
    for mask, combination in zip(masks, box_split.combinations, strict=True):
        expected = painted(*rest, *(box_split.parts[i] for i in combination)) > 0
        assert np.array_equal(mask, expected)


def test_the_smallest_passing_combination_is_by_pixels_then_by_parts() -> None:
    # Areas 1, 2, 3, 18.
    parts = Box(0, 1, 0, 1), Box(0, 1, 1, 3), Box(1, 4, 0, 1), Box(1, 7, 1, 4)
    box_split = BoxSplit(parts, ())

    def smallest(*passing: tuple[int, ...]) -> tuple[int, ...] | None:
        passed = np.array([c in passing for c in box_split.combinations])
        return next(iter(box_split.smallest_first(passed)), None)

    assert smallest() is None
    assert smallest((3,), (0, 1, 2)) == (0, 1, 2)
    assert smallest((0, 1), (2,)) == (2,)
    assert smallest((0, 1), (0, 2)) == (0, 1)


def by_definition(masker: Counting, search: Search, entropy: list[int]) -> np.ndarray:
    """One partition after the other, one mask after the other, in exact fractions."""
    total = np.full((32, 40), Fraction(0))
    for stream in np.random.SeedSequence(entropy).spawn(search.partitions):
        random = np.random.default_rng(stream)
        splittable, finished = [Box(0, 32, 0, 40)], []
        for _ in range(search.max_splits):
            large = [box for box in splittable if box.area > search.min_box]
            if not large:
                break
            box = max(large, key=lambda b: b.area)
            splittable.remove(box)
            parts = split_box(box, random)
            best = None
            for combination in proper_combinations(len(parts)):
                mask = torch.zeros(1, 1, 32, 40, dtype=torch.bool)
                for kept in (*splittable, *finished, *(parts[i] for i in combination)):
                    mask[0, 0, kept.top : kept.bottom, kept.left : kept.right] = True
                with torch.inference_mode():
                    passes = int(masker(IMAGE[None], mask).argmax()) == 1
                if passes:
                    for i in combination:
                        total[parts[i].slices] += Fraction(1, len(combination))
                    area = sum(parts[i].area for i in combination)
                    if best is None or area < best[0]:
                        best = area, combination
            if best is None:
                finished += parts
            else:
                splittable += [parts[i] for i in best[1]]
    return total


@pytest.mark.parametrize(
    "strength", [share(PATCH), whole(PATCH), both(share(PATCH), share(Box(24, 30, 2, 9)))]
)
@pytest.mark.parametrize("search", [Search(partitions=3, max_splits=5), Search(2, 40, 30)])
def test_the_map_is_what_the_definition_says(strength, search: Search) -> None:
    masker = Counting(strength)
    evaluator = Evaluator(masker, IMAGE, batch_size=11)
    found = responsibility(evaluator, 1, 0.9, search, entropy=[1, 2])
    expected = by_definition(Counting(strength), search, [1, 2])
    assert np.array_equal(found, expected.astype(np.float32))
    assert found.dtype == np.float32


def test_partitions_do_not_depend_on_each_other() -> None:
    def maps(partitions: int) -> np.ndarray:
        evaluator = Evaluator(Counting(share(PATCH)), IMAGE)
        return responsibility(evaluator, 1, 0.9, Search(partitions=partitions), entropy=[0])

    single = maps(1)
    assert (maps(4) >= single).all()
    assert single.max() > 0


def test_all_masks_of_a_step_go_in_one_call() -> None:
    masker = Counting(share(PATCH))
    search = Search(partitions=10, max_splits=4)
    responsibility(Evaluator(masker, IMAGE, batch_size=1000), 1, 0.9, search, entropy=[0])
    # 14 masks for each of ten partitions; some may be done early, or ask the same by chance.
    assert len(masker.calls) <= 4
    assert masker.calls[0] > 130
    assert sum(masker.calls) <= search.evaluations


def test_what_is_kept_passes_at_every_moment() -> None:
    masker = Counting(both(whole(PATCH), share(Box(24, 30, 2, 9))))
    evaluator = Evaluator(masker, IMAGE)
    branch, random, search = Branch([Box(0, 32, 0, 40)]), np.random.default_rng(0), Search()
    areas = []
    while len(areas) < 12 and (box_split := branch.split_largest(search, random)) is not None:
        scores = evaluator.scores(box_split.masks((32, 40)), 1)
        (branch,) = branch.continue_in(box_split, scores.passing(0.0), search)
        kept = np.zeros((32, 40), bool)
        for box in (*branch.open, *branch.closed):
            assert not kept[box.slices].any()
            kept[box.slices] = True
        assert evaluator.scores([kept], 1).top[0] == 1
        areas.append(kept.sum())
    assert sorted(areas, reverse=True) == areas
    assert areas[-1] < 640 < areas[0]


def test_a_confidence_asked_for_is_asked_for_along_the_way() -> None:
    def area(confidence: float) -> float:
        search = Search(partitions=8, max_splits=10, confidence=confidence)
        evaluator = Evaluator(Counting(share(PATCH)), IMAGE)
        found = responsibility(evaluator, 1, 0.98, search, entropy=[0])
        return float((found > 0.7 * found.max()).sum())

    assert area(0.9) > area(0.0)


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (30, 1), (2, 2)])
def test_images_of_one_line_or_one_pixel(shape: tuple[int, int]) -> None:
    masker = Counting(lambda masks: masks[:, 0, 0])
    evaluator = Evaluator(masker, torch.zeros(3, *shape))
    found = responsibility(evaluator, 1, 0.9, Search(4, min_box=1), entropy=[0])
    assert found.shape == shape
    assert found[0, 0] == found.max()
