"""Robustness and agreement, on models whose answers can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from convad_fx import metrics
from convad_fx.errors import ConvadError, ImageError, MaskError, ModelError, PolicyError
from convad_fx.explain import occlusion
from convad_fx.metrics.robustness import BACKGROUNDS

IMAGE = torch.rand(3, 8, 10, generator=torch.Generator().manual_seed(0))
IMAGENET = metrics.Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = np.arange(80).reshape(8, 10) < 40


class Sees:
    """Remembers what it was shown; class 1 if the first channel's mean exceeds a threshold."""

    def __init__(self, threshold: float = 0.5) -> None:
        self.threshold, self.seen = threshold, []

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += list(x.clone())
        amount = x[:, 0].mean((1, 2)) - self.threshold
        return torch.stack([-amount, amount], 1)


def test_compositions_come_in_bounded_batches() -> None:
    calls: list[int] = []

    def model(x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return torch.full((len(x), 2), 2.0)  # no probabilities, so that nothing is tried

    metrics.robustness(model, IMAGE, HALF, 0, n=40)
    metrics.robustness(model, IMAGE, HALF, 0, n=40, batch_size=30)
    assert calls == [16, 16, 8, 30, 10]
    with pytest.raises(PolicyError, match="batch_size must be .* at least 1, not 0; 'auto'"):
        metrics.robustness(model, IMAGE, HALF, 0, batch_size=0)


@pytest.mark.parametrize("kind", BACKGROUNDS)
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_kept_pixels_stand_on_every_background(kind: str, batch_size: int) -> None:
    model, others = Sees(), [torch.rand(3, 8, 10) for _ in range(9)]
    found = metrics.robustness(
        model, IMAGE, HALF, 1, kind, n=7, others=others, batch_size=batch_size
    )
    assert len(model.seen) == len(found.kept) == len(found.confidence) == 7
    planted = list(metrics.backgrounds(IMAGE, kind, 7, others=others))
    for seen, background in zip(model.seen, planted, strict=True):
        assert torch.equal(seen[:, HALF], IMAGE[:, HALF])
        assert torch.equal(seen[:, ~HALF], background[0][:, ~HALF])
    expected = [bool(seen[0].mean() > 0.5) for seen in model.seen]
    assert list(found.kept) == expected
    assert found.rho == sum(expected) / 7
    assert [c > 0.5 for c in found.confidence] == expected


def test_rho_counts() -> None:
    """Half the image is 1 in the first channel; a colour of red r leaves (1 + r) / 2."""
    image = torch.ones(3, 8, 10)
    reds = torch.tensor([c[0, 0, 0, 0] for c in metrics.backgrounds(image, n=1000)])
    for threshold in (0.4, 0.6, 0.75, 0.9):
        rho = metrics.robustness(Sees(threshold), image, HALF, 1, n=1000).rho
        assert rho == ((1 + reds) / 2 > threshold).double().mean()
        assert rho == pytest.approx(min(1, 2 - 2 * threshold), abs=0.05)
    assert metrics.robustness(Sees(0.75), image, HALF, 0, n=1000).rho == pytest.approx(
        0.5, abs=0.05
    )


@pytest.mark.parametrize("kind", ["colours", "noise"])
def test_backgrounds_are_uniform_before_normalisation(kind: str) -> None:
    image = torch.zeros(3, 8, 10)
    drawn = torch.cat(list(metrics.backgrounds(image, kind, 400, normalisation=IMAGENET)))
    pixels = IMAGENET.undo(drawn)
    assert pixels.min() > -1e-6
    assert pixels.max() < 1 + 1e-6
    assert pixels.mean((0, 2, 3)).sub(0.5).abs().max() < 0.06
    assert pixels[:, :, 0, 0].var(0).sub(1 / 12).abs().max() < 0.015
    flat = pixels.amax((2, 3)) - pixels.amin((2, 3))
    assert (flat.max() < 1e-6) == (kind == "colours")


def test_backgrounds_depend_on_the_seed_alone() -> None:
    def drawn(image: torch.Tensor, seed: int) -> torch.Tensor:
        return torch.cat(list(metrics.backgrounds(image, "noise", 3, seed=seed)))

    torch.manual_seed(0)
    first = drawn(IMAGE, 0)
    np.random.seed(5)
    assert torch.equal(drawn(IMAGE.flip(1), 0), first)
    assert not torch.equal(drawn(IMAGE, 1), first)


def test_other_images_are_drawn_once_each() -> None:
    others = [torch.full((3, 8, 10), float(i)) for i in range(6)]
    drawn = [int(b[0, 0, 0, 0]) for b in metrics.backgrounds(IMAGE, "images", 6, others=others)]
    assert sorted(drawn) == list(range(6))
    few = [int(b[0, 0, 0, 0]) for b in metrics.backgrounds(IMAGE, "images", 2, others=others)]
    assert few == drawn[:2]


def test_blurs_grow() -> None:
    drawn = list(metrics.backgrounds(IMAGE, "blur", 5))
    spread = [float(b.var()) for b in drawn]
    assert spread == sorted(spread, reverse=True)
    assert spread[0] > 2 * spread[-1]


def one_value(x: torch.Tensor) -> torch.Tensor:
    """Yes if the first channel's mean exceeds 1/2: (N,)."""
    return 9 * (x[:, 0].mean((1, 2)) - 0.5)


def test_one_value_survives_as_its_answer() -> None:
    two = metrics.robustness(Sees(), IMAGE, HALF, 1, n=30)
    for target in (0, 1):
        one = metrics.robustness(one_value, IMAGE, HALF, target, n=30)
        assert list(one.kept) == [kept == (target == 1) for kept in two.kept]
        assert [c > 0.5 for c in one.confidence] == list(one.kept)
    found = metrics.agreement(occlusion(one_value), one_value, IMAGE, n=5)
    of_two = metrics.agreement(occlusion(Sees()), Sees(), IMAGE, n=5)
    assert np.array_equal(found.rho, of_two.rho)


def test_a_score_may_be_what_survives() -> None:
    plain = metrics.robustness(Sees(), IMAGE, HALF, 1, n=30)
    found = metrics.robustness(Sees(), IMAGE, HALF, 1, n=30, at_least=0.45)
    assert found.confidence == plain.confidence
    assert list(found.kept) == [c >= 0.45 for c in plain.confidence]
    assert found.rho > plain.rho
    mean = lambda y: y[:, 1]  # noqa: E731
    with pytest.raises(PolicyError, match="predicts no class that could survive; pass at_least"):
        metrics.robustness(Sees(), IMAGE, HALF, 0, n=3, score=mean)
    by_value = metrics.robustness(Sees(), IMAGE, HALF, 0, n=30, score=mean, at_least=0.0)
    assert by_value.kept == plain.kept


def test_every_kind_at_once() -> None:
    by_kind = metrics.robustness_by_kind(Sees(), IMAGE, HALF, 1, {"colours": 9, "noise": 4})
    assert {kind: len(found.kept) for kind, found in by_kind.items()} == {"colours": 9, "noise": 4}
    assert by_kind["noise"] == metrics.robustness(Sees(), IMAGE, HALF, 1, "noise", n=4)


def nan(x: torch.Tensor) -> torch.Tensor:
    return torch.full((len(x), 2), torch.nan)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (PolicyError, "kind must be one of colours, images, noise, blur, not 'sky'",
         lambda: metrics.robustness(Sees(), IMAGE, HALF, 1, "sky")),
        (PolicyError, "5 backgrounds cannot be drawn from 0 other images",
         lambda: metrics.robustness(Sees(), IMAGE, HALF, 1, "images", n=5)),
        (PolicyError, "n must be", lambda: metrics.robustness(Sees(), IMAGE, HALF, 1, n=0)),
        (PolicyError, "no backgrounds", lambda: metrics.robustness(Sees(), IMAGE, HALF, 1, [])),
        (PolicyError, "target 2 is not a class of this network; pass a number from 0 to 1",
         lambda: metrics.robustness(Sees(), IMAGE, HALF, 2)),
        (ImageError, r"background 0 has shape \(1, 3, 4, 4\)",
         lambda: metrics.robustness(Sees(), IMAGE, HALF, 1, "images", n=1,
                                    others=[torch.zeros(3, 4, 4)])),
        (MaskError, "the mask is float64, not bool",
         lambda: metrics.robustness(Sees(), IMAGE, HALF * 1.0, 1)),
        (MaskError, r"shape \(8, 9\), not \(8, 10\)",
         lambda: metrics.robustness(Sees(), IMAGE, HALF[:, 1:], 1)),
        (ModelError, "training mode", lambda: metrics.robustness(nn.Flatten(), IMAGE, HALF, 1)),
        (ModelError, "not finite", lambda: metrics.robustness(nan, IMAGE, HALF, 1)),
        (ModelError, r"answered a batch of 16 with shape \(16, 3, 8, 10\)",
         lambda: metrics.robustness(nn.Identity().eval(), IMAGE, HALF, 1)),
        (PolicyError, "different thresholds",
         lambda: metrics.agreement(occlusion(Sees(-9)), Sees(-9), IMAGE, threshold=0.5)
         + metrics.agreement(occlusion(Sees(-9)), Sees(-9), IMAGE)),
        (PolicyError, "no masks", lambda: metrics.agreement(occlusion(Sees()), Sees(), IMAGE,
                                                            masks=[])),
    ],
)  # fmt: skip
def test_errors(error, message, call) -> None:
    with pytest.raises(error, match=message) as caught:
        call()
    assert isinstance(caught.value, ConvadError)
    assert caught.value.hint


