"""What the search costs, and what it finds: evaluations against size and robustness.

    python -m benchmarks.convergence --kit ../shared/kit --json OUT [--plot PNG] [--compile]

The kit's MobileNetV2, switched off as `Policy()` says, explains the first photos at gamma 0.9 under
a grid of searches: the confidence a combination must keep to pass, the number of partitions, and
what is made of the ranking (in order; in a disc around the peak; the latter as it is or shrunk to
1-minimal in blocks of 16 pixels). One row per photo and search: evaluations, size of the set, and
its robustness in the plain model on 20 solid colours and on 20 other photos. Logits are remembered
from one search to the next, so that masks they share are computed once; they count in each.

Two more searches stop early when two halves of the partitions agree, and some vary one option.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import convad_fx
from benchmarks.kit import Kit
from convad_fx.explain.paint import Normalisation
from convad_fx.metrics import paired, robustness

CONFIDENCES = (0.0, 0.5, 0.9)
PARTITIONS = (2, 5, 10)
PLANTED = 20
BATCH = 32


class Remembering:
    """A masker for one image that asks the network about each mask once, `batch` at a time."""

    def __init__(self, masker: Callable[[Tensor, Tensor], Tensor], batch: int, policy: Any) -> None:
        self.masker, self.batch, self.policy = masker, batch, policy
        self.known: dict[bytes, Tensor] = {}

    def __call__(self, x: Tensor, mask: Tensor, /) -> Tensor:
        keys = [np.packbits(m.numpy()).tobytes() for m in mask]
        fresh = [i for i, key in enumerate(keys) if key not in self.known]
        for start in range(0, len(fresh), self.batch):
            numbers = fresh[start : start + self.batch]
            # Always as many: compiled code is made for one batch size.
            padded = torch.cat([mask[numbers], mask[numbers[:1]].expand(self.batch, -1, -1, -1)])
            for i, logits in zip(numbers, self.masker(x, padded[: self.batch]), strict=False):
                self.known[keys[i]] = logits.clone()
        return torch.stack([self.known[key] for key in keys])


def in_batches(model: Callable[[Tensor], Tensor], batch: int) -> Callable[[Tensor], Tensor]:
    """The plain model, always asked about as many images at once."""

    def ask(x: Tensor) -> Tensor:
        padded = torch.cat([x, x[:1].expand(batch - len(x), -1, -1, -1)])
        logits: Tensor = model(padded)[: len(x)].clone()
        return logits

    return ask


#: `convad_fx.Search()`, among `searches`.
USUAL = "c0.9 spatial p10"


def searches() -> dict[str, convad_fx.Search]:
    made: dict[str, convad_fx.Search] = {}
    for confidence in CONFIDENCES:
        for partitions in PARTITIONS:
            for order in ("responsibility", "spatial"):
                for minimal in (0, 16) if order == "spatial" and partitions > 2 else (0,):
                    name = f"c{confidence:g} {order}{' minimal' if minimal else ''}"
                    made[f"{name} p{partitions}"] = convad_fx.Search(
                        partitions=partitions, confidence=confidence, order=order, minimal=minimal
                    )
    made["c0 responsibility p20"] = convad_fx.Search(
        partitions=20, confidence=0.0, order="responsibility"
    )
    for stable in (0.8, 0.9):
        made[f"c0.9 spatial stable {stable:g}"] = convad_fx.Search(
            partitions=10, confidence=0.9, order="spatial", stable=stable
        )
    base = convad_fx.Search(partitions=5, confidence=0.9, order="spatial")
    made["c0.9 spatial weighted p5"] = replace(base, weighted=True)
    made["c0.9 spatial beta-binomial p5"] = replace(base, split="beta-binomial")
    made["c0.9 spatial intersection 2 p5"] = replace(base, queue="intersection", queue_len=2)
    return made


def measure(
    kit: Kit, photos: int, compiled: bool, save: Callable[[list[dict[str, Any]]], None]
) -> None:
    model, info = kit.load("mobilenet_v2")
    files = kit.files()
    images = [kit.photo(file, info) for file in files]
    masked = convad_fx.convert(model, images[0])
    asked_masked = torch.compile(masked) if compiled else masked
    plain = in_batches(torch.compile(model) if compiled else model, BATCH)
    normalisation = Normalisation(tuple(info["mean"]), tuple(info["std"]))
    rows: list[dict[str, Any]] = []
    for number, file in enumerate(files[:photos]):
        remembering = Remembering(asked_masked, BATCH, masked.policy)
        others = images[:number] + images[number + 1 :]
        judged: dict[bytes, tuple[float, float]] = {}
        for name, search in searches().items():
            why = convad_fx.explain(remembering, images[number], search=search, batch_size=256)
            key = why.mask.tobytes()
            if key not in judged:
                asked = (plain, images[number], why.mask, why.target)
                options = {"n": PLANTED, "batch_size": BATCH}
                colours = robustness(*asked, **options, normalisation=normalisation)
                planted = robustness(*asked, "images", **options, others=others)
                judged[key] = colours.rho, planted.rho
            rows.append(
                {
                    "photo": file.name,
                    "search": name,
                    "options": asdict(search),
                    "evaluations": why.evaluations,
                    "size": why.size,
                    "sufficient": why.sufficient,
                    "rho_colours": judged[key][0],
                    "rho_images": judged[key][1],
                }
            )
        print(f"{number + 1}/{photos} {file.name}: {len(remembering.known)} masks", flush=True)
        save(rows)


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Means over photos, by search."""
    grouped: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        grouped[row["search"]].append(row)
    numbers = ("evaluations", "size", "rho_colours", "rho_images")
    return {
        name: {n: float(np.mean([row[n] for row in group])) for n in numbers}
        for name, group in grouped.items()
    }


