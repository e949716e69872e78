"""The gate: the same bits compiled, nothing that is hidden, the memory format."""

from __future__ import annotations

import pytest
import torch

from convad_fx.compiler.kernels.gating import FEW_CHANNELS, gate


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("channels", [3, 2 * FEW_CHANNELS])
@pytest.mark.parametrize("fill", [0.0, -1.0])
def test_a_compiled_gate_lets_the_same_bits_through(
    channels: int, dtype: torch.dtype, fill: float
) -> None:
    z = torch.randn(2, channels, 5, 6, dtype=dtype)
    z[0, 0, 0, :4] = torch.tensor([float("nan"), float("inf"), -0.0, 1e-40], dtype=dtype)
    activity = torch.rand(2, 1, 5, 6) < 0.5
    activity[0, 0, 0, :4] = torch.tensor([False, False, True, True])
    expected = torch.where(activity, z, fill)
    torch.compiler.reset()  # which gives up on code that it has compiled too often
    compiled = torch.compile(gate, backend="aot_eager", fullgraph=True)
    with torch.inference_mode():
        found = compiled(z, activity, fill)
    assert found.dtype == dtype
    assert torch.equal(found, expected)
    assert torch.equal(found.signbit(), expected.signbit())
    weights = z.nan_to_num(0, 0, 0).requires_grad_()
    compiled(weights, activity, fill).sum().backward()
    assert torch.equal(weights.grad, activity.expand_as(z).to(dtype))


def test_a_compiled_gate_takes_one_number_for_each_image() -> None:
    z, activity = torch.tensor([1.0, float("nan")]), torch.tensor([True, False])
    torch.compiler.reset()
    found = torch.compile(gate, backend="aot_eager", fullgraph=True)(z, activity)
    assert found.tolist() == [1.0, 0.0]


def test_a_gate_keeps_what_is_hidden_out_and_the_memory_format() -> None:
    z = torch.full((2, 3, 4, 4), float("nan")).to(memory_format=torch.channels_last)
    gated = gate(z, torch.zeros(2, 1, 4, 4, dtype=torch.bool))
    assert not gated.any()
    assert gated.is_contiguous(memory_format=torch.channels_last)
