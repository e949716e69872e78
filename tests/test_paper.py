"""Runs of benchmarks.paper go on where they stopped; their plots show every masker."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import paper


class SmallKit:
    """Stands for the kit: one small network, three pictures."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def load(self, name: str) -> tuple[nn.Module, dict[str, Any]]:
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 3),
        )
        return model.eval(), {"mean": [0.5] * 3, "std": [0.25] * 3, "size": 8}

    def files(self) -> list[Path]:
        return [Path(f"{i}.png") for i in range(3)]

    def photo(self, file: Path, info: dict[str, Any]) -> torch.Tensor:
        return torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(int(file.stem)))


def call(monkeypatch: pytest.MonkeyPatch, *more: str) -> None:
    options = ["--kit", "nowhere", "--models", "cifar_resnet20", "--partitions", "1"]
    options += ["--colours", "2", "--others", "2", "--sizes", "0.5", "--paints", "black"]
    monkeypatch.setattr(paper, "Kit", SmallKit)
    monkeypatch.setattr(sys, "argv", ["paper", *options, *more])
    paper.main()


@pytest.mark.parametrize("experiment", ["equivalence", "robustness"])
def test_a_resumed_run_has_the_rows_of_an_uninterrupted_one(
    experiment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole.json", tmp_path / "parts.json"
    ask = ("--experiment", experiment)
    call(monkeypatch, *ask, "--photos", "2", "--json", str(whole))
    call(monkeypatch, *ask, "--photos", "1", "--json", str(parts))
    first = json.loads(parts.read_text())["rows"]
    call(monkeypatch, *ask, "--photos", "2", "--json", str(parts), "--resume")
    rows = json.loads(parts.read_text())["rows"]
    assert rows[: len(first)] == first
    assert len(rows) == 2 * len(first)
    expected = json.loads(whole.read_text())["rows"]
    assert sorted(map(repr, rows)) == sorted(map(repr, expected))

    def never(*_: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(paper, "explain", never)
    call(monkeypatch, *ask, "--photos", "2", "--json", str(parts), "--resume")
    assert json.loads(parts.read_text())["rows"] == rows


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("not JSON", "no run of this script"),
        ('{"about": {"colours": 7}, "rows": []}', "made otherwise.*colours 7, now 2"),
    ],
)
def test_another_runs_file_is_not_gone_on_with(
    text: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "other.json"
    file.write_text(text)
    with pytest.raises(SystemExit, match=says):
        call(monkeypatch, "--experiment", "robustness", "--json", str(file), "--resume")
    assert file.read_text() == text


def test_the_plot_of_robustness_has_every_masker_at_its_mean(tmp_path: Path) -> None:
    rows = [
        {"model": "m", "photo": p, "masker": m, "size": s, "rho": {"photos": s / 2}}
        | {"at_size": {"0.2": s, "0.4": 1.0}}
        for m, sizes in {"off": (0.2, 0.4), "black": (0.6, 0.8)}.items()
        for p, s in zip("ab", sizes, strict=True)
    ]
    left, right = paper.plot_robustness(rows).axes
    points = [bar.lines[0].get_xydata()[0].tolist() for bar in left.containers]
    assert points == [pytest.approx([0.3, 0.15]), pytest.approx([0.7, 0.35])]
    assert [line.get_label() for line in right.lines] == ["off", "black"]
    assert right.lines[1].get_ydata() == pytest.approx([0.7, 1.0])


def test_the_plot_of_thresholds_has_a_line_for_each_policy_by_tau(tmp_path: Path) -> None:
    rows = [
        {"model": "m", "photo": "a", "masker": m, "size": s, "iou": 0.1, "rho": {"photos": 0.2}}
        for m, s in (
            ("receptive raw dilute, tau 0.5", 0.5),
            ("the paper's: receptive raw dilute, tau 0", 0.3),
            ("positional gate dilute, tau 0", 0.4),
        )
    ]
    size = paper.plot_threshold(rows).axes[0]
    assert [bar.get_label() for bar in size.containers] == [
        "receptive raw dilute",
        "positional gate dilute",
    ]
    assert size.containers[0].lines[0].get_xydata().tolist() == [[0.0, 0.3], [0.5, 0.5]]


def test_equivalence_has_no_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit):
        call(monkeypatch, "--experiment", "equivalence", "--plot", str(tmp_path / "p.png"))


def test_the_plot_is_written_from_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, picture = tmp_path / "rows.json", tmp_path / "p.png"
    ask = ("--experiment", "robustness")
    call(monkeypatch, *ask, "--photos", "2", "--json", str(rows))
    call(monkeypatch, *ask, "--tables", str(rows), "--plot", str(picture))
    assert picture.read_bytes().startswith(b"\x89PNG")
