"""What the benchmarks share: options, interleaved timing, peak memory, the machine, tables.

A benchmark is a function of its options that returns rows. On a CPU it runs under the C library's
default settings and under those that keep freed memory, each in a process of its own; where they
are installed, jemalloc and tcmalloc can be asked for as well.
"""

from __future__ import annotations

import argparse
import ctypes.util
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor, nn
from torch._dynamo.utils import clear_compilation_metrics, counters, get_compilation_metrics

from benchmarks.kit import Kit

Row = dict[str, Any]

#: glibc keeps freed blocks instead of returning them to the system at every call.
TUNED = {
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "2147483648",
    "MALLOC_TOP_PAD_": "268435456",
}
#: Environment of each choice. Other allocators take the C library's place; found where installed.
ALLOCATORS: dict[str, dict[str, str]] = {"default": {}, "tuned": TUNED} | {
    name.removesuffix("_minimal"): {"LD_PRELOAD": library}
    for name in ("jemalloc", "tcmalloc_minimal", "tcmalloc")
    if (library := ctypes.util.find_library(name))
}
#: So many masks are counted in one go: torch keeps every event until counting ends.
PART = 512


def parser(
    about: str | None, models: Sequence[str], *, rounds: bool = True, kit_needed: bool = False
) -> argparse.ArgumentParser:
    """Options that every benchmark takes; without `rounds` it has some of its own."""
    asked = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    asked.add_argument("--models", nargs="+", default=list(models), metavar="NAME")
    if rounds:
        asked.add_argument("--runs", type=int, default=7, help="rounds; medians are reported")
    asked.add_argument("--device", default="cpu")
    asked.add_argument(
        "--kit",
        type=Path,
        required=kit_needed,
        metavar="DIR",
        help="folder of real weights and photos",
    )
    asked.add_argument("--json", type=Path, help="write the rows and the machine to this file")
    asked.add_argument(
        "--allocator",
        nargs="+",
        choices=list(ALLOCATORS),
        default=["default", "tuned"],
        help="what gives memory, one after the other: the C library as it is, told to keep what is "
        "freed, or another (CPU)",
    )
    return asked


class Network(NamedTuple):
    """A network, an image for it, and where its weights are from."""

    model: nn.Module
    x: Tensor
    weights: str

    @classmethod
    def named(cls, name: str, asked: argparse.Namespace, size: int | None = None) -> Network:
        """The kit's, and its first photo, if it has one so named.

        Else torchvision's, with random weights, and noise of this size, 224 unless it is given.
        """
        torch.manual_seed(0)
        if asked.kit is not None and name in (kit := Kit(asked.kit)):
            if size is not None:
                sys.exit(f"{name} of the kit sees photos of one size: leave the size out")
            (model, info), weights = kit.load(name), "the kit's"
            x = kit.photo(kit.files()[0], info)
        else:
            model, weights = torchvision.models.get_model(name, weights=None), "random"
            x = torch.randn(1, 3, size or 224, size or 224)
        return cls(model.eval().to(asked.device), x.to(asked.device), weights)


def run(asked: argparse.Namespace, rows_of: Callable[[argparse.Namespace], list[Row]]) -> list[Row]:
    """Run a benchmark under each allocator, print its table, write its JSON."""
    here = _allocator_here()
    if asked.device != "cpu" or asked.allocator == [here]:
        rows = [{"allocator": here, **row} for row in rows_of(asked)]
    else:
        rows = [row for name in asked.allocator for row in _child(name)]
    show(rows, asked.json, asked.device)
    return rows


def show(rows: Sequence[Row], file: Path | None, device: str = "cpu") -> None:
    """Print the table and the machine; with a file, write both to it."""
    table(rows)
    about = machine(device)
    print(about)
    if file:
        file.write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n")


def _allocator_here() -> str:
    """The choice this process runs under."""
    for name, settings in ALLOCATORS.items():
        if settings and all(os.environ.get(k) == v for k, v in settings.items()):
            return name
    return "default"


def _child(allocator: str) -> list[Row]:
    """The same command again, in a process with these settings."""
    chosen = ALLOCATORS[allocator]
    others = {key for settings in ALLOCATORS.values() for key in settings}
    environment = {k: v for k, v in os.environ.items() if k not in others} | chosen
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        # repeated options replace the ones before
        more = ["--allocator", allocator, "--json", str(file)]
        module = Path(sys.argv[0]).stem
        command = [sys.executable, "-m", f"benchmarks.{module}", *sys.argv[1:], *more]
        subprocess.run(command, env=environment, check=True)
        rows: list[Row] = json.loads(file.read_text())["rows"]
        return rows


