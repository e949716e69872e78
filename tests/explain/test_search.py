"""The search's options: what each changes, and what it keeps."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from maskers import IMAGE, LABELS, LEFT, QUICK, RIGHT, Counting, always, both, either, share

from convad_fx.errors import PolicyError
from convad_fx.explain import Evaluator, Explanation, Search, explain, explain_disjoint
from convad_fx.explain.goals import Changes
from convad_fx.explain.minimal import grid_blocks
from convad_fx.explain.options import ORDERS, QUEUES, SPLITS
from convad_fx.explain.responsibility import (
    PARTITIONS_PER_ROUND,
    Box,
    BoxSplit,
    reliability,
    responsibility,
    split_box,
)
from convad_fx.explain.sufficient import max_prefix_evaluations


def passes(masker: Counting, mask: np.ndarray) -> bool:
    with torch.inference_mode():
        logits = masker(IMAGE[None], torch.tensor(mask)[None, None])
    return int(logits.argmax()) == 1


# -------------------------------------------------------------------------------------- the options
@given(st.sampled_from(SPLITS), st.integers(2, 40), st.integers(0, 2**32))
def test_cuts_leave_no_part_empty(name: str, side: int, seed: int) -> None:
    search = Search(split=name, split_shape=(0.3, 5))
    parts = split_box(Box(3, 3 + side, 2, 4), np.random.default_rng(seed), search)
    assert len(parts) == 4
    assert all(part.area > 0 for part in parts)
    assert sum(part.area for part in parts) == 2 * side
    assert {part.depth for part in parts} == {1}


def test_split_distributions_are_what_they_are_called() -> None:
    def rows(**options) -> np.ndarray:
        random = np.random.default_rng(0)
        search = Search(**options)
        return np.array(
            [split_box(Box(0, 101, 0, 2), random, search)[0].bottom for _ in range(3000)]
        )

    uniform, binomial = rows(), rows(split="binomial")
    flat, peaked = (rows(split="beta-binomial", split_shape=(s, s)) for s in (1, 20))
    assert (uniform.std(), flat.std()) == pytest.approx((28.9, 29), rel=0.05)
    assert binomial.std() == pytest.approx(99**0.5 / 2, rel=0.05)
    assert binomial.std() < peaked.std() < 0.6 * flat.std()
    early = rows(split="beta-binomial", split_shape=(1, 5))
    assert early.mean() == pytest.approx(1 + 99 / 6, rel=0.1)


def test_the_queue_follows_what_its_name_says() -> None:
    # Areas 1, 2, 3, 18.
    parts = Box(0, 1, 0, 1), Box(0, 1, 1, 3), Box(1, 4, 0, 1), Box(1, 7, 1, 4)
    split = BoxSplit(parts, ())

    def continued(queue: str, queue_len: int, *passing: tuple[int, ...]) -> list[tuple[int, ...]]:
        answers = np.array([c in passing for c in split.combinations])
        return split.continued(answers, queue, queue_len)

    some = (3,), (0, 3), (0, 1), (1, 3)
    assert continued("area", 1, *some) == [(0, 1)]
    assert continued("area", 2, *some) == [(0, 1), (3,)]
    assert continued("all", 1, *some) == [(0, 1), (3,), (0, 3), (1, 3)]
    # No part is in all of them; 3 is in most.
    assert continued("intersection", 9, *some) == [(3,), (0, 3), (1, 3)]
    assert continued("intersection", 1, (0, 2), (0, 1, 2), (0, 3)) == [(0, 2)]
    assert continued("intersection", 9) == []


def test_more_branches_ask_more_and_within_max_splits() -> None:
    def asked(**options) -> int:
        masker = Counting(either(share(LEFT), share(RIGHT)))
        search = Search(partitions=3, max_splits=30, **options)
        responsibility(Evaluator(masker, IMAGE), 1, 0.9, search, [0])
        assert len(masker.masks) <= search.evaluations
        return len(masker.masks)

    assert asked() < asked(queue_len=3) <= asked(queue="all")


def test_depth_limits_how_small_boxes_get() -> None:
    def smallest(depth: int | None) -> int:
        """Levels of responsibility tell how often the box around a pixel was split."""
        evaluator = Evaluator(Counting(share(LEFT)), IMAGE)
        search = Search(partitions=1, max_splits=50, min_box=1, depth=depth)
        return len(np.unique(responsibility(evaluator, 1, 0.9, search, [3])))

    assert smallest(1) <= 5
    assert smallest(1) < smallest(3) < smallest(None)


def test_weighting_counts_by_confidence() -> None:
    """In the units of the docstring: sixty-fourths of the whole image's confidence."""

    def found(**options) -> np.ndarray:
        evaluator = Evaluator(Counting(share(LEFT)), IMAGE)
        return responsibility(evaluator, 1, 0.98, Search(2, max_splits=12, **options), [0])

    plain, weighted = found(), found(weighted=True)
    assert (weighted <= plain).all()
    assert (weighted[plain > 0] > 0).all()
    assert not np.array_equal(plain, weighted)
    assert np.array_equal(weighted * 64 * 6, np.rint(weighted * 64 * 6))


