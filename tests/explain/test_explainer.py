"""Whole explanations, of networks whose reasons are known."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from maskers import IMAGE, LABELS, LEFT, QUICK, RIGHT, Counting, always, both, either, share, whole
from PIL import Image
from torch import nn

import convad_fx
from convad_fx import images, models
from convad_fx.demo import scenes
from convad_fx.errors import ConvadError, ImageError, ModelError, PolicyError
from convad_fx.explain import (
    Evaluator,
    Explanation,
    Search,
    explain,
    explain_disjoint,
    occlusion,
)
from convad_fx.explain.explainer import image_digest
from convad_fx.explain.responsibility import Box


def kept(explanation: Explanation, box: Box) -> float:
    return float(explanation.mask[box.slices].mean())


def confidence(masker: Counting, mask: np.ndarray) -> tuple[int, float]:
    """From scratch: without the evaluator."""
    with torch.inference_mode():
        logits = masker(IMAGE[None], torch.tensor(mask)[None, None])
    return int(logits.argmax()), float(logits.double().softmax(1)[0, 1])


@pytest.mark.parametrize("seed", range(3))
def test_one_patch_is_found_and_little_else(seed: int) -> None:
    why = explain(Counting(share(LEFT)), IMAGE, seed=seed, labels=LABELS)
    assert (why.target, why.target_name, why.sufficient) == (1, "thing", True)
    assert kept(why, LEFT) > 0.7
    assert why.size < 2 * LEFT.area / why.mask.size
    assert kept(why, RIGHT) == 0
    assert why.responsibility[LEFT.slices].min() > np.median(why.responsibility)


def test_a_patch_needed_to_the_last_pixel_is_kept_whole() -> None:
    why = explain(Counting(whole(LEFT)), IMAGE)
    assert kept(why, LEFT) == 1
    assert why.size < 0.25


def test_two_patches_needed_together_are_both_found() -> None:
    why = explain(Counting(both(share(LEFT), share(RIGHT))), IMAGE)
    assert kept(why, LEFT) > 0.7
    assert kept(why, RIGHT) > 0.7
    assert why.size < 3 * (LEFT.area + RIGHT.area) / why.mask.size


def test_of_two_patches_that_suffice_one_is_enough() -> None:
    why = explain(Counting(either(share(LEFT), share(RIGHT))), IMAGE)
    assert max(kept(why, LEFT), kept(why, RIGHT)) > 0.7
    assert why.size < 2 * max(LEFT.area, RIGHT.area) / why.mask.size


def test_nothing_needed_is_said_and_not_searched_for() -> None:
    masker = Counting(always)
    why = explain(masker, IMAGE)
    assert (why.size, why.sufficient, why.responsibility.max()) == (0, True, 0)
    assert why.evaluations == len(masker.masks) < 40
    assert "nothing: the network gives this class with everything hidden" in str(why)


def test_everything_needed_is_the_whole_image() -> None:
    why = explain(Counting(whole(Box(0, 48, 0, 64))), IMAGE, search=QUICK)
    assert (why.size, why.sufficient) == (1, True)
    assert "the whole image" in str(why)
    assert why.responsibility.max() == 0  # no proper combination passed anywhere


@pytest.mark.parametrize("gamma", [0.5, 0.9, 0.99, 1.0])
def test_sufficiency_holds_from_scratch(gamma: float) -> None:
    masker = Counting(both(share(LEFT), share(RIGHT)))
    why = explain(masker, IMAGE, gamma=gamma, search=QUICK)
    top, scored = confidence(masker, why.mask)
    _, unmasked = confidence(masker, np.ones_like(why.mask))
    assert top == why.target
    assert scored == why.confidence_recheck >= gamma * unmasked
    assert why.confidence_whole == unmasked
    assert why.sufficient


@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
def test_every_mask_asked_about_is_counted(batch_size: int) -> None:
    masker = Counting(share(LEFT))
    why = explain(masker, IMAGE, search=QUICK, batch_size=batch_size)
    assert why.evaluations == len(masker.masks) == sum(masker.calls)
    assert max(masker.calls) <= batch_size
    assert why.evaluations <= QUICK.evaluations + 150
    # The last word is a call of its own, about the set that is reported.
    assert masker.calls[-1] == 1
    assert np.array_equal(masker.masks[-1].numpy(), why.mask)


def test_the_same_whatever_the_batch_size_and_whatever_ran_before() -> None:
    first = explain(Counting(share(LEFT)), IMAGE, search=QUICK, batch_size=1)
    np.random.seed(1)  # global streams are not ours
    torch.manual_seed(1)
    explain(Counting(share(RIGHT)), IMAGE.flip(2), search=QUICK)
    for batch_size in (5, 64):
        again = explain(Counting(share(LEFT)), IMAGE, search=QUICK, batch_size=batch_size)
        assert again == first
    assert hash(again) == hash(first)


def test_seed_and_image_change_the_stream() -> None:
    def maps(image: torch.Tensor, seed: int) -> np.ndarray:
        return explain(Counting(share(LEFT)), image, search=QUICK, seed=seed).responsibility

    plain = maps(IMAGE, 0)
    assert not np.array_equal(plain, maps(IMAGE, 1))
    assert not np.array_equal(plain, maps(IMAGE + 1e-6, 0))
    assert np.array_equal(plain, maps(IMAGE[None].to(memory_format=torch.channels_last), 0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_images_of_any_float_dtype(dtype: torch.dtype) -> None:
    assert explain(Counting(share(LEFT)), IMAGE.to(dtype), search=QUICK).sufficient
    assert image_digest(IMAGE.to(dtype)) != image_digest(IMAGE.to(dtype).flip(1))


def test_a_network_that_rounds_by_batch_size_makes_the_set_grow_until_it_passes_alone() -> None:
    class Rounding(Counting):
        """A little less sure when asked about one mask alone."""

        def __call__(self, x: torch.Tensor, mask: torch.Tensor, /) -> torch.Tensor:
            alone = len(mask) == 1 and not mask.all()
            return super().__call__(x, mask) - torch.tensor([0, 0.2 if alone else 0.0, 0])

    why = explain(Rounding(share(LEFT)), IMAGE, search=QUICK)
    needed = 0.9 * why.confidence_whole
    assert why.sufficient
    assert why.confidence_recheck >= needed
    # It grew: in a batch it has confidence to spare.
    assert why.confidence_kept > why.confidence_recheck
    plain = explain(Counting(share(LEFT)), IMAGE, search=QUICK)
    assert why.mask.sum() > plain.mask.sum()
    assert (why.mask & plain.mask).sum() == plain.mask.sum()


def test_a_network_that_never_agrees_with_itself_is_reported_as_such() -> None:
    class Moody(Counting):
        """Sure once, and less sure ever after."""

        def __call__(self, x: torch.Tensor, mask: torch.Tensor, /) -> torch.Tensor:
            tired = -6.0 if self.calls else 0.0
            return super().__call__(x, mask) + torch.tensor([0, tired, 0])

    why = explain(Moody(share(LEFT)), IMAGE, search=QUICK)
    assert not why.sufficient
    assert why.size == 1
    assert "NOT sufficient" in str(why)


def test_a_real_module_painted_over() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64, 5)
    ).eval()
    why = explain(occlusion(model, 0.5), IMAGE, search=QUICK)
    with torch.inference_mode():
        painted = torch.where(torch.tensor(why.mask), IMAGE, 0.5)
        said = model(painted[None]).double().softmax(1)[0]
        assert int(model(IMAGE[None]).argmax()) == int(said.argmax()) == why.target
    assert float(said[why.target]) == pytest.approx(why.confidence_recheck)
    assert why.policy == {"paint": 0.5}


def test_progress_counts_evaluations(capsys: pytest.CaptureFixture[str]) -> None:
    explain(Counting(share(LEFT)), IMAGE, search=QUICK)
    assert capsys.readouterr().err == ""
    explain(Counting(share(LEFT)), IMAGE, search=QUICK, progress=True)
    assert "mask" in capsys.readouterr().err


def test_target_may_be_given_if_it_is_the_answer() -> None:
    assert explain(Counting(share(LEFT)), IMAGE, target=1, search=QUICK).target == 1
    labels = {1: "thing"}
    assert explain(Counting(share(LEFT)), IMAGE, labels=labels, search=QUICK).title == "thing"
    assert explain(Counting(share(LEFT)), IMAGE, labels={}, search=QUICK).title == "class 1"


def nan_logits(x: torch.Tensor, mask: torch.Tensor, /) -> torch.Tensor:
    return torch.full((len(mask), 3), torch.nan)


def image_like(x: torch.Tensor, mask: torch.Tensor, /) -> torch.Tensor:
    return torch.zeros(len(mask), 3, 4, 4)


MASKER = Counting(share(LEFT))


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ImageError, r"\(C, H, W\) or \(1, C, H, W\), not \(48, 64\)",
         lambda: explain(MASKER, IMAGE[0])),
        (ImageError, "not a batch of 2; pass x\\[i\\]",
         lambda: explain(MASKER, torch.stack([IMAGE, IMAGE]))),
        (ImageError, "floating point, not torch.uint8; .*normalise",
         lambda: explain(MASKER, (IMAGE * 255).byte())),
        (ImageError, "must be a tensor, not ndarray; preprocess",
         lambda: explain(MASKER, IMAGE.numpy())),  # type: ignore[arg-type]
        (ImageError, "empty", lambda: explain(MASKER, IMAGE[:, :0])),
        (PolicyError, r"gamma must lie in \(0, 1\], not 0; .*0.9",
         lambda: explain(MASKER, IMAGE, gamma=0)),
        (PolicyError, "gamma .* not 1.5", lambda: explain(MASKER, IMAGE, gamma=1.5)),
        (PolicyError, "gamma .* not nan", lambda: explain(MASKER, IMAGE, gamma=float("nan"))),
        (PolicyError, "target 3 is not a class .* 0 to 2, or None",
         lambda: explain(MASKER, IMAGE, target=3)),
        (PolicyError, "target -1 is not a class", lambda: explain(MASKER, IMAGE, target=-1)),
        (PolicyError, "2 labels do not name 3 classes; pass one name per class",
         lambda: explain(MASKER, IMAGE, labels=["a", "b"], search=QUICK)),
        (PolicyError, "seed must be a whole number of at least 0, not -1; pass 0",
         lambda: explain(MASKER, IMAGE, seed=-1)),
        (PolicyError, "batch_size must be .* at least 1, not 0; 'auto'",
         lambda: explain(MASKER, IMAGE, batch_size=0)),
        (PolicyError, "partitions must be .* not 0; the default is 10",
         lambda: Search(partitions=0)),
        (PolicyError, "min_box must be .* not 2.5; the default is 10",
         lambda: Search(min_box=2.5)),  # type: ignore[arg-type]
        (PolicyError, r"confidence must lie in \[0, 1\], not 2; .* as in ReX",
         lambda: Search(confidence=2)),
        (ModelError, "not finite with 100% of the image kept; look for NaN",
         lambda: explain(nan_logits, IMAGE)),
        (ModelError, r"shape \(1, 3, 4, 4\), not \(N, classes\)",
         lambda: explain(image_like, IMAGE)),
        (ModelError, "returned tuple, not a tensor of logits; wrap it",
         lambda: explain(lambda x, mask: (mask, mask), IMAGE)),  # type: ignore[arg-type, return-value]
    ],
)  # fmt: skip
def test_errors_say_what_and_what_next(error, message, call) -> None:
    with pytest.raises(error, match=message) as caught:
        call()
    assert isinstance(caught.value, ConvadError)
    assert caught.value.hint


def test_wrong_labels_are_refused_before_the_search() -> None:
    masker = Counting(share(LEFT))
    with pytest.raises(PolicyError, match="labels"):
        explain(masker, IMAGE, labels=["a", "b"])
    assert len(masker.masks) == 1


@pytest.fixture(scope="module")
def ladybird() -> tuple[convad_fx.MaskedModule, torch.Tensor]:
    classifier = models.resolve("demo")
    x = images.to_input(Image.fromarray(scenes.held_out(1)[0].image), classifier.preprocess)
    return convad_fx.convert(classifier.model, x), x


def test_a_search_in_half_precision_is_checked_in_the_networks_own(ladybird) -> None:
    masked, x = ladybird
    why = explain(masked, x, search=QUICK, precision="bfloat16")
    exact = explain(masked, x, search=QUICK)
    with torch.inference_mode():
        kept = masked(x, torch.tensor(why.mask)[None, None]).double().softmax(1)[0]
    assert why.sufficient
    assert why.confidence_recheck == float(kept[why.target])
    assert why.confidence_whole == exact.confidence_whole
    assert (why.target, why.precision) == (exact.target, "bfloat16")
    assert 0 < why.deviation < 0.5
    assert (exact.precision, exact.deviation) == (None, None)
    assert "searched in bfloat16 (logits off by" in str(why)
    assert Explanation.from_json(why.to_json()) == why


def test_what_suffices_in_half_precision_only_is_made_larger() -> None:
    class Steep(nn.Module):
        """258 times the share that is kept, against 256: in bfloat16 nothing lies between."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen = nn.functional.linear(x.mean((2, 3)), torch.ones(1, 1)) * 258
            return torch.cat([torch.full_like(seen, 256.0), seen], 1)

    x, less = torch.ones(1, 1, 32, 32), torch.ones(1, 1, 32, 32, dtype=torch.bool)
    less[..., -1, -2:] = False
    masked = convad_fx.convert(Steep().eval(), x)
    whole = float(masked(x).double().softmax(1)[0, 1])
    lower = masked.evaluate(x, less, precision="bfloat16").logits.double().softmax(1)[0, 1]
    exact = masked.evaluate(x, less).logits.double().softmax(1)[0, 1]
    assert exact < 0.96 * whole < lower
    for precision in (None, "bfloat16"):
        why = explain(masked, x, gamma=0.96, search=QUICK, precision=precision)
        assert (why.sufficient, why.mask.sum()) == (True, 1023)


