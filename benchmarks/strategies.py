"""Marginal gain of each execution strategy of `evaluate`: the time without it, the others on.

    python -m benchmarks.strategies [--kit DIR] [--models NAME ...] [--families NAME ...] [--json F]

`masked.evaluate`, compiled, on the masks of `benchmarks.search`: with all strategies, and with
boxes, patches or shared tiles left out, interleaved, medians. Without boxes, masks run on whole
images, patches and tiles. "without box / all" is the time ratio, taken round by round, and 1.1
means that boxes save a tenth of the time that is needed without them; quartiles stand beside it.
"area" is the arithmetic, as a share of whole images'. Networks are torchvision's, with random
weights; the search's masks come from photos of the kit (--kit) or from a file (--recorded), else
from noise.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
import torchvision

import convad_fx
from benchmarks import measure
from benchmarks.search import SIZE, Searches, masks_of, parser, recorded
from convad_fx.engine import Evaluation

STRATEGIES = ("box", "patch", "tile")


def without(
    model: torch.nn.Module, x: torch.Tensor, strategy: str | None
) -> convad_fx.MaskedModule:
    """The masked network, compiled, without one of its strategies."""
    masked = convad_fx.convert(model, x)
    masked.engine.disabled = frozenset(() if strategy is None else (strategy,))
    masked.compile()
    return masked


def evaluate(
    masked: convad_fx.MaskedModule, x: torch.Tensor, calls: list[torch.Tensor]
) -> list[Evaluation]:
    return [masked.evaluate(x, masks) for masks in calls]


def area(evaluations: list[Evaluation]) -> float:
    passes = sum(one.passes for one in evaluations)
    return sum(one.area * one.passes for one in evaluations) / passes


def rows_of(asked: argparse.Namespace) -> list[measure.Row]:
    known = recorded(asked) if "search" in asked.families else None
    return [row for name in asked.models for row in _rows_of(name, known, asked)]


def _rows_of(name: str, known: Searches | None, asked: argparse.Namespace) -> list[measure.Row]:
    torch.manual_seed(0)
    torch._dynamo.reset()  # networks of one class share code, and the limit of its recompiling
    model = torchvision.models.get_model(name, weights=None).eval().to(asked.device)
    x = torch.randn(1, 3, SIZE, SIZE, device=asked.device)
    networks = {"all": without(model, x, None)}
    networks |= {strategy: without(model, x, strategy) for strategy in STRATEGIES}
    if known is None and "search" in asked.families:
        known = Searches.by(convad_fx.convert(model, x), [x])
    rows = []
    for family in asked.families:
        masks = [m.to(asked.device) for m in masks_of(family, known, asked.masks)]
        calls = {key: partial(evaluate, masked, x, masks) for key, masked in networks.items()}
        areas = {key: area(call()) for key, call in calls.items()}
        taken = measure.interleaved(calls, asked.runs, warm_up=1)
        number = sum(map(len, masks))
        row = {"model": name, "masks": f"{family} ({number})", "/s": number / taken.median("all")}
        row["area"] = areas["all"]
        for strategy in STRATEGIES:
            row[f"without {strategy} / all"] = taken.ratio(strategy, "all")
            row[f"{strategy} quartiles"] = taken.spread(strategy, "all")
            row[f"area without {strategy}"] = areas[strategy]
        rows.append(row)
        measure.table(rows[-1:])
    return rows


def main() -> None:
    measure.run(parser(__doc__).parse_args(), rows_of)


if __name__ == "__main__":
    main()
