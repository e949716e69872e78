"""Masks from users as arrays (`as_array`), and random masks."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from convad_fx.errors import MaskError
from convad_fx.explain.evaluator import Mask
from convad_fx.explain.options import check_count


def as_array(mask: Mask | Tensor, shape: tuple[int, int] | None = None) -> Mask:
    """A mask as a bool array (H, W), from (H, W), (1, H, W) or (1, 1, H, W), array or tensor.

    >>> as_array(np.ones((1, 1, 2, 3), bool)).shape
    (2, 3)

    Raises:
        MaskError: another dtype or shape.
    """
    array = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    if array.dtype != np.bool_:
        raise MaskError(f"the mask is {array.dtype}, not bool", hint="pass `mask > 0.5`")
    while array.ndim > 2 and len(array) == 1:
        array = array[0]
    if array.ndim != 2 or (shape is not None and array.shape != shape):
        expected = "(H, W)" if shape is None else str(shape)
        raise MaskError(
            f"the mask has shape {tuple(array.shape)}, not {expected}",
            hint="pass one mask of the size of the network's input",
        )
    return array


def random_masks(shape: tuple[int, int], n: int, seed: int = 0) -> list[Mask]:
    """Random masks: boxes, ellipses, complements of boxes, and cells of a 7 x 7 grid, in turn.

    >>> masks = random_masks((32, 32), n=8)
    >>> len(masks), bool(0 < masks[0].mean() < 1)
    (8, True)

    Each keeps a share of the image drawn uniformly from 5 to 95 %, up to rounding (boxes and
    ellipses lie inside the image, so theirs may be a little less). The kinds are this project's
    own, except the grid of RISE (Petsiuk, Das, Saenko, BMVC 2018).

    Args:
        shape: (H, W), 1 or more each.
        n: number of masks.
        seed: a non-negative integer, which alone determines the stream.

    Raises:
        PolicyError: n or seed out of range.
    """
    check_count("n", n, minimum=1, hint="32 per image are usual")
    check_count("seed", seed, minimum=0, hint="pass 0")
    random = np.random.default_rng([seed, 7])
    return [_KINDS[i % len(_KINDS)](shape, random.uniform(0.05, 0.95), random) for i in range(n)]


def _box(shape: tuple[int, int], share: float, random: np.random.Generator) -> Mask:
    height, width = shape
    # The height is log-uniform over what the image can hold.
    relative_height = float(np.exp(random.uniform(np.log(share), 0)))
    rows = max(1, round(relative_height * height))
    columns = max(1, min(width, round(share * height * width / rows)))
    top = int(random.integers(0, height - rows + 1))
    left = int(random.integers(0, width - columns + 1))
    mask = np.zeros(shape, bool)
    mask[top : top + rows, left : left + columns] = True
    return mask


def _ellipse(shape: tuple[int, int], share: float, random: np.random.Generator) -> Mask:
    box = _box(shape, min(1.0, share * 4 / np.pi), random)
    rows, columns = np.flatnonzero(box.any(1)), np.flatnonzero(box.any(0))
    y = (np.arange(shape[0])[:, None] - rows.mean()) / (len(rows) / 2)
    x = (np.arange(shape[1])[None] - columns.mean()) / (len(columns) / 2)
    mask: Mask = y**2 + x**2 <= 1
    return mask if mask.any() else box


def _without_box(shape: tuple[int, int], share: float, random: np.random.Generator) -> Mask:
    return ~_box(shape, 1 - share, random)


def _grid(shape: tuple[int, int], share: float, random: np.random.Generator) -> Mask:
    cells = np.zeros(49, bool)
    cells[random.permutation(49)[: max(1, round(share * 49))]] = True
    rows = np.arange(shape[0]) * 7 // shape[0]
    columns = np.arange(shape[1]) * 7 // shape[1]
    mask: Mask = cells.reshape(7, 7)[rows[:, None], columns[None]]
    return mask


_KINDS = (_box, _ellipse, _without_box, _grid)
