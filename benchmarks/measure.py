"""What the benchmarks share: interleaved timing, the machine, and tables."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision

#: How glibc's allocator is told to keep freed blocks instead of returning them at every call.
ALLOCATOR = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")


def parser(about: str | None, models: Sequence[str]) -> argparse.ArgumentParser:
    """Options that every benchmark takes."""
    asked = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    asked.add_argument("--models", nargs="+", default=list(models))
    asked.add_argument("--runs", type=int, default=5, help="interleaved; medians are reported")
    asked.add_argument("--device", default="cpu")
    asked.add_argument("--json", type=Path)
    return asked


def interleaved(
    calls: Mapping[str, Callable[[], object]], runs: int, warm_up: int = 2
) -> dict[str, float]:
    """Median seconds of each call: one after the other, `runs` times over, after a warm-up."""
    for call in calls.values():
        for _ in range(warm_up):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(runs):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def machine(device: str) -> dict[str, Any]:
    """Where it was measured."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else ""
    return {
        "device": name or platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "allocator": {name: os.environ.get(name, "default") for name in ALLOCATOR},
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "arguments": sys.argv[1:],
    }


def finish(rows: list[dict[str, Any]], asked: argparse.Namespace) -> None:
    """Print the table; write JSON if asked to."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_shown(row.get(name, "")) for name in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for line in (columns, *cells):
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    about = machine(asked.device)
    print(about)
    if asked.json:
        asked.json.write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n")


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
