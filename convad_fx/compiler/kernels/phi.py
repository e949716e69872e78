"""Phi, the share of the elements read that are active, from counts of active and existing ones."""

from __future__ import annotations

import torch
from torch import Tensor


def exceeds_tau(active: Tensor, existing: Tensor | int | None, tau: float, whole: bool) -> Tensor:
    """Where Phi > tau, from counts.

    Args:
        existing: an int if it is the same everywhere; None if ``active`` is already the result.
        whole: require all existing elements to be active instead.
    """
    if existing is None:
        return active
    if whole:
        return active == existing
    # num > tau * den in double: exact for every tau that is a binary fraction
    share = (
        active > existing * tau if isinstance(existing, int) else active > existing.double() * tau
    )
    return share if isinstance(existing, int) else share | (existing == 0)


def full_to_active(active: Tensor, existing: Tensor | int | None, z: Tensor) -> Tensor:
    """The factor from a mean over all elements to the mean over active ones; 1 if none is."""
    assert existing is not None
    full = existing if isinstance(existing, Tensor) else torch.full_like(active, existing)
    exact = torch.float64 if z.dtype == torch.float64 else torch.float32
    ratio = full.to(exact) / active.clamp(min=1).to(exact)
    return torch.where(active > 0, ratio, 1.0).to(z.dtype)
