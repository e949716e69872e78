"""What a user does with a masked network: copies, dtypes, compiling, bad input."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

import convad_fx
from convad_fx import Policy, errors
from tests.compiler.toys import SHAPE, TOYS, build


def images_and_masks(n: int = 4, size: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 3, size, size, generator=generator)
    return x, torch.rand(n, 1, size, size, generator=generator) > 0.4


@pytest.fixture(params=TOYS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return build(request.param)


def test_theorem_1_bit_for_bit(model: nn.Module) -> None:
    x, _ = images_and_masks()
    masked = convad_fx.convert(model, x)
    expected = model(x)
    assert torch.equal(masked(x), expected)
    assert torch.equal(masked(x, torch.ones(1, 1, 8, 8, dtype=torch.bool)), expected)


@pytest.mark.parametrize("hidden", [float("nan"), float("inf"), 1e30])
def test_hidden_values_do_not_reach_the_result(model: nn.Module, hidden: float) -> None:
    x, masks = images_and_masks()
    masked = convad_fx.convert(model, x)
    assert torch.equal(masked(torch.where(masks, x, hidden), masks), masked(x, masks))


def test_the_model_is_untouched(model: nn.Module) -> None:
    before = copy.deepcopy(model)
    attributes = set(vars(model))
    x, masks = images_and_masks()
    masked = convad_fx.convert(model, x)
    masked(x, masks)
    masked.to(torch.float64)
    masked.eval()
    assert set(vars(model)) == attributes
    for (name, own), twin in zip(model.named_modules(), before.modules(), strict=True):
        assert getattr(own, "inplace", None) == getattr(twin, "inplace", None), name
    for (name, own), twin in zip(
        model.state_dict().items(), before.state_dict().values(), strict=True
    ):
        assert torch.equal(own, twin), name
        assert own.dtype == twin.dtype, name
    assert torch.equal(model(x), before(x))


def test_parameters_are_shared_until_moved(model: nn.Module) -> None:
    masked = convad_fx.convert(model, torch.zeros(SHAPE))
    own = dict(masked.named_parameters())
    assert list(own) == [name for name, _ in model.named_parameters()]
    assert all(own[name] is parameter for name, parameter in model.named_parameters())
    assert list(masked.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("way", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies(model: nn.Module, way: Any) -> None:
    x, masks = images_and_masks()
    masked = convad_fx.convert(model, x, convad_fx.Policy(tau=0.25))
    twin = way(masked)
    assert isinstance(twin, convad_fx.MaskedModule)
    assert torch.equal(twin(x, masks), masked(x, masks))
    assert (twin.policy, twin.report) == (masked.policy, masked.report)
    assert list(twin.state_dict()) == list(masked.state_dict())


def test_double(model: nn.Module) -> None:
    x, masks = images_and_masks()
    masked = convad_fx.convert(model, x)
    single = masked(x, masks)
    double = masked.double()(x.double(), masks)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double, single.double(), rtol=1e-4, atol=1e-5)


class Casts(nn.Module):
    """It takes any dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.double())


def test_a_network_that_casts_takes_what_it_is_given() -> None:
    masked = convad_fx.convert(Casts().eval(), torch.zeros(SHAPE))
    x = torch.rand(SHAPE)
    assert torch.equal(masked(x), masked(x.double()))


def test_channels_last(model: nn.Module) -> None:
    x, masks = images_and_masks()
    expected = convad_fx.convert(model, x)(x, masks)
    x, model = x.to(memory_format=torch.channels_last), model.to(memory_format=torch.channels_last)
    masked = convad_fx.convert(model, x)
    assert torch.equal(masked(x), model(x))
    torch.testing.assert_close(masked(x, masks), expected, rtol=1e-4, atol=1e-5)


def test_autocast(model: nn.Module) -> None:
    x, masks = images_and_masks()
    masked = convad_fx.convert(model, x)
    expected = masked(x, masks)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(masked(x), model(x))
        torch.testing.assert_close(masked(x, masks).float(), expected, rtol=0.1, atol=0.1)


def test_other_image_sizes() -> None:
    model = build("Residual")
    masked = convad_fx.convert(model, torch.zeros(SHAPE))
    x, masks = images_and_masks(3, 21)
    assert torch.equal(masked(x), model(x))
    larger = convad_fx.convert(model, x)
    assert torch.equal(masked(x, masks), larger(x, masks))


