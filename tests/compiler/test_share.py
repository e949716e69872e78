"""Tiles that masks share: where it is allowed, and that it gives the same."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

import convad_fx
from convad_fx.compiler import patched, region, share, tiles
from convad_fx.compiler.batches import BatchSize
from convad_fx.compiler.share import Read, widest
from convad_fx.compiler.tiles import Sums
from convad_fx.compiler.work import Work
from tests.compiler.test_region import BODIES, GRID, Net, built, conv, some_masks
from tests.compiler.toys import Dense, Residual, Shuffle


@pytest.fixture
def eager_to_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages as far as they go, and every mask by way of them, however little there is to save."""
    monkeypatch.setattr(region, "WORTHWHILE", 0.0)
    monkeypatch.setattr(share, "WORTHWHILE", -1e9)
    monkeypatch.setattr(share, "BOXES", 1e3)
    monkeypatch.setattr(tiles, "SHARING", -1e6)
    monkeypatch.setattr(patched, "COPYING", 1e6)  # no patches
    monkeypatch.setattr(BatchSize, "call", property(lambda _: -100.0))


def calls_of(masked: convad_fx.MaskedModule) -> dict[str, list[int]]:
    """How many tiles, or masks, each call of a stage, or of the rest, is given from now on."""
    parts: Any = masked.__dict__["engine"].parts
    calls: dict[str, list[int]] = {}

    def listened(name: str, function: Any) -> Any:
        calls[name] = []

        def listening(x: Tensor, *args: Tensor) -> Any:
            calls[name].append(len(x))
            return function(x, *args)

        return listening

    for name, function in list(parts.items()):
        if name == "rest" or name.startswith("tiles_"):
            parts[name] = listened(name, function)
    return calls


@pytest.mark.parametrize("policy", [
    convad_fx.Policy(),
    convad_fx.Policy(tau=0.3, attribution="receptive"),
    convad_fx.Policy(input="raw"),
    convad_fx.Policy(input="strict", attribution="receptive"),
], ids=lambda policy: f"{policy.input}-{policy.attribution}")  # fmt: skip
@pytest.mark.parametrize("name", BODIES)
def test_shared_tiles_give_what_the_whole_image_gives(
    name: str, policy: convad_fx.Policy, eager_to_share: None
) -> None:
    x, masks = torch.randn(1, 3, *GRID, dtype=torch.double), some_masks()
    masked = convad_fx.convert(built(name), x, policy)
    # the image is padded, or a window reads it ungated, before anything has run on a tile
    expected = name != "explicit-pad" and (policy.input != "raw" or name == "ceil-padded")
    assert masked.ways.share.ok == expected, masked.ways.share.why
    calls = calls_of(masked)
    found = masked.evaluate(x, masks, batch_size=5)
    torch.testing.assert_close(found.logits, masked(x, masks), rtol=1e-10, atol=1e-10)
    if expected:
        assert sum(calls["rest"]) == 12


