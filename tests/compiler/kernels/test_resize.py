"""Adaptive pooling and interpolation read what torch reads."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from convad_fx.compiler.kernels.resize import adaptive_activity, resize_activity


@pytest.mark.parametrize(("n", "m"), [(7, 3), (5, 5), (3, 7), (8, 1)])
def test_adaptive_windows_are_torch_s_own(n: int, m: int) -> None:
    for place in range(n):
        z = torch.zeros(1, 1, n)
        z[..., place] = 1
        out = F.adaptive_avg_pool1d(z, m)
        assert torch.equal(adaptive_activity(z > 0, out, (2,)), out > 0)


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "bilinear", "bicubic", "area"])
@pytest.mark.parametrize("size", [(3, 9), (10, 4)])
def test_interpolation_reads_what_has_weight(mode: str, size: tuple[int, int]) -> None:
    align = {"align_corners": False} if mode in ("bilinear", "bicubic") else {}
    for place in range(0, 36, 5):
        z = torch.zeros(1, 1, 6, 6, dtype=torch.float64)
        z.view(-1)[place] = 1
        out = F.interpolate(z, size=size, mode=mode, **align)
        found = resize_activity(z > 0, out, z, mode, (2, 3), **align)
        assert torch.equal(found, out != 0)
