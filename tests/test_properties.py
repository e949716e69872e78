"""The laws of docs/meaning.md, over random networks, images, masks and policies.

The networks are compared in float64: there, a difference beyond rounding cannot be taken for
rounding. `HYPOTHESIS_PROFILE` (dev, ci, nightly) says how many networks are drawn.
"""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import example, given, note
from hypothesis import strategies as st
from reference import reference, reference_activity
from strategies import (
    Activation,
    Concat,
    Conv,
    LinearHead,
    Network,
    Norm,
    Pool,
    Residual,
    build,
    images,
    masks,
    networks,
    policies,
    seeds,
)
from torch import Tensor, nn

import convad_fx
from convad_fx.compiler.lowering import box as box_lowering
from convad_fx.compiler.lowering import patch as patch_lowering
from convad_fx.compiler.lowering import tile as tile_lowering
from convad_fx.convert import convert as convert_plainly
from convad_fx.engine import choose
from convad_fx.engine import patch as patch_engine
from convad_fx.engine import tile as tile_engine
from convad_fx.engine.batch_size import BatchSize
from tests.compiler.patches import last_end

# One network by hand, so that the laws are met by a usual one whatever is drawn.
USUAL = Network(
    3,
    (9, 12),
    (
        Conv(4, stride=(2, 2, 2), padding="half"),
        Norm("batch"),
        Activation("relu", inplace=True),
        Pool("max", 3, 2, 1),
        Residual((Conv(6, stride=(2, 2, 2), padding="half"), Norm("batch"))),
        Concat(((Conv(2),), (Conv(4, (1, 1, 1)), Conv(2, (5, 5, 5)))), dense=True),
    ),
    LinearHead(3),
)
DEFAULT = SimpleNamespace(
    tau=0.0, attribution="positional", input="gate", pool="dilute", fill="zero"
)


def _policy(fields: SimpleNamespace) -> convad_fx.Policy:
    return convad_fx.Policy(**vars(fields))


def _network(spec: Network, seed: int, batch: int = 1) -> tuple[nn.Module, Tensor]:
    return build(spec, seed).double(), images(spec, seed, batch).double()


def assert_same_to_rounding(actual: Tensor, expected: Tensor, context: str) -> None:
    assert actual.shape == expected.shape, context
    assert torch.isfinite(expected).all(), f"{context}: the expected values are not finite"
    scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    torch.testing.assert_close(
        actual, expected, rtol=1e-9, atol=1e-9 * scale, msg=lambda m: f"{context}: {m}"
    )


def assert_bit_equal(actual: Tensor, expected: Tensor, context: str) -> None:
    assert actual.shape == expected.shape, context
    assert torch.equal(actual, expected), (
        f"{context}: {int((actual != expected).sum())} of {actual.numel()} values differ, "
        f"by up to {float((actual - expected).abs().max()):.3g}"
    )


@given(networks(), seeds)
@example(USUAL, 0)
def test_no_random_network_gets_a_finding(spec: Network, seed: int) -> None:
    model, x = _network(spec, seed)
    report = convad_fx.check(model, x)
    assert report.ok, str(report)
    assert not report.findings


@given(networks(), seeds, policies(), st.booleans())
@example(USUAL, 0, DEFAULT, True)
def test_theorem_1(spec: Network, seed: int, policy: SimpleNamespace, given_mask: bool) -> None:
    model, x = build(spec, seed), images(spec, seed, batch=2)
    with torch.no_grad():
        expected = model(x)
        masked = convad_fx.convert(model, x[:1], policy=_policy(policy))
        mask = torch.ones(2, 1, *spec.grid, dtype=torch.bool) if given_mask else None
        assert_bit_equal(masked(x, mask), expected, "an all-True mask")


@given(networks(), seeds, st.data())
@example(USUAL, 0, None)
def test_hidden_values_never_matter(spec: Network, seed: int, data: Any) -> None:
    policy, mask = _drawn(data, spec, inputs=("gate", "strict"))
    model, x = _network(spec, seed)
    masked = convad_fx.convert(model, x, policy=_policy(policy))
    with torch.no_grad():
        expected = masked(x, mask)
        assert torch.isfinite(expected).all()
        for hidden in (float("nan"), float("inf"), 1e30, x.flip(0, 2) * 3):
            poisoned = torch.where(mask, x, torch.as_tensor(hidden, dtype=x.dtype))
            assert_bit_equal(masked(poisoned, mask), expected, f"hidden pixels set to {hidden}")