@pytest.mark.parametrize("budget", [150, 300, 700, 5000])
@pytest.mark.parametrize("minimal", [0, 4])
@pytest.mark.parametrize("contrastive", [False, True])
def test_a_budget_is_kept(budget: int, minimal: int, contrastive: bool) -> None:
    least = 2 + 24 + max_prefix_evaluations(48 * 64) * (2 if contrastive else 1) + contrastive
    search = Search(budget=budget, minimal=minimal, order="spatial")
    masker = Counting(both(share(LEFT), share(RIGHT)))
    if budget < least:
        with pytest.raises(PolicyError, match=f"budget of {budget} .* {least} masks.*48 x 64"):
            explain(masker, IMAGE, search=search, contrastive=contrastive)
        return
    why = explain(masker, IMAGE, search=search, contrastive=contrastive)
    assert why.evaluations == len(masker.masks) <= budget
    assert why.sufficient


def test_more_budget_buys_smaller_sets() -> None:
    def size(budget: int) -> float:
        search = Search(budget=budget, minimal=4)
        return explain(Counting(both(share(LEFT), share(RIGHT))), IMAGE, search=search).size

    assert size(120) > size(2000)


def test_a_stable_ranking_ends_the_search_early() -> None:
    def asked(stable: float | None) -> int:
        masker = Counting(share(LEFT))
        search = Search(partitions=40, stable=stable)
        responsibility(Evaluator(masker, IMAGE), 1, 0.9, search, [0])
        return len(masker.masks)

    loose, strict, never = asked(0.2), asked(0.999999), asked(None)
    assert loose < 0.5 * strict
    assert strict >= never  # masks that two rounds share are asked twice
    # Not before a round, and a round changes nothing about the partitions in it.
    few = Counting(share(LEFT))
    responsibility(Evaluator(few, IMAGE), 1, 0.9, Search(partitions=PARTITIONS_PER_ROUND), [0])
    assert loose >= len(few.masks)


def test_rounds_change_nothing_but_when_to_stop() -> None:
    def found(**options) -> np.ndarray:
        evaluator = Evaluator(Counting(share(LEFT)), IMAGE)
        return responsibility(evaluator, 1, 0.9, Search(partitions=10, **options), [0])

    assert np.array_equal(found(), found(stable=1.0))


def test_reliability_is_the_reliability_of_the_sum() -> None:
    """Spearman-Brown, on maps whose truth is known."""
    random = np.random.default_rng(0)
    truth = random.normal(size=(60, 60))
    noisy = [np.rint(1000 * (truth + random.normal(size=truth.shape))).astype(int)
             for _ in range(2)]  # fmt: skip
    # Each half has reliability 1/2; their sum 2/3.
    assert reliability(*noisy) == pytest.approx(2 / 3, abs=0.04)
    assert reliability(noisy[0], -noisy[0]) == 0


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("depth must be .* at least 1, not 0; None sets no limit", {"depth": 0}),
        ("budget must be .* not -5; None", {"budget": -5}),
        ("minimal must be .* at least 0, not -1; 0 leaves", {"minimal": -1}),
        ("queue_len must be .* not 0; the default is 1", {"queue_len": 0}),
        ("queue must be one of area, intersection, all, not 'dc'; the default is area",
         {"queue": "dc"}),
        ("split must be one of uniform, binomial, beta-binomial, not 'normal'",
         {"split": "normal"}),
        ("order must be one of responsibility, spatial, not 'random'", {"order": "random"}),
        (r"stable must lie in \(0, 1\], not 0", {"stable": 0}),
        ("split_shape must be two positive numbers, not .2, 0.; .1, 1. is",
         {"split_shape": (2, 0)}),
        ("split_shape must be two", {"split_shape": 3}),
        ("split_shape must be two", {"split_shape": (1, float("inf"))}),
        ("weighted must be True or False, not 1", {"weighted": 1}),
    ],
)  # fmt: skip
def test_options_out_of_range(message: str, options: dict) -> None:
    with pytest.raises(PolicyError, match=message) as caught:
        Search(**options)
    assert caught.value.hint


