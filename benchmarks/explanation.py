"""One whole explanation, against the same search painting: in eager mode as ReX does, and compiled.

    python -m benchmarks.explanation --kit DIR [--photos 4] [--partitions 20] [--json FILE]

MobileNetV2 with real weights, on real photos, 20 partitions, minimum box of 10 pixels. Three sides:
the masked network, compiled, and the sufficient set found by sections; the plain network on images
painted with zeros, in eager mode, and the set found by adding --step pixels at a time, as ReX does;
the same network compiled, and the set found by sections. Painted images come in the batches of
--batches that a probe on one photo finds fastest, eager and compiled.
One photo after the other on all sides; those of the first are not counted (they compile), and one
that compiles nevertheless, since its masks go another way, is taken again. Masks differ, because
answers do: masks per second stand beside. "times as long" is per photo, against switching off;
"from, to" are its extremes. "peak MB" is what tensors take beyond what was held, in an explanation
by one partition; "graphs" is what torch.compile has made for a side, "again" those of them that are
one more version of code that was compiled before.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from functools import partial
from itertools import count, islice

import numpy as np
import torch
from numpy.typing import NDArray

import convad_fx
from benchmarks import measure
from benchmarks.kit import Kit
from benchmarks.search import Painting
from convad_fx.explain.evaluator import Evaluator
from convad_fx.explain.goals import Suffices
from convad_fx.explain.masker import Masker
from convad_fx.explain.ranking import pixel_ranks
from convad_fx.explain.responsibility import responsibility
from convad_fx.explain.sufficient import shortest_prefix

MODELS = ("mobilenet_v2",)
GAMMA = 0.9


def scan(
    evaluator: Evaluator, goal: Suffices, rank: NDArray[np.int64], step: int, batch: int
) -> int:
    """The number of pixels of the first prefix that reaches the goal, one step after the other."""
    lengths = iter(range(0, rank.size + step, step))
    while some := list(islice(lengths, batch)):
        scores = evaluator.scores([rank < n for n in some], goal.target)
        passing = np.flatnonzero(goal.reached(scores))
        if len(passing):
            return some[int(passing[0])]
    return rank.size


@dataclass(frozen=True)
class Side:
    """One way to explain: who answers, in batches of what size, and how the set is found."""

    masker: Masker
    batch: int | str
    scanning: bool = False


def fastest(masker: Masker, photo: torch.Tensor, sizes: list[int]) -> int:
    """The size of batch in which random masks take the least time each."""
    masks = torch.rand(max(sizes), 1, *photo.shape[2:], device=photo.device) < 0.5

    def call(size: int) -> None:
        with torch.inference_mode():
            for part in masks.split(size):
                masker(photo, part)

    taken = measure.interleaved({str(size): partial(call, size) for size in sizes}, 7, warm_up=1)
    return min(sizes, key=lambda size: taken.median(str(size)))


def painting_compiled(model: torch.nn.Module) -> Masker:
    """`benchmarks.search.Painting`, compiled once for every size of batch."""
    painting = torch.compile(Painting(model))

    def masker(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        torch._dynamo.maybe_mark_dynamic(mask, 0)
        return painting(x, mask)

    return masker


def explained(side: Side, photo: torch.Tensor, asked: argparse.Namespace) -> measure.Row:
    """Seconds and masks of one explanation."""
    began = time.perf_counter()
    evaluator = Evaluator(side.masker, photo, batch_size=side.batch)
    logits = evaluator.logits([np.ones(evaluator.shape, bool)])
    target = int(logits.argmax())
    whole = float(torch.softmax(logits, 1)[0, target])
    search = convad_fx.Search(partitions=asked.partitions, min_box=10, confidence=0.0)
    ranking = responsibility(evaluator, target, whole, search, [0])
    searched = evaluator.evaluations, time.perf_counter() - began
    goal, rank = Suffices(target, GAMMA * whole), pixel_ranks(ranking)
    if side.scanning:
        assert isinstance(side.batch, int)
        pixels = scan(evaluator, goal, rank, asked.step, side.batch)
    else:
        pixels = int(shortest_prefix(evaluator, goal, rank).mask.sum())
    return {
        "seconds": time.perf_counter() - began,
        "masks": evaluator.evaluations,
        "search seconds": searched[1],
        "search masks": searched[0],
        "size": pixels / rank.size,
    }


def rows_of(asked: argparse.Namespace) -> list[measure.Row]:
    kit = Kit(asked.kit)
    rows: list[measure.Row] = []
    for name in asked.models:
        model, info = kit.load(name)
        model.eval().to(asked.device)
        photos = [kit.photo(file, info).to(asked.device) for file in kit.files()]
        masked = convad_fx.convert(model, photos[0])
        masked.compile()
        eager, compiled = convad_fx.occlusion(model, 0.0), painting_compiled(model)
        batches = [fastest(masker, photos[0], asked.batches) for masker in (eager, compiled)]
        sides = {
            "switching off": Side(masked, "auto"),
            f"painting, eager, by {batches[0]}": Side(eager, batches[0], scanning=True),
            f"painting, compiled, by {batches[1]}": Side(compiled, batches[1]),
        }
        taken: dict[str, list[measure.Row]] = {side: [] for side in sides}
        graphs = {side: measure.Compiled() for side in sides}
        for number, photo in zip(count(), photos[: asked.photos + 1], strict=False):
            for by, side in sides.items():
                known = None
                while known != graphs[by].graphs:  # what compiles does not count
                    known = graphs[by].graphs
                    with graphs[by].counted():
                        one = explained(side, photo, asked)
                if number:
                    taken[by].append(one)
        for by, all_of_it in taken.items():
            row = {key: statistics.median(one[key] for one in all_of_it) for key in all_of_it[0]}
            row["masks /s"] = sum(one["masks"] for one in all_of_it) / sum(
                one["seconds"] for one in all_of_it
            )
            row["search masks /s"] = sum(one["search masks"] for one in all_of_it) / sum(
                one["search seconds"] for one in all_of_it
            )
            pairs = zip(all_of_it, taken["switching off"], strict=True)
            ratios = [one["seconds"] / ours["seconds"] for one, ours in pairs]
            row["explanations /min"] = 60 / row["seconds"]
            row["times as long"] = statistics.median(ratios)
            row["from, to"] = f"{min(ratios):.2f}..{max(ratios):.2f}"
            brief = argparse.Namespace(**{**vars(asked), "partitions": 1})
            call = partial(explained, sides[by], photos[0], brief)
            row["peak MB"] = measure.peak_mb(call, asked.device)
            row |= {"graphs": graphs[by].graphs, "again": graphs[by].again}
            rows.append({"model": name, "photos": len(all_of_it), "by": by, **row})
    return rows


def main() -> None:
    parser = measure.parser(__doc__, MODELS, rounds=False, kit_needed=True)
    parser.add_argument("--photos", type=int, default=4)
    parser.add_argument("--partitions", type=int, default=20)
    parser.add_argument("--step", type=int, default=10, help="pixels added at a time (painting)")
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 8, 32], help="of paintings")
    measure.run(parser.parse_args(), rows_of)


if __name__ == "__main__":
    main()