@given(networks(), seeds, st.data())
@example(USUAL, 0, None)
def test_a_larger_mask_switches_nothing_off(spec: Network, seed: int, data: Any) -> None:
    policy, small = _drawn(data, spec)
    large = small | (small.flip(-1) if data is None else data.draw(masks(spec.grid)))
    model, x = _network(spec, seed)
    before = reference_activity(model, x, small, policy)
    after = reference_activity(model, x, large, policy)
    for name, active in before.items():
        lost = int((active & ~after[name]).sum())
        assert lost == 0, f"{lost} cells of {name} went off"


@given(networks(max_blocks=4), seeds, st.data())
@example(USUAL, 0, None)
def test_a_batch_of_masks_equals_one_at_a_time(spec: Network, seed: int, data: Any) -> None:
    policy, many = _drawn(data, spec, batch=3)
    model, x = _network(spec, seed, batch=3)
    masked = convad_fx.convert(model, x[:1], policy=_policy(policy))
    with torch.no_grad():
        for name, pictures in (("one image", x[:1]), ("an image each", x)):
            together = masked(pictures, many)
            for k in range(3):
                alone = masked(pictures[k % len(pictures)][None], many[k : k + 1])
                assert_same_to_rounding(together[k : k + 1], alone, f"{name}, mask {k}")
        together = masked(x, many[:1])
        for k in range(3):
            alone = masked(x[k : k + 1], many[:1])
            assert_same_to_rounding(together[k : k + 1], alone, f"one mask, image {k}")


@given(networks(), seeds, st.data())
@example(USUAL, 0, None)
def test_optimised_equals_naive_equals_reference(spec: Network, seed: int, data: Any) -> None:
    policy, mask = _drawn(data, spec, batch=2)
    model, x = _network(spec, seed)
    masked = convad_fx.convert(model, x, policy=_policy(policy))
    naive = convert_plainly(model, x, policy=_policy(policy), simplify=False)
    assert _gates(masked) <= _gates(naive), "optimising added gates"
    with torch.no_grad():
        expected = reference(model, x, mask, policy)
        note(f"optimised:\n{masked.code}")
        assert_same_to_rounding(naive(x, mask), expected, "naive against the reference")
        assert_same_to_rounding(masked(x, mask), expected, "optimised against the reference")


def test_a_window_of_one_cell_leaves_the_channels_alike() -> None:
    spec = Network(
        1, (8, 8), (Concat(((), (Conv(2, (1, 1, 1)),)), dense=False),), LinearHead(2, "adaptive")
    )
    model, x = _network(spec, 0)
    mask = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    mask[..., 0, 0] = True  # a 64th of the cells: below tau, were the channels told apart
    fields = SimpleNamespace(**vars(DEFAULT) | {"tau": 0.125, "attribution": "receptive"})
    with torch.no_grad():
        answer = convad_fx.convert(model, x, policy=_policy(fields))(x, mask)
        assert_same_to_rounding(answer, reference(model, x, mask, fields), "the reference")


def test_a_maximum_over_the_raw_image_is_of_what_there_is() -> None:
    model, x = _network(Network(1, (8, 8), (), LinearHead(2, "max")), 0)
    fields = SimpleNamespace(**vars(DEFAULT) | {"input": "raw"})
    with torch.no_grad():
        masked = convad_fx.convert(model, x, policy=_policy(fields))
        nothing = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
        assert_same_to_rounding(masked(x, nothing), model(x), "the first layer sees all of it")


