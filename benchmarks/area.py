"""Time per evaluation against the active area.

    python -m benchmarks.area [--models NAME ...] [--plot docs/images/area.png] [--json FILE]

Masks keep squares of 2 to 7 tiles a side (a tile is a seventh of the image, 32 pixels) at random
places, except for two pixels, one in the first tile and one in the last. These make all masks
different, and hide too large a box for patches; the default number of masks is too small for
shared tiles, so that boxes are timed. `masked.evaluate` runs compiled on --masks of each size,
interleaved; medians are shown. "active" is the share of pixels kept, "computed" that of the
arithmetic, "peak MB" the memory of tensors. Ideally, time is proportional to the active area.
`--plot` draws both.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import convad_fx
from benchmarks import measure
from convad_fx.engine.choose import MIN_MASKS_FOR_TILING

MODELS = ("resnet50", "mobilenet_v2")
TILES = 7  # of a side


def squares(side: int, number: int, size: int) -> torch.Tensor:
    """Masks that keep a square of `side` tiles a side, except for two distant pixels."""
    generator, tile = torch.Generator().manual_seed(side), size // TILES
    masks = torch.zeros(number, 1, size, size, dtype=torch.bool)
    for mask in masks:
        places = torch.randint(TILES - side + 1, (2,), generator=generator) * tile
        top, left = places.tolist()
        kept = mask[0, top : top + side * tile, left : left + side * tile]
        kept[:] = True
        for place in (0, side - 1):
            hidden = torch.randint(1, tile - 1, (2,), generator=generator) + place * tile
            kept[tuple(hidden.tolist())] = False
    return masks


def rows_of(asked: argparse.Namespace) -> list[measure.Row]:
    rows = []
    for name in asked.models:
        model, x, weights = measure.Network.named(name, asked)
        size = x.shape[-1]
        masked = convad_fx.convert(model, x)
        masked.compile()
        given = {side: squares(side, asked.masks, size) for side in range(2, TILES + 1)}
        calls = {str(side): partial(masked.evaluate, x, masks) for side, masks in given.items()}
        taken = measure.interleaved(calls, asked.runs)
        for side, masks in given.items():
            found = masked.evaluate(x, masks)
            rows.append(
                {
                    "model": name,
                    "weights": weights,
                    "active": float(masks.float().mean()),
                    "computed": found.area,
                    "ms per mask": 1000 * taken.median(str(side)) / asked.masks,
                    "of the whole": taken.ratio(str(side), str(TILES)),
                    "quartiles": taken.spread(str(side), str(TILES)),
                    "peak MB": measure.peak_mb(calls[str(side)], asked.device),
                }
            )
        measure.table(rows)
    return rows


def plot(rows: list[measure.Row], file: Path) -> None:
    """Time per mask, relative to the whole image, with the ideal line: a line per setting."""
    figure, axes = plt.subplots(figsize=(5, 4), layout="constrained")
    axes.plot([0, 1], [0, 1], color="0.7", linestyle="--", label="ideal: in proportion")
    for kind in dict.fromkeys((row["model"], row["allocator"]) for row in rows):
        mine = [row for row in rows if (row["model"], row["allocator"]) == kind]
        active = [row["active"] for row in mine]
        times = [row["of the whole"] for row in mine]
        axes.plot(active, times, marker="o", markersize=4, label=", ".join(kind))
    axes.set(xlabel="active share of the image", ylabel="time, of that for the whole image")
    axes.set(xlim=(0, 1.02), ylim=(0, 1.1))
    axes.legend(frameon=False)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = measure.parser(__doc__, MODELS)
    parser.add_argument(
        "--masks",
        type=int,
        default=MIN_MASKS_FOR_TILING - 1,
        help="of each size; 32 or more may share tiles",
    )
    parser.add_argument("--plot", type=Path)
    asked = parser.parse_args()
    rows = measure.run(asked, rows_of)
    if asked.plot and rows:
        plot(rows, asked.plot)


if __name__ == "__main__":
    main()
