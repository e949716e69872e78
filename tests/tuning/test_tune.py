"""`tune` on networks where it is known which policy is better, and where none is."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import convad_fx
from convad_fx import Policy, Search, tuning
from convad_fx.errors import ConvadError, ImageError, MaskError, ModelError, PolicyError

DILUTE, RENORMALIZE = Policy(), Policy(pool="renormalize")
QUICK = {"tried": 24, "n": 6, "search": None}


class MeanRed(nn.Module):
    """Class 1: the mean of the first channel exceeds 0.7. So only how much is kept decides whether
    it survives elsewhere, and a mean over the kept part alone cannot know that."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 1, bias=False)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(1, 2)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([1.0, 0, 0])[None, :, None, None])
            self.head.weight.copy_(torch.tensor([[-30.0], [30.0]]))
            self.head.bias.copy_(torch.tensor([21.0, -21.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.conv(x)).flatten(1))


def reds(count: int, seed: int = 0) -> list[Tensor]:
    """Red pictures with noise in green and blue."""
    noise = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    noise[:, 0] = 0.95
    return list(noise)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return MeanRed().eval()


def test_one_logit_is_tuned_like_two(model) -> None:
    """The class of an image is the answer of its logit, not the only column."""

    class Difference(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            z = model(x)
            return z[:, 1:] - z[:, :1]

    arguments = {"policies": [DILUTE], "baseline": RENORMALIZE, **QUICK}
    pictures = [*reds(2), *(0.2 * red for red in reds(2, seed=1))]  # yes, yes, no, no
    two = convad_fx.tune(model, pictures, **arguments)
    one = convad_fx.tune(Difference().eval(), pictures, **arguments)
    for of_one, of_two in zip(one.trials, two.trials, strict=True):
        for a, b in zip(of_one.images, of_two.images, strict=True):
            assert (a.called_sufficient, a.auc) == (b.called_sufficient, b.auc)


def test_the_policy_known_to_be_better_is_chosen(model) -> None:
    found = convad_fx.tune(model, reds(6), policies=[DILUTE], baseline=RENORMALIZE, **QUICK)
    baseline, leader = found.trials
    assert (baseline.policy, leader.policy) == (RENORMALIZE, DILUTE)
    assert leader.score > 0.6
    assert baseline.score == pytest.approx(0.5, abs=0.05)  # no better than a coin
    assert found.decided
    assert found.policy == DILUTE
    assert leader.wins == 1.0
    assert found.best.p_value == 2**-6
    assert found.verdict.startswith("Use default: ahead of pool=renormalize by ")
    # The other way round the default is the best, and stays.
    found = convad_fx.tune(model, reds(6), policies=[RENORMALIZE], **QUICK)
    assert (found.decided, found.policy, found.leader) == (False, DILUTE, 0)
    assert found.verdict == "Keep default: none of the 2 is ahead of it on 6 images."


def test_where_no_policy_matters_the_default_is_kept(model) -> None:
    # 1 x 1 windows: tau and attribution mean nothing here.
    same = [Policy(tau=0.5), Policy(tau=0.7), Policy(attribution="receptive")]
    found = convad_fx.tune(model, reds(6), policies=same, **QUICK)
    assert len({trial.score for trial in found.trials}) == 1
    assert (found.decided, found.policy, found.best.p_value) == (False, Policy(), 1.0)
    assert [trial.wins for trial in found.trials] == [1.0, 0.0, 0.0, 0.0]


def test_a_lead_within_luck_is_called_so_and_the_default_kept() -> None:
    pictures = reds(8)
    for picture in pictures:
        picture[0] = 0.9 + 0.1 * picture[1].roll(5)
    torch.manual_seed(3)
    random = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, 2),
    ).eval()  # fmt: skip
    with torch.no_grad():  # two classes, evenly
        mean = random[:4](torch.stack(pictures))
        random[4].bias -= random[4](mean).mean(0)
    found = convad_fx.tune(
        random, pictures, policies=[Policy(tau=0.2), Policy(input="strict")], **QUICK
    )
    assert found.counted >= 5
    assert (found.leader != 0, found.decided, found.policy) == (True, False, Policy())
    assert found.verdict.startswith("Not significant: ")
    assert found.verdict.endswith(" of resamples of the images. Keep default.")


@pytest.mark.parametrize("count", [1, 4])
def test_fewer_than_five_images_say_nothing_and_it_says_so(model, count) -> None:
    found = convad_fx.tune(model, reds(count), policies=[DILUTE], baseline=RENORMALIZE, **QUICK)
    assert found.leader == 1
    assert (found.decided, found.policy) == (False, RENORMALIZE)
    number = "1 image" if count == 1 else "4 images"
    assert found.verdict.startswith(f"No conclusion from {number}: with fewer than 5")
    assert found.verdict.endswith("Keep pool=renormalize.")


def test_images_without_contrast_do_not_count(model) -> None:
    # Black keeps its class wherever it is planted on black: no mask fails.
    black = [torch.full((3, 16, 16), 0.001 * k) for k in range(6)]
    found = convad_fx.tune(model, black, policies=[RENORMALIZE], threshold=0.01, **QUICK)
    assert (found.counted, found.best, found.policy) == (0, None, DILUTE)
    assert "0 images of 6 (all masks of the others are robust, or none is)" in found.verdict
    json.dumps(found.to_dict(), allow_nan=False)
    assert str(found).splitlines()[1].split()[1:4] == ["default", "-", "-"]


