"""Lay out an acyclic graph in columns, with orthogonal edges that pass beside the boxes.

Columns are read like those of a newspaper, each from top to bottom. The row of a node is its
topological generation. Within a column each chain of nodes has a lane, so that branches run side by
side; edges that skip rows run in the gutter left of a lane. Lengths are inches; y points downwards.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import networkx as nx

Node = Hashable
Point = tuple[float, float]
Span = tuple[float, float]

BOX_WIDTH, BOX_HEIGHT = 1.8, 0.33
ROW_HEIGHT, LANE_WIDTH = 0.49, BOX_WIDTH
TRACK_WIDTH = 0.09  # between parallel lines
GUTTER_WIDTH = 0.2  # of a gutter without tracks
ASPECT = 1.45  # preferred width / height
MIN_MEAN_ROWS = 12  # of a column
MAX_COLUMNS = 12


@dataclass(frozen=True, slots=True)
class Layout:
    """Positions of boxes and edges.

    Attributes:
        width, height: of the drawing.
        centres: node -> centre of its box.
        routes: edge -> corners of its line, from box to box.
    """

    width: float
    height: float
    centres: dict[Node, Point]
    routes: dict[tuple[Node, Node], list[Point]]


@dataclass(frozen=True, slots=True)
class Port:
    """Where the edges from ``source`` enter a column at its top, or leave it at its bottom."""

    source: Node
    column: int
    enters: bool


def arrange(graph: nx.DiGraph, group: Callable[[Node], str], aspect: float = ASPECT) -> Layout:
    """Lay out an acyclic graph in the number of columns whose shape is closest to ``aspect``.

    >>> graph = nx.DiGraph([("a", "b"), ("b", "c"), ("a", "c")])
    >>> layout = arrange(graph, group=str)
    >>> [layout.centres[n][1] < layout.centres[m][1] for n, m in graph.edges]
    [True, True, True]

    Args:
        graph: one node or more.
        group: columns preferably end where this value changes.
        aspect: width / height.
    """
    ranks = {n: i for i, layer in enumerate(nx.topological_generations(graph)) for n in layer}
    columns = math.ceil((max(ranks.values()) + 1) / MIN_MEAN_ROWS)
    layouts = [
        _arrange_columns(graph, ranks, _column_starts(graph, ranks, group, count))
        for count in range(1, min(columns, MAX_COLUMNS) + 1)
    ]
    return min(layouts, key=lambda layout: abs(math.log(layout.width / layout.height / aspect)))


# ------------------------------------------------------------------------------------- columns
def _column_starts(
    graph: nx.DiGraph, ranks: dict[Node, int], group: Callable[[Node], str], count: int
) -> list[int]:
    """First rank of each column: near equal shares, where few edges cross and a group ends."""
    total = max(ranks.values()) + 1
    share = total / count
    crossing: defaultdict[int, set[Node]] = defaultdict(set)
    for a, b in graph.edges:
        for rank in range(ranks[a] + 1, ranks[b] + 1):
            crossing[rank].add(a)
    groups: defaultdict[int, set[str]] = defaultdict(set)
    for node, rank in ranks.items():
        groups[rank].add(group(node))

    def cost(rank: int, ideal: float) -> float:
        distance = abs(rank - ideal) / share
        group_ends = groups[rank].isdisjoint(groups[rank - 1])
        return len(crossing[rank]) + 12 * distance * distance - group_ends

    starts = [0]
    for i in range(1, count):
        ideal = i * share
        candidates = range(
            max(starts[-1] + 1, math.ceil(ideal - 0.35 * share)),
            min(total, math.floor(ideal + 0.35 * share) + 1),
        )
        if candidates:
            starts.append(min(candidates, key=lambda rank: cost(rank, ideal)))
    return starts


def _arrange_columns(graph: nx.DiGraph, ranks: dict[Node, int], starts: list[int]) -> Layout:
    column_of = {n: sum(rank >= start for start in starts[1:]) for n, rank in ranks.items()}
    paths = {edge: _with_ports(edge, column_of) for edge in graph.edges}
    graphs = [nx.DiGraph() for _ in starts]
    for node in graph:
        graphs[column_of[node]].add_node(node)
    for path in paths.values():
        for a, b in itertools.pairwise(path):
            if not (isinstance(a, Port) and not a.enters):  # otherwise b is in the next column
                graphs[a.column if isinstance(a, Port) else column_of[a]].add_edge(a, b)

    lengths = [b - a for a, b in itertools.pairwise([*starts, max(ranks.values()) + 1])]
    left = 0.0
    columns: list[_Column] = []
    for column_graph, start, length in zip(graphs, starts, lengths, strict=True):
        rows: dict[Any, float] = {
            n: (-0.75 if n.enters else length - 0.5) if isinstance(n, Port) else ranks[n] - start
            for n in column_graph
        }
        left += TRACK_WIDTH * sum(isinstance(n, Port) and n.enters for n in column_graph)
        columns.append(_Column(column_graph, rows, left))
        left += columns[-1].width
    return _joined(graph, columns, paths, left, max(lengths) * ROW_HEIGHT)


def _with_ports(edge: tuple[Node, Node], column_of: dict[Node, int]) -> list[Any]:
    """The edge's source, the ports of the columns it crosses, and its target."""
    source, target = edge
    ports = [
        Port(source, column, enters)
        for left in range(column_of[source], column_of[target])
        for column, enters in ((left, False), (left + 1, True))
    ]
    return [source, *ports, target]


