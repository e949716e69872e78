"""An explanation as a figure: the image, the responsibility map, and the sufficient pixels."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from convad_fx.errors import ImageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from convad_fx.explain import Contrast, Explanation
    from convad_fx.explain.evaluator import Mask

Pixels = NDArray[np.float64]  # (H, W, 3) or (H, W), in [0, 1]

_COLOUR_MAP = "inferno"  # perceptually uniform, and readable in grey
_OUTLINE = "#ff2d7e"  # rare in photos, and visible on light and dark pixels
_DIMMED = 0.25  # brightness of hidden pixels


def draw(
    explanation: Explanation, image: NDArray[Any], axes: Sequence[Axes] | None = None
) -> Figure:
    """Image, responsibility map and explanation side by side, and the contrast if there is one.

    >>> import torch
    >>> from convad_fx.explain import explain, occlusion
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2)).eval()
    >>> x = torch.rand(1, 8, 8)
    >>> figure = draw(explain(occlusion(model), x), x[0].numpy())
    >>> len(figure.axes)
    3

    Kept pixels are in colour and outlined, the others are grey and dark.

    Args:
        explanation: what to draw.
        image: before normalisation: (H, W, 3) or (H, W), uint8 in 0..255 or floating point in
            [0, 1].
        axes: matplotlib axes to draw into: three, or four if the explanation has a contrast; None
            makes a figure.

    Returns:
        The figure; no display is needed, and matplotlib's global state is not touched.

    Raises:
        ImageError: the image does not fit the explanation, or is not an image.
    """
    pixels = displayable(image, explanation.mask.shape)
    if axes is None:
        height, width = explanation.mask.shape
        panels = 3 if explanation.contrast is None else 4
        figure = Figure(figsize=(3.2 * panels, 0.62 + min(6.0, max(1.5, 3.0 * height / width))))
        figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06)
        FigureCanvasAgg(figure)
        axes = list(figure.subplots(1, panels))
    left, middle, right, *fourth = axes
    _draw_image(left, explanation, pixels)
    _draw_map(middle, explanation, pixels)
    _draw_kept(right, explanation, pixels)
    if explanation.contrast is not None and fourth:
        _draw_contrast(fourth[0], explanation.contrast, pixels)
    for panel in axes:
        panel.set_axis_off()
    root = left.get_figure(root=True)
    assert root is not None, "axes that were removed from their figure"
    return root


def show_kept(explanation: Explanation, image: NDArray[Any], ax: Axes | None = None) -> Axes:
    """Draw the kept pixels in colour and outlined, into one panel.

    >>> import torch
    >>> from convad_fx.explain import explain, occlusion
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2)).eval()
    >>> x = torch.rand(1, 8, 8)
    >>> panel = Figure().subplots()
    >>> show_kept(explain(occlusion(model), x), x[0].numpy(), ax=panel) is panel
    True

    Args:
        explanation, image: as in `draw`.
        ax: the matplotlib axes to draw into; None makes a figure with one.

    Returns:
        The axes.

    Raises:
        ImageError: the image does not fit the explanation, or is not an image.
    """
    return _in_panel(_draw_kept, explanation, image, ax)


def show_responsibility(
    explanation: Explanation, image: NDArray[Any], ax: Axes | None = None
) -> Axes:
    """Draw the responsibility over the grey image; arguments as for `show_kept`."""
    return _in_panel(_draw_map, explanation, image, ax)


def _in_panel(
    draw_panel: Callable[[Axes, Explanation, Pixels], None],
    explanation: Explanation,
    image: NDArray[Any],
    ax: Axes | None,
) -> Axes:
    pixels = displayable(image, explanation.mask.shape)
    if ax is None:
        figure = Figure(figsize=(3.6, 3.9), layout="constrained")
        FigureCanvasAgg(figure)
        ax = figure.subplots()
    draw_panel(ax, explanation, pixels)
    ax.set_axis_off()
    return ax


def save(
    explanation: Explanation, image: NDArray[Any], directory: Path | str, stem: str
) -> tuple[Path, Path]:
    """Write `directory/stem.json` and `directory/stem.png`; returns both paths.

    The JSON is the explanation (`Explanation.from_json` reads it), the PNG the figure of `draw`.
    Existing files are replaced.

    Args:
        explanation, image: as in `draw`.
        directory: created if it does not exist.
        stem: the files' name, without folder and suffix.

    Raises:
        ImageError: the image does not fit the explanation, or the stem is not a plain name.
        OSError: the files cannot be written.
    """
    if not stem or stem in (".", "..") or set(stem) & set("/\\\0"):
        raise ImageError(
            f"{stem!r} cannot name a file", hint="pass a name without folder and suffix, as stem"
        )
    figure = draw(explanation, image)
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    # not with_suffix: a stem may contain dots
    text, picture = folder / f"{stem}.json", folder / f"{stem}.png"
    text.write_text(explanation.to_json() + "\n", encoding="utf-8")
    write_png(figure, picture, dpi=150, bbox_inches="tight", pad_inches=0.1)
    return text, picture


def write_png(figure: Figure, path: Path | str, **options: Any) -> None:
    """Write a figure to a PNG file without matplotlib's version; equal figures give equal files.

    Args:
        figure, path: what to write, and where.
        options: of `Figure.savefig`.
    """
    with warnings.catch_warnings():
        # Glyphs of class names that the font does not have are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure.savefig(path, format="png", metadata={"Software": None}, **options)


def displayable(image: NDArray[Any], shape: tuple[int, ...]) -> Pixels:
    """Check that an image has this shape, and convert it to floats (H, W, 3) in [0, 1]."""
    image = np.asarray(image)
    hint = "pass the image before normalisation: (H, W, 3), uint8, or float in [0, 1]"
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[2] not in (1, 3):
        raise ImageError(f"an array of shape {image.shape} is not an image", hint=hint)
    if image.shape[:2] != shape:
        raise ImageError(
            f"an image of {image.shape[0]}x{image.shape[1]} pixels does not fit an explanation of "
            f"{shape[0]}x{shape[1]}",
            hint="pass what the network saw: after resizing and cropping",
        )
    if image.dtype == np.uint8:
        image = image / 255.0
    elif not np.issubdtype(image.dtype, np.floating):
        raise ImageError(f"an image of dtype {image.dtype} has no known range", hint=hint)
    # The margin allows for rounding when a normalisation is undone. NaN fails, too.
    if not (image.min() >= -1e-3 and image.max() <= 1 + 1e-3):
        raise ImageError(
            f"the image's values lie in [{image.min():.3g}, {image.max():.3g}], not in [0, 1]",
            hint=hint,
        )
    return np.clip(np.broadcast_to(image, (*image.shape[:2], 3)).astype(np.float64), 0.0, 1.0)


def printable(text: str) -> str:
    r"""The text with lone surrogates escaped, which fonts cannot draw.

    Python represents bytes of a file name that are not valid text as lone surrogates (PEP 383).

    >>> print(printable("caf\udce9.png"), printable("café.png"))
    caf\udce9.png café.png
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _draw_image(axes: Axes, explanation: Explanation, pixels: Pixels) -> None:
    axes.imshow(pixels)
    below = f"{explanation.measure} {explanation.confidence_whole:.3f}"
    if not explanation.is_prediction:
        below += ": not the network's answer"
    _title(axes, explanation.title, below)


