"""Where the boxes of a directed graph go: layers in columns, lines that pass beside the boxes.

Columns are read like a newspaper's, each from top to bottom. A layer is one row: the longest way
from the start says which. Within a column, chains of operations keep a lane, so that branches run
side by side; lines that skip rows run in the gutter left of a lane. Lengths are inches, and y
points downwards.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import networkx as nx

Node = Hashable
Point = tuple[float, float]

BOX_WIDTH, BOX_HEIGHT = 1.8, 0.33
ROW, LANE = 0.49, BOX_WIDTH  # of the grid that boxes stand in
TRACK = 0.09  # between lines that run side by side
GUTTER = 0.2
ASPECT = 1.45  # width to height
SHORTEST = 12  # rows of a column, on average


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything goes.

    Attributes:
        width, height: of the whole.
        centres: of the boxes.
        routes: edge -> corners of its line, from box to box.
    """

    width: float
    height: float
    centres: dict[Node, Point]
    routes: dict[tuple[Node, Node], list[Point]]


@dataclass(frozen=True, slots=True)
class Pass:
    """Where lines of ``source`` leave a column at the bottom, or enter the next at the top."""

    source: Node
    column: int
    enters: bool


def arrange(graph: nx.DiGraph, group: Callable[[Node], str], aspect: float = ASPECT) -> Layout:
    """Lay out an acyclic graph in as many columns as come closest to ``aspect``.

    >>> graph = nx.DiGraph([("a", "b"), ("b", "c"), ("a", "c")])
    >>> layout = arrange(graph, group=str)
    >>> [layout.centres[n][1] < layout.centres[m][1] for n, m in graph.edges]
    [True, True, True]

    Args:
        group: columns end preferably where this changes.
    """
    ranks = {n: i for i, layer in enumerate(nx.topological_generations(graph)) for n in layer}
    most = math.ceil((max(ranks.values()) + 1) / SHORTEST)
    layouts = [_in_columns(graph, ranks, group, n) for n in range(1, min(most, 12) + 1)]
    return min(layouts, key=lambda it: abs(math.log(it.width / it.height / aspect)))


# ------------------------------------------------------------------------------------- columns


def _in_columns(
    graph: nx.DiGraph, ranks: dict[Node, int], group: Callable[[Node], str], count: int
) -> Layout:
    starts = _starts(graph, ranks, group, count)
    column_of = {n: sum(rank >= start for start in starts[1:]) for n, rank in ranks.items()}
    hops = {edge: _hops(edge, column_of) for edge in graph.edges}
    columns: list[nx.DiGraph] = [nx.DiGraph() for _ in starts]
    for node in graph:
        columns[column_of[node]].add_node(node)
    for way in hops.values():
        for a, b in itertools.pairwise(way):
            here = a.column if isinstance(a, Pass) else column_of[a]
            if not (isinstance(a, Pass) and not a.enters):  # else it goes to the next column
                columns[here].add_edge(a, b)
    return _placed(graph, columns, ranks, starts, hops)


def _starts(
    graph: nx.DiGraph, ranks: dict[Node, int], group: Callable[[Node], str], count: int
) -> list[int]:
    """First rank of each column: near an even share, where few lines cross and a group ends."""
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
        off = abs(rank - ideal) / share
        return len(crossing[rank]) + 12 * off * off - (groups[rank].isdisjoint(groups[rank - 1]))

    starts = [0]
    for i in range(1, count):
        ideal = i * share
        near = range(
            max(starts[-1] + 1, math.ceil(ideal - 0.35 * share)),
            min(total, math.floor(ideal + 0.35 * share) + 1),
        )
        if near:
            starts.append(min(near, key=lambda rank: cost(rank, ideal)))
    return starts


def _hops(edge: tuple[Node, Node], column_of: dict[Node, int]) -> list[Any]:
    source, target = edge
    first, last = column_of[source], column_of[target]
    passes = [
        Pass(source, column, enters)
        for left in range(first, last)
        for column, enters in ((left, False), (left + 1, True))
    ]
    return [source, *passes, target]