@given(networks(), seeds, st.data())
@example(USUAL, 0, None)
def test_evaluating_less_equals_whole_images(spec: Network, seed: int, data: Any) -> None:
    # Larger images than the other laws need: a box of a few tiles has to be smaller than they are.
    wide = replace(spec, grid=tuple(n * (3 if len(spec.grid) < 3 else 2) for n in spec.grid))
    policy, _ = _drawn(data, spec)
    model, x = _network(wide, seed)
    generator = torch.Generator().manual_seed(seed)
    drawn = [] if data is None else [data.draw(masks(wide.grid, 3))]
    corners = torch.zeros(2, 1, *wide.grid, dtype=torch.bool)
    corners[(0, 0, *(slice(0, n // 3) for n in wide.grid))] = True
    corners[(1, 0, *(slice(-(n // 3), None) for n in wide.grid))] = True
    some = torch.zeros(5, 1, *wide.grid, dtype=torch.bool)
    for mask in some[:4]:
        sizes = [int(torch.randint(1, n // 2 + 1, (), generator=generator)) for n in wide.grid]
        starts = [
            int(torch.randint(0, n - size + 1, (), generator=generator))
            for n, size in zip(wide.grid, sizes, strict=True)
        ]
        box = tuple(slice(a, a + n) for a, n in zip(starts, sizes, strict=True))
        mask[(0, *box)] = torch.rand(sizes, generator=generator) < 0.8
    many = torch.cat([some, corners, ~some[4:], *drawn])
    masked = convad_fx.convert(model, x, policy=_policy(policy))
    with torch.no_grad():
        note(str(masked.strategies.box))
        found = masked.evaluate(x, many, batch_size=2)
        assert_same_to_rounding(found.logits, masked(x, many), "boxes against whole images")
        assert found.area <= 1
        assert masked.strategies.box.ok or masked.strategies.patch.ok or found.area == 1
    # all of them on the largest box, from where their own starts: many end beyond the image
    with (
        mock.patch.object(box_lowering, "MIN_SHARE_ON_BOXES", 1e-9),
        mock.patch.object(BatchSize, "call_cost", property(lambda _: 1e9)),
        torch.no_grad(),
    ):
        masked = convad_fx.convert(model, x, policy=_policy(policy))
        found = masked.evaluate(x, many, batch_size=4)
        assert_same_to_rounding(found.logits, masked(x, many), "large boxes against whole images")
    # masks that hide a box: patches as far as they go, however little there is to save
    with (
        mock.patch.object(patch_lowering.PatchWriter, "best_end", last_end),
        mock.patch.object(patch_engine, "PATCH_OVERHEAD", 0.0),
        torch.no_grad(),
    ):
        masked = convad_fx.convert(model, x, policy=_policy(policy))
        note(str(masked.strategies.patch))
        found = masked.evaluate(x, ~many, batch_size=2)
        assert_same_to_rounding(found.logits, masked(x, ~many), "changes against whole images")
    # tiles that masks share, as far as they go
    with (
        mock.patch.object(tile_lowering, "MIN_SHARE_SAVED", -1e9),
        mock.patch.object(tile_lowering, "MEAN_BOX_SHARE", 1e3),
        mock.patch.object(tile_engine, "TILE_OVERHEAD", -1e9),
        mock.patch.object(choose, "MIN_MASKS_FOR_TILING", 1),
        mock.patch.object(patch_engine, "PATCH_OVERHEAD", 1e9),
        torch.no_grad(),
    ):
        masked = convad_fx.convert(model, x, policy=_policy(policy))
        note(str(masked.strategies.tile))
        assert masked.strategies.tile.ok or spec != USUAL or data is not None
        found = masked.evaluate(x, many, batch_size=2)
        assert_same_to_rounding(found.logits, masked(x, many), "tiles against whole images")


@given(networks(), seeds)
@example(USUAL, 0)
def test_converting_leaves_the_model_alone(spec: Network, seed: int) -> None:
    model, x = build(spec, seed), images(spec, seed)
    untouched = copy.deepcopy(model)
    with torch.no_grad():
        masked = convad_fx.convert(model, x)
        masked(x, torch.zeros(1, 1, *spec.grid, dtype=torch.bool))
        assert_bit_equal(x, images(spec, seed), "the image")
        assert_bit_equal(model(x), untouched(x), "the model")
    assert masked.state_dict().keys() == model.state_dict().keys()
    for name, parameter in masked.named_parameters():
        assert parameter is model.get_parameter(name), f"{name} was copied"


@pytest.mark.parametrize("simplify", [True, False])
def test_the_usual_network_meets_every_policy(simplify: bool) -> None:
    model, x = _network(USUAL, seed=1)
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(4, 1, *USUAL.grid, generator=generator) < 0.4
    for tau in (0.0, 0.5):
        for attribution in ("positional", "receptive"):
            for reads in ("gate", "raw", "strict"):
                for pool in ("dilute", "renormalize"):
                    for fill in ("zero", "neighbour"):
                        policy = convad_fx.Policy(
                            tau=tau, attribution=attribution, input=reads, pool=pool, fill=fill
                        )
                        masked = convert_plainly(model, x, policy=policy, simplify=simplify)
                        with torch.no_grad():
                            expected = reference(model, x, mask, policy)
                            assert_same_to_rounding(masked(x, mask), expected, str(policy))


def _drawn(
    data: Any, spec: Network, *, inputs: tuple[str, ...] = ("gate", "raw", "strict"), batch: int = 1
) -> tuple[SimpleNamespace, Tensor]:
    """A policy and masks, drawn late as they depend on the grid; fixed for an explicit example."""
    if data is None:
        generator = torch.Generator().manual_seed(0)
        return DEFAULT, torch.rand(batch, 1, *spec.grid, generator=generator) < 0.5
    policy = data.draw(st.sampled_from(inputs).flatmap(lambda reads: policies(input=reads)))
    note(f"policy: {policy}")
    return policy, data.draw(masks(spec.grid, batch))


def _gates(masked: nn.Module) -> int:
    """How many nodes of the emitted graph gate something."""
    assert isinstance(masked, torch.fx.GraphModule)
    names = Counter(
        getattr(node.target, "__name__", "")
        for node in masked.graph.nodes
        if node.op == "call_function"
    )
    return sum(times for name, times in names.items() if "gate" in name)
