"""Tensor functions that emitted code calls. Activities are bool; True = active.

They are named for how the emitted code reads: ``gate(relu, window_activity(mask, ...))``. The files
have the names of the rules' files in `compiler.analysis.rules`.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

from convad_fx.compiler.kernels import box, patch
from convad_fx.compiler.kernels.gating import gate, materialised, per_mask
from convad_fx.compiler.kernels.join import intersection, sum_activity, union
from convad_fx.compiler.kernels.layout import (
    concatenated,
    index_activity,
    pad_activity,
    rearrange,
    reshaped,
    spread_as,
    upsampled,
)
from convad_fx.compiler.kernels.mask_check import checked_mask
from convad_fx.compiler.kernels.padding import same_padded
from convad_fx.compiler.kernels.reduction import anywhere, mean_renormalise, share_activity
from convad_fx.compiler.kernels.resize import (
    adaptive_activity,
    adaptive_renormalise,
    resize_activity,
)
from convad_fx.compiler.kernels.window import (
    neighbours,
    transposed_activity,
    window_activity,
    window_renormalise,
)

__all__ = [
    "EMITTED_FUNCTIONS",
    "adaptive_activity",
    "adaptive_renormalise",
    "anywhere",
    "checked_mask",
    "concatenated",
    "gate",
    "index_activity",
    "intersection",
    "materialised",
    "mean_renormalise",
    "neighbours",
    "pad_activity",
    "per_mask",
    "rearrange",
    "reshaped",
    "resize_activity",
    "same_padded",
    "share_activity",
    "spread_as",
    "sum_activity",
    "transposed_activity",
    "union",
    "upsampled",
    "window_activity",
    "window_renormalise",
]


def _functions(module: ModuleType) -> list[Callable[..., Any]]:
    return [
        function
        for name, function in vars(module).items()
        if getattr(function, "__module__", "") == module.__name__ and not name.startswith("_")
    ]


#: Every function that emitted code may call.
EMITTED_FUNCTIONS: tuple[Callable[..., Any], ...] = (
    *(globals()[name] for name in __all__ if name != "EMITTED_FUNCTIONS"),
    *_functions(box),
    *_functions(patch),
)