def differences(rows: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """What each search has more than the default one, paired by photo: size, rho on photos."""
    by_search: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        by_search[row["search"]][row["photo"]] = row
    usual = by_search.get(USUAL, {})
    found = []
    for name, group in by_search.items():
        photos = sorted(group.keys() & usual.keys())
        if name == USUAL or len(photos) < 2:
            continue
        cells = []
        for number in ("size", "rho_images"):
            more = paired(*([side[photo][number] for photo in photos] for side in (group, usual)))
            d = more.difference
            cells.append(f"{d.value:+.2f} [{d.low:+.2f}, {d.high:+.2f}], p {more.p_value:.2g}")
        found.append((name, *cells))
    return found


def plot(means: dict[str, dict[str, float]], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2)
    for colour, confidence in zip(("#888888", "#1f77b4", "#d62728"), CONFIDENCES, strict=True):
        for line, kind in (("--", "responsibility"), ("-", "spatial"), (":", "spatial minimal")):
            lines = [(p, means.get(f"c{confidence:g} {kind} p{p}")) for p in PARTITIONS]
            found = [m for _, m in lines if m is not None]
            if not found:
                continue
            label = f"confidence {confidence:g}, {kind}"
            for panel, value in zip(panels, ("size", "rho_images"), strict=True):
                panel.plot(
                    [m["evaluations"] for m in found],
                    [m[value] for m in found],
                    line,
                    marker="o",
                    markersize=4,
                    color=colour,
                    label=label,
                )
    panels[0].set(title="size of the set", ylabel="share of the image kept", ylim=(0, None))
    panels[1].set(title="robustness", ylabel="rho on other photos", ylim=(0, 1))
    for panel in panels:
        panel.set(xlabel="evaluations", xscale="log")
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize=7)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kit", type=Path, required=True)
    parser.add_argument("--json", type=Path, help="written after every photo")
    parser.add_argument("--tables", type=Path, help="print the tables of this JSON, run nothing")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--photos", type=int, default=10)
    parser.add_argument("--compile", action="store_true", help="through torch.compile")
    asked = parser.parse_args()
    rows: list[dict[str, Any]] = []

    def save(found: list[dict[str, Any]]) -> None:
        rows[:] = found
        if asked.json is not None:
            asked.json.write_text(json.dumps({"means": summary(rows), "rows": rows}, indent=1))

    if asked.tables is None:
        measure(Kit(asked.kit), asked.photos, asked.compile, save)
    else:
        rows = json.loads(asked.tables.read_text())["rows"]
    means = summary(rows)
    print(f"{'search':<36} {'masks':>6} {'size':>6} {'colours':>8} {'images':>7}")
    for name, row in means.items():
        print(
            f"{name:<36} {row['evaluations']:>6.0f} {row['size']:>6.3f}"
            f" {row['rho_colours']:>8.2f} {row['rho_images']:>7.2f}"
        )
    print(f"\n{f'less {USUAL}':<36} {'size':>28} {'rho on photos':>28}")
    for name, size, rho in differences(rows):
        print(f"{name:<36} {size:>28} {rho:>28}")
    if asked.plot:
        plot(means, asked.plot)


if __name__ == "__main__":
    main()