def test_the_order_of_the_images_does_not_matter_and_the_seed_does(model) -> None:
    images, options = reds(6), {"policies": [RENORMALIZE], "tried": 16, "n": 3}
    options["search"] = Search(partitions=1, max_splits=1)
    one = convad_fx.tune(model, images, **options)
    two = convad_fx.tune(model, images[::-1], **options)
    assert one.best == two.best
    assert [trial.score for trial in one.trials] == [trial.score for trial in two.trials]
    for first, second in zip(one.trials, two.trials, strict=True):
        plain = [(m.auc, m.called_sufficient, m.explained) for m in first.images]
        assert plain == [(m.auc, m.called_sufficient, m.explained) for m in second.images][::-1]
    assert convad_fx.tune(model, images, **options) == one
    other = convad_fx.tune(model, images, seed=1, **options)
    suffice = [[trial.mean("called_sufficient") for trial in t.trials] for t in (one, other)]
    assert suffice[0] != suffice[1]


def test_the_price_of_a_choice_is_shown_and_objects_are_measured(model) -> None:
    truth = np.zeros((16, 16), bool)
    truth[:8] = True
    search = Search(partitions=1, max_splits=1)
    found = convad_fx.tune(
        model,
        reds(5),
        masks=[truth, torch.from_numpy(truth), None, truth, truth],
        policies=[RENORMALIZE, Policy(tau=0.5)],
        tried=16,
        n=4,
        search=search,
    )
    default, renormalized, untouched = found.trials
    # Only those that the choice is between are explained: here the default leads itself.
    assert all(one.explained is not None for one in default.images)
    assert renormalized.mean("size") is None
    assert untouched.mean("iou") is None
    assert default.images[2].explained.iou is None
    assert 0 < default.mean("iou") < 1
    assert 0 < default.mean("size") <= 1
    with pytest.raises(PolicyError, match="no measurement called 'colour'"):
        default.mean("colour")


def test_objects_can_be_what_is_tuned_for(model) -> None:
    truth = np.ones((16, 16), bool)
    found = convad_fx.tune(
        model,
        reds(5),
        masks=[truth] * 5,
        policies=[DILUTE],
        baseline=RENORMALIZE,
        aim="object",
        tried=4,
        n=2,
        search=Search(partitions=1, max_splits=1),
    )
    # Where all of the picture is the object, the larger set overlaps more.
    assert found.policy == DILUTE
    for trial in found.trials:
        assert trial.score == pytest.approx(trial.mean("iou")) == pytest.approx(trial.mean("size"))


def test_the_model_is_left_as_it_was(model) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    convad_fx.tune(model, reds(2), policies=[RENORMALIZE], tried=4, n=2, search=None)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


FAULTS = [
    ({"images": []}, ImageError, "there are no images; pass five or more"),
    ({"images": [*reds(2), reds(1)[0]]}, ImageError, "image 3 and image 1 are the same image"),
    ({"images": [reds(1)[0], torch.rand(3, 8, 8)]}, ImageError, "image 2 has shape (3, 8, 8)"),
    ({"masks": [None]}, PolicyError, "1 masks do not fit 2 images"),
    ({"names": ["a"]}, PolicyError, "1 names do not fit 2 images"),
    ({"masks": [None, np.ones((8, 8), bool)]}, MaskError, "the true mask of image 2: the mask has"),
    ({"masks": [None, np.zeros((16, 16), bool)]}, MaskError, "of image 2 is empty; pass None"),
    ({"aim": "object", "search": Search()}, PolicyError, "aim 'object' needs true masks"),
    ({"aim": "object"}, PolicyError, "aim 'object' needs explanations"),
    ({"aim": "beauty"}, PolicyError, "aim must be one of robust, object"),
    ({"tried": 1}, PolicyError, "tried must be a whole number of at least 2"),
    ({"level": 0.2}, PolicyError, "level must lie in [0.5, 1)"),
    ({"gamma": 0}, PolicyError, "gamma must lie in (0, 1]"),
]


@pytest.mark.parametrize(("options", "kind", "message"), FAULTS, ids=[m for *_, m in FAULTS])
def test_what_does_not_fit_is_refused_before_any_work(model, options, kind, message) -> None:
    given = {"images": reds(2), **QUICK, **options}
    with pytest.raises(kind) as caught:
        convad_fx.tune(model, **given)
    assert message in str(caught.value)


def test_masked_networks_are_refused(model) -> None:
    masked = convad_fx.convert(model, reds(1)[0][None])
    with pytest.raises(ModelError, match="masked already"):
        convad_fx.tune(masked, reds(2), **QUICK)


# --------------------------------------------------------------------------------------- spelling
@pytest.mark.parametrize("policy", [*tuning.FULL, *tuning.FEW, Policy.layer_masking()])
def test_texts_name_the_policies_they_were_made_of(policy) -> None:
    assert tuning.parse_policy(tuning.policy_text(policy)) == policy
    assert eval(tuning.policy_code(policy), {"Policy": Policy}) == policy
    words = tuning.policy_options(policy).split()
    names = [word.removeprefix("--") for word in words[::2]]
    pairs = ",".join(f"{name}={value}" for name, value in zip(names, words[1::2], strict=True))
    assert (tuning.parse_policy(pairs) if pairs else Policy()) == policy


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tau", "cannot be read: 'tau'; write e.g. tau=0.5,input=strict"),
        ("papers", "cannot be read: 'papers'"),
        ("", "cannot be read"),
        ("tau=x", "tau must be a number"),
        ("tau=2", "tau must lie in [0, 1)"),
        ("tau=nan", "tau must lie in [0, 1)"),
        ("tau=0.1,tau=0.2", "'tau=0.2' twice"),
        ("size=3", "'size=3'"),
        ("pool=max", "pool must be one of dilute, renormalize"),
    ],
)
def test_texts_that_name_no_policy(text, message) -> None:
    with pytest.raises(ConvadError) as caught:
        tuning.parse_policy(text)
    assert message in str(caught.value)
