"""From an image file to the network's input, and back to pixels.

>>> from PIL import Image
>>> preprocess = standard(size=8)
>>> x = to_input(Image.new("RGB", (20, 10), "red"), preprocess)
>>> x.shape, displayable(x, preprocess).shape, displayable(x, preprocess)[0, 0].tolist()
(torch.Size([1, 3, 8, 8]), (8, 8, 3), [255, 0, 0])
"""

import contextlib
import io
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torchvision import transforms

from convad_fx.errors import ImageError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Pillow runs Ghostscript on these, whose sandbox has been escaped before.
_EXECUTABLE_FORMATS = {"EPS"}
# Beyond it, resizing the short side to the usual 256 pixels makes more than 65 million pixels.
_MAX_ASPECT_RATIO = 1000


@dataclass(frozen=True, slots=True)
class Preprocess:
    """The preprocessing of a network's images.

    Args:
        transform: from an RGB image to a normalised float tensor (3, H, W).
        mean: per channel, subtracted in the last step of `transform`, for pixels in [0, 1].
        std: per channel, the divisor in the last step of `transform`.
    """

    transform: Callable[[Image.Image], torch.Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def standard(
    size: int = 224,
    resize: int | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Preprocess:
    """The usual preprocessing: resize the short side, crop the centre, scale to [0, 1], normalise.

    >>> standard(size=96, resize=96, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)).mean
    (0.5, 0.5, 0.5)

    Args:
        size: height and width of the network's input, in pixels.
        resize: the short side before the crop; `None` is the usual margin, `size * 256 / 224`.
        mean: one number per channel, for pixels in [0, 1].
        std: one number per channel, not zero.

    Raises:
        ImageError: the numbers contradict each other.
    """
    resize = round(size * 256 / 224) if resize is None else resize
    if size < 1:
        raise ImageError(f"the size must be at least 1 pixel, not {size}", hint="224 is usual")
    if resize < size:
        raise ImageError(
            f"pictures resized to {resize} pixels cannot be cropped to {size}",
            hint="pass a `resize` that is at least `size`",
        )
    if len(mean) != 3 or len(std) != 3 or 0 in std:
        raise ImageError(
            f"mean {tuple(mean)} and std {tuple(std)} do not fit three channels",
            hint="pass three numbers each, for pixels in [0, 1], none of std zero",
        )
    return _preprocess(resize, size, tuple(mean), tuple(std))


def _preprocess(
    resize: int | list[int],
    crop: int | list[int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    interpolation: transforms.InterpolationMode = transforms.InterpolationMode.BILINEAR,
) -> Preprocess:
    steps = [
        transforms.Resize(resize, interpolation, antialias=True),
        transforms.CenterCrop(crop),
        transforms.ToTensor(),
        transforms.Normalize(mean, std),
    ]
    return Preprocess(transforms.Compose(steps), mean, std)


def recorded(preprocess: Preprocess) -> dict[str, Any]:
    """The preprocessing as JSON values, for a file; `replayed` is the inverse.

    >>> recorded(standard(size=96, resize=100))["resize"]
    [100]

    Raises:
        ImageError: the steps are not resize, crop the centre, scale to [0, 1], normalise.
    """
    chain: Any = preprocess.transform
    if hasattr(chain, "resize_size") and hasattr(chain, "crop_size"):  # torchvision's presets
        resize, crop, mode = chain.resize_size, chain.crop_size, chain.interpolation
    else:
        steps = list(getattr(chain, "transforms", ()))
        known = [
            transforms.Resize,
            transforms.CenterCrop,
            (transforms.ToTensor, transforms.PILToTensor),
            transforms.Normalize,
        ]
        # timm's ToTensor is called MaybeToTensor
        if len(steps) != len(known) or not all(
            isinstance(step, kind) or type(step).__name__ == "MaybeToTensor"
            for step, kind in zip(steps, known, strict=True)
        ):
            raise ImageError(
                f"the steps {[type(step).__name__ for step in steps]} cannot be recorded",
                hint="use convad_fx.images.standard",
            )
        resize, crop, mode = steps[0].size, steps[1].size, steps[0].interpolation
    return {
        "resize": _numbers(resize),
        "crop": _numbers(crop),
        "interpolation": str(getattr(mode, "value", mode)),
        "mean": [float(n) for n in preprocess.mean],
        "std": [float(n) for n in preprocess.std],
    }


def replayed(record: Mapping[str, Any]) -> Preprocess:
    """The preprocessing that `recorded` returned.

    >>> replayed(recorded(standard(size=96))).std
    (0.229, 0.224, 0.225)

    Raises:
        ImageError: a value is missing or of another type.
    """
    try:
        resize, crop = _numbers(record["resize"]), _numbers(record["crop"])
        mean, std = tuple(map(float, record["mean"])), tuple(map(float, record["std"]))
        mode = transforms.InterpolationMode(record["interpolation"])
        # `Resize` takes [n] as the short side; `CenterCrop` needs both
        crop = crop * 2 if len(crop) == 1 else crop
        return _preprocess(resize, crop, mean, std, mode)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ImageError(
            f"the recorded preprocessing {dict(record)} cannot be used ({error})",
            hint="it needs resize, crop, interpolation, mean and std",
        ) from error


def _numbers(size: Any) -> list[int]:
    return [int(n) for n in size] if isinstance(size, Sequence) else [int(size)]


def open_image(path: str | Path, content: bytes | None = None) -> Image.Image:
    """The image in the file `path`, as RGB, as an image viewer shows it.

    If `content`, the file's bytes, is given, `path` is not read and only appears in messages.

    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp(), "half.png")
    >>> Image.new("RGBA", (4, 2), (255, 0, 0, 128)).save(path)
    >>> open_image(path).getpixel((0, 0))
    (255, 127, 127)

    Rotated by its EXIF orientation. Transparent parts become white, as in most viewers. 16-bit
    values are scaled to 8 bits; of an animation the first frame is used.

    Raises:
        ImageError: the file is missing, not an image, damaged, larger than Pillow's limit, or more
            than 1000 times as long as wide.
    """
    path = Path(path)
    with _image_errors(path), warnings.catch_warnings():
        # Warnings about metadata and palettes; only the pixels matter.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        # Above Pillow's limit (89 megapixels) a small file may unpack to gigabytes.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path if content is None else io.BytesIO(content)) as image:
            if image.format in _EXECUTABLE_FORMATS:
                raise ImageError(
                    f"{path}: {image.format} files are programs, not pictures",
                    hint="convert it to PNG",
                )
            if max(image.size) > _MAX_ASPECT_RATIO * min(image.size):
                raise ImageError(
                    f"{path} is a line of {image.width} x {image.height} pixels",
                    hint=f"crop it to at most {_MAX_ASPECT_RATIO} times as long as wide",
                )
            image.load()
            return _rgb(_upright(image), path)


@contextlib.contextmanager
def _image_errors(path: Path) -> Iterator[None]:
    """Turn the errors of reading an image file into `ImageError`."""
    try:
        yield
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such file", hint="check the path") from error
    except IsADirectoryError as error:
        raise ImageError(f"{path} is a folder", hint="name the image files in it") from error
    except PermissionError as error:
        raise ImageError(f"{path}: not allowed to read it", hint="check its permissions") from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{path} is not an image in a format Pillow reads", hint="convert it to PNG or JPEG"
        ) from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        limit = Image.MAX_IMAGE_PIXELS or 0
        raise ImageError(
            f"{path} has more than {limit / 1e6:.0f} million pixels", hint="scale it down first"
        ) from error
    # Pillow's decoders raise these on damaged data, depending on the format.
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, IndexError) as error:
        raise ImageError(
            f"{path} is damaged or cut short ({error})", hint="fetch or export it again"
        ) from error


def to_input(image: Image.Image, preprocess: Preprocess) -> torch.Tensor:
    """The network's input (1, 3, H, W) for `image`.

    >>> to_input(Image.new("RGB", (300, 200)), standard(224)).shape
    torch.Size([1, 3, 224, 224])
    """
    return preprocess.transform(image)[None]


def displayable(x: torch.Tensor, preprocess: Preprocess) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """The pixels (H, W, 3), uint8, of the input `x` (1, 3, H, W): the inverse of `to_input`.

    >>> preprocess = standard(4)
    >>> x = to_input(Image.new("RGB", (9, 9), (1, 2, 3)), preprocess)
    >>> displayable(x, preprocess)[0, 0].tolist()
    [1, 2, 3]
    """
    mean = torch.tensor(preprocess.mean, dtype=torch.float64)[:, None, None]
    std = torch.tensor(preprocess.std, dtype=torch.float64)[:, None, None]
    pixels = x[0].detach().to("cpu", torch.float64) * std + mean
    levels = (pixels * 255).round().clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(levels.permute(1, 2, 0).numpy())


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    # With broken metadata, the pixels are used as stored.
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error):
        return image


def _rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode == "F":
        raise ImageError(
            f"{path} holds floating-point values without a recorded value range",
            hint="save it with 8 or 16 bits a channel",
        )
    # Pillow's own conversion clips to 255, which turns most 16-bit images white.
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ImageError(
                f"{path} holds values from {values.min()} to {values.max()}, more than 16 bits",
                hint="save it with 8 or 16 bits a channel",
            )
        return Image.fromarray(np.round(values / 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
