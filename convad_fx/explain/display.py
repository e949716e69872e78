"""What a notebook shows of an explanation: its map and its mask, without the image."""

from __future__ import annotations

import base64
import html
import io

import numpy as np
from numpy.typing import NDArray

from convad_fx.explain.evaluator import Mask

#: Smaller maps are enlarged up to this many pixels a side.
_DISPLAY_SIZE = 224
_KEPT_COLOUR, _HIDDEN_COLOUR = (255, 45, 126), (40, 40, 40)


def png(responsibility: NDArray[np.float32], mask: Mask) -> bytes:
    """A responsibility map and the kept pixels (H, W each), side by side, as a PNG file."""
    import matplotlib
    from PIL import Image

    peak = float(responsibility.max())
    shares = responsibility / peak if peak > 0 else responsibility
    colours: NDArray[np.float64] = matplotlib.colormaps["inferno"](shares)[..., :3]
    left = (colours * 255).round().astype(np.uint8)
    right = np.where(mask[..., None], _KEPT_COLOUR, _HIDDEN_COLOUR).astype(np.uint8)
    gap = np.full((len(left), max(1, left.shape[1] // 24), 3), 255, np.uint8)
    image = Image.fromarray(np.concatenate([left, gap, right], 1))
    # A whole factor, so that pixels stay squares.
    if (factor := _DISPLAY_SIZE // max(mask.shape)) > 1:
        size = image.width * factor, image.height * factor
        image = image.resize(size, Image.Resampling.NEAREST)
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def figure(summary: str, picture: bytes) -> str:
    """A summary and the PNG that `png` made, as an HTML figure."""
    encoded = base64.b64encode(picture).decode("ascii")
    return (
        f"<figure><p>{html.escape(summary)}</p>"
        f'<img alt="responsibility and kept pixels" src="data:image/png;base64,{encoded}">'
        "<figcaption>left: responsibility; right: the kept pixels</figcaption></figure>"
    )
