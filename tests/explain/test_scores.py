"""Scores: each against an answer computed here, without the evaluator."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import convad_fx
from convad_fx.errors import ModelError, PolicyError
from convad_fx.explain import (
    SCORES,
    Evaluator,
    Explanation,
    Search,
    explain,
    explain_disjoint,
    occlusion,
)
from convad_fx.explain.scores import choose_score

IMAGE = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(1))
IMAGE[..., 4:12, 4:12] += 1.0
EVERYTHING = np.ones((24, 24), bool)
QUICK = Search(partitions=4, max_splits=5)


def network(classes: int, *end: nn.Module, seed: int = 0, gain: float = 40.0) -> nn.Module:
    """A small CNN whose answers differ from class to class, and whatever follows its logits."""
    torch.manual_seed(seed)
    head = nn.Linear(4, classes)
    with torch.no_grad():
        head.weight *= gain
    body = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*body, head, *end).eval()


def logits_of(model: nn.Module, mask: np.ndarray) -> Tensor:
    """What switching off gives before the last activation, float64: (C,)."""
    plain = convad_fx.convert(nn.Sequential(*list(model)[:5]).eval(), IMAGE)
    with torch.inference_mode():
        return plain(IMAGE, torch.from_numpy(mask)[None, None])[0].double()


def check_sufficient(why: Explanation, score_of: Callable[[np.ndarray], Tensor]) -> None:
    """From scratch: the target's score on the kept pixels, against gamma of the whole image's."""
    kept, whole = (float(score_of(mask)[why.target]) for mask in (why.mask, EVERYTHING))
    assert why.confidence_whole == pytest.approx(whole, abs=1e-5)
    assert why.confidence_recheck == pytest.approx(kept, abs=1e-5)
    assert kept >= why.gamma * whole - 1e-5
    assert why.sufficient
    assert Explanation.from_json(why.to_json()) == why


# ----------------------------------------------------------- networks that end in an activation
def test_a_network_that_ends_in_softmax_is_explained_by_its_own_probabilities() -> None:
    model = network(6, nn.Softmax(1))
    softmax = lambda mask: logits_of(model, mask).softmax(0)  # noqa: E731
    why = explain(convad_fx.convert(model, IMAGE), IMAGE, search=QUICK)
    assert (why.score, why.is_prediction) == ("probability", True)
    assert why.target == int(model(IMAGE).argmax())
    check_sufficient(why, softmax)
    assert "(probability)" in str(why)
    painted = explain(occlusion(model), IMAGE, search=QUICK)
    assert painted.score == "probability"
    assert painted.confidence_whole == pytest.approx(model(IMAGE).max().item())
    # a second softmax over six probabilities could not exceed e / (e + 5)
    assert painted.confidence_whole > 0.36


def test_an_activation_outside_torch_shows_in_the_sum() -> None:
    def shares(x: Tensor, mask: Tensor) -> Tensor:
        kept = mask.double().mean((1, 2, 3))[:, None]
        powers = torch.cat([3 * kept, 1 - kept], 1).exp()
        return powers / powers.sum(1, keepdim=True)

    why = explain(shares, IMAGE, search=QUICK)
    assert why.score == "probability"
    assert why.confidence_whole == pytest.approx(float(np.e**3 / (np.e**3 + 1)))


@pytest.mark.parametrize("end", [nn.LogSoftmax(1), nn.Sequential(nn.Softmax(1), nn.Identity())])
def test_log_probabilities_and_wrapped_ends(end: nn.Module) -> None:
    model = network(5, end)
    log = isinstance(end, nn.LogSoftmax)
    why = explain(convad_fx.convert(model, IMAGE), IMAGE, search=QUICK)
    assert why.score == ("softmax" if log else "probability")
    check_sufficient(why, lambda mask: logits_of(model, mask).softmax(0))


class Sigmoids(nn.Module):
    """Ends in a sigmoid and a change of shape."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.logits = network(classes)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.logits(x))[:, None].flatten(1)


