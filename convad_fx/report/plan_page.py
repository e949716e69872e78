"""Texts of a drawn plan, and the positions of everything on its page."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx

from convad_fx.compiler.analysis.plan import Activity
from convad_fx.compiler.analysis.report import Report
from convad_fx.report.graph_layout import Layout
from convad_fx.report.plan_graph import FAMILIES, Box, describe_window, paths_to_findings

RED, INK = "#d3202c", "#1c1c1c"
TEXT_SIZE, SMALL_SIZE = 7.0, 5.8  # points
_TITLE_SIZE, _HEADING_SIZE = 11.0, 8.5  # points
_MARGIN, _LINE_HEIGHT, _LEGEND_HEIGHT, _HEADING_HEIGHT = 0.3, 0.15, 0.24, 0.2  # inches
_SYMBOL_WIDTH = 0.34  # of legend and list, inches
_LIST_WIDTH = 3.1  # of a column of the list of activities, inches
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
    "intersection": "both",
    "spread_as": "spread:",
    "upsampled": "upsampled:",
}


@dataclass(frozen=True, slots=True)
class Text:
    """A text that begins at (x, y), with y at half its height."""

    x: float
    y: float
    text: str
    points: float = TEXT_SIZE
    color: str = INK
    weight: str = "normal"


class PlanPage:
    """Texts, symbols and boxes, with their positions in inches.

    Attributes:
        width, height: of the page.
        left, top: offset of the layout on the page.
        boxes: node -> box.
        finding_edges: edges on the paths to findings.
        texts: all texts outside of boxes.
        symbols: (x, y, symbol) of legend and list: a family, "gate", "activity", "new", "finding",
            "undecided", or the row of an activity.
    """

    def __init__(
        self,
        graph: nx.DiGraph,
        layout: Layout,
        activities: tuple[Activity, ...],
        report: Report,
    ) -> None:
        self.graph, self.layout = graph, layout
        self.boxes: dict[Any, Box] = dict(graph.nodes(data="box"))
        self.finding_edges = paths_to_findings(graph)
        self.symbols: list[tuple[float, float, str | int]] = []
        self._room = max(layout.width, _MIN_WIDTH)
        self.width = self._room + 2 * _MARGIN
        self.left = (self.width - layout.width) / 2
        self.texts = [Text(_MARGIN, _MARGIN, report.model, _TITLE_SIZE, weight="bold")]
        self.top = self._add_heading(report) + 0.5
        y = self._add_legend(self.top + layout.height + 0.3)
        y = self._add_activities(activities, y + 0.12)
        self.height = self._add_reasons(report, y) + _MARGIN

    def _add_heading(self, report: Report) -> float:
        texts = _heading(report, any(box.is_block for box in self.boxes.values()))
        letters = int(self._room / text_width("x", _HEADING_SIZE))
        lines = [line for text in texts for line in textwrap.wrap(text, letters)]
        for i, line in enumerate(lines):
            color = RED if i == 0 and not report.ok else INK
            y = _MARGIN + 0.03 + _HEADING_HEIGHT * (i + 1)
            self.texts.append(Text(_MARGIN, y, line, _HEADING_SIZE, color))
        return _MARGIN + _HEADING_HEIGHT * len(lines)

    def _add_legend(self, top: float) -> float:
        line, x = 0, 0.0
        for symbol, text in self._legend():
            needed = _SYMBOL_WIDTH + text_width(text, TEXT_SIZE) + 0.22
            if x and x + needed > self._room:
                line, x = line + 1, 0.0
            y = top + _LEGEND_HEIGHT * line
            self.symbols.append((_MARGIN + x, y, symbol))
            self.texts.append(Text(_MARGIN + x + _SYMBOL_WIDTH, y, text))
            x += needed
        return top + _LEGEND_HEIGHT * (line + 1)

    def _legend(self) -> Iterator[tuple[str, str]]:
        """Symbol and text, of the symbols that the drawing contains."""
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

    def _add_activities(self, activities: tuple[Activity, ...], top: float) -> float:
        lines = [_describe(activity) for activity in activities]
        listed = len(lines) if len(lines) <= _MAX_ACTIVITIES else _MAX_ACTIVITIES - 1
        if listed < len(lines):
            lines[listed:] = [f"and {len(lines) - listed} more"]
        if not lines:
            return top
        self.texts.append(Text(_MARGIN, top, "Activities", weight="bold"))
        columns = max(1, min(int(self._room / _LIST_WIDTH), len(lines)))
        per_column = -(-len(lines) // columns)
        for row, line in enumerate(lines):
            x = _MARGIN + _LIST_WIDTH * (row // per_column)
            y = top + _LINE_HEIGHT * (1 + row % per_column)
            if row < listed:
                self.symbols.append((x, y, row))
            self.texts.append(Text(x + _SYMBOL_WIDTH, y, line))
        return top + _LINE_HEIGHT * (per_column + 1) + 0.1

    def _add_reasons(self, report: Report, top: float) -> float:
        letters = int(self._room / text_width("x", TEXT_SIZE))
        lines = [
            line
            for text in _reasons(report)
            for line in textwrap.wrap(text, letters, subsequent_indent="    ")
        ]
        for i, line in enumerate(lines):
            self.texts.append(Text(_MARGIN, top + _LINE_HEIGHT * (i + 1), line, color=RED))
        return top + (_LINE_HEIGHT * (len(lines) + 1) if lines else 0.0)


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