# -------------------------------------------------------------------------------------- agreement
def test_a_masker_that_knows_the_robustness_agrees_and_one_that_knows_nothing_does_not() -> None:
    """Robust = the red half is kept, whatever else."""
    image = torch.zeros(3, 16, 16)
    image[0, :, :8] = 1

    def model(x: torch.Tensor) -> torch.Tensor:
        amount = x[:, 0, :, :8].mean((1, 2)) - 0.8
        return torch.stack([-9 * amount, 9 * amount], 1)

    def knowing(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        amount = mask[:, 0, :, :8].float().mean((1, 2)) - 0.5
        return torch.stack([-amount, amount], 1)

    def contrary(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        amount = 1.01 - mask[:, 0, :, :8].float().mean((1, 2))
        return torch.stack([-amount, amount], 1)

    good = metrics.agreement(knowing, model, image, 1, n=30)
    bad = metrics.agreement(contrary, model, image, 1, n=30)
    assert good.auc > 0.95 > 0.05 > bad.auc
    assert good.rank_correlation > 0.8
    assert bad.rank_correlation < -0.8
    assert good.robust_given_sufficient > 0.7
    both = good + good
    assert (len(both.rho), both.auc) == (64, good.auc)
    again = metrics.agreement(knowing, model, image, 1, n=30, batch_size=7)
    assert np.array_equal(again.rho, good.rho)


def test_where_another_class_is_given_confidence_does_not_count() -> None:
    def masker(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        lost = (mask.float().mean((1, 2, 3)) < 0.5).float()
        return torch.stack([0 * lost, 2 + 0 * lost, 4 * lost], 1)

    masks = [HALF & False, HALF | True]
    found = metrics.agreement(masker, lambda x: Sees(-9)(x), IMAGE, 1, masks=masks, n=3)
    assert found.confidence.tolist() == [0, 1]
    assert found.sufficient.tolist() == [False, True]
    assert np.isnan(found.auc)  # every mask is robust here
    assert found.called_sufficient == 0.5


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=12))
def test_auc_counts_pairs(pairs: list[tuple[int, bool]]) -> None:
    scores = np.array([float(score) for score, _ in pairs])
    positive = np.array([yes for _, yes in pairs])
    wins = [0.5 * ((a == b) + 2 * (a > b)) for a in scores[positive] for b in scores[~positive]]
    found = metrics.auc(scores, positive)
    if wins:
        assert found == pytest.approx(np.mean(wins))
    else:
        assert np.isnan(found)


def test_lists_that_are_not_paired_are_refused() -> None:
    with pytest.raises(PolicyError, match="must be bool, not int"):
        metrics.auc(np.arange(3.0), np.array([0, 1, 1]))
    with pytest.raises(PolicyError, match="not paired"):
        metrics.auc(np.arange(3.0), np.array([True, False]))
    with pytest.raises(PolicyError, match="not paired"):
        metrics.rank_correlation(np.arange(3.0), np.arange(2.0))


@given(st.integers(1, 12), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32))
def test_random_masks_are_of_the_shape_and_share(n: int, h: int, w: int, seed: int) -> None:
    masks = metrics.random_masks((h, w), n, seed)
    assert len(masks) == n
    assert all(mask.shape == (h, w) and mask.dtype == bool for mask in masks)
    if h * w > 400:
        assert all(0 < mask.mean() < 1 for mask in masks)
    again = metrics.random_masks((h, w), n, seed)
    assert all(np.array_equal(a, b) for a, b in zip(masks, again, strict=True))


