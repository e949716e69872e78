"""Settings of the libraries below torch that speed up repeated calls of a network on a CPU."""

from __future__ import annotations

import ctypes
import os

#: Option number in malloc.h, its environment variable, and the values to try in order.
_MALLOC_OPTIONS = (
    (-3, "MALLOC_MMAP_THRESHOLD_", (1 << 30, 1 << 25)),  # older glibc takes 32 MiB at most
    (-1, "MALLOC_TRIM_THRESHOLD_", ((1 << 31) - 1,)),
    (-2, "MALLOC_TOP_PAD_", (1 << 28,)),
)
#: Kernels that oneDNN caches: one per convolution, batch size and box size.
_ONEDNN_CACHE = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")


def keep_memory() -> bool:
    """Let glibc keep freed memory for the next call instead of returning it to the system.

    >>> import convad_fx
    >>> kept = convad_fx.keep_memory()         # once, at the start of a program

    By default glibc maps and unmaps every large tensor anew, and on a CPU that can cost more than
    the network (docs/performance.md has figures). The process may keep up to 2 GB that it does not
    need. The command line calls this function; other programs have to call it themselves.

    It also sets ``ONEDNN_PRIMITIVE_CACHE_CAPACITY``, unless it is set, to 8192 instead of 1024
    kernels, which takes memory: kernels are made for each size of box and batch (``python -m
    benchmarks.calls`` measures their cost). oneDNN reads it once, at the first convolution.

    Returns:
        Whether glibc accepted the settings. False with another C library, or if the environment has
        settings already (``MALLOC_MMAP_THRESHOLD_``, ``MALLOC_TRIM_THRESHOLD_``,
        ``MALLOC_TOP_PAD_``, ``GLIBC_TUNABLES``), which are respected.
    """
    os.environ.setdefault(*_ONEDNN_CACHE)
    variables = {name for _, name, _ in _MALLOC_OPTIONS} | {"GLIBC_TUNABLES"}
    if not variables.isdisjoint(os.environ) or not _is_glibc():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(
        any(mallopt(option, value) for value in values) for option, _, values in _MALLOC_OPTIONS
    )


def _is_glibc() -> bool:
    try:
        return "glibc" in (os.confstr("CS_GNU_LIBC_VERSION") or "")
    except (AttributeError, ValueError, OSError):  # another library, or another system
        return False
