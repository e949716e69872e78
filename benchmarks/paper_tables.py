"""The tables of `benchmarks.paper`: means over photos with intervals, and paired differences."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from convad_fx.compiler.policy import Policy
from convad_fx.metrics import bootstrap, paired
from convad_fx.metrics.agreement import auc, rank_correlation
from convad_fx.metrics.statistics import Paired

Row = dict[str, Any]

ROBUST = 0.8
FEW = 5
LEVEL = 0.05


def print_equivalence(rows: list[Row]) -> None:
    print("| network | policy | photos | bit-equal | decisions changed |\n|---|---|---|---|---|")
    for (name, policy), group in grouped(rows, "model", "policy"):
        equal, changed = (sum(r[k] for r in group) for k in ("bit_equal", "changed"))
        print(f"| {name} | {describe(policy)} | {len(group)} | {equal} | {changed} |")


SETS = {
    "size": "size",
    "relative": "confidence",
    "rho.colours": "rho, colours",
    "rho.photos": "rho, photos",
    "ranked.photos": "rho, photos, with a map",
}
SETS_ALONE = {
    "robust.photos": "robust, photos",
    "evaluations": "masks asked",
    "ranked.nothing": "without a map",
    "ranked.empty": "empty",
}
#: Columns that count photos instead of averaging over them.
COUNTED = ("ranked.nothing", "ranked.empty")
RANDOM = {
    "judged.auc": "AUC",
    "judged.rank": "rank correlation",
    "judged.good": "robust if called",
}
RANDOM_ALONE = {"judged.called": "called"}
#: A column that says again what another does, of fewer photos: no comparison more.
AGAIN = "ranked.photos"


class Tested(str):
    """The cell of a difference, which keeps its test; a cell of too few photos is mere text."""

    test: Paired

    def __new__(cls, test: Paired, remark: str) -> Tested:
        d = test.difference
        text = f"{d.value:+.2f} [{d.low:+.2f}, {d.high:+.2f}], p {test.p_value:.2g}{remark}"
        cell = super().__new__(cls, text)
        cell.test = test
        return cell


#: (other masker, column) -> the cell of the difference from it.
Differences = dict[tuple[str, str], str]


def print_robustness(rows: list[Row]) -> None:
    """Each masker's means; what the default and the paper's policy have more than every other.

    Then what these tables come to, counted.
    """
    more = [row | {"judged": judged(row), "ranked": ranked(row)} for row in rows]
    for (name,), group in grouped(more, "model"):
        labels = [label for (label,), _ in grouped(group, "masker")]
        # switched off, as by default and as in the paper
        found: dict[str, Differences] = {label: {} for label in labels[:2]}
        print(f"\n**{name}**, {len({row['photo'] for row in group})} photos")
        for title, keys, means_only in (
            ("the sets found", SETS, SETS_ALONE),
            ("at equal size", equal_sizes(group), {}),
            ("random masks", RANDOM, RANDOM_ALONE),
        ):
            columns = {**keys, **means_only}
            print_head(f"{name}, {title}", columns.values())
            for (label,), own in grouped(group, "masker"):
                print(f"| {label} | {' | '.join(cell(own, key) for key in columns)} |")
            for label, differences in found.items():
                print_head(f"{label} less", keys.values())
                first = by_photo(group, label)
                for other in labels:
                    if other != label:
                        second = by_photo(group, other)
                        cells = {(other, key): less(first, second, key) for key in keys}
                        print(f"| {other} | {' | '.join(cells.values())} |")
                        differences.update(cells)
        default, *others = labels
        paints = others[2:]  # the paper's policy and layer masking come before them
        print(f"\n{name}, counted:\n")
        for label, differences in found.items():
            print(f"* {label}, at equal size: {against_paints(differences, paints)}")
        titles = {**SETS, **equal_sizes(group), **RANDOM}
        print(f"* {default}, all but {titles[AGAIN]!r}: {corrected(found[default], titles)}")
        print(f"* without a map: {without_maps(group, paints)}")


def against_paints(differences: Differences, paints: list[str]) -> str:
    """How often a masker is ahead of paint at equal size, or behind."""
    cells = [
        cell
        for (other, key), cell in differences.items()
        if other in paints and key.startswith("at_size.")
    ]
    tests = [cell.test for cell in cells if isinstance(cell, Tested)]
    # an end that only rounding keeps from zero is zero
    ends = [(round(t.difference.low, 9), round(t.difference.high, 9)) for t in tests]
    ahead, behind = sum(low > 0 for low, _ in ends), sum(high < 0 for _, high in ends)
    means = [t.difference.value for t in tests if t.p_value < LEVEL]
    return (
        f"ahead of paint in {ahead} of {len(cells)} comparisons, behind in {behind}, by intervals "
        f"that exclude zero; with p < {LEVEL} ahead in {sum(mean > 0 for mean in means)}, "
        f"behind in {sum(mean < 0 for mean in means)}"
    )


def corrected(differences: Differences, titles: dict[str, str]) -> str:
    """How many differences meet Bonferroni's bound, and from which masker, in what."""
    cells = {at: cell for at, cell in differences.items() if at[1] != AGAIN}
    met: dict[str, list[str]] = {other: [] for other, _ in cells}
    for (other, key), cell in cells.items():
        if isinstance(cell, Tested) and cell.test.p_value * len(cells) <= LEVEL:
            met[other].append(titles[key])
    number = sum(map(len, met.values()))
    each = [f"{len(what)} from {other} ({'; '.join(what)})" for other, what in met.items() if what]
    bound = f"{number} of {len(cells)} differences have p <= {LEVEL} / {len(cells)}"
    return f"{bound}: {', '.join(each)}" if each else bound


