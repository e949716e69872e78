"""What masking costs on top of the network, on the same batch.

    python -m benchmarks.overhead [--models NAME ...] [--batches 1 8 32] [--json FILE]

Plain eager, plain compiled, masks carried by forward hooks (`hook_based`), masked eager and masked
compiled: interleaved, after warm-up, medians. Random weights, 224 pixels, one image with as many
random masks as the batch holds. What the hooks give is first compared with the masked network.
"""

from __future__ import annotations

from typing import Any

import torch
import torchvision

import convad_fx
from benchmarks import measure
from benchmarks.hook_based import HookBased

MODELS = (
    "resnet18",
    "resnet50",
    "mobilenet_v2",
    "efficientnet_b0",
    "densenet121",
    "convnext_tiny",
)


def rows_of(name: str, batches: list[int], runs: int, device: str) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval().to(device)
    hooked_model = torchvision.models.get_model(name, weights=None).eval().to(device)
    hooked_model.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 224, 224, device=device)
    masked, compiled = convad_fx.convert(model, x), convad_fx.convert(model, x)
    compiled.compile()
    plain = torch.compile(model)
    rows = []
    for batch in batches:
        masks = torch.rand(batch, 1, 224, 224, device=device) < 0.5
        images = x.expand(batch, -1, -1, -1).contiguous()
        with torch.inference_mode(), HookBased(hooked_model) as hooked:
            expected = masked(x, masks)
            worst = float((hooked(x, masks) - expected).abs().max() / expected.abs().max())
            calls: dict[str, Any] = {
                "plain": lambda images=images: model(images),
                "plain_compiled": lambda images=images: plain(images),
                "hooks": lambda hooked=hooked, masks=masks: hooked(x, masks),
                "masked": lambda masks=masks: masked(x, masks),
                "masked_compiled": lambda masks=masks: compiled(x, masks),
            }
            seconds = measure.interleaved(calls, runs)
        rows.append(
            {
                "model": name,
                "batch": batch,
                **{f"{key} ms": 1000 * value for key, value in seconds.items()},
                "masked/plain": seconds["masked"] / seconds["plain"],
                "both compiled": seconds["masked_compiled"] / seconds["plain_compiled"],
                "hooks/compiled": seconds["hooks"] / seconds["masked_compiled"],
                "hooks differ": worst,
            }
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = measure.parser(__doc__, MODELS)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    asked = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in asked.models:
        rows += rows_of(name, asked.batches, asked.runs, asked.device)
    measure.finish(rows, asked)


if __name__ == "__main__":
    main()
