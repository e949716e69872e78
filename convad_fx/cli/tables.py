"""Tables on stdout. Rows are printed as they come, so widths are fixed beforehand."""

from collections.abc import Sequence
from typing import Any

import typer

from convad_fx import report
from convad_fx.cli.picture import Result


class ExplanationTable:
    """A row per explanation.

    Args:
        sources: the names of the images.
        extra: the title of a further column.
    """

    def __init__(self, sources: Sequence[str], extra: str = "") -> None:
        self._width = max(map(len, ("image", *sources)))
        self._extra_width = max(len(extra), 18) if extra else 0
        self._print("image", "kept", "confidence", "of", "masks", "seconds", extra, "answer")

    def add(self, result: Result, extra: str = "") -> None:
        """Print a row."""
        why = result.explanation
        remark = ""
        if not why.sufficient:
            remark = " (NOT sufficient when asked again)"
        elif not why.mask.any():
            remark = " (said with everything hidden, too)"
        elif why.mask.all():
            remark = " (nothing smaller was found)"
        if why.number:
            remark += f" (reason {why.number + 1})"
        if why.contrast is not None:
            remark += f" ({why.contrast})"
        self._print(
            result.source,
            f"{why.size:.1%}",
            f"{why.confidence_recheck:.3f}",
            f"{why.confidence_whole:.3f}",
            f"{why.evaluations}",
            f"{result.seconds:.1f}",
            extra,
            why.title + remark,
        )

    def _print(self, source: str, *cells: str) -> None:
        *numbers, extra, answer = cells
        row = f"{source:<{self._width}}" + _right_aligned(numbers, (6, 10, 5, 6, 7))
        if self._extra_width:
            row += f"  {extra:>{self._extra_width}}"
        typer.echo(f"{row}  {answer}")


class ComparisonTable:
    """A block of rows per image: one row per masker."""

    def __init__(self, sources: Sequence[str], maskers: Sequence[str]) -> None:
        self._width = max(map(len, ("image", *sources)))
        self._masker_width = max(map(len, ("hidden pixels", *maskers)))
        titles = ("kept", "confidence", "of", "masks", "on colours", "on pictures")
        self._print("image", "hidden pixels", *titles, "answer")

    def add(self, source: str, compared: Sequence[report.Compared]) -> None:
        """Print the rows of an image."""
        for row in compared:
            why = row.explanation
            survival = (
                f"{row.rho[kind]:.0%}" if kind in row.rho else "-" for kind in ("colours", "images")
            )
            self._print(
                source,
                row.name,
                f"{why.size:.1%}",
                f"{why.confidence_recheck:.3f}",
                f"{why.confidence_whole:.3f}",
                f"{why.evaluations}",
                *survival,
                why.title + ("" if why.sufficient else " (NOT sufficient when asked again)"),
            )

    def _print(self, source: str, masker: str, *cells: str) -> None:
        *numbers, answer = cells
        row = f"{source:<{self._width}}  {masker:<{self._masker_width}}"
        row += _right_aligned(numbers, (6, 10, 5, 6, 10, 11))
        typer.echo(f"{row}  {answer}")


def _right_aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    pairs = zip(cells, widths, strict=True)
    return "".join(f"  {cell:>{width}}" for cell, width in pairs)


def print_means(means: Sequence[dict[str, Any]]) -> None:
    """The mean of each masker over the images, and its difference from the first."""
    n = means[0]["pictures"]
    width = max(len(entry["masker"]) for entry in means)
    typer.echo(f"\nMeans of {n} pictures; in brackets: less {means[0]['masker']}, 95 % interval")
    titles = {"size": "kept", "colours": "on colours", "images": "on pictures"}
    kinds = [kind for kind in titles if kind in means[0]]
    typer.echo(f"{'':<{width}}" + "".join(f"  {titles[kind]:<27}" for kind in kinds).rstrip())
    for entry in means:
        line = f"{entry['masker']:<{width}}"
        for kind in kinds:
            cell = f"{entry[kind]['mean']:.0%}"
            if (less := entry[kind].get("less_first")) is not None:
                cell += f" ({less['mean']:+.0%}, {less['low']:+.0%} to {less['high']:+.0%})"
            line += f"  {cell:<27}"
        typer.echo(line.rstrip())
    if n < 10:
        typer.echo("With fewer than about ten pictures the intervals are too narrow.")
