"""Time per mask and peak memory, for growing numbers of masks and images, and batch sizes.

    python -m benchmarks.scale [--models NAME ...] [--most 16384] [--size 224] [--json FILE]

Three tables in one: 64 to --most masks on one image, streamed from a generator; 1 to 64 images with
a mask each; and, interleaved over --runs rounds on 128 masks, "auto" against the batch sizes of
--batches, and in batches of 8 ("of 8") the other options: channels-last and lower precision. Masks
keep each cell of a random 7 x 7 grid with probability 1/2, so that none is cheaper than the whole
image. "peak MB" is the memory of tensors in a second, untimed call, of which "answers MB" are the
logits; "deviation" is the largest difference of a logit from float32, as a share of the largest
logit. Run it under each allocator to compare them.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import convad_fx
from benchmarks import measure
from convad_fx.engine import Evaluation
from convad_fx.engine.precision import PRECISIONS

MODELS = ("mobilenet_v2",)
FIXED = 8


def masks(number: int, size: int, seed: int) -> Iterator[Tensor]:
    """Random 7 x 7 grids, enlarged, all different; a generator."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(number):
        grid = torch.rand(1, 1, 7, 7, generator=generator) < 0.5
        yield F.interpolate(grid.float(), (size, size), mode="nearest")[0] > 0.5


def rows_of(asked: argparse.Namespace) -> list[measure.Row]:
    rows = []
    for name in asked.models:
        model, x, weights = measure.Network.named(name, asked, asked.size)
        known = {"model": name, "weights": weights}
        masked = convad_fx.convert(model, x)
        if asked.compile:
            masked.compile()
        masked.evaluate(x, masks(128, x.shape[-1], 0))  # warm, and the batch size found
        number, seed = 64, 1
        while number <= asked.most:
            row = _row(partial(_streamed, masked, x, number, seed), asked)
            rows.append({**known, "masks": number, "images": 1, "batch": "auto", **row})
            number, seed = number * 4, seed + 1
            measure.table(rows[-1:])
        for images in (1, 4, 16, 64):
            many = torch.randn(images, *x.shape[1:], device=asked.device)
            given = torch.stack(list(masks(images, x.shape[-1], 0)))
            row = _row(partial(masked.evaluate, many, given), asked)
            rows.append({**known, "masks": images, "images": images, "batch": "auto", **row})
        rows += [{**known, **row} for row in _choices(model, masked, x, asked)]
    return rows


def _streamed(
    masked: convad_fx.MaskedModule,
    x: Tensor,
    number: int,
    seed: int,
    on_batch: Callable[[int], object] | None = None,
) -> Evaluation:
    return masked.evaluate(x, masks(number, x.shape[-1], seed), on_batch=on_batch)


def _choices(
    model: nn.Module, masked: convad_fx.MaskedModule, x: Tensor, asked: argparse.Namespace
) -> list[measure.Row]:
    """The same masks with each option of the user."""
    given = torch.stack(list(masks(128, x.shape[-1], 0)))
    last = x.to(memory_format=torch.channels_last)
    turned = convad_fx.convert(copy.deepcopy(model).to(memory_format=torch.channels_last), last)
    if asked.compile:
        turned.compile()
    calls: dict[str, Callable[[], Evaluation]] = {"auto": partial(masked.evaluate, x, given)}
    for size in dict.fromkeys([*asked.batches, FIXED]):
        calls[str(size)] = partial(masked.evaluate, x, given, batch_size=size)
    fixed = partial(masked.evaluate, x, given, batch_size=FIXED)
    calls[f"{FIXED}, channels-last"] = partial(turned.evaluate, last, given, batch_size=FIXED)
    for precision in asked.precisions:
        calls[f"{FIXED}, {precision}"] = partial(fixed, precision=precision)
    taken = measure.interleaved(calls, asked.runs)
    rows = []
    for name, call in calls.items():
        row = _row(call, asked)
        row |= {"ms per mask": 1000 * taken.median(name) / len(given)}
        base = str(FIXED) if name.startswith(f"{FIXED},") else "auto"
        row |= {"of": base, "times": taken.ratio(name, base), "quartiles": taken.spread(name, base)}
        rows.append({"masks": len(given), "images": 1, "batch": name, **row})
    return rows


def _row(call: Callable[..., Evaluation], asked: argparse.Namespace) -> measure.Row:
    began = time.perf_counter()
    found = call()
    measure.wait()
    seconds = time.perf_counter() - began
    with measure.Memory(asked.device) as memory:
        call(on_batch=memory.part)
    logits, deviation = found.logits, found.deviation
    return {
        "calls": found.batches,
        "ms per mask": 1000 * seconds / len(logits),
        "peak MB": memory.peak_mb,
        "answers MB": logits.numel() * logits.element_size() / 1e6,
        **({} if deviation is None else {"deviation": deviation / float(logits.abs().max())}),
    }


def main() -> None:
    parser = measure.parser(__doc__, MODELS)
    parser.add_argument("--most", type=int, default=16384)
    parser.add_argument("--size", type=int, help="of the image; 224 if it is not given")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 8, 14, 32, 64])
    parser.add_argument("--precisions", nargs="*", default=["bfloat16"], choices=PRECISIONS)
    parser.add_argument("--compile", action="store_true")
    measure.run(parser.parse_args(), rows_of)


if __name__ == "__main__":
    main()
