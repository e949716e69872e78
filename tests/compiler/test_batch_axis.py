"""Networks that move the batch axis, or merge it with others, and bring it back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from reference import reference_by_image
from torch import Tensor, nn

import convad_fx
from convad_fx import Policy, errors

SIZE = 8
MASKS = torch.rand(5, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) > 0.5
MASKS[1] = False
MASKS[1, :, :3, 1:6] = True


class Net(nn.Module):
    """A strided stem, something with the batch, a convolution, the mean, a linear layer."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.ReLU())
        self.layers = nn.ModuleList(layers)
        self.last = nn.Conv2d(4, 6, 3, 2, 1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.middle(self.stem(x))).mean((2, 3)))

    def middle(self, x: Tensor) -> Tensor:
        raise NotImplementedError


def windows_of(x: Tensor, n: int) -> Tensor:
    """(N, C, H, W) -> (N windows, C, n, n)"""
    batch, channels, height, width = x.shape
    x = x.view(batch, channels, height // n, n, width // n, n)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, n, n)


def grid_of(windows: Tensor, height: int, width: int) -> Tensor:
    """(N windows, C, n, n) -> (N, C, H, W)"""
    channels, n = windows.shape[1], windows.shape[3]
    x = windows.view(-1, height // n, width // n, channels, n, n)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, height, width)


class Swin(Net):
    """Window partition and reverse as in Swin, with an MLP over tokens for attention."""

    def __init__(self) -> None:
        super().__init__(nn.LayerNorm(4), nn.Linear(4, 8), nn.Linear(8, 4))

    def middle(self, x: Tensor) -> Tensor:
        norm, up, down = self.layers
        short = x = x.permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        x = norm(x).view(b, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5)
        x = x.reshape(b * (h // 4) * (w // 4), 16, c)
        x = down(up(x).relu())
        x = x.view(b, h // 4, w // 4, 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        return (x + short).permute(0, 3, 1, 2)


class WindowMean(Net):
    """Every token of a window plus the mean of its window."""

    def middle(self, x: Tensor) -> Tensor:
        _, c, h, w = x.shape
        tokens = windows_of(x, 4).flatten(2)
        return grid_of((tokens + tokens.mean(2, keepdim=True)).view(-1, c, 4, 4), h, w)


class WindowConvolution(Net):
    """A padded 3x3 convolution, group normalisation and pooling inside of windows."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(4, 4, 3, 1, 1), nn.GroupNorm(2, 4), nn.MaxPool2d(2))

    def middle(self, x: Tensor) -> Tensor:
        convolution, norm, pool = self.layers
        return grid_of(pool(norm(convolution(windows_of(x, 4)))), 4, 4)


class StridedConvolution(Net):
    """A strided convolution inside of windows."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(4, 4, 3, 2, 1), nn.AvgPool2d(2, 1))

    def middle(self, x: Tensor) -> Tensor:
        return grid_of(self.layers[1](self.layers[0](windows_of(x, 4))), 2, 2)


class Dilated(Net):
    """Positions of one residue are a grid of their own: the batch is the outer or inner part."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(4, 4, 3, 1, 1))

    def middle(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        x = x.view(b, c, h // 2, 2, w // 2, 2).permute(3, 5, 0, 1, 2, 4)
        x = self.layers[0](x.reshape(4 * b, c, h // 2, w // 2))
        x = x.view(2, 2, b, c, h // 2, w // 2).permute(2, 3, 4, 0, 5, 1)
        return x.reshape(b, c, h, w)


class Blur(Net):
    """One filter for all channels, which are merged with the batch."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 1, 3, 1, 1))

    def middle(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return x + self.layers[0](x.reshape(b * c, 1, h, w)).reshape(b, c, h, w)


class ChannelFirst(Net):
    """The batch is the second axis, and the last, and back again."""

    def middle(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1).sigmoid()
        return (x.permute(2, 3, 0, 1) * 2.0).permute(3, 2, 0, 1)


class SequenceFirst(Net):
    """(positions, N, C), as PyTorch's older layers want it, with a mean over positions."""

    def __init__(self) -> None:
        super().__init__(nn.LayerNorm(4), nn.Linear(4, 4))

    def middle(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        tokens = self.layers[1](self.layers[0](x.flatten(2).permute(2, 0, 1)))
        mean = tokens.mean(0)
        grid = tokens.permute(1, 2, 0).view(b, c, h, w)
        return grid * mean.sigmoid()[:, :, None, None]


class HalvesFirst(Net):
    """Two halves of the channels, stacked before the batch, and taken apart again."""

    def middle(self, x: Tensor) -> Tensor:
        halves = torch.stack(x.chunk(2, dim=1))
        return torch.cat([halves[0] * 2.0, halves[1] + halves.mean(0)], 1)


class GlobalTransposed(Net):
    """Features of the whole image, transposed and back."""

    def middle(self, x: Tensor) -> Tensor:
        return x * x.mean((2, 3)).transpose(0, 1).tanh().transpose(0, 1)[:, :, None, None]


class PaddedWindows(Net):
    """Explicit padding before the partition: cells that do not exist inside of windows."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(4, 4, 2, 2))

    def middle(self, x: Tensor) -> Tensor:
        windows = windows_of(nn.functional.pad(x, (1, 3, 2, 2)), 4)
        return grid_of(self.layers[0](windows), 6, 6)


NETS = [
    Swin, WindowMean, WindowConvolution, StridedConvolution, Dilated, Blur, ChannelFirst,
    SequenceFirst, HalvesFirst, GlobalTransposed, PaddedWindows,
]  # fmt: skip
POLICIES = [
    Policy(),
    Policy(tau=0.5, attribution="receptive"),
    Policy(input="strict", tau=0.25),
    Policy(input="raw", pool="renormalize"),
    Policy(fill="neighbour"),
]


def net(build: Callable[[], Net]) -> Net:
    torch.manual_seed(0)
    return build().eval()


def image(count: int) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("build", NETS, ids=lambda build: build.__name__)
@torch.no_grad()
def test_values_are_those_of_the_reference(build: Callable[[], Net], policy: Policy) -> None:
    model = net(build)
    masked = convad_fx.convert(model, image(1), policy=policy)
    for x, mask in ((image(1), MASKS), (image(5), MASKS), (image(5), MASKS[1:2])):
        expected = reference_by_image(model, x, mask, policy)
        torch.testing.assert_close(masked(x, mask), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("build", NETS, ids=lambda build: build.__name__)
@torch.no_grad()
def test_the_laws_hold(build: Callable[[], Net]) -> None:
    model, x = net(build), image(5)
    masked = convad_fx.convert(model, image(1))
    naive = convad_fx.convert(model, image(1), simplify=False)
    assert torch.equal(masked(x), model(x))
    torch.testing.assert_close(masked(x, MASKS), naive(x, MASKS))
    hidden = torch.where(MASKS, x, torch.nan)
    assert torch.equal(masked(hidden, MASKS), masked(x, MASKS))
    one_by_one = torch.cat([masked(x[i : i + 1], MASKS[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(masked(x, MASKS), one_by_one)
    evaluated = masked.evaluate(image(1), MASKS).logits
    torch.testing.assert_close(evaluated, masked(image(1), MASKS))


class Mixes(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "path"),
    [
        (lambda x: x.transpose(0, 1), "transpose"),
        (lambda x: x.flatten(0, 1), "flatten"),
        (lambda x: windows_of(x, 4), "reshape"),
        (lambda x: x.permute(1, 0, 2, 3).mean(1), "mean"),
        (lambda x: x.permute(1, 0, 2, 3).flip(1).permute(1, 0, 2, 3), "flip"),
        (lambda x: x.permute(1, 0, 2, 3)[:, :1].permute(1, 0, 2, 3), "getitem"),
        (lambda x: x.transpose(0, 1).softmax(1).transpose(0, 1), "softmax"),
        (lambda x: windows_of(x, 4).mean(0, keepdim=True), "mean"),
        (lambda x: x.flatten(0, 1)[:4], "getitem"),
        (lambda x: windows_of(x, 4).view(2, -1, 3, 4, 4), "view_1"),  # 2 x 26 of 13 images' 52
        (lambda x: nn.functional.avg_pool2d(x.transpose(0, 1), 2).transpose(0, 1), "avg_pool2d"),
        (lambda x: torch.cat([x.transpose(0, 1), x.transpose(0, 1)], 1).transpose(0, 1), "cat"),
        # every image with every other
        (lambda x: x.mean((1, 2, 3))[:, None] + x.mean((1, 2, 3))[None], "add"),
    ],
)  # fmt: skip
def test_what_mixes_images_is_refused(function: Callable[[Tensor], Tensor], path: str) -> None:
    with pytest.raises(errors.UnsupportedModel, match="batch axis") as caught:
        convad_fx.convert(Mixes(function).eval(), torch.zeros(1, 3, 8, 8), front_end="symbolic")
    assert f"1. {path} (" in str(caught.value)


def test_splitting_a_merged_batch_holds_for_one_size() -> None:
    report = convad_fx.check(net(Blur), image(1))
    assert report.ok
    assert report.size_bound == "reshape_1"
