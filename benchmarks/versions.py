"""Two versions of the package against each other, in one run.

    git worktree add ../before v0.1.0
    python -m benchmarks.versions --other ../before --kit DIR [--models NAME ...] [--json FILE]

Each version runs in a process of its own (`versions_worker`), which imports the package from its
checkout. In every round first one answers, then the other; ratios are taken within a round, and
their median is reported. "overhead": one image under --batch random masks, through the plain and
the masked network, both compiled. "search": `evaluate`, compiled, on the masks of a responsibility
search (benchmarks/search.py). "differs" is the largest difference between the logits of the two
versions, over the largest logit. Random weights, 224 pixels.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure, search

MODELS = ("resnet50", "mobilenet_v2")
WORKER = Path(__file__).with_name("versions_worker.py")


class Version:
    """The package as it stands in one checkout, in a process that answers requests."""

    def __init__(self, checkout: Path, model: str, masks: Path, batch: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER), model, str(masks), str(batch)],
            env=os.environ | {"PYTHONPATH": str(checkout.resolve())},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.checkout = checkout

    def __call__(self, request: str) -> Any:
        """The answer: seconds, or for "logits ..." the name of a file."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(request, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.checkout}: the process has ended; its error stands above")
        return json.loads(answer)

    def close(self) -> None:
        self.process.communicate()


def compare(versions: Mapping[str, Version], work: str, runs: int) -> measure.Row:
    """One row: both versions do the same work in turn."""
    for version in versions.values():
        version(work)  # compiles
        version(work)
    seconds: dict[str, list[float]] = {name: [] for name in versions}
    for _ in range(runs):
        for name, version in versions.items():
            seconds[name].append(version(work))
    timing = measure.Timing(seconds)
    logits = [torch.load(version(f"logits {work}")) for version in versions.values()]
    return {
        "work": work,
        "other ms": 1000 * timing.median("other"),
        "this ms": 1000 * timing.median("this"),
        "this / other": timing.ratio("this", "other"),
        "quartiles": timing.spread("this", "other"),
        "differs": float((logits[0] - logits[1]).abs().max() / logits[0].abs().max()),
    }


def rows_of(options: argparse.Namespace) -> list[measure.Row]:
    known = search.recorded(options)
    if known is None:
        sys.exit("skipped: the search's masks are recorded on photos of the kit: give --kit")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        masks = Path(folder) / "masks.pt"
        torch.save(search.masks_of("search", known, options.masks), masks)
        checkouts = {"other": options.other, "this": Path(__file__).parents[1]}
        for model in options.models:
            versions = {
                name: Version(path, model, masks, options.batch) for name, path in checkouts.items()
            }
            for work in ("plain", "overhead", "search"):
                runs = options.runs if work != "search" else max(options.runs // 2, 2)
                rows.append({"model": model, **compare(versions, work, runs)})
                measure.table(rows[-1:])
            for version in versions.values():
                version.close()
    return rows


def main() -> None:
    parser = measure.parser(__doc__, MODELS)
    parser.add_argument("--other", type=Path, required=True, help="checkout of the other version")
    parser.add_argument("--batch", type=int, default=8, help="masks of a call of the overhead")
    parser.add_argument("--masks", type=int, default=1120, help="masks of the search")
    parser.add_argument("--photos", type=int, default=4, help="photos that the search runs on")
    parser.add_argument("--recorded", type=Path, help="file of the search's masks, made if absent")
    measure.run(parser.parse_args(), rows_of)


if __name__ == "__main__":
    main()