def _joined(
    graph: nx.DiGraph,
    columns: list[_Column],
    paths: dict[tuple[Node, Node], list[Any]],
    width: float,
    height: float,
) -> Layout:
    """The columns side by side, moved down so that no line is above the top."""
    between: dict[tuple[Any, Any], list[Point]] = {}
    for before, after in itertools.pairwise(columns):
        between.update(_connect(before, after))
    segments = {edge: line for column in columns for edge, line in column.routes().items()}
    segments |= between
    ys = [0.0, height, *(y for line in between.values() for _, y in line)]
    down = -min(ys)

    def moved(points: list[Point]) -> list[Point]:
        distinct = [p for i, p in enumerate(points) if i == 0 or p != points[i - 1]]
        return [(x, y + down) for x, y in distinct]

    routes = {
        edge: moved([point for step in itertools.pairwise(path) for point in segments[step]])
        for edge, path in paths.items()
    }
    centres = {n: c.centres[n] for c in columns for n in c.rows if n in graph}
    return Layout(
        width, max(ys) + down, {n: (x, y + down) for n, (x, y) in centres.items()}, routes
    )


def _connect(before: _Column, after: _Column) -> dict[tuple[Any, Any], list[Point]]:
    """Lines from the bottom of a column to the top of the next, nested so that few cross."""
    entries = [n for n in after.rows if isinstance(n, Port) and n.enters]
    entries.sort(key=lambda n: -after.centres[n][0])  # the rightmost is the outermost
    lines = {}
    for i, entry in enumerate(entries):
        leave = Port(entry.source, entry.column - 1, False)
        (x0, y0), (x1, y1) = before.centres[leave], after.centres[entry]
        low, high = y0 + TRACK_WIDTH * i, y1 - TRACK_WIDTH * (len(entries) - 1 - i)
        before.centres[leave], after.centres[entry] = (x0, low), (x1, high)
        x = after.left - TRACK_WIDTH * (len(entries) - i - 0.5)
        lines[leave, entry] = [(x0, low), (x, low), (x, high), (x1, high)]
    return lines


