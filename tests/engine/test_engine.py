"""What `evaluate` does with masks, memory, weights and precision, whatever the strategy."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convad_fx
from convad_fx.engine import Engine
from convad_fx.engine.chunk import MASKS_PER_CHUNK
from convad_fx.errors import ImageError, MaskError, ModelError, PolicyError
from tests.compiler.lowering.test_box import (
    GRID,
    built,
    conv,
    graphs_compiled,
    random_boxes,
    some_masks,
)


def test_batches_of_all_sizes_of_box_are_timed() -> None:
    x, masks = torch.randn(1, 3, *GRID, dtype=torch.double), random_boxes(300)
    masked = convad_fx.convert(built("strided"), x)
    engine = masked.engine
    found = masked.evaluate(x, masks, batch_size="auto")
    size = next(size for key, size in engine.sizes.items() if key[-1] == "box")
    # all but the first of each strategy, small and large
    assert len(size.recent_calls) >= found.batches - 3


def test_identical_masks_and_the_empty_mask_are_evaluated_once() -> None:
    x, masks = torch.randn(1, 3, *GRID, dtype=torch.double), some_masks()
    masked = convad_fx.convert(built("strided"), x)
    sizes: list[int] = []
    twice = masked.evaluate(x, torch.cat([masks, masks]), on_batch=sizes.append)
    assert twice.passes == len(masks)
    assert sum(sizes) == len(masks)
    assert torch.equal(twice.logits[:12], twice.logits[12:])
    again = masked.evaluate(2 * x, masks)
    assert again.passes == len(masks) - 1
    assert torch.equal(again.logits[11], twice.logits[11])


def test_with_raw_input_the_empty_mask_is_evaluated_for_every_image() -> None:
    x = torch.randn(1, 3, *GRID, dtype=torch.double)
    masked = convad_fx.convert(built("strided"), x, convad_fx.Policy(input="raw"))
    nothing = torch.zeros(1, 1, *GRID, dtype=torch.bool)
    for image in (x, 2 * x):
        found = masked.evaluate(image, nothing)
        assert found.passes == 1
        torch.testing.assert_close(found.logits, masked(image, nothing))


def test_few_graphs_are_compiled_for_all_boxes_and_batches() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 3, *GRID, dtype=torch.double)
    masked = convad_fx.convert(built("strided"), x)
    some = [*(some_masks()[:number] for number in (1, 3, 12)), random_boxes(40)]
    # on boxes and on whole images: one for batches of less than 16, one for others, for which torch
    # chooses other convolutions
    assert graphs_compiled(masked, x, some) <= 4


def test_few_graphs_are_compiled_for_any_number_of_images() -> None:
    torch.manual_seed(0)
    x = torch.randn(40, 3, *GRID, dtype=torch.double)
    masked = convad_fx.convert(built("strided"), x[:1])
    assert graphs_compiled(masked, x, [random_boxes(number) for number in (2, 3, 7, 12, 40)]) <= 4


def _written_in_place(masked: nn.Module) -> None:
    with torch.no_grad():
        next(reversed(list(masked.parameters()))).add_(1.0)


def _loaded(masked: nn.Module) -> None:
    masked.load_state_dict({name: value + 0.1 for name, value in masked.state_dict().items()})


def _assigned(masked: nn.Module) -> None:
    state = {name: value + 0.1 for name, value in masked.state_dict().items()}
    masked.load_state_dict(state, assign=True)


def _pointed_elsewhere(masked: nn.Module) -> None:
    last = next(reversed(list(masked.parameters())))
    last.data = last.data + 1.0


def _in_inference_mode(masked: Any) -> None:
    """Inference tensors have no version counter, so nothing is cached."""
    nothing = torch.zeros(1, 1, *GRID, dtype=torch.bool)
    with torch.inference_mode():
        head = masked.head
        head.bias = nn.Parameter(head.bias.clone(), requires_grad=False)
        masked.evaluate(torch.rand(1, 3, *GRID), nothing)
        head.bias += 1.0


@pytest.mark.parametrize(
    "change", [_written_in_place, _loaded, _assigned, _pointed_elsewhere, _in_inference_mode]
)
def test_changed_weights_invalidate_the_cached_answer(change: Callable[[nn.Module], None]) -> None:
    masked = convad_fx.convert(built("strided").float(), torch.zeros(1, 3, *GRID))
    x, nothing = torch.rand(1, 3, *GRID), torch.zeros(2, 1, *GRID, dtype=torch.bool)
    before = masked.evaluate(x, nothing).logits
    assert masked.evaluate(x, nothing).passes == 0
    change(masked)
    found = masked.evaluate(x, nothing)
    assert not torch.allclose(found.logits, before, atol=1e-3)
    with torch.no_grad():
        assert torch.allclose(found.logits, masked(x, nothing), atol=1e-6)


def test_new_parameters_invalidate_the_cached_answer() -> None:
    x, nothing = torch.randn(1, 3, *GRID), torch.zeros(1, 1, *GRID, dtype=torch.bool)
    masked = convad_fx.convert(built("strided").float(), x)
    before = masked.evaluate(x, nothing).logits
    masked.double()
    after = masked.evaluate(x.double(), nothing).logits
    assert after.dtype == torch.double
    torch.testing.assert_close(after.float(), before)


def test_masks_keep_their_order_across_chunks() -> None:
    x = torch.randn(1, 3, *GRID, dtype=torch.double)
    masked = convad_fx.convert(built("strided"), x)
    masks = random_boxes(MASKS_PER_CHUNK + 70)
    masks[MASKS_PER_CHUNK + 3] = masks[5]  # also in the first chunk
    found = masked.evaluate(x, iter(masks))
    expected = torch.cat([masked(x, some) for some in masks.split(64)])
    assert len(found.logits) == MASKS_PER_CHUNK + 70
    torch.testing.assert_close(found.logits, expected)
    assert found.passes == len(masks.unique(dim=0))


def test_masks_may_come_one_by_one_and_images_one_each() -> None:
    x, masks = torch.randn(12, 3, *GRID, dtype=torch.double), some_masks()
    masked = convad_fx.convert(built("valid"), x[:1])
    streamed = masked.evaluate(x[:1], (mask[0] for mask in masks), batch_size=2)
    torch.testing.assert_close(streamed.logits, masked(x[:1], masks))
    each = masked.evaluate(x, masks, batch_size=3)
    torch.testing.assert_close(each.logits, masked(x, masks))


def test_lower_precision_reports_its_deviation() -> None:
    x, masks = torch.randn(1, 3, *GRID), some_masks()
    masked = convad_fx.convert(built("strided").float(), x)
    exact = masked.evaluate(x, masks)
    lower = masked.evaluate(x, masks, precision="bfloat16")
    assert exact.deviation is None
    assert lower.logits.dtype == torch.float32
    assert lower.deviation is not None
    worst = float((lower.logits - exact.logits).abs().max())
    assert 0 < worst < 0.2
    assert 0 < lower.deviation < 0.2


def test_the_first_and_last_mask_of_a_batch_are_compared_with_float32() -> None:
    allowed = convad_fx.convert(built("strided"), torch.zeros(1, 3, *GRID).double()).strategies

    def network(x: Tensor, mask: Tensor) -> Tensor:
        kept = mask.flatten(1).sum(1, keepdim=True).float()
        return kept + (kept == GRID[0] * GRID[1]) * torch.is_autocast_enabled("cpu")

    engine = Engine(network, allowed, {}, reads_hidden=True)
    masks = some_masks()[[0, 1, 2, 3, 10]]  # of the whole image it is off by one
    assert engine.evaluate(torch.zeros(1, 3, *GRID), masks, 5, "bfloat16").deviation == 1
    assert engine.evaluate(torch.zeros(1, 3, *GRID), masks[:4], 4, "bfloat16").deviation == 0


@pytest.mark.parametrize("precision", [None, "bfloat16"])
def test_outputs_that_are_overwritten_are_copied_before(precision: str | None) -> None:
    """As CUDA graphs do."""
    allowed = convad_fx.convert(built("strided"), torch.zeros(1, 3, *GRID).double()).strategies
    memory = torch.zeros(12, 1)

    def network(x: Tensor, mask: Tensor) -> Tensor:
        answer = memory[: len(mask)]
        return answer.copy_(mask.flatten(1).sum(1, keepdim=True))

    engine = Engine(network, allowed, {}, reads_hidden=True)
    masks = some_masks()
    found = engine.evaluate(torch.zeros(1, 3, *GRID), masks, 5, precision)
    assert torch.equal(found.logits, masks.flatten(1).sum(1, keepdim=True).float())
    assert found.deviation == (None if precision is None else 0)


def cpu_allocator(_: str) -> RuntimeError:
    """What torch raises for a tensor of 2^60 values."""
    try:
        torch.empty(1 << 60)
    except RuntimeError as error:
        return error
    raise AssertionError("so much memory!")


class Scarce:
    """A network that has memory for a few masks only; for one more in lower precision."""

    def __init__(self, most: int, error: Callable[[str], BaseException]) -> None:
        self.most, self.error, self.asked = most, error, list[int]()

    def __call__(self, x: Tensor, mask: Tensor) -> Tensor:
        self.asked.append(len(mask))
        lower = torch.is_autocast_enabled("cpu")
        if len(mask) > self.most + lower:
            raise self.error("out of memory")
        return mask.flatten(1).sum(1, keepdim=True).float() + lower


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, cpu_allocator])
@pytest.mark.parametrize("batch_size", [8, "auto"])
def test_out_of_memory_halves_the_batch_and_goes_on(error: Any, batch_size: Any) -> None:
    allowed = convad_fx.convert(built("strided"), torch.zeros(1, 3, *GRID).double()).strategies
    network = Scarce(3, error)
    engine = Engine(network, allowed, {}, reads_hidden=True)
    x, masks = torch.zeros(1, 3, *GRID), some_masks()
    found = engine.evaluate(x, masks, batch_size=batch_size)
    # 12 masks, in even parts; "auto" begins with 4
    assert network.asked == ([6, 3, 3, 3, 3] if batch_size == 8 else [4] + [2] * 6)
    kept = masks.flatten(1).sum(1).tolist()
    assert found.logits.flatten().tolist() == kept
    # of the first batch two masks should be compared, but one fits
    network = Scarce(1, error)
    engine = Engine(network, allowed, {}, reads_hidden=True)
    found = engine.evaluate(x, masks, batch_size=2, precision="bfloat16")
    assert network.asked == [2, 2, 1, 2, 2, 2, 2, 2]
    assert found.deviation == 1
    assert found.logits.flatten().tolist() == [n + 1 for n in kept]
    with pytest.raises((RuntimeError, MemoryError), match="memory"):
        Engine(Scarce(0, error), allowed, {}, reads_hidden=True).evaluate(x, masks)


def test_chunks_are_halved_if_activities_do_not_fit() -> None:
    masked = convad_fx.convert(built("strided"), x := torch.randn(1, 3, *GRID).double())
    masks, engine, asked = some_masks(), masked.engine, list[int]()
    expected = convad_fx.convert(built("strided"), x).evaluate(x, masks)
    activities = engine.parts["box_activities"]

    def scarce(image: Tensor, some: Tensor) -> Any:
        asked.append(len(some))
        if len(some) > 3:
            raise cpu_allocator("")
        return activities(image, some)

    engine.parts = {**engine.parts, "box_activities": scarce}
    found = masked.evaluate(x, masks)
    assert asked == [12, 6, 3, 3, 6, 3, 3]
    assert found.passes == expected.passes
    assert torch.allclose(found.logits, expected.logits)
    many = masked.evaluate(
        x.expand(12, -1, -1, -1) * torch.arange(1, 13)[:, None, None, None], masks
    )
    one_by_one = [masked(x * (k + 1), masks[k : k + 1]) for k in range(12)]
    assert torch.allclose(many.logits, torch.cat(one_by_one))


def test_other_errors_are_raised() -> None:
    allowed = convad_fx.convert(built("strided"), torch.zeros(1, 3, *GRID).double()).strategies
    network = Scarce(1, RuntimeError)
    engine = Engine(network, allowed, {}, reads_hidden=True)
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.evaluate(torch.zeros(1, 3, *GRID), some_masks(), batch_size=8)
    assert network.asked == [6]


@pytest.mark.parametrize(("error", "message", "call"), [
    (PolicyError, "batch_size must be a positive whole number or 'auto', not 0",
     lambda m, x, k: m.evaluate(x, k, batch_size=0)),
    (PolicyError, "precision must be one of bfloat16, float16, not 'half'",
     lambda m, x, k: m.evaluate(x, k, precision="half")),
    (MaskError, r"a mask has shape \(1, 9, 9\); expected bool of shape \(1, 64, 48\) each",
     lambda m, x, k: m.evaluate(x, torch.ones(2, 1, 9, 9, dtype=torch.bool))),
    (MaskError, "a mask has dtype torch.float32.*pass `mask > 0.5`",
     lambda m, x, k: m.evaluate(x, k.float())),
    (MaskError, "no masks were given", lambda m, x, k: m.evaluate(x, k[:0])),
    (MaskError, "12 masks for 2 images", lambda m, x, k: m.evaluate(x.expand(2, -1, -1, -1), k)),
    (ImageError, "expected", lambda m, x, k: m.evaluate(x[:, :2], k)),
])  # fmt: skip
def test_bad_input_is_named(error: type[Exception], message: str, call: Any) -> None:
    x = torch.zeros(1, 3, *GRID, dtype=torch.double)
    masked = convad_fx.convert(built("strided"), x)
    with pytest.raises(error, match=message):
        call(masked, x, some_masks())


class TwoAnswers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(3, 4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.conv(x)
        return z.mean((2, 3)), z.amax((2, 3))


def test_a_network_with_two_outputs_is_refused() -> None:
    x = torch.zeros(1, 3, *GRID)
    masked = convad_fx.convert(TwoAnswers().eval(), x)
    with pytest.raises(ModelError, match="returns a tuple, not one tensor"):
        masked.evaluate(x, some_masks())


def test_a_moved_network_stays_compiled() -> None:
    x, masks = torch.randn(1, 3, *GRID, dtype=torch.double), some_masks()
    masked = convad_fx.convert(built("strided"), x)
    expected = masked.evaluate(x, masks).logits
    masked.compile(backend="eager")
    masked.float().double()
    parts = masked.engine.parts
    assert masked._compiled_call_impl is not None
    assert parts["box"]._compiled_call_impl is not None
    torch.testing.assert_close(masked.evaluate(x, masks).logits, expected, rtol=1e-5, atol=1e-5)
    again = pickle.loads(pickle.dumps(masked))
    torch.testing.assert_close(again.evaluate(x, masks).logits, expected, rtol=1e-5, atol=1e-5)
