"""How long checking, converting and compiling take.

    python -m benchmarks.convert [--models NAME ...] [--compile] [--json FILE]

Random weights, 224 pixels. After one warm-up, each network is checked and converted `--runs` times,
interleaved with the others; medians and the slowest run are reported. --compile adds, once each and
with nothing cached: the first result of the compiled masked network, and of the plain one. The
last column is milliseconds per operation of the network: about the same for any depth if time grows
linearly.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
import torchvision
from torch import nn

import convad_fx
from benchmarks import measure

MODELS = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "mobilenet_v2",
    "efficientnet_b0",
    "densenet121",
    "convnext_tiny",
)


def first_result(call: Callable[[], object]) -> float:
    """Seconds of a first call, nothing compiled before it."""
    torch._dynamo.reset()
    began = time.perf_counter()
    with torch.inference_mode(), torch._inductor.utils.fresh_cache():
        call()
    return time.perf_counter() - began


def rows_of(asked: argparse.Namespace) -> list[measure.Row]:
    models: dict[str, nn.Module] = {
        name: torchvision.models.get_model(name, weights=None).eval().to(asked.device)
        for name in asked.models
    }
    x = torch.zeros(1, 3, 224, 224, device=asked.device)
    calls: dict[str, Callable[[], object]] = {}
    for name, model in models.items():
        calls[f"check {name}"] = partial(convad_fx.check, model, x)
        calls[f"convert {name}"] = partial(convad_fx.convert, model, x)
    taken = measure.interleaved(calls, asked.runs, warm_up=1)
    rows = []
    for name, model in models.items():
        operations = sum(number for _, number in convad_fx.check(model, x).operations)
        row: measure.Row = {
            "model": name,
            "operations": operations,
            "check s": taken.median(f"check {name}"),
            "convert s": taken.median(f"convert {name}"),
            "slowest": max(taken.seconds[f"convert {name}"]),
        }
        if asked.compile:
            masked = convad_fx.convert(model, x)
            masked.compile()
            row["compile, first result s"] = first_result(partial(masked, x))
            row["plain, the same s"] = first_result(partial(torch.compile(model), x))
        row["ms per operation"] = 1000 * row["convert s"] / operations
        rows.append(row)
        measure.table(rows[-1:])
    return rows


def main() -> None:
    parser = measure.parser(__doc__, MODELS)
    parser.set_defaults(allocator=["default"])  # which makes no difference to it
    parser.add_argument("--compile", action="store_true")
    measure.run(parser.parse_args(), rows_of)


if __name__ == "__main__":
    main()
