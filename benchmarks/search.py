"""Masked evaluations per second, against painting, on the masks of explanations.

    python -m benchmarks.search [--kit DIR] [--models NAME ...] [--families NAME ...] [--json FILE]

Three families of masks on one image: a responsibility search; a sliding window that hides 32 pixels
square at stride 16; RISE's random 7 x 7 grids. `masked.evaluate` chooses its batches. The plain
network runs on images painted with zeros, in batches of each size of --batches, of which the
fastest counts, both eager and, painting included, compiled. Interleaved; medians are shown.

The search's masks are those of single steps of a responsibility search with 20 partitions, each
with about 14 combinations of the parts of its box (without those that then find a set). They come
from --photos photos of the kit by its MobileNetV2, for every network, with ReX's default (the class
alone decides), a later step for each photo; without --kit, from noise by the network itself.
`evaluate` is called once per step, as in the search. No mask occurs twice. Networks are
torchvision's, with random weights. Columns:

    active            share of the pixels kept
    computed          share of the arithmetic of whole images, on boxes, tiles or patches
    peak MB           memory of tensors, of `evaluate` and of painting, both compiled
    graphs, again     graphs compiled for `evaluate` so far, and those of them that were recompiled
    of one            masks of one explanation: the average of the searches (without finding the
                      set), all places of the window, RISE's 4000 (Petsiuk et al. 2018)
    explanations /min from these
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

import convad_fx
from benchmarks import measure
from benchmarks.kit import Kit
from convad_fx.engine import Evaluation
from convad_fx.engine.chunk import MASKS_PER_CHUNK
from convad_fx.explain.evaluator import Evaluator
from convad_fx.explain.responsibility import responsibility

MODELS = ("resnet50", "mobilenet_v2")
FAMILIES = ("search", "sliding", "rise")
SIZE = 224
PARTITIONS = 20
RISE = 4000


class Searches(NamedTuple):
    """One step of each of several searches, and the average number of masks of a search."""

    steps: list[Tensor]
    masks: float

    @classmethod
    def by(cls, masked: convad_fx.MaskedModule, images: Sequence[Tensor]) -> Searches:
        """An early step on the first image, later ones on those after it."""
        asked = [search_steps(masked, x) for x in images]
        some = [
            steps[(2 * k + 1) * len(steps) // (2 * len(asked))] for k, steps in enumerate(asked)
        ]
        return cls(some, sum(len(masks) for steps in asked for masks in steps) / len(asked))


def search_steps(masked: convad_fx.MaskedModule, x: Tensor) -> list[Tensor]:
    """The masks of a responsibility search, step by step."""
    asked: list[Tensor] = []

    def listening(image: Tensor, mask: Tensor) -> Tensor:
        asked.append(mask.cpu())
        return masked.evaluate(image, mask).logits

    evaluator = Evaluator(listening, x, batch_size=MASKS_PER_CHUNK)
    logits = evaluator.logits([np.ones(evaluator.shape, bool)])
    target = int(logits.argmax())
    whole = float(torch.softmax(logits, 1)[0, target])
    asked.clear()
    search = convad_fx.Search(partitions=PARTITIONS, confidence=0.0)
    responsibility(evaluator, target, whole, search, [0])
    return asked


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


def recorded(asked: argparse.Namespace) -> Searches | None:
    """Searches on photos of the kit, by its MobileNetV2; None without a kit.

    Recording takes minutes; --recorded names a file to keep them in.
    """
    if asked.recorded is not None and asked.recorded.exists():
        return Searches(**torch.load(asked.recorded))
    if asked.kit is None:
        return None
    kit = Kit(asked.kit)
    model, info = kit.load("mobilenet_v2")
    photos = [kit.photo(file, info).to(asked.device) for file in kit.files()[: asked.photos]]
    found = Searches.by(convad_fx.convert(model.eval().to(asked.device), photos[0]), photos)
    if asked.recorded is not None:
        torch.save(found._asdict(), asked.recorded)
    return found


def masks_of(family: str, known: Searches | None, most: int) -> list[Tensor]:
    """At most `most` masks of a family, by call, shuffled, none twice in a call."""
    match family:
        case "search":
            assert known is not None
            calls = known.steps
        case "sliding":
            calls = [sliding_masks()]
        case "rise":
            calls = [rise_masks(most)]
        case _:
            raise ValueError(family)
    generator = torch.Generator().manual_seed(0)
    found = []
    for masks in calls:
        unique = masks.unique(dim=0)
        found.append(unique[torch.randperm(len(unique), generator=generator)[: most // len(calls)]])
    return found


def of_one(family: str, known: Searches | None) -> float:
    """The number of masks of one explanation."""
    if family == "search":
        assert known is not None
        return known.masks
    return RISE if family == "rise" else len(sliding_masks())


def rows_of(asked: argparse.Namespace) -> list[measure.Row]:
    known = recorded(asked) if "search" in asked.families else None
    return [row for name in asked.models for row in _rows_of(name, known, asked)]


def _rows_of(name: str, known: Searches | None, asked: argparse.Namespace) -> list[measure.Row]:
    torch.manual_seed(0)
    torch._dynamo.reset()  # networks of one class share code, and the limit of its recompiling
    order = torch.channels_last if asked.channels_last else torch.contiguous_format
    model = torchvision.models.get_model(name, weights=None).eval()
    model.to(asked.device, memory_format=order)
    x = torch.randn(1, 3, SIZE, SIZE, device=asked.device).to(memory_format=order)
    masked, masked_compiled = convad_fx.convert(model, x), convad_fx.convert(model, x)
    masked_compiled.compile()
    painted = Painting(model)
    compiled = torch.compile(painted, dynamic=False)  # anew for each size of batch
    rows, graphs = [], measure.Compiled()
    if known is None and "search" in asked.families:
        known = Searches.by(masked, [x])

    def evaluate(by: convad_fx.MaskedModule, masks: list[Tensor]) -> list[Evaluation]:
        return [by.evaluate(x, call) for call in masks]

    def evaluate_compiled(masks: list[Tensor]) -> list[Evaluation]:
        with graphs.counted():
            return evaluate(masked_compiled, masks)

    for family in asked.families:
        masks = [m.to(asked.device) for m in masks_of(family, known, asked.masks)]
        # whole batches: compiled, the plain network is asked for no other sizes
        rest = sum(map(len, masks)) % max(asked.batches)
        masks[-1] = masks[-1][: len(masks[-1]) - rest]
        together = torch.cat(masks)
        with torch.inference_mode():
            found = evaluate_compiled(masks)
            logits = torch.cat([one.logits for one in found])
            expected = torch.cat([masked(x, part) for part in together.split(16)])
            worst = float((logits - expected).abs().max() / expected.abs().max())
            calls: dict[str, Any] = {
                "evaluate": partial(evaluate, masked, masks),
                "evaluate compiled": partial(evaluate_compiled, masks),
            }
            for size in asked.batches:
                calls[f"painting {size}"] = in_batches(painted, x, together, size)
                calls[f"painting compiled {size}"] = in_batches(compiled, x, together, size)
            taken = measure.interleaved(calls, asked.runs, warm_up=1)
            eager, fast = (
                min((f"{kind} {size}" for size in asked.batches), key=taken.median)
                for kind in ("painting", "painting compiled")
            )
            peaks = [
                measure.peak_mb(calls[key], asked.device) for key in ("evaluate compiled", fast)
            ]
        rate, asks = len(together) / taken.median("evaluate compiled"), of_one(family, known)
        rows.append(
            {
                "model": f"{name}, channels-last" if asked.channels_last else name,
                "masks": f"{family} ({' + '.join(str(len(call)) for call in masks)})",
                "active": float(together.float().mean()),
                "computed": sum(one.area * one.passes for one in found)
                / sum(one.passes for one in found),
                "evaluate /s": len(together) / taken.median("evaluate"),
                "compiled /s": rate,
                "painting /s": len(together) / taken.median(eager),
                "painting compiled /s": len(together) / taken.median(fast),
                "over painting compiled": taken.ratio(fast, "evaluate compiled"),
                "quartiles": taken.spread(fast, "evaluate compiled"),
                "over painting": taken.ratio(eager, "evaluate compiled"),
                "eager over painting": taken.ratio(eager, "evaluate"),
                "batches": f"{eager.split()[-1]}, {fast.split()[-1]}",
                "peak MB": peaks[0],
                "painting's": peaks[1],
                "graphs": graphs.graphs,
                "again": graphs.again,
                "differs": worst,
                "of one": asks,
                "explanations /min": 60 * rate / asks,
            }
        )
        measure.table(rows[-1:])
    return rows


def parser(about: str | None) -> argparse.ArgumentParser:
    """Options for the networks and masks; `benchmarks.strategies` has the same."""
    options = measure.parser(about, MODELS)
    options.add_argument("--photos", type=int, default=4)
    options.add_argument("--recorded", type=Path, help="file of the search's masks, made if absent")
    options.add_argument("--masks", type=int, default=1200)
    options.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    return options


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    options.add_argument("--channels-last", action="store_true", help="all of it in that order")
    measure.run(options.parse_args(), rows_of)


if __name__ == "__main__":
    main()
