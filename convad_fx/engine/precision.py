"""Lower precision: which autocast types there are, and how far they are from float32."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from convad_fx.errors import PolicyError

PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(slots=True)
class PrecisionCheck:
    """Which calculations in lower precision were compared with float32, and the result.

    Pass one object to all calls of `MaskedModule.evaluate` that belong together, and each size of
    box is compared once, not once per call.

    >>> import convad_fx
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten()).eval()
    >>> x, masks = torch.rand(1, 3, 8, 8), torch.rand(6, 1, 8, 8) < 0.5
    >>> masked, check = convad_fx.convert(model, x), PrecisionCheck()
    >>> for some in masks.split(2):
    ...     _ = masked.evaluate(x, some, precision="bfloat16", precision_check=check)
    >>> 0 < check.deviation < 0.1
    True

    Attributes:
        compared: strategy and size, in tiles, of what was compared.
        deviation: largest absolute difference of a logit from float32; None before the first
            comparison.
    """

    compared: set[tuple[Any, ...]] = field(default_factory=set)
    deviation: float | None = None


def check_precision(precision: str | None, dtype: torch.dtype = torch.float32) -> None:
    """Check that autocast can lower an image of this type to the named precision.

    Raises:
        PolicyError: an unknown precision, or a type other than float32.
    """
    if precision is None:
        return
    if precision not in tuple(PRECISIONS):  # a tuple: the value need not be hashable
        raise PolicyError(
            f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}",
            hint="pass its name as text, or leave it out for the network's own",
        )
    if dtype != torch.float32:
        raise PolicyError(
            f"precision lowers float32 to {precision}, and this image is {dtype}",
            hint="leave it out, or convert the network and the image by .float()",
        )
