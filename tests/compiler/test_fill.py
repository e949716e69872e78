"""`Policy.fill`: what a convolution reads at the border of the mask."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from hypothesis import assume, given, settings
from reference import reference
from strategies import Network, build, images, networks, policies, seeds
from torch import Tensor, nn

import convad_fx
from convad_fx import Policy
from convad_fx.compiler.kernels.window import neighbours
from convad_fx.convert import convert
from convad_fx.errors import PolicyError

NEIGHBOUR = Policy(fill="neighbour")


def _mean(kernel: int = 3, **options) -> nn.Conv2d:
    """A convolution that takes the mean of its window."""
    conv = nn.Conv2d(1, 1, kernel, bias=False, **options)
    nn.init.constant_(conv.weight, 1 / kernel**2)
    return conv


def _answer(model: nn.Module, x: Tensor, mask: Tensor, policy: Policy) -> Tensor:
    masked = convad_fx.convert(model.eval(), x, policy=policy)
    with torch.no_grad():
        return masked(x, mask)


def test_a_constant_image_has_no_edge_at_the_border_of_the_mask() -> None:
    x = torch.full((1, 1, 9, 9), 5.0)
    mask = torch.zeros(1, 1, 9, 9, dtype=torch.bool)
    mask[..., 2:7, 2:7] = True
    model = nn.Sequential(_mean(padding=1))
    inside = _answer(model, x, mask, NEIGHBOUR)[..., 2:7, 2:7]
    assert torch.allclose(inside, torch.tensor(5.0))
    dark = _answer(model, x, mask, Policy())[..., 2:7, 2:7]
    assert dark[0, 0, 0, 0] == pytest.approx(5 * 4 / 9)
    assert dark[0, 0, 2, 2] == pytest.approx(5)


def test_by_hand_on_a_line() -> None:
    z = torch.tensor([[[1.0, 3, 9, 9, 9, 7]]])
    active = torch.tensor([[[True, True, False, False, False, True]]])
    assert neighbours(z, active, (3,), (1,)).tolist() == [[[1, 3, 3, 0, 7, 7]]]
    assert neighbours(z, active, (5,), (1,)).tolist() == [[[1, 3, 2, 5, 7, 7]]]
    assert torch.equal(neighbours(z, active, (3,), (2,)), neighbours(z, active, (5,), (1,)))
    assert torch.equal(neighbours(z, active, (2,), (1,)), torch.where(active, z, 0))
    exists = torch.tensor([[[True, False, True, True, True, True]]])
    assert neighbours(z, active, (3,), (1,), exists=exists).tolist() == [[[1, 3, 0, 0, 7, 7]]]


def test_values_of_inactive_cells_are_not_read() -> None:
    z = torch.rand(2, 3, 6, 6)
    active = torch.rand(2, 1, 6, 6) > 0.5
    poisoned = torch.where(active, z, torch.nan)
    assert torch.equal(neighbours(poisoned, active, (3, 3), (1, 1)),
                       neighbours(z, active, (3, 3), (1, 1)))  # fmt: skip


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_strides_stay(order: torch.memory_format) -> None:
    z = torch.rand(2, 3, 6, 6).contiguous(memory_format=order)
    active = torch.rand(2, 1, 6, 6) > 0.5
    assert neighbours(z, active, (3, 3), (1, 1)).stride() == z.stride()


@pytest.mark.parametrize(
    ("model", "fills"),
    [
        (nn.Sequential(_mean(1), nn.ReLU()), 0),
        (nn.Sequential(nn.AvgPool2d(2), nn.MaxPool2d(2)), 0),
        (nn.Sequential(nn.ConvTranspose2d(1, 1, 3)), 0),
        (nn.Sequential(_mean(3), nn.ReLU(), _mean(3, stride=2, padding=1)), 2),
    ],
)
def test_only_convolutions_over_several_cells_read_neighbours(model: nn.Module, fills: int) -> None:
    x = torch.zeros(1, 1, 8, 8)
    masked = convad_fx.convert(model.eval(), x, policy=NEIGHBOUR)
    assert masked.code.count("= neighbours(") == fills
    assert "neighbours(" not in convad_fx.convert(model, x).code
    assert copy.deepcopy(masked).code == masked.code


def test_what_must_be_gated_for_others_still_is() -> None:
    """One tensor, read by a convolution and by a mean."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = _mean(3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).mean((2, 3)) + x.mean((2, 3))

    x = torch.full((1, 1, 4, 4), 6.0)
    mask = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    mask[..., :2] = True
    model = Both().eval()
    got = _answer(model, x, mask, NEIGHBOUR)
    assert torch.allclose(got, reference(model, x, mask, NEIGHBOUR))
    # half of the mean of x, and of the convolution: rows at the border see two rows, columns all
    conv = 6 * torch.tensor([2, 3, 3, 2])[:, None] * torch.tensor([2, 3])[None] / 9
    assert got.item() == pytest.approx(3 + conv.sum().item() / 16)


def test_layer_masking_is_a_policy() -> None:
    assert Policy.layer_masking() == Policy(pool="renormalize", fill="neighbour")
    with pytest.raises(PolicyError, match="fill must be one of zero, neighbour, not 'mean'"):
        Policy(fill="mean")


@settings(max_examples=40)
@given(networks(), seeds, policies(fill="neighbour"))
def test_random_networks_equal_the_reference(spec: Network, seed: int, policy: object) -> None:
    model, x = build(spec, seed).double(), images(spec, seed, 1).double()
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(3, 1, *spec.grid, generator=generator) < 0.5
    chosen = Policy(**vars(policy))
    # Networks that differ from the reference without any filling are test_properties' business.
    plain = dataclasses.replace(chosen, fill="zero")
    with torch.no_grad():
        unfilled = convert(model, x, policy=plain)(x, mask)
        assume(torch.allclose(unfilled, reference(model, x, mask, plain), rtol=1e-9, atol=1e-9))
    for simplify in (False, True):
        masked = convert(model, x, policy=chosen, simplify=simplify)
        with torch.no_grad():
            expected = reference(model, x, mask, chosen)
            torch.testing.assert_close(masked(x, mask), expected, rtol=1e-9, atol=1e-9)
