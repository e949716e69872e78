"""Tensor functions that emitted code calls. Activities are bool; True = active.

They are named for how the emitted code reads: ``gate(relu, window_activity(mask, ...))``.
"""

from collections.abc import Callable
from typing import Any

from convad_fx.compiler.kernels.box import (
    cut_activity_box,
    cut_box,
    fit_to_box,
    mean_over_grid,
    paste_box,
    shape_only,
    trim,
)
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
from convad_fx.compiler.kernels.patch import (
    cut_activity_patch,
    cut_patch,
    paste_patch,
    widen_patch,
)
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

#: Every function that emitted code, and a graph in a file, may call.
EMITTED_FUNCTIONS: tuple[Callable[..., Any], ...] = (
    adaptive_activity,
    adaptive_renormalise,
    anywhere,
    checked_mask,
    concatenated,
    cut_activity_box,
    cut_activity_patch,
    cut_box,
    cut_patch,
    fit_to_box,
    gate,
    index_activity,
    intersection,
    materialised,
    mean_over_grid,
    mean_renormalise,
    neighbours,
    pad_activity,
    paste_box,
    paste_patch,
    per_mask,
    rearrange,
    reshaped,
    resize_activity,
    same_padded,
    shape_only,
    share_activity,
    spread_as,
    sum_activity,
    transposed_activity,
    trim,
    union,
    upsampled,
    widen_patch,
    window_activity,
    window_renormalise,
)
