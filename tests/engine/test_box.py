"""Where boxes lie."""

from __future__ import annotations

import torch

import convad_fx
from convad_fx.engine.box import smallest_boxes, whole_box
from tests.compiler.lowering.test_box import GRID, built, some_masks


def test_boxes_hold_the_active_cells_of_every_level() -> None:
    x = torch.zeros(1, 3, *GRID, dtype=torch.double)
    masked = convad_fx.convert(built("wide-stride"), x)
    engine = masked.engine
    masks = some_masks()[:10]
    activities = engine.parts["box_activities"](x, masks)
    whole = whole_box(masked.strategies.box, activities)
    first, sizes = smallest_boxes(masked.strategies.box, activities, whole)
    for activity, level in zip(activities, masked.strategies.box.levels, strict=True):
        if level is None:
            continue
        for k, size in enumerate(sizes):
            inside = torch.zeros_like(activity[k, 0])
            part = tuple(
                slice(int(f) // stride, -(-(int(f) + n) // stride))
                for f, n, stride in zip(first[k], size, level.strides, strict=True)
            )
            inside[part] = True
            assert not (activity[k, 0] & ~inside).any()
