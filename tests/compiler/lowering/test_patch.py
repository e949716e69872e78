"""Recomputing only what a mask changes: where it is allowed, and that it gives the same."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch._dynamo.utils import counters

import convad_fx
from convad_fx.compiler.kernels import patch
from convad_fx.compiler.lowering import patch as patch_lowering
from convad_fx.engine import patch as patch_engine
from tests.compiler.lowering.test_box import (
    BODIES_AND_PADDED,
    GRID,
    Net,
    built,
    calls_of,
    conv,
    some_masks,
    some_policies,
)
from tests.compiler.patches import last_end
from tests.compiler.toys import Dense, Residual, Shuffle


def hiding_masks() -> Tensor:
    """Hidden squares at borders, in corners and amid, one pixel, everything, nothing."""
    masks = ~some_masks()
    masks[10] = True
    masks[10, 0, 20:30, 7:21] = False
    return masks


@pytest.fixture
def eager_to_reuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patches as far as they go, however little there is to save."""
    monkeypatch.setattr(patch_lowering.PatchWriter, "best_end", last_end)
    monkeypatch.setattr(patch_engine, "PATCH_OVERHEAD", 0.0)


@some_policies
@pytest.mark.parametrize("name", BODIES_AND_PADDED)
def test_what_has_changed_gives_what_the_whole_image_gives(
    name: str, policy: convad_fx.Policy, eager_to_reuse: None
) -> None:
    x, masks = torch.randn(1, 3, *GRID, dtype=torch.double), hiding_masks()
    masked = convad_fx.convert(built(name), x, policy)
    # padded, or every so many cells are taken, before anything has run on a patch
    ends = ("free-shortcut", "norm", "sigmoid", "maximum", "minus")
    ends_at_once = policy.input == "raw" and name in ends
    assert masked.strategies.patch.ok == (not ends_at_once), masked.strategies.patch.why
    calls = calls_of(masked).get("patch", [])
    found = masked.evaluate(x, masks, batch_size=5)
    torch.testing.assert_close(found.logits, masked(x, masks), rtol=1e-10, atol=1e-10)
    assert (sum(calls) >= 10) == masked.strategies.patch.ok


@pytest.mark.parametrize("toy", [Residual, Dense, Shuffle])
def test_joins_and_shuffles_give_the_same(toy: type[nn.Module], eager_to_reuse: None) -> None:
    torch.manual_seed(0)
    model, x = toy().eval().double(), torch.randn(1, 3, 8, 8, dtype=torch.double)
    masked = convad_fx.convert(model, x)
    assert masked.strategies.patch.ok, masked.strategies.patch.why
    masks = torch.ones(20, 1, 8, 8, dtype=torch.bool)
    masks[:, :, 3:5, 2:4] = torch.rand(20, 1, 2, 2) < 0.5
    calls = calls_of(masked)["patch"]
    found = masked.evaluate(x, masks, batch_size=4)
    torch.testing.assert_close(found.logits, masked(x, masks), rtol=1e-10, atol=1e-10)
    assert calls


