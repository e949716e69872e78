"""Masked evaluations per second, against painting, on the masks that explanations ask about.

    python -m benchmarks.search [--models NAME ...] [--masks 280] [--compile] [--json FILE]

Three families of masks on one image: those of a responsibility search, recorded from a run on this
network; a sliding window that hides 32 pixels square at stride 16; RISE's random 7 x 7 grids.
`masked.evaluate` against the plain network on painted images (zero, the mean colour), in batches of
the same size (--batch), eager and, with --compile, all compiled. Interleaved, medians.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

import convad_fx
from benchmarks import measure

SIZE = 224


def search_masks(masked: convad_fx.MaskedModule, x: Tensor, most: int) -> Tensor:
    """What a real search asks this network."""
    asked: list[Tensor] = []

    def listening(image: Tensor, mask: Tensor) -> Tensor:
        asked.append(mask)
        logits: Tensor = masked(image, mask)
        return logits

    convad_fx.explain(listening, x, search=convad_fx.Search(partitions=4))
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


def painting(model: Callable[[Tensor], Tensor], x: Tensor, masks: Tensor, batch: int) -> Tensor:
    """The plain network on images painted with zeros."""
    return torch.cat([model(torch.where(part, x, 0.0)) for part in masks.split(batch)])


def rows_of(name: str, asked: Any) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval().to(asked.device)
    x = torch.randn(1, 3, SIZE, SIZE, device=asked.device)
    masked = convad_fx.convert(model, x)
    families = {
        "search": search_masks(masked, x, asked.masks),
        "sliding": sliding_masks()[: asked.masks],
        "rise": rise_masks(asked.masks),
    }
    plain: Callable[[Tensor], Tensor] | None = None
    if asked.compile:
        masked.compile()
        plain = torch.compile(model, dynamic=True)
    rows = []
    for family, masks in families.items():
        masks = masks.to(asked.device)
        with torch.inference_mode():
            found = masked.evaluate(x, masks, batch_size=asked.batch)
            expected = masked(x, masks[:16])
            worst = float((found.logits[:16] - expected).abs().max() / expected.abs().max())
            calls: dict[str, Any] = {
                "evaluate": lambda m=masks: masked.evaluate(x, m, batch_size=asked.batch),
                "painting": lambda m=masks: painting(model, x, m, asked.batch),
            }
            if plain is not None:
                calls["painting compiled"] = lambda m=masks: painting(plain, x, m, asked.batch)
            seconds = measure.interleaved(calls, asked.runs, warm_up=1)
        rows.append(
            {
                "model": name,
                "masks": f"{family} ({len(masks)})",
                "area": found.area,
                **{f"{key} /s": len(masks) / value for key, value in seconds.items()},
                **{
                    f"over {key}": seconds[key] / seconds["evaluate"]
                    for key in seconds
                    if key != "evaluate"
                },
                "differs": worst,
            }
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = measure.parser(__doc__, ("resnet50", "mobilenet_v2"))
    parser.add_argument("--masks", type=int, default=280)
    parser.add_argument("--batch", type=int, default=8, help="whole images' worth, for all of them")
    parser.add_argument("--compile", action="store_true")
    asked = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in asked.models:
        rows += rows_of(name, asked)
    measure.finish(rows, asked)


if __name__ == "__main__":
    main()
