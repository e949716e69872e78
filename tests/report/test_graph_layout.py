"""Layouts: nothing overlaps, lines pass beside boxes, and the order can be read."""

from __future__ import annotations

import itertools
import random

import networkx as nx
import pytest

from convad_fx.report.graph_layout import BOX_HEIGHT, BOX_WIDTH, ROW_HEIGHT, arrange


def chain(n: int) -> nx.DiGraph:
    return nx.path_graph(n, create_using=nx.DiGraph)


def residual(blocks: int) -> nx.DiGraph:
    """Blocks of four with a shortcut around each, every third of which has an operation on it."""
    graph = nx.DiGraph()
    for i in range(blocks):
        nx.add_path(graph, [4 * i + j for j in range(5)])
        nx.add_path(graph, [4 * i, f"short{i}", 4 * i + 4] if i % 3 == 0 else [4 * i, 4 * i + 4])
    return graph


def dense(n: int) -> nx.DiGraph:
    return nx.DiGraph(itertools.combinations(range(n), 2))


def nested(depth: int) -> nx.DiGraph:
    """A U: what goes down early comes back late."""
    graph = chain(2 * depth)
    graph.add_edges_from((i, 2 * depth - 1 - i) for i in range(depth - 1))
    return graph


def branches(width: int, length: int) -> nx.DiGraph:
    graph = nx.DiGraph()
    for i in range(width):
        nx.add_path(graph, ["in", *((i, j) for j in range(length - i)), "out"])
    return graph


def any_dag(seed: int) -> nx.DiGraph:
    draw = random.Random(seed)
    n = draw.randint(1, 45)
    graph = nx.DiGraph()
    graph.add_nodes_from(range(n))
    for target in range(1, n):
        for _ in range(draw.choice((1, 1, 1, 2, 3))):
            graph.add_edge(draw.randrange(max(0, target - draw.choice((1, 2, 20))), target), target)
    return graph


GRAPHS = {
    "one": chain(1),
    "chain": chain(40),
    "residual": residual(12),
    "dense": dense(30),
    "nested": nested(24),
    "branches": branches(4, 8),
    **{f"any {seed}": any_dag(seed) for seed in range(25)},
}


@pytest.mark.parametrize("name", GRAPHS)
def test_boxes_stand_apart_and_lines_pass_beside_them(name: str) -> None:
    graph = GRAPHS[name]
    layout = arrange(graph, group=lambda node: str(node)[:1])
    assert set(layout.centres) == set(graph)
    assert set(layout.routes) == set(graph.edges)
    for (x, y), (u, v) in itertools.combinations(layout.centres.values(), 2):
        assert abs(x - u) >= BOX_WIDTH - 1e-9 or abs(y - v) >= BOX_HEIGHT
    for x, y in layout.centres.values():
        assert BOX_WIDTH / 2 - 1e-9 <= x <= layout.width - BOX_WIDTH / 2 + 1e-9
        assert BOX_HEIGHT / 2 - 1e-9 <= y <= layout.height - BOX_HEIGHT / 2 + 1e-9
    for (a, b), line in layout.routes.items():
        assert touches(line[0], layout.centres[a]), "a line starts at its source"
        assert touches(line[-1], layout.centres[b]), "and ends at its target"
        for p, q in itertools.pairwise(line):
            assert p[0] == pytest.approx(q[0]) or p[1] == pytest.approx(q[1]), "no slanted lines"
            crossed = [n for n, centre in layout.centres.items() if enters(p, q, centre)]
            assert not crossed, f"the line from {a} to {b} runs through {crossed}"


def test_edges_point_down_within_a_column_and_columns_go_right() -> None:
    graph = residual(12)
    layout = arrange(graph, group=str)
    for a, b in graph.edges:
        (xa, ya), (xb, yb) = layout.centres[a], layout.centres[b]
        assert yb > ya or xb > xa
    assert 0.7 < layout.width / layout.height < 2.5
    rows = {round(y / ROW_HEIGHT, 3) for _, y in layout.centres.values()}
    assert len(rows) < len(graph) / 2, "it is wrapped"


def test_few_operations_stay_in_one_column() -> None:
    assert len({x for x, _ in arrange(chain(12), group=str).centres.values()}) == 1


def test_columns_end_where_a_group_does() -> None:
    graph = chain(48)
    layout = arrange(graph, group=lambda node: "abcd"[(node > 9) + (node > 25) + (node > 34)])
    tops = sorted(node for node in graph if layout.centres[node][1] == layout.centres[0][1])
    assert tops == [0, 10, 26, 35]


def touches(point: tuple[float, float], centre: tuple[float, float]) -> bool:
    return (
        abs(point[0] - centre[0]) <= BOX_WIDTH / 2 + 1e-9
        and abs(point[1] - centre[1]) <= BOX_HEIGHT / 2 + 1e-9
    )


def enters(p: tuple[float, float], q: tuple[float, float], centre: tuple[float, float]) -> bool:
    """Does the line go through the inside of the box? (Its border belongs to source and target.)"""
    (x, y), half, tall = centre, BOX_WIDTH / 2 - 1e-6, BOX_HEIGHT / 2 - 1e-6
    return (
        min(p[0], q[0]) < x + half
        and max(p[0], q[0]) > x - half
        and min(p[1], q[1]) < y + tall
        and max(p[1], q[1]) > y - tall
    )
