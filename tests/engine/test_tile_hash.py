"""Hashes of what tiles depend on."""

from __future__ import annotations

import numpy as np
import torch

from convad_fx.compiler.lowering.cost_model import CostModel
from convad_fx.compiler.lowering.tile import TilePlan, TileRead, TileStage
from convad_fx.engine.tile_hash import TileHasher


def test_equal_activities_have_equal_sums_and_others_do_not() -> None:
    generator = torch.Generator().manual_seed(0)
    activity = torch.rand(40, 1, 16, 16, generator=generator) < 0.5
    activity[20:] = activity[:20]
    activity[25, 0, 5, 5] ^= True
    read = TileRead(0, (2, 3), (0, 1), (1, 1), ((1, 1), (1, 1)))
    grid = (1, 1), (16, 16)
    stage = TileStage(None, *grid, ((1, 1), (1, 1)), (read,), (read,), *grid, 1, 1, 1.0)
    plan = TilePlan((stage,), None, (4, 4), (16, 16), CostModel())
    sums = TileHasher(plan, {0: (1, 16, 16)})
    parts = [sums.hashes({0: activity[i : i + 15]}, len(activity[i : i + 15])) for i in (0, 15, 30)]
    keys = np.concatenate([part[0] for part in parts])
    alike = keys[:20] == keys[20:]
    assert np.argwhere(~alike).tolist() == [[5, 1, 1]]
    assert len(np.unique(keys)) == 20 * 16 + 1


def test_a_transposed_activity_is_told_by_its_own_axes() -> None:
    """Rows of the image along the last axis of the activity: as the usual way, transposed."""
    generator = torch.Generator().manual_seed(0)
    activity = torch.rand(8, 1, 16, 24, generator=generator) < 0.5
    activity[4:] = activity[:4]
    activity[5, 0, 2, 20] ^= True
    grid = (1, 1), (16, 24)
    patterns = []
    for axes, seen in (((2, 3), activity), ((3, 2), activity.transpose(2, 3))):
        read = TileRead(0, axes, (0, 1), (1, 1), ((1, 0), (0, 2)))
        stage = TileStage(None, *grid, ((0, 0), (0, 0)), (read,), (read,), *grid, 1, 1, 1.0)
        plan = TilePlan((stage,), None, (4, 4), (16, 24), CostModel())
        keys = TileHasher(plan, {0: tuple(seen.shape[1:])}).hashes({0: seen}, 8)[0]
        assert keys.shape == (8, 4, 6)
        patterns.append(keys[:, None] == keys[None])
    assert (patterns[0] == patterns[1]).all()
    assert np.argwhere(~patterns[0][1, 5]).tolist() == [[0, 4], [0, 5]]
