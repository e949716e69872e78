"""The plan as a picture: what every operation does to the activity, gates, findings."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import networkx as nx
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, Polygon, Rectangle
from torch import Tensor, nn

from convad_fx.compiler.analysis.plan import Activity, Plan
from convad_fx.compiler.analysis.propagate import plan
from convad_fx.compiler.analysis.report import Report, untraceable
from convad_fx.compiler.capture.requirements import unwrapped
from convad_fx.compiler.capture.trace import Trace, trace
from convad_fx.compiler.policy import Policy
from convad_fx.convert import full_report
from convad_fx.errors import PolicyError, Unavailable, UntraceableModel
from convad_fx.report.layered import BOX_HEIGHT, BOX_WIDTH, Layout, Point, arrange
from convad_fx.report.plan_graph import (
    FAMILIES,
    IMAGE,
    OUTPUT,
    Box,
    by_blocks,
    plan_graph,
    uncaptured_graph,
    ways_to_findings,
    window_in_words,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".svg", ".png", ".pdf")

#: Family -> fill. Light enough for dark text, apart in lightness as well as in hue.
FILLS = dict(
    zip(
        FAMILIES,
        ("#a9cdf2", "#ececec", "#f9c78b", "#d8c5ee", "#aee0ae", "#f6e58a"),
        strict=True,
    )
)
RED, INK, LINE = "#d3202c", "#1c1c1c", "#8a8a8a"

#: What the functions that derive activities do, where their names do not say it to a stranger.
_WORDS = {
    "anywhere": "any cell of",
    "share_activity": "share of",
    "rearrange": "axes rearranged:",
    "reshaped": "reshaped:",
    "concatenated": "concatenation of",
    "intersection": "both",
    "spread_as": "spread:",
    "upsampled": "upsampled:",
}

_MARGIN = 0.3
_TITLE, _HEADING, _TEXT, _SMALL = 11.0, 8.5, 7.0, 5.8  # points
_TEXT_ROW = 0.15  # inches
_LETTERS = 26  # that fit into a box
_MOST_ROWS = 24  # activities that are listed
_MOST_REASONS = 8
_LISTED = 3.1  # width of a column of activities


def save_plan(
    model: nn.Module,
    example: Tensor,
    file: Path | str,
    policy: Policy | None = None,
    *,
    front_end: str = "auto",
) -> Report:
    """Check a model as `convad_fx.check` does, and leave a picture of what was decided.

    >>> import tempfile, torch, torchvision
    >>> model = torchvision.models.squeezenet1_1().eval()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_plan(model, torch.zeros(1, 3, 64, 64), Path(folder) / "squeezenet.svg").ok
    True

    `draw_plan` says what the picture shows. Of a model that cannot be captured it shows where.

    Args:
        model, example, policy, front_end: as for `convad_fx.check`.
        file: its ending says what is written: .svg, .png or .pdf. Replaced if it is there.

    Returns:
        The report that `convad_fx.check` gives.

    Raises:
        PolicyError: another ending.
        Unavailable: the file cannot be written; its folder must exist.
        ModelError, ImageError: as in `convad_fx.check`.
    """
    target = writable_picture(file)
    name = type(unwrapped(model)).__name__
    try:
        traced = trace(model, example, front_end)
    except UntraceableModel as error:
        report = untraceable(name, error.path, error.what, error.hint)
        figure = _draw(uncaptured_graph(report), (), report, None)
    else:
        policy = policy or Policy()
        decided = plan(traced, policy)
        report = full_report(traced, decided, policy, name)
        figure = draw_plan(traced, decided, report)
    # Without versions and dates, the same plan gives the same file.
    undated = {".svg": "Date", ".png": "Software", ".pdf": "CreationDate"}[target.suffix.lower()]
    try:
        figure.savefig(target, dpi=150, metadata={undated: None})
    except OSError as error:
        raise _not_writable(target, error.strerror or str(error)) from error
    return report


def writable_picture(file: Path | str) -> Path:
    """The path, if a picture can go there: to be asked before the work.

    Raises:
        PolicyError: an ending that is not among `SUFFIXES`.
        Unavailable: the folder does not exist, or the path is a folder.
    """
    path = Path(file)
    if path.suffix.lower() not in SUFFIXES:
        raise PolicyError(
            f"a picture of the plan is {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]},"
            f" not {path.suffix or 'a file without ending'} ({path})",
            hint=f"write {path.stem or 'plan'}.svg",
        )
    if not path.parent.is_dir():
        raise _not_writable(path, f"there is no folder {path.parent}")
    if path.is_dir():
        raise _not_writable(path, "it is a folder")
    return path


def _not_writable(path: Path, why: str) -> Unavailable:
    return Unavailable(f"cannot write {path}: {why}", hint="make the folder, or pass another file")


def draw_plan(traced: Trace, plan: Plan, report: Report, axes: Axes | None = None) -> Figure:
    """Every operation, or every block of a large network, in the order of the data.

    >>> import torch, torchvision
    >>> from convad_fx.compiler.analysis.propagate import plan
    >>> model = torchvision.models.squeezenet1_1().eval()
    >>> traced = trace(model, torch.zeros(1, 3, 64, 64))
    >>> decided = plan(traced, Policy())
    >>> report = full_report(traced, decided, Policy(), "SqueezeNet")
    >>> figure = draw_plan(traced, decided, report)
    >>> len(figure.axes)
    1

    Boxes are filled by family. The number at a box's right end is the activity of its result (a row
    of the list below the picture), in bold where it is a new one. A black diamond stands where
    inactive cells read as zero. Findings are red and numbered as in the report, and so is a
    shortest way that leads to each from the image. What comes after a finding is left open: "?".

    Args:
        traced, plan, report: of one and the same model.
        axes: where to draw, for a figure of one's own; text shrinks with the room. None makes a
            figure that is as large as the network needs.

    Returns:
        The figure; no display is needed, and matplotlib's global state is not touched.
    """
    return _draw(plan_graph(traced, plan), plan.activities, report, axes)


def _draw(
    graph: nx.DiGraph, activities: tuple[Activity, ...], report: Report, axes: Axes | None
) -> Figure:
    shown = by_blocks(graph)
    layout = arrange(shown, group=lambda node: _stage(shown.nodes[node]["box"]))
    sheet = _Sheet(shown, layout, activities, report)
    if axes is None:
        figure = Figure(figsize=(sheet.width, sheet.height), facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    root = axes.get_figure(root=True)
    assert root is not None, "axes that were removed from their figure"
    room = axes.get_window_extent().transformed(root.dpi_scale_trans.inverted())
    _Pen(axes, min(room.width / sheet.width, room.height / sheet.height)).draw(sheet)
    return root


def _stage(box: Box) -> str:
    """Columns end preferably between these: the path without its last two parts, or its first."""
    parts = box.path.split(".")
    return ".".join(parts[: max(1, len(parts) - 2)])


# --------------------------------------------------------------------------------------- texts


class _Sheet:
    """What stands where on the page: title, boxes, legend, activities, findings. Inches."""

    def __init__(
        self,
        graph: nx.DiGraph,
        layout: Layout,
        activities: tuple[Activity, ...],
        report: Report,
    ) -> None:
        self.graph, self.layout = graph, layout
        self.ways = ways_to_findings(graph)
        self.boxes: dict[Any, Box] = dict(graph.nodes(data="box"))
        self.title, self.ok = report.model, report.ok
        self.width = max(layout.width, 7.2) + 2 * _MARGIN
        room = self.width - 2 * _MARGIN
        blocks = any(box.is_block for box in self.boxes.values())
        self.heading = [
            line
            for text in _heading(report, blocks)
            for line in textwrap.wrap(text, int(room / _wide("x", _HEADING)))
        ]
        self.legend = list(_flowing(self._legend(), room))
        rows = _listing(activities)
        columns = max(1, min(int(room / _LISTED), len(rows)))
        self.per_column = -(-len(rows) // columns)
        self.rows = rows
        letters = int(room / _wide("x", _TEXT))
        self.reasons = [line for text in _reasons(report) for line in _wrapped(text, letters)]

        self.top = _MARGIN + 0.2 * len(self.heading) + 0.5  # of the boxes
        self.left = (self.width - layout.width) / 2
        self.legend_top = self.top + layout.height + 0.3
        self.rows_top = self.legend_top + 0.24 * (self.legend[-1][0] + 1) + 0.12
        self.reasons_top = self.rows_top + (_TEXT_ROW * (self.per_column + 1) + 0.1) * bool(rows)
        listed = _TEXT_ROW * (len(self.reasons) + 1) if self.reasons else 0.0
        self.height = self.reasons_top + listed + _MARGIN

    def _legend(self) -> Iterator[tuple[str, str]]:
        present: Counter[str] = sum((box.families for box in self.boxes.values()), Counter())
        yield from ((family, family) for family in FAMILIES if family in present)
        if any(box.gated for box in self.boxes.values()):
            yield "gate", "gate: inactive cells are read as zero"
        if any(box.activity is not None for box in self.boxes.values()):
            yield "activity", "activity of the result"
        if any(box.is_new for box in self.boxes.values()):
            yield "new", "another than before"
        if any(box.findings for box in self.boxes.values()):
            yield "finding", "finding, and the way to it"
        if any(_is_open(box) for box in self.boxes.values()):
            yield "open", "after a finding: left open"


def _heading(report: Report, blocks: bool) -> tuple[str, str]:
    total = sum(count for _, count in report.operations)
    counts = [
        f"{_many(total, 'operation')}{' in blocks' if blocks else ''}",
        f"{report.activities} activit{'ies' if report.activities != 1 else 'y'}",
        f"{_many(report.gated, 'operation')} with gated input",
    ]
    verdict = "Assumption 1 holds: every operation has a known reach."
    if not report.ok:
        found = _many(len(report.findings), "finding")
        verdict = f"Assumption 1 is not shown to hold: {found}."
    if report.size_bound:
        verdict += f" For this image size only, because of {report.size_bound}."
    return verdict, f"{', '.join(counts)} ({report.front_end})"


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}{'s'[: count != 1]}"


def _flowing(
    items: Iterator[tuple[str, str]], room: float
) -> Iterator[tuple[int, float, str, str]]:
    """Line and place of each entry of the legend."""
    line, x = 0, 0.0
    for symbol, text in items:
        needed = 0.34 + _wide(text, _TEXT) + 0.22
        if x and x + needed > room:
            line, x = line + 1, 0.0
        yield line, x, symbol, text
        x += needed


def _listing(activities: tuple[Activity, ...]) -> list[tuple[int | None, str]]:
    rows: list[tuple[int | None, str]] = [(i, _described(a)) for i, a in enumerate(activities)]
    if len(rows) <= _MOST_ROWS:
        return rows
    return [*rows[: _MOST_ROWS - 1], (None, f"and {len(rows) - _MOST_ROWS + 1} more")]


def _described(row: Activity) -> str:
    """How an activity comes about, in a line: ``window 3x3 /2 of 5``."""
    if row.how is None:
        return "the mask"
    name = row.how.function
    words = [_WORDS.get(name, name.removesuffix("_activity").replace("_", " "))]
    options = dict(row.how.options)
    if "kernel" in options:
        words.append(window_in_words(options["kernel"], options["stride"]))
    if name not in _WORDS:
        words.append("of")
    words.append(", ".join("constants" if source is None else str(source) for source in row.of))
    return " ".join(words) + (" (one for the image)" if row.is_global else "")


def _reasons(report: Report) -> list[str]:
    """Findings with their numbers; those of one operation for one reason together."""
    together: dict[tuple[str, str], list[int]] = {}
    for number, finding in enumerate(report.findings, 1):
        together.setdefault((finding.op, finding.why), []).append(number)
    texts = []
    for numbers in together.values():
        first = str(report.findings[numbers[0] - 1])
        also = "" if len(numbers) == 1 else f" (and {len(numbers) - 1} more like it)"
        texts.append(f"{_ranges(numbers)}  {first}{also}")
    if len(texts) > _MOST_REASONS:
        texts[_MOST_REASONS:] = [f"and {len(texts) - _MOST_REASONS} other reasons: see the report"]
    return texts


def _ranges(numbers: tuple[int, ...] | list[int]) -> str:
    """Numbers, runs of them in short.

    >>> _ranges([1, 2, 3, 5])
    '1-3, 5'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _wrapped(text: str, letters: int) -> list[str]:
    return textwrap.wrap(text, letters, subsequent_indent="    ")


