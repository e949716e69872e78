"""The pages of results say what the rows say, and repeat each other's tables word for word."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from benchmarks import convergence, paper
from convad_fx.metrics import statistics

ROOT = Path(__file__).parent.parent
Print = Callable[..., str]

#: Rows -> the section of docs/robustness.md with their tables.
NETWORKS = {
    "mobilenet-v2": "MobileNetV2",
    "mobilenet-v2-h200": "MobileNetV2, a longer search",
    "mobilenet-v1": "MobileNetV1 0.75/192",
    "cifar-resnet20": "CIFAR ResNet-20",
    "cifar-resnet56": "CIFAR ResNet-56",
}
#: Section of docs/experiments.md -> the page and the section whose tables it repeats.
REPEATED = {
    "MobileNetV2, 20 photos": ("robustness", "MobileNetV2"),
    "MobileNetV2, 34 photos, a longer search": ("robustness", "MobileNetV2, a longer search"),
    "MobileNetV1 0.75/192, 20 photos": ("robustness", "MobileNetV1 0.75/192"),
    "CIFAR ResNet-20, 30 photos": ("robustness", "CIFAR ResNet-20"),
    "CIFAR ResNet-56, 20 photos": ("robustness", "CIFAR ResNet-56"),
    "MobileNetV1, all sixty": ("threshold", "MobileNetV1: all sixty combinations"),
    "MobileNetV2, seventeen of them": ("threshold", "MobileNetV2: seventeen of them"),
}
#: Those that do not paint.
OFF = ("switched off", "switched off, as the paper", "layer masking")
DIFFERENCE = re.compile(r"([+-][\d.]+) \[([+-][\d.]+), ([+-][\d.]+)\], p ([\d.e-]+)")


def sections(page: str) -> dict[str, list[str]]:
    """The lines under each heading, to the next of any level."""
    found: dict[str, list[str]] = {}
    own: list[str] = []
    for line in (ROOT / "docs" / f"{page}.md").read_text().splitlines():
        if line.startswith("#"):
            own = found.setdefault(line.lstrip("# "), [])
        else:
            own.append(line)
    return found


def tables(lines: list[str]) -> list[list[list[str]]]:
    """Their cells, the head's first; without the ruling."""
    found: list[list[list[str]]] = []
    for above, line in zip(["", *lines], lines, strict=False):
        if line.startswith("| "):
            if not above.startswith("|"):
                found.append([])
            found[-1].append(line.removeprefix("| ").removesuffix(" |").split(" | "))
    return found


def enumerated(decided: NDArray[np.float64], resamples: int, seed: int) -> float:
    """The signed-rank test's p. With ties scipy tries all signs of few numbers, too, but slowly."""
    sizes = np.abs(decided)
    if len(decided) > 13 or len(np.unique(sizes)) == len(sizes):
        return float(stats.wilcoxon(decided).pvalue)
    ranks = stats.rankdata(sizes)
    positive = np.arange(2 ** len(ranks))[:, None] >> np.arange(len(ranks)) & 1
    sums, own = positive @ ranks, ranks[decided > 0].sum()
    return float(min(1.0, 2 * min((sums <= own).mean(), (sums >= own).mean())))


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Print:
    """What `--tables` prints of some of the results."""
    monkeypatch.setitem(statistics._TESTS, "wilcoxon", enumerated)

    def call(experiment: str, *names: str) -> str:
        results = ROOT / "benchmarks" / "results"
        files = [str(results / f"{experiment}-{name}.json") for name in names]
        monkeypatch.setattr(sys, "argv", ["paper", "--experiment", experiment, "--tables", *files])
        paper.main()
        return capsys.readouterr().out.strip()

    return call


def test_all_signs_tried_give_the_p_of_scipy() -> None:
    random = np.random.default_rng(0)
    for n in (1, 2, 5, 9, 11):
        some = random.choice([-0.3, -0.2, -0.1, 0.1, 0.2, 0.4], n)
        assert enumerated(some, 0, 0) == pytest.approx(stats.wilcoxon(some).pvalue)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_page_says_all_that_the_rows_say(network: str, printed: Print) -> None:
    text = printed("robustness", network)
    assert text.count("\n| ") == 3 * (11 + 10 + 10)
    assert text.count("\n* ") == 4
    assert text in "\n".join(sections("robustness")[NETWORKS[network]])


@pytest.mark.parametrize(
    "runs",
    [("mobilenet-v1", "mobilenet-v1-seed1"), ("mobilenet-v2", "mobilenet-v2-h200")],
    ids=["another seed", "a longer search"],
)
def test_the_page_says_what_two_runs_say(runs: tuple[str, str], printed: Print) -> None:
    text = printed("robustness", *runs)
    assert text.count("\n| ") > 10
    assert text in (ROOT / "docs" / "robustness.md").read_text()


@pytest.mark.parametrize(("network", "grid"), [("mobilenet-v1", "full"), ("mobilenet-v2", "few")])
def test_the_page_of_thresholds_says_all_that_the_rows_say(
    network: str, grid: str, printed: Print
) -> None:
    text = printed("threshold", network)
    assert text.count("\n| ") == 2 * (1 + len(paper.policies(grid))) - 1
    assert text in (ROOT / "docs" / "threshold.md").read_text()


