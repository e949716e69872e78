"""The comparisons of all pictures as one HTML page that needs no other file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from convad_fx.errors import PolicyError
from convad_fx.metrics import Interval, bootstrap, paired
from convad_fx.report.comparison import MaskerResult

_TITLES = {
    "size": "size",
    "colours": "survives, colours",
    "images": "survives, pictures",
    "relative": "confidence, of the whole's",
}
_ONE_DECIMAL = ("size", "relative")  # the others, in whole percent
_BACKGROUNDS = {
    "colours": ("solid colour", "solid colours"),
    "images": ("other picture", "other pictures"),
}


@dataclass(frozen=True, slots=True, eq=False)
class PictureComparison:
    """The results of all maskers on one picture.

    Args:
        name: for people; any text, for example the file's name.
        results: as `compare` returns them.
        drawing: the PNG file that `save_comparison` made of them.
    """

    name: str
    results: tuple[MaskerResult, ...]
    drawing: Path


def means(rows: Sequence[Sequence[MaskerResult]]) -> list[dict[str, Any]]:
    """Means over pictures by masker, and differences from the first masker, paired by picture.

    >>> import torch
    >>> from convad_fx.explain import occlusion
    >>> from convad_fx.report import compare
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64, 2)).eval()
    >>> maskers = {paint: occlusion(model, paint) for paint in ("black", "white")}
    >>> black, white = means([compare(maskers, model, torch.rand(3, 8, 8), n=10)])
    >>> list(black), sorted(white["size"])
    (['masker', 'pictures', 'size', 'relative', 'colours'], ['high', 'less_first', 'low', 'mean'])

    Args:
        rows: by picture, the results of `compare`.

    Returns:
        By masker, plain numbers for JSON: means with 95 % bootstrap intervals (for one picture, the
        number itself), of `size`, `relative` (confidence of the explanation, divided by that of
        the whole picture) and each kind of background. Empty if there are no pictures.

    Raises:
        PolicyError: the pictures were compared with different settings.
    """
    _check_alike(rows)
    entries: list[dict[str, Any]] = []
    for number, first in enumerate(rows[0] if rows else ()):
        entry: dict[str, Any] = {"masker": first.name, "pictures": len(rows)}
        for kind in ("size", "relative", *first.rho):
            values = [_value(row[number], kind) for row in rows]
            entry[kind] = _interval(bootstrap(values))
            if number:
                test = paired(values, [_value(row[0], kind) for row in rows])
                entry[kind]["less_first"] = {**_interval(test.difference), "p": test.p_value}
        entries.append(entry)
    return entries


def save_page(
    pictures: Sequence[PictureComparison],
    path: Path | str,
    *,
    model: str = "",
    failed: Sequence[str] = (),
) -> Path:
    """Write an HTML page: means over the pictures, then the numbers and the drawing of each.

    The page contains the drawings, and loads and runs nothing. Equal comparisons give equal files.

    >>> import tempfile, torch
    >>> from convad_fx.explain import occlusion
    >>> from convad_fx.report import compare, save_comparison
    >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64, 2)).eval()
    >>> image = torch.rand(3, 8, 8)
    >>> results = compare({"black": occlusion(network, "black")}, network, image, n=10)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     drawing = Path(folder) / "1.png"
    ...     _ = save_comparison(results, image.permute(1, 2, 0).numpy(), drawing)
    ...     picture = PictureComparison("<1>.png", results, drawing)
    ...     page = save_page([picture], Path(folder) / "compare.html").read_text("utf-8")
    >>> "<h2>&lt;1&gt;.png</h2>" in page
    True

    Args:
        pictures: one or more, compared with the same settings.
        path: of the page.
        model: its name, for the headline.
        failed: a line for each picture that could not be compared, with the reason.

    Raises:
        PolicyError: no pictures, or pictures that were compared with different settings.
        OSError: a drawing cannot be read, or the page cannot be written.
    """
    if not pictures or not pictures[0].results:
        raise PolicyError("there is nothing to compare", hint="pass one picture or more")
    first = pictures[0].results[0]
    kinds = ("size", *first.rho, "relative")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    environment.filters |= {"percent": _percent, "signed": _signed_percent}
    source = resources.files("convad_fx.report").joinpath("comparison_page.html.jinja")
    stream = environment.from_string(source.read_text("utf-8")).stream(
        model=model,
        first=first,
        on=" and ".join(_counted(kind, n) for kind, n in first.backgrounds.items()),
        columns={kind: _TITLES.get(kind, kind) for kind in kinds},
        means=means([picture.results for picture in pictures]),
        pictures=pictures,
        value=_value,
        base64=_base64,  # called while the page is written: one drawing at a time is in memory
        failed=failed,
    )
    # A file name need not be valid text; Python represents invalid bytes as lone surrogates.
    stream.dump(str(path), encoding="utf-8", errors="backslashreplace")
    return Path(path)


def _check_alike(rows: Sequence[Sequence[MaskerResult]]) -> None:
    settings = {
        tuple(
            (row.name, row.explanation.gamma, row.explanation.seed, tuple(row.backgrounds.items()))
            for row in results
        )
        for results in rows
    }
    if len(settings) > 1:
        raise PolicyError(
            "the pictures were compared with different settings, so means are meaningless",
            hint="pass the same maskers, gamma, seed and numbers of backgrounds for all",
        )


def _value(result: MaskerResult, kind: str) -> float:
    why = result.explanation
    if kind == "size":
        return why.size
    return why.confidence_recheck / why.confidence_whole if kind == "relative" else result.rho[kind]


def _interval(interval: Interval) -> dict[str, Any]:
    return {"mean": interval.value, "low": interval.low, "high": interval.high}


def _counted(kind: str, n: int) -> str:
    singular, plural = _BACKGROUNDS.get(kind, (kind, kind))
    return f"{n} {singular if n == 1 else plural}"


def _percent(value: float, kind: str) -> str:
    return format(value, ".1%" if kind in _ONE_DECIMAL else ".0%")


def _signed_percent(value: float, kind: str) -> str:
    digits = 1 if kind in _ONE_DECIMAL else 0
    return format(round(value, digits + 2) + 0.0, f"+.{digits}%")  # + 0.0 turns -0.0 into 0.0


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode("ascii")
