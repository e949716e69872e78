"""What leaving out inactive cells could save at most, on the masks that explanations ask about.

    python -m benchmarks.limits [--kit DIR] [--models NAME ...] [--masks 160] [--json FILE]

Nothing is timed: the arithmetic of convolutions is counted, as a share of that on whole images,
for the masks of `benchmarks.search`; but not for its sliding window, where `evaluate` leaves out
what is unchanged instead (see `benchmarks.incremental`). "kept" is the share of pixels; "one box"
is what `evaluate` computes, boxes of tiles at the same place on every level of the network; "a box
per level", the smallest box around the active cells of each level by itself; "of few sizes", the
same rounded up to 16 pixels and put into as few groups as pay, as batches need it; "active cells",
no cell but those that are active, which only work shared between masks could go below. "at most" is
its inverse: how much faster than painting a network could become on these masks, if nothing but
arithmetic took time.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

import convad_fx
from benchmarks import measure
from benchmarks.search import MODELS, SIZE, families, recorded
from convad_fx.compiler import evaluate
from convad_fx.compiler.region import Region

ROUNDED = 16
Sizes = dict[int, Tensor]  # stride -> sides of boxes (K, 2), in cells


def work_by_stride(model: nn.Module, x: Tensor) -> dict[int, float]:
    """Multiplications of convolutions by how much coarser than the image they are, as shares."""
    found = Counter[int]()

    def count(module: nn.Module, given: tuple[Tensor], result: Tensor) -> None:
        found[x.shape[-1] // result.shape[-1]] += (
            module.weight.numel() * result.shape[-1] * result.shape[-2]
        )

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Conv2d)]
    with torch.inference_mode():
        model(x)
    for hook in hooks:
        hook.remove()
    total = sum(found.values())
    return {stride: n / total for stride, n in sorted(found.items())}


def active_cells(region: Region, activities: tuple[Tensor, ...]) -> dict[int, Tensor]:
    """Stride -> the cells (K, 1, H, W) that any gate at that level reads as active."""
    found: dict[int, Tensor] = {}
    for activity, level in zip(activities, region.levels, strict=True):
        if level is None or not level.aligned or level.axes != (2, 3):
            continue
        cells, stride = activity.any(1, keepdim=True), level.strides[0]
        found[stride] = found[stride] | cells if stride in found else cells
    return found


def box_sides(cells: Tensor) -> Tensor:
    """Of the smallest box around the active cells of each mask, (K, 2), two at least."""
    sides = []
    for axis, other in ((2, 3), (3, 2)):
        lines = cells.any(other)[:, 0]
        last = lines.shape[1] - lines.flip(1).int().argmax(1)
        sides.append((last - lines.int().argmax(1)) * lines.any(1))
        assert cells.shape[axis] == lines.shape[1]
    most = torch.tensor(cells.shape[2:])
    return torch.minimum(torch.stack(sides, 1).clamp(min=2), most)


def rounded_up(sides: Tensor, stride: int, whole: Tensor) -> Tensor:
    step = max(1, ROUNDED // stride)
    return torch.minimum(-(-sides // step) * step, whole)


def row_of(
    masked: convad_fx.MaskedModule, work: dict[int, float], x: Tensor, masks: Tensor
) -> measure.Row:
    region = masked.ways.region
    with torch.inference_mode():
        activities = masked.__dict__["engine"].parts["boxed_activities"](x, masks)
    tiles = evaluate.tiles_of(region, activities)
    _, sizes = evaluate.boxes(region, activities, tiles)
    cells = active_cells(region, activities)
    whole = {stride: torch.tensor(cells[stride].shape[2:]) for stride in work}
    tight: Sizes = {stride: box_sides(cells[stride]) for stride in work}
    few: Sizes = {s: rounded_up(sides, s, whole[s]) for s, sides in tight.items()}

    def share(sides: Sizes) -> Tensor:
        parts = [n * (sides[s] / whole[s]).prod(1) for s, n in work.items()]
        return torch.stack(parts).sum(0)

    keys = [tuple(row) for row in torch.cat([few[s] for s in work], 1).tolist()]

    def share_of(key: tuple[int, ...]) -> float:
        sides = torch.tensor(key).reshape(-1, 1, 2)
        return float(share(dict(zip(work, sides, strict=True))))

    groups = evaluate.merged(keys, share_of, call=0.3)
    return {
        "kept": float(masks.float().mean()),
        "one box": sum(math.prod(size) for size in sizes) / math.prod(tiles) / len(masks),
        "a box per level": float(share(tight).mean()),
        "of few sizes": sum(len(m) * share_of(k) for k, m in groups.items()) / len(masks),
        "sizes": len(groups),
        "active cells": sum(n * float(cells[s].float().mean()) for s, n in work.items()),
    }


def rows_of(asked: argparse.Namespace) -> list[measure.Row]:
    rows = []
    known = recorded(asked)
    for name in asked.models:
        torch.manual_seed(0)
        model = torchvision.models.get_model(name, weights=None).eval()
        x = torch.randn(1, 3, SIZE, SIZE)
        masked = convad_fx.convert(model, x)
        if not masked.ways.region.ok:
            print(f"skipped: {name} {masked.ways.region}")
            continue
        work = work_by_stride(model, x)
        for family, masks in families(masked, x, known, asked.masks).items():
            if family == "sliding":
                continue
            found = row_of(masked, work, x, masks)
            rows.append(
                {
                    "model": name,
                    "masks": f"{family} ({len(masks)})",
                    **found,
                    "at most": 1 / found["active cells"],
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="NAME")
    parser.add_argument("--kit", type=Path, help="folder of real weights and photos")
    parser.add_argument("--photos", type=int, default=4)
    parser.add_argument("--masks", type=int, default=160)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    asked = parser.parse_args()
    rows = rows_of(asked)
    measure.table(rows)
    if asked.json:
        about = measure.machine("cpu")
        asked.json.write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
