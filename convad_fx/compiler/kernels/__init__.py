"""Tensor functions that emitted code calls. Activities are bool; True = active.

They are named for how the emitted code reads: ``gate(relu, window_activity(mask, ...))``. The files
have the names of the rules' files in `compiler.analysis.rules`.
"""

from collections.abc import Callable
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


def _is_emitted(function: Any) -> bool:
    return getattr(function, "__module__", "").startswith(f"{__name__}.")


#: Every function that emitted code may call: those imported above, and all of `box` and `patch`.
EMITTED_FUNCTIONS: tuple[Callable[..., Any], ...] = tuple(
    dict.fromkeys(
        function
        for names in (dict(globals()), vars(box), vars(patch))
        for name, function in names.items()
        if not name.startswith("_") and _is_emitted(function)
    )
)
