"""Time per mask and peak memory, for ever more masks and images, and for each size of batch.

    python -m benchmarks.scale [--models NAME ...] [--most 16384] [--size 224] [--json FILE]

Three tables in one: 64 to --most masks on one image, streamed from a generator; 1 to 64 images with
a mask each; and, interleaved over --runs rounds on 128 masks, "auto" against the batch sizes of
--batches and the other choices a user has: channels-last, lower precision. All masks keep every
cell of a random 7 x 7 grid with probability 1/2, so none is cheaper than the whole image. Peak
memory is the process's (VmHWM), above what it held before; "answers" is what the logits take of
that; "deviation" is the largest of a logit from float32, as a share of the largest logit. Run under
each allocator, this shows what that setting is worth.
"""

from __future__ import annotations

import argparse
import copy
import gc
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import convad_fx
from benchmarks import measure
from convad_fx.compiler.evaluate import PRECISIONS, Evaluation

MODELS = ("mobilenet_v2",)


def masks(number: int, size: int, seed: int) -> Iterator[Tensor]:
    """Random 7 x 7 grids, enlarged; made as they are asked for, all different."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(number):
        grid = torch.rand(1, 1, 7, 7, generator=generator) < 0.5
        yield F.interpolate(grid.float(), (size, size), mode="nearest")[0] > 0.5


def measured(call: Callable[[], object], device: str) -> tuple[float, float]:
    """Seconds, and peak memory in MB above what was held before."""
    gc.collect()
    before = 0.0
    if device == "cpu":
        if not _reset_peak():
            raise SystemExit("peak memory is read from /proc, which this system lacks")
        before = _memory("VmRSS")
    else:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 1e6
    began = time.perf_counter()
    call()
    seconds = time.perf_counter() - began
    peak = _memory("VmHWM") if device == "cpu" else torch.cuda.max_memory_allocated() / 1e6
    return seconds, peak - before


def _reset_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _memory(field: str) -> float:
    for line in Path(f"/proc/{os.getpid()}/status").read_text().splitlines():
        if line.startswith(field):
            return float(line.split()[1]) / 1e3
    raise SystemExit(f"/proc has no {field} of this process")


def rows_of(asked: argparse.Namespace) -> list[measure.Row]:
    rows = []
    for name in asked.models:
        torch.manual_seed(0)
        model = torchvision.models.get_model(name, weights=None).eval().to(asked.device)
        x = torch.randn(1, 3, asked.size, asked.size, device=asked.device)
        masked = convad_fx.convert(model, x)
        if asked.compile:
            masked.compile()
        masked.evaluate(x, masks(128, asked.size, 0))  # warm, and the batch size found
        number, seed = 64, 1
        while number <= asked.most:
            given = masks(number, asked.size, seed)
            row = _row(partial(masked.evaluate, x, given), asked)
            rows.append({"model": name, "masks": number, "images": 1, "batch": "auto", **row})
            number, seed = number * 4, seed + 1
            measure.table(rows[-1:])
        for images in (1, 4, 16, 64):
            many = torch.randn(images, 3, asked.size, asked.size, device=asked.device)
            given = torch.stack(list(masks(images, asked.size, 0)))
            row = _row(partial(masked.evaluate, many, given), asked)
            rows.append({"model": name, "masks": images, "images": images, "batch": "auto", **row})
        rows += [{"model": name, **row} for row in _choices(model, masked, x, asked)]
    return rows


def _choices(
    model: nn.Module, masked: convad_fx.MaskedModule, x: Tensor, asked: argparse.Namespace
) -> list[measure.Row]:
    """The same masks, as a user may choose to have them evaluated."""
    given = torch.stack(list(masks(128, asked.size, 0)))
    last = x.to(memory_format=torch.channels_last)
    turned = convad_fx.convert(copy.deepcopy(model).to(memory_format=torch.channels_last), last)
    if asked.compile:
        turned.compile()
    calls: dict[str, Callable[[], Evaluation]] = {"auto": partial(masked.evaluate, x, given)}
    for size in asked.batches:
        calls[size] = partial(masked.evaluate, x, given, batch_size=int(size))
    calls["auto, channels-last"] = partial(turned.evaluate, last, given)
    for precision in asked.precisions:
        calls[f"auto, {precision}"] = partial(masked.evaluate, x, given, precision=precision)
    taken = measure.interleaved(calls, asked.runs)
    rows = []
    for name, call in calls.items():
        row = _row(call, asked)
        row |= {"ms per mask": 1000 * taken.median(name) / len(given)}
        row |= {"of auto": taken.ratio(name, "auto"), "quartiles": taken.spread(name, "auto")}
        rows.append({"masks": len(given), "images": 1, "batch": name, **row})
    return rows


def _row(call: Callable[[], Evaluation], asked: argparse.Namespace) -> measure.Row:
    found: list[Evaluation] = []
    seconds, peak = measured(lambda: found.append(call()), asked.device)
    logits = found[0].logits
    deviation = found[0].deviation
    return {
        "calls": found[0].batches,
        "ms per mask": 1000 * seconds / len(logits),
        "peak MB": peak,
        "answers MB": logits.numel() * logits.element_size() / 1e6,
        **({} if deviation is None else {"deviation": deviation / float(logits.abs().max())}),
    }


def main() -> None:
    parser = measure.parser(__doc__, MODELS)
    parser.add_argument("--most", type=int, default=16384)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batches", nargs="+", default=["1", "4", "8", "14", "32", "64"])
    parser.add_argument("--precisions", nargs="*", default=["bfloat16"], choices=PRECISIONS)
    parser.add_argument("--compile", action="store_true")
    measure.run(parser.parse_args(), rows_of)


if __name__ == "__main__":
    main()
