"""Small networks, one idea each, whose plans and emitted code are kept as golden text."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 2, 1)
        self.conv1 = nn.Conv2d(4, 4, 3, 1, 1)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(4, 4, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return (x + self.conv2(self.relu(self.conv1(x)))).mean((2, 3))


class StridedShortcut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)
        self.shortcut = nn.Conv2d(3, 4, 1, 2)
        self.last = nn.Conv2d(4, 4, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.conv(x) + self.shortcut(x))).mean((2, 3))


class PadShortcut(nn.Module):
    """Every other pixel, channels padded with zeros: the parameter-free shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1))).mean((2, 3))


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, 1, 1)
        self.norm = nn.BatchNorm2d(7)
        self.conv2 = nn.Conv2d(7, 4, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([x, self.conv1(x)], 1)
        return torch.cat([y, self.conv2(F.relu(self.norm(y)))], 1).mean((2, 3))


class TwoWindows(nn.Module):
    """Concatenated branches that reduce the grid by different windows: activity per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 4, 5, 2, 2)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.last = nn.Conv2d(7, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.cat([self.wide(x), self.pool(x)], 1)).mean((2, 3))


class OneColumn(nn.Module):
    """A grid of one column, for all columns of another."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, 1, 1)
        self.row = nn.Conv2d(4, 4, (1, width))
        self.last = nn.Conv2d(4, 4, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x * self.row(x))


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 1, 1)
        self.squeeze = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return (x * torch.sigmoid(self.fc(self.squeeze(x)))).mean((2, 3))


class Shuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, 2, 1)
        self.conv2 = nn.Conv2d(2, 2, 3, 1, 1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.conv1(x).chunk(2, dim=1)
        x = torch.cat([a, self.conv2(b)], 1)
        n, c, h, w = x.size()
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        return x.mean((2, 3))


class FlattenHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)
        self.fc = nn.Linear(4 * 4 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv(x)).reshape(x.shape[0], -1))


class ExplicitPadding(nn.Module):
    """TensorFlow's asymmetric 'SAME' before a strided convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.pad = nn.ZeroPad2d((0, 1, 0, 1))
        self.conv = nn.Conv2d(3, 4, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.pad(x)).amax((2, 3))


class ChannelsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 7, 1, 3)
        self.norm = nn.LayerNorm(4)
        self.fc = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        y = self.fc(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return (x + self.scale * y).mean((2, 3))


class SharedInPlace(nn.Module):
    """The activation changes the tensor that the sum reads afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z = F.relu_(y)
        y += 1
        return (y + z).mean((2, 3))


class AsAnother(nn.Module):
    """Tensors that take shape and dtype from others of the image: torch.export keeps such calls."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 4, 3, 1, 1)
        self.other = nn.Conv2d(3, 4, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y, z = self.one(x), self.other(x)
        y = y.reshape_as(z) + z.view_as(y).type_as(y)
        return (y * y.mean((2, 3), keepdim=True).expand_as(y)).mean((2, 3))


class Patches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.PixelUnshuffle(2)
        self.conv = nn.Conv2d(12, 8, 3, 1, 1)
        self.up = nn.PixelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.conv(self.down(x))).mean((2, 3))


TOYS: dict[str, Callable[[], nn.Module]] = {
    toy.__name__: toy
    for toy in (
        Residual,
        StridedShortcut,
        PadShortcut,
        Dense,
        TwoWindows,
        SqueezeExcite,
        Shuffle,
        FlattenHead,
        ExplicitPadding,
        ChannelsLast,
        SharedInPlace,
        AsAnother,
        Patches,
    )
}

#: Every toy takes images of this shape.
SHAPE = (2, 3, 8, 8)


def build(name: str) -> nn.Module:
    """A toy with seeded weights, in eval mode, whose BatchNorm does not leave zeros alone."""
    torch.manual_seed(0)
    model = TOYS[name]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.bias)
    return model.eval()