def test_every_option_survives_writing_down() -> None:
    search = Search(
        partitions=5, min_box=4, max_splits=4, confidence=0.5, depth=5, weighted=True,
        split="beta-binomial", split_shape=(1.5, 3), queue="intersection", queue_len=2,
        stable=0.9, order="spatial", minimal=4, budget=900,
    )  # fmt: skip
    masker = Counting(both(share(LEFT), share(RIGHT)))
    why = explain(masker, IMAGE, search=search, contrastive=True, labels=LABELS)
    back = Explanation.from_json(why.to_json())
    assert back == why
    assert back.search == search
    assert back.contrast is not None
    assert why.contrast is not None
    assert np.array_equal(back.contrast.mask, why.contrast.mask)


@pytest.mark.parametrize("queue", QUEUES)
@pytest.mark.parametrize("name", ORDERS)
def test_the_same_whatever_the_batch_size(queue: str, name: str) -> None:
    search = replace(
        QUICK, queue=queue, queue_len=2, order=name, weighted=True, minimal=4, stable=0.9
    )
    masker = both(share(LEFT), share(RIGHT))
    found = [
        explain(Counting(masker), IMAGE, search=search, contrastive=True, batch_size=n)
        for n in (1, 9, 500)
    ]
    assert found[0] == found[1] == found[2]
    other = explain(Counting(masker), IMAGE, search=search, seed=1)
    assert not np.array_equal(other.responsibility, found[0].responsibility)


@pytest.mark.parametrize(("gamma", "strict"), [(0.5, 0.5), (0.9, 0.9), (1.0, 0.9)])
def test_a_confidence_left_open_is_what_the_set_must_keep(gamma: float, strict: float) -> None:
    masker = share(LEFT)
    left_open = explain(Counting(masker), IMAGE, gamma=gamma, search=QUICK)
    named = explain(Counting(masker), IMAGE, gamma=gamma, search=replace(QUICK, confidence=strict))
    assert np.array_equal(left_open.responsibility, named.responsibility)
    class_alone = explain(Counting(masker), IMAGE, search=replace(QUICK, confidence=0.0))
    # Of two classes, the one given has half of the confidence anyway.
    same = np.array_equal(left_open.responsibility, class_alone.responsibility)
    assert same == (strict == 0.5)


# ----------------------------------------------------------------------------------------- disjoint
def test_disjoint_explanations_find_both_reasons_and_stop() -> None:
    masker = Counting(either(share(LEFT), share(RIGHT)))
    found = explain_disjoint(masker, IMAGE, count=5, search=replace(QUICK, minimal=4))
    assert [why.number for why in found] == [0, 1]
    assert not (found[0].mask & found[1].mask).any()
    assert all(why.sufficient and passes(masker, why.mask) for why in found)
    kept = [[float(why.mask[box.slices].mean()) for box in (LEFT, RIGHT)] for why in found]
    assert sorted(a > b for a, b in kept) == [False, True]
    assert all(max(pair) > 0.7 and why.size < 0.1 for pair, why in zip(kept, found, strict=True))
    assert (found[1].responsibility[found[0].mask] == 0).all()


def test_the_first_of_the_disjoint_is_the_explanation() -> None:
    strength = either(share(LEFT), share(RIGHT))
    first, *_ = explain_disjoint(Counting(strength), IMAGE, 2, search=QUICK, seed=4)
    assert first == explain(Counting(strength), IMAGE, search=QUICK, seed=4)


@pytest.mark.parametrize("strength", [share(LEFT), both(share(LEFT), share(RIGHT)), always])
def test_where_there_is_one_reason_there_is_one_explanation(strength) -> None:
    assert len(explain_disjoint(Counting(strength), IMAGE, 4, search=QUICK)) == 1


