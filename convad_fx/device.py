"""Which device to run on.

>>> choose("cpu")
device(type='cpu')
"""

import warnings

import torch

from convad_fx.errors import Unavailable, first_line


def choose(name: str = "auto") -> torch.device:
    """The device called `name`, after a small convolution has really run on it.

    >>> choose("auto")  # doctest: +SKIP
    device(type='cuda')

    `"auto"` is CUDA where CUDA works and the CPU everywhere else. A card that this build of torch
    has no kernels for, or that another process has filled, still counts as available: only running
    something tells.

    Raises:
        Unavailable: the device was asked for by name and does not work.
    """
    if name == "auto":
        # `is_available` first: it is cheap, and without a card nothing more needs to be tried.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.cuda.is_available()
        return torch.device("cuda" if found and _failure(torch.device("cuda")) is None else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise Unavailable(
            f"there is no device called {name!r}", hint="use auto, cpu, cuda or cuda:0"
        ) from error
    failure = _failure(device)
    if failure is not None:
        raise Unavailable(
            f"the device {name!r} does not work here ({failure})",
            hint="pass `--device auto` to use the CPU where CUDA does not work",
        )
    return device


def _failure(device: torch.device) -> str | None:
    """Why a convolution does not run on `device`; None if it runs."""
    try:
        # A warning about a card torch was not built for would be followed by the failure itself.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            x = torch.ones(1, 1, 4, 4, device=device)
            total = float(torch.nn.functional.conv2d(x, torch.ones_like(x)).cpu().sum())
    # torch raises RuntimeError, AssertionError ("not compiled with CUDA"), NotImplementedError and
    # ImportError, by backend and version; whichever it is, the device does not work.
    except Exception as error:  # noqa: BLE001
        return first_line(error)
    return None if total == 16.0 else f"a sum of 16 ones came out as {total}"
