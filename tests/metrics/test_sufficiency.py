"""Sets, curves and localisation, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from convad_fx import metrics
from convad_fx.errors import ConvadError, ImageError, MaskError, PolicyError
from convad_fx.explain import Search, explain

IMAGE = torch.rand(3, 16, 20, generator=torch.Generator().manual_seed(0))


def plan_tiles(rows: slice, columns: slice):
    """Class 1 argues with the share of a box that is kept."""

    def masker(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        seen = mask[:, 0, rows, columns].float().mean((1, 2))
        return torch.stack([0 * seen, 8 * seen - 4], 1)

    return masker


MASKER = plan_tiles(slice(0, 8), slice(0, 8))
softmax = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731


def box(top: int, bottom: int, left: int, right: int) -> np.ndarray:
    mask = np.zeros((16, 20), bool)
    mask[top:bottom, left:right] = True
    return mask


def test_confidence_is_relative_to_the_whole_image_and_to_the_threshold() -> None:
    found = metrics.confidence(MASKER, IMAGE, box(0, 6, 0, 8), 1, gamma=0.8)
    assert found.kept == pytest.approx(softmax(8 * 0.75 - 4))
    assert found.whole == pytest.approx(softmax(4))
    assert found.relative == pytest.approx(softmax(2) / softmax(4))
    assert found.over_threshold == pytest.approx(softmax(2) - 0.8 * softmax(4))
    assert found.sufficient
    assert not metrics.confidence(MASKER, IMAGE, box(0, 6, 0, 8), 1).sufficient
    other = metrics.confidence(MASKER, IMAGE, box(0, 2, 0, 8), 1, gamma=0.01)
    assert other.over_threshold > 0
    assert not other.sufficient  # enough confidence, but another class has more


def test_confidence_is_what_an_explanation_says() -> None:
    why = explain(MASKER, IMAGE, search=Search(partitions=2))
    found = metrics.confidence(MASKER, IMAGE, why.mask, why.target, why.gamma)
    assert (found.kept, found.whole) == (why.confidence_recheck, why.confidence_whole)
    assert found.sufficient == why.sufficient
    assert metrics.size(why.mask) == why.size


def second(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Class 0 is predicted, and class 1 has probabilities up to 0.4 by the share of a box."""
    seen = mask[:, 0, :8, :8].double().mean((1, 2))
    return torch.stack([1 - 0.4 * seen, 0.4 * seen], 1)


def test_of_a_class_that_is_not_predicted_the_score_alone_counts() -> None:
    found = metrics.confidence(second, IMAGE, box(0, 8, 0, 6), 1, gamma=0.7)
    assert (found.kept, found.whole) == (pytest.approx(0.3), pytest.approx(0.4))
    assert (found.top, found.is_prediction, found.sufficient) == (False, False, True)
    assert not metrics.confidence(second, IMAGE, box(0, 8, 0, 4), 1, gamma=0.7).sufficient
    blocks = metrics.minimality(second, IMAGE, box(0, 8, 0, 16), 1, at_least=0.35, side=4)
    in_the_box = set(blocks.blocks[:8, :8].ravel().tolist())
    assert blocks.needed == tuple(number in in_the_box for number in range(8))
    with pytest.raises(PolicyError, match=r"not predicted .*pass at_least=why\.gamma"):
        metrics.minimality(second, IMAGE, box(0, 8, 0, 8), 1)
    signs = metrics.signs(second, IMAGE, box(0, 8, 0, 8), 1)
    assert (signs.empty, signs.spared) == (0, pytest.approx(1))


@pytest.mark.parametrize(
    ("score", "ends"),
    [
        (None, (softmax(-4), softmax(4))),
        ("sigmoid", (softmax(-4), softmax(4))),
        ("logit", (-4, 4)),
        (lambda y: 2 * y, (-8, 8)),
    ],
)
def test_curves_of_other_scores(score, ends) -> None:
    """Class 0 has the logit 0 throughout, so that here softmax and sigmoid agree."""
    for curve, expected in (
        (metrics.insertion(MASKER, IMAGE, box(0, 8, 0, 8) * 1.0, 1, score=score), ends),
        (metrics.deletion(MASKER, IMAGE, box(0, 8, 0, 8) * 1.0, 1, score=score), ends[::-1]),
    ):
        assert curve.confidence[[0, -1]] == pytest.approx(expected)


