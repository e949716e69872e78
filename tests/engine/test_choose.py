"""Strategies may be left out, and each is compared with float32 once."""

from __future__ import annotations

import pytest
import torch
import torchvision

import convad_fx
from convad_fx.engine import PrecisionCheck, choose
from convad_fx.engine import patch as patch_engine
from tests.compiler.lowering.test_box import GRID, built, calls_of, random_boxes, some_masks


@pytest.mark.parametrize("strategy", ["box", "patch"])
def test_a_strategy_may_be_left_out(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patch_engine, "PATCH_OVERHEAD", 1.0)
    x = torch.randn(1, 3, *GRID, dtype=torch.double)
    masked = convad_fx.convert(built("max-pool"), x)
    calls, masks = calls_of(masked), torch.cat([random_boxes(20), ~random_boxes(20)])
    expected = masked.evaluate(x, masks)
    assert calls[strategy]
    calls[strategy].clear()
    masked.engine.disabled = frozenset((strategy,))
    found = masked.evaluate(x, masks)
    torch.testing.assert_close(found.logits, expected.logits)
    assert not calls[strategy]
    assert found.area > expected.area


def test_tiles_may_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose.Chooser, "_tiling_pays", lambda *_: True)
    monkeypatch.setattr(choose, "MIN_MASKS_FOR_TILING", 2)
    torch.manual_seed(0)
    x, masks = torch.randn(1, 3, 128, 128), torch.ones(2, 1, 128, 128, dtype=torch.bool)
    masks[1, 0, 60:70, 60:70] = False
    masked = convad_fx.convert(torchvision.models.resnet18(num_classes=4).eval(), x)
    calls = calls_of(masked)
    expected = masked.evaluate(x, masks)
    assert calls["tile_rest"] == [2]
    masked.engine.disabled = frozenset(("tile",))
    found = masked.evaluate(x, masks)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-3, atol=1e-4)
    assert calls["tile_rest"] == [2]


def test_each_size_is_compared_with_float32_once() -> None:
    x, masks, check = torch.randn(1, 3, *GRID), some_masks(), PrecisionCheck()
    masked = convad_fx.convert(built("strided").float(), x)
    options = {"batch_size": 5, "precision": "bfloat16", "precision_check": check}
    first = masked.evaluate(x, masks, **options)
    assert first.deviation == check.deviation > 0
    assert {"whole", "box"} == {name for name, *_ in check.compared}
    compared = set(check.compared)
    second = masked.evaluate(x, masks, **options)
    assert second.deviation is None
    assert check.compared == compared
    assert check.deviation == first.deviation
