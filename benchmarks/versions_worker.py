"""One version of the package, answering requests line by line; started by `versions`.

It uses the public interface alone, and nothing of `benchmarks`, so that it runs on any version.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch import Tensor

import convad_fx


def works(name: str, masks_file: str, batch: int) -> dict[str, Callable[[], Tensor]]:
    """What can be requested, by name."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    x = torch.randn(1, 3, 224, 224)
    some = torch.rand(batch, 1, 224, 224) < 0.5
    plain = torch.compile(model)
    masked = convad_fx.convert(model, x)
    masked.compile()
    searched: list[Tensor] = torch.load(masks_file)
    images = x.expand(batch, -1, -1, -1).contiguous()
    return {
        "plain": lambda: plain(images),
        "overhead": lambda: masked(x, some),
        "search": lambda: torch.cat([masked.evaluate(x, masks).logits for masks in searched]),
    }


def main() -> None:
    name, masks_file, batch = sys.argv[1:]
    calls = works(name, masks_file, int(batch))
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for line in sys.stdin:
            *kind, work = line.split()
            began = time.perf_counter()
            logits = calls[work]()
            answer: float | str = time.perf_counter() - began
            if kind == ["logits"]:
                answer = str(Path(folder) / f"{work}.pt")
                torch.save(logits, answer)
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
