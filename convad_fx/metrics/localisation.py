"""`localisation`: does an explanation lie on the object?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from convad_fx.errors import ImageError, MaskError
from convad_fx.explain.evaluator import Mask
from convad_fx.explain.ranking import pixel_ranks
from convad_fx.metrics.masks import as_array


@dataclass(frozen=True, slots=True)
class Localisation:
    """An explanation against the true mask of an object; every number in [0, 1].

    Args:
        iou: |kept and true| / |kept or true|.
        precision: share of the kept pixels that lie on the object; NaN if none are kept.
        recall: share of the object that is kept.
        hit: the pointing game: whether the most responsible pixel lies on the object, within the
            tolerance; None without a responsibility map, or if it is zero everywhere.
        energy: share of the responsibility that lies on the object; None without a map, NaN if it
            is zero everywhere.
        object: share of the image that the object fills: precision and energy of a random set.
    """

    iou: float
    precision: float
    recall: float
    hit: bool | None
    energy: float | None
    object: float


def localisation(
    mask: Mask | Tensor,
    truth: Mask | Tensor,
    responsibility: NDArray[np.floating] | None = None,
    *,
    tolerance: int = 0,
) -> Localisation:
    """How well a set of pixels, and a map, agree with the true mask of an object.

    >>> kept, truth = np.zeros((2, 4), bool), np.zeros((2, 4), bool)
    >>> kept[:, :2], truth[:, 1:3] = True, True
    >>> result = localisation(kept, truth, responsibility=kept * 2.0)
    >>> round(result.iou, 2), result.precision, result.energy, result.object
    (0.33, 0.5, 0.5, 0.5)

    Sources: pointing game: Zhang et al., *Top-down Neural Attention by Excitation Backprop* (ECCV
    2016), section 5.1 (there with a tolerance of 15 pixels); energy inside: Wang et al.,
    *Score-CAM* (CVPR workshops 2020), section 4.3, there for boxes.

    Args:
        mask: the explanation, (H, W), bool, True = kept.
        truth: the object, (H, W), bool; not empty.
        responsibility: (H, W), >= 0, or None.
        tolerance: of the pointing game, in pixels.

    Raises:
        MaskError: masks of different shapes, or no object.
        ImageError: a map of another shape, negative or not finite.
    """
    kept = as_array(mask)
    on_object = as_array(truth, kept.shape)
    if not on_object.any():
        raise MaskError("the true mask is empty", hint="leave out images without an object")
    overlap = float((kept & on_object).sum())
    hit: bool | None = None
    energy: float | None = None
    if responsibility is not None:
        values = np.asarray(responsibility, np.float64)
        if values.shape != kept.shape or not np.isfinite(values).all() or values.min() < 0:
            raise ImageError(
                f"a map of shape {values.shape} does not fit masks of shape {kept.shape}, or is "
                "negative or not finite",
                hint="pass Explanation.responsibility",
            )
        total = float(values.sum())
        if total:
            # The pixel of rank 0 in explanations, so ties are resolved as there.
            row, column = np.argwhere(pixel_ranks(values.astype(np.float32)) == 0)[0]
            rows, columns = np.nonzero(on_object)
            hit = bool(np.hypot(rows - row, columns - column).min() <= tolerance)
        energy = float(values[on_object].sum()) / total if total else float("nan")
    return Localisation(
        iou=overlap / float((kept | on_object).sum()),
        precision=overlap / float(kept.sum()) if kept.any() else float("nan"),
        recall=overlap / float(on_object.sum()),
        hit=hit,
        energy=energy,
        object=float(on_object.mean()),
    )