def _draw_map(axes: Axes, explanation: Explanation, pixels: Pixels) -> None:
    peak = draw_map(axes, explanation, pixels)
    below = f"{explanation.evaluations:,} evaluations"
    _title(axes, "responsibility" if peak else "no responsibility found", below)


def draw_map(axes: Axes, explanation: Explanation, pixels: Pixels) -> float:
    """Draw the responsibility over the grey image, without a title; returns its maximum."""
    values = explanation.responsibility
    axes.imshow(_grey(pixels), cmap="gray", vmin=0, vmax=1)
    peak = float(values.max())
    axes.imshow(values, cmap=_COLOUR_MAP, vmin=0, vmax=peak or 1.0, alpha=0.75 if peak else 0.0)
    return peak


def draw_kept(axes: Axes, explanation: Explanation, pixels: Pixels) -> None:
    """Draw kept pixels in colour and outlined, the others grey and dark, without a title."""
    _draw_set(axes, explanation.mask, pixels, outlined=explanation.mask)


def _draw_kept(axes: Axes, explanation: Explanation, pixels: Pixels) -> None:
    draw_kept(axes, explanation, pixels)
    verdict = "sufficient" if explanation.sufficient else "NOT sufficient"
    _title(
        axes,
        f"{verdict}: {explanation.size:.1%} of the pixels",
        f"{explanation.measure} {explanation.confidence_recheck:.3f}, "
        f"needed {explanation.gamma * explanation.confidence_whole:.3f}",
    )


def _draw_contrast(axes: Axes, contrast: Contrast, pixels: Pixels) -> None:
    """Draw the image with the contrast hidden and outlined."""
    _draw_set(axes, ~contrast.mask, pixels, outlined=contrast.mask)
    if not contrast.changes:
        _title(axes, f"nothing can {contrast.effect}", "not even hiding everything")
        return
    also = ", also sufficient" if contrast.suffices else ""
    _title(axes, f"contrast: {contrast.title}", f"hidden: {contrast.size:.1%} of the pixels{also}")


def _draw_set(axes: Axes, kept: Mask, pixels: Pixels, *, outlined: Mask) -> None:
    hidden = np.repeat((_grey(pixels) * _DIMMED)[:, :, None], 3, axis=2)
    axes.imshow(np.where(kept[:, :, None], pixels, hidden))
    if outlined.any():
        # Padding by a pixel closes the outline where the set touches the border.
        rows, columns = (np.arange(-1, n + 1) for n in outlined.shape)
        outline = np.pad(outlined, 1).astype(float)
        axes.contour(columns, rows, outline, levels=[0.5], colors=_OUTLINE, linewidths=1.2)
        axes.set(xlim=(-0.5, outlined.shape[1] - 0.5), ylim=(outlined.shape[0] - 0.5, -0.5))


def _grey(pixels: Pixels) -> Pixels:
    luminance: Pixels = pixels @ np.array([0.299, 0.587, 0.114])
    return luminance


def _title(axes: Axes, above: str, below: str) -> None:
    # parse_math=False: a dollar sign in a class name does not begin a formula.
    axes.set_title(
        f"{_shorten(printable(above))}\n", fontsize=11, fontweight="bold", parse_math=False
    )
    axes.annotate(
        printable(below),
        xy=(0.5, 1.0),
        xytext=(0, 6),
        xycoords="axes fraction",
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=9,
        color="0.35",
        parse_math=False,
    )


def _shorten(name: str, letters: int = 34) -> str:
    return name if len(name) <= letters else name[: letters - 1].rstrip() + "…"
