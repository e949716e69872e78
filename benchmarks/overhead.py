"""What masking costs on top of the network, on the same batch.

    python -m benchmarks.overhead [--models NAME ...] [--batches 1 8 32] [--json FILE]

Plain eager, plain compiled, masks carried by forward hooks (`hook_based`), masked eager and masked
compiled: interleaved, after warm-up, medians. Random weights, 224 pixels, or the networks of --kit.
"one" is one image under as many random masks as the batch holds; "many" as many images, a mask
each. The plain network runs on as many images. What the hooks give is first compared with the
masked network, in eager mode and compiled; if they differ by more than rounding, nothing is timed.
The kit's networks pad and cut by functions, which no hook sees: without hooks. Peak memory is that
of the compiled networks.
"""

from __future__ import annotations

import argparse
import copy
from typing import Any

import torch

import convad_fx
from benchmarks import measure
from benchmarks.hook_based import HookBased

#: More than this, as a share of the largest logit, is no rounding.
ROUNDING = 0.01
MODELS = (
    "resnet18",
    "resnet50",
    "mobilenet_v2",
    "efficientnet_b0",
    "densenet121",
    "convnext_tiny",
)


def rows_of(asked: argparse.Namespace) -> list[measure.Row]:
    rows = []
    for name in asked.models:
        torch._dynamo.reset()  # networks of one class share code, and the limit of its recompiling
        networks = _Networks(name, asked)
        for batch in asked.batches:
            for images in ("one", "many") if batch > 1 else ("one",):
                rows.append(networks.row(batch, images, asked))
                measure.table(rows[-1:])
    return rows


class _Networks:
    """One network in all the forms that are compared."""

    def __init__(self, name: str, asked: argparse.Namespace) -> None:
        self.name = name
        self.model, self.x, self.weights = measure.Network.named(name, asked)
        self.hooked = copy.deepcopy(self.model)
        self.masked = convad_fx.convert(self.model, self.x)
        self.masked_compiled = convad_fx.convert(self.model, self.x)
        self.masked_compiled.compile()
        self.compiled = torch.compile(self.model)

    def row(self, batch: int, images: str, asked: argparse.Namespace) -> measure.Row:
        masks = torch.rand(batch, 1, *self.x.shape[2:], device=asked.device) < 0.5
        plain = self.x.expand(batch, -1, -1, -1).contiguous()
        x = self.x if images == "one" else plain
        calls: dict[str, Any] = {
            "plain": lambda: self.model(plain),
            "plain compiled": lambda: self.compiled(plain),
            "masked": lambda: self.masked(x, masks),
            "masked compiled": lambda: self.masked_compiled(x, masks),
        }
        differ: dict[str, float] = {}
        with torch.inference_mode(), HookBased(self.hooked) as hooked:
            if self.weights == "random":
                given = hooked(x, masks)
                for kind, network in (("masked", self.masked), ("compiled", self.masked_compiled)):
                    expected = network(x, masks)
                    differ[kind] = float((given - expected).abs().max() / expected.abs().max())
                    if not differ[kind] < ROUNDING:
                        raise SystemExit(f"{self.name}: hooks and {kind} differ by {differ[kind]}")
                calls["hooks"] = lambda: hooked(x, masks)
            taken = measure.interleaved(calls, asked.runs)
            peaks = [
                measure.peak_mb(calls[key], asked.device)
                for key in ("plain compiled", "masked compiled")
            ]
        row = {
            "model": self.name,
            "weights": self.weights,
            "batch": batch,
            "images": images,
            **{f"{key} ms": 1000 * taken.median(key) for key in calls},
            "masked / plain, eager": taken.ratio("masked", "plain"),
            "masked / plain, compiled": taken.ratio("masked compiled", "plain compiled"),
            "quartiles": taken.spread("masked compiled", "plain compiled"),
            "memory": peaks[1] / peaks[0],
        }
        if differ:
            row |= {
                "hooks / masked compiled": taken.ratio("hooks", "masked compiled"),
                "their quartiles": taken.spread("hooks", "masked compiled"),
                "hooks differ": differ["masked"],
                "from compiled": differ["compiled"],
            }
        return row


def main() -> None:
    parser = measure.parser(__doc__, MODELS)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    measure.run(parser.parse_args(), rows_of)


if __name__ == "__main__":
    main()
