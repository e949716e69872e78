"""Activity after adaptive pooling and interpolation: operations that give a grid another size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from convad_fx.compiler.kernels.phi import exceeds_tau, full_to_active


def adaptive_activity(
    activity: Tensor,
    like: Tensor,
    axes: tuple[int, ...],
    tau: float = 0.0,
    *,
    whole: bool = False,
    exists: Tensor | None = None,
) -> Tensor:
    """Activity after adaptive pooling to the grid of ``like``, along ``axes``."""
    active, existing = _adaptive_counts(activity, like, axes, exists)
    return exceeds_tau(active, existing, tau, whole)


def adaptive_renormalise(
    z: Tensor, activity: Tensor, axes: tuple[int, ...], *, exists: Tensor | None = None
) -> Tensor:
    """Correct ``z``, an adaptive average pooling, so that it is divided by the active count."""
    active, existing = _adaptive_counts(activity, z, axes, exists)
    return z * full_to_active(active, existing, z)


def _adaptive_counts(
    activity: Tensor, like: Tensor, axes: tuple[int, ...], exists: Tensor | None
) -> tuple[Tensor, Tensor]:
    present = torch.ones_like(activity[:1]) if exists is None else exists
    active = activity & present
    sizes = [like.shape[axis] for axis in axes]
    return _adaptive_sum(active, axes, sizes), _adaptive_sum(present, axes, sizes)


def _adaptive_sum(activity: Tensor, axes: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """Sums over torch's adaptive windows [floor(i n / m), ceil((i + 1) n / m)), by prefix sums."""
    total = activity.to(torch.int32)
    for axis, m in zip(axes, sizes, strict=True):
        n = total.shape[axis]
        running = F.pad(total.movedim(axis, -1).cumsum(-1, dtype=torch.int32), (1, 0))
        cells = torch.arange(m, device=total.device)
        starts, stops = (cells * n) // m, ((cells + 1) * n + m - 1) // m
        total = (running[..., stops] - running[..., starts]).movedim(-1, axis)
    return total


def resize_activity(
    activity: Tensor,
    like: Tensor,
    source: Tensor,
    mode: str,
    axes: tuple[int, ...],
    tau: float = 0.0,
    *,
    align_corners: bool | None = None,
    scale_factor: tuple[float | None, ...] | None = None,
    antialias: bool = False,
    whole: bool = False,
    exists: Tensor | None = None,
) -> Tensor:
    """Activity after interpolating ``source`` to the grid of ``like``, along ``axes``.

    An element is read if its weight is not zero. The weights are torch's own: along each axis, an
    identity matrix is interpolated.
    """
    present = torch.ones_like(activity[:1, :1]) if exists is None else exists
    active, existing = (activity & present).double(), present.double()
    for axis in axes:
        n, m = source.shape[axis], like.shape[axis]
        factor = None if scale_factor is None else scale_factor[axis - 2]
        reads = _interpolation_reads(n, m, mode, factor, align_corners, antialias, activity.device)
        active = (active.movedim(axis, -1) @ reads.mT).movedim(-1, axis)
        existing = (existing.movedim(axis, -1) @ reads.mT).movedim(-1, axis)
    return exceeds_tau(active, existing, tau, whole)


def _interpolation_reads(
    n: int,
    m: int,
    mode: str,
    factor: float | None,
    align_corners: bool | None,
    antialias: bool,
    device: torch.device,
) -> Tensor:
    """(m, n) of 0 and 1: which of n elements each of m interpolated elements reads."""
    cells = torch.eye(n, dtype=torch.float64, device=device)
    separable = {"trilinear": "linear", "bilinear": "linear"}.get(mode, mode)
    size: int | tuple[int, int] | None = m if factor is None else None
    scale: float | tuple[float, float] | None = factor
    if separable in ("bicubic", "lanczos") or antialias:
        # These exist in two dimensions only. The second axis has two elements, not one: for images
        # of width 1 torch wrongly antialiases another axis.
        cells = torch.stack([cells, cells], -1)
        separable = "bilinear" if separable == "linear" else separable
        size = (m, 2) if factor is None else None
        scale = None if factor is None else (factor, 1.0)
    weights = F.interpolate(
        cells[:, None],
        size=size,
        scale_factor=scale,
        mode=separable,
        align_corners=align_corners,
        antialias=antialias,
    )
    return (weights.reshape(n, m, -1)[..., 0] != 0).double().mT
