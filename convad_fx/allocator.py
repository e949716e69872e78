"""What libraries below torch keep from one call of a network to the next, on a CPU."""

from __future__ import annotations

import ctypes
import os

#: As in malloc.h: which option, what the environment calls it, and the values to try.
_OPTIONS = (
    (-3, "MALLOC_MMAP_THRESHOLD_", (1 << 30, 1 << 25)),  # older glibc takes 32 MiB at most
    (-1, "MALLOC_TRIM_THRESHOLD_", ((1 << 31) - 1,)),
    (-2, "MALLOC_TOP_PAD_", (1 << 28,)),
)
#: How many kernels oneDNN keeps; each is for one size of box and batch of one convolution.
_KERNELS = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")


def keep_memory() -> bool:
    """Tell glibc to keep freed memory for the next call, instead of returning it to the system.

    >>> import convad_fx
    >>> kept = convad_fx.keep_memory()         # once, at the start of a program

    By default every large tensor is mapped and unmapped anew, and on a CPU the system's work on
    that can cost more than the network (docs/performance.md has figures). The price is that the
    process keeps up to 2 GB that it does not need. The command line does this by itself; a program
    of one's own has to ask.

    oneDNN is told as well, by ``ONEDNN_PRIMITIVE_CACHE_CAPACITY`` unless that is set, to keep 8192
    kernels instead of 1024, which takes memory: boxes and batches come in many sizes, and kernels
    are made for each (what that costs: ``python -m benchmarks.calls``). It looks there only once,
    at the first convolution.

    Returns:
        Whether glibc was told. Not where the C library is another one, nor where the environment
        has settings for it already (``MALLOC_MMAP_THRESHOLD_``, ``MALLOC_TRIM_THRESHOLD_``,
        ``MALLOC_TOP_PAD_``, ``GLIBC_TUNABLES``): whoever gave them has chosen.
    """
    os.environ.setdefault(*_KERNELS)
    chosen = {name for _, name, _ in _OPTIONS} | {"GLIBC_TUNABLES"}
    if not chosen.isdisjoint(os.environ) or not _is_glibc():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(any(mallopt(option, value) for value in tried) for option, _, tried in _OPTIONS)


def _is_glibc() -> bool:
    try:
        return "glibc" in (os.confstr("CS_GNU_LIBC_VERSION") or "")
    except (AttributeError, ValueError, OSError):  # another library, or another system
        return False