class Tied(nn.Module):
    """In bfloat16 both logits are 256 whatever is kept; else 5 / 8 of the image are needed."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias = torch.tensor([[0.8], [0.0]]), torch.tensor([255.5, 256.0])
        return nn.functional.linear(x.mean((2, 3)), weight, bias)


def test_whether_anything_is_needed_at_all_is_no_matter_of_precision() -> None:
    x = torch.ones(1, 1, 32, 32)
    masked = convad_fx.convert(Tied().eval(), x)
    nothing = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    lower = masked.evaluate(x, nothing, precision="bfloat16").logits
    assert lower[0, 0] == lower[0, 1]
    why = explain(masked, x, gamma=0.5, search=QUICK, precision="bfloat16")
    assert why.responsibility.any()
    assert why.sufficient
    assert why.size > 0.6


def test_nor_is_whether_the_rest_suffices() -> None:
    x = torch.ones(1, 1, 32, 32)
    masked = convad_fx.convert(Tied().eval(), x)
    found = explain_disjoint(masked, x, gamma=0.5, search=QUICK, precision="bfloat16")
    assert [why.sufficient for why in found] == [True]


def test_what_cannot_be_spared_is_asked_exactly() -> None:
    x = torch.ones(1, 1, 32, 32)
    masked = convad_fx.convert(Tied().eval(), x)
    search = Search(partitions=2, minimal=8)
    why = explain(masked, x, gamma=0.5, search=search, precision="bfloat16")
    assert why.minimal
    assert why.mask.mean() >= 0.625
    blocks = [(i, j) for i in range(0, 32, 8) for j in range(0, 32, 8)]
    for i, j in blocks:
        less = torch.tensor(why.mask)[None, None]
        if less[..., i : i + 8, j : j + 8].any():
            less[..., i : i + 8, j : j + 8] = False
            assert int(masked(x, less).argmax()) == 1


def test_what_overflows_in_half_precision_is_told_of_the_picture() -> None:
    class Large(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(x.mean((2, 3)), torch.tensor([[1e5], [2e5]]))

    x = torch.ones(1, 1, 32, 32)
    masked = convad_fx.convert(Large().eval(), x)
    assert explain(masked, x, search=QUICK).sufficient
    with pytest.raises(PolicyError, match=r"not finite in float16 .*pass 'bfloat16'"):
        explain(masked, x, search=QUICK, precision="float16")


def test_few_masks_are_asked_twice_for_the_deviation(ladybird) -> None:
    masked, x = ladybird
    network = masked.engine.network
    asked = Counter()

    def listening(*args: torch.Tensor) -> torch.Tensor:
        lower = torch.is_autocast_enabled("cpu")
        asked[lower] += max(len(arg) for arg in args)
        return network(*args)

    own = convad_fx.convert(models.resolve("demo").model, x)
    engine = own.engine
    engine.network, engine.parts = listening, {}  # on whole images
    evaluator = Evaluator(own, x, precision="bfloat16", batch_size=16)
    random = np.random.default_rng(0)
    for _ in range(5):
        evaluator.logits([random.random(evaluator.shape) < 0.5 for _ in range(40)])
    assert asked[True] == 200
    assert asked[False] == 2
    assert evaluator.deviation > 0


@pytest.mark.parametrize(
    ("masker", "precision", "why"),
    [
        ("masked", "int8", "precision must be one of bfloat16, float16, not 'int8'"),
        ("masked", torch.bfloat16, "pass its name as text"),
        ("double", "bfloat16", "lowers float32 to bfloat16, and this image is torch.float64"),
        ("painting", "bfloat16", "precision is for masked networks"),
    ],
)
def test_precision_is_for_masked_networks_and_has_two_names(ladybird, masker, precision, why):
    masked, x = ladybird
    asked = occlusion(models.resolve("demo").model) if masker == "painting" else masked
    with pytest.raises(PolicyError, match=why):
        explain(asked, x.double() if masker == "double" else x, search=QUICK, precision=precision)