def _wide(text: str, points: float) -> float:
    """About how many inches a text takes."""
    return len(text) * points * 0.56 / 72


def _fitting(path: str, letters: int) -> str:
    """The end of a path that does not fit: ``…0.self_attention``."""
    if len(path) <= letters:
        return path
    rest = path[1 - letters :]
    _, _, whole = rest.partition(".")
    return f"…{whole}" if len(whole) > 0.6 * letters else f"…{rest}"


def _is_open(box: Box) -> bool:
    return box.activity is None and not box.findings


def _detail(box: Box) -> str:
    if not box.is_block:
        return box.kind
    gates = f", {_many(box.gated, 'gate')}" if box.gated else ""
    changes = f", {_many(box.changes, 'change')}" if box.changes else ""
    return f"{_many(box.operations, 'operation')}{gates}{changes}"


# --------------------------------------------------------------------------------------- drawing


class _Pen:
    """Draws a sheet into axes, with texts that shrink as much as the sheet does."""

    def __init__(self, axes: Axes, scale: float) -> None:
        self.axes, self.scale = axes, scale

    def draw(self, sheet: _Sheet) -> None:
        self.axes.set(xlim=(0, sheet.width), ylim=(sheet.height, 0), aspect="equal")
        self.axes.set_axis_off()
        self.text(_MARGIN, _MARGIN, sheet.title, _TITLE, weight="bold")
        for i, text in enumerate(sheet.heading):
            colour = RED if i == 0 and not sheet.ok else INK
            self.text(_MARGIN, _MARGIN + 0.03 + 0.2 * (i + 1), text, _HEADING, color=colour)
        for edge in sorted(sheet.graph.edges, key=lambda edge: edge in sheet.ways):
            self.edge(sheet, edge)
        for node, box in sheet.boxes.items():
            x, y = sheet.layout.centres[node]
            self.box(x + sheet.left, y + sheet.top, box)
        for edge, gated in nx.get_edge_attributes(sheet.graph, "gated").items():
            if gated:
                (x, y), side = _arrival(sheet.layout.routes[edge])
                back = (-0.055, 0.0) if side else (0.0, -0.055)
                self.diamond(x + sheet.left + back[0], y + sheet.top + back[1])
        for line, x, symbol, text in sheet.legend:
            y = sheet.legend_top + 0.24 * line
            self.symbol(_MARGIN + x, y, symbol)
            self.text(_MARGIN + x + 0.34, y, text, _TEXT)
        self.listing(sheet)
        for i, text in enumerate(sheet.reasons):
            self.text(_MARGIN, sheet.reasons_top + _TEXT_ROW * (i + 1), text, _TEXT, color=RED)

    def edge(self, sheet: _Sheet, edge: tuple[Any, Any]) -> None:
        marked = edge in sheet.ways
        colour, width = (RED, 2.0) if marked else (LINE, 0.8)
        points = [(x + sheet.left, y + sheet.top) for x, y in sheet.layout.routes[edge]]
        self.line(points, colour, width, zorder=2 if marked else 1)
        (x, y), side = _arrival(points)
        a, b = 0.06, 0.03
        tip = [(x, y), (x - b, y - a), (x + b, y - a)]
        if side:
            tip = [(x, y), (x - a, y - b), (x - a, y + b)]
        self.patch(Polygon(tip, facecolor=colour, edgecolor="none", zorder=3))

    def box(self, x: float, y: float, box: Box) -> None:
        left, top = x - BOX_WIDTH / 2, y - BOX_HEIGHT / 2
        if box.path in (IMAGE, OUTPUT) and not box.operations:
            self.frame(left, top, "white", INK, 1.2)
            self.text(x, y, box.path, _TEXT + 1, ha="center", weight="bold")
            self.pill(left, y, box)
            return
        family = next(iter(box.families), None)
        fill = "white" if box.is_block or family is None else FILLS[family]
        if box.findings and not box.is_block:
            fill = "#f7c4c4"
        edge = RED if box.findings else "#6b6b6b"
        self.frame(left, top, fill, edge, 1.8 if box.findings else 0.6, dashed=_is_open(box))
        if box.is_block:
            self.shares(left, top, box)
        up = 0.015 if box.is_block else 0.0
        self.text(left + 0.06, y - 0.065 - up, _fitting(box.path, _LETTERS), _TEXT)
        self.text(left + 0.06, y + 0.075 - up, _detail(box), _SMALL, color="#4a4a4a")
        self.pill(left, y, box)
        if box.findings:
            self.badge(left, top, _ranges(box.findings))

    def frame(
        self, left: float, top: float, fill: str, edge: str, width: float, *, dashed: bool = False
    ) -> None:
        self.patch(
            FancyBboxPatch(
                (left, top),
                BOX_WIDTH,
                BOX_HEIGHT,
                boxstyle="round,pad=0,rounding_size=0.04",
                facecolor=fill,
                edgecolor=edge,
                linewidth=width * self.scale,
                linestyle=(0, (3, 2)) if dashed else "-",
                zorder=4,
            )
        )

    def shares(self, left: float, top: float, box: Box) -> None:
        """A bar at the bottom of a block: how many of its operations are of each family."""
        room, x = BOX_WIDTH - 0.08, left + 0.04
        for family, fill in (*FILLS.items(), ("finding", RED)):
            count = len(box.findings) if family == "finding" else box.families[family]
            width = room * count / box.operations
            bar = Rectangle((x, top + BOX_HEIGHT - 0.05), width, 0.04, zorder=5)
            bar.set(facecolor=fill, edgecolor="none")
            self.patch(bar)
            x += width

    def pill(self, left: float, y: float, box: Box) -> None:
        """The number of the activity, tinted; "?" where it is left open."""
        row = box.activity
        if row is None and box.findings and not box.is_block:
            return
        self.number(left + BOX_WIDTH - 0.16, y - 0.065, row, bold=box.is_new)

    def number(self, x: float, y: float, row: int | None, *, bold: bool) -> None:
        pill = FancyBboxPatch(
            (x - 0.11, y - 0.06),
            0.22,
            0.12,
            boxstyle="round,pad=0,rounding_size=0.05",
            facecolor="white" if row is None else tint(row),
            edgecolor=INK if bold else "#9a9a9a",
            linewidth=(1.2 if bold else 0.4) * self.scale,
            zorder=6,
        )
        self.patch(pill)
        shown = "?" if row is None else str(row)
        self.text(x, y, shown, _SMALL, ha="center", weight="bold" if bold else "normal")

    def badge(self, x: float, y: float, text: str) -> None:
        width = max(0.17, _wide(text, _SMALL) + 0.1)
        x += 0.085 - width / 2  # long ones grow away from the path
        badge = FancyBboxPatch(
            (x - width / 2, y - 0.075),
            width,
            0.15,
            boxstyle="round,pad=0,rounding_size=0.07",
            facecolor=RED,
            edgecolor="white",
            linewidth=0.6 * self.scale,
            zorder=7,
        )
        self.patch(badge)
        self.text(x, y, text, _SMALL, ha="center", color="white", weight="bold")

    def diamond(self, x: float, y: float) -> None:
        r = 0.06
        corners = [(x - r, y), (x, y - r), (x + r, y), (x, y + r)]
        self.patch(
            Polygon(corners, facecolor=INK, edgecolor="white", linewidth=0.5 * self.scale, zorder=8)
        )

    def symbol(self, x: float, y: float, name: str) -> None:
        if name in FILLS:
            swatch = Rectangle((x, y - 0.06), 0.26, 0.12, facecolor=FILLS[name], zorder=4)
            swatch.set(edgecolor="#6b6b6b", linewidth=0.6 * self.scale)
            self.patch(swatch)
        elif name == "gate":
            self.diamond(x + 0.2, y)
        elif name == "activity":
            self.number(x + 0.14, y, 1, bold=False)
        elif name == "new":
            self.number(x + 0.14, y, 2, bold=True)
        elif name == "finding":
            self.line([(x, y), (x + 0.27, y)], RED, 2.0)
            self.patch(Circle((x + 0.14, y), 0.07, facecolor=RED, edgecolor="none", zorder=4))
        else:
            self.number(x + 0.14, y, None, bold=False)

    def listing(self, sheet: _Sheet) -> None:
        if not sheet.rows:
            return
        self.text(_MARGIN, sheet.rows_top, "Activities", _TEXT, weight="bold")
        for i, (row, text) in enumerate(sheet.rows):
            x = _MARGIN + _LISTED * (i // sheet.per_column)
            y = sheet.rows_top + _TEXT_ROW * (1 + i % sheet.per_column)
            if row is not None:
                self.number(x + 0.14, y, row, bold=False)
            self.text(x + 0.34, y, text, _TEXT)

    # Nothing is clipped: clip paths get random names in SVG files.

    def line(self, points: list[Point], colour: str, width: float, zorder: int = 1) -> None:
        xs, ys = zip(*points, strict=True)
        self.axes.plot(
            xs,
            ys,
            color=colour,
            linewidth=width * self.scale,
            solid_joinstyle="round",
            clip_on=False,
            zorder=zorder,
        )

    def patch(self, patch: Any) -> None:
        patch.set_clip_on(False)
        self.axes.add_patch(patch)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        points: float,
        *,
        ha: str = "left",
        color: str = INK,
        weight: str = "normal",
    ) -> None:
        self.axes.text(
            x,
            y,
            text,
            fontsize=points * self.scale,
            ha=ha,
            va="center",
            color=color,
            weight=weight,
            zorder=9,
            parse_math=False,
        )


def tint(row: int) -> str:
    """A light colour for an activity: neighbours in the list differ."""
    return to_hex(colormaps["Pastel1"](row % 8) if row else (1.0, 1.0, 1.0))


def _arrival(points: list[Point]) -> tuple[Point, bool]:
    """Where a line ends, and whether it comes from the left."""
    (_, y0), (x1, y1) = points[-2:]
    return (x1, y1), y0 == y1
