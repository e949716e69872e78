"""What a saved network spares a fresh process, and how large it is.

    python -m benchmarks.load --make --folder DIR        (once: minutes, most of it compiling)
    python -m benchmarks.load --folder DIR [--runs 5] [--json FILE]

Random weights, 224 pixels, one image and one mask, each time a process of its own. "First result"
counts from the start of the process, imports included. "Loading" counts from where everything is
imported. Medians of `--runs` processes, one after the other in turns; compiling from nothing is
done once, with an empty cache.
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
from pathlib import Path
from typing import Any

import torch
import torchvision

import convad_fx
from benchmarks.measure import machine

_HEAD = """
import json, sys, time
import torch
began, folder, model = float(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.manual_seed(0)
x, mask = torch.rand(1, 3, 224, 224), torch.rand(1, 1, 224, 224) > 0.5
def answer(**found):
    print(json.dumps(found))
def first(masked):
    with torch.inference_mode():
        logits = masked(x, mask)
    answer(seconds=time.time() - began, logits=logits[0, :5].tolist())
"""
_BUILD = """
import torchvision
network = torchvision.models.get_model(model, weights=None)
network.load_state_dict(torch.load(folder + "/weights.pt", weights_only=True))
network.eval()
"""
#: What each process does.
FIRST = {
    "file with machine code": """
import convad_fx
first(convad_fx.load(folder + "/compiled.cfx", trusted=True))
""",
    "file without, eager": """
import convad_fx
first(convad_fx.load(folder + "/plain.cfx"))
""",
    "weights, converted, eager": f"""
import convad_fx
{_BUILD}
first(convad_fx.convert(network, x))
""",
    "weights, converted, torch.compile": f"""
import convad_fx
{_BUILD}
masked = convad_fx.convert(network, x)
masked.compile()
first(masked)
""",
}
LOADING = {
    "file without machine code": """
import convad_fx
start = time.perf_counter()
convad_fx.load(folder + "/plain.cfx")
answer(seconds=time.perf_counter() - start)
""",
    "torch.load and building the model": f"""
import torchvision
start = time.perf_counter()
{_BUILD}
answer(seconds=time.perf_counter() - start)
""",
}
_SLOW = "weights, converted, torch.compile"


def make(folder: Path, model: str) -> None:
    """The three files."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    network = torchvision.models.get_model(model, weights=None).eval()
    torch.save(network.state_dict(), folder / "weights.pt")
    masked = convad_fx.convert(network, torch.zeros(1, 3, 224, 224))
    convad_fx.save(masked, folder / "plain.cfx")
    began = time.perf_counter()
    convad_fx.save(masked, folder / "compiled.cfx", compiled=True)
    print(f"compiled and saved in {time.perf_counter() - began:.0f} s")


def fresh(program: str, folder: Path, model: str) -> dict[str, Any]:
    """What a process of its own says."""
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run(
            [
                sys.executable,
                "-W",
                "ignore",
                "-c",
                _HEAD + program,
                str(time.time()),
                folder,
                model,
            ],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache},
        )
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(folder: Path, model: str, runs: int) -> dict[str, Any]:
    programs = {**FIRST, **LOADING}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    logits: dict[str, list[float]] = {}
    for turn in range(runs):
        for name, program in programs.items():
            if name == _SLOW and turn:
                continue
            found = fresh(program, folder, model)
            seconds[name].append(found["seconds"])
            if "logits" in found:
                logits[name] = found["logits"]
    expected = torch.tensor(logits["weights, converted, eager"])
    for name, row in logits.items():
        assert torch.allclose(torch.tensor(row), expected, rtol=1e-3, atol=1e-4), name
    sizes = {p.name: p.stat().st_size for p in sorted(folder.iterdir())}
    return {
        "model": model,
        "seconds": {name: statistics.median(s) for name, s in seconds.items()},
        "slowest": {name: max(s) for name, s in seconds.items()},
        "bytes": sizes,
        **machine("cpu"),
    }


def table(found: dict[str, Any]) -> str:
    median, slowest, size = found["seconds"], found["slowest"], found["bytes"]
    lines = [f"| {found['model']}: first masked result of a fresh process | median s | slowest s |",
             "|---|---|---|"]  # fmt: skip
    lines += [f"| {name} | {median[name]:.2f} | {slowest[name]:.2f} |" for name in FIRST]
    lines += ["", "| loading, imports aside | median s | slowest s |", "|---|---|---|"]
    lines += [f"| {name} | {median[name]:.3f} | {slowest[name]:.3f} |" for name in LOADING]
    spared = median[_SLOW] / median["file with machine code"]
    loading = median["file without machine code"] / median["torch.load and building the model"]
    plain = size["plain.cfx"] / size["weights.pt"]
    compiled = size["compiled.cfx"] / size["weights.pt"]
    lines += [
        "",
        f"Compiling from nothing takes {spared:.1f} times as long to the first result; loading"
        f" {loading:.2f} times as long as torch.load and building. Size against the state dict's"
        f" file: {plain:.3f}, with machine code {compiled:.3f}.",
    ]
    return "\n".join(lines)


def main() -> None:
    asked = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    asked.add_argument("--model", default="resnet50")
    asked.add_argument("--folder", type=Path, required=True)
    asked.add_argument("--make", action="store_true", help="write the files that are measured")
    asked.add_argument("--runs", type=int, default=5)
    asked.add_argument("--json", type=Path)
    given = asked.parse_args()
    if given.make:
        make(given.folder, given.model)
        return
    found = measure(given.folder, given.model, given.runs)
    print(table(found))
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
