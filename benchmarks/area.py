"""Time per evaluation against the active area.

    python -m benchmarks.area [--models NAME ...] [--plot docs/images/area.png] [--json FILE]

Inside squares of 2 to 7 tiles a side (a tile is 32 pixels), at random places, every cell of 8
pixels is kept with probability 1/2; `masked.evaluate`, compiled, on --masks of each size,
interleaved, medians. The ideal is time in proportion to the area, through the whole image. `--plot`
draws both.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torchvision

import convad_fx
from benchmarks import measure

MODELS = ("resnet50", "mobilenet_v2")
SIZE, TILE, CELL = 224, 32, 8


def squares(side: int, number: int) -> torch.Tensor:
    """Masks that keep half the cells of a square of so many tiles, each at another place."""
    generator = torch.Generator().manual_seed(side)
    masks = torch.zeros(number, 1, SIZE, SIZE, dtype=torch.bool)
    for mask in masks:
        places = torch.randint(SIZE // TILE - side + 1, (2,), generator=generator) * TILE
        top, left = places.tolist()
        cells = torch.rand(side * TILE // CELL, side * TILE // CELL, generator=generator) < 0.5
        kept = cells.repeat_interleave(CELL, 0).repeat_interleave(CELL, 1)
        mask[0, top : top + side * TILE, left : left + side * TILE] = kept
    return masks


def rows_of(asked: argparse.Namespace) -> list[measure.Row]:
    rows = []
    for name in asked.models:
        torch.manual_seed(0)
        model = torchvision.models.get_model(name, weights=None).eval().to(asked.device)
        x = torch.randn(1, 3, SIZE, SIZE, device=asked.device)
        masked = convad_fx.convert(model, x)
        masked.compile()
        given = {side: squares(side, asked.masks) for side in range(2, SIZE // TILE + 1)}
        calls = {str(side): partial(masked.evaluate, x, masks) for side, masks in given.items()}
        taken = measure.interleaved(calls, asked.runs)
        for side, masks in given.items():
            found = masked.evaluate(x, masks)
            rows.append(
                {
                    "model": name,
                    "active": (side * TILE / SIZE) ** 2,
                    "computed": found.area,
                    "ms per mask": 1000 * taken.median(str(side)) / asked.masks,
                    "of the whole": taken.ratio(str(side), str(SIZE // TILE)),
                }
            )
        measure.table(rows)
    return rows


def plot(rows: list[measure.Row], file: Path) -> None:
    """Time per mask, relative to the whole image, with the ideal line."""
    figure, axes = plt.subplots(figsize=(5, 4), layout="constrained")
    axes.plot([0, 1], [0, 1], color="0.7", linestyle="--", label="ideal: in proportion")
    for name in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == name]
        active = [row["active"] for row in mine]
        axes.plot(active, [row["of the whole"] for row in mine], marker="o", label=name)
    axes.set(xlabel="active share of the image", ylabel="time, of that for the whole image")
    axes.set(xlim=(0, 1.02), ylim=(0, 1.1))
    axes.legend(frameon=False)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = measure.parser(__doc__, MODELS)
    parser.set_defaults(allocator=["tuned"])
    parser.add_argument("--masks", type=int, default=32)
    parser.add_argument("--plot", type=Path)
    asked = parser.parse_args()
    rows = measure.run(asked, rows_of)
    if asked.plot and rows:
        plot(rows, asked.plot)


if __name__ == "__main__":
    main()