def test_random_masks_keep_all_shares() -> None:
    masks = metrics.random_masks((64, 64), 800)
    shares = np.array([mask.mean() for mask in masks])
    for kind in range(4):
        mine = shares[kind::4]
        assert mine.min() < 0.12
        assert mine.max() > 0.7
        assert 0.4 < mine.mean() < 0.6


def test_robustness_once_measured_serves_every_masker() -> None:
    model = Sees(0.4)
    first = metrics.agreement(occlusion(model, "black"), model, IMAGE, n=5)
    again = metrics.agreement(occlusion(model, "white"), model, IMAGE, n=5)
    shown = len(model.seen)
    reused = metrics.agreement(occlusion(model, "white"), model, IMAGE, n=5, rho=first.rho)
    assert shown - (len(model.seen) - shown) == shown // 2 + 32 * 5  # no composition again
    assert np.array_equal(reused.rho, again.rho)
    assert np.array_equal(reused.confidence, again.confidence)
    with pytest.raises(PolicyError, match="32 numbers as `rho` do not fit 2 masks"):
        metrics.agreement(occlusion(model), model, IMAGE, rho=first.rho, masks=[HALF, ~HALF])


def test_misspelled_options_are_refused_even_without_a_kind() -> None:
    with pytest.raises(TypeError, match="sed"):
        metrics.robustness_by_kind(Sees(), IMAGE, HALF, 1, {}, sed=0)  # type: ignore[call-arg]