def test_each_of_the_disjoint_has_its_budget() -> None:
    masker = Counting(either(share(LEFT), share(RIGHT)))
    search = Search(budget=400, order="spatial", minimal=4)
    found = explain_disjoint(masker, IMAGE, 3, search=search, batch_size=7)
    assert len(found) == 2
    assert all(why.evaluations <= 400 for why in found)
    again = explain_disjoint(masker, IMAGE, 3, search=search, batch_size=100)
    assert again == found


@pytest.mark.parametrize("count", [0, -1, 1.5])
def test_a_count_that_cannot_be(count) -> None:
    with pytest.raises(PolicyError, match="count must be .* at least 1"):
        explain_disjoint(Counting(always), IMAGE, count)


# -------------------------------------------------------------------------------------- contrastive
def test_hiding_one_of_two_needed_patches_is_enough() -> None:
    masker = Counting(both(share(LEFT), share(RIGHT)))
    why = explain(masker, IMAGE, search=replace(QUICK, minimal=2), contrastive=True, labels=LABELS)
    contrast = why.contrast
    assert contrast is not None
    assert contrast.changes
    assert contrast.minimal
    assert not passes(masker, ~contrast.mask)
    assert (contrast.becomes, contrast.becomes_name) == (0, "nothing")
    assert not contrast.suffices
    touched = [contrast.mask[box.slices].any() for box in (LEFT, RIGHT)]
    assert sum(touched) == 1  # half of one patch; the other can stay
    assert contrast.size < why.size
    assert "without" in str(why)
    # minimal: uncover any block, and the class is back
    label = grid_blocks((48, 64), 2)
    for block in np.unique(label[contrast.mask]):
        assert passes(masker, ~(contrast.mask & (label != block)))


def test_of_two_sufficient_patches_both_must_go() -> None:
    masker = Counting(either(share(LEFT), share(RIGHT)))
    contrast = explain(masker, IMAGE, search=replace(QUICK, minimal=2), contrastive=True).contrast
    assert contrast is not None
    assert contrast.changes
    assert not passes(masker, ~contrast.mask)
    assert all(contrast.mask[box.slices].mean() > 0.4 for box in (LEFT, RIGHT))


def test_a_set_that_suffices_and_is_needed_is_both() -> None:
    odd = Box(4, 13, 6, 15)  # of 81 pixels, 41 are needed, and 41 suffice
    why = explain(Counting(share(odd)), IMAGE, gamma=0.3, search=QUICK, contrastive=True)
    contrast = why.contrast
    assert contrast is not None
    assert contrast.changes
    assert contrast.mask[odd.slices].sum() == 41
    assert contrast.suffices
    assert "they also suffice" in str(why)


def test_where_nothing_changes_the_class_it_says_so() -> None:
    why = explain(Counting(always), IMAGE, contrastive=True, labels=LABELS)
    assert why.contrast is not None
    assert not why.contrast.changes
    assert not why.contrast.mask.any()
    assert (why.contrast.becomes, why.contrast.title) == (1, "thing")
    assert "does not change the class" in str(why)


def test_not_asked_for_not_found() -> None:
    why = explain(Counting(share(LEFT)), IMAGE, search=QUICK)
    assert why.contrast is None
    assert Explanation.from_json(why.to_json()) == why


def test_the_goal_of_a_contrast_is_any_other_class() -> None:
    chosen = np.zeros((48, 64), bool)
    chosen[:10] = True
    whole = Evaluator(Counting(share(LEFT)), IMAGE).whole()
    assert np.array_equal(Changes(1, whole).mask(chosen), ~chosen)


# ---------------------------------------------------------------------------------------- the page
def test_the_example_of_the_page_runs(capsys) -> None:
    page = (Path(__file__).parents[2] / "docs" / "search.md").read_text()
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, names)
    assert "sufficient, minimal in blocks of 4" in capsys.readouterr().out
    assert [names[side].is_prediction for side in ("left", "right")] == [True, True]
    assert [names[side].confidence_whole for side in ("left", "right")] == pytest.approx(
        [1 / (1 + np.exp(-6)), 1 / (1 + np.exp(-5))]
    )


def test_every_option_is_on_the_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "search.md").read_text()
    assert not [name for name in Search.__dataclass_fields__ if f"`{name}`" not in page]
