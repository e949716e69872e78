"""Running on boxes: where it is allowed, that it gives the same, and what `evaluate` saves."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._dynamo.utils import counters

import convad_fx
from convad_fx.compiler.lowering import box as region
from convad_fx.compiler.lowering import patch as reuse
from convad_fx.engine import patch as patched
from convad_fx.engine.batch_size import BatchSize
from convad_fx.engine.box import boxes, extent
from convad_fx.engine.bucketing import GROUPS, merged, rounded
from convad_fx.engine.engine import CHUNK, Engine
from convad_fx.errors import ImageError, MaskError, ModelError, PolicyError
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
    parts: Any = masked.__dict__["engine"].parts
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
    monkeypatch.setattr(region, "MIN_SHARE_ON_BOXES", 0.0)  # however little there is to save
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
    monkeypatch.setattr(region, "MIN_SHARE_ON_BOXES", 0.0)
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
    monkeypatch.setattr(region, "MIN_SHARE_ON_BOXES", 0.0)
    monkeypatch.setattr(reuse.PatchWriter, "best_end", reuse.PatchWriter.last_end)
    monkeypatch.setattr(patched, "COPYING", at_most)
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
    monkeypatch.setattr(region, "MIN_SHARE_ON_BOXES", 0.0)
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
    monkeypatch.setattr(region, "MIN_SHARE_ON_BOXES", 0.0)
    torch.manual_seed(0)
    body = nn.Sequential(conv(3, 4, 3, padding=1), nn.LPPool2d(2, 2, 2, ceil_mode=True))
    x, masks = torch.randn(1, 3, *GRID, dtype=torch.double), some_masks()
    masked = convad_fx.convert(Net(body, 4).eval().double(), x)
    torch.testing.assert_close(masked.evaluate(x, masks).logits, masked(x, masks))
    assert "number of cells at the border" in str(masked.strategies.box)


def test_boxes_of_any_size_tell_how_large_batches_should_be() -> None:
    x, masks = torch.randn(1, 3, *GRID, dtype=torch.double), random_boxes(300)
    masked = convad_fx.convert(built("strided"), x)
    engine = masked.__dict__["engine"]
    found = masked.evaluate(x, masks, batch_size="auto")
    size = next(size for key, size in engine.sizes.items() if key[-1] == "whole images and boxes")
    assert len(size.calls) >= found.batches - 3  # all but the first of each way, small and large


def test_identical_masks_and_the_empty_one_are_asked_once() -> None:
    x, masks = torch.randn(1, 3, *GRID, dtype=torch.double), some_masks()
    masked = convad_fx.convert(built("strided"), x)
    told: list[int] = []
    twice = masked.evaluate(x, torch.cat([masks, masks]), told=told.append)
    assert twice.passes == len(masks)
    assert sum(told) == len(masks)
    assert torch.equal(twice.logits[:12], twice.logits[12:])
    again = masked.evaluate(2 * x, masks)
    assert again.passes == len(masks) - 1
    assert torch.equal(again.logits[11], twice.logits[11])


def test_with_raw_input_the_empty_mask_is_asked_for_every_image() -> None:
    x = torch.randn(1, 3, *GRID, dtype=torch.double)
    masked = convad_fx.convert(built("strided"), x, convad_fx.Policy(input="raw"))
    nothing = torch.zeros(1, 1, *GRID, dtype=torch.bool)
    for image in (x, 2 * x):
        found = masked.evaluate(image, nothing)
        assert found.passes == 1
        torch.testing.assert_close(found.logits, masked(image, nothing))


def test_what_is_compiled_serves_every_box_and_batch() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 3, *GRID, dtype=torch.double)
    masked = convad_fx.convert(built("strided"), x)
    some = [*(some_masks()[:number] for number in (1, 3, 12)), random_boxes(40)]
    # on boxes and on whole images: one for batches of less than 16, one for others, for which torch
    # chooses other convolutions
    assert graphs_compiled(masked, x, some) <= 4


def test_what_is_compiled_serves_any_number_of_images() -> None:
    torch.manual_seed(0)
    x = torch.randn(40, 3, *GRID, dtype=torch.double)
    masked = convad_fx.convert(built("strided"), x[:1])
    assert graphs_compiled(masked, x, [random_boxes(number) for number in (2, 3, 7, 12, 40)]) <= 4


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


def _written_in_place(masked: nn.Module) -> None:
    with torch.no_grad():
        next(reversed(list(masked.parameters()))).add_(1.0)


def _loaded(masked: nn.Module) -> None:
    masked.load_state_dict({name: value + 0.1 for name, value in masked.state_dict().items()})


def _assigned(masked: nn.Module) -> None:
    state = {name: value + 0.1 for name, value in masked.state_dict().items()}
    masked.load_state_dict(state, assign=True)


def _pointed_elsewhere(masked: nn.Module) -> None:
    last = next(reversed(list(masked.parameters())))
    last.data = last.data + 1.0


def _in_inference_mode(masked: Any) -> None:
    """Such tensors do not count what is written to them: nothing is remembered."""
    nothing = torch.zeros(1, 1, *GRID, dtype=torch.bool)
    with torch.inference_mode():
        head = masked.head
        head.bias = nn.Parameter(head.bias.clone(), requires_grad=False)
        masked.evaluate(torch.rand(1, 3, *GRID), nothing)
        head.bias += 1.0


@pytest.mark.parametrize(
    "change", [_written_in_place, _loaded, _assigned, _pointed_elsewhere, _in_inference_mode]
)
def test_other_weights_forget_the_empty_answer(change: Callable[[nn.Module], None]) -> None:
    masked = convad_fx.convert(built("strided").float(), torch.zeros(1, 3, *GRID))
    x, nothing = torch.rand(1, 3, *GRID), torch.zeros(2, 1, *GRID, dtype=torch.bool)
    before = masked.evaluate(x, nothing).logits
    assert masked.evaluate(x, nothing).passes == 0
    change(masked)
    found = masked.evaluate(x, nothing)
    assert not torch.allclose(found.logits, before, atol=1e-3)
    with torch.no_grad():
        assert torch.allclose(found.logits, masked(x, nothing), atol=1e-6)


def test_new_parameters_forget_the_empty_answer() -> None:
    x, nothing = torch.randn(1, 3, *GRID), torch.zeros(1, 1, *GRID, dtype=torch.bool)
    masked = convad_fx.convert(built("strided").float(), x)
    before = masked.evaluate(x, nothing).logits
    masked.double()
    after = masked.evaluate(x.double(), nothing).logits
    assert after.dtype == torch.double
    torch.testing.assert_close(after.float(), before)


def test_more_masks_than_are_looked_at_together_keep_their_order() -> None:
    x = torch.randn(1, 3, *GRID, dtype=torch.double)
    masked = convad_fx.convert(built("strided"), x)
    masks = random_boxes(CHUNK + 70)
    masks[CHUNK + 3] = masks[5]  # met in the first chunk
    found = masked.evaluate(x, iter(masks))
    expected = torch.cat([masked(x, some) for some in masks.split(64)])
    assert len(found.logits) == CHUNK + 70
    torch.testing.assert_close(found.logits, expected)
    assert found.passes == len(masks.unique(dim=0))


def test_masks_may_come_one_by_one_and_images_one_each() -> None:
    x, masks = torch.randn(12, 3, *GRID, dtype=torch.double), some_masks()
    masked = convad_fx.convert(built("valid"), x[:1])
    streamed = masked.evaluate(x[:1], (mask[0] for mask in masks), batch_size=2)
    torch.testing.assert_close(streamed.logits, masked(x[:1], masks))
    each = masked.evaluate(x, masks, batch_size=3)
    torch.testing.assert_close(each.logits, masked(x, masks))


@pytest.mark.parametrize("way", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_run_on_boxes_too(way: Any) -> None:
    x, masks = torch.randn(1, 3, *GRID, dtype=torch.double), some_masks()
    masked = convad_fx.convert(built("explicit-pad"), x)
    twin = way(masked)
    found = twin.evaluate(x, masks, batch_size=4)
    assert found.area < 0.8
    assert torch.equal(found.logits, masked.evaluate(x, masks, batch_size=4).logits)


def test_lower_precision_says_how_far_it_is() -> None:
    x, masks = torch.randn(1, 3, *GRID), some_masks()
    masked = convad_fx.convert(built("strided").float(), x)
    exact = masked.evaluate(x, masks)
    lower = masked.evaluate(x, masks, precision="bfloat16")
    assert exact.deviation is None
    assert lower.logits.dtype == torch.float32
    assert lower.deviation is not None
    worst = float((lower.logits - exact.logits).abs().max())
    assert 0 < worst < 0.2
    assert 0 < lower.deviation < 0.2


def test_the_first_and_the_last_of_a_batch_are_held_against_float32() -> None:
    allowed = convad_fx.convert(built("strided"), torch.zeros(1, 3, *GRID).double()).strategies

    def network(x: Tensor, mask: Tensor) -> Tensor:
        kept = mask.flatten(1).sum(1, keepdim=True).float()
        return kept + (kept == GRID[0] * GRID[1]) * torch.is_autocast_enabled("cpu")

    engine = Engine(network, allowed, {}, reads_hidden=True)
    masks = some_masks()[[0, 1, 2, 3, 10]]  # of the whole image it is off by one
    assert engine.evaluate(torch.zeros(1, 3, *GRID), masks, 5, "bfloat16").deviation == 1
    assert engine.evaluate(torch.zeros(1, 3, *GRID), masks[:4], 4, "bfloat16").deviation == 0


@pytest.mark.parametrize("precision", [None, "bfloat16"])
def test_answers_that_are_written_over_by_the_next_are_kept(precision: str | None) -> None:
    """As CUDA graphs do."""
    allowed = convad_fx.convert(built("strided"), torch.zeros(1, 3, *GRID).double()).strategies
    memory = torch.zeros(12, 1)

    def network(x: Tensor, mask: Tensor) -> Tensor:
        answer = memory[: len(mask)]
        return answer.copy_(mask.flatten(1).sum(1, keepdim=True))

    engine = Engine(network, allowed, {}, reads_hidden=True)
    masks = some_masks()
    found = engine.evaluate(torch.zeros(1, 3, *GRID), masks, 5, precision)
    assert torch.equal(found.logits, masks.flatten(1).sum(1, keepdim=True).float())
    assert found.deviation == (None if precision is None else 0)


def cpu_allocator(_: str) -> RuntimeError:
    """What torch raises for a tensor of 2^60 values."""
    try:
        torch.empty(1 << 60)
    except RuntimeError as error:
        return error
    raise AssertionError("so much memory!")


class Scarce:
    """A network that has memory for a few masks only; for one more in lower precision."""

    def __init__(self, most: int, error: Callable[[str], BaseException]) -> None:
        self.most, self.error, self.asked = most, error, list[int]()

    def __call__(self, x: Tensor, mask: Tensor) -> Tensor:
        self.asked.append(len(mask))
        lower = torch.is_autocast_enabled("cpu")
        if len(mask) > self.most + lower:
            raise self.error("out of memory")
        return mask.flatten(1).sum(1, keepdim=True).float() + lower


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, cpu_allocator])
@pytest.mark.parametrize("batch_size", [8, "auto"])
def test_out_of_memory_halves_the_batch_and_goes_on(error: Any, batch_size: Any) -> None:
    allowed = convad_fx.convert(built("strided"), torch.zeros(1, 3, *GRID).double()).strategies
    network = Scarce(3, error)
    engine = Engine(network, allowed, {}, reads_hidden=True)
    x, masks = torch.zeros(1, 3, *GRID), some_masks()
    found = engine.evaluate(x, masks, batch_size=batch_size)
    # 12 masks, in even parts; "auto" begins with 4
    assert network.asked == ([6, 3, 3, 3, 3] if batch_size == 8 else [4] + [2] * 6)
    kept = masks.flatten(1).sum(1).tolist()
    assert found.logits.flatten().tolist() == kept
    # two of the first batch are to be compared, and one is
    network = Scarce(1, error)
    engine = Engine(network, allowed, {}, reads_hidden=True)
    found = engine.evaluate(x, masks, batch_size=2, precision="bfloat16")
    assert network.asked == [2, 2, 1, 2, 2, 2, 2, 2]
    assert found.deviation == 1
    assert found.logits.flatten().tolist() == [n + 1 for n in kept]
    with pytest.raises((RuntimeError, MemoryError), match="memory"):
        Engine(Scarce(0, error), allowed, {}, reads_hidden=True).evaluate(x, masks)


def test_activities_of_too_many_masks_are_looked_at_in_parts() -> None:
    masked = convad_fx.convert(built("strided"), x := torch.randn(1, 3, *GRID).double())
    masks, engine, asked = some_masks(), masked.__dict__["engine"], list[int]()
    expected = convad_fx.convert(built("strided"), x).evaluate(x, masks)
    activities = engine.parts["box_activities"]

    def scarce(image: Tensor, some: Tensor) -> Any:
        asked.append(len(some))
        if len(some) > 3:
            raise cpu_allocator("")
        return activities(image, some)

    engine.parts = {**engine.parts, "box_activities": scarce}
    found = masked.evaluate(x, masks)
    assert asked == [12, 6, 3, 3, 6, 3, 3]
    assert found.passes == expected.passes
    assert torch.allclose(found.logits, expected.logits)
    many = masked.evaluate(
        x.expand(12, -1, -1, -1) * torch.arange(1, 13)[:, None, None, None], masks
    )
    one_by_one = [masked(x * (k + 1), masks[k : k + 1]) for k in range(12)]
    assert torch.allclose(many.logits, torch.cat(one_by_one))


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    allowed = convad_fx.convert(built("strided"), torch.zeros(1, 3, *GRID).double()).strategies
    network = Scarce(1, RuntimeError)
    engine = Engine(network, allowed, {}, reads_hidden=True)
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.evaluate(torch.zeros(1, 3, *GRID), some_masks(), batch_size=8)
    assert network.asked == [6]


def test_what_is_moved_stays_compiled() -> None:
    x, masks = torch.randn(1, 3, *GRID, dtype=torch.double), some_masks()
    masked = convad_fx.convert(built("strided"), x)
    expected = masked.evaluate(x, masks).logits
    masked.compile(backend="eager")
    masked.float().double()
    parts = masked.__dict__["engine"].parts
    assert masked._compiled_call_impl is not None
    assert parts["box"]._compiled_call_impl is not None
    torch.testing.assert_close(masked.evaluate(x, masks).logits, expected, rtol=1e-5, atol=1e-5)
    again = pickle.loads(pickle.dumps(masked))
    torch.testing.assert_close(again.evaluate(x, masks).logits, expected, rtol=1e-5, atol=1e-5)


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


@pytest.mark.parametrize(("call", "more", "best"), [
    (0.5, 0.0, 32),  # what a call costs weighs most: 0.1 s for an image beside it
    (0.5, 0.01, 8),  # large batches cost more for each image
    (0.0, 0.0, 32),  # all the same: the largest
    (0.0, 0.02, 4),
])  # fmt: skip
def test_the_batch_size_that_is_fastest_is_kept(call: float, more: float, best: int) -> None:
    size = BatchSize(most=64)
    tried, noise = [], itertools.cycle([1.0, 1.1, 0.9, 1.05, 0.95])
    while size.found is None:
        tried.append(size.of(1.0, 1000))
        for n in (tried[-1], 1.0):  # small calls, too, say what a call costs
            size.record(n, (call + 0.1 * n + more * n * n) * next(noise))
        if len(tried) in (1, 6):
            size.record(2.0, 30.0)  # something was compiled
    assert sorted(tried) == [4] * 3 + [8] * 3 + [16] * 3 + [32] * 3
    assert size.of(1.0, 1000) == best
    assert size.of(0.25, 1000) == 4 * best
    assert size.call == pytest.approx(10 * call, abs=1.0)
    assert BatchSize(most=64, fixed=5).of(0.25, 1000) == 5


def test_on_a_gpu_a_call_costs_as_much_as_many_images() -> None:
    size = BatchSize.on_gpu(most=512)
    assert size.call == 64
    while size.found is None:
        for share, masks in ((1.0, 1000), (0.1, 90)):
            images = min(size.of(share, masks), masks) * share
            size.record(images, max(12.0, 0.1 * images))  # ms: as good as the same up to 120 images
    assert size.found == 256
    assert 64 < size.call < 256
    assert BatchSize.on_gpu(most=20).of(1.0, 1000) == 20


@pytest.mark.parametrize(("more", "best"), [(0.0, 16), (0.1, 4)])
def test_groups_too_small_for_large_batches_get_the_best_of_the_others(
    more: float, best: int
) -> None:
    size, asked = BatchSize(most=64), []
    for _ in range(20):  # groups of 20 masks; 23 images' worth would count for a batch of 32
        left = 20
        while left:
            n = min(size.of(1.0, left), left)
            asked.append(n)
            size.record(n, 0.5 + 0.1 * n + more * n * n)
            left -= n
    assert size.found is None
    assert {4, 8, 16} <= set(asked) <= {4, 8, 12, 16}
    assert size.of(1.0, 20) == best
    assert size.of(1.0, 1000) == 32  # not timed yet


def test_calls_that_are_all_alike_do_not_tell_what_a_call_costs() -> None:
    size = BatchSize(most=64)
    for noise in (1.0, 1.1, 0.9, 1.05, 0.95) * 4:
        size.record(8, 0.8 * noise)
    assert 0.1 < size.call < 0.9


@pytest.mark.parametrize(("error", "message", "call"), [
    (PolicyError, "batch_size must be a positive whole number or 'auto', not 0",
     lambda m, x, k: m.evaluate(x, k, batch_size=0)),
    (PolicyError, "precision must be one of bfloat16, float16, not 'half'",
     lambda m, x, k: m.evaluate(x, k, precision="half")),
    (MaskError, r"a mask has shape \(1, 9, 9\); expected bool of shape \(1, 64, 48\) each",
     lambda m, x, k: m.evaluate(x, torch.ones(2, 1, 9, 9, dtype=torch.bool))),
    (MaskError, "a mask has dtype torch.float32.*pass `mask > 0.5`",
     lambda m, x, k: m.evaluate(x, k.float())),
    (MaskError, "no masks were given", lambda m, x, k: m.evaluate(x, k[:0])),
    (MaskError, "12 masks for 2 images", lambda m, x, k: m.evaluate(x.expand(2, -1, -1, -1), k)),
    (ImageError, "expected", lambda m, x, k: m.evaluate(x[:, :2], k)),
])  # fmt: skip
def test_bad_input_is_named(error: type[Exception], message: str, call: Any) -> None:
    x = torch.zeros(1, 3, *GRID, dtype=torch.double)
    masked = convad_fx.convert(built("strided"), x)
    with pytest.raises(error, match=message):
        call(masked, x, some_masks())


class TwoAnswers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(3, 4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.conv(x)
        return z.mean((2, 3)), z.amax((2, 3))


def test_several_answers_are_refused() -> None:
    x = torch.zeros(1, 3, *GRID)
    masked = convad_fx.convert(TwoAnswers().eval(), x)
    with pytest.raises(ModelError, match="returns a tuple, not one tensor"):
        masked.evaluate(x, some_masks())


def test_boxes_hold_the_active_cells_of_every_level() -> None:
    x = torch.zeros(1, 3, *GRID, dtype=torch.double)
    masked = convad_fx.convert(built("wide-stride"), x)
    engine = masked.__dict__["engine"]
    masks = some_masks()[:10]
    activities = engine.parts["box_activities"](x, masks)
    whole = extent(masked.strategies.box, activities)
    first, sizes = boxes(masked.strategies.box, activities, whole)
    for activity, level in zip(activities, masked.strategies.box.levels, strict=True):
        if level is None:
            continue
        for k, size in enumerate(sizes):
            inside = torch.zeros_like(activity[k, 0])
            part = tuple(
                slice(int(f) // stride, -(-(int(f) + n) // stride))
                for f, n, stride in zip(first[k], size, level.strides, strict=True)
            )
            inside[part] = True
            assert not (activity[k, 0] & ~inside).any()


def by_area(sizes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Shares of an image of 10 x 10."""
    return sizes.prod(1) / 100


def test_where_calls_are_dear_one_box_holds_all() -> None:
    sizes = [(n, 11 - n) for n in range(1, 11)] * 3

    saved = float((1 - by_area(np.array(sizes))).sum())
    assert merged(sizes, by_area, call=saved + 1e-6) == {(10, 10): list(range(30))}
    assert len(merged(sizes, by_area, call=0.4 * saved)) > 1


def test_a_few_small_boxes_are_not_worth_a_call_of_their_own() -> None:
    alone = merged([(4, 5)] + [(5, 5)] * 9, by_area, call=0.1)
    assert alone == {(5, 5): list(range(10))}
    assert len(merged([(2, 2)] * 9 + [(9, 9)] * 9, by_area, call=0.1)) == 2
    every = [(i, j) for i in range(1, 29) for j in range(1, 29)]
    groups = merged(rounded(every, GROUPS, (1, 1)), by_area, call=0)
    assert len(groups) <= GROUPS
    assert sorted(i for members in groups.values() for i in members) == list(range(784))
    for size, members in groups.items():
        assert max(size) <= 28
        assert all(every[i][axis] <= size[axis] for i in members for axis in (0, 1))