@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize("kind", ["switched off", "loaded", "painted"])
def test_a_network_that_ends_in_sigmoid_is_recognised(
    kind: str, classes: int, tmp_path: Path
) -> None:
    model = Sigmoids(classes).eval()
    found = model(IMAGE)[0].detach()
    assert classes == 1 or abs(float(found.sum()) - 1) > 0.01
    masker = occlusion(model) if kind == "painted" else convad_fx.convert(model, IMAGE)
    if kind == "loaded":
        convad_fx.save(masker, tmp_path / "net.cfx")
        masker = convad_fx.load(tmp_path / "net.cfx")
    target = int(found.argmax()) if classes > 1 else 1
    why = explain(masker, IMAGE, target, search=QUICK)
    assert why.score == "probability"
    assert why.confidence_whole == pytest.approx(float(found.max()))


def test_logits_between_0_and_1_that_no_sigmoid_made_are_logits() -> None:
    between = lambda x, mask: torch.tensor([[0.2, 0.6]]).expand(len(mask), 2) * 1  # noqa: E731
    assert explain(between, IMAGE, search=QUICK).score == "softmax"


@pytest.mark.parametrize(
    ("activation", "score"),
    [
        ("softmax", "softmax"),
        ("softmax", "sigmoid"),
        ("sigmoid", "softmax"),
        ("sigmoid", "sigmoid"),
        ("log_softmax", "sigmoid"),
    ],
)
def test_no_activation_is_laid_over_another(activation: str, score: str) -> None:
    ends = {"softmax": nn.Softmax(1), "sigmoid": nn.Sigmoid(), "log_softmax": nn.LogSoftmax(1)}
    masked = convad_fx.convert(network(3, ends[activation]), IMAGE)
    with pytest.raises(PolicyError, match=rf"ends in {activation}: a {score} .*leave score out"):
        explain(masked, IMAGE, score=score)


# --------------------------------------------------------------------- one value: no, and yes
class OneValue(nn.Module):
    """One logit that the bright square raises: (N, 1), or (N,)."""

    def __init__(self, *, flat: bool, probability: bool, offset: float) -> None:
        super().__init__()
        self.flat, self.probability, self.offset = flat, probability, offset

    def forward(self, x: Tensor) -> Tensor:
        z = 30 * (x.mean((1, 2, 3)) - self.offset)[:, None]
        z = z.sigmoid() if self.probability else z
        return z.squeeze(1) if self.flat else z


@pytest.mark.parametrize("offset", [0.5, 0.7])  # yes, and no
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("score", ["sigmoid", "probability", None])
def test_one_value_answers_no_and_yes(score: str | None, flat: bool, offset: float) -> None:
    model = OneValue(flat=flat, probability=score == "probability", offset=offset).eval()
    z = OneValue(flat=True, probability=False, offset=offset)

    def both(mask: np.ndarray) -> Tensor:
        yes = z(torch.where(torch.from_numpy(mask), IMAGE, 0)).double().sigmoid()
        return torch.cat([1 - yes, yes])

    predicted = int(both(EVERYTHING).argmax())
    assert predicted == (offset == 0.5)
    for target in (0, 1, None):
        why = explain(occlusion(model), IMAGE, target, score=score, search=QUICK)
        assert why.target == (predicted if target is None else target)
        assert why.is_prediction == (why.target == predicted)
        assert why.score == ("probability" if score == "probability" else "sigmoid")
        check_sufficient(why, both)


