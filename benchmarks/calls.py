"""Time of a call of the network on boxes: for sizes that are new, and for sizes seen before.

    python -m benchmarks.calls [--models NAME ...] [--kernels 8192] [--json FILE]

The compiled network runs on boxes of 16 sizes in batches of three sizes, which makes 48 shapes.
"new" is the first call of each shape; "at once", the second, directly after it; "later", a third,
after all other shapes, for which oneDNN has kept its kernels or not (--kernels: how many it keeps;
its default is 1024, that of `convad_fx.keep_memory` 8192). Times are means over the shapes, in ms.
"ms an image's worth" is the time "at once" for the arithmetic of a whole image. Compiling is not
timed. Each shape is timed once, since it is new only once.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

import convad_fx
from benchmarks import measure
from convad_fx.engine.batch_size import BatchSize
from convad_fx.engine.box import BoxStrategy
from convad_fx.engine.chunk import Chunk

MODELS = ("mobilenet_v2", "resnet50")
SIDES = (97, 129, 161, 193)  # of 224
BATCHES = (3, 5, 9)
KERNELS = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"


def seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    measure.wait()
    return time.perf_counter() - began


def rows_of(asked: argparse.Namespace) -> list[measure.Row]:
    rows = []
    for name in asked.models:
        torch._dynamo.reset()
        model, x, weights = measure.Network.named(name, asked)
        size = x.shape[-1]
        masked = convad_fx.convert(model, x)
        masked.compile()
        masks = torch.zeros(32, 1, size, size, dtype=torch.bool, device=asked.device)
        masks[..., size // 6 : size // 4, size // 6 : size // 4] = True
        box_plan = masked.strategies.box
        work = box_plan.work
        with torch.inference_mode():
            parts = masked.engine.parts
            chunk = Chunk(x, masks, list(range(len(masks))))
            strategy = BoxStrategy(box_plan, parts, chunk, BatchSize(len(masks)))

            def call(shape: tuple[int, int, int], strategy: BoxStrategy = strategy) -> None:
                code, *arguments = strategy.call(shape[:2], list(range(shape[2])))
                code(*arguments)

            for batch in (8, 20):  # the two versions that torch compiles
                call((2 * box_plan.tile[0], 2 * box_plan.tile[1], batch))
            lines, columns = (
                [-(-a * size // 224 // g) * g for a in SIDES] for g in box_plan.granularity
            )
            shapes = [(a, b, n) for a in lines for b in columns for n in BATCHES]
            new, again = [], []
            for shape in shapes:
                new.append(seconds(lambda shape=shape: call(shape)))
                again.append(seconds(lambda shape=shape: call(shape)))
            later = [seconds(lambda shape=shape: call(shape)) for shape in shapes]
        images = sum(n * work.share((a, b)) for a, b, n in shapes)
        each = sum(again) / images
        rows.append(
            {
                "model": name,
                "weights": weights,
                "kernels": os.environ.get(KERNELS, "1024"),
                "images' worth": images / len(shapes),
                "ms new": 1000 * statistics.mean(new),
                "ms at once": 1000 * statistics.mean(again),
                "ms later": 1000 * statistics.mean(later),
                "ms an image's worth": 1000 * each,
                "a new shape, in images": (statistics.mean(new) - statistics.mean(again)) / each,
            }
        )
        measure.table(rows[-1:])
    return rows


def main() -> None:
    parser = measure.parser(__doc__, MODELS, rounds=False)
    parser.add_argument("--kernels", help="that oneDNN keeps (CPU)")
    asked = parser.parse_args()
    if asked.kernels is not None:
        os.environ[KERNELS] = asked.kernels  # read at the first convolution, and by children
    measure.run(asked, rows_of)


if __name__ == "__main__":
    main()
