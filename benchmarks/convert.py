"""How long checking, converting and compiling take.

    python -m benchmarks.convert [--models NAME ...] [--compile] [--json FILE]

Random weights, 224 pixels, or the networks of --kit. After one warm-up, each network is converted
`--runs` times, interleaved with the others: medians, and the slowest run. "trace", "check" (the
plan), "rewrite" (and simplify), "strategies" (boxes, tiles, patches), "emit" (code) and "verify"
(runs on random images) are the steps of the way, taken one by one in runs of their own, medians as
well; "forward" is the model on one image. --compile adds, once each and with nothing cached: the
first result of the compiled masked network on an image and a mask, of the plain one on the image,
and of `evaluate` on 16 masks that need boxes. "peak MB" is what tensors take
beyond what was held. The last column is milliseconds per operation of the network: about the same
for any depth if time grows linearly.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import convad_fx
from benchmarks import measure
from convad_fx.compiler.analysis.propagate import plan
from convad_fx.compiler.analysis.report import report_of
from convad_fx.compiler.capture.trace import trace
from convad_fx.compiler.capture.verify import compare
from convad_fx.compiler.lowering.strategies import plan_strategies
from convad_fx.compiler.passes.insert_gates import rewrite
from convad_fx.compiler.passes.simplify import simplify
from convad_fx.compiler.policy import Policy
from convad_fx.module import MaskedModule

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


def steps_of(model: nn.Module, x: Tensor) -> dict[str, float]:
    """Seconds of each step of `convad_fx.convert`, in their order."""
    policy, seconds = Policy(), {}

    def timed(step: str, function: Callable[..., Any], *args: Any) -> Any:
        began = time.perf_counter()
        result = function(*args)
        seconds[step] = seconds.get(step, 0.0) + time.perf_counter() - began
        return result

    traced = timed("trace", trace, model, x)
    decided = timed("check", plan, traced, policy)
    report = timed("check", report_of, traced, decided, type(model).__name__)
    graph = timed("rewrite", rewrite, traced, decided, policy)
    timed("rewrite", simplify, graph, decided)
    strategies = timed("strategies", plan_strategies, traced, decided, graph)
    masked = timed("emit", MaskedModule, traced.module, graph, policy, report, strategies)
    timed("verify", partial(compare, hides=True), model, traced.module, masked, x)
    with torch.inference_mode():
        timed("forward", model, x)
    return seconds


def first_result(call: Callable[[], object]) -> float:
    """Seconds of a first call, nothing compiled before it."""
    torch._dynamo.reset()
    began = time.perf_counter()
    with torch.inference_mode(), torch._inductor.utils.fresh_cache():
        call()
    return time.perf_counter() - began


def rows_of(asked: argparse.Namespace) -> list[measure.Row]:
    networks = {name: measure.Network.named(name, asked) for name in asked.models}
    steps: dict[str, list[dict[str, float]]] = {name: [] for name in networks}
    calls: dict[str, Callable[[], object]] = {}
    for name, (model, x, _) in networks.items():
        calls[f"convert {name}"] = partial(convad_fx.convert, model, x)
        calls[f"steps {name}"] = lambda name=name: steps[name].append(steps_of(*networks[name][:2]))
    taken = measure.interleaved(calls, asked.runs, warm_up=1)
    rows = []
    for name, (model, x, weights) in networks.items():
        operations = sum(number for _, number in convad_fx.check(model, x).operations)
        each = steps[name][1:]  # the first was the warm-up
        row: measure.Row = {
            "model": name,
            "weights": weights,
            "operations": operations,
            **{f"{step} s": statistics.median(one[step] for one in each) for step in each[0]},
            "convert s": taken.median(f"convert {name}"),
            "slowest": max(taken.seconds[f"convert {name}"]),
            "peak MB": measure.peak_mb(calls[f"convert {name}"], asked.device),
        }
        if asked.compile:
            masked, boxed = convad_fx.convert(model, x), convad_fx.convert(model, x)
            masked.compile()
            boxed.compile()
            kept = torch.zeros(16, 1, *x.shape[2:], dtype=torch.bool, device=asked.device)
            first, end = (n * x.shape[-1] // 7 for n in (2, 4))
            kept[..., first:end, first:end] = True
            k = torch.arange(16)
            kept[k, :, first + k // 4, first + k % 4] = False  # all different
            row["compile, first result s"] = first_result(partial(masked, x, kept[:1]))
            row["first evaluate s"] = first_result(partial(boxed.evaluate, x, kept))
            row["plain, the same s"] = first_result(partial(torch.compile(model), x))
        row["ms per operation"] = 1000 * row["convert s"] / operations
        rows.append(row)
        measure.table(rows[-1:])
    return rows


def main() -> None:
    parser = measure.parser(__doc__, MODELS)
    parser.add_argument("--compile", action="store_true")
    measure.run(parser.parse_args(), rows_of)


if __name__ == "__main__":
    main()
