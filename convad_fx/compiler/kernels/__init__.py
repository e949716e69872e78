"""Tensor functions that emitted code calls."""

from collections.abc import Callable
from typing import Any

from convad_fx.compiler.kernels import activity, box, patch

#: Every function that emitted code may call: the public functions of the modules in this folder.
EMITTED_FUNCTIONS: tuple[Callable[..., Any], ...] = tuple(
    function
    for module in (activity, box, patch)
    for name, function in vars(module).items()
    if getattr(function, "__module__", "") == module.__name__ and not name.startswith("_")
)
