"""All pictures of a comparison on one HTML page that needs no other file."""

from __future__ import annotations

import base64
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from convad_fx.errors import PolicyError
from convad_fx.metrics import Interval, bootstrap, paired
from convad_fx.report.compare import Compared

_HEADS = {
    "size": "size",
    "colours": "survives, colours",
    "images": "survives, pictures",
    "relative": "confidence, of the whole's",
}
_FORMATS = {"size": ".1%", "relative": ".1%"}


@dataclass(frozen=True, slots=True, eq=False)
class ComparedPicture:
    """One picture of a page.

    Args:
        name: for people; any text, the file's name for example.
        compared: what `compare` found on it.
        drawn: the PNG file that `save_comparison` made of that.
    """

    name: str
    compared: tuple[Compared, ...]
    drawn: Path


def means(rows: Sequence[Sequence[Compared]]) -> list[dict[str, Any]]:
    """Of each masker, over pictures; and how it differs from the first, paired by picture.

    >>> import torch
    >>> from convad_fx.explain import occlusion
    >>> from convad_fx.report import compare
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64, 2)).eval()
    >>> maskers = {paint: occlusion(model, paint) for paint in ("black", "white")}
    >>> black, white = means([compare(maskers, model, torch.rand(3, 8, 8), n=10)])
    >>> list(black), sorted(white["size"])
    (['masker', 'pictures', 'size', 'relative', 'colours'], ['high', 'less_first', 'low', 'mean'])

    Args:
        rows: by picture, by masker: what `compare` found. `relative` is the confidence of the
            explanation asked alone over that of the whole picture, `colours` and `images` are the
            kinds of background.

    Returns:
        By masker, plain numbers for JSON: means with 95 % bootstrap intervals (of one picture, the
        number itself); none where there are no pictures.

    Raises:
        PolicyError: pictures that were not compared in the same way.
    """
    _check_alike(rows)
    found: list[dict[str, Any]] = []
    for number, first in enumerate(rows[0] if rows else ()):
        entry: dict[str, Any] = {"masker": first.name, "pictures": len(rows)}
        for kind in ("size", "relative", *first.rho):
            own = [_value(row[number], kind) for row in rows]
            entry[kind] = _interval(bootstrap(own))
            if number:
                difference = paired(own, [_value(row[0], kind) for row in rows])
                entry[kind]["less_first"] = {
                    **_interval(difference.difference),
                    "p": difference.p_value,
                }
        found.append(entry)
    return found


def save_page(
    pictures: Sequence[ComparedPicture],
    path: Path | str,
    *,
    model: str = "",
    failed: Sequence[str] = (),
) -> Path:
    """Write an HTML page: means over the pictures, then each with its numbers and its drawing.

    The drawings are inside (data URIs): the file can be moved and mailed, and nothing is loaded
    or run when it is opened. Texts are escaped. The same comparison gives the same file.

    >>> import tempfile, torch
    >>> from convad_fx.explain import occlusion
    >>> from convad_fx.report import compare, save_comparison
    >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64, 2)).eval()
    >>> image = torch.rand(3, 8, 8)
    >>> compared = compare({"black": occlusion(network, "black")}, network, image, n=10)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     drawn = Path(folder) / "1.png"
    ...     _ = save_comparison(compared, image.permute(1, 2, 0).numpy(), drawn)
    ...     one = ComparedPicture("<1>.png", compared, drawn)
    ...     page = save_page([one], Path(folder) / "compare.html").read_text("utf-8")
    >>> "<h2>&lt;1&gt;.png</h2>" in page
    True

    Args:
        pictures: compared in the same way, one or more.
        path: of the page.
        model: its name, for the headline.
        failed: what could not be compared, and why: a line for each.

    Raises:
        PolicyError: no pictures, or pictures that were not compared in the same way.
        OSError: a drawing cannot be read, or the page cannot be written.
    """
    if not pictures or not pictures[0].compared:
        raise PolicyError("there is nothing to compare", hint="pass one picture or more")
    found = means([picture.compared for picture in pictures])
    first = pictures[0].compared[0]
    kinds = ("size", *first.rho, "relative")
    template = _environment().from_string(
        resources.files("convad_fx.report").joinpath("page.html.jinja").read_text("utf-8")
    )
    stream = template.stream(
        model=model,
        maskers=[row.name for row in pictures[0].compared],
        gamma=f"{first.explanation.gamma:g}",
        seed=first.explanation.seed,
        on=" and ".join(_counted(kind, n) for kind, n in first.backgrounds.items()),
        heads=[(kind, _HEADS.get(kind, kind)) for kind in kinds],
        intervals=len(pictures) > 1,
        summary=[_summary(entry, kinds) for entry in found],
        differences=[_less_first(e, kinds) for e in found[1:]] if len(pictures) > 1 else [],
        pictures=[_section(picture, kinds) for picture in pictures],
        failed=failed,
        made_by=", ".join(f"{name} {v}" for name, v in first.explanation.versions.items()),
    )
    # A file name need not be text in any encoding; Python holds such bytes as lone surrogates.
    stream.dump(str(path), encoding="utf-8", errors="backslashreplace")
    return Path(path)


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )


