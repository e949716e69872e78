"""How long checking and converting take.

    python -m benchmarks.convert [--models NAME ...] [--json FILE]

Random weights, 224 pixels, nothing is compiled. After one warm-up, each network is checked and
converted `--runs` times, interleaved with the others; medians and the slowest run are reported.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision

import convad_fx

MODELS = ("resnet18", "resnet50", "resnet152", "mobilenet_v2", "densenet121", "convnext_tiny")


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(names: list[str], runs: int) -> list[dict[str, object]]:
    models = {n: torchvision.models.get_model(n, weights=None).eval() for n in names}
    example = torch.zeros(1, 3, 224, 224)
    for model in models.values():
        convad_fx.convert(model, example)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for _ in range(runs):
        for name, model in models.items():
            check = seconds(lambda model=model: convad_fx.check(model, example))
            convert = seconds(lambda model=model: convad_fx.convert(model, example))
            taken[name].append((check, convert))
    rows: list[dict[str, object]] = []
    for name, pairs in taken.items():
        checks, converts = zip(*pairs, strict=True)
        rows.append(
            {
                "model": name,
                "operations": sum(n for _, n in convad_fx.check(models[name], example).operations),
                "check_s": statistics.median(checks),
                "convert_s": statistics.median(converts),
                "slowest_convert_s": max(converts),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    rows = measure(asked.models, asked.runs)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
    }
    print(f"{'model':<16} {'operations':>10} {'check s':>8} {'convert s':>10} {'slowest':>8}")
    for row in rows:
        print(
            f"{row['model']:<16} {row['operations']:>10} {row['check_s']:>8.2f}"
            f" {row['convert_s']:>10.2f} {row['slowest_convert_s']:>8.2f}"
        )
    print(machine)
    if asked.json:
        asked.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
