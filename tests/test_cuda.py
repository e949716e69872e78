"""The same laws on a GPU, where there is one: bits, boxes, patches, compiled code, explanations."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch._dynamo.utils import counters

import convad_fx
from benchmarks.hook_based import HookBased
from convad_fx import metrics
from convad_fx.demo import network, scenes
from convad_fx.engine import choose, engine
from convad_fx.engine.batch_size import BatchSize

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    # torch's own, once in a process: advice of inductor's and on how to ask for TF32, and what
    # mode="reduce-overhead" says of the empty graph with which it begins
    pytest.mark.filterwarnings("ignore:TensorFloat32"),
    pytest.mark.filterwarnings("ignore:Please use the new API settings to control TF32"),
    pytest.mark.filterwarnings("ignore:The CUDA Graph is empty"),
]

SIZE = 128
FAMILIES = (
    "resnet18",
    "mobilenet_v2",
    "efficientnet_b0",
    "densenet121",
    "convnext_tiny",
    "googlenet",
    "regnet_y_400mf",
    "shufflenet_v2_x1_0",
    "squeezenet1_1",
    "vgg11_bn",
    "mnasnet0_5",
    "inception_v3",
    "alexnet",
)


def of(name: str) -> nn.Module:
    torch.manual_seed(0)
    more: dict[str, Any] = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(name, weights=None, **more).eval().cuda()


def image(size: int = SIZE) -> Tensor:
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1)).cuda()


def large_enough(name: str) -> int:
    """The side of an image that this network takes."""
    return 224 if name in ("alexnet", "vgg11_bn", "inception_v3") else SIZE


def masks_of_all_kinds(size: int = SIZE) -> Tensor:
    """Small boxes of noise, small holes, noise everywhere, nothing, everything."""
    generator = torch.Generator().manual_seed(2)

    def place(side: int) -> list[int]:
        return torch.randint(0, size - side, (2,), generator=generator).tolist()

    noise = torch.rand(48, 1, size, size, generator=generator) < 0.5
    masks = torch.zeros_like(noise)
    for i in range(16):
        top, left = place(40)
        part = (i, 0, slice(top, top + 24 + i), slice(left, left + 40 - i))
        masks[part] = noise[part]
    masks[16:32] = True
    for i in range(16, 32):
        top, left = place(20)
        masks[i, 0, top : top + 20, left : left + 20] = False
    masks[32:46] = noise[32:46]
    masks[47] = True
    return masks.cuda()


def assert_close(found: Tensor, right: Tensor, share: float) -> None:
    """To a share of the largest logit: those of random weights may all be tiny."""
    largest = float(right.abs().max())
    assert largest > 0
    assert float((found - right).abs().max()) <= share * largest


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch.cuda.empty_cache()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("last", [False, True], ids=["channels-first", "channels-last"])
def test_theorem_1_bit_for_bit(name: str, last: bool) -> None:
    model, x = of(name), torch.randn(4, 3, 224, 224, device="cuda")
    if last:
        model, x = (it.to(memory_format=torch.channels_last) for it in (model, x))
    with torch.inference_mode():
        masked = convad_fx.convert(model, x[:1])
        assert torch.equal(masked(x), model(x))
        ones = torch.ones(4, 1, 224, 224, dtype=torch.bool, device="cuda")
        assert torch.equal(masked(x, ones), model(x))


@pytest.mark.parametrize("name", FAMILIES[:5])
def test_hidden_values_do_not_reach_the_result(name: str) -> None:
    x, masks = image(), masks_of_all_kinds()[:8]
    other = torch.where(masks, x, torch.nan)
    with torch.inference_mode():
        masked = convad_fx.convert(of(name), x)
        assert torch.equal(masked(x.expand(8, -1, -1, -1), masks), masked(other, masks))


@pytest.mark.parametrize("name", FAMILIES[:5])
def test_it_is_what_hooks_give(name: str) -> None:
    model, x, masks = of(name).double(), image().double(), masks_of_all_kinds()[:40:5]
    masked = convad_fx.convert(model, x)
    with torch.inference_mode(), HookBased(copy.deepcopy(model)) as hooked:
        assert_close(masked(x, masks), hooked(x, masks), 1e-9)


@pytest.mark.parametrize("name", FAMILIES)
def test_boxes_and_patches_give_what_whole_images_give(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = large_enough(name)
    x, masks = image(size).double(), masks_of_all_kinds(size)
    # calls as cheap as on a CPU: boxes and patches have calls of their own
    monkeypatch.setattr(engine, "batch_size_for", lambda *_: BatchSize(64))
    masked = convad_fx.convert(of(name).double(), x)
    found = masked.evaluate(x, masks)
    with torch.inference_mode():
        assert_close(found.logits, masked(x, masks), 1e-9)
    strategies = masked.strategies
    asked = kinds(masked)
    on_boxes = bool(asked & {"box", "tile"})
    assert (on_boxes, "patch" in asked) == (strategies.box.ok, strategies.patch.ok)


@pytest.mark.parametrize("name", FAMILIES)
def test_shared_tiles_give_what_whole_images_give(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = large_enough(name)
    x, masks = image(size).double(), masks_of_all_kinds(size)
    monkeypatch.setattr(choose.Chooser, "_tiling_pays", lambda *_: True)  # however dear calls are
    monkeypatch.setattr(choose, "MIN_MASKS_FOR_TILING", 1)
    masked = convad_fx.convert(of(name).double(), x)
    found = masked.evaluate(x, masks)
    with torch.inference_mode():
        assert_close(found.logits, masked(x, masks), 1e-9)
    assert ("tile" in kinds(masked)) == masked.strategies.tile.ok


def kinds(masked: convad_fx.MaskedModule) -> set[str]:
    """The strategies that have run."""
    sizes = masked.engine.sizes.values()
    return {kind for size in sizes for kind, _ in size.compiled_versions}


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_what_is_compiled_gives_the_same(
    name: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(engine, "batch_size_for", lambda *_: BatchSize(64))
    monkeypatch.setattr(choose.Chooser, "_tiling_pays", lambda *_: True)
    monkeypatch.setattr(choose, "MIN_MASKS_FOR_TILING", 1)
    model, x, masks = of(name), image(), masks_of_all_kinds()
    masked, expected = convad_fx.convert(model, x), convad_fx.convert(model, x)
    masked.compile(mode=mode)
    counters.clear()
    for some in (masks, masks[:30], masks[20:], masks[:9]):
        with torch.inference_mode():
            right = expected(x, some)
        assert_close(masked.evaluate(x, some).logits, right, 1e-3)
    assert "tile" in kinds(masked)
    # whole images, boxes, patches and what follows tiles, small batches and large; tiles in one
    assert counters["stats"]["unique_graphs"] <= 8 + len(masked.strategies.tile.stages)


def test_lower_precision_says_how_far_it_is() -> None:
    x, masks = image(), masks_of_all_kinds()
    masked = convad_fx.convert(of("resnet18"), x)
    found = masked.evaluate(x, masks, precision="bfloat16")
    exact = masked.evaluate(x, masks).logits
    assert found.deviation is not None
    worst = float((found.logits - exact).abs().max())
    assert 0 < worst < 10 * found.deviation < 10 * float(exact.abs().max())


def test_out_of_memory_halves_the_batch_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    halve, halved = BatchSize.halve, []
    monkeypatch.setattr(BatchSize, "halve", lambda *args: halved.append(halve(*args)))
    x, generator = image(), torch.Generator().manual_seed(0)
    masks = (torch.rand(512, 1, SIZE, SIZE, generator=generator) < 0.5).cuda()
    masked = convad_fx.convert(of("resnet18"), x)
    right = torch.cat([masked.evaluate(x, part).logits for part in masks.split(16)])
    gc.collect()  # whatever other tests have left
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    # room for what is held and for some sixty images
    most = torch.cuda.memory_reserved() + 60 * 30 * x.numel() * x.element_size()
    torch.cuda.set_per_process_memory_fraction(most / total)
    try:
        found = masked.evaluate(x, masks, batch_size=512)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert halved
    assert_close(found.logits, right, 1e-2)  # TF32


def test_an_explanation_is_that_of_a_cpu() -> None:
    """In double precision, in which devices differ by less than any two masks."""
    model = network.load().double()
    x = network.preprocess(scenes.held_out(1)[0].image).double()
    found = [
        convad_fx.explain(convad_fx.convert(copy.deepcopy(model).to(d), x.to(d)), x.to(d), seed=0)
        for d in ("cpu", "cuda")
    ]
    cpu, gpu = found
    assert gpu.target == cpu.target
    assert (gpu.mask == cpu.mask).all()
    assert gpu.responsibility == pytest.approx(cpu.responsibility)
    rho = [
        metrics.robustness(copy.deepcopy(model).to(d), x.to(d), cpu.mask, cpu.target, n=20).rho
        for d in ("cpu", "cuda")
    ]
    assert rho[0] == rho[1]