def _check_alike(rows: Sequence[Sequence[Compared]]) -> None:
    ways = {
        tuple(
            (row.name, row.explanation.gamma, row.explanation.seed, tuple(row.backgrounds.items()))
            for row in compared
        )
        for compared in rows
    }
    if len(ways) > 1:
        raise PolicyError(
            "the pictures were compared in different ways, and their means say nothing",
            hint="pass the same maskers, gamma, seed and numbers of backgrounds for all",
        )


def _value(row: Compared, kind: str) -> float:
    why = row.explanation
    if kind == "size":
        return why.size
    return why.confidence_recheck / why.confidence_whole if kind == "relative" else row.rho[kind]


def _interval(found: Interval) -> dict[str, Any]:
    return {"mean": found.value, "low": found.low, "high": found.high}


def _counted(kind: str, n: int) -> str:
    one, more = {
        "colours": ("solid colour", "solid colours"),
        "images": ("other picture", "other pictures"),
    }.get(kind, (kind, kind))
    return f"{n} {one if n == 1 else more}"


def _text(kind: str, value: float) -> str:
    return format(value, _FORMATS.get(kind, ".0%"))


def _summary(entry: Mapping[str, Any], kinds: Sequence[str]) -> dict[str, Any]:
    cells = [
        {
            "kind": kind,
            "value": entry[kind]["mean"],
            "text": _text(kind, entry[kind]["mean"]),
            "interval": f"[{_text(kind, entry[kind]['low'])}, {_text(kind, entry[kind]['high'])}]",
        }
        for kind in kinds
    ]
    return {"name": entry["masker"], "cells": cells}


def _less_first(entry: Mapping[str, Any], kinds: Sequence[str]) -> dict[str, Any]:
    cells = []
    for kind in kinds:
        less = entry[kind]["less_first"]
        mean, low, high = (_signed(kind, less[name]) for name in ("mean", "low", "high"))
        cells.append({"text": mean, "interval": f"[{low}, {high}]", "p": f"{less['p']:.2g}"})
    return {"name": entry["masker"], "cells": cells}


def _signed(kind: str, value: float) -> str:
    digits = 3 if kind in _FORMATS else 2
    return format(round(value, digits) + 0.0, "+" + _FORMATS.get(kind, ".0%"))  # no -0


def _section(picture: ComparedPicture, kinds: Sequence[str]) -> dict[str, Any]:
    why = picture.compared[0].explanation
    # Read when its turn comes: a folder of pictures need not fit into memory.
    png: Callable[[], str] = functools.partial(_encoded, picture.drawn)
    rows = [
        {
            "name": row.name,
            "cells": [
                {"kind": kind, "value": _value(row, kind), "text": _text(kind, _value(row, kind))}
                for kind in kinds
            ],
            "masks": f"{row.explanation.evaluations:,}",
            "verdict": "" if row.explanation.sufficient else "NOT sufficient",
        }
        for row in picture.compared
    ]
    return {
        "name": picture.name,
        "answer": why.title,
        "whole": f"{why.confidence_whole:.3f}",
        "rows": rows,
        "png": png,
    }


def _encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode("ascii")
