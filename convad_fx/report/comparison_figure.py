"""The comparison of several maskers on one picture, as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from convad_fx.errors import PolicyError
from convad_fx.metrics import Normalisation
from convad_fx.report.comparison import MaskerResult
from convad_fx.report.explanation_figure import (
    Pixels,
    displayable,
    draw_kept,
    draw_map,
    printable,
    write_png,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SQUARE = 8  # of the chequered pattern for switched-off pixels, in pixels
_COLUMNS = (
    "how pixels are hidden",
    "responsibility",
    "sufficient part",
    "what the network is shown",
)


def draw_comparison(
    results: Sequence[MaskerResult],
    image: NDArray[Any],
    normalisation: Normalisation = Normalisation(),  # noqa: B008 (frozen)
    title: str = "",
) -> Figure:
    """One page with a row per masker: its numbers, responsibilities and explanation.

    The last panel of a row is the network's input for the explanation: painted where the masker
    paints, a chequered pattern where it switches off.

    >>> import torch
    >>> from convad_fx.explain import occlusion
    >>> from convad_fx.report import compare
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64, 2)).eval()
    >>> image = torch.rand(3, 8, 8)
    >>> results = compare({"black": occlusion(model, "black")}, model, image, n=10)
    >>> len(draw_comparison(results, image.permute(1, 2, 0).numpy()).axes)
    8

    Args:
        results: of one image; the first is highlighted.
        image: before normalisation, as in `draw`.
        normalisation: mean and deviation of the preprocessing.
        title: of the page, for example the picture's name.

    Raises:
        ImageError: the image does not fit the explanations, or is not an image.
        PolicyError: there are no results.
    """
    if not results:
        raise PolicyError("there is nothing to compare", hint="pass one result or more")
    first = results[0].explanation
    pixels = displayable(image, first.mask.shape)
    height, width = first.mask.shape
    row_height = min(4.0, max(1.2, 2.1 * height / width))
    figure = Figure(figsize=(9.6, 0.5 + row_height * (len(results) + 1)))
    figure.set_layout_engine("constrained", w_pad=0.05, h_pad=0.05)
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(results) + 1, 4, squeeze=False, width_ratios=(1.25, 1, 1, 1))
    for panel in grid.flat:
        panel.set_axis_off()
    grid[0][0].imshow(pixels)
    _draw_heading(grid[0][1], results[0], title)
    for axes, result in zip(grid[1:], results, strict=True):
        _draw_numbers(axes[0], result, "#c2185b" if result is results[0] else "black")
        draw_map(axes[1], result.explanation, pixels)
        draw_kept(axes[2], result.explanation, pixels)
        axes[3].imshow(_network_input(result, pixels, normalisation))
    for panel, column in zip(grid[1], _COLUMNS, strict=True):
        panel.set_title(column, fontsize=9, color="0.35")
    return figure


def save_comparison(
    results: Sequence[MaskerResult],
    image: NDArray[Any],
    path: Path | str,
    normalisation: Normalisation = Normalisation(),  # noqa: B008 (frozen)
    title: str = "",
) -> Path:
    """Write the figure of `draw_comparison` to a PNG file; equal results give equal files.

    `save_page` has an example. Other arguments as for `draw_comparison`.

    Args:
        path: of the PNG file, which is also returned.

    Raises:
        ImageError, PolicyError: as `draw_comparison`.
        OSError: the file cannot be written.
    """
    write_png(draw_comparison(results, image, normalisation, title), path, dpi=120)
    return Path(path)


def _draw_heading(axes: Axes, first: MaskerResult, title: str) -> None:
    why = first.explanation
    kinds = {"colours": "solid colours", "images": "other pictures"}
    on = " and ".join(kinds.get(kind, kind) for kind in first.rho)
    of_what, still = why.measure, "this class" if why.is_prediction else "half of it"
    lines = [
        (title, 10, "0.35"),
        (f"{why.title}{why.remark}: {why.measure} {why.confidence_whole:.3f}", 13, "black"),
        ("Each row hides pixels in another way and searches for a part that", 9, "0.2"),
        (f"keeps {why.gamma:.0%} of that {of_what}. Survives: the share of backgrounds", 9, "0.2"),
        (f"({on}) on which the original network still gives {still}.", 9, "0.2"),
        ("Larger parts survive more easily, so compare the sizes, too.", 9, "0.2"),
    ]
    for number, (text, size, colour) in enumerate(line for line in lines if line[0]):
        axes.text(
            0.0,
            0.92 - 0.13 * number - 0.03 * (number > 1),
            printable(text),
            fontsize=size,
            color=colour,
            fontweight="bold" if size > 10 else "normal",
            transform=axes.transAxes,
            va="top",
            parse_math=False,
        ).set_in_layout(False)


def _draw_numbers(axes: Axes, result: MaskerResult, colour: str) -> None:
    why = result.explanation
    names = {"colours": "survives, colours", "images": "survives, pictures"}
    bars = [("size", why.size, ".1%", "0.55")]
    bars += [(names.get(kind, kind), rho, ".0%", "#1f77b4") for kind, rho in result.rho.items()]
    axes.set(xlim=(0, 1), ylim=(0, 1))
    bold: Any = {"fontsize": 12, "fontweight": "bold", "va": "top", "parse_math": False}
    axes.text(0, 0.97, printable(result.name), color=colour, **bold)
    for number, (name, share, form, fill) in enumerate(bars):
        y = 0.62 - 0.2 * number
        axes.text(0, y + 0.09, name, fontsize=8.5, va="center", color="0.2")
        axes.text(0.97, y + 0.09, format(share, form), fontsize=9.5, va="center", ha="right")
        axes.barh(y, 0.97, height=0.06, left=0, color="0.92")
        axes.barh(y, 0.97 * share, height=0.06, left=0, color=fill)
    verdict = "" if why.sufficient else ", NOT sufficient"
    text = f"confidence {why.confidence_recheck:.3f}{verdict}; {why.evaluations:,} masks"
    axes.text(0, 0.0, text, fontsize=8.5, color="0.2")


def _network_input(result: MaskerResult, pixels: Pixels, normalisation: Normalisation) -> Pixels:
    if result.network_input is not None:
        values = normalisation.undo(result.network_input)[0].permute(1, 2, 0).numpy()
        painted: Pixels = np.clip(values, 0, 1)
        return np.broadcast_to(painted, pixels.shape)
    rows, columns = np.indices(result.explanation.mask.shape) // _SQUARE
    squares = np.where((rows + columns) % 2, 0.96, 0.84)[:, :, None]
    return np.where(result.explanation.mask[:, :, None], pixels, squares)
