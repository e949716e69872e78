"""A run over a folder: two processes against one, per picture, and where the time goes.

    python -m benchmarks.many PHOTO... --model mine:build --mean 0.5 --std 0.5 [--json FILE]
    python -m benchmarks.many --kit DIR --pictures 8 [--json FILE]

The same pictures, search and seed by one process with one thread, one with two, and two with one
each (`--ways`, PROCESSES x THREADS), each with the command line in processes of its own, as
torchrun starts them, taking turns (`--runs`). "s per picture" is the time from the first picture to
the last row of the slowest process, over all pictures; "start s" what comes before: imports,
weights, conversion. Load, search and write are seconds of work per picture, summed over processes,
and "waiting" those that one process had nothing left to do while the other still worked.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.kit import Kit
from benchmarks.measure import Row, show
from convad_fx.many import read, stream

PARTS = ("load", "search", "write")


def command(asked: argparse.Namespace, folder: Path) -> list[str]:
    options = {
        "--model": asked.model,
        "--weights": asked.weights,
        "--mean": asked.mean,
        "--std": asked.std,
        "--partitions": asked.partitions,
        "--out": folder,
        "--device": "cpu",
    }
    given = [str(part) for option in options.items() for part in option if option[1] is not None]
    return [sys.executable, "-m", "convad_fx", "explain", *map(str, asked.photos), *given, "--json",
            "--resume"]  # fmt: skip


def measure(asked: argparse.Namespace, processes: int, threads: int) -> dict[str, Any]:
    """One run: seconds by name, and what it found, without the timings."""
    with tempfile.TemporaryDirectory() as name:
        began = time.perf_counter()
        started = []
        for rank in range(processes):
            own = {"RANK": rank, "WORLD_SIZE": processes, "LOCAL_RANK": rank}
            own |= {"OMP_NUM_THREADS": threads}
            environment = os.environ | {key: str(value) for key, value in own.items()}
            started.append(
                subprocess.Popen(
                    command(asked, Path(name)), env=environment, stdout=subprocess.PIPE, text=True
                )
            )
        said = [process.communicate()[0] for process in started]
        whole = time.perf_counter() - began
        if any(process.returncode for process in started):
            raise SystemExit("a run failed; what it says is above")
        seconds = [json.loads(text)["seconds"] for text in said]
        rows = read(name).to_pylist()
    n = len(rows)
    running = max(each["all"] for each in seconds)
    parts = {f"{part} s": sum(each[part] for each in seconds) / n for part in PARTS}
    return {
        "s per picture": running / n,
        "start s": whole - running,
        **parts,
        "waiting s": (processes * running - sum(each["all"] for each in seconds)) / n,
        "masks": sum(row["evaluations"] for row in rows) / n,
        "kept": {row["key"]: row["pixels"] for row in rows},
    }


def rows_of(asked: argparse.Namespace) -> list[Row]:
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in asked.ways}
    for _ in range(asked.runs):
        for way in asked.ways:
            processes, threads = map(int, way.split("x"))
            found[way].append(measure(asked, processes, threads))
    first = found[asked.ways[0]][0]
    rows = []
    for way, runs in found.items():
        assert all(run["kept"].keys() == first["kept"].keys() for run in runs), "other pictures"
        numbers = [name for name in first if name != "kept"]
        row: Row = {"processes x threads": way, "pictures": len(first["kept"])}
        row |= {name: statistics.median(run[name] for run in runs) for name in numbers}
        row["against first"] = row["s per picture"] / (rows[0] if rows else row)["s per picture"]
        rows.append(row)
    return rows


def from_kit(asked: argparse.Namespace, folder: Path) -> None:
    """The kit's MobileNetV2 as a model to name, and its first photos."""
    kit = Kit(asked.kit)
    _, about = kit.load("mobilenet_v2")
    (folder / "kit_network.py").write_text(
        "from pathlib import Path\nfrom benchmarks.kit import Kit\n"
        f"def build():\n    return Kit(Path({str(kit.root)!r})).load('mobilenet_v2')[0]\n"
    )
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), str(Path.cwd()), *sys.path])
    asked.model, asked.weights = "kit_network:build", "DEFAULT"
    asked.mean, asked.std = (_listed(about[name]) for name in ("mean", "std"))
    asked.photos = kit.files()[: asked.pictures]


def _listed(numbers: float | Sequence[float]) -> str:
    return ",".join(map(str, [numbers] if isinstance(numbers, float) else numbers))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", nargs="*", type=Path, metavar="PHOTO")
    parser.add_argument("--kit", type=Path, help="a kit of weights and photos")
    parser.add_argument("--pictures", type=int, default=8, help="of the kit")
    parser.add_argument("--model", default="mobilenet_v2")
    parser.add_argument("--weights", default="DEFAULT")
    parser.add_argument("--mean")
    parser.add_argument("--std")
    parser.add_argument("--partitions", type=int, default=2)
    parser.add_argument("--ways", nargs="+", default=["1x1", "1x2", "2x1"])
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if asked.kit is not None:
            from_kit(asked, Path(folder))
        if not asked.photos:
            parser.error("name photos, or --kit DIR")
        print(f"{sum(1 for _ in stream(asked.photos))} pictures, {asked.partitions} partitions")
        rows = rows_of(asked)
    show(rows, asked.json)


if __name__ == "__main__":
    main()
