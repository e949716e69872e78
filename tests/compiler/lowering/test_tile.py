"""Tiles that masks share: where it is allowed, and that it gives the same."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import convad_fx
from convad_fx.compiler.lowering import box as box_lowering
from convad_fx.compiler.lowering import patch as patch_lowering
from convad_fx.compiler.lowering import tile as tile_lowering
from convad_fx.compiler.lowering.tile import TileRead, widest
from convad_fx.engine import choose, chunk, probe, tile_set
from convad_fx.engine import patch as patch_engine
from convad_fx.engine import tile as tile_engine
from convad_fx.engine.batch_size import BatchSize
from convad_fx.engine.box import BoxStrategy
from convad_fx.engine.chunk import MASKS_PER_CHUNK, Chunk
from convad_fx.engine.mask_hash import MASKS_AT_ONCE
from convad_fx.engine.patch import PatchStrategy
from tests.compiler.lowering.test_box import (
    BODIES_AND_PADDED,
    GRID,
    Net,
    built,
    calls_of,
    conv,
    graphs_compiled,
    normed,
    random_boxes,
    some_masks,
    some_policies,
)
from tests.compiler.patches import last_end
from tests.compiler.toys import Dense, OneColumn, Residual, Shuffle, TwoWindows


@pytest.fixture
def eager_to_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages as far as they go, and every mask by way of them, however little there is to save."""
    monkeypatch.setattr(box_lowering, "MIN_SHARE_ON_BOXES", 0.0)
    monkeypatch.setattr(tile_lowering, "MIN_SHARE_SAVED", -1e9)
    monkeypatch.setattr(tile_lowering, "MEAN_BOX_SHARE", 1e3)
    monkeypatch.setattr(tile_engine, "TILE_OVERHEAD", -1e6)
    monkeypatch.setattr(choose, "MIN_MASKS_FOR_TILING", 1)
    monkeypatch.setattr(patch_engine, "PATCH_OVERHEAD", 1e6)  # no patches
    monkeypatch.setattr(BatchSize, "call_cost", property(lambda _: -100.0))


@some_policies
@pytest.mark.parametrize("name", BODIES_AND_PADDED)
def test_shared_tiles_give_what_the_whole_image_gives(
    name: str, policy: convad_fx.Policy, eager_to_share: None
) -> None:
    x, masks = torch.randn(1, 3, *GRID, dtype=torch.double), some_masks()
    masked = convad_fx.convert(built(name), x, policy)
    # a window reads the image ungated before anything has run on a tile
    expected = policy.input != "raw" or name == "ceil-padded"
    assert masked.strategies.tile.ok == expected, masked.strategies.tile.why
    calls = calls_of(masked)
    found = masked.evaluate(x, masks, batch_size=5)
    torch.testing.assert_close(found.logits, masked(x, masks), rtol=1e-10, atol=1e-10)
    if expected:
        assert sum(calls["tile_rest"]) == 12


@pytest.mark.parametrize("toy", [Residual, Dense, Shuffle, TwoWindows])
def test_joins_and_shuffles_give_the_same(toy: type[nn.Module], eager_to_share: None) -> None:
    torch.manual_seed(0)
    model, x = toy().eval().double(), torch.randn(1, 3, 32, 32, dtype=torch.double)
    masked = convad_fx.convert(model, x)
    assert masked.strategies.tile.ok, masked.strategies.tile.why
    masks, calls = some_masks((32, 32)), calls_of(masked)
    found = masked.evaluate(x, masks, batch_size=4)
    torch.testing.assert_close(found.logits, masked(x, masks), rtol=1e-10, atol=1e-10)
    assert sum(calls["tile_rest"]) == len(masks)