def test_a_network_bound_to_one_size_says_so() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AvgPool2d(8), nn.Flatten(), nn.Linear(4, 2)).eval()
    masked = convad_fx.convert(model, torch.zeros(SHAPE))
    assert masked.report.size_bound == "1"
    assert "image size only" in str(masked.report)
    with pytest.raises(errors.ImageError, match=r"converted for \(8, 8\).*convert again"):
        masked(torch.zeros(1, 3, 9, 9))


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "mobilenet_v3_small",
        pytest.param("densenet121", marks=pytest.mark.heavy),
        pytest.param("convnext_tiny", marks=pytest.mark.heavy),
    ],
)
def test_compile_without_graph_breaks(name: str) -> None:
    model = torchvision.models.get_model(name, weights=None).eval()
    x, masks = images_and_masks(2, 64)
    masked = convad_fx.convert(model, x)
    with torch.inference_mode():
        expected = masked(x, masks)
        masked.compile(fullgraph=True)
        torch.testing.assert_close(masked(x, masks), expected, rtol=1e-4, atol=1e-4)
    torch.compiler.reset()


ONES = torch.ones(1, 1, 8, 8, dtype=torch.bool)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(1, 1, 8, 8), r"dtype torch.float32; expected bool .*pass `mask > 0.5`"),
        (torch.full((1, 1, 8, 8), 0.3), r"never by a fraction"),
        (torch.ones(8, 8, dtype=torch.bool), r"shape \(8, 8\); expected bool of .*\(N, 1, 8, 8\)"),
        (torch.ones(1, 3, 8, 8, dtype=torch.bool), r"shape \(1, 3, 8, 8\); .*one channel"),
        (torch.ones(1, 1, 9, 8, dtype=torch.bool), r"shape \(1, 1, 9, 8\)"),
        (torch.ones(3, 1, 8, 8, dtype=torch.bool), r"3 masks for 2 images; one .* must be 1"),
        (torch.ones(1, 1, 8, 8, dtype=torch.bool, device="meta"), r"on meta, the image on cpu"),
        ([[True]], r"a list; expected bool"),
    ],
)  # fmt: skip
def test_bad_mask(mask: Any, message: str) -> None:
    masked = convad_fx.convert(build("Residual"), torch.zeros(SHAPE))
    with pytest.raises(errors.MaskError, match=message):
        masked(torch.zeros(SHAPE), mask)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(1, 4, 8, 8), r"shape \(1, 4, 8, 8\); expected \(N, 3, height, width\)"),
        (torch.zeros(3, 8, 8), r"add the batch axis"),
        (torch.zeros(SHAPE).double(), r"dtype torch.float64; expected torch.float32.*x\.to\("),
        (torch.zeros(SHAPE).byte(), r"dtype torch.uint8; expected torch.float32.*normalise"),
        (torch.zeros(SHAPE, device="meta"), r"on meta, the network on cpu; use x\.to"),
    ],
)
def test_bad_image(image: Tensor, message: str) -> None:
    masked = convad_fx.convert(build("Residual"), torch.zeros(SHAPE))
    with pytest.raises(errors.ImageError, match=message):
        masked(image, ONES)


