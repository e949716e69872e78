"""One picture that shows an explanation: image, responsibility of its pixels, what suffices."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
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

COLOURS = "inferno"
"""The responsibility's colour map: even to the eye, and readable in grey."""

_OUTLINE = "#ff2d7e"  # seldom in photos, and seen on light and dark alike
_DIMMED = 0.25


def draw(
    explanation: Explanation, image: NDArray[Any], axes: Sequence[Axes] | None = None
) -> Figure:
    """Image, responsibility map and explanation, side by side; and the contrast, if there is one.

    >>> import torch
    >>> from convad_fx.explain import explain, occlusion
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2)).eval()
    >>> x = torch.rand(1, 8, 8)
    >>> figure = draw(explain(occlusion(model), x), x[0].numpy())
    >>> len(figure.axes)
    3

    Kept pixels stand in colour and outlined, the others are grey and dark.

    Args:
        explanation: what to show.
        image: what a person sees, before normalisation: (H, W, 3) or (H, W), uint8 in 0..255 or
            floating point in [0, 1].
        axes: matplotlib axes to draw into, for a figure of one's own: three, or four if the
            explanation has a contrast; None makes a figure.

    Returns:
        The figure; no display is needed, and matplotlib's global state is not touched.

    Raises:
        ImageError: the image does not fit the explanation, or is not one.
    """
    shown = displayable(image, explanation.mask.shape)
    if axes is None:
        height, width = explanation.mask.shape
        # Three panels of 3 inches; the height follows the image's, within reason.
        panels = 3 if explanation.contrast is None else 4
        figure = Figure(figsize=(3.2 * panels, 0.62 + min(6.0, max(1.5, 3.0 * height / width))))
        figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06)
        FigureCanvasAgg(figure)
        axes = list(figure.subplots(1, panels))
    left, middle, right, *fourth = axes
    _draw_image(left, explanation, shown)
    _draw_map(middle, explanation, shown)
    _draw_kept(right, explanation, shown)
    if explanation.contrast is not None and fourth:
        _draw_contrast(fourth[0], explanation.contrast, shown)
    for panel in axes:
        panel.set_axis_off()
    root = left.get_figure(root=True)
    assert root is not None, "axes that were removed from their figure"
    return root


def show_kept(explanation: Explanation, image: NDArray[Any], ax: Axes | None = None) -> Axes:
    """The kept pixels in colour and outlined, in one panel of one's own figure.

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
        ImageError: the image does not fit the explanation, or is not one.
    """
    shown = displayable(image, explanation.mask.shape)
    ax = _panel() if ax is None else ax
    _draw_kept(ax, explanation, shown)
    ax.set_axis_off()
    return ax


def show_responsibility(
    explanation: Explanation, image: NDArray[Any], ax: Axes | None = None
) -> Axes:
    """The responsibility over the picture in grey, in one panel; otherwise as `show_kept`."""
    shown = displayable(image, explanation.mask.shape)
    ax = _panel() if ax is None else ax
    _draw_map(ax, explanation, shown)
    ax.set_axis_off()
    return ax


def _panel() -> Axes:
    figure = Figure(figsize=(3.6, 3.9), layout="constrained")
    FigureCanvasAgg(figure)
    return figure.subplots()


def save(
    explanation: Explanation, image: NDArray[Any], directory: Path | str, stem: str
) -> tuple[Path, Path]:
    """Write `directory/stem.json` and `directory/stem.png`; returns both paths.

    The JSON is the whole explanation (`Explanation.from_json` reads it), the PNG is what `draw`
    draws. The directory is made if it does not exist; files of these names are replaced.

    Args:
        explanation: what to save.
        image: as in `draw`.
        directory: where to.
        stem: the files' name, without folder and ending.

    Raises:
        ImageError: the image does not fit the explanation, or the stem is not a plain name.
        OSError: the files cannot be written.
    """
    if not stem or stem in (".", "..") or set(stem) & set("/\\\0"):
        raise ImageError(
            f"{stem!r} cannot name a file", hint="pass a name without folder and ending, as stem"
        )
    figure = draw(explanation, image)
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    # Not with_suffix: a stem may have dots of its own.
    text, picture = folder / f"{stem}.json", folder / f"{stem}.png"
    text.write_text(explanation.to_json() + "\n", encoding="utf-8")
    with warnings.catch_warnings():
        # A class name in a script that the font lacks shows boxes; that is no reason to fail.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        # Without the version, the same explanation gives the same file.
        figure.savefig(
            picture, dpi=150, bbox_inches="tight", pad_inches=0.1, metadata={"Software": None}
        )
    return text, picture


