"""Masked evaluations per second, against painting, on the masks that explanations ask about.

    python -m benchmarks.search [--kit DIR] [--models NAME ...] [--families NAME ...] [--json FILE]

Three families of masks on one image: those of a responsibility search; a sliding window that hides
32 pixels square at stride 16; RISE's random 7 x 7 grids. `masked.evaluate` finds its batches by
itself; the plain network runs on images painted with zeros in batches of each size of --batches,
the fastest of which counts, in eager mode and, painting included, compiled. Interleaved, medians.

The search's masks are recorded, in equal parts, from runs on --photos photos of the kit by its
MobileNetV2, for every network, with ReX's default (the class decides alone); without --kit, from a
run on noise by the network itself. "active" is the share of pixels kept, "computed" that of
the boxes that hold them, or of the arithmetic on patches; "graphs" counts what torch.compile has
compiled for `evaluate` in all families so far. No mask comes twice.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor
from torch._dynamo.utils import counters

import convad_fx
from benchmarks import measure
from benchmarks.kit import Kit
from convad_fx.compiler.evaluate import Evaluation

MODELS = ("resnet50", "mobilenet_v2")
FAMILIES = ("search", "sliding", "rise")
SIZE = 224


def search_masks(masked: convad_fx.MaskedModule, x: Tensor, most: int) -> Tensor:
    """What a real search asks, in a random order."""
    asked: list[Tensor] = []

    def listening(image: Tensor, mask: Tensor) -> Tensor:
        asked.append(mask.cpu())
        return masked.evaluate(image, mask).logits

    convad_fx.explain(listening, x, search=convad_fx.Search(partitions=4, confidence=0.0))
    masks = torch.cat(asked)
    return masks[torch.randperm(len(masks), generator=torch.Generator().manual_seed(0))[:most]]


def sliding_masks() -> Tensor:
    """A hidden square of 32 pixels at every 16th place."""
    places = range(0, SIZE - 31, 16)
    masks = torch.ones(len(places) ** 2, 1, SIZE, SIZE, dtype=torch.bool)
    for k, (i, j) in enumerate((i, j) for i in places for j in places):
        masks[k, :, i : i + 32, j : j + 32] = False
    return masks


def rise_masks(most: int) -> Tensor:
    """Random 7 x 7 grids, enlarged."""
    generator = torch.Generator().manual_seed(0)
    grids = (torch.rand(most, 1, 7, 7, generator=generator) < 0.5).float()
    return F.interpolate(grids, (SIZE, SIZE), mode="nearest") > 0.5


class Painting(torch.nn.Module):
    """The plain network on an image painted with zeros."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, mask: Tensor) -> Any:
        return self.model(torch.where(mask, x, 0.0))


def in_batches(
    painting: Callable[[Tensor, Tensor], Tensor], x: Tensor, masks: Tensor, size: int
) -> Callable[[], Tensor]:
    return lambda: torch.cat([painting(x, part) for part in masks.split(size)])


def recorded(asked: argparse.Namespace) -> Tensor | None:
    """Masks of real searches, in equal parts from some photos of the kit, if there is one."""
    if asked.kit is None:
        return None
    kit = Kit(asked.kit)
    model, info = kit.load("mobilenet_v2")
    photos = [kit.photo(file, info) for file in kit.files()[: asked.photos]]
    masked = convad_fx.convert(model.eval(), photos[0])
    each = -(-asked.masks // len(photos))
    return torch.cat([search_masks(masked, photo, each) for photo in photos])


def masks_of(
    family: str, masked: convad_fx.MaskedModule, x: Tensor, known: Tensor | None, most: int
) -> Tensor:
    """At most so many masks of one kind, none twice, in a random order."""
    match family:
        case "search":
            found = search_masks(masked, x, most) if known is None else known
        case "sliding":
            found = sliding_masks()[:most]
        case "rise":
            found = rise_masks(most)
        case _:
            raise ValueError(family)
    unique = found.unique(dim=0)
    return unique[torch.randperm(len(unique), generator=torch.Generator().manual_seed(0))]


def rows_of(asked: argparse.Namespace) -> list[measure.Row]:
    known = recorded(asked) if "search" in asked.families else None
    return [row for name in asked.models for row in _rows_of(name, known, asked)]


def _rows_of(name: str, known: Tensor | None, asked: argparse.Namespace) -> list[measure.Row]:
    torch.manual_seed(0)
    torch._dynamo.reset()  # networks of one class share code, and the limit of its recompiling
    model = torchvision.models.get_model(name, weights=None).eval().to(asked.device)
    x = torch.randn(1, 3, SIZE, SIZE, device=asked.device)
    masked, masked_compiled = convad_fx.convert(model, x), convad_fx.convert(model, x)
    masked_compiled.compile()
    painted = Painting(model)
    compiled = torch.compile(painted)
    rows, graphs = [], Counter[str]()

    def evaluate_compiled(masks: Tensor) -> Evaluation:
        before = counters["stats"]["unique_graphs"]
        found = masked_compiled.evaluate(x, masks)
        graphs["all"] += counters["stats"]["unique_graphs"] - before
        return found

    for family in asked.families:
        masks = masks_of(family, masked, x, known, asked.masks)
        # whole batches: compiled, the plain network is not asked for a second size of batch
        masks = masks[: len(masks) // max(asked.batches) * max(asked.batches)].to(asked.device)
        with torch.inference_mode():
            found = evaluate_compiled(masks)
            expected = torch.cat([masked(x, part) for part in masks.split(16)])
            worst = float((found.logits - expected).abs().max() / expected.abs().max())
            calls: dict[str, Any] = {
                "evaluate": lambda masks=masks: masked.evaluate(x, masks),
                "evaluate compiled": partial(evaluate_compiled, masks),
            }
            for size in asked.batches:
                calls[f"painting {size}"] = in_batches(painted, x, masks, size)
                calls[f"painting compiled {size}"] = in_batches(compiled, x, masks, size)
            taken = measure.interleaved(calls, asked.runs, warm_up=1)
        eager, fast = (
            min((f"{kind} {size}" for size in asked.batches), key=taken.median)
            for kind in ("painting", "painting compiled")
        )
        rows.append(
            {
                "model": name,
                "masks": f"{family} ({len(masks)})",
                "active": float(masks.float().mean()),
                "computed": found.area,
                "evaluate /s": len(masks) / taken.median("evaluate"),
                "compiled /s": len(masks) / taken.median("evaluate compiled"),
                "painting /s": len(masks) / taken.median(eager),
                "painting compiled /s": len(masks) / taken.median(fast),
                "over painting compiled": taken.ratio(fast, "evaluate compiled"),
                "quartiles": taken.spread(fast, "evaluate compiled"),
                "over painting": taken.ratio(eager, "evaluate compiled"),
                "eager over painting": taken.ratio(eager, "evaluate"),
                "batches": f"{eager.split()[-1]}, {fast.split()[-1]}",
                "graphs": graphs["all"],
                "differs": worst,
            }
        )
        measure.table(rows[-1:])
    return rows


def main() -> None:
    parser = measure.parser(__doc__, MODELS)
    parser.add_argument("--kit", type=Path, help="folder of real weights and photos")
    parser.add_argument("--photos", type=int, default=4)
    parser.add_argument("--masks", type=int, default=160)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    measure.run(parser.parse_args(), rows_of)


if __name__ == "__main__":
    main()