# ---------------------------------------------------- what is counted, by the rounded tables alone
def differences(lines: list[str], label: str) -> dict[tuple[str, str], tuple[str, ...]]:
    """(other masker, column) -> mean, low, high and p; none of these without an interval."""
    cells = {
        (row[0], column): DIFFERENCE.match(cell)
        for head, *rows in tables(lines)
        if head[0] == f"{label} less"
        for row in rows
        for column, cell in zip(head[1:], row[1:], strict=True)
    }
    return {at: found.groups() if found else () for at, found in cells.items()}


def counted(lines: list[str], start: str) -> str:
    (line,) = (line for line in lines if line.startswith(f"* {start}: "))
    return line.removeprefix(f"* {start}: ")


@pytest.mark.parametrize("section", NETWORKS.values())
@pytest.mark.parametrize("label", OFF[:2])
def test_leads_over_paint_are_counted(label: str, section: str) -> None:
    lines = sections("robustness")[section]
    at_size = [
        cell
        for (other, column), cell in differences(lines, label).items()
        if other not in OFF and column.endswith("%")
    ]
    line = counted(lines, f"{label}, at equal size")
    ahead, behind, *by_p = map(int, re.findall(r"in (\d+)", line))
    assert f"in {ahead} of {len(at_size)} comparisons" in line
    tested = [cell for cell in at_size if cell]
    # +0.00, -0.00 and p 0.05 may be rounded either way
    for number, end, sign in ((ahead, 1, "+"), (behind, 2, "-")):
        sure = sum(cell[end].startswith(sign) and float(cell[end]) != 0 for cell in tested)
        assert sure <= number <= sum(cell[end].startswith(sign) for cell in tested)
    for number, sign in zip(by_p, "+-", strict=True):
        p_values = [float(cell[3]) for cell in tested if cell[0].startswith(sign)]
        assert sum(p < 0.05 for p in p_values) <= number <= sum(p <= 0.05 for p in p_values)


@pytest.mark.parametrize("section", NETWORKS.values())
def test_what_meets_bonferronis_bound_is_counted(section: str) -> None:
    lines = sections("robustness")[section]
    again = "rho, photos, with a map"
    cells = {at: c for at, c in differences(lines, OFF[0]).items() if at[1] != again}
    met = [at for at, cell in cells.items() if cell and float(cell[3]) < 0.05 / len(cells)]
    line = counted(lines, f"switched off, all but {again!r}")
    start = f"{len(met)} of {len(cells)} differences have p <= 0.05 / {len(cells)}"
    assert line.startswith(start)
    each = re.findall(r"(\d+) from (.+?) \((.+?)\)", line.removeprefix(start))
    assert [int(number) for number, _, _ in each] == [len(w.split("; ")) for _, _, w in each]
    named = {(other, column) for _, other, columns in each for column in columns.split("; ")}
    assert named == set(met)


@pytest.mark.parametrize("section", NETWORKS.values())
def test_photos_without_a_map_are_counted(section: str) -> None:
    lines = sections("robustness")[section]
    photos = next(int(line.split()[1]) for line in lines if line.endswith(" photos"))
    head, *rows = next(t for t in tables(lines) if t[0][0].endswith(", the sets found"))
    assert head[-2:] == ["without a map", "empty"]
    of = {row[0]: np.array([int(row[-2]), photos, int(row[-1])]) for row in rows}
    kinds = {label: of.pop(label) for label in OFF} | {"paints": sum(of.values())}
    shown = "; ".join(f"{kind} {a} of {b} ({c} empty)" for kind, (a, b, c) in kinds.items())
    assert counted(lines, "without a map") == shown


# ------------------------------------------------------------------------- one page repeats another
def test_each_table_of_the_experiments_has_a_source() -> None:
    with_tables = [name for name, lines in sections("experiments").items() if tables(lines)]
    assert with_tables == ["1. Equivalence", *REPEATED]


@pytest.mark.parametrize("section", REPEATED)
def test_the_experiments_repeat_tables_word_for_word(section: str) -> None:
    page, source = REPEATED[section]
    originals = tables(sections(page)[source])
    for head, *rows in tables(sections("experiments")[section]):
        # the first cell may say which network it is
        (original,) = (t for t in originals if t[0][0].endswith(head[0]) and t[0][1:] == head[1:])
        assert [row for row in original[1:] if row in rows] == rows


def test_the_page_of_the_search_has_the_tables_of_its_rows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(statistics._TESTS, "wilcoxon", enumerated)
    rows = ROOT / "benchmarks" / "results" / "convergence-mobilenet-v2.json"
    monkeypatch.setattr(sys, "argv", ["convergence", "--kit", str(tmp_path), "--tables", str(rows)])
    convergence.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    shown = [line for line in lines if not line.startswith("| varied: ")][:-1]
    assert len(shown) == 2 + 2 * 27 - 1
    assert set(shown) <= set((ROOT / "docs" / "search.md").read_text().splitlines())


def test_the_page_of_tuning_has_the_scores_that_were_measured() -> None:
    file = ROOT / "benchmarks" / "results" / "tune-mobilenet-v2.json"
    measured = json.loads(file.read_text())
    shown = re.findall(
        r"^    [ *] \S+ +(0\.\d{3}) +(\d+)%", "\n".join(sections("tune")["On photos"]), re.M
    )
    trials = sorted(measured["trials"], key=lambda trial: -trial["score"])
    assert shown == [(f"{t['score']:.3f}", f"{100 * t['wins']:.0f}") for t in trials]
    assert measured["verdict"] in " ".join((ROOT / "docs" / "tune.md").read_text().split())