def test_one_logit_as_it_is() -> None:
    model = OneValue(flat=False, probability=False, offset=0.5).eval()
    why = explain(occlusion(model), IMAGE, 1, score="logit", search=QUICK)
    check_sufficient(why, lambda mask: torch.tensor(
        [0, float(model(torch.where(torch.from_numpy(mask), IMAGE, 0)))]))  # fmt: skip
    assert "score" in str(why)
    with pytest.raises(PolicyError, match=r"score \(logit\) of class 0 is -\d.* positive"):
        explain(occlusion(model), IMAGE, 0, score="logit")
    with pytest.raises(PolicyError, match="softmax of a single value is always 1; pass score="):
        explain(occlusion(model), IMAGE, score="softmax")
    with pytest.raises(PolicyError, match="target 2 is not a class .* from 0 to 1"):
        explain(occlusion(model), IMAGE, 2)


class First(nn.Module):
    """(N, 1) becomes (N,)."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]


@pytest.mark.parametrize(("classes", "flat"), [(1, False), (1, True), (3, False)])
def test_switched_off_networks_answer_alike(classes: int, flat: bool) -> None:
    """The engine's boxes and batches, with one column, with none, and with several."""
    model = network(classes, *([First()] if flat else []))
    why = explain(convad_fx.convert(model, IMAGE), IMAGE, search=QUICK)
    assert why.score == ("sigmoid" if classes == 1 else "softmax")

    def scores(mask: np.ndarray) -> Tensor:
        z = logits_of(model, mask)
        return z.softmax(0) if classes > 1 else torch.cat([1 - z.sigmoid(), z.sigmoid()])

    check_sufficient(why, scores)


# -------------------------------------------------------------------------- labels of their own
def labels(x: Tensor, mask: Tensor) -> Tensor:
    """Three labels: the left half, the right half, and one that is never there."""
    kept = mask[:, 0].float()
    left, right = kept[:, :, :12].mean((1, 2)), kept[:, :, 12:].mean((1, 2))
    return torch.stack([8 * left - 2, 6 * right - 2, -3 + left], 1)


def test_each_label_is_a_question_of_its_own() -> None:
    def sigmoid(mask: np.ndarray) -> Tensor:
        return labels(IMAGE, torch.from_numpy(mask)[None, None])[0].double().sigmoid()

    for target, half in ((0, np.s_[:, :12]), (1, np.s_[:, 12:])):
        why = explain(labels, IMAGE, target, score="sigmoid", search=QUICK, contrastive=True)
        check_sufficient(why, sigmoid)
        assert why.is_prediction  # although label 0 scores higher than label 1
        assert why.mask[half].sum() > 0.65 * why.mask.sum()
        # the contrast takes the label away: below 0.5, with no other in its place
        assert why.contrast is not None
        assert why.contrast.changes
        assert why.contrast.becomes is None
        without = float(sigmoid(~why.contrast.mask)[target])
        assert without == pytest.approx(why.contrast.confidence)
        assert without < 0.5
        assert f"it has a score of {without:.3g}" in str(why.contrast)
    absent = explain(labels, IMAGE, 2, score="sigmoid", gamma=0.6, search=QUICK)
    assert not absent.is_prediction
    check_sufficient(absent, sigmoid)


def test_probabilities_that_do_not_sum_to_1_are_labels() -> None:
    probabilities = lambda x, mask: labels(x, mask).sigmoid()  # noqa: E731
    of_logits = explain(labels, IMAGE, 1, score="sigmoid", search=QUICK)
    of_probabilities = explain(probabilities, IMAGE, 1, search=QUICK)
    assert of_probabilities.score == "probability"
    assert of_probabilities.is_prediction
    assert np.array_equal(of_probabilities.mask, of_logits.mask)
    assert of_probabilities.confidence_whole == pytest.approx(of_logits.confidence_whole)


