"""Memory of the image's device: how much is free, and what to do when it runs out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")


def free_bytes(device: torch.device) -> int:
    """Free memory of the device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch could not allocate memory.

    >>> try:
    ...     torch.empty(1 << 60)
    ... except RuntimeError as error:  # the CPU allocator raises no class of its own
    ...     is_out_of_memory(error)
    True
    """
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or "can't allocate memory" in str(error)


def unless_out_of_memory(
    function: Callable[[], Result], device: torch.device, *, smallest: bool = False
) -> Result | None:
    """The function's result, or None if memory ran out; then unused memory is released.

    Args:
        smallest: the work cannot be divided further, so running out of memory is an error.
    """
    try:
        return function()
    except (RuntimeError, MemoryError) as error:
        if smallest or not is_out_of_memory(error):
            raise
    # only here: until the exception is gone, its traceback holds the tensors that did fit
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return None
