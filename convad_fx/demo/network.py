"""The demo's network: a small ordinary CNN that knows nothing of this package, and its weights.

>>> model = load()
>>> logits = model(preprocess(scenes.held_out(1)[0].image))
>>> logits.shape, scenes.CLASSES[int(logits.argmax())]
(torch.Size([1, 10]), 'ladybird')
"""

from collections import OrderedDict
from importlib.resources import files

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load as load_tensors
from torch import nn
from torch.nn import functional as F

from convad_fx.demo import scenes
from convad_fx.errors import ImageError

SIZE = scenes.SIZE
# of the training pictures, to two digits
MEAN = (0.45, 0.45, 0.45)
STD = (0.19, 0.19, 0.19)

WEIGHTS = "weights.safetensors"


class Residual(nn.Module):
    """Two 3x3 convolutions and a shortcut, with a 1x1 convolution if shapes differ.

    Shapes: (N, inputs, H, W) -> (N, outputs, H / stride, W / stride).
    """

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block on `x`."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out)


class DepthwiseSeparable(nn.Module):
    """A depthwise 3x3 convolution, then a pointwise one (MobileNet's block).

    Shapes: (N, inputs, H, W) -> (N, outputs, H / stride, W / stride).
    """

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 3, stride, padding=1, groups=inputs, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block on `x`."""
        x = F.relu(self.bn1(self.depthwise(x)))
        return F.relu(self.bn2(self.pointwise(x)))


class SqueezeExcite(nn.Module):
    """Scale each channel by a factor computed from all channels' means. Shapes do not change."""

    def __init__(self, channels: int, squeezed: int):
        super().__init__()
        self.squeeze = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block on `x`."""
        scale = self.squeeze(x)
        scale = F.relu(self.fc1(scale))
        return x * torch.sigmoid(self.fc2(scale))


class DemoNet(nn.Module):
    """A classifier with common building blocks: (N, 3, 96, 96) -> (N, classes).

    >>> DemoNet()(torch.zeros(2, 3, 96, 96)).shape
    torch.Size([2, 10])
    """

    def __init__(self, classes: int = len(scenes.CLASSES)):
        super().__init__()
        # (N, 16, 48, 48)
        self.stem = nn.Sequential(
            OrderedDict(
                conv=nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False),
                bn=nn.BatchNorm2d(16),
                relu=nn.ReLU(inplace=True),
            )
        )
        # (N, 20, 24, 24)
        self.layer1 = nn.Sequential(Residual(16, 20, stride=2))
        # (N, 40, 12, 12)
        self.layer2 = nn.Sequential(Residual(20, 40, stride=2), Residual(40, 40, stride=1))
        # (N, 96, 6, 6), then (N, 128, 6, 6)
        self.layer3 = nn.Sequential(
            DepthwiseSeparable(40, 96, stride=2),
            SqueezeExcite(96, 24),
            DepthwiseSeparable(96, 128, stride=1),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.1)
        self.fc = nn.Linear(128, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes) of normalised pictures (N, 3, 96, 96)."""
        x = self.stem(x)
        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        x = torch.flatten(self.pool(x), 1)
        logits: torch.Tensor = self.fc(self.dropout(x))
        return logits


def load() -> DemoNet:
    """The trained network, in evaluation mode, on the CPU.

    >>> load().training
    False
    """
    model = DemoNet()
    model.load_state_dict(load_tensors(files("convad_fx.demo").joinpath(WEIGHTS).read_bytes()))
    return model.eval()


def preprocess(image: NDArray[np.uint8] | Image.Image) -> torch.Tensor:
    """The network's input for a picture: (1, 3, 96, 96), float32, normalised.

    >>> preprocess(Image.new("RGB", (200, 150), "white")).shape
    torch.Size([1, 3, 96, 96])

    Args:
        image: RGB, uint8 (H, W, 3), or a Pillow image of any mode; other sizes are resized to
            96 x 96, without regard to their aspect ratio.

    Raises:
        ImageError: the array is not uint8 (H, W, 3).
    """
    if isinstance(image, Image.Image):
        image = np.asarray(image.convert("RGB"))
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ImageError(
            f"expected a picture as uint8 (H, W, 3), got {image.dtype} {image.shape}",
            hint="pass RGB values in 0 ... 255, channels last, or a Pillow picture",
        )
    if image.shape[:2] != (SIZE, SIZE):
        resized = Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        image = np.asarray(resized)
    return normalise(torch.from_numpy(image.copy()).permute(2, 0, 1)[None])


def normalise(images: torch.Tensor) -> torch.Tensor:
    """Pictures (N, 3, H, W) in 0 ... 255, normalised to mean 0 and standard deviation 1."""
    mean = torch.tensor(MEAN, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(STD, device=images.device).view(1, 3, 1, 1)
    return (images.float() / 255 - mean) / std