def displayable(image: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """A picture of this shape as floats (H, W, 3) in [0, 1]; refuses what is none."""
    image = np.asarray(image)
    hint = "pass the picture before normalisation: (H, W, 3), uint8, or float in [0, 1]"
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[2] not in (1, 3):
        raise ImageError(f"an array of shape {image.shape} is no picture", hint=hint)
    if image.shape[:2] != shape:
        raise ImageError(
            f"a picture of {image.shape[0]}x{image.shape[1]} pixels does not fit an explanation of "
            f"{shape[0]}x{shape[1]}",
            hint="pass what the network saw: after resizing and cropping",
        )
    if image.dtype == np.uint8:
        image = image / 255.0
    elif not np.issubdtype(image.dtype, np.floating):
        raise ImageError(f"a picture of dtype {image.dtype} has no known range", hint=hint)
    # The margin is for rounding in a normalisation undone.
    if not (image.min() >= -1e-3 and image.max() <= 1 + 1e-3):  # NaN fails, too
        raise ImageError(
            f"the picture's values lie in [{image.min():.3g}, {image.max():.3g}], not in [0, 1]",
            hint=hint,
        )
    return np.clip(np.broadcast_to(image, (*image.shape[:2], 3)).astype(np.float64), 0.0, 1.0)


def printable(text: str) -> str:
    r"""The text as a font can be asked for it: a byte that is no text is written as its number.

    A file name need not be text in any encoding, and Python holds such bytes as lone surrogates
    (PEP 383), which no font library takes.

    >>> print(printable("caf\udce9.png"), printable("café.png"))
    caf\udce9.png café.png
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _draw_image(axes: Axes, explanation: Explanation, shown: NDArray[np.float64]) -> None:
    axes.imshow(shown)
    _title(
        axes,
        explanation.title,
        f"confidence {explanation.confidence_whole:.3f}",
    )


def _draw_map(axes: Axes, explanation: Explanation, shown: NDArray[np.float64]) -> None:
    peak = draw_map(axes, explanation, shown)
    below = f"{explanation.evaluations:,} evaluations"
    _title(axes, "responsibility" if peak else "no responsibility found", below)


def draw_map(axes: Axes, explanation: Explanation, shown: NDArray[np.float64]) -> float:
    """The responsibility over the picture in grey, without a title; returns its peak."""
    values = explanation.responsibility
    axes.imshow(_grey(shown), cmap="gray", vmin=0, vmax=1)
    peak = float(values.max())
    axes.imshow(values, cmap=COLOURS, vmin=0, vmax=peak or 1.0, alpha=0.75 if peak else 0.0)
    return peak


def draw_kept(axes: Axes, explanation: Explanation, shown: NDArray[np.float64]) -> None:
    """Kept pixels in colour and outlined, the others grey and dark, without a title."""
    _draw_set(axes, explanation.mask, shown, outlined=explanation.mask)


def _draw_kept(axes: Axes, explanation: Explanation, shown: NDArray[np.float64]) -> None:
    draw_kept(axes, explanation, shown)
    verdict = "sufficient" if explanation.sufficient else "NOT sufficient"
    _title(
        axes,
        f"{verdict}: {explanation.size:.1%} of the pixels",
        f"confidence {explanation.confidence_recheck:.3f}, "
        f"needed {explanation.gamma * explanation.confidence_whole:.3f}",
    )


def _draw_contrast(axes: Axes, contrast: Contrast, shown: NDArray[np.float64]) -> None:
    """What is left when the contrast is hidden; the hidden part is outlined."""
    _draw_set(axes, ~contrast.mask, shown, outlined=contrast.mask)
    if not contrast.changes:
        _title(axes, "nothing changes the class", "not even hiding everything")
        return
    too = ", which suffice, too" if contrast.suffices else ""
    _title(axes, f"else: {contrast.title}", f"without {contrast.size:.1%} of the pixels{too}")


def _draw_set(axes: Axes, kept: Mask, shown: NDArray[np.float64], *, outlined: Mask) -> None:
    hidden = np.repeat((_grey(shown) * _DIMMED)[:, :, None], 3, axis=2)
    axes.imshow(np.where(kept[:, :, None], shown, hidden))
    if outlined.any():
        # A margin of pixels outside closes the outline where the set touches the border.
        rows, columns = (np.arange(-1, n + 1) for n in outlined.shape)
        outline = np.pad(outlined, 1).astype(float)
        axes.contour(columns, rows, outline, levels=[0.5], colors=_OUTLINE, linewidths=1.2)
        axes.set(xlim=(-0.5, outlined.shape[1] - 0.5), ylim=(outlined.shape[0] - 0.5, -0.5))


def _grey(shown: NDArray[np.float64]) -> NDArray[np.float64]:
    luminance: NDArray[np.float64] = shown @ np.array([0.299, 0.587, 0.114])
    return luminance


def _title(axes: Axes, above: str, below: str) -> None:
    # A dollar sign in a class name is a dollar sign, not mathematics.
    axes.set_title(
        f"{_short(printable(above))}\n", fontsize=11, fontweight="bold", parse_math=False
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


def _short(name: str, most: int = 34) -> str:
    return name if len(name) <= most else name[: most - 1].rstrip() + "…"
