"""Versions of packages, as written into explanations and files."""

from __future__ import annotations

from importlib import metadata

import torch


def versions() -> dict[str, str]:
    """Versions of this package and of torch.

    >>> sorted(versions())
    ['convad_fx', 'torch']
    """
    try:
        own = metadata.version("convad_fx")
    except metadata.PackageNotFoundError:  # run from a source tree that is not installed
        own = "unknown"
    return {"convad_fx": own, "torch": str(torch.__version__)}


def versions_of_pixels() -> dict[str, str]:
    """Versions of the packages that decode and resize pictures.

    >>> sorted(versions_of_pixels())
    ['pillow', 'torchvision']
    """
    return {name: metadata.version(name) for name in ("pillow", "torchvision")}