class Branches(nn.Module):
    """Control flow on values: no tracer can follow it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y.mean((2, 3)) if y.sum() > 0 else y.amax((2, 3))


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about TorchScript's own end
        return torch.jit.trace(nn.Conv2d(3, 2, 1).eval(), torch.zeros(SHAPE))


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_what_is_around_a_network_is_taken_off(wrap: Any) -> None:
    model, (x, masks) = build("Residual"), images_and_masks()
    masked = convad_fx.convert(wrap(model), x)
    assert masked.report.model == "Residual"
    assert torch.equal(masked(x, masks), convad_fx.convert(model, x)(x, masks))
    assert convad_fx.check(wrap(model), x) == masked.report


class TwoImages(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


@pytest.mark.parametrize(
    ("model", "example", "kind", "message"),
    [
        (nn.Conv2d(3, 2, 1), torch.zeros(SHAPE), errors.ModelError, r"training mode.*model\.eval"),
        (nn.Sequential(nn.Conv2d(3, 2, 1).eval(), nn.Dropout()).eval().append(nn.Dropout()),
         torch.zeros(SHAPE), errors.ModelError, r"2: Sequential is in training mode"),
        (len, torch.zeros(SHAPE), errors.ModelError, r"expected a torch.nn.Module"),
        (scripted(), torch.zeros(SHAPE), errors.ModelError, r"TorchScript .*scripted or traced"),
        (nn.Conv2d(3, 2, 1).eval(), torch.zeros(8, 8), errors.ImageError, r"expected an image"),
        (nn.Conv2d(3, 2, 1).eval(), torch.zeros(SHAPE).int(), errors.ImageError, r"floating point"),
        (nn.Conv2d(4, 2, 1).eval(), torch.zeros(SHAPE), errors.ImageError, r"not take a batch"),
        (Branches().eval(), torch.zeros(SHAPE), errors.UntraceableModel, r"cannot trace Branches"),
        (TwoImages().eval(), torch.zeros(SHAPE), errors.ModelError, r"takes 2 inputs"),
    ],
)  # fmt: skip
def test_bad_model(model: nn.Module, example: Tensor, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        convad_fx.convert(model, example)


def test_training_a_masked_network_is_refused() -> None:
    masked = convad_fx.convert(build("Residual"), torch.zeros(SHAPE))
    with pytest.raises(errors.ModelError, match="no training mode"):
        masked.train()


def test_an_untraceable_model_is_a_finding_of_check() -> None:
    report = convad_fx.check(Branches().eval(), torch.zeros(SHAPE))
    assert not report.ok
    assert "cannot trace Branches" in str(report)


class TwoFaults(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x.roll(1, 2))
        return x.sort(-1)[0].mean((2, 3))


def test_all_findings_come_at_once() -> None:
    model = TwoFaults().eval()
    report = convad_fx.check(model, torch.zeros(SHAPE))
    assert [(f.path, f.op) for f in report.findings] == [("roll", ".roll()"), ("sort", ".sort()")]
    with pytest.raises(errors.UnsupportedModel) as caught:
        convad_fx.convert(model, torch.zeros(SHAPE))
    for part in ("roll", "sort", "(N, 4, 8, 8)", "2 findings"):
        assert part in str(caught.value)
    forced = convad_fx.convert(model, torch.zeros(SHAPE), on_finding="ignore")
    assert torch.equal(forced(torch.zeros(SHAPE)), model(torch.zeros(SHAPE)))


class Attends(nn.Module):
    """A softmax over positions is told from one over channels by the activity that arrives."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 1, 1)
        self.attention = nn.MultiheadAttention(4, 1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).roll(1, 2)
        x = x * x.softmax(1) * x.flatten(2).softmax(-1).view(x.shape)
        y = x.flatten(2).transpose(1, 2)
        return self.attention(y, y, y)[0].softmax(1).mean(1)


def test_a_finding_behind_a_finding_is_found() -> None:
    report = convad_fx.check(Attends().eval(), torch.zeros(SHAPE))
    assert [f.path for f in report.findings] == ["roll", "softmax_1", "attention", "softmax_2"]


def test_unknown_choice_is_refused() -> None:
    with pytest.raises(errors.PolicyError, match="raise, ignore"):
        convad_fx.convert(build("Residual"), torch.zeros(SHAPE), on_finding="shrug")
    for wrong in ({"tau": 1.0}, {"tau": "a"}, {"input": "x"}, {"pool": ""}, {"attribution": "r"}):
        with pytest.raises(errors.PolicyError, match="must"):
            convad_fx.Policy(**wrong)  # type: ignore[arg-type]


def test_torch_export_captures_the_same_network(model: nn.Module) -> None:
    x, masks = images_and_masks()
    policy = convad_fx.Policy(tau=0.25, attribution="receptive")
    symbolic = convad_fx.convert(model, x, policy, front_end="symbolic")
    exported = convad_fx.convert(model, x, policy, front_end="export")
    assert torch.equal(exported(x), model(x))
    torch.testing.assert_close(exported(x, masks), symbolic(x, masks))
    assert exported(x[:1], masks[:3]).shape[0] == 3
    assert list(exported.state_dict()) == list(model.state_dict())
    assert all(a is b for a, b in zip(exported.parameters(), model.parameters(), strict=True))
    assert "torch.export" in str(exported.report)


class ByShape(nn.Module):
    """Python control flow on the image's size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        while x.shape[-1] > 4:
            x = self.conv(x)[:, :3]
        return x.mean((2, 3))


class ImageLevel(nn.Module):
    """Answers for every cell, of which no layer has read another."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return x, x + 1, *(x * 2).split([1, 2], 1)