def without_maps(rows: list[Row], paints: list[str]) -> str:
    """On how many photos the search learnt nothing, by masker; paints are counted together."""
    kinds = [row | {"kind": "paints" if row["masker"] in paints else row["masker"]} for row in rows]
    return "; ".join(
        f"{kind} {cell(own, 'ranked.nothing')} of {len(own)} ({cell(own, 'ranked.empty')} empty)"
        for (kind,), own in grouped(kinds, "kind")
    )


def equal_sizes(rows: list[Row]) -> dict[str, str]:
    return {f"at_size.{s:g}": f"rho, {s:.0%}" for s in map(float, rows[0]["at_size"])}


def print_seeds(runs: list[list[Row]]) -> None:
    """What another seed changes, and the differences between maskers over all seeds.

    Of the photos and maskers that all runs have. "apart": the mean distance, photo by photo,
    between the largest and the smallest value that seeds gave. Differences are of means over seeds.
    """
    keys = {"size": "size", "rho.colours": "rho, colours", "rho.photos": "rho, photos"}
    for (name,), group in grouped([row for rows in runs for row in rows], "model"):
        own = [[row for row in rows if row["model"] == name] for rows in runs]
        found = {label: seeds_of(own, label) for (label,), _ in grouped(group, "masker")}
        found = {label: seeds for label, seeds in found.items() if seeds}
        if not found:
            raise SystemExit(f"{name}: no photo and masker is in all of these runs")
        print(f"\n**{name}**, {max(map(len, found.values()))} photos, {len(runs)} seeds")
        heads = [f"{t}, {w}" for t in keys.values() for w in (*range(1, len(runs) + 1), "apart")]
        print_head("by seed", heads)
        for label, seeds in found.items():
            cells = []
            for key in keys:
                values = np.array([[value(row, key) for row in rows] for rows in seeds.values()])
                cells += [*values.mean(0), np.ptp(values, axis=1).mean()]
            print(f"| {label} | {' | '.join(f'{cell:.2f}' for cell in cells)} |")
        first, *others = found
        print_head(f"{first} less", keys.values())
        means = {label: averaged(seeds) for label, seeds in found.items()}
        for label in others:
            cells = [less(means[first], means[label], key) for key in keys]
            print(f"| {label} | {' | '.join(cells)} |")


def print_longer(runs: list[list[Row]], partitions: list[int]) -> None:
    """What more partitions change: the second run less the first, paired by photo."""
    for (name,), group in grouped(runs[0], "model"):
        later = [row for row in runs[1] if row["model"] == name]
        shared = set(equal_sizes(group)) & set(equal_sizes(later)) if later else set()
        keys = {"size": "size", "rho.colours": "rho, colours", "rho.photos": "rho, photos"}
        keys |= {key: text for key, text in equal_sizes(group).items() if key in shared}
        pairs = {
            label: (by_photo(later, label), by_photo(group, label))
            for (label,), _ in grouped(group, "masker")
        }
        number = max(len(set(after) & set(before)) for after, before in pairs.values())
        if not number:
            print(f"\n{name}: no photo and masker is in both of these runs")
            continue
        print(f"\n**{name}**, {number} photos")
        print_head(f"{partitions[1]} partitions less {partitions[0]}", keys.values())
        for label, (after, before) in pairs.items():
            if set(after) & set(before):
                print(f"| {label} | {' | '.join(less(after, before, key) for key in keys)} |")


def seeds_of(runs: list[list[Row]], masker: str) -> dict[str, list[Row]]:
    """Photo -> a masker's row of every run, where all have it."""
    each = [by_photo(rows, masker) for rows in runs]
    return {
        photo: [rows[photo] for rows in each] for photo in each[0] if all(photo in r for r in each)
    }


def averaged(seeds: dict[str, list[Row]]) -> dict[str, Row]:
    """Photo -> the means over seeds."""

    def mean(rows: list[Row], key: str) -> float:
        return float(np.mean([value(row, key) for row in rows]))

    return {
        photo: {
            "size": mean(rows, "size"),
            "rho": {on: mean(rows, f"rho.{on}") for on in ("colours", "photos")},
        }
        for photo, rows in seeds.items()
    }


def print_head(first: str, heads: Iterable[str]) -> None:
    """The head of a table, whose first column is called so."""
    columns = [first, *heads]
    print(f"\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")


