"""Running on boxes: where it is allowed, that it gives the same, and what `evaluate` saves."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch._dynamo.utils import counters

import convad_fx
from convad_fx.compiler.lowering import box as box_lowering
from convad_fx.compiler.lowering import patch as patch_lowering
from convad_fx.engine import patch as patch_engine
from tests.compiler.patches import last_end
from tests.compiler.toys import (
    Dense,
    ExplicitPadding,
    FlattenHead,
    OneColumn,
    PadShortcut,
    SqueezeExcite,
)

GRID = (64, 48)


def some_masks(grid: tuple[int, ...] = GRID, seed: int = 0) -> Tensor:
    """Boxes at borders and corners, noise in boxes, one pixel, nothing, everything."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(12, 1, *grid, dtype=torch.bool)
    for i in range(6):
        corner = [int(torch.randint(0, n - 8, (1,), generator=generator)) for n in grid]
        part = tuple(slice(c, c + 8 + 4 * i) for c in corner)
        masks[(i, 0, *part)] = torch.rand(masks[(i, 0, *part)].shape, generator=generator) < 0.7
    masks[6, 0, :9, :9] = True
    masks[7, 0, -9:, -9:] = True
    masks[8, 0, 0, -1] = True
    masks[9, 0, -1, 0] = True
    masks[10] = True
    return masks


class Net(nn.Module):
    """Any body, then a mean and a linear layer."""

    def __init__(self, body: nn.Module, channels: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


def conv(*args: Any, **kwargs: Any) -> nn.Module:
    return nn.Conv2d(*args, **kwargs)


class Sliced(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 2))


class ByChunks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        return torch.cat([F.relu(b), a * 2], 1)


class TwoReaders(nn.Module):
    """Padding of what may be negative, read by a convolution and by something else."""

    def __init__(self, other: Any) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(4, 4, 3), other

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x - 3, (0, 2, 0, 2))
        return self.conv(x).mean((2, 3), keepdim=True) + self.other(x)


class ChannelsCut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 0, 0, 0, 0, -2)))


class OverChannelsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(4), nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


BODIES = {
    "strided": lambda: nn.Sequential(conv(3, 4, 3, 2, 1), nn.BatchNorm2d(4), conv(4, 4, 3, 2, 1)),
    "wide-stride": lambda: nn.Sequential(conv(3, 4, 5, 2, 2), nn.ReLU(), conv(4, 4, 5, 2, 2)),
    "valid": lambda: nn.Sequential(conv(3, 4, 3), nn.ReLU(), conv(4, 4, 3, 2)),
    "even-kernel": lambda: nn.Sequential(conv(3, 4, 4, padding=2), conv(4, 4, 2, 2)),
    "far-padding": lambda: nn.Sequential(conv(3, 4, 1, padding=1), conv(4, 4, 3, 2, 2)),
    "dilated": lambda: nn.Sequential(conv(3, 4, 3, padding=2, dilation=2), conv(4, 4, 3, 2)),
    "explicit-pad": lambda: nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), conv(3, 4, 3, 2)),
    "max-pool": lambda: nn.Sequential(conv(3, 4, 3, padding=1), nn.MaxPool2d(3, 2, 1)),
    "ceil-mode": lambda: nn.Sequential(conv(3, 4, 3), nn.MaxPool2d(3, 2, ceil_mode=True)),
    "ceil-padded": lambda: nn.Sequential(conv(3, 4, 1), nn.MaxPool2d(3, 2, 1, ceil_mode=True)),
    "avg-pool": lambda: nn.Sequential(conv(3, 4, 3, padding=1), nn.AvgPool2d(3, 2, 1)),
    "free-shortcut": lambda: nn.Sequential(conv(3, 1, 3, padding=1), Sliced()),
    "chunks": lambda: nn.Sequential(conv(3, 4, 3, 2, 1), ByChunks()),
    "channels-last": lambda: nn.Sequential(conv(3, 4, 2, 2), OverChannelsLast(), conv(6, 4, 3)),
}


def normed(channels: int) -> nn.Module:
    """A BatchNorm that turns zeros into something else."""
    norm = nn.BatchNorm2d(channels)
    nn.init.normal_(norm.bias)
    return norm