class Timing:
    """Seconds that some calls took, round by round, side by side."""

    def __init__(self, seconds: Mapping[str, list[float]]) -> None:
        self.seconds = seconds

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, over: str) -> float:
        """Median of the ratios within each round: what slows the machine for a while cancels."""
        return statistics.median(self._ratios(name, over))

    def spread(self, name: str, over: str) -> str:
        """Quartiles of the same ratios; of fewer than four rounds, the least and the largest."""
        ratios = self._ratios(name, over)
        if len(ratios) < 4:
            return f"{min(ratios):.2f}..{max(ratios):.2f}"
        low, _, high = statistics.quantiles(ratios, n=4)
        return f"{low:.2f}..{high:.2f}"

    def _ratios(self, name: str, over: str) -> list[float]:
        pairs = zip(self.seconds[name], self.seconds[over], strict=True)
        return [a / b for a, b in pairs]


def interleaved(calls: Mapping[str, Callable[[], object]], runs: int, warm_up: int = 2) -> Timing:
    """Time each call once in every round, after a warm-up."""
    for call in calls.values():
        for _ in range(warm_up):
            call()
    wait()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(max(runs, 2)):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            wait()
            seconds[name].append(time.perf_counter() - began)
    return Timing(seconds)


def wait() -> None:
    """Until a GPU has done what it was asked."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Memory:
    """What tensors take at most, above what there was before, while it is counted."""

    def __init__(self, device: str) -> None:
        self.gpu = device != "cpu"
        self.before = self.held = self.most = self.since = 0
        self.profile: torch.profiler.profile | None = None

    def __enter__(self) -> Memory:
        gc.collect()
        if self.gpu:
            torch.cuda.synchronize()
            self.before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        else:
            self._begin()
        return self

    def __exit__(self, *_: object) -> None:
        if self.gpu:
            torch.cuda.synchronize()
            self.most = torch.cuda.max_memory_allocated() - self.before
        else:
            self._end()

    def part(self, masks: int = PART) -> None:
        """So many masks were done. On a CPU torch holds all events, so counting begins anew."""
        self.since += masks
        if not self.gpu and self.since >= PART:
            gc.collect()  # not between parts, where it would go unseen
            self._end()
            self._begin()

    def _begin(self) -> None:
        self.since = 0
        cpu = [torch.profiler.ProfilerActivity.CPU]
        self.profile = torch.profiler.profile(activities=cpu, profile_memory=True)
        self.profile.start()

    def _end(self) -> None:
        assert self.profile is not None
        self.profile.stop()
        assert self.profile.profiler is not None
        results = self.profile.profiler.kineto_results
        assert results is not None
        memory = [event for event in results.events() if event.name() == "[memory]"]
        for event in sorted(memory, key=lambda event: event.start_ns()):
            self.held += event.nbytes()  # what is freed that was made in an earlier part, too
            self.most = max(self.most, self.held)

    @property
    def peak_mb(self) -> float:
        return self.most / 1e6


def peak_mb(call: Callable[[], object], device: str = "cpu") -> float:
    """The most that tensors take during a call, above what there was before, in MB."""
    with Memory(device) as memory:
        call()
    return memory.peak_mb


@dataclass
class Compiled:
    """What torch.compile has made while it was counted.

    Attributes:
        graphs: all there are.
        again: recompilations: one more version of code of which there was one.
    """

    graphs: int = 0
    again: int = 0

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count what is compiled inside."""
        clear_compilation_metrics()  # torch keeps the last 64: more than are compiled in here
        before = counters["stats"]["unique_graphs"]
        try:
            yield
        finally:
            self.graphs += counters["stats"]["unique_graphs"] - before
            done = [one for one in get_compilation_metrics() if one.fail_type is None]
            self.again += sum(one.recompile_reason is not None for one in done)


def machine(device: str) -> dict[str, Any]:
    """Where it was measured, and with what."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "command": f"python -m benchmarks.{Path(sys.argv[0]).stem} {' '.join(sys.argv[1:])}",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def table(rows: Sequence[Row]) -> None:
    """Print rows under the union of their columns."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_shown(row.get(name, "")) for name in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for line in (columns, *cells):
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