class Squeeze(nn.Module):
    """Every cell is scaled by a mean over all."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.scale, self.last = conv(3, 8, 3), conv(8, 8, 1), conv(8, 64, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x * self.scale(x.mean((2, 3), keepdim=True)).sigmoid())


@pytest.mark.parametrize(("model", "policy", "why"), [
    (lambda: Net(Squeeze(), 64), convad_fx.Policy(), "changes nearly everything at once"),
    (lambda: Net(nn.Sequential(nn.GroupNorm(1, 3), conv(3, 4, 3)), 4), convad_fx.Policy(),
     "changes nearly everything at once"),
    (lambda: Net(conv(3, 4, 3), 4), convad_fx.Policy(pool="renormalize"), "the active count"),
    (lambda: Net(conv(3, 4, 3), 4), convad_fx.Policy(fill="neighbour"), "as their neighbours"),
])  # fmt: skip
def test_a_network_that_reuses_nothing_says_why(
    model: Callable[[], nn.Module], policy: convad_fx.Policy, why: str
) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 3, *GRID)
    masked = convad_fx.convert(model().eval(), x, policy)
    assert why in masked.strategies.patch.why
    assert f"reuses nothing of the unmasked image: {masked.strategies.patch.why}" in str(
        masked.report
    )
    found = masked.evaluate(x, hiding_masks())
    torch.testing.assert_close(found.logits, masked(x, hiding_masks()), rtol=1e-4, atol=1e-5)


def sliding(size: int, side: int, stride: int) -> Iterator[Tensor]:
    for i in range(0, size - side + 1, stride):
        for j in range(0, size - side + 1, stride):
            mask = torch.ones(1, size, size, dtype=torch.bool)
            mask[:, i : i + side, j : j + side] = False
            yield mask


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["resnet50", "efficientnet_b0", "densenet121", "convnext_tiny"])
def test_every_way_is_the_same_on_real_networks(name: str) -> None:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, num_classes=5).eval()
    x, hiding = torch.randn(1, 3, 160, 160), torch.stack(list(sliding(160, 32, 32)))
    keeping = torch.zeros(6, 1, 160, 160, dtype=torch.bool)
    for mask, (top, left, side) in zip(
        keeping,
        [(0, 0, 40), (120, 120, 40), (0, 130, 30), (50, 37, 61), (90, 3, 20), (0, 0, 160)],
        strict=True,
    ):
        mask[:, top : top + side, left : left + side] = torch.rand(side, side) < 0.9
    masks = torch.cat([hiding, keeping, keeping[:1] & False, keeping[:1] | True])
    masked = convad_fx.convert(model, x)
    assert masked.strategies.box.ok
    found = masked.evaluate(x, masks, batch_size=4)
    with torch.no_grad():
        whole = torch.cat([masked(x, part) for part in masks.split(8)])
    scale = float(whole.abs().max())
    torch.testing.assert_close(found.logits / scale, whole / scale, rtol=1e-4, atol=1e-4)
    assert found.area < 1


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "mobilenet_v2", "squeezenet1_1"])
def test_a_sliding_window_is_less_work_on_real_networks(name: str) -> None:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, num_classes=5).eval()
    x, masks = torch.randn(1, 3, 160, 160), torch.stack(list(sliding(160, 32, 32)))
    masked = convad_fx.convert(model, x)
    found = masked.evaluate(x, masks, batch_size=8)
    with torch.no_grad():
        whole = masked(x, masks)
    scale = float(whole.abs().max())
    torch.testing.assert_close(found.logits / scale, whole / scale, rtol=1e-4, atol=1e-4)
    assert found.area < 0.75


def test_only_masks_that_hide_little_run_on_patches() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 3, 96, 96)
    masked = convad_fx.convert(torchvision.models.resnet18(num_classes=4).eval(), x)
    little = torch.stack(list(sliding(96, 16, 16)))
    kept = torch.zeros(5, 1, 96, 96, dtype=torch.bool)
    for i, mask in enumerate(kept):
        mask[:, 8 * i : 8 * i + 30, 40:70] = True
    noise = torch.rand(5, 1, 96, 96) < 0.5
    masks = torch.cat([little, kept, noise])
    calls = calls_of(masked)["patch"]
    found = masked.evaluate(x, masks)
    torch.testing.assert_close(found.logits, masked(x, masks), rtol=1e-3, atol=1e-4)
    assert sum(calls) == len(little)


def test_one_mask_alone_and_several_images_do_without() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 3, 96, 96)
    masked = convad_fx.convert(torchvision.models.resnet18(num_classes=4).eval(), x)
    masks = torch.stack(list(sliding(96, 16, 16)))
    calls = calls_of(masked)["patch"]
    masked.evaluate(x[:1], masks[:1])  # the unmasked image would have to be run as well
    masked.evaluate(x, masks[:3])
    assert not calls


def test_what_is_compiled_serves_every_hidden_box_and_batch(eager_to_reuse: None) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 3, *GRID, dtype=torch.double)
    masked = convad_fx.convert(built("wide-stride"), x)
    expected = convad_fx.convert(built("wide-stride"), x)
    masked.compile(backend="eager")
    torch._dynamo.reset()
    before = counters["stats"]["unique_graphs"]
    for number in (2, 3, 11, 40):
        masks = torch.ones(number, 1, *GRID, dtype=torch.bool)
        for i, mask in enumerate(masks):
            mask[:, i % 11 : i % 11 + 5 + number // 4, 3 + i : 9 + i] = False
        calls = calls_of(masked)["patch"]
        found = masked.evaluate(x, masks)
        torch.testing.assert_close(found.logits, expected.forward(x, masks))
        assert sum(calls) >= number
    assert counters["stats"]["unique_graphs"] - before <= 2


@pytest.mark.parametrize("way", ["copied", "pickled", "saved"])
def test_copies_reuse_too(way: str, tmp_path: Path, eager_to_reuse: None) -> None:
    x, masks = torch.randn(1, 3, *GRID, dtype=torch.double), hiding_masks()
    masked = convad_fx.convert(built("max-pool"), x)
    if way == "saved":
        convad_fx.save(masked, tmp_path / "network.cfx")
        twin = convad_fx.load(tmp_path / "network.cfx")
    else:
        twin = copy.deepcopy(masked) if way == "copied" else pickle.loads(pickle.dumps(masked))
    calls = calls_of(twin)["patch"]
    found = twin.evaluate(x, masks, batch_size=4)
    assert calls
    assert torch.equal(found.logits, masked.evaluate(x, masks, batch_size=4).logits)
    assert str(twin.strategies.patch) == str(masked.strategies.patch)


@pytest.mark.parametrize("axes", [(2, 3), (1, 2), (3, 1)])
def test_patches_by_index_are_those_copied_one_by_one(
    axes: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = [1, 5, 5, 5]
    shape[axes[0]], shape[axes[1]] = 14, 12
    whole = torch.rand(shape, generator=generator)
    rows = 4 * torch.randint(0, 7, (6, 1, 1), generator=generator) + torch.arange(8).view(2, 4)
    columns = 4 * torch.randint(0, 6, (6, 1, 1), generator=generator) + torch.arange(4)
    where = ((rows, columns), axes, (2, 2), ((1, 2), (3, -1)))
    wanted = ((2, 4), (1, 2))

    def answers() -> list[Tensor]:
        z = patch.cut_patch(whole, *where, -1.0)
        more = patch.widen_patch(z + 10, whole, *where, wanted, -2.0)
        active = torch.rand(6, *whole.shape[1:], generator=generator.manual_seed(1)) < 0.5
        return [
            z,
            more,
            patch.paste_patch(z + 10, whole, *where),
            patch.cut_activity_patch(active, *where),
        ]

    one_by_one = answers()
    monkeypatch.setattr(patch, "_one_by_one", lambda z: False)
    for by_index, copied in zip(answers(), one_by_one, strict=True):
        assert torch.equal(by_index, copied)
