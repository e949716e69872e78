"""Texts of the picture of a plan, and the positions of everything on its page."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import networkx as nx

from convad_fx.compiler.analysis.plan import Activity
from convad_fx.compiler.analysis.report import Report
from convad_fx.report.graph_layout import Layout
from convad_fx.report.plan_graph import FAMILIES, Box, describe_window, paths_to_findings

MARGIN = 0.3  # inches
LINE_HEIGHT, LEGEND_HEIGHT, HEADING_HEIGHT = 0.15, 0.24, 0.2  # inches
TITLE_SIZE, HEADING_SIZE, TEXT_SIZE, SMALL_SIZE = 11.0, 8.5, 7.0, 5.8  # points
SYMBOL_WIDTH = 0.34  # of legend and list, inches
LIST_WIDTH = 3.1  # of a column of the list of activities, inches
_MIN_WIDTH = 7.2  # of the page without margins, inches
_MAX_ACTIVITIES = 24  # in the list
_MAX_REASONS = 8  # in the list of findings

#: What the functions that compute activities do, unless their name is clear enough.
_FUNCTIONS = {
    "anywhere": "any cell of",
    "share_activity": "share of",
    "rearrange": "axes rearranged:",
    "reshaped": "reshaped:",
    "concatenated": "concatenation of",
    "both": "both",
    "spread_as": "spread:",
    "upsampled": "upsampled:",
}


class PlanPage:
    """Title, boxes, legend, activities and findings, with their positions in inches.

    Attributes:
        width, height: of the page.
        left, top: offset of the layout on the page.
        heading: lines below the title.
        legend: (line, x, symbol, text) of each entry; its first line is at `legend_top`.
        activities: (row in the plan, text), in columns of `per_column` lines from
            `activities_top`.
        reasons: lines of the list of findings, from `reasons_top`.
        finding_edges: edges on the paths to findings.
    """

    def __init__(
        self,
        graph: nx.DiGraph,
        layout: Layout,
        activities: tuple[Activity, ...],
        report: Report,
    ) -> None:
        self.graph, self.layout, self.report = graph, layout, report
        self.finding_edges = paths_to_findings(graph)
        self.boxes: dict[Any, Box] = dict(graph.nodes(data="box"))
        room = max(layout.width, _MIN_WIDTH)
        self.width = room + 2 * MARGIN
        heading = _heading(report, any(box.is_block for box in self.boxes.values()))
        letters = int(room / text_width("x", HEADING_SIZE))
        self.heading = [line for text in heading for line in textwrap.wrap(text, letters)]
        self.legend = list(_flow(self._legend(), room))
        self.activities = _list_activities(activities)
        columns = max(1, min(int(room / LIST_WIDTH), len(self.activities)))
        self.per_column = -(-len(self.activities) // columns)
        letters = int(room / text_width("x", TEXT_SIZE))
        self.reasons = [
            line
            for text in _reasons(report)
            for line in textwrap.wrap(text, letters, subsequent_indent="    ")
        ]

        self.top = MARGIN + HEADING_HEIGHT * len(self.heading) + 0.5
        self.left = (self.width - layout.width) / 2
        self.legend_top = self.top + layout.height + 0.3
        self.activities_top = self.legend_top + LEGEND_HEIGHT * (self.legend[-1][0] + 1) + 0.12
        listed = LINE_HEIGHT * (self.per_column + 1) + 0.1 if self.activities else 0.0
        self.reasons_top = self.activities_top + listed
        listed = LINE_HEIGHT * (len(self.reasons) + 1) if self.reasons else 0.0
        self.height = self.reasons_top + listed + MARGIN

    def _legend(self) -> Iterator[tuple[str, str]]:
        """Symbol and text, of the symbols that the picture contains."""
        boxes = self.boxes.values()
        present: Counter[str] = sum((box.families for box in boxes), Counter())
        yield from ((family, family) for family in FAMILIES if family in present)
        if any(box.gated for box in boxes):
            yield "gate", "gate: inactive cells are read as zero"
        if any(box.activity is not None for box in boxes):
            yield "activity", "activity of the result"
        if any(box.is_new for box in boxes):
            yield "new", "differs from its inputs'"
        if any(box.findings for box in boxes):
            yield "finding", "finding, and a path to it"
        if any(box.is_undecided for box in boxes):
            yield "undecided", "undecided after a finding"


def text_width(text: str, points: float) -> float:
    """Approximate width of a text, in inches."""
    return len(text) * points * 0.56 / 72


def plural(count: int, noun: str) -> str:
    """A count with its noun.

    >>> plural(1, "gate"), plural(2, "gate")
    ('1 gate', '2 gates')
    """
    return f"{count} {noun}{'s' if count != 1 else ''}"


def number_ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers, with runs abbreviated.

    >>> number_ranges([1, 2, 3, 5])
    '1-3, 5'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _heading(report: Report, blocks: bool) -> tuple[str, str]:
    total = sum(count for _, count in report.operations)
    counts = [
        f"{plural(total, 'operation')}{' in blocks' if blocks else ''}",
        f"{report.activities} activit{'ies' if report.activities != 1 else 'y'}",
        f"{plural(report.gated, 'operation')} with gated input",
    ]
    verdict = "Assumption 1 holds: every operation has a known reach."
    if not report.ok:
        findings = plural(len(report.findings), "finding")
        verdict = f"Assumption 1 is not shown to hold: {findings}."
    if report.size_bound:
        verdict += f" For this image size only, because of {report.size_bound}."
    return verdict, f"{', '.join(counts)} ({report.front_end})"


def _flow(items: Iterator[tuple[str, str]], room: float) -> Iterator[tuple[int, float, str, str]]:
    """Line and x of each entry of the legend."""
    line, x = 0, 0.0
    for symbol, text in items:
        needed = SYMBOL_WIDTH + text_width(text, TEXT_SIZE) + 0.22
        if x and x + needed > room:
            line, x = line + 1, 0.0
        yield line, x, symbol, text
        x += needed


def _list_activities(activities: tuple[Activity, ...]) -> list[tuple[int | None, str]]:
    rows: list[tuple[int | None, str]] = [(i, _describe(a)) for i, a in enumerate(activities)]
    if len(rows) > _MAX_ACTIVITIES:
        omitted = len(rows) - _MAX_ACTIVITIES + 1
        rows[_MAX_ACTIVITIES - 1 :] = [(None, f"and {omitted} more")]
    return rows


def _describe(activity: Activity) -> str:
    """How an activity is computed, in a line: ``window 3x3 /2 of 5``."""
    if activity.how is None:
        return "the mask"
    name = activity.how.function
    words = [_FUNCTIONS.get(name, name.removesuffix("_activity").replace("_", " "))]
    options = dict(activity.how.options)
    if "kernel" in options:
        words.append(describe_window(options["kernel"], options["stride"]))
    if name not in _FUNCTIONS:
        words.append("of")
    sources = ("constants" if source is None else str(source) for source in activity.of)
    words.append(", ".join(sources))
    return " ".join(words) + (" (one for the image)" if activity.is_global else "")


def _reasons(report: Report) -> list[str]:
    """Findings with their numbers; those with the same operation and reason are combined."""
    numbers_of: dict[tuple[str, str], list[int]] = {}
    for number, finding in enumerate(report.findings, 1):
        numbers_of.setdefault((finding.op, finding.why), []).append(number)
    texts = []
    for numbers in numbers_of.values():
        first = str(report.findings[numbers[0] - 1])
        also = f" (and {len(numbers) - 1} more like it)" if len(numbers) > 1 else ""
        texts.append(f"{number_ranges(numbers)}  {first}{also}")
    if len(texts) > _MAX_REASONS:
        texts[_MAX_REASONS:] = [f"and {len(texts) - _MAX_REASONS} other reasons: see the report"]
    return texts