def cell(rows: list[Row], key: str) -> str:
    if key in COUNTED:
        return f"{sum(value(row, key) for row in rows):.0f}"
    return interval(rows, key)


def ranked(row: Row) -> Row:
    """The robustness of a set that a map gave; whether there was no map, or no set."""
    return {
        "photos": row["rho"]["photos"] if row["learnt"] else math.nan,
        "nothing": not row["learnt"],
        "empty": row["size"] == 0,
    }


def judged(row: Row) -> Row:
    """How well a masker's confidence in random masks tells which of them survive.

    "auc" and "rank" are of its order of the masks, "called" is the share that it calls sufficient,
    and "good" the mean rho of those; NaN where there are none, or all survive, or none does.
    """
    confidence, rho = (np.array(row["random"][key]) for key in ("confidence", "rho"))
    called = np.array(row["random"]["sufficient"], bool)
    return {
        "auc": auc(confidence, rho >= ROBUST),
        "rank": rank_correlation(confidence, rho),
        "called": called.mean(),
        "good": rho[called].mean() if called.any() else math.nan,
    }


def print_threshold(rows: list[Row]) -> None:
    keys = ("iou", "energy", "size", "relative", "rho.colours", "rho.photos")
    for (name,), group in grouped(rows, "model"):
        objects = {r["photo"]: r["object"] for r in group}
        print(f"\n**{name}**, {len(objects)} photos; the object fills", end=" ")
        print(f"{np.mean(list(objects.values())):.2f} of them on average\n")
        print("| policy | IoU | energy inside | size | confidence | rho, colours | rho, photos |")
        print("|---" * (1 + len(keys)) + "|")
        default = describe(Policy().to_dict())
        for (label,), own in grouped(group, "masker"):
            shown = f"**{label}** (default)" if label == default else label
            print(f"| {shown} | {' | '.join(interval(own, key) for key in keys)} |")
        print(f"\n| less {default} | IoU | energy inside | size | rho, colours | rho, photos |")
        print("|---" * 6 + "|")
        second = by_photo(group, default)
        for (label,), _ in grouped(group, "masker"):
            if label != default:
                first = by_photo(group, label)
                cells = [less(first, second, k) for k in keys if k != "relative"]
                print(f"| {label} | {' | '.join(cells)} |")


def describe(policy: dict[str, Any]) -> str:
    plain = Policy(**policy)
    if plain == Policy.paper():
        return "the paper's: receptive raw dilute, tau 0"
    return f"{plain.attribution} {plain.input} {plain.pool}, tau {plain.tau:g}"


def grouped(rows: list[Row], *keys: str) -> Iterator[tuple[tuple[Any, ...], list[Row]]]:
    """Rows by some of their values, in the order in which these are met."""
    found: dict[str, tuple[tuple[Any, ...], list[Row]]] = {}
    for row in rows:
        values = tuple(row[key] for key in keys)
        found.setdefault(repr(values), (values, []))[1].append(row)
    yield from found.values()


def value(row: Row, key: str) -> float:
    """`rho.photos` is the number so nested; what follows the first dot is one name."""
    head, _, rest = key.partition(".")
    return float(row[head][rest] if rest else row[head])


def interval(rows: list[Row], key: str) -> str:
    """Mean over photos and its interval; photos without an answer are counted."""
    values = [value(row, key) for row in rows]
    sound = [v for v in values if math.isfinite(v)]
    if not sound:
        return "-"
    remark = f" (n = {len(sound)})" if len(sound) < len(values) else ""
    return short(bootstrap(sound)) + remark


def short(found: Any) -> str:
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def means(rows: list[Row], key: str) -> tuple[float, Any]:
    """The mean over photos, and how far the interval reaches below and above, (2, 1)."""
    sound = [v for v in (value(row, key) for row in rows) if math.isfinite(v)]
    if not sound:
        return math.nan, np.full((2, 1), math.nan)
    found = bootstrap(sound)
    around = [[max(0.0, found.value - found.low)], [max(0.0, found.high - found.value)]]
    return found.value, np.array(around)


def by_photo(rows: list[Row], masker: str) -> dict[str, Row]:
    return {row["photo"]: row for row in rows if row["masker"] == masker}


def less(first: dict[str, Row], second: dict[str, Row], key: str) -> str:
    """The mean difference, paired by photo, with its interval and the signed-rank test's p.

    Photos without an answer on either side are left out, and how many remain is said; of fewer than
    `FEW` there is no interval. A cell that has one is `Tested`.
    """
    pairs = [(value(first[p], key), value(second[p], key)) for p in first if p in second]
    sound = [(a, b) for a, b in pairs if math.isfinite(a) and math.isfinite(b)]
    if not sound:
        return "-"
    a, b = zip(*sound, strict=True)
    remark = f" (n = {len(sound)})" if len(sound) < len(pairs) else ""
    if remark and len(sound) < FEW:
        return f"{np.mean(np.subtract(a, b)):+.2f}{remark}"
    # rows have five digits: equal differences are told by fewer
    return Tested(paired(np.subtract(a, b).round(4), np.zeros(len(a))), remark)
