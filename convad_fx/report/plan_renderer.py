"""Draw the page of a plan into matplotlib axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import networkx as nx
from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.patches import Circle, FancyBboxPatch, Polygon, Rectangle

from convad_fx.report.graph_layout import BOX_HEIGHT, BOX_WIDTH, Point
from convad_fx.report.plan_graph import FAMILIES, IMAGE, OUTPUT, Box
from convad_fx.report.plan_page import (
    INK,
    RED,
    SMALL_SIZE,
    TEXT_SIZE,
    PlanPage,
    number_ranges,
    plural,
    text_width,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Family -> fill colour: light enough for dark text, and different in lightness and hue.
_COLORS = ("#a9cdf2", "#ececec", "#f9c78b", "#d8c5ee", "#aee0ae", "#f6e58a")
FILLS = dict(zip(FAMILIES, _COLORS, strict=True))
_LINE, _BORDER, _LIGHT_BORDER = "#8a8a8a", "#6b6b6b", "#9a9a9a"
_MAX_LETTERS = 26  # of a path in a box


class PlanRenderer:
    """Draws a page into axes; texts and line widths shrink with the page.

    Args:
        axes: where to draw.
        page: what to draw.
    """

    def __init__(self, axes: Axes, page: PlanPage) -> None:
        root = axes.get_figure(root=True)
        assert root is not None, "axes that were removed from their figure"
        room = axes.get_window_extent().transformed(root.dpi_scale_trans.inverted())
        self.axes, self.page = axes, page
        self.scale = min(room.width / page.width, room.height / page.height)

    def draw(self) -> None:
        """Draw everything."""
        page = self.page
        self.axes.set(xlim=(0, page.width), ylim=(page.height, 0), aspect="equal")
        self.axes.set_axis_off()
        for text in page.texts:
            style = {"color": text.color, "weight": text.weight}
            self._text(text.x, text.y, text.text, text.points, **style)
        for x, y, symbol in page.symbols:
            self._symbol(x, y, symbol)
        routes = {
            edge: [(x + page.left, y + page.top) for x, y in points]
            for edge, points in page.layout.routes.items()
        }
        for edge in sorted(page.graph.edges, key=lambda edge: edge in page.finding_edges):
            self._edge(routes[edge], marked=edge in page.finding_edges)
        for node, box in page.boxes.items():
            x, y = page.layout.centres[node]
            self._box(x + page.left, y + page.top, box)
        for edge, gated in nx.get_edge_attributes(page.graph, "gated").items():
            if gated:
                x, y = routes[edge][-1]
                from_left = _from_left(routes[edge])
                self._gate(x - 0.055 * from_left, y - 0.055 * (not from_left))

    def _edge(self, points: list[Point], *, marked: bool) -> None:
        color, width = (RED, 2.0) if marked else (_LINE, 0.8)
        self._line(points, color, width, zorder=2 if marked else 1)
        x, y = points[-1]
        length, half = 0.06, 0.03
        tip = [(x, y), (x - half, y - length), (x + half, y - length)]
        if _from_left(points):
            tip = [(x, y), (x - length, y - half), (x - length, y + half)]
        self._patch(Polygon(tip, fc=color, ec="none", zorder=3))

    def _box(self, x: float, y: float, box: Box) -> None:
        left, top = x - BOX_WIDTH / 2, y - BOX_HEIGHT / 2
        size = BOX_WIDTH, BOX_HEIGHT
        if box.path in (IMAGE, OUTPUT) and not box.operations:
            self._rounded((x, y), size, 0.04, fc="white", ec=INK, lw=1.2, zorder=4)
            self._text(x, y, box.path, TEXT_SIZE + 1, ha="center", weight="bold")
        else:
            family = next(iter(box.families), None)
            fill = "white" if box.is_block or family is None else FILLS[family]
            if box.findings and not box.is_block:
                fill = "#f7c4c4"
            edge, width = (RED, 1.8) if box.findings else (_BORDER, 0.6)
            dashes = (0, (3, 2)) if box.is_undecided else "-"
            self._rounded((x, y), size, 0.04, fc=fill, ec=edge, lw=width, ls=dashes, zorder=4)
            if box.is_block:
                self._family_bar(left, top, box)
            up = 0.015 if box.is_block else 0.0
            self._text(left + 0.06, y - 0.065 - up, _shorten(box.path, _MAX_LETTERS))
            self._text(left + 0.06, y + 0.075 - up, _detail(box), SMALL_SIZE, color="#4a4a4a")
        if box.activity is not None or not box.findings or box.is_block:
            self._activity(left + BOX_WIDTH - 0.16, y - 0.065, box.activity, bold=box.is_new)
        if box.findings:
            self._finding_numbers(left, top, number_ranges(box.findings))

    def _family_bar(self, left: float, top: float, box: Box) -> None:
        """A bar at the bottom of a block: the share of each family in its operations."""
        room, x = BOX_WIDTH - 0.08, left + 0.04
        for family, fill in (*FILLS.items(), ("finding", RED)):
            count = len(box.findings) if family == "finding" else box.families[family]
            width = room * count / box.operations
            corner = x, top + BOX_HEIGHT - 0.05
            self._patch(Rectangle(corner, width, 0.04, fc=fill, ec="none", zorder=5))
            x += width

    def _activity(self, x: float, y: float, row: int | None, *, bold: bool = False) -> None:
        """The number of an activity on its tint; "?" for an undecided one."""
        fill = "white" if row is None else _tint(row)
        edge, width = (INK, 1.2) if bold else (_LIGHT_BORDER, 0.4)
        self._rounded((x, y), (0.22, 0.12), 0.05, fc=fill, ec=edge, lw=width, zorder=6)
        text = "?" if row is None else str(row)
        self._text(x, y, text, SMALL_SIZE, ha="center", weight="bold" if bold else "normal")

    def _finding_numbers(self, x: float, y: float, text: str) -> None:
        width = max(0.17, text_width(text, SMALL_SIZE) + 0.1)
        x += 0.085 - width / 2  # grows to the left, away from the path
        self._rounded((x, y), (width, 0.15), 0.07, fc=RED, ec="white", lw=0.6, zorder=7)
        self._text(x, y, text, SMALL_SIZE, ha="center", color="white", weight="bold")

    def _gate(self, x: float, y: float) -> None:
        r = 0.06
        corners = [(x - r, y), (x, y - r), (x + r, y), (x, y + r)]
        self._patch(Polygon(corners, fc=INK, ec="white", lw=0.5 * self.scale, zorder=8))

    def _symbol(self, x: float, y: float, symbol: str | int) -> None:
        if symbol in FILLS:
            swatch = Rectangle((x, y - 0.06), 0.26, 0.12, fc=FILLS[str(symbol)], zorder=4)
            swatch.set(ec=_BORDER, lw=0.6 * self.scale)
            self._patch(swatch)
        elif symbol == "gate":
            self._gate(x + 0.2, y)
        elif symbol == "finding":
            self._line([(x, y), (x + 0.27, y)], RED, 2.0)
            self._patch(Circle((x + 0.14, y), 0.07, fc=RED, ec="none", zorder=4))
        else:
            examples = {"activity": 1, "new": 2, "undecided": None}
            row = symbol if isinstance(symbol, int) else examples[symbol]
            self._activity(x + 0.14, y, row, bold=symbol == "new")

    # Nothing is clipped, since clip paths get random names in SVG files.
    def _line(self, points: list[Point], color: str, width: float, zorder: int = 1) -> None:
        self.axes.plot(
            *zip(*points, strict=True),
            color=color,
            linewidth=width * self.scale,
            solid_joinstyle="round",
            clip_on=False,
            zorder=zorder,
        )

    def _rounded(
        self, centre: Point, size: Point, radius: float, *, lw: float, **style: Any
    ) -> None:
        corner = centre[0] - size[0] / 2, centre[1] - size[1] / 2
        shape = f"round,pad=0,rounding_size={radius}"
        self._patch(FancyBboxPatch(corner, *size, boxstyle=shape, lw=lw * self.scale, **style))

    def _patch(self, patch: Any) -> None:
        patch.set_clip_on(False)
        self.axes.add_patch(patch)

    def _text(self, x: float, y: float, text: str, points: float = TEXT_SIZE, **style: Any) -> None:
        style = {"ha": "left", "color": INK, "weight": "normal", **style}
        size = points * self.scale
        self.axes.text(x, y, text, fontsize=size, va="center", zorder=9, parse_math=False, **style)


def _tint(row: int) -> str:
    """A light colour for an activity, different from those of the rows above and below."""
    return to_hex(colormaps["Pastel1"](row % 8) if row else (1.0, 1.0, 1.0))


def _from_left(points: list[Point]) -> bool:
    """Whether a line arrives from the left, rather than from above."""
    return points[-2][1] == points[-1][1]


def _shorten(path: str, letters: int) -> str:
    """The end of a path that is too long: ``…0.self_attention``."""
    if len(path) <= letters:
        return path
    end = path[1 - letters :]
    _, _, whole_parts = end.partition(".")
    return f"…{whole_parts}" if len(whole_parts) > 0.6 * letters else f"…{end}"


def _detail(box: Box) -> str:
    if not box.is_block:
        return box.kind
    gates = f", {plural(box.gated, 'gate')}" if box.gated else ""
    changes = f", {plural(box.changes, 'change')}" if box.changes else ""
    return f"{plural(box.operations, 'operation')}{gates}{changes}"
