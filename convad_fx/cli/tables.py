"""Tables on stdout. Rows are printed as they come, so widths are fixed beforehand."""

from collections.abc import Sequence
from typing import Any

import typer

from convad_fx import report
from convad_fx.cli.picture import Result
from convad_fx.explain import Explanation

_NOT_SUFFICIENT = " (NOT sufficient when rechecked)"


class ExplanationTable:
    """A row per explanation; `extra` is the title of a further column."""

    def __init__(self, sources: Sequence[str], extra: str = "") -> None:
        self._widths = [-_longest("image", sources), 6, 10, 5, 6, 7]
        titles = ["image", "kept", "confidence", "of", "masks", "seconds"]
        if extra:
            self._widths.append(max(len(extra), 18))
            titles.append(extra)
        _print_row(self._widths, *titles, "answer")

    def add(self, result: Result, *extra: str) -> None:
        """Print a row."""
        why = result.explanation
        remark = why.remark
        if not why.sufficient:
            remark += _NOT_SUFFICIENT
        elif not why.mask.any():
            remark += " (same answer with everything hidden)"
        elif why.mask.all():
            remark += " (nothing smaller was found)"
        if why.number:
            remark += f" (reason {why.number + 1})"
        if why.contrast is not None:
            remark += f" ({why.contrast})"
        cells = (*_measured(why), f"{result.seconds:.1f}", *extra, why.title + remark)
        _print_row(self._widths, result.source, *cells)


class ComparisonTable:
    """A block of rows per image: one row per masker."""

    def __init__(self, sources: Sequence[str], maskers: Sequence[str]) -> None:
        longest = _longest("image", sources), _longest("hidden pixels", maskers)
        self._widths = [-longest[0], -longest[1], 6, 10, 5, 6, 10, 11]
        titles = ("kept", "confidence", "of", "masks", "on colours", "on pictures", "answer")
        _print_row(self._widths, "image", "hidden pixels", *titles)

    def add(self, source: str, compared: Sequence[report.MaskerResult]) -> None:
        """Print the rows of an image."""
        for row in compared:
            why = row.explanation
            survival = (
                f"{row.rho[kind]:.0%}" if kind in row.rho else "-" for kind in ("colours", "images")
            )
            answer = why.title + why.remark + ("" if why.sufficient else _NOT_SUFFICIENT)
            _print_row(self._widths, source, row.name, *_measured(why), *survival, answer)


def _longest(title: str, names: Sequence[str]) -> int:
    return max(map(len, (title, *names)))


def _measured(why: Explanation) -> tuple[str, ...]:
    confidences = f"{why.confidence_recheck:.3f}", f"{why.confidence_whole:.3f}"
    return f"{why.size:.1%}", *confidences, f"{why.evaluations}"


def _print_row(widths: Sequence[int], *cells: str) -> None:
    """Cells aligned to the right, those of negative width to the left, the last one as it is."""
    aligned = [f"{c:>{w}}" if w > 0 else f"{c:<{-w}}" for c, w in zip(cells, widths, strict=False)]
    typer.echo("  ".join([*aligned, cells[-1]]))


def print_means(means: Sequence[dict[str, Any]]) -> None:
    """The mean of each masker over the images, and its difference from the first."""
    n, first = means[0]["pictures"], means[0]["masker"]
    width = max(len(entry["masker"]) for entry in means)
    typer.echo(f"\nMeans of {n} pictures; in brackets: difference from {first}, 95 % interval")
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
