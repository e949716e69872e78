"""Choose a device that works.

>>> choose("cpu")
device(type='cpu')
"""

import warnings

import torch

from convad_fx.errors import Unavailable, first_line


def choose(name: str = "auto") -> torch.device:
    """The device called `name`, tested with a small convolution.

    >>> choose("auto")  # doctest: +SKIP
    device(type='cuda')

    `"auto"` is CUDA if it works, else the CPU. torch also reports a GPU as available if it has no
    kernels for it or another process has filled its memory, hence the test.

    Raises:
        Unavailable: the device was given by name and does not work.
    """
    if name == "auto":
        # `is_available` is cheap, and False without a GPU.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            available = torch.cuda.is_available()
        return torch.device(
            "cuda" if available and _failure(torch.device("cuda")) is None else "cpu"
        )
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
    """The reason why a convolution fails on `device`; None if it works."""
    try:
        # The warning about a GPU that torch was not built for comes before its error.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            x = torch.ones(1, 1, 4, 4, device=device)
            total = float(torch.nn.functional.conv2d(x, torch.ones_like(x)).cpu().sum())
    # Depending on backend and version: RuntimeError, AssertionError ("not compiled with CUDA"),
    # NotImplementedError or ImportError.
    except Exception as error:  # noqa: BLE001
        return first_line(error)
    return None if total == 16.0 else f"a sum of 16 ones came out as {total}"
