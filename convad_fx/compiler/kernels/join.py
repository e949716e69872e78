"""Activity of sums and products of two grids."""

from __future__ import annotations

import torch
from torch import Tensor

from convad_fx.compiler.kernels.phi import exceeds_tau


def sum_activity(
    a: Tensor,
    b: Tensor,
    tau: float = 0.0,
    a_exists: Tensor | None = None,
    b_exists: Tensor | None = None,
) -> Tensor:
    """Activity of a sum (or maximum) of two grids: where Phi of the pair exceeds tau."""
    if a_exists is None and b_exists is None:
        # if one of two is active, the share is 1/2
        return a | b if tau < 0.5 else a & b
    a_exists = torch.ones_like(a[:1]) if a_exists is None else a_exists
    b_exists = torch.ones_like(b[:1]) if b_exists is None else b_exists
    active = (a & a_exists).to(torch.int32) + (b & b_exists).to(torch.int32)
    existing = a_exists.to(torch.int32) + b_exists.to(torch.int32)
    return exceeds_tau(active, existing, tau, whole=False)


def intersection(a: Tensor, b: Tensor) -> Tensor:
    """Activity of a product."""
    return a & b


def union(a: Tensor, b: Tensor) -> Tensor:
    """Where an element of a joined pair exists."""
    return a | b
