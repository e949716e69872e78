"""Activity after reductions over axes."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from convad_fx.compiler.kernels.layout import rearrange
from convad_fx.compiler.kernels.phi import exceeds_tau, full_to_active


def anywhere(activity: Tensor, axes: tuple[int, ...], *, exists: Tensor | None = None) -> Tensor:
    """Active if any existing element is, along `axes`, which stay with size 1."""
    if exists is not None:
        activity = activity & exists
    return functools.reduce(lambda t, axis: t.any(axis, keepdim=True), axes, activity)


def share_activity(
    activity: Tensor, axes: tuple[int, ...], tau: float = 0.0, *, exists: Tensor | None = None
) -> Tensor:
    """Activity of a reduction over some grid axes: where Phi > tau. The axes stay with size 1."""
    active, existing = _totals(activity, axes, exists)
    return exceeds_tau(active, existing, tau, whole=False)


def mean_renormalise(
    z: Tensor,
    activity: Tensor,
    axes: tuple[int, ...],
    kept: tuple[int | None, ...],
    *,
    exists: Tensor | None = None,
) -> Tensor:
    """Correct ``z``, a mean over axes, so that it is divided by the active count.

    Args:
        kept: for each axis of ``z`` its axis in the activity, as in `rearrange`.
    """
    return z * rearrange(full_to_active(*_totals(activity, axes, exists), z), kept)


def _totals(
    activity: Tensor, axes: tuple[int, ...], exists: Tensor | None
) -> tuple[Tensor, Tensor]:
    if exists is None:  # with the batch on axis 0, the same for every sample
        exists = torch.ones_like(activity if 0 in axes else activity[:1])
    active = (activity & exists).sum(axes, keepdim=True, dtype=torch.int32)
    return active, exists.sum(axes, keepdim=True, dtype=torch.int32)