# --------------------------------------------------------------------------- functions of answers
def test_regression_by_a_function() -> None:
    def age(x: Tensor, mask: Tensor) -> Tensor:
        return 20 + 60 * mask[:, 0, 4:12, 4:12].float().mean((1, 2))[:, None]

    def years(answers: Tensor) -> Tensor:
        return answers[:, 0]

    why = explain(age, IMAGE, gamma=0.75, score=years, search=QUICK, contrastive=True)
    assert (why.target, why.is_prediction, why.confidence_whole) == (0, True, 80)
    assert 60 <= why.confidence_recheck < 65
    assert why.score.endswith("years")
    square = why.mask[4:12, 4:12]
    assert why.confidence_recheck == pytest.approx(20 + 60 * square.mean())
    # half of 80 is lost where less than a third of the square is left
    assert why.contrast is not None
    assert why.contrast.changes
    assert 35 < why.contrast.confidence < 40
    assert "score 60" in str(why) or "score 61" in str(why)
    assert Explanation.from_json(why.to_json()) == why


@pytest.mark.parametrize(
    ("score", "message"),
    [
        ("soft", "no score called 'soft'; pass one of softmax, sigmoid, probability, logit"),
        (3, "must be a name or a function, not 3"),
        (lambda y: y[:1, 0].expand(7), r"returned shape \(7, 1\), not one row"),
        (lambda y: 1.0, "returned float, not one row"),
        (lambda y: y.log(), "not finite; look for"),
        (lambda y: 0 * y, r"is 0 on the whole image.* positive score can be kept; .*larger values"),
        (
            "probability",
            r"values lie in \[-\d.*\]: they are no probabilities; pass score='softmax'",
        ),
    ],
)
def test_scores_that_do_not_fit(score, message) -> None:
    with pytest.raises(PolicyError, match=message) as caught:
        explain(occlusion(network(4)), IMAGE, score=score, search=QUICK)
    assert caught.value.hint


def test_log_probabilities_are_named_as_such() -> None:
    with pytest.raises(PolicyError, match="pass score='softmax', which takes log-probabilities"):
        explain(occlusion(network(4, nn.LogSoftmax(1))), IMAGE, score="probability")


@pytest.mark.parametrize("shape", [(2, 0), (2, 3, 1), (3, 2), ()])
def test_answers_that_are_not_rows(shape: tuple[int, ...]) -> None:
    evaluator = Evaluator(lambda x, mask: torch.ones(shape), IMAGE)
    with pytest.raises(ModelError, match=re.escape(f"with shape {shape}, not (N, classes)")):
        evaluator.logits([EVERYTHING, ~EVERYTHING])


# ------------------------------------------------------------------- any class may be the target
@pytest.mark.parametrize("score", [None, "sigmoid", "softmax"])
def test_a_class_that_is_not_the_answer(score: str | None) -> None:
    model = network(5, seed=3, gain=10.0)
    masked = convad_fx.convert(model, IMAGE)

    def scores(mask: np.ndarray) -> Tensor:
        z = logits_of(model, mask)
        return z.sigmoid() if score == "sigmoid" else z.softmax(0)

    order = scores(EVERYTHING).argsort(descending=True).tolist()
    for target in order[1:]:
        why = explain(masked, IMAGE, target, score=score, search=QUICK, contrastive=True)
        assert why.target == target
        assert why.is_prediction == (score == "sigmoid" and bool(scores(EVERYTHING)[target] >= 0.5))
        check_sufficient(why, scores)
        assert why.contrast is not None
        if why.is_prediction:
            continue
        assert "which the network does not predict" in str(why)
        assert why.contrast.becomes is None
        if why.contrast.changes:
            lost = float(scores(~why.contrast.mask)[target])
            assert lost < 0.5 * float(scores(EVERYTHING)[target])


def two_reasons(x: Tensor, mask: Tensor) -> Tensor:
    """Class 0 is predicted, whatever is kept; either corner gives class 1 a score of 0.2."""
    kept = mask[:, 0].float()
    corner = torch.maximum(kept[:, :6, :6].mean((1, 2)), kept[:, -6:, -6:].mean((1, 2)))
    second = torch.where(corner > 0.5, 0.2, 0.01)
    return torch.stack([1 - second, second], 1)