#: Padding amid a network: of what has a bias, twice in a row, read by more than convolutions.
PADDED = {
    "twice": lambda: [nn.ZeroPad2d((1, 2, 0, 1)), nn.ZeroPad2d(1), conv(4, 4, 5, 2, 1)],
    "before-strides": lambda: [nn.ZeroPad2d((0, 1, 0, 1)), conv(4, 4, 3, 2), normed(4), nn.ReLU6(),
                       nn.ZeroPad2d((0, 1, 0, 1)), conv(4, 4, 3, 2)],
    "ungated": lambda: [nn.ZeroPad2d((0, 1, 0, 0)), conv(4, 4, 1)],
    "norm": lambda: [nn.ZeroPad2d(1), normed(4), conv(4, 4, 3)],
    "maximum": lambda: [nn.ZeroPad2d(1), nn.MaxPool2d(3, 2), conv(4, 4, 3)],
    "minus": lambda: [nn.ConstantPad2d(1, -1.0), conv(4, 4, 3)],
    "sigmoid": lambda: [nn.ZeroPad2d((0, 1, 0, 1)), nn.Sigmoid(), conv(4, 4, 5)],
    "sigmoid-beside": lambda: [TwoReaders(lambda x: torch.sigmoid(x).mean((2, 3), True))],
    "maximum-beside": lambda: [TwoReaders(lambda x: x.amax((2, 3), True))],
    "pool-beside": lambda: [TwoReaders(lambda x: F.max_pool2d(x, 5, 1).mean((2, 3), True))],
    "channels-cut": lambda: [ChannelsCut()],
    "channels-too": lambda: [nn.ConstantPad3d((0, 1, 0, 1, 1, 1), 0.0), conv(6, 4, 3, 2)],
}  # fmt: skip
BODIES_AND_PADDED = [*BODIES, *PADDED]


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    first = [conv(3, 4, 3, 2, 1), normed(4), nn.ReLU6()]
    body = BODIES[name]() if name in BODIES else nn.Sequential(*first, *PADDED[name]())
    channels = body(torch.zeros(1, 3, *GRID)).shape[1]
    return Net(body, channels).eval().double()


some_policies = pytest.mark.parametrize("policy", [
    convad_fx.Policy(),
    convad_fx.Policy(tau=0.3, attribution="receptive"),
    convad_fx.Policy(input="raw"),
    convad_fx.Policy(input="strict", attribution="receptive"),
], ids=lambda policy: f"{policy.input}-{policy.attribution}")  # fmt: skip


def calls_of(masked: convad_fx.MaskedModule) -> dict[str, list[int]]:
    """How many masks, or tiles, each call of a way is given from now on, by the way's name."""
    parts: Any = masked.engine.parts
    calls: dict[str, list[int]] = {}

    def listened(name: str, function: Any) -> Any:
        calls[name] = []

        def listening(*args: Tensor | None) -> Any:
            calls[name].append(max(len(arg) for arg in args if arg is not None))
            return function(*args)

        return listening

    for name, function in list(parts.items()):
        parts[name] = listened(name, function)
    return calls