@pytest.mark.parametrize("toy", [Residual, Dense, Shuffle])
def test_joins_and_shuffles_give_the_same(toy: type[nn.Module], eager_to_share: None) -> None:
    torch.manual_seed(0)
    model, x = toy().eval().double(), torch.randn(1, 3, 32, 32, dtype=torch.double)
    masked = convad_fx.convert(model, x)
    assert masked.ways.share.ok, masked.ways.share.why
    masks, calls = some_masks((32, 32)), calls_of(masked)
    found = masked.evaluate(x, masks, batch_size=4)
    torch.testing.assert_close(found.logits, masked(x, masks), rtol=1e-10, atol=1e-10)
    assert sum(calls["rest"]) == len(masks)


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
    once = {name: sum(n) for name, n in alone.items() if name != "rest"}
    masked = convad_fx.convert(model, x)
    both = calls_of(masked)
    masked.evaluate(x, torch.cat([whole, other]))
    for name, number in once.items():
        side = -(-64 // masked.ways.share.tile[0])
        assert number == side**2
        assert number < sum(both[name]) <= number + 4  # those around what is hidden


def test_copies_and_pickles_share_as_well(eager_to_share: None) -> None:
    torch.manual_seed(0)
    x, masks = torch.randn(1, 3, *GRID, dtype=torch.double), some_masks()
    masked = convad_fx.convert(built("strided"), x)
    wanted = masked(x, masks)
    for twin in (copy.deepcopy(masked), pickle.loads(pickle.dumps(masked))):
        assert str(twin.ways.share) == str(masked.ways.share)
        calls = calls_of(twin)
        found = twin.evaluate(x, masks, batch_size=5).logits
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
        assert sum(calls["rest"]) == 12


def test_a_saved_network_shares_as_well(tmp_path, eager_to_share: None) -> None:
    torch.manual_seed(0)
    x, masks = torch.randn(1, 3, 64, 64), some_masks((64, 64))
    masked = convad_fx.convert(torchvision.models.resnet18(num_classes=5).eval(), x)
    convad_fx.save(masked, tmp_path / "network")
    loaded = convad_fx.load(tmp_path / "network")
    network = loaded if isinstance(loaded, convad_fx.MaskedModule) else loaded.masked
    assert network.ways.share.ok
    assert network.ways.share.work == masked.ways.share.work
    calls = calls_of(network)
    found = network.evaluate(x, masks)
    torch.testing.assert_close(found.logits, masked(x, masks), rtol=1e-4, atol=1e-5)
    assert sum(calls["rest"]) == 12


@pytest.mark.parametrize(("model", "policy", "why"), [
    (lambda: Net(nn.Sequential(nn.GroupNorm(1, 3), conv(3, 4, 3)), 4), convad_fx.Policy(), "boxes"),
    (lambda: Net(conv(3, 4, 3), 4), convad_fx.Policy(pool="renormalize"), "it runs on no boxes"),
    (lambda: Net(conv(3, 4, 31, padding=15), 4), convad_fx.Policy(), "depends on little"),
])  # fmt: skip
def test_a_network_whose_masks_share_nothing_says_why(
    model: Any, policy: convad_fx.Policy, why: str
) -> None:
    torch.manual_seed(0)
    masked = convad_fx.convert(model().eval(), torch.randn(1, 3, 32, 32), policy)
    assert not masked.ways.share.ok
    assert why in str(masked.ways.share)


def test_equal_activities_have_equal_sums_and_others_do_not() -> None:
    generator = torch.Generator().manual_seed(0)
    activity = torch.rand(40, 1, 16, 16, generator=generator) < 0.5
    activity[20:] = activity[:20]
    activity[25, 0, 5, 5] ^= True
    read = Read(0, (2, 3), (0, 1), (1, 1), ((1, 1), (1, 1)))
    grid = (1, 1), (16, 16)
    stage = share.Stage(None, *grid, ((1, 1), (1, 1)), (read,), (read,), *grid, 1, 1, 1.0)
    way = share.Share((stage,), None, (4, 4), (16, 16), Work())
    sums = Sums(way, {0: (1, 16, 16)})
    parts = [sums.keys({0: activity[i : i + 15]}, len(activity[i : i + 15])) for i in (0, 15, 30)]
    keys = np.concatenate([part[0] for part in parts])
    alike = keys[:20] == keys[20:]
    assert np.argwhere(~alike).tolist() == [[5, 1, 1]]
    assert len(np.unique(keys)) == 20 * 16 + 1


def test_a_last_mask_by_itself_is_told_from_the_others(eager_to_share: None) -> None:
    """Sums are made for so many masks at once; the one that is left over hides all but a corner."""
    torch.manual_seed(0)
    x = torch.randn(1, 3, *GRID, dtype=torch.double)
    masked = convad_fx.convert(built("strided"), x)
    masks = torch.zeros(tiles.SUMMED + 1, 1, *GRID, dtype=torch.bool)
    masks[:, :, :9, :9] = torch.rand(len(masks), 1, 9, 9) < 0.5
    masks[-1, :, -9:, -9:] = True
    calls = calls_of(masked)
    found = masked.evaluate(x, masks)
    torch.testing.assert_close(found.logits, masked(x, masks), rtol=1e-10, atol=1e-10)
    assert sum(calls["rest"]) == len(masks)


def test_only_the_widest_reads_count() -> None:
    small = Read(0, (2,), (0,), (1,), ((1, 1),))
    wide = Read(0, (2,), (0,), (1,), ((2, 1),))
    other = Read(0, (2,), (0,), (1,), ((0, 3),))
    coarse = Read(0, (2,), (0,), (2,), ((0, 0),))
    assert widest([small, wide, small, other, coarse]) == (wide, other, coarse)


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "densenet121", "googlenet"])
def test_real_networks_share_and_give_the_same(name: str, monkeypatch: Any) -> None:
    torch.manual_seed(0)
    weights = {"init_weights": False} if name == "googlenet" else {}
    model = torchvision.models.get_model(name, weights=None, num_classes=5, **weights).eval()
    model, x = model.double(), torch.randn(1, 3, 224, 224, dtype=torch.double)
    masked = convad_fx.convert(model, x)
    assert masked.ways.share.ok
    monkeypatch.setattr(tiles, "SHARING", 0.0)
    masks = torch.rand(16, 1, 7, 7).gt(0.5).repeat_interleave(32, 2).repeat_interleave(32, 3)
    masks[0], masks[1] = True, False
    masks[1, :, 40:90, 33:71] = True
    calls = calls_of(masked)
    found = masked.evaluate(x, masks)
    torch.testing.assert_close(found.logits, masked(x, masks), rtol=1e-9, atol=1e-9)
    assert sum(calls["rest"]) == 16
