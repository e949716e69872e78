"""Switching off against paint, on one picture: the numbers, and a page that shows them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from convad_fx.errors import PolicyError
from convad_fx.explain import Explanation, Occlusion, Search, explain
from convad_fx.metrics import Normalisation, robustness
from convad_fx.report.overlay import displayable, draw_kept, draw_map, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from convad_fx.explain.masker import Masker
    from convad_fx.metrics.robustness import Model

_SQUARE = 8  # of the pattern that stands for "nothing is shown here", in pixels
_HEADS = ("how pixels are hidden", "responsibility", "sufficient part", "what the network is shown")


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """What one way of hiding pixels leads to, on one picture.

    Args:
        name: of the masker, for people.
        explanation: what the search found with it.
        rho: by kind of background, the share on which the plain model still gives the class when
            the explanation is planted there; see `convad_fx.metrics.robustness`.
        backgrounds: how many of each kind.
        shown: what the network reads when it is asked about the explanation, (1, C, H, W), in its
            own units; None where nothing is painted.
    """

    name: str
    explanation: Explanation
    rho: Mapping[str, float]
    backgrounds: Mapping[str, int]
    shown: Tensor | None

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, for JSON."""
        return {
            "masker": self.name,
            "rho": dict(self.rho),
            "backgrounds": dict(self.backgrounds),
            **self.explanation.to_dict(),
        }


def compare(
    maskers: Mapping[str, Masker],
    model: Model,
    image: Tensor,
    *,
    gamma: float = 0.9,
    seed: int = 0,
    search: Search = Search(),  # noqa: B008 (frozen)
    n: int = 50,
    others: Sequence[Tensor] = (),
    normalisation: Normalisation = Normalisation(),  # noqa: B008 (frozen)
    batch_size: int | str = "auto",
    labels: Sequence[str] | None = None,
    progress: bool = False,
) -> tuple[Compared, ...]:
    """Explain one image by several maskers: the same class, search, seed and backgrounds.

    >>> import torch
    >>> from convad_fx.explain import occlusion
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64, 2)).eval()
    >>> maskers = {paint: occlusion(model, paint) for paint in ("black", "white")}
    >>> black, white = compare(maskers, model, torch.rand(3, 8, 8), n=10)
    >>> black.name, sorted(black.rho), black.shown.shape
    ('black', ['colours'], torch.Size([1, 3, 8, 8]))

    Args:
        maskers: by name.
        model: images (N, C, H, W) -> logits: the original model, which judges.
        image: (C, H, W) or (1, C, H, W), as the model reads it.
        gamma, seed, search, batch_size, labels, progress: as in `explain`.
        n: backgrounds of each kind: solid colours, and as many of `others` as there are.
        others: other images, without which that kind is left out.
        normalisation: what the preprocessing subtracts and divides by.

    Raises:
        ImageError, MaskError, ModelError, PolicyError: what does not fit.
    """
    if not maskers:
        raise PolicyError("there is nothing to compare", hint="pass one masker or more")
    compared = []
    for name, masker in maskers.items():
        why = explain(
            masker,
            image,
            gamma=gamma,
            seed=seed,
            search=search,
            batch_size=batch_size,
            labels=labels,
            progress=progress,
        )
        kinds = {"colours": n} | ({"images": min(n, len(others))} if len(others) else {})
        rho = {
            kind: robustness(
                model,
                image,
                why.mask,
                why.target,
                kind,
                n=count,
                others=others,
                seed=seed,
                normalisation=normalisation,
                batch_size=batch_size,
            ).rho
            for kind, count in kinds.items()
        }
        compared.append(Compared(name, why, rho, kinds, _painted(masker, image, why)))
    return tuple(compared)


def _painted(masker: Masker, image: Tensor, why: Explanation) -> Tensor | None:
    if not isinstance(masker, Occlusion):
        return None
    x = image if image.ndim == 4 else image[None]
    kept = torch.from_numpy(why.mask)[None, None].to(x.device)
    return masker.painted(x, kept).cpu()


def draw_comparison(
    compared: Sequence[Compared],
    image: NDArray[Any],
    normalisation: Normalisation = Normalisation(),  # noqa: B008 (frozen)
    title: str = "",
) -> Figure:
    """One page: a row for each masker, with its map, its explanation and its numbers.

    The last picture of a row is what the network reads when it is asked about the explanation
    alone: paint where that is painted, a pattern of squares where it is switched off.

    >>> from convad_fx.explain import occlusion
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64, 2)).eval()
    >>> image = torch.rand(3, 8, 8)
    >>> compared = compare({"black": occlusion(model, "black")}, model, image, n=10)
    >>> len(draw_comparison(compared, image.permute(1, 2, 0).numpy()).axes)
    8

    Args:
        compared: of one image, the first being what the others are compared with.
        image: what a person sees, as in `draw`.
        normalisation: to show what was painted.
        title: above everything, the picture's name for example.

    Raises:
        ImageError: the image does not fit the explanations, or is not one.
        PolicyError: nothing is compared.
    """
    if not compared:
        raise PolicyError("there is nothing to compare", hint="pass one row or more")
    first = compared[0].explanation
    shown = displayable(image, first.mask.shape)
    height, width = first.mask.shape
    tall = min(4.0, max(1.2, 2.1 * height / width))
    figure = Figure(figsize=(9.6, 0.5 + tall * (len(compared) + 1)))
    figure.set_layout_engine("constrained", w_pad=0.05, h_pad=0.05)
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(compared) + 1, 4, squeeze=False, width_ratios=(1.25, 1, 1, 1))
    for panel in grid.flat:
        panel.set_axis_off()
    _head(grid[0], first, shown, title, compared)
    for axes, row in zip(grid[1:], compared, strict=True):
        _numbers(axes[0], row, row is compared[0])
        draw_map(axes[1], row.explanation, shown)
        draw_kept(axes[2], row.explanation, shown)
        axes[3].imshow(_as_shown(row, shown, normalisation))
    for panel, head in zip(grid[1], _HEADS, strict=True):
        panel.set_title(head, fontsize=9, color="0.35")
    return figure


