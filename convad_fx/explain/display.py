"""How an explanation shows itself in a notebook: without the picture, which it does not hold."""

from __future__ import annotations

import html
import io
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from convad_fx.explain.explanation import Explanation

_SIDE = 224
_KEPT, _HIDDEN = (255, 45, 126), (40, 40, 40)


def png(explanation: Explanation) -> bytes:
    """Responsibility and kept pixels, side by side, as a PNG."""
    values = explanation.responsibility
    peak = float(values.max())
    shares = values / peak if peak > 0 else values
    colours: NDArray[np.float64] = matplotlib.colormaps["inferno"](shares)[..., :3]
    left = (colours * 255).round().astype(np.uint8)
    right = np.where(explanation.mask[..., None], _KEPT, _HIDDEN).astype(np.uint8)
    gap = np.full((len(left), max(1, left.shape[1] // 24), 3), 255, np.uint8)
    image = Image.fromarray(np.concatenate([left, gap, right], 1))
    # Small maps in whole steps, so that their pixels stay squares.
    if (times := _SIDE // max(explanation.mask.shape)) > 1:
        image = image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def page(explanation: Explanation, picture: str) -> str:
    """A sentence, the picture (base64 of a PNG), and what it shows, as HTML."""
    return (
        f"<figure><p>{html.escape(str(explanation))}</p>"
        f'<img alt="responsibility and kept pixels" src="data:image/png;base64,{picture}">'
        "<figcaption>left: responsibility; right: the kept pixels</figcaption></figure>"
    )