def _placed(
    graph: nx.DiGraph,
    columns: list[nx.DiGraph],
    ranks: dict[Node, int],
    starts: list[int],
    hops: dict[tuple[Node, Node], list[Any]],
) -> Layout:
    lengths = [b - a for a, b in itertools.pairwise([*starts, max(ranks.values()) + 1])]
    bottom = max(lengths)
    left = 0.0
    done: list[_Column] = []
    for i, column in enumerate(columns):
        rows = {n: _row(n, ranks, starts[i], lengths[i]) for n in column}
        left += TRACK * sum(isinstance(n, Pass) and n.enters for n in column)
        done.append(_Column(column, rows, left))
        left += done[-1].width
    trunks = {}
    for before, after in itertools.pairwise(done):
        trunks.update(_trunks(before, after))
    pieces = {edge: line for column in done for edge, line in column.routes().items()} | trunks
    routes = {
        edge: _joined([pieces[hop] for hop in itertools.pairwise(way)])
        for edge, way in hops.items()
    }
    ys = [0.0, bottom * ROW, *(y for line in trunks.values() for _, y in line)]
    over = -min(ys)
    return Layout(
        left,
        max(ys) + over,
        {n: _lower(column.centres[n], over) for column in done for n in column.rows if n in graph},
        {edge: [_lower(point, over) for point in line] for edge, line in routes.items()},
    )


def _lower(point: Point, by: float) -> Point:
    return point[0], point[1] + by


def _trunks(before: _Column, after: _Column) -> dict[tuple[Any, Any], list[Point]]:
    """Lines from the bottom of a column to the top of the next, nested so that few cross."""
    entries = [n for n in after.rows if isinstance(n, Pass) and n.enters]
    entries.sort(key=lambda n: -after.centres[n][0])  # what goes farthest right lies outermost
    found = {}
    for i, entry in enumerate(entries):
        leave = Pass(entry.source, entry.column - 1, False)
        (x0, y0), (x1, y1) = before.centres[leave], after.centres[entry]
        low, high = y0 + TRACK * i, y1 - TRACK * (len(entries) - 1 - i)
        before.centres[leave], after.centres[entry] = (x0, low), (x1, high)
        x = after.left - TRACK * (len(entries) - i - 0.5)
        found[leave, entry] = [(x0, low), (x, low), (x, high), (x1, high)]
    return found


def _row(node: Any, ranks: dict[Node, int], start: int, length: int) -> float:
    if not isinstance(node, Pass):
        return ranks[node] - start
    return -0.75 if node.enters else length - 0.5


def _joined(lines: list[list[Point]]) -> list[Point]:
    points = [point for line in lines for point in line]
    return [p for i, p in enumerate(points) if i == 0 or p != points[i - 1]]


# ------------------------------------------------------------------------------- within a column