@pytest.mark.parametrize("input_", ["gate", "raw", "strict"])
def test_every_grid_is_gated_before_it_is_returned(input_: str) -> None:
    masked = convad_fx.convert(ImageLevel().eval(), torch.zeros(SHAPE), Policy(input=input_))
    x, masks = images_and_masks()
    for answer, value in zip(masked(x, masks), ImageLevel()(x), strict=True):
        assert torch.equal(answer, torch.where(masks, value, 0.0))
    for answer, value in zip(masked(x), ImageLevel()(x), strict=True):
        assert torch.equal(answer, value)


class Returns(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return torch.chunk(x, 3, 1)


def test_a_tuple_is_gated_piece_by_piece() -> None:
    masked = convad_fx.convert(Returns().eval(), torch.zeros(SHAPE))
    x, masks = images_and_masks()
    assert torch.equal(torch.cat(masked(x, masks), 1), torch.where(masks, x, 0.0))


class Pieces(nn.Module):
    """Over the pieces of a tensor, as Python does it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        pieces = self.conv(x).chunk(2, 1)
        y = torch.cat([piece * len(pieces) for piece in pieces[::-1]], 1)
        return y.mean((2, 3))


def test_a_loop_over_pieces_is_exported() -> None:
    model = Pieces().eval()
    x, masks = images_and_masks()
    masked = convad_fx.convert(model, x)
    assert masked.report.front_end == "torch.export"
    assert torch.equal(masked(x), model(x))
    assert torch.equal(masked(torch.where(masks, x, torch.nan), masks), masked(x, masks))


def test_control_flow_on_shapes_is_exported() -> None:
    model = ByShape().eval()
    x, masks = images_and_masks(3, 16)
    masked = convad_fx.convert(model, x)
    assert masked.report.front_end == "torch.export"
    assert torch.equal(masked(x), model(x))
    assert torch.equal(masked(torch.where(masks, x, torch.nan), masks), masked(x, masks))
    with pytest.raises(errors.ImageError, match="convert again"):
        masked(torch.zeros(1, 3, 8, 8))
    with pytest.raises(errors.UntraceableModel, match="cannot trace ByShape"):
        convad_fx.convert(model, x, front_end="symbolic")


@pytest.mark.parametrize(
    ("first", "second", "image"),
    [
        ("first", "second", "image"),
        ("first", "second", "mask"),
        ("mask", "kept", "x"),
        ("x", "mask", "image"),
        ("second", "second_gated", "x"),
        ("places_0", "first_activity", "kept"),
        ("cells_0_1", "cells_1_1", "x_box"),
        ("kept", "kept_activity", "x_gated"),
    ],
)
def test_names_of_a_model_may_be_those_of_what_is_put_in(
    first: str, second: str, image: str
) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.add_module(first, nn.Conv2d(3, 4, 3, 2, 1))
            self.add_module(second, nn.Conv2d(4, 6, 3, padding=1))
            self.head = nn.Linear(6, 5)

    name = "forward"
    body = f"s.head(s.{second}(s.{first}({image}).relu()).mean((2, 3)))"
    setattr(Named, name, eval(f"lambda s, {image}: {body}"))  # the argument's name is the test
    x = torch.randn(1, 3, 32, 40, generator=torch.Generator().manual_seed(1))
    masks = torch.zeros(3, 1, 32, 40, dtype=torch.bool)
    masks[0, :, 10:], masks[1, :, :20, :10], masks[2, :, :, 3:] = True, True, True
    model = Named().eval()
    masked = convad_fx.convert(model, x)

    layers = [getattr(model, name) for name in (first, second)]
    by_hand = nn.Sequential(*layers[:1], nn.ReLU(), *layers[1:], Mean(), model.head)
    expected = convad_fx.convert(by_hand.eval(), x)(x, masks)
    with torch.no_grad():
        assert torch.equal(masked(x, masks), expected)
        assert torch.allclose(masked.evaluate(x, masks).logits, expected, atol=1e-6)
    assert masked.strategies.box.ok, masked.strategies.box.why
    assert masked.strategies.patch.ok, masked.strategies.patch.why


class Mean(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


def test_batch_norm_is_folded_by_who_wants_it() -> None:
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None).eval().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    folded = fuse(model).eval()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    x, masks = images_and_masks(3, 64)
    x = x.double()
    masked = convad_fx.convert(folded, x)
    assert torch.equal(masked(x, torch.ones_like(masks)), folded(x))
    expected = convad_fx.convert(model, x)(x, masks)
    torch.testing.assert_close(masked(x, masks), expected, rtol=1e-10, atol=1e-12)
