"""Upper bounds on what skipping inactive cells can save, on the masks of explanations.

    python -m benchmarks.limits [--kit DIR] [--models NAME ...] [--masks 1200] [--json FILE]

Counts the multiplications of convolutions, as a share of those on whole images, for the masks of
`benchmarks.search` except its sliding window, for which `benchmarks.incremental` is the bound.
Nothing is timed. Columns:

    kept             share of the pixels
    one box          a box of whole tiles, at the same place on every level of the network
    as built         the boxes of `evaluate`, from the start of a tile to the last active cell
    grouped          the same in as few sizes as pay if a call costs as much as 0.3 images
    a box per level  the smallest box, of two cells or more, around the active cells of each level
    those grouped    the same, grouped, with sides rounded up to 16 pixels
    active cells     the cells that some gate of the level reads as active
    at most          the inverse of "active cells": the bound for any method that takes masks singly

It does not bound the time: levels differ in the time per multiplication, and masks could share
work. Convolutions on grids that are not the image's count as whole.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from torch import Tensor, nn

import convad_fx
from benchmarks import measure
from benchmarks.search import MODELS, SIZE, Searches, masks_of, recorded
from convad_fx.compiler.lowering.box import BoxPlan
from convad_fx.engine.box import smallest_boxes, whole_box
from convad_fx.engine.bucketing import Shares, merge_groups

ROUNDED = 16
CALL = 0.3
Sizes = dict[int, Tensor]  # cells of a grid along an axis -> sides of boxes (K, 2), in cells


def work_by_grid(model: nn.Module, x: Tensor) -> dict[int, float]:
    """Cells along an axis -> share of the multiplications in convolutions with such results."""
    found = Counter[int]()

    def count(module: nn.Module, given: tuple[Tensor], result: Tensor) -> None:
        found[result.shape[-1]] += multiplications(module, result.shape)

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Conv2d)]
    with torch.inference_mode():
        model(x)
    for hook in hooks:
        hook.remove()
    total = sum(found.values())
    return {side: n / total for side, n in sorted(found.items(), reverse=True)}


def multiplications(conv: nn.Module, result: tuple[int, ...]) -> int:
    """Multiplications of a convolution with a result (N, C, H, W), for one image."""
    return int(conv.weight.numel() * math.prod(result[2:]))


def active_cells(box_plan: BoxPlan, activities: tuple[Tensor, ...]) -> dict[int, Tensor]:
    """Cells along an axis -> cells (K, 1, H, W) that any gate on such a grid reads as active."""
    found: dict[int, Tensor] = {}
    for activity, level in zip(activities, box_plan.levels, strict=True):
        if level is None or not level.aligned or level.axes != (2, 3):
            continue
        cells = activity.any(1, keepdim=True)
        side = cells.shape[-1]
        found[side] = found[side] | cells if side in found else cells
    return found


def box_sides(cells: Tensor) -> Tensor:
    """Sides (K, 2) of the smallest box around the active cells of each mask, two cells or more."""
    sides = []
    for other in (3, 2):
        lines = cells.any(other)[:, 0]
        last = lines.shape[1] - lines.flip(1).int().argmax(1)
        sides.append((last - lines.int().argmax(1)) * lines.any(1))
    most = torch.tensor(cells.shape[2:])
    return torch.minimum(torch.stack(sides, 1).clamp(min=2), most)


def rounded_up(sides: Tensor, whole: Tensor, image_size: tuple[int, ...]) -> Tensor:
    step = max(1, ROUNDED * int(whole[-1]) // image_size[-1])
    return torch.minimum(-(-sides // step) * step, whole)


def row_of(
    masked: convad_fx.MaskedModule, work: dict[int, float], x: Tensor, masks: Tensor
) -> measure.Row:
    box_plan = masked.strategies.box
    with torch.inference_mode():
        activities = masked.engine.parts["box_activities"](x, masks)
    largest = whole_box(box_plan, activities)
    _, sizes = smallest_boxes(box_plan, activities, largest)
    cells = active_cells(box_plan, activities)
    levels = [side for side in work if side in cells]
    rest = sum(n for side, n in work.items() if side not in cells)
    whole = {side: torch.tensor(cells[side].shape[2:]) for side in levels}
    tight: Sizes = {side: box_sides(cells[side]) for side in levels}
    rounded: Sizes = {
        s: rounded_up(sides, whole[s], box_plan.image_size) for s, sides in tight.items()
    }

    def share(sides: Sizes) -> Tensor:
        parts = [work[s] * (sides[s] / whole[s]).prod(1) for s in levels]
        return torch.stack(parts).sum(0) + rest

    def in_tiles(size: tuple[int, ...]) -> tuple[int, ...]:
        rows = zip(size, box_plan.tile, largest, strict=True)
        return tuple(min(-(-n // tile) * tile, most) for n, tile, most in rows)

    def shares_of_sides(keys: NDArray[np.int64]) -> NDArray[np.float64]:
        sides = torch.from_numpy(keys).split(2, 1)  # type: ignore[no-untyped-call]
        return share(dict(zip(levels, sides, strict=True))).double().numpy()

    by_level = [tuple(row) for row in torch.cat([rounded[s] for s in levels], 1).tolist()]
    return {
        "kept": float(masks.float().mean()),
        "one box": sum(box_plan.work.share(in_tiles(size)) for size in sizes) / len(masks),
        "as built": sum(map(box_plan.work.share, sizes)) / len(masks),
        "grouped": grouped(sizes, box_plan.work.shares),
        "a box per level": float(share(tight).mean()),
        "those grouped": grouped(by_level, shares_of_sides),
        "active cells": rest + sum(work[s] * float(cells[s].float().mean()) for s in levels),
    }


def grouped(sizes: list[tuple[int, ...]], shares: Shares) -> float:
    """Average cost of a mask, in the groups of `evaluate`."""
    groups = merge_groups(sizes, shares, call_cost=CALL)
    counts = [len(members) for members in groups.values()]
    return float(shares(np.array(list(groups))) @ counts) / len(sizes)


def networks(
    asked: argparse.Namespace,
) -> Iterator[tuple[str, nn.Module, Tensor, convad_fx.MaskedModule]]:
    """Networks of --models that run on boxes: name, model, image, masked network."""
    for name in asked.models:
        torch.manual_seed(0)
        model = torchvision.models.get_model(name, weights=None).eval()
        x = torch.randn(1, 3, SIZE, SIZE)
        masked = convad_fx.convert(model, x)
        if masked.strategies.box.ok:
            yield name, model, x, masked
        else:
            print(f"skipped: {name} {masked.strategies.box}")


def rows_of(asked: argparse.Namespace) -> list[measure.Row]:
    rows = []
    known = recorded(asked)
    for name, model, x, masked in networks(asked):
        work = work_by_grid(model, x)
        searches = known or Searches.by(masked, [x])
        for family in ("search", "rise"):
            masks = torch.cat(masks_of(family, searches, asked.masks))
            found = row_of(masked, work, x, masks)
            about = {"model": name, "masks": f"{family} ({len(masks)})"}
            rows.append({**about, **found, "at most": 1 / found["active cells"]})
    return rows


def parser(text: str | None) -> argparse.ArgumentParser:
    """Options of benchmarks that only count."""
    found = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--models", nargs="+", default=list(MODELS), metavar="NAME")
    found.add_argument("--kit", type=Path, help="folder of real weights and photos")
    found.add_argument("--photos", type=int, default=4)
    found.add_argument("--recorded", type=Path, help="file of the search's masks, made if absent")
    found.add_argument("--masks", type=int, default=1200)
    found.add_argument("--json", type=Path, help="write the rows to this file")
    found.set_defaults(device="cpu")
    return found


def main() -> None:
    asked = parser(__doc__).parse_args()
    measure.show(rows_of(asked), asked.json)


if __name__ == "__main__":
    main()