@dataclass(slots=True)
class _Column:
    """Lanes for chains, tracks in the gutters for lines that skip rows."""

    graph: nx.DiGraph
    rows: dict[Any, float]
    left: float
    lane: dict[Any, int] = field(default_factory=dict)
    follows: dict[Any, Any] = field(default_factory=dict)  # the next of the same chain
    tracks: dict[Any, int] = field(default_factory=dict)  # of the lines of this source
    gutters: list[float] = field(default_factory=list)  # width of the gutter left of each lane
    widths: list[float] = field(default_factory=list)  # of each lane
    centres: dict[Any, Point] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._choose_lanes()
        self._choose_tracks()
        for node, row in self.rows.items():
            lane = self.lane[node]
            x = self.left + sum(self.gutters[: lane + 1]) + sum(self.widths[:lane])
            self.centres[node] = (x + self.widths[lane] / 2, (row + 0.5) * ROW)

    @property
    def width(self) -> float:
        """With the gutters."""
        return sum(self.gutters) + sum(self.widths)

    def _choose_lanes(self) -> None:
        rest = self.graph.copy()
        taken: list[list[tuple[float, float]]] = []
        while rest:
            chain = nx.dag_longest_path(rest)
            rest.remove_nodes_from(chain)
            self.follows.update(itertools.pairwise(chain))
            readers = [self.rows[n] for n in self.graph.successors(chain[-1])]
            span = (self.rows[chain[0]], max([self.rows[chain[-1]], *(r - 1 for r in readers)]))
            lane = next(
                (i for i, spans in enumerate(taken) if not any(_meet(span, s) for s in spans)),
                len(taken),
            )
            if lane == len(taken):
                taken.append([])
            taken[lane].append(span)
            self.lane.update(dict.fromkeys(chain, lane))
        boxes = {self.lane[n] for n in self.graph if not isinstance(n, Pass)}
        self.widths = [LANE if i in boxes else 2 * TRACK for i in range(len(taken))]

    def _in_gutter(self, source: Any, target: Any) -> bool:
        """Between are boxes, or lines of the same lane."""
        near = self.rows[target] - self.rows[source] <= 1
        return not near and source in self.follows and self.follows[source] != target

    def _choose_tracks(self) -> None:
        spans: defaultdict[Any, list[tuple[float, Any]]] = defaultdict(list)
        for source in self.graph:
            ends = [self.rows[t] for t in self.graph[source] if self._in_gutter(source, t)]
            if ends:
                spans[self.lane[source]].append((max(ends), source))
        for lane in range(max(self.lane.values()) + 1):
            tracks: list[list[tuple[float, float]]] = []
            # Short lines run next to the boxes.
            for end, source in sorted(spans[lane], key=lambda it: it[0] - self.rows[it[1]]):
                span = (self.rows[source], end)
                track = next(
                    (i for i, used in enumerate(tracks) if not any(_meet(span, s) for s in used)),
                    len(tracks),
                )
                if track == len(tracks):
                    tracks.append([])
                tracks[track].append(span)
                self.tracks[source] = track
            self.gutters.append(GUTTER + TRACK * len(tracks))

    def routes(self) -> dict[tuple[Any, Any], list[Point]]:
        """Edge -> corners."""
        return {(a, b): self._route(a, b) for a, b in self.graph.edges}

    def _route(self, a: Any, b: Any) -> list[Point]:
        (xa, ya), (xb, yb) = self.centres[a], self.centres[b]
        low = ya if isinstance(a, Pass) else ya + BOX_HEIGHT / 2
        high = yb if isinstance(b, Pass) else yb - BOX_HEIGHT / 2
        above = yb if isinstance(b, Pass) else high - 0.09
        if not self._in_gutter(a, b):
            if self.lane[a] == self.lane[b]:
                return [(xa, low), (xb, high)]
            # Lines meet just above what they lead to, and part just below what they come from.
            level = low + 0.05 if self.follows.get(a) not in (None, b) else above
            end = self._entry(a, b)
            return [(xa, low), (xa, level), (end, level), (end, high)]
        track = xa - self.widths[self.lane[a]] / 2 - 0.1 - TRACK * self.tracks[a]
        begin = [(xa if isinstance(a, Pass) else xa - BOX_WIDTH / 2, ya), (track, ya)]
        if self.lane[a] == self.lane[b] and not isinstance(b, Pass):
            return [*begin, (track, yb), (xb - BOX_WIDTH / 2, yb)]
        end = self._entry(a, b)
        return [*begin, (track, above), (end, above), (end, high)]

    def _entry(self, a: Any, b: Any) -> float:
        """Lines from other lanes arrive beside the middle, where the lane's own line does."""
        x = self.centres[b][0]
        if isinstance(b, Pass) or self.graph.in_degree(b) == 1:
            return x
        return x + math.copysign(0.2, self.centres[a][0] - x or -1)


def _meet(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[0] <= b[1] and b[0] <= a[1]