def test_shares_of_a_score_that_is_not_positive_mean_nothing() -> None:
    for target, value in ((0, "0"), (1, "-4")):
        masker = lambda x, mask: -MASKER(x, mask)  # noqa: E731
        with pytest.raises(PolicyError, match=rf"\(logit\) of class {target} is -?{value} "):
            metrics.confidence(masker, IMAGE, box(0, 8, 0, 8), target, score="logit")
        with pytest.raises(PolicyError, match="not positive"):
            metrics.signs(masker, IMAGE, box(0, 8, 0, 8), target, score="logit")


def test_minimality_names_the_blocks_that_are_needed() -> None:
    mask = box(0, 8, 0, 16)
    # Two columns of blocks hold the patch; every block of it is worth a quarter.
    found = metrics.minimality(MASKER, IMAGE, mask, 1, at_least=0.9, side=4)
    assert len(found.needed) == 8
    assert sum(found.needed) == 4
    for number, needed in enumerate(found.needed):
        here = found.blocks == number
        assert needed == here[:8, :8].any()
        assert here.sum() == 16
    assert (found.blocks[~mask] == -1).all()
    assert (found.share, found.minimal) == (0.5, False)
    assert metrics.minimality(MASKER, IMAGE, box(0, 8, 0, 8), 1, 0.9, side=4).minimal
    # The class alone: three quarters are enough.
    assert metrics.minimality(MASKER, IMAGE, box(0, 8, 0, 8), 1, side=4).share == 0
    nothing = metrics.minimality(MASKER, IMAGE, box(0, 0, 0, 0), 1)
    assert nothing.minimal
    assert nothing.share == 1


@pytest.mark.parametrize("side", [1, 4, 7])
def test_what_search_calls_minimal_is_minimal(side: int) -> None:
    why = explain(MASKER, IMAGE, search=Search(partitions=3, minimal=side))
    at_least = why.gamma * why.confidence_whole
    assert why.minimal
    assert metrics.minimality(MASKER, IMAGE, why.mask, 1, at_least, side=side).minimal


@given(hnp.arrays(np.float32, (16, 20), elements=st.sampled_from([0, 0.5, 1, 3])))
def test_curves_go_from_nothing_to_everything(ranking: np.ndarray) -> None:
    up = metrics.insertion(MASKER, IMAGE, ranking, 1, steps=9)
    down = metrics.deletion(MASKER, IMAGE, ranking, 1, steps=9)
    for curve, ends in ((up, (softmax(-4), softmax(4))), (down, (softmax(4), softmax(-4)))):
        assert (curve.share[0], curve.share[-1], len(curve.share)) == (0, 1, 10)
        assert curve.confidence[[0, -1]] == pytest.approx(ends)
        steps = np.diff(curve.share)
        assert curve.area == pytest.approx(
            (steps * (curve.confidence[1:] + curve.confidence[:-1]) / 2).sum()
        )
    # A monotone network: more pixels, more confidence.
    assert (np.diff(up.confidence) >= 0).all()
    assert (np.diff(down.confidence) <= 0).all()


def test_a_curve_of_one_pixel_at_a_time_is_the_order() -> None:
    ranking = np.random.default_rng(0).random((16, 20)).astype(np.float32)
    up = metrics.insertion(MASKER, IMAGE, ranking, 1, steps=320, batch_size=50)
    by_rank = np.argsort(-ranking.ravel())
    patch = box(0, 8, 0, 8).ravel()
    for n in (0, 1, 57, 200, 320):
        seen = patch[by_rank[:n]].sum() / 64
        assert up.confidence[n] == pytest.approx(softmax(8 * seen - 4), abs=1e-6)
    good = metrics.insertion(MASKER, IMAGE, box(0, 8, 0, 8) * 1.0, 1).area
    bad = metrics.insertion(MASKER, IMAGE, 1.0 - box(0, 8, 0, 8), 1).area
    assert good > 0.85 > 0.2 > bad