@some_policies
@pytest.mark.parametrize("name", BODIES)
def test_a_box_gives_what_the_whole_image_gives(
    name: str, policy: convad_fx.Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(box_lowering, "MIN_SHARE_ON_BOXES", 0.0)  # however little there is to save
    x, masks = torch.randn(1, 3, *GRID, dtype=torch.double), some_masks()
    masked = convad_fx.convert(built(name), x, policy)
    assert masked.strategies.box.ok, masked.strategies.box.why
    found = masked.evaluate(x, masks, batch_size=5)
    torch.testing.assert_close(found.logits, masked(x, masks), rtol=1e-10, atol=1e-10)
    assert found.passes == len(masks)
    # a cell that reads nothing but padding is always active: boxes then hold the whole border; and
    # what every mask has in common is computed once, so that little may be left for boxes
    saves = name != "far-padding" and masked.strategies.box.work.on_boxes > 0.5
    assert (found.area < 0.8) == saves
    assert saves or name == "far-padding" or policy.input == "raw" or name == "ceil-padded"


@some_policies
@pytest.mark.parametrize("name", PADDED)
def test_a_box_that_ends_beyond_a_padded_grid_gives_the_same(
    name: str, policy: convad_fx.Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(box_lowering, "MIN_SHARE_ON_BOXES", 0.0)
    x, masks = torch.randn(1, 3, *GRID, dtype=torch.double), some_masks()
    masked = convad_fx.convert(built(name), x, policy)
    found = masked.evaluate(x, masks, batch_size=5)
    torch.testing.assert_close(found.logits, masked(x, masks), rtol=1e-10, atol=1e-10)
    # the first layer of "raw" is all masks'; what follows is then padded before it is gated
    if policy.input != "raw":
        leaves = " ".join(why for _, why in masked.strategies.box.leaves)
        assert masked.strategies.box.ok, masked.strategies.box.why
        assert ("not gated" in leaves) == (name in ("ungated", "norm", "maximum", "sigmoid"))
        assert ("further padding" in leaves) == (name == "sigmoid-beside")


@pytest.mark.parametrize("at_most", [1.0, 1e9], ids=["patches", "boxes"])
def test_a_column_for_all_columns_is_not_cut(
    at_most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(box_lowering, "MIN_SHARE_ON_BOXES", 0.0)
    monkeypatch.setattr(patch_lowering.PatchWriter, "best_end", last_end)
    monkeypatch.setattr(patch_engine, "PATCH_OVERHEAD", at_most)
    torch.manual_seed(0)
    model = Net(OneColumn(GRID[1]), 4).eval().double()
    x, masks = torch.randn(1, 3, *GRID, dtype=torch.double), some_masks()
    masked = convad_fx.convert(model, x)
    assert "different size" in str(masked.strategies)
    for some in (masks, ~masks):
        found = masked.evaluate(x, some, batch_size=5)
        torch.testing.assert_close(found.logits, masked(x, some), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", BODIES)
def test_boxes_end_anywhere_unless_a_window_is_padded_by_less_than_it_reaches(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(box_lowering, "MIN_SHARE_ON_BOXES", 0.0)
    found = convad_fx.convert(
        built(name), torch.zeros(1, 3, *GRID, dtype=torch.double)
    ).strategies.box
    # "ceil-padded": of the last cell alone ceil_mode makes a window, too
    anywhere = {"strided", "wide-stride", "far-padding", "max-pool", "ceil-padded", "avg-pool",
                "free-shortcut", "chunks"}  # fmt: skip
    assert found.tile == {"wide-stride": (4, 4), "strided": (4, 4)}.get(name, (2, 2))
    assert found.granularity == ((1, 1) if name in anywhere else (2, 2))
    for size in ((21, 34), (22, 34), (64, 48)):
        expected = math.prod(size) / math.prod(GRID) * found.work.on_boxes
        assert found.work.share(size) - (1 - found.work.on_boxes) == pytest.approx(
            expected, rel=0.2
        )


@pytest.mark.parametrize("toy", [Dense, ExplicitPadding, FlattenHead, PadShortcut, SqueezeExcite])
def test_toys_give_the_same(toy: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = toy().eval().double(), torch.randn(1, 3, 8, 8, dtype=torch.double)
    masked = convad_fx.convert(model, x)
    masks = torch.rand(20, 1, 8, 8) < 0.3
    masks[:10, :, 4:] = False
    found = masked.evaluate(x, masks, batch_size=4)
    torch.testing.assert_close(found.logits, masked(x, masks), rtol=1e-10, atol=1e-10)


def test_a_network_without_boxes_says_why() -> None:
    body = nn.Sequential(nn.GroupNorm(1, 3), conv(3, 4, 3), nn.GroupNorm(2, 4), conv(4, 4, 3))
    model, x = Net(body, 4).eval(), torch.randn(1, 3, *GRID)
    masked = convad_fx.convert(model, x)
    assert not masked.strategies.box.ok
    assert "statistics are those of the whole grid" in masked.strategies.box.why
    found = masked.evaluate(x, some_masks())
    assert found.area == 1
    torch.testing.assert_close(found.logits, masked(x, some_masks()), rtol=1e-4, atol=1e-5)
    report = convad_fx.check(model, x)
    assert report.boxes == masked.report.boxes == str(masked.strategies)
    assert report.boxes in str(report)


def test_policies_that_read_more_than_zeros_have_no_boxes() -> None:
    model, x = built("avg-pool"), torch.zeros(1, 3, *GRID, dtype=torch.double)
    for policy in (convad_fx.Policy(pool="renormalize"), convad_fx.Policy(fill="neighbour")):
        assert not convad_fx.convert(model, x, policy).strategies.box.ok


def test_another_size_than_the_example_runs_on_whole_images() -> None:
    masked = convad_fx.convert(built("strided"), torch.zeros(1, 3, *GRID, dtype=torch.double))
    x, masks = torch.randn(1, 3, 40, 40, dtype=torch.double), some_masks((40, 40))
    found = masked.evaluate(x, masks)
    assert found.area == 1
    torch.testing.assert_close(found.logits, masked(x, masks))


def test_the_head_of_a_torchvision_network_gets_its_whole_grid_back() -> None:
    torch.manual_seed(0)
    model, x = torchvision.models.squeezenet1_1().eval(), torch.randn(1, 3, 96, 96)
    vgg = torchvision.models.vgg11(num_classes=4).eval()
    for network, ends in ((model, 0), (vgg, 1)):
        masked = convad_fx.convert(network, x)
        assert len(masked.strategies.box.leaves) == ends
        masks = some_masks((96, 96))
        found = masked.evaluate(x, masks)
        torch.testing.assert_close(found.logits, masked(x, masks), rtol=1e-4, atol=1e-5)
        assert found.area < 0.8


@pytest.mark.parametrize("kernel", [3, 5])
def test_many_sizes_of_box_stay_what_a_stride_of_three_allows(kernel: int) -> None:
    torch.manual_seed(0)
    body = nn.Sequential(conv(3, 4, kernel, 3, kernel // 2 - 1), nn.ReLU(), conv(4, 4, 3, 1, 1))
    x = torch.randn(1, 3, 96, 90, dtype=torch.double)
    masked = convad_fx.convert(Net(body, 4).eval().double(), x)
    assert masked.strategies.box.granularity == (3, 3)
    corners = [(a, b) for a in range(6, 92, 4) for b in range(6, 86, 4)]
    masks = torch.zeros(len(corners), 1, 96, 90, dtype=torch.bool)
    for mask, (a, b) in zip(masks, corners, strict=True):
        mask[:, :a, :b] = True
    for some in (masks, ~masks):
        found = masked.evaluate(x, some)
        torch.testing.assert_close(found.logits, masked(x, some))
        assert found.area < 0.9


def test_a_window_that_ceil_mode_clips_is_not_run_on_boxes(monkeypatch: Any) -> None:
    monkeypatch.setattr(box_lowering, "MIN_SHARE_ON_BOXES", 0.0)
    torch.manual_seed(0)
    body = nn.Sequential(conv(3, 4, 3, padding=1), nn.LPPool2d(2, 2, 2, ceil_mode=True))
    x, masks = torch.randn(1, 3, *GRID, dtype=torch.double), some_masks()
    masked = convad_fx.convert(Net(body, 4).eval().double(), x)
    torch.testing.assert_close(masked.evaluate(x, masks).logits, masked(x, masks))
    assert "number of cells at the border" in str(masked.strategies.box)


def graphs_compiled(masked: convad_fx.MaskedModule, x: Tensor, some: list[Tensor]) -> int:
    """How many graphs these calls compile: of one image, or of as many as there are masks."""
    expected = copy.deepcopy(masked)
    masked.compile(backend="eager")  # traces and guards as any other, and is done at once
    torch._dynamo.reset()
    before = counters["stats"]["unique_graphs"]
    for masks in some:
        images = x[: len(masks)]
        found = masked.evaluate(images, masks)
        torch.testing.assert_close(found.logits, expected.forward(images, masks))
        assert found.area < 1
    return int(counters["stats"]["unique_graphs"] - before)


def random_boxes(number: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(number, 1, *GRID, dtype=torch.bool)
    for mask in masks:
        top, left = (int(torch.randint(n - 8, (), generator=generator)) for n in GRID)
        bottom, right = (
            int(torch.randint(k + 4, n, (), generator=generator))
            for k, n in zip((top, left), GRID, strict=True)
        )
        mask[:, top:bottom, left:right] = True
    return masks


@pytest.mark.parametrize("way", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_run_on_boxes_too(way: Any) -> None:
    x, masks = torch.randn(1, 3, *GRID, dtype=torch.double), some_masks()
    masked = convad_fx.convert(built("explicit-pad"), x)
    twin = way(masked)
    found = twin.evaluate(x, masks, batch_size=4)
    assert found.area < 0.8
    assert torch.equal(found.logits, masked.evaluate(x, masks, batch_size=4).logits)


def test_channels_last_is_the_same() -> None:
    x, masks = torch.randn(1, 3, *GRID, dtype=torch.double), some_masks()
    masks = torch.cat([masks, ~masks])
    expected = convad_fx.convert(built("strided"), x).evaluate(x, masks)
    last = x.to(memory_format=torch.channels_last)
    model = built("strided").to(memory_format=torch.channels_last)
    orders = []
    masked = convad_fx.convert(model, last)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(
                lambda m, i, o: orders.append(o.is_contiguous(memory_format=torch.channels_last))
            )
    found = masked.evaluate(last, masks)
    assert all(orders)  # on boxes and patches, too
    assert found.area == expected.area < 1
    torch.testing.assert_close(found.logits, expected.logits)