def test_tiles_may_lie_beyond_a_grid_that_has_shrunk(eager_to_share: None) -> None:
    """Without padding grids get smaller than the image, until its last tiles have no cell left."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [conv(3, 4, 9), nn.ReLU()]
    for _ in range(3):
        layers += [conv(4, 4, 9), nn.ReLU()]
    model = Net(nn.Sequential(*layers, conv(4, 4, 3, 2)), 4).eval().double()
    x, masks = torch.randn(1, 3, *GRID, dtype=torch.double), some_masks()
    masked = convad_fx.convert(model, x)
    last = masked.strategies.tile.stages[-1]
    tiles_of_last = -(-last.cells[1] * last.result[1] // masked.strategies.tile.tile[1])
    assert tiles_of_last < masked.strategies.tile.counts[1]
    calls = calls_of(masked)
    found = masked.evaluate(x, masks, batch_size=5)
    torch.testing.assert_close(found.logits, masked(x, masks), rtol=1e-10, atol=1e-10)
    assert sum(calls["tile_rest"]) == len(masks)


def test_tiles_may_lie_beyond_the_image(eager_to_share: None) -> None:
    """Padding that no window needs makes grids larger than the image."""
    torch.manual_seed(0)
    model = Net(conv(3, 4, 1, padding=1), 4).eval().double()
    x, masks = torch.randn(1, 3, *GRID, dtype=torch.double), some_masks()
    masked = convad_fx.convert(model, x)
    plan = masked.strategies.tile
    assert plan.counts[1] * plan.tile[1] - plan.tile[1] >= GRID[1]
    calls = calls_of(masked)
    found = masked.evaluate(x, masks, batch_size=5)
    torch.testing.assert_close(found.logits, masked(x, masks), rtol=1e-10, atol=1e-10)
    assert sum(calls["tile_rest"]) == len(masks)


def test_a_column_for_all_columns_is_on_no_tile(eager_to_share: None) -> None:
    torch.manual_seed(0)
    model = Net(OneColumn(GRID[1]), 4).eval().double()
    x, masks = torch.randn(1, 3, *GRID, dtype=torch.double), some_masks()
    masked = convad_fx.convert(model, x)
    assert masked.strategies.tile.until == "body.first"
    found = masked.evaluate(x, masks, batch_size=5)
    torch.testing.assert_close(found.logits, masked(x, masks), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shared", [True, False], ids=["tiles", "patches"])
def test_padding_in_the_way_of_tensorflow_gives_the_same(
    shared: bool, eager_to_share: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = pytest.importorskip("timm.layers")
    torch.manual_seed(0)
    body = nn.Sequential(
        layers.Conv2dSame(3, 4, 5, 2), normed(4), layers.create_pool2d("max", 3, 2, padding="same"),
        layers.Conv2dSame(4, 4, 3, 2, groups=2), normed(4), layers.StdConv2dSame(4, 4, 3),
    )  # fmt: skip
    x, masks = torch.randn(1, 3, *GRID, dtype=torch.double), some_masks()
    if not shared:
        monkeypatch.setattr(patch_engine, "PATCH_OVERHEAD", 0.0)
        monkeypatch.setattr(tile_engine, "TILE_OVERHEAD", 1e6)
        monkeypatch.setattr(patch_lowering.PatchWriter, "best_end", last_end)
    masked = convad_fx.convert(Net(body, 4).eval().double(), x)
    # the weights of the last are made when it is called
    assert masked.strategies.tile.until == "body.3"
    calls = calls_of(masked)
    found = masked.evaluate(x, masks if shared else ~masks, batch_size=5)
    torch.testing.assert_close(
        found.logits, masked(x, masks if shared else ~masks), rtol=1e-10, atol=1e-10
    )
    assert sum(calls["tile_rest" if shared else "patch"]) >= 10


@pytest.mark.parametrize("dims", [1, 3])
def test_lines_and_volumes_share_as_well(dims: int, eager_to_share: None) -> None:
    torch.manual_seed(0)
    one, grid = (nn.Conv1d, nn.Conv3d)[dims == 3], (96,) if dims == 1 else (20, 16, 12)
    model = nn.Sequential(
        one(3, 4, 3, 1, 1), nn.ReLU(), one(4, 4, 3, 2, 1), nn.AdaptiveAvgPool1d(1)
        if dims == 1 else nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3),
    ).eval().double()  # fmt: skip
    x = torch.randn(1, 3, *grid, dtype=torch.double)
    masks = torch.zeros(12, 1, *grid, dtype=torch.bool)
    for i in range(11):
        part = tuple(slice(n * (i % 4) // 6, n * (i % 4) // 6 + n // 3) for n in grid)
        masks[(i, 0, *part)] = torch.rand(masks[(i, 0, *part)].shape) < 0.7
    masked = convad_fx.convert(model, x)
    assert masked.strategies.tile.ok, masked.strategies.tile.why
    calls = calls_of(masked)
    found = masked.evaluate(x, masks, batch_size=5)
    torch.testing.assert_close(found.logits, masked(x, masks), rtol=1e-10, atol=1e-10)
    assert sum(calls["tile_rest"]) == len(masks)


class Views(nn.Module):
    """Views that are right for tensors that lie in memory as they were made."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(3, 4, 3, 1, 1), conv(4, 4, 3, 4, 1)
        self.last = nn.Linear(4 * 16 * 12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        x = self.second(x)
        return self.last(x.view(n, -1))


def test_views_of_tiles_may_be_copies(eager_to_share: None) -> None:
    torch.manual_seed(0)
    model, x = Views().eval().double(), torch.randn(1, 3, *GRID, dtype=torch.double)
    masked = convad_fx.convert(model, x)
    assert masked.strategies.tile.ok, masked.strategies.tile.why
    masks, calls = some_masks(), calls_of(masked)
    found = masked.evaluate(x, masks, batch_size=5)
    torch.testing.assert_close(found.logits, masked(x, masks), rtol=1e-10, atol=1e-10)
    assert sum(calls["tile_rest"]) == len(masks)


@pytest.mark.parametrize("all_share", [True, False])
def test_all_masks_share_or_some_of_them_run_on_patches(
    all_share: bool, eager_to_share: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patch_engine, "PATCH_OVERHEAD", 1.0)
    monkeypatch.setattr(patch_lowering.PatchWriter, "best_end", last_end)
    torch.manual_seed(0)
    x = torch.randn(1, 3, *GRID, dtype=torch.double)
    masked = convad_fx.convert(built("strided"), x)
    assert masked.strategies.patch.ok
    masks = torch.cat([some_masks(), ~some_masks()])
    looked_at: list[int] = []

    def worthwhile(self: Any, shared: tile_engine.TileStrategy) -> bool:
        looked_at.append(len(shared.members))
        return all_share or len(looked_at) == 2

    monkeypatch.setattr(choose.Chooser, "_tiling_pays", worthwhile)
    calls = calls_of(masked)
    found = masked.evaluate(x, masks, batch_size=5)
    torch.testing.assert_close(found.logits, masked(x, masks), rtol=1e-10, atol=1e-10)
    assert sum(calls["tile_rest"]) == looked_at[-1]
    assert looked_at[0] == found.passes
    if all_share:
        assert not calls.get("patch_base")
    else:
        assert 0 < sum(calls["tile_rest"]) < found.passes


def test_a_sliding_window_shares_tiles_only_where_that_beats_patches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    model, x = torchvision.models.mobilenet_v2(weights=None).eval(), torch.randn(1, 3, 224, 224)
    masked = convad_fx.convert(model, x)
    masks = torch.ones(64, 1, 224, 224, dtype=torch.bool)
    for k, mask in enumerate(masks):
        i, j = (24 * n for n in divmod(k, 8))
        mask[0, i : i + 32, j : j + 32] = False
    calls = calls_of(masked)
    monkeypatch.setattr(tile_engine, "TILE_OVERHEAD", 0.5)
    tiled = masked.evaluate(x, masks)
    assert sum(calls["tile_rest"]) == len(masks)
    assert not calls.get("patch")
    monkeypatch.setattr(tile_engine, "TILE_OVERHEAD", 1.2)
    on_patches = masked.evaluate(x, masks)
    assert sum(calls["patch"]) == len(masks)
    assert sum(calls["tile_rest"]) == len(masks)
    torch.testing.assert_close(tiled.logits, on_patches.logits, rtol=1e-3, atol=1e-4)


def test_what_a_search_asks_first_shares_tiles_where_masks_hide_little_too() -> None:
    """As shipped: parts of boxes are hidden, some of them small, and no mask goes on patches."""
    torch.manual_seed(0)
    model, x = torchvision.models.mobilenet_v2(weights=None).eval(), torch.randn(1, 3, 224, 224)
    masked = convad_fx.convert(model, x)
    masks = torch.ones(14 * 12, 1, 224, 224, dtype=torch.bool)
    for k, mask in enumerate(masks):
        box, kept = divmod(k, 14)
        across, down = 40 + 13 * box, 190 - 11 * box
        rows, columns = (slice(0, across), slice(across, 224)), (slice(0, down), slice(down, 224))
        for i in range(4):
            if not (kept + 1) >> i & 1:
                mask[0, rows[i // 2], columns[i % 2]] = False
    parts = masked.engine.parts
    together, size = Chunk(x, masks, list(range(len(masks)))), BatchSize(64)
    on_boxes = BoxStrategy(masked.strategies.box, parts, together, size)
    on_patches = PatchStrategy(
        masked.strategies.patch, parts, together, size, otherwise=on_boxes.costs, call_cost=0.3
    )
    assert len(on_patches.members) > 10  # those that would, if masks did not share
    calls = calls_of(masked)
    found = masked.evaluate(x, masks)
    assert sum(calls["tile_rest"]) == found.passes
    assert not calls.get("patch")


@pytest.mark.parametrize(
    ("boxes", "tiles", "ways"),
    [
        (0.2, 0.01, {"tile_rest"}),  # seconds a mask, of which answering takes one
        (0.2, 0.3, {"box"}),
        (0.3, 0.01, set()),
    ],
)
def test_where_looking_takes_longer_than_it_may_save_it_is_left(
    eager_to_share: None,
    boxes: float,
    tiles: float,
    ways: set[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probe, "MAX_SELECTION_SHARE", 1 / 4)
    monkeypatch.setattr(probe, "MIN_TIMED_MASKS", 8)
    monkeypatch.setattr(BatchSize, "call_cost", 0.02)  # whatever it was timed to be
    torch.manual_seed(0)
    x, masks = torch.randn(1, 3, *GRID, dtype=torch.double), some_masks()[:8]
    masked = convad_fx.convert(built("strided"), x)
    calls = calls_of(masked)
    masked.evaluate(x, masks)
    (known,) = masked.engine.probes.values()
    timings = {kind: len(times) for kind, times in known.selection_times.items()}
    assert timings == {"box": 1, "tile": 1}
    assert known.selection_seconds > 0
    assert known.evaluation_seconds == pytest.approx(8 * known.evaluation_times[0])
    known.selection_times["box"].extend([boxes] * 5)
    known.selection_times["tile"].extend([tiles] * 5)
    known.evaluation_times.extend([1.0] * 5)
    for asked in calls.values():
        asked.clear()
    found = masked.evaluate(x, masks)
    assert {way for way in ("box", "tile_rest") if calls[way]} == ways
    with torch.inference_mode():
        assert torch.allclose(found.logits, masked(x, masks))


def test_a_call_whose_first_masks_go_on_patches_goes_on_looking_for_tiles(
    eager_to_share: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patch_engine, "PATCH_OVERHEAD", 0.0)
    monkeypatch.setattr(patch_lowering.PatchWriter, "best_end", last_end)
    monkeypatch.setattr(chunk, "MASKS_PER_CHUNK", 16)
    monkeypatch.setattr(choose, "MIN_MASKS_FOR_TILING", 4)
    torch.manual_seed(0)
    x = torch.randn(1, 3, *GRID, dtype=torch.double)
    masked = convad_fx.convert(built("strided"), x)
    boxes = torch.zeros(16, 1, *GRID, dtype=torch.bool)
    boxes[:, :, 3:12, 5:14] = torch.rand(16, 1, 9, 9) < 0.7
    masks = torch.cat([~boxes, boxes])
    decide = choose.Chooser._tiling_pays
    looked_at: list[set[int]] = []

    def worthwhile(self: Any, shared: tile_engine.TileStrategy) -> bool:
        looked_at.append(set(shared.members))
        return len(looked_at) > 1 and decide(self, shared)

    monkeypatch.setattr(choose.Chooser, "_tiling_pays", worthwhile)
    calls = calls_of(masked)
    found = masked.evaluate(x, masks, batch_size=5)
    torch.testing.assert_close(found.logits, masked(x, masks), rtol=1e-10, atol=1e-10)
    assert sum(calls["patch"]) == 16
    assert sum(calls["tile_rest"]) == 16
    assert len(looked_at) == 2


def test_many_masks_that_share_are_looked_at_twice(eager_to_share: None) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 3, *GRID, dtype=torch.double)
    masked = convad_fx.convert(built("strided"), x)
    masks = random_boxes(MASKS_PER_CHUNK + 2 * choose.PROBE_SIZE)
    calls = calls_of(masked)
    found = masked.evaluate(x, masks)
    torch.testing.assert_close(found.logits, masked(x, masks), rtol=1e-10, atol=1e-10)
    assert sum(calls["tile_rest"]) == found.passes


def test_what_masks_have_alike_is_computed_once(eager_to_share: None) -> None:
    torch.manual_seed(0)
    model = Net(nn.Sequential(conv(3, 4, 3, 1, 1), nn.ReLU(), conv(4, 4, 3, 2, 1)), 4).eval()
    x = torch.randn(1, 3, 64, 64)
    masked = convad_fx.convert(model, x)
    whole = torch.ones(1, 1, 64, 64, dtype=torch.bool)
    other = whole.clone()
    other[..., 28:30, 28:30] = False
    alone = calls_of(masked)
    masked.evaluate(x, whole)
    once = {name: sum(n) for name, n in alone.items() if name.startswith("tile_stage_")}
    masked = convad_fx.convert(model, x)
    both = calls_of(masked)
    masked.evaluate(x, torch.cat([whole, other]))
    for name, number in once.items():
        side = -(-64 // masked.strategies.tile.tile[0])
        assert number == side**2
        assert number < sum(both[name]) <= number + 4  # those around what is hidden


def test_copies_and_pickles_share_as_well(eager_to_share: None) -> None:
    torch.manual_seed(0)
    x, masks = torch.randn(1, 3, *GRID, dtype=torch.double), some_masks()
    masked = convad_fx.convert(built("strided"), x)
    wanted = masked(x, masks)
    for twin in (copy.deepcopy(masked), pickle.loads(pickle.dumps(masked))):
        assert str(twin.strategies.tile) == str(masked.strategies.tile)
        calls = calls_of(twin)
        found = twin.evaluate(x, masks, batch_size=5).logits
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
        assert sum(calls["tile_rest"]) == 12


def test_a_saved_network_shares_as_well(tmp_path, eager_to_share: None) -> None:
    torch.manual_seed(0)
    x, masks = torch.randn(1, 3, 64, 64), some_masks((64, 64))
    masked = convad_fx.convert(torchvision.models.resnet18(num_classes=5).eval(), x)
    convad_fx.save(masked, tmp_path / "network")
    loaded = convad_fx.load(tmp_path / "network")
    network = loaded if isinstance(loaded, convad_fx.MaskedModule) else loaded.masked
    assert network.strategies.tile.ok
    assert network.strategies.tile.work == masked.strategies.tile.work
    calls = calls_of(network)
    found = network.evaluate(x, masks)
    torch.testing.assert_close(found.logits, masked(x, masks), rtol=1e-4, atol=1e-5)
    assert sum(calls["tile_rest"]) == 12


@pytest.mark.parametrize(("model", "policy", "why"), [
    (lambda: Net(nn.Sequential(nn.GroupNorm(1, 3), conv(3, 4, 3)), 4), convad_fx.Policy(), "boxes"),
    (lambda: Net(conv(3, 4, 3), 4), convad_fx.Policy(pool="renormalize"), "it runs on no boxes"),
    (lambda: Net(conv(3, 4, 31, padding=15), 4), convad_fx.Policy(), "small receptive field"),
])  # fmt: skip
def test_a_network_whose_masks_share_nothing_says_why(
    model: Any, policy: convad_fx.Policy, why: str
) -> None:
    torch.manual_seed(0)
    masked = convad_fx.convert(model().eval(), torch.randn(1, 3, 32, 32), policy)
    assert not masked.strategies.tile.ok
    assert why in str(masked.strategies.tile)


def test_a_last_mask_by_itself_is_told_from_the_others(eager_to_share: None) -> None:
    """Sums are made for so many masks at once; the one that is left over hides all but a corner."""
    torch.manual_seed(0)
    x = torch.randn(1, 3, *GRID, dtype=torch.double)
    masked = convad_fx.convert(built("strided"), x)
    masks = torch.zeros(MASKS_AT_ONCE + 1, 1, *GRID, dtype=torch.bool)
    masks[:, :, :9, :9] = torch.rand(len(masks), 1, 9, 9) < 0.5
    masks[-1, :, -9:, -9:] = True
    calls = calls_of(masked)
    found = masked.evaluate(x, masks)
    torch.testing.assert_close(found.logits, masked(x, masks), rtol=1e-10, atol=1e-10)
    assert sum(calls["tile_rest"]) == len(masks)


def test_only_the_widest_reads_count() -> None:
    small = TileRead(0, (2,), (0,), (1,), ((1, 1),))
    wide = TileRead(0, (2,), (0,), (1,), ((2, 1),))
    other = TileRead(0, (2,), (0,), (1,), ((0, 3),))
    coarse = TileRead(0, (2,), (0,), (2,), ((0, 0),))
    assert widest([small, wide, small, other, coarse]) == (wide, other, coarse)


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "densenet121", "googlenet"])
def test_real_networks_share_and_give_the_same(name: str, monkeypatch: Any) -> None:
    torch.manual_seed(0)
    weights = {"init_weights": False} if name == "googlenet" else {}
    model = torchvision.models.get_model(name, weights=None, num_classes=5, **weights).eval()
    model, x = model.double(), torch.randn(1, 3, 224, 224, dtype=torch.double)
    masked = convad_fx.convert(model, x)
    assert masked.strategies.tile.ok
    monkeypatch.setattr(tile_engine, "TILE_OVERHEAD", 0.0)
    monkeypatch.setattr(choose, "MIN_MASKS_FOR_TILING", 1)
    masks = torch.rand(16, 1, 7, 7).gt(0.5).repeat_interleave(32, 2).repeat_interleave(32, 3)
    masks[0], masks[1] = True, False
    masks[1, :, 40:90, 33:71] = True
    calls = calls_of(masked)
    found = masked.evaluate(x, masks)
    torch.testing.assert_close(found.logits, masked(x, masks), rtol=1e-9, atol=1e-9)
    assert sum(calls["tile_rest"]) == 16


def test_a_weight_that_a_hook_makes_is_not_taken_without_it(eager_to_share: None) -> None:
    torch.manual_seed(0)
    body = nn.Sequential(conv(3, 4, 3, 1, 1), nn.ReLU(), conv(4, 4, 3, 2, 1))
    with pytest.warns(FutureWarning, match="weight_norm"):
        nn.utils.weight_norm(body[2])
    model, x = Net(body, 4).eval().double(), torch.randn(1, 3, *GRID, dtype=torch.double)
    masked = convad_fx.convert(model, x)
    assert masked.strategies.tile.until == "body.0"  # the convolution before it
    masks = some_masks()
    masked.evaluate(x, masks)
    with torch.no_grad():
        model.body[2].weight_g.mul_(2.0)
    found = masked.evaluate(x, masks)
    torch.testing.assert_close(found.logits, masked(x, masks), rtol=1e-10, atol=1e-10)


def test_a_batch_size_is_of_images_not_of_tiles(eager_to_share: None) -> None:
    torch.manual_seed(0)
    x, masks = torch.randn(1, 3, *GRID, dtype=torch.double), some_masks()
    masked = convad_fx.convert(built("strided"), x)
    tiles_of_an_image = math.prod(masked.strategies.tile.counts)
    calls = calls_of(masked)
    found = masked.evaluate(x, masks, batch_size=2)
    rest, of_tiles = (
        calls["tile_rest"],
        [n for name, n in calls.items() if name.startswith("tile_stage_")],
    )
    assert max(rest) == 2
    for numbers in of_tiles:
        assert max(numbers) <= 2 * tiles_of_an_image
        assert len(numbers) == -(-sum(numbers) // (2 * tiles_of_an_image))
    assert found.batches == len(rest) + sum(map(len, of_tiles))


def test_out_of_memory_halves_the_number_of_tiles(eager_to_share: None) -> None:
    torch.manual_seed(0)
    x, masks = torch.randn(1, 3, *GRID, dtype=torch.double), some_masks()
    masked = convad_fx.convert(built("strided"), x)
    parts: Any = masked.engine.parts
    right, whole, asked = masked(x, masks), parts["tile_stage_0"], list[int]()

    def scarce(patch: Tensor, *cuts: Tensor) -> Tensor:
        asked.append(len(patch))
        if len(patch) > 20:
            raise torch.OutOfMemoryError("no memory for so many")
        return whole(patch, *cuts)

    parts["tile_stage_0"] = scarce
    calls = calls_of(masked)
    found = masked.evaluate(x, masks, batch_size=5)
    torch.testing.assert_close(found.logits, right, rtol=1e-10, atol=1e-10)
    assert max(asked) > 20
    assert sum(n for n in asked if n <= 20) >= 20
    assert sum(calls["tile_rest"]) == len(masks)


def test_without_memory_for_tiles_masks_run_on_boxes(
    eager_to_share: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    x, masks = torch.randn(1, 3, *GRID, dtype=torch.double), some_masks()
    masked = convad_fx.convert(built("strided"), x)
    right, calls = masked(x, masks), calls_of(masked)

    def scarce(*_: Any) -> None:
        raise torch.OutOfMemoryError("no memory for these tiles")

    monkeypatch.setattr(tile_set.TileSet, "store", scarce)
    found = masked.evaluate(x, masks)
    torch.testing.assert_close(found.logits, right, rtol=1e-10, atol=1e-10)
    assert calls["tile_stage_0"]
    assert not calls["tile_rest"]
    # nor is it tried where there will be too little
    monkeypatch.setattr(choose, "free_bytes", lambda _: 1000)
    before = len(calls["tile_stage_0"])
    found = masked.evaluate(x, masks)
    torch.testing.assert_close(found.logits, right, rtol=1e-10, atol=1e-10)
    assert len(calls["tile_stage_0"]) == before


def test_where_masks_share_little_it_is_not_sought_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tile_lowering, "MIN_SHARE_SAVED", -1e9)
    torch.manual_seed(0)
    x = torch.randn(1, 3, 64, 64)
    masked = convad_fx.convert(torchvision.models.resnet18(num_classes=5).eval(), x)
    assert masked.strategies.tile.ok
    looked_at: list[int] = []
    made = tile_engine.TileStrategy.__init__

    def listening(self: Any, *args: Any) -> None:
        looked_at.append(len(args[-1]))
        made(self, *args)

    monkeypatch.setattr(tile_engine.TileStrategy, "__init__", listening)
    masks = torch.rand(MASKS_PER_CHUNK + 100, 1, 64, 64) < 0.5  # no two tiles alike
    masked.evaluate(x, masks)
    assert looked_at == [choose.PROBE_SIZE]
    masked.evaluate(x, masks[: choose.MIN_MASKS_FOR_TILING - 1])
    assert looked_at == [choose.PROBE_SIZE]
    masked.evaluate(x, masks[: choose.MIN_MASKS_FOR_TILING])
    assert looked_at == [choose.PROBE_SIZE, choose.MIN_MASKS_FOR_TILING]


def test_the_callers_own_autocast_holds_for_tiles(eager_to_share: None) -> None:
    torch.manual_seed(0)
    x, masks = torch.randn(1, 3, 64, 64), some_masks((64, 64))
    masked = convad_fx.convert(torchvision.models.resnet18(num_classes=5).eval(), x)
    calls = calls_of(masked)
    with torch.autocast("cpu", torch.bfloat16):
        found = masked.evaluate(x, masks).logits
    assert found.dtype == torch.bfloat16
    assert sum(calls["tile_rest"]) == len(masks)
    exact = masked(x, masks).detach()
    assert 0 < float((found - exact).abs().max()) < 0.1 * float(exact.abs().max())


def test_what_is_compiled_serves_any_number_of_tiles(eager_to_share: None) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 3, *GRID, dtype=torch.double)
    masked = convad_fx.convert(built("strided"), x)
    some = [*(some_masks()[:number] for number in (1, 3, 12)), random_boxes(40)]
    # tiles: one each; what follows: one for batches of less than 16, one for others
    assert graphs_compiled(masked, x, some) <= 2 + len(masked.strategies.tile.stages)