def test_localisation_by_hand() -> None:
    kept, truth = box(0, 4, 0, 4), box(2, 6, 0, 4)
    ranking = np.zeros((16, 20))
    ranking[0, 0], ranking[3, 3], ranking[15, 19] = 5.0, 3.0, 2.0
    found = metrics.localisation(kept, truth, ranking)
    assert (found.iou, found.precision, found.recall) == (8 / 24, 0.5, 0.5)
    assert (found.hit, found.energy) == (False, 0.3)
    assert found.object == 16 / 320
    assert metrics.localisation(kept, truth, ranking, tolerance=2).hit
    assert not metrics.localisation(kept, truth, ranking, tolerance=1).hit


@given(hnp.arrays(np.bool_, (6, 7)), hnp.arrays(np.bool_, (6, 7)))
def test_localisation_is_symmetric_where_it_should_be(kept: np.ndarray, truth: np.ndarray) -> None:
    if not truth.any() or not kept.any():
        return
    found, other = metrics.localisation(kept, truth), metrics.localisation(truth, kept)
    assert (found.iou, found.precision, found.recall) == (other.iou, other.recall, other.precision)
    assert found.iou <= min(found.precision, found.recall)
    assert metrics.localisation(kept, kept, kept * 1.0).energy == 1
    assert (found.hit, found.energy) == (None, None)
    nothing = metrics.localisation(np.ones((3, 3), bool), np.ones((3, 3), bool), np.zeros((3, 3)))
    assert nothing.hit is None  # no pixel is the most responsible
    assert np.isnan(nothing.energy)


def test_nothing_kept_and_nothing_responsible() -> None:
    found = metrics.localisation(box(0, 0, 0, 0), box(0, 2, 0, 2), np.zeros((16, 20)))
    assert (found.iou, found.recall) == (0, 0)
    assert np.isnan(found.precision)
    assert np.isnan(found.energy)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (MaskError, "the true mask is empty",
         lambda: metrics.localisation(box(0, 1, 0, 1), box(0, 0, 0, 0))),
        (MaskError, r"not \(16, 20\)",
         lambda: metrics.localisation(box(0, 1, 0, 1), np.ones((3, 3), bool))),
        (ImageError, "negative",
         lambda: metrics.localisation(box(0, 1, 0, 1), box(0, 1, 0, 1), -np.ones((16, 20)))),
        (ImageError, r"ranking has shape \(4, 4\), the image \(16, 20\)",
         lambda: metrics.insertion(MASKER, IMAGE, np.ones((4, 4)), 1)),
        (PolicyError, "ranking is not finite",
         lambda: metrics.deletion(MASKER, IMAGE, np.full((16, 20), np.nan), 1)),
        (PolicyError, "steps must be",
         lambda: metrics.deletion(MASKER, IMAGE, np.ones((16, 20)), 1, steps=0)),
        (PolicyError, "side must be",
         lambda: metrics.minimality(MASKER, IMAGE, box(0, 1, 0, 1), 1, side=0)),
        (PolicyError, "gamma must lie", lambda: metrics.confidence(MASKER, IMAGE,
                                                                  box(0, 1, 0, 1), 1, gamma=2)),
        (PolicyError, "target -1 is not a class", lambda: metrics.confidence(MASKER, IMAGE,
                                                                         box(0, 1, 0, 1), -1)),
        (PolicyError, "target 9 is not a class",
         lambda: metrics.insertion(MASKER, IMAGE, np.ones((16, 20)), 9)),
        (PolicyError, "target -1 is not a class",
         lambda: metrics.deletion(MASKER, IMAGE, np.ones((16, 20)), -1)),
        (PolicyError, "target 9 is not a class",
         lambda: metrics.minimality(MASKER, IMAGE, box(0, 1, 0, 1), 9)),
        (PolicyError, "target 9 is not a class",
         lambda: metrics.signs(MASKER, IMAGE, box(0, 1, 0, 1), 9)),
    ],
)  # fmt: skip
def test_errors(error, message, call) -> None:
    with pytest.raises(error, match=message) as caught:
        call()
    assert isinstance(caught.value, ConvadError)
    assert caught.value.hint