# ------------------------------------------------------------------------------- within a column
class _Column:
    """The nodes and ports of a column: lanes for chains, tracks in gutters for edges.

    Args:
        graph: nodes and ports, and the parts of edges between them.
        rows: node -> row from the column's top.
        left: x of the column's left side.
    """

    def __init__(self, graph: nx.DiGraph, rows: dict[Any, float], left: float) -> None:
        self.graph, self.rows, self.left = graph, rows, left
        self._next: dict[Any, Any] = {}  # in the same chain
        self._lane, lanes = self._assign_lanes()
        with_boxes = {self._lane[n] for n in graph if not isinstance(n, Port)}
        self._widths = [LANE_WIDTH if i in with_boxes else 2 * TRACK_WIDTH for i in range(lanes)]
        self._track: dict[Any, int] = {}  # of the edges from a source, in its lane's gutter
        self._gutters = [self._assign_tracks(lane) for lane in range(lanes)]
        self.centres: dict[Any, Point] = {}
        for node, row in rows.items():
            lane = self._lane[node]
            x = left + sum(self._gutters[: lane + 1]) + sum(self._widths[:lane])
            self.centres[node] = (x + self._widths[lane] / 2, (row + 0.5) * ROW_HEIGHT)

    @property
    def width(self) -> float:
        """With the gutters."""
        return sum(self._gutters) + sum(self._widths)

    def _assign_lanes(self) -> tuple[dict[Any, int], int]:
        """Node -> lane, longest chains first; and the number of lanes."""
        rest = self.graph.copy()
        lane: dict[Any, int] = {}
        occupied: list[list[Span]] = []
        while rest:
            chain = nx.dag_longest_path(rest)
            rest.remove_nodes_from(chain)
            self._next.update(itertools.pairwise(chain))
            readers = [self.rows[n] - 1 for n in self.graph.successors(chain[-1])]
            span = (self.rows[chain[0]], max([self.rows[chain[-1]], *readers]))
            lane.update(dict.fromkeys(chain, _first_free(span, occupied)))
        return lane, len(occupied)

    def _assign_tracks(self, lane: int) -> float:
        """Give the edges in the gutter left of a lane a track each; returns the gutter's width."""
        spans: list[tuple[float, Span, Any]] = []
        for source in self.graph:
            ends = [self.rows[t] for t in self.graph[source] if self._in_gutter(source, t)]
            if ends and self._lane[source] == lane:
                row, end = self.rows[source], max(ends)
                spans.append((end - row, (row, end), source))
        tracks: list[list[Span]] = []
        for _, span, source in sorted(spans, key=lambda item: item[0]):  # short ones near the boxes
            self._track[source] = _first_free(span, tracks)
        return GUTTER_WIDTH + TRACK_WIDTH * len(tracks)

    def _in_gutter(self, source: Any, target: Any) -> bool:
        """Whether boxes or lines of the same lane are in between."""
        near = self.rows[target] - self.rows[source] <= 1
        return not near and source in self._next and self._next[source] != target

    def routes(self) -> dict[tuple[Any, Any], list[Point]]:
        """Edge -> corners of its line."""
        return {(a, b): self._route(a, b) for a, b in self.graph.edges}

    def _route(self, a: Any, b: Any) -> list[Point]:
        (xa, ya), (xb, yb) = self.centres[a], self.centres[b]
        bottom = ya if isinstance(a, Port) else ya + BOX_HEIGHT / 2
        top = yb if isinstance(b, Port) else yb - BOX_HEIGHT / 2
        above = yb if isinstance(b, Port) else top - 0.09
        if not self._in_gutter(a, b):
            if self._lane[a] == self._lane[b]:
                return [(xa, bottom), (xb, top)]
            # Lines merge just above their target, and branch just below their source.
            level = bottom + 0.05 if self._next.get(a) not in (None, b) else above
            end = self._entry(a, b)
            return [(xa, bottom), (xa, level), (end, level), (end, top)]
        track = xa - self._widths[self._lane[a]] / 2 - 0.1 - TRACK_WIDTH * self._track[a]
        begin = [(xa if isinstance(a, Port) else xa - BOX_WIDTH / 2, ya), (track, ya)]
        if self._lane[a] == self._lane[b] and not isinstance(b, Port):
            return [*begin, (track, yb), (xb - BOX_WIDTH / 2, yb)]
        end = self._entry(a, b)
        return [*begin, (track, above), (end, above), (end, top)]

    def _entry(self, a: Any, b: Any) -> float:
        """Where the line from another lane reaches b: beside the line of b's own lane."""
        x = self.centres[b][0]
        if isinstance(b, Port) or self.graph.in_degree(b) == 1:
            return x
        return x + math.copysign(0.2, self.centres[a][0] - x or -1)


def _first_free(span: Span, occupied: list[list[Span]]) -> int:
    """Index of the first list in which `span` overlaps nothing; adds it there."""
    free = (
        i
        for i, spans in enumerate(occupied)
        if all(span[0] > end or span[1] < start for start, end in spans)
    )
    index = next(free, len(occupied))
    if index == len(occupied):
        occupied.append([])
    occupied[index].append(span)
    return index