def save_comparison(
    compared: Sequence[Compared],
    image: NDArray[Any],
    path: Path | str,
    normalisation: Normalisation = Normalisation(),  # noqa: B008 (frozen)
    title: str = "",
) -> Path:
    """Write what `draw_comparison` draws to a PNG file; the same comparison gives the same file.

    `save_page` has an example. Arguments as for `draw_comparison`.

    Args:
        path: of the PNG file, which is also what is returned.

    Raises:
        ImageError, PolicyError: as `draw_comparison`.
        OSError: the file cannot be written.
    """
    figure = draw_comparison(compared, image, normalisation, title)
    with warnings.catch_warnings():
        # A class name in a script that the font lacks shows boxes; that is no reason to fail.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure.savefig(path, dpi=120, metadata={"Software": None})
    return Path(path)


def _head(
    axes: Sequence[Axes],
    why: Explanation,
    shown: NDArray[np.float64],
    title: str,
    compared: Sequence[Compared],
) -> None:
    axes[0].imshow(shown)
    kinds = {"colours": "solid colours", "images": "other pictures"}
    on = " and ".join(kinds.get(kind, kind) for kind in compared[0].rho)
    lines = [
        (title, 10, "0.35"),
        (f"{why.title}: confidence {why.confidence_whole:.3f}", 13, "black"),
        ("Each row hides pixels in another way and looks for a part that", 9, "0.2"),
        (f"keeps {why.gamma:.0%} of that confidence. Survives: the share of backgrounds", 9, "0.2"),
        (f"({on}) on which the plain network still gives this class.", 9, "0.2"),
        ("Larger parts survive more easily: look at the size, too.", 9, "0.2"),
    ]
    for number, (text, size, colour) in enumerate(line for line in lines if line[0]):
        axes[1].text(
            0.0,
            0.92 - 0.13 * number - 0.03 * (number > 1),
            printable(text),
            fontsize=size,
            color=colour,
            fontweight="bold" if size > 10 else "normal",
            transform=axes[1].transAxes,
            va="top",
            parse_math=False,
        ).set_in_layout(False)


def _numbers(axes: Axes, row: Compared, first: bool) -> None:
    why = row.explanation
    bars = {"size": why.size}
    names = {"colours": "survives, colours", "images": "survives, pictures"}
    bars |= {names.get(kind, kind): rho for kind, rho in row.rho.items()}
    axes.set(xlim=(0, 1), ylim=(0, 1))
    bold: Any = {"fontsize": 12, "fontweight": "bold", "va": "top", "parse_math": False}
    axes.text(0, 0.97, printable(row.name), color="#c2185b" if first else "black", **bold)
    for number, (name, share) in enumerate(bars.items()):
        y = 0.62 - 0.2 * number
        colour = "0.55" if name == "size" else "#1f77b4"
        axes.text(0, y + 0.09, f"{name}", fontsize=8.5, va="center", color="0.2")
        axes.text(
            0.97,
            y + 0.09,
            f"{share:.1%}" if name == "size" else f"{share:.0%}",
            fontsize=9.5,
            va="center",
            ha="right",
        )
        axes.barh(y, 0.97, height=0.06, left=0, color="0.92")
        axes.barh(y, 0.97 * share, height=0.06, left=0, color=colour)
    verdict = "" if why.sufficient else ", NOT sufficient"
    axes.text(
        0,
        0.0,
        f"confidence {why.confidence_recheck:.3f}{verdict}; {why.evaluations:,} masks",
        fontsize=8.5,
        color="0.2",
    )


def _as_shown(
    row: Compared, shown: NDArray[np.float64], normalisation: Normalisation
) -> NDArray[np.float64]:
    if row.shown is not None:
        pixels = normalisation.undo(row.shown)[0].permute(1, 2, 0).numpy()
        painted: NDArray[np.float64] = np.clip(pixels, 0, 1)
        return np.broadcast_to(painted, shown.shape)
    rows, columns = np.indices(row.explanation.mask.shape) // _SQUARE
    squares = np.where((rows + columns) % 2, 0.96, 0.84)[:, :, None]
    return np.where(row.explanation.mask[:, :, None], shown, squares)
