"""`check` raises nothing but `ConvadError`, whatever operations a network has.

Planner bugs propagate instead of being taken for "no plan", so any other exception is one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import convad_fx
from convad_fx.errors import ConvadError
from tests.strategies import Network, build, images, networks, policies, seeds

#: Operations on a tensor of any rank, of which many do not run on some ranks and sizes.
ODD: dict[str, Callable[[Tensor], Any]] = {
    "addcmul-three": lambda x: torch.addcmul(x, x.relu(), x.sigmoid()),
    "addcmul-one": lambda x: torch.addcmul(torch.ones(1), x, torch.ones(1)),
    "addcdiv": lambda x: torch.addcdiv(x, x, x.exp(), value=2),
    "where-three": lambda x: torch.where(x > 0, x, -x),
    "where-two": lambda x: torch.where(x > 0, x, torch.zeros(())),
    "lerp-three": lambda x: torch.lerp(x, x.relu(), x.sigmoid()),
    "lerp-two": lambda x: torch.lerp(x, x.relu(), 0.5),
    "masked-fill": lambda x: x.masked_fill(x < 0, 0.0),
    "lower-rank": lambda x: x + x[0],
    "first-image": lambda x: x - x[:1],
    "per-channel": lambda x: x * x.mean(tuple(range(2, x.dim())))[:1],
    "means": lambda x: torch.maximum(x, x.mean(-1, keepdim=True)),
    "two-means": lambda x: x.mean(-1, keepdim=True) + x.mean(-2, keepdim=True),
    "max-of-two": lambda x: torch.max(x, x.relu()),
    "max-values": lambda x: x.max(1, keepdim=True).values,
    "max-indices": lambda x: x.max(-1)[1].float(),
    "max-both": lambda x: x.max(1),
    "max-of-all": lambda x: x.max(),
    "min-axis": lambda x: torch.min(x, -1, keepdim=True)[0],
    "aminmax": lambda x: torch.aminmax(x, dim=1),
    "var-mean": lambda x: torch.var_mean(x, 1, keepdim=True)[0],
    "chunk-tuple": lambda x: torch.cat(x.chunk(2, 1), 1),
    "chunk-reversed": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "chunk-one": lambda x: x.chunk(2, -1)[0],
    "chunk-batch": lambda x: torch.cat(x.chunk(2, 0), 1),
    "split-sizes": lambda x: sum(x.split(1, 1)),
    "tensor-split": lambda x: x.tensor_split(3, -1)[1],
    "unbind": lambda x: torch.stack(x.unbind(1), -1),
    "unbind-batch": lambda x: torch.stack(x.unbind(0)),
    "stack": lambda x: torch.stack((x, x.relu()), 1),
    "stack-first": lambda x: torch.stack((x, x)),
    "cat-one": lambda x: torch.cat([x]),
    "cat-constant": lambda x: torch.cat([x, torch.ones_like(x)], -1),
    "cat-batch": lambda x: torch.cat([x, x]),
    "integer": lambda x: x[:, 0],
    "image": lambda x: x[0],
    "new-axes": lambda x: x[:, None, ..., None],
    "list": lambda x: x[:, [1, 0]],
    "lists": lambda x: x[:, [0, 1], [1, 0]],
    "bools": lambda x: x[x > 0],
    "strided": lambda x: x[..., ::2],
    "backwards": lambda x: x.flip(-1, 1),
    "unsqueeze-first": lambda x: x.unsqueeze(0),
    "squeeze": lambda x: x.squeeze(),
    "flatten": lambda x: x.flatten(),
    "flatten-last": lambda x: x.flatten(1, -2),
    "reshape": lambda x: x.reshape(x.shape[0], -1, 2),
    "reshape-first": lambda x: x.reshape(-1, *x.shape[2:]),
    "view-numbers": lambda x: x.view(-1, 4, 2),
    "unflatten": lambda x: x.unflatten(1, (2, -1)),
    "transpose": lambda x: x.transpose(0, 1),
    "last-axes": lambda x: x.mT,
    "movedim": lambda x: x.movedim(1, -1),
    "expand": lambda x: x.mean(-1, keepdim=True).expand_as(x),
    "expand-first": lambda x: x.expand(2, *x.shape),
    "repeat": lambda x: x.repeat(*(1,) * (x.dim() - 1), 2),
    "repeat-interleave": lambda x: x.repeat_interleave(2, -1),
    "roll": lambda x: x.roll(1, -1),
    "pad": lambda x: F.pad(x, (1, -1)),
    "pad-channels": lambda x: F.pad(x, (0, 0) * (x.dim() - 2) + (1, 1)),
    "pad-batch": lambda x: F.pad(x, (0, 0) * (x.dim() - 1) + (1, 0)),
    "pad-value": lambda x: F.pad(x, (1, 1), value=-1.0),
    "shuffle": lambda x: F.pixel_shuffle(x, 2),
    "shuffle-image": lambda x: F.pixel_shuffle(x[0], 2),
    "unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "channel-shuffle": lambda x: torch.channel_shuffle(x, 2),
    "pool-image": lambda x: F.max_pool2d(x[0], 2),
    "pool-wide": lambda x: F.avg_pool2d(x, 7, 1, 3),
    "pool-indices": lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    "pool-line": lambda x: F.avg_pool1d(x.flatten(2), 3, ceil_mode=True),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, (None, 3)),
    "adaptive-indices": lambda x: F.adaptive_max_pool2d(x, 2, return_indices=True)[0],
    "lp-pool": lambda x: F.lp_pool2d(x, 2, 2),
    "interpolate": lambda x: F.interpolate(x, scale_factor=1.5),
    "interpolate-size": lambda x: F.interpolate(x, size=5),
    "bicubic": lambda x: F.interpolate(x, scale_factor=2, mode="bicubic", antialias=True),
    "einsum": lambda x: torch.einsum("nc...,nc...->n...", x, x),
    "einsum-one": lambda x: torch.einsum("nchw->nhwc", x),
    "matmul": lambda x: x @ x.transpose(-1, -2),
    "matmul-constant": lambda x: x @ torch.ones(x.shape[-1], 3),
    "linear": lambda x: F.linear(x, torch.ones(3, x.shape[-1])),
    "conv-line": lambda x: F.conv1d(x.flatten(2), torch.ones(2, x.shape[1], 3)),
    "conv-image": lambda x: F.conv2d(x[0], torch.ones(2, x.shape[1], 3, 3)),
    "conv-itself": lambda x: F.conv2d(x, x[:, :, :1, :1]),
    "glu": lambda x: F.glu(x, 1),
    "softmax": lambda x: x.softmax(-1),
    "softmax-none": lambda x: F.softmax(x),
    "layer-norm": lambda x: F.layer_norm(x, x.shape[1:]),
    "group-norm": lambda x: F.group_norm(x, 1),
    "instance-norm": lambda x: F.instance_norm(x),
    "batch-norm": lambda x: F.batch_norm(x, None, None, training=True),
    "normalize": lambda x: F.normalize(x, dim=(1, 2)),
    "norm": lambda x: x.norm(dim=1),
    "norm-all": lambda x: torch.linalg.norm(x),
    "logsumexp": lambda x: x.logsumexp((-1, -2)),
    "sum-all": lambda x: x.sum(),
    "sum-batch": lambda x: x.sum(0, keepdim=True),
    "axis-of-a-number": lambda x: x.sum().flatten().sum(-1).flatten(),
    "sum-of-a-number": lambda x: x.max().sum(-1),
    "cumsum": lambda x: x.cumsum(-1),
    "sort": lambda x: x.sort(-1).values,
    "topk": lambda x: x.topk(1, 1)[0],
    "unfold": lambda x: F.unfold(x, 2),
    "fft": lambda x: torch.fft.fft(x).real,
    "zeros-like": lambda x: torch.zeros_like(x) + 1,
    "new-zeros": lambda x: torch.cat([x, x.new_zeros(x.shape)], 1),
    "double": lambda x: x.double() + 1,
    "size": lambda x: x * x.shape[-1],
    "in-place": lambda x: x.add_(1).mul_(x),
    "in-place-part": lambda x: x[:, :1].relu_() + x,
    "noise": lambda x: x + torch.rand_like(x),
    "branch": lambda x: x if x.sum() > 0 else -x,
    "item": lambda x: x * x.mean().item(),
    "none": lambda x: None,
    "number": lambda x: 3.0,
    "pair": lambda x: (x, x.mean(-1)),
    "named": lambda x: {"a": x, "b": [x]},
}  # fmt: skip


class Odd(nn.Module):
    """A network's features, then odd operations."""

    def __init__(self, features: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.features, self.names = features, names

    def forward(self, x: Tensor) -> Any:
        x = self.features(x)
        for name in self.names:
            x = ODD[name](x)
        return x


def assert_checked(model: nn.Module, x: Tensor, **options: Any) -> None:
    """A report, or an error that says what is wrong."""
    try:
        report = convad_fx.check(model, x, **options)
    except ConvadError:
        return
    assert str(report)
    assert report.ok == (not report.findings)


@given(networks(), seeds, policies())
def test_networks_are_checked(spec: Network, seed: int, policy: Any) -> None:
    policy = convad_fx.Policy(**vars(policy))
    assert_checked(build(spec, seed), images(spec, seed), policy=policy)


@settings(max_examples=4 * settings().max_examples)  # most chains do not run, and fail at once
@given(
    networks(max_blocks=2),
    seeds,
    st.lists(st.sampled_from(sorted(ODD)), min_size=1, max_size=3),
    policies(),
)
def test_odd_operations_after_a_network_are_checked(
    spec: Network, seed: int, names: list[str], policy: Any
) -> None:
    model = Odd(build(spec, seed).features, names).eval()
    policy = convad_fx.Policy(**vars(policy))
    assert_checked(model, images(spec, seed), policy=policy, front_end="symbolic")


@pytest.mark.parametrize("shape", [(4, 6), (4, 8, 6), (4, 6, 4, 4)], ids=["1d", "2d", "3d"])
@pytest.mark.parametrize("name", ODD)
def test_an_odd_operation_is_checked(name: str, shape: tuple[int, ...]) -> None:
    features = getattr(nn, f"Conv{len(shape) - 1}d")(4, 4, 3, padding=1)
    x = torch.zeros(1, *shape)
    assert_checked(Odd(features, [name]).eval(), x, front_end="symbolic")


def test_a_pixel_shuffle_of_rank_five_is_a_finding() -> None:
    class Shuffled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.pixel_shuffle(x.unsqueeze(1), 2)

    report = convad_fx.check(Shuffled().eval(), torch.zeros(1, 8, 4, 6))
    (finding,) = report.findings
    assert "without a batch, or more axes" in finding.why