def test_the_second_class_has_reasons_of_its_own() -> None:
    first = explain(two_reasons, IMAGE, search=QUICK)
    assert (first.target, first.mask.sum()) == (0, 0)
    reasons = explain_disjoint(two_reasons, IMAGE, 5, 1, search=QUICK)
    assert len(reasons) == 2
    for why in reasons:
        assert (why.is_prediction, why.sufficient) == (False, True)
        corners = max(why.mask[:6, :6].mean(), why.mask[-6:, -6:].mean())
        assert corners > 0.5
        assert why.size < 0.2
        assert why.responsibility.any()
    minimal = explain(two_reasons, IMAGE, 1, search=replace(QUICK, minimal=2))
    assert minimal.minimal
    assert minimal.sufficient


def test_nothing_needed_for_a_class_that_is_not_predicted() -> None:
    pro, contra = np.s_[4:12, 2:10], np.s_[4:12, 14:22]

    def both(x: Tensor, mask: Tensor) -> Tensor:
        """One square speaks for class 1; another one, more strongly, for class 0."""
        kept = mask[:, 0].float()
        against, for_it = (kept[:, rows, columns].mean((1, 2)) for rows, columns in (contra, pro))
        return torch.stack([4 * against, 3 * for_it], 1)

    why = explain(both, IMAGE, 1, search=QUICK)
    assert (why.is_prediction, why.sufficient, int(why.mask.sum())) == (False, True, 0)
    assert "this score is reached with everything hidden" in str(why)
    # The map still tells what keeps the score up: tools such as Quantus refuse a map of zeros.
    assert why.responsibility[pro].mean() > 1.2 * why.responsibility[contra].mean()


def test_the_class_alone_is_no_condition_where_it_is_not_predicted() -> None:
    with pytest.raises(PolicyError, match=r"class 1 is not predicted; pass a confidence above 0"):
        explain(two_reasons, IMAGE, 1, search=Search(confidence=0))
    assert explain(two_reasons, IMAGE, 0, search=Search(confidence=0, partitions=1)).sufficient


def test_a_score_of_0_is_refused() -> None:
    sure = lambda x, mask: torch.tensor([[2000.0, 0.0]]).expand(len(mask), 2)  # noqa: E731
    with pytest.raises(PolicyError, match=r"\(softmax\) of dog is 0 .*pass"):
        explain(sure, IMAGE, 1, labels=["cat", "dog"])


# ------------------------------------------------------------------------------------- one place
def test_the_score_in_use_is_chosen_once() -> None:
    evaluator = Evaluator(occlusion(network(3)), IMAGE)
    assert evaluator.score is None
    evaluator.scores([EVERYTHING], 0)
    assert evaluator.score is not None
    assert evaluator.score.name == "softmax"


def test_every_score_of_four_answers() -> None:
    answers = torch.tensor([[0.1, 0.7, 0.2], [0.6, 0.1, 0.3]], dtype=torch.float64)
    expected = {
        "softmax": answers.softmax(1),
        "sigmoid": answers.sigmoid(),
        "probability": answers,
        "logit": answers,
    }
    assert set(expected) == set(SCORES)
    for name, values in expected.items():
        for target in range(3):
            found = choose_score(name, answers)(answers, target)
            assert np.allclose(found.confidence, values[:, target])
            assert found.top.tolist() == [1, 0]
            of_labels = (values[:, target] >= 0.5).tolist()
            of_classes = [target == 1, target == 0]
            assert found.predicted.tolist() == (of_labels if name == "sigmoid" else of_classes)


def test_a_softmax_is_taken_in_one_place_only() -> None:
    package = Path(convad_fx.__file__).parent
    taken = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if "compiler" not in path.parts
        and re.search(r"\b(torch|F|functional)\.(log_)?softmax\(|\.sigmoid\(\)", path.read_text())
    }
    assert taken == {"explain/scores.py"}
