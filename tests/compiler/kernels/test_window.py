"""Literal cases of the activity after windows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from convad_fx.compiler.kernels.padding import Pairs
from convad_fx.compiler.kernels.window import transposed_activity, window_activity


def row(text: str) -> Tensor:
    """ "x.x" -> (1, 1, 3) bool: a grid with one axis."""
    return torch.tensor([[[c == "x" for c in text]]])


def text(activity: Tensor) -> str:
    return "".join("x" if active else "." for active in activity.flatten().tolist())


def window(of: str, kernel: int, stride: int = 1, padding: Any = (0, 0), **options: Any) -> str:
    dilation = options.pop("dilation", 1)
    return text(window_activity(row(of), (kernel,), (stride,), (padding,), (dilation,), **options))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (window("x....", 3, padding=(1, 1)), "xx..."),
        (window("x....", 3), "x.."),
        (window("x....x", 3, stride=2), "x."),
        (window("x....x", 3, stride=2, ceil_mode=True), "x.x"),
        (window("..x..", 3, dilation=2), "x"),
        (window(".x...", 3, dilation=2), "."),
        # TensorFlow's SAME on an even size: one cell, at the end
        (window("x.....", 3, stride=2, padding=None), "x.."),
        (window(".....x", 3, stride=2, padding=None), "..x"),
        # shares: one of two is not more than a half, two of three are
        (window("xx....", 3, padding=(1, 1), tau=0.5), "xx...."),
        (window("x.....", 3, padding=(1, 1), tau=0.5), "......"),
        # whole windows only; the padding does not have to be kept
        (window("xxx..x", 3, padding=(1, 1), whole=True), "xx...."),
        # a window that reads nothing but padding is the same whatever is hidden
        (window("...", 1, padding=(1, 1)), "x...x"),
        (window("...", 1, padding=(1, 1), whole=True), "x...x"),
        # copied borders exist
        (window("x..", 3, padding=(1, 1), mode="reflect"), "xx."),
        (window("x..", 3, padding=(1, 1), mode="circular"), "xxx"),
    ],
)
def test_window(found: str, expected: str) -> None:
    assert found == expected


@pytest.mark.parametrize("tau", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_where_all_is_kept_all_is_active(tau: float, kernel: int, stride: int) -> None:
    for padding in ((0, 0), (1, 0), (2, 2), (0, 3), None):
        assert "." not in window("xxxxxxx", kernel, stride, padding, tau=tau)
        assert "." not in window("xxxxxxx", kernel, stride, padding, whole=True)


def test_channels_count_where_the_operation_combines_them() -> None:
    two = torch.cat([row("x."), row("..")], 1)
    options: dict[str, Any] = {
        "kernel": (1,),
        "stride": (1,),
        "padding": ((0, 0),),
        "dilation": (1,),
    }
    assert text(window_activity(two, **options)) == "x..."
    assert text(window_activity(two, **options, groups=1, channels=3)) == "x."
    assert text(window_activity(two, **options, groups=1, channels=3, tau=0.5)) == ".."
    four = window_activity(two, **options, groups=2, channels=4)
    assert four.shape == (1, 4, 2)
    assert text(four) == "x.x....."


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, 1])
def test_transposed_convolution_reaches_what_it_writes(stride: int, padding: int) -> None:
    for place in range(4):
        z = torch.zeros(1, 1, 4)
        z[..., place] = 1
        out = F.conv_transpose1d(z, torch.ones(1, 1, 3), stride=stride, padding=padding)
        found = transposed_activity(z > 0, (3,), (stride,), ((padding, padding),), (1,))
        assert torch.equal(found, out > 0)


@pytest.mark.parametrize("tau", [0.0, 0.5])
@pytest.mark.parametrize("kernel", [(3, 2), (3, 1)])
@pytest.mark.parametrize("padding", [((0, 0), (0, 0)), ((1, 2), (0, 1))])
def test_compiled_windows_see_what_eager_ones_do(
    padding: Pairs, kernel: tuple[int, int], tau: float
) -> None:
    activity = torch.rand(2, 1, 9, 12) < 0.3
    options: Any = {"kernel": kernel, "stride": (2, 1), "padding": padding, "dilation": (1, 2)}
    expected = window_activity(activity, **options, tau=tau)
    torch.compiler.reset()
    compiled = torch.compile(window_activity, backend="aot_eager", fullgraph=True)
    found = compiled(activity, **options, tau=tau)
    assert found.dtype == torch.bool
    assert torch.equal(found, expected)


@pytest.mark.parametrize("tau", [0.0, 0.5])
def test_what_inductor_writes_down_is_no_view(tau: float) -> None:
    options: Any = {"kernel": (1, 1), "stride": (2, 2), "padding": ((0, 0),) * 2}

    def twice(activity: Tensor) -> Tensor:
        for _ in range(2):  # windows of one cell are slices of what was written down
            activity = window_activity(activity, **options, dilation=(1, 1), tau=tau)
        return activity

    activity = torch.rand(3, 1, 12, 12) < 0.5
    torch.compiler.reset()
    assert torch.equal(torch.compile(twice, fullgraph=True)(activity), twice(activity))
