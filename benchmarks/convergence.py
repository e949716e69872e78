"""What the search costs, and what it finds: evaluations against size and robustness.

    python -m benchmarks.convergence --kit ../shared/kit --json OUT [--models NAME ...]
        [--photos 10] [--plot PNG] [--compile]

The kit's networks, switched off as `Policy()` says, explain the first photos at gamma 0.9 under
a grid of searches: the confidence a combination must keep to pass, the number of partitions, and
what is made of the ranking (in order; in a disc around the peak; the latter as it is or shrunk to
1-minimal in blocks of 16 pixels). One row per photo and search: evaluations, size of the set, and
its robustness in the plain model on 20 solid colours and on 20 other photos. Logits are remembered
from one search to the next, so that masks they share are computed once; they count in each.

Two more searches stop early when two halves of the partitions agree. The others vary one option
each, or the seed, at five partitions, and are compared with `VARIED`; those before, with `USUAL`.
Photos are numbered by name. --tables JSON prints the tables of an earlier run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import convad_fx
from benchmarks.kit import Kit
from benchmarks.measure import machine
from benchmarks.paper import written
from benchmarks.paper_plots import new_figure
from benchmarks.paper_tables import Row, grouped, less, print_head
from convad_fx.explain.paint import Normalisation
from convad_fx.metrics import bootstrap, robustness

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
#: What the searches vary that change one option.
VARIED = "c0.9 spatial p5"
#: Searches with another seed than 0.
SEEDS = {"varied: seed 1": 1, "varied: seed 2": 2}


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
    base = made[VARIED]
    return made | {
        "varied: weighted": replace(base, weighted=True),
        "varied: binomial": replace(base, split="binomial"),
        "varied: beta-binomial (2, 2)": replace(base, split="beta-binomial"),
        "varied: intersection, 2 followed": replace(base, queue="intersection", queue_len=2),
        "varied: all followed": replace(base, queue="all"),
        "varied: max_splits 4": replace(base, max_splits=4),
        "varied: max_splits 16": replace(base, max_splits=16),
        "varied: min_box 400": replace(base, min_box=400),
        "varied: min_box 1": replace(base, min_box=1),
        "varied: depth 2": replace(base, depth=2),
        **dict.fromkeys(SEEDS, base),
    }


def chosen(only: str | None) -> dict[str, convad_fx.Search]:
    """Searches whose names begin so, and those that they are compared with; all, if None."""
    return {
        name: search
        for name, search in searches().items()
        if only is None or name.startswith(only) or name in (USUAL, VARIED)
    }


def measured(
    kit: Kit, name: str, photos: int, asked: dict[str, convad_fx.Search], *, compiled: bool
) -> Iterator[list[Row]]:
    """The rows of each photo."""
    model, info = kit.load(name)
    files = kit.files()
    images = [kit.photo(file, info) for file in files]
    masked = convad_fx.convert(model, images[0])
    asked_masked = torch.compile(masked) if compiled else masked
    plain = in_batches(torch.compile(model) if compiled else model, BATCH)
    normalisation = Normalisation(tuple(info["mean"]), tuple(info["std"]))
    for number in range(min(photos, len(files))):
        rows: list[Row] = []
        remembering = Remembering(asked_masked, BATCH, masked.policy)
        others = images[:number] + images[number + 1 :]
        judged: dict[bytes, tuple[float, float]] = {}
        for label, search in asked.items():
            options: dict[str, Any] = {"batch_size": 256, "seed": SEEDS.get(label, 0)}
            why = convad_fx.explain(remembering, images[number], search=search, **options)
            key = why.mask.tobytes()
            if key not in judged:
                question = (plain, images[number], why.mask, why.target)
                colours = robustness(
                    *question, n=PLANTED, batch_size=BATCH, normalisation=normalisation
                )
                n = min(PLANTED, len(others))
                planted = robustness(*question, "images", n=n, batch_size=BATCH, others=others)
                judged[key] = colours.rho, planted.rho
            rows.append(
                {
                    "model": name,
                    "photo": number,
                    "search": label,
                    "evaluations": why.evaluations,
                    "size": why.size,
                    "sufficient": why.sufficient,
                    "rho_colours": judged[key][0],
                    "rho_images": judged[key][1],
                }
            )
        print(f"{name} {number + 1}/{photos}: {len(remembering.known)} masks", flush=True)
        yield rows


def summary(rows: list[Row]) -> dict[str, dict[str, float]]:
    """Means over photos, by search."""
    numbers = ("evaluations", "size", "rho_colours", "rho_images")
    return {
        name: {n: float(np.mean([row[n] for row in group])) for n in numbers}
        for (name,), group in grouped(rows, "search")
    }


def differences(rows: list[Row]) -> dict[str, list[tuple[str, str, str]]]:
    """What each search has more than the one it is compared with, paired by photo: size, rho."""
    by_search = {
        name: {row["photo"]: row for row in group} for (name,), group in grouped(rows, "search")
    }
    found: dict[str, list[tuple[str, str, str]]] = {USUAL: [], VARIED: []}
    for name, group in by_search.items():
        usual = VARIED if name.startswith("varied: ") else USUAL
        if name != usual and usual in by_search:
            size, rho = (less(group, by_search[usual], n) for n in ("size", "rho_images"))
            found[usual].append((name, size, rho))
    return found


def plot(rows: list[Row], path: Path) -> None:
    networks = list(grouped(rows, "model"))
    figure = new_figure(10, 4 * len(networks))
    for ((name,), own), panels in zip(
        networks, figure.subplots(len(networks), 2, squeeze=False), strict=True
    ):
        by_search = {search: group for (search,), group in grouped(own, "search")}
        n = len({row["photo"] for row in own})
        for colour, confidence in zip(("#888888", "#1f77b4", "#d62728"), CONFIDENCES, strict=True):
            for line, kind in (
                ("--", "responsibility"),
                ("-", "spatial"),
                (":", "spatial minimal"),
            ):
                lines = [by_search.get(f"c{confidence:g} {kind} p{p}") for p in PARTITIONS]
                found = [group for group in lines if group is not None]
                if not found:
                    continue
                for panel, value in zip(panels, ("size", "rho_images"), strict=True):
                    ends = [bootstrap([row[value] for row in group]) for group in found]
                    panel.errorbar(
                        [np.mean([row["evaluations"] for row in group]) for group in found],
                        [end.value for end in ends],
                        [
                            [end.value - end.low for end in ends],
                            [end.high - end.value for end in ends],
                        ],
                        linestyle=line,
                        marker="o",
                        markersize=4,
                        elinewidth=0.7,
                        color=colour,
                        label=f"confidence {confidence:g}, {kind}",
                    )
        panels[0].set(title=f"{name}, {n} photos", ylabel="share of the image kept")
        panels[0].set(ylim=(0, None))
        panels[1].set(title="robustness", ylabel="rho on other photos", ylim=(0, 1))
        for panel in panels:
            panel.set(xlabel="evaluations", xscale="log")
            panel.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=80, metadata={"Software": None})


def show(rows: list[Row]) -> None:
    """The tables, for each network."""
    for (name,), own in grouped(rows, "model"):
        photos = len({row["photo"] for row in own})
        print_head(f"{name}, {photos} photos", ("masks", "size", "rho, colours", "rho, photos"))
        for search, row in summary(own).items():
            shown = f"**{search}** (the default)" if search == USUAL else search
            numbers = [f"{row[k]:.2f}" for k in ("size", "rho_colours", "rho_images")]
            print(f"| {' | '.join((shown, str(round(row['evaluations'])), *numbers))} |")
        for usual, lines in differences(own).items():
            print_head(f"less {usual}", ("size", "rho, photos"))
            for cells in lines:
                print(f"| {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kit", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=["mobilenet_v2"], metavar="NAME")
    parser.add_argument("--json", type=Path, help="written after every photo")
    parser.add_argument("--tables", type=Path, help="print the tables of this JSON, run nothing")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--photos", type=int, default=10)
    parser.add_argument("--only", help="searches whose names begin so, such as 'varied'")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true", help="through torch.compile")
    asked = parser.parse_args()
    if asked.tables is not None:
        rows = json.loads(asked.tables.read_text())["rows"]
    else:
        torch.set_num_threads(asked.threads)
        convad_fx.keep_memory()
        kit, rows = Kit(asked.kit), []
        wanted = chosen(asked.only)
        if asked.only is not None and not any(name.startswith(asked.only) for name in wanted):
            parser.error(f"--only: no search is called {asked.only}...; see `searches`")
        for name in asked.models:
            for found in measured(kit, name, asked.photos, wanted, compiled=asked.compile):
                rows += found
                if asked.json is not None:
                    asked.json.write_text(written(machine("cpu"), rows))
    show(rows)
    if asked.plot:
        plot(rows, asked.plot)


if __name__ == "__main__":
    main()
