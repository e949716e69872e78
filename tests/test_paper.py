"""Runs of benchmarks.paper go on where they stopped; their plots show every masker."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor
from torch import nn

import convad_fx
from benchmarks import convergence, paper, paper_plots, paper_tables
from convad_fx import images
from convad_fx.errors import Unavailable
from convad_fx.images import Preprocess


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
    options = ["--kit", "nowhere", "--models", "cifar_resnet20"]
    if "robustness" in more:
        options += ["--partitions", "1", "--colours", "2", "--others", "2", "--sizes", "0.5"]
        options += ["--paints", "black"]
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


SMALL_KIT = """
import torch
from torch import nn

def load(name, root):
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    model = nn.Sequential(body, nn.Flatten(), nn.Linear(4, 3)).eval()
    return model, {"mean": [0.5] * 3, "std": [0.25] * 3, "size": 32}

def preprocess(picture, info):
    return torch.tensor(list(picture.tobytes())).reshape(1, 32, 32, 3).permute(0, 3, 1, 2) / 128 - 1
"""


@pytest.mark.heavy
def test_workers_find_what_one_process_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models.py").write_text(SMALL_KIT)
    photos = tmp_path / "images" / "imagenet"
    photos.mkdir(parents=True)
    random = np.random.default_rng(0)
    for i in range(3):
        pixels = random.integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(photos / f"{i}.jpg")
    options = ["--experiment", "robustness", "--kit", str(tmp_path), "--models", "cifar_resnet20"]
    options += ["--partitions", "1", "--colours", "2", "--others", "2", "--sizes", "0.5"]
    found = []
    for workers in ("1", "2"):
        file = tmp_path / f"{workers}.json"
        more = ["--paints", "black", "--workers", workers, "--json", str(file)]
        monkeypatch.setattr(sys, "argv", ["paper", *options, *more])
        paper.main()
        found.append(json.loads(file.read_text())["rows"])
    assert found[0] == found[1]
    assert [row["photo"] for row in found[0][::4]] == ["00", "01", "02"]


def test_a_network_that_torchvision_has_not_is_refused_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models.py").write_text(SMALL_KIT)
    (tmp_path / "images" / "imagenet").mkdir(parents=True)
    options = ["--experiment", "equivalence", "--kit", str(tmp_path), "--photos", "1"]
    with pytest.raises(SystemExit, match=r"torchvision:resnet5: "):
        call(monkeypatch, *options, "--models", "torchvision:resnet5")


@pytest.mark.parametrize(("experiment", "number"), [("equivalence", "2"), ("threshold", "0")])
def test_workers_that_would_do_nothing_are_refused(
    experiment: str,
    number: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        call(monkeypatch, "--experiment", experiment, "--workers", number)
    assert "--workers, 1 or more, are of the experiments" in capsys.readouterr().err


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
    unranked = [row | {"photo": "c", "at_size": {"0.2": 0.0, "0.4": 0.0}} for row in rows[1::2]]
    unranked[1]["at_size"] = {"0.2": np.nan, "0.4": np.nan}
    left, right = paper_plots.plot_robustness(rows).axes
    points = [bar.lines[0].get_xydata()[0].tolist() for bar in left.containers]
    assert points == [pytest.approx([0.3, 0.15]), pytest.approx([0.7, 0.35])]
    assert [line.get_label() for line in right.lines] == ["off", "black"]
    assert right.lines[1].get_ydata() == pytest.approx([0.7, 1.0])
    _, right = paper_plots.plot_robustness(rows + unranked).axes
    assert right.lines[0].get_ydata() == pytest.approx([0.3, 1.0])  # of a and b alone
    assert right.get_title() == "at equal size, the 2 photos that all rank"


def test_the_plot_of_thresholds_has_a_line_for_each_policy_by_tau(tmp_path: Path) -> None:
    rows = [
        {"model": "m", "photo": "a", "masker": m, "size": s, "iou": 0.1, "rho": {"photos": 0.2}}
        for m, s in (
            ("receptive raw dilute, tau 0.5", 0.5),
            ("the paper's: receptive raw dilute, tau 0", 0.3),
            ("positional gate dilute, tau 0", 0.4),
        )
    ]
    size = paper_plots.plot_threshold(rows).axes[0]
    assert [bar.get_label() for bar in size.containers] == [
        "receptive raw dilute",
        "positional gate dilute",
    ]
    assert size.containers[0].lines[0].get_xydata().tolist() == [[0.0, 0.3], [0.5, 0.5]]


@pytest.mark.parametrize(
    ("experiment", "option"),
    [("equivalence", "--colours"), ("threshold", "--sizes"), ("robustness", "--grid")],
)
def test_an_option_that_would_do_nothing_is_refused(
    experiment: str,
    option: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = "few" if option == "--grid" else "1"
    with pytest.raises(SystemExit):
        call(monkeypatch, "--experiment", experiment, option, given)
    assert f"{option} does nothing in the experiment {experiment}" in capsys.readouterr().err


def test_tables_of_an_earlier_run_need_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, ask = tmp_path / "rows.json", ("--experiment", "robustness")
    call(monkeypatch, *ask, "--photos", "1", "--json", str(rows))
    printed = capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["paper", *ask, "--tables", str(rows)])
    paper.main()
    assert capsys.readouterr().out in printed
    for more, says in (
        (("--photos", "2"), "--tables runs nothing"),
        (("--json", "x"), "--tables runs nothing"),
    ):
        monkeypatch.setattr(sys, "argv", ["paper", *ask, "--tables", str(rows), *more])
        with pytest.raises(SystemExit):
            paper.main()
        assert says in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["paper", "--experiment", "threshold", "--tables", str(rows)])
    with pytest.raises(SystemExit, match="is a run of --experiment robustness"):
        paper.main()
    monkeypatch.setattr(sys, "argv", ["paper", *ask])
    with pytest.raises(SystemExit):
        paper.main()
    assert "--kit is needed" in capsys.readouterr().err


def test_what_the_seed_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(seed: int, sizes: dict[str, tuple[float, ...]]) -> str:
        rows = [
            {
                "model": "m", "photo": photo, "masker": masker, "size": size,
                "rho": {"colours": 0.5, "photos": size / 2},
            }
            for masker, several in sizes.items()
            for photo, size in zip("abc", several, strict=False)
        ]  # fmt: skip
        file = tmp_path / f"{seed}.json"
        about = {"experiment": "robustness", "seed": seed}
        file.write_text(json.dumps({"about": about, "rows": rows}))
        return str(file)

    runs = (
        run(0, {"off": (0.2, 0.4, 0.9), "black": (0.6, 0.6)}),
        run(1, {"off": (0.4, 0.4), "black": (0.6, 0.8), "grey": (0.1, 0.1)}),
    )
    ask = ["paper", "--experiment", "robustness", "--tables", *runs]
    monkeypatch.setattr(sys, "argv", ask)
    paper.main()
    printed = capsys.readouterr().out
    assert "**m**, 2 photos, 2 seeds" in printed
    nothing = "0.50 | 0.50 | 0.00"
    assert f"| off | 0.30 | 0.40 | 0.10 | {nothing} | 0.15 | 0.20 | 0.05 |" in printed
    assert f"| black | 0.60 | 0.70 | 0.10 | {nothing} | 0.30 | 0.35 | 0.05 |" in printed
    assert "| black | -0.30 [-0.30, -0.30]" in printed
    assert "grey" not in printed
    for more, says in (
        (["--plot", "p.png"], "without --plot"),
        (["--experiment", "threshold"], ""),
    ):
        monkeypatch.setattr(sys, "argv", [*ask, *more])
        with pytest.raises(SystemExit):
            paper.main()
        assert f"several --tables are compared in the experiment robustness, {says}" in (
            capsys.readouterr().err
        )
    none = run(2, {"grey": (0.1,)})
    monkeypatch.setattr(sys, "argv", [*ask[:-1], none])
    with pytest.raises(SystemExit, match="no photo and masker is in all of these runs"):
        paper.main()
    monkeypatch.setattr(sys, "argv", [*ask[:-1], runs[0]])
    with pytest.raises(SystemExit, match="two of these runs have the same seed"):
        paper.main()
    about = {"experiment": "robustness", "colours": 3}
    Path(none).write_text(json.dumps({"about": about, "rows": []}))
    monkeypatch.setattr(sys, "argv", [*ask[:-1], none])
    with pytest.raises(SystemExit, match="these runs differ in colours"):
        paper.main()


def test_what_a_longer_search_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(partitions: int, size: float, shares: tuple[float, ...], **more: Any) -> str:
        rows = [
            {
                "model": "m", "photo": photo, "masker": "off", "size": size + i / 10,
                "rho": {"colours": 0.5, "photos": size},
                "at_size": {f"{share:g}": share * size for share in shares},
            }
            for i, photo in enumerate("abcde")
        ]  # fmt: skip
        about = {"experiment": "robustness", "partitions": partitions, "seed": 0, **more}
        file = tmp_path / f"{len(list(tmp_path.iterdir()))}.json"
        file.write_text(json.dumps({"about": about, "rows": rows}))
        return str(file)

    def compared(*files: str) -> str:
        argv = ["paper", "--experiment", "robustness", "--tables", *files]
        monkeypatch.setattr(sys, "argv", argv)
        paper.main()
        return capsys.readouterr().out

    short, long = run(2, 0.2, (0.4, 0.6)), run(9, 0.4, (0.2, 0.4), machine="another")
    printed = compared(short, long)
    assert "These runs differ in machine, too." in printed
    head = "| 9 partitions less 2 | size | rho, colours | rho, photos | rho, 40% |"
    assert head in printed
    line = next(line for line in printed.splitlines() if line.startswith("| off"))
    means = [cell.split()[0] for cell in line.split(" | ")[1:]]
    assert means == ["+0.20", "+0.00", "+0.20", "+0.08"]
    with pytest.raises(SystemExit, match="these runs differ in seed"):
        compared(short, run(9, 0.4, (0.4,), seed=1))
    with pytest.raises(SystemExit, match="these runs differ in .*partitions:"):
        compared(short, long, run(3, 0.4, (0.4,)))


def test_equivalence_has_no_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit):
        call(monkeypatch, "--experiment", "equivalence", "--plot", str(tmp_path / "p.png"))


def test_the_plot_is_written_from_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, picture = tmp_path / "rows.json", tmp_path / "p.png"
    ask = ("--experiment", "robustness")
    call(monkeypatch, *ask, "--photos", "2", "--json", str(rows))
    monkeypatch.setattr(sys, "argv", ["paper", *ask, "--tables", str(rows), "--plot", str(picture)])
    paper.main()
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_tables_compare_both_ways_of_switching_off_with_the_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def row(masker: str, photo: str, size: float, confidence: list[float]) -> dict[str, Any]:
        learnt = (masker, photo) != ("black", "b")  # this search found nothing to rank
        return {
            "model": "m", "photo": photo, "masker": masker, "size": size, "relative": 0.9,
            "rho": {"colours": 0.5, "photos": size}, "robust": {"photos": size >= 0.8},
            "at_size": {"0.2": 0.25 if learnt else np.nan}, "evaluations": 100, "learnt": learnt,
            "random": {
                "confidence": confidence, "rho": [0.0, 0.4, 0.8, 1.0],
                "sufficient": [c >= 0.9 for c in confidence],
            },
        }  # fmt: skip

    rows = [
        row(masker, photo, size + shift, confidence)
        for masker, size, confidence in (
            ("off", 0.5, [0.1, 0.2, 0.9, 1.0]),  # in order
            ("paper", 0.2, [1.0, 0.9, 0.2, 0.1]),  # the wrong way round
            ("black", 0.6, [0.5, 0.5, 0.5, 0.5]),  # says nothing
        )
        for photo, shift in (("a", 0.0), ("b", 0.2))
    ]
    paper_tables.print_robustness(rows)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    rows_of = [cells for cells in table if not cells[0].startswith("---")]
    parts = {}  # the head of a table -> by masker, its cells by column
    for cells in rows_of:
        if cells[0].startswith("m, ") or cells[0].endswith(" less"):
            head, found = cells, {}
            parts.setdefault(cells[0], []).append(found)
        else:
            found[cells[0]] = dict(zip(head, cells, strict=True))
    maskers = ["off", "paper", "black"]
    for title in ("the sets found", "at equal size", "random masks"):
        (means,) = parts[f"m, {title}"]
        assert list(means) == maskers
    for label in ("off", "paper"):
        assert [list(found) for found in parts[f"{label} less"]] == [
            [other for other in maskers if other != label]
        ] * 3

    def column(title: str, name: str) -> list[str]:
        return [cells[name] for cells in parts[f"m, {title}"][0].values()]

    assert [cell[:4] for cell in column("the sets found", "size")] == ["0.60", "0.30", "0.70"]
    assert [cell[:3] for cell in column("the sets found", "masks asked")] == ["100"] * 3
    at_size = column("at equal size", "rho, 20%")
    assert [cell[:4] for cell in at_size] == ["0.25"] * 3
    assert ["(n = 1)" in cell for cell in at_size] == [False, False, True]
    assert column("the sets found", "without a map") == ["0", "0", "1"]
    assert column("the sets found", "empty") == ["0", "0", "0"]
    with_map = column("the sets found", "rho, photos, with a map")
    assert [cell[:4] for cell in with_map] == ["0.60", "0.30", "0.60"]
    assert [cell[:4] for cell in column("random masks", "AUC")] == ["1.00", "0.00", "0.50"]
    ranks = column("random masks", "rank correlation")
    assert [cell[:5] for cell in ranks] == ["1.00 ", "-1.00", "-"]
    good = column("random masks", "robust if called")
    assert [cell[:4] for cell in good] == ["0.90", "0.20", "-"]
    sets = parts["off less"][0]
    assert sets["paper"]["size"].startswith("+0.30 [+0.30, +0.30]")
    assert sets["black"]["size"].startswith("-0.10 [-0.10, -0.10]")
    # of one photo there is a difference, and no interval
    assert sets["black"]["rho, photos, with a map"] == "-0.10 (n = 1)"


def test_thresholds_are_held_against_the_objects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images" / "segmentation"
    folder.mkdir(parents=True)
    lines = [f"{i}.png,{i}-mask.png,0 1 2" for i in range(2)]
    (folder / "manifest.csv").write_text("\n".join(["image,mask,imagenet_indices", *lines]))
    truth = torch.zeros(8, 8, dtype=torch.bool)
    truth[2:6, 2:6] = True
    for i in range(2):
        Image.fromarray(truth.numpy()).save(folder / f"{i}-mask.png")

    class Objects(SmallKit):
        _models = SimpleNamespace(
            crop_mask=lambda mask, info: torch.from_numpy(np.array(mask, dtype=bool))
        )

        def __init__(self, root: Path) -> None:
            super().__init__(tmp_path)

    monkeypatch.setattr(f"{__name__}.SmallKit", Objects)
    rows = tmp_path / "rows.json"
    call(monkeypatch, "--experiment", "threshold", "--photos", "2", "--json", str(rows))
    found = json.loads(rows.read_text())["rows"]
    assert len(found) == 2 * len(paper.policies("few"))
    assert {row["object"] for row in found} == {0.25}
    default = [row for row in found if row["masker"] == "positional gate dilute, tau 0"]
    mean = sum(row["iou"] for row in default) / 2
    printed = capsys.readouterr().out
    assert f"| **positional gate dilute, tau 0** (default) | {mean:.2f} [" in printed


def test_weights_that_cannot_be_fetched_are_skipped_visibly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def offline(name: str) -> None:
        raise Unavailable(f"the weights of {name} cannot be fetched")

    monkeypatch.setattr(paper.models, "resolve", offline)
    call(monkeypatch, "--experiment", "equivalence", "--models", "torchvision:resnet50")
    printed = capsys.readouterr().out
    assert "skipped: torchvision:resnet50: the weights of resnet50 cannot be fetched" in printed
    with pytest.raises(SystemExit):
        call(monkeypatch, "--experiment", "equivalence", "--models", "resnet5000")


PUBLISHED = "torchvision:resnet18"


@dataclass(frozen=True)
class Downloaded:
    """Stands for a network of torchvision's with its weights, and a kit of pictures."""

    model: nn.Module
    preprocess: Preprocess
    kit: Path
    asked: list[tuple[Any, torch.Tensor, convad_fx.Explanation]]  # masker, photo, found

    def read(self, file: Path) -> torch.Tensor:
        return self.preprocess.transform(Image.open(file).convert("RGB"))[None]

    def photos(self) -> list[torch.Tensor]:
        return [self.read(file) for file in sorted((self.kit / "images/imagenet").iterdir())]

    def top(self, x: torch.Tensor) -> int:
        with torch.inference_mode():
            return int(self.model(x).argmax())

    def rows(self, monkeypatch: pytest.MonkeyPatch, *options: str) -> list[dict[str, Any]]:
        file = self.kit / "rows.json"
        argv = ["paper", "--kit", str(self.kit), "--models", PUBLISHED, "--json", str(file)]
        if "equivalence" not in options:
            argv += ["--partitions", "1", "--colours", "2", "--others", "2"]
        monkeypatch.setattr(sys, "argv", [*argv, *options])
        paper.main()
        rows: list[dict[str, Any]] = json.loads(file.read_text())["rows"]
        return rows


def picture(ground: Any, shape: Any, columns: slice) -> Image.Image:
    """Twice as wide as high, so that half of it is cropped; in some columns there is something."""
    pixels = np.full((40, 80, 3), ground, np.uint8)
    pixels[8:30, columns] = shape
    return Image.fromarray(pixels)


@pytest.fixture
def downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Downloaded:
    (tmp_path / "models.py").write_text(SMALL_KIT)  # which crops no masks
    folder = tmp_path / "images" / "imagenet"
    folder.mkdir(parents=True)
    for i, (ground, shape) in enumerate((("red", "blue"), ("white", "green"), ("black", "grey"))):
        colours = (ImageColor.getrgb(name) for name in (ground, shape))
        picture(*colours, slice(25, 50)).save(folder / f"{i}.jpg")
    classifier = paper.models.resolve("resnet18", weights="none", size=32)
    asked: list[tuple[Any, torch.Tensor, convad_fx.Explanation]] = []
    stand_in = Downloaded(classifier.model, classifier.preprocess, tmp_path, asked)
    with torch.inference_mode():  # random weights answer all pictures alike: take that away
        x = torch.cat(stand_in.photos())
        classifier.model.fc.bias -= classifier.model(x).mean(0)

    def explain(masker: Any, x: torch.Tensor, **options: Any) -> convad_fx.Explanation:
        asked.append((masker, x, convad_fx.explain(masker, x, **options)))
        return asked[-1][2]

    monkeypatch.setattr(paper, "explain", explain)
    monkeypatch.setattr(paper.models, "resolve", {"resnet18": classifier}.__getitem__)
    return stand_in


def test_a_network_of_torchvision_gives_the_same_bits(
    downloaded: Downloaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len({downloaded.top(x) for x in downloaded.photos()}) > 1
    rows = downloaded.rows(monkeypatch, "--experiment", "equivalence")
    assert [row["photo"] for row in rows] == ["00", "01", "02"] * 4
    assert len({repr(row["policy"]) for row in rows}) == 4
    assert {row["model"] for row in rows} == {PUBLISHED}
    assert all(row["bit_equal"] and not row["changed"] for row in rows)


def test_sets_of_a_network_of_torchvision_are_planted(
    downloaded: Downloaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--experiment", "robustness", "--photos", "1", "--sizes", "0.5")
    rows = downloaded.rows(monkeypatch, *options, "--paints", "black")
    maskers = [*paper.OFF, "black"]
    assert [(row["photo"], row["masker"]) for row in rows] == [("00", name) for name in maskers]
    photo, *others = downloaded.photos()
    for row, (_, x, why) in zip(rows, downloaded.asked, strict=True):
        assert torch.equal(x, photo)
        assert row["target"] == downloaded.top(x)
        kept = torch.from_numpy(why.mask)
        assert row["size"] == pytest.approx(float(kept.float().mean()), rel=1e-4)
        same = [downloaded.top(torch.where(kept, x, o)) == row["target"] for o in others]
        assert row["rho"]["photos"] == np.mean(same)
    black, x, _ = downloaded.asked[3]
    nothing = downloaded.preprocess.transform(Image.new("RGB", (80, 40)))[None]
    with torch.inference_mode():
        painted = black(x, torch.zeros(1, 1, 32, 32, dtype=torch.bool))
        torch.testing.assert_close(painted, downloaded.model(nothing))


def test_masks_of_objects_are_cropped_as_torchvision_crops_photos(
    downloaded: Downloaded, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = downloaded.kit / "images" / "segmentation"
    folder.mkdir()
    lines = []
    for name, columns, right in (
        ("half-out", slice(45, 75), True),
        ("another-class", slice(30, 50), False),
        ("all-out", slice(0, 15), True),
        ("within", slice(30, 50), True),
    ):
        drawn = picture(0, 255, columns)
        drawn.save(folder / f"{name}.png")
        drawn.convert("1").save(folder / f"{name}-mask.png")
        top = downloaded.top(downloaded.read(folder / f"{name}.png"))
        lines.append(f"{name}.png,{name}-mask.png,{top if right else top - 1} 1001")
    (folder / "manifest.csv").write_text("\n".join(["image,mask,imagenet_indices", *lines]))
    few = dict(list(paper.policies("few").items())[:2])
    monkeypatch.setattr(paper, "policies", lambda grid: few)
    options = ("--models", "cifar_resnet20", PUBLISHED)
    rows = downloaded.rows(monkeypatch, "--experiment", "threshold", *options)
    assert [(row["model"], row["photo"], row["masker"]) for row in rows] == [
        (PUBLISHED, photo, policy) for photo in ("00", "03") for policy in few
    ]
    files = [folder / f"{name}.png" for name in ("half-out", "within") for _ in few]
    for row, file, (_, x, why) in zip(rows, files, downloaded.asked, strict=True):
        assert torch.equal(x, downloaded.read(file))
        # the object is white on black: the photo itself says where it is
        truth = images.displayable(x, downloaded.preprocess)[:, :, 0] > 127
        assert row["object"] == pytest.approx(truth.mean(), rel=1e-4)
        union = (why.mask | truth).sum()
        assert row["iou"] == pytest.approx((why.mask & truth).sum() / union, rel=1e-4)
    skipped = "skipped: cifar_resnet20: the objects' classes are ImageNet's, its own CIFAR-10's"
    assert skipped in capsys.readouterr().out.splitlines()


def converge(monkeypatch: pytest.MonkeyPatch, *more: str) -> None:
    monkeypatch.setattr(convergence, "Kit", SmallKit)
    monkeypatch.setattr(sys, "argv", ["convergence", "--kit", "nowhere", *more])
    convergence.main()


def test_searches_are_compared_photo_by_photo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usual, base = convergence.USUAL, convergence.VARIED
    assert convergence.searches()[usual] == replace(convad_fx.Search(), confidence=0.9)
    cells = ((usual, 0.5, 0.75), ("other", 0.25, 1.0), (base, 0.5, 0.5), ("varied: x", 0.5, 0.25))
    rows = [
        {"model": "m", "search": name, "photo": photo, "size": size, "rho_images": rho}
        | {"rho_colours": 1.0, "evaluations": 10}
        for name, size, rho in cells
        for photo in range(3)
    ]
    file = tmp_path / "rows.json"
    file.write_text(json.dumps({"rows": rows}))
    converge(monkeypatch, "--tables", str(file))
    printed = capsys.readouterr().out.splitlines()
    nothing = "+0.00 [+0.00, +0.00], p 1"
    assert "| other | -0.25 [-0.25, -0.25], p 0.25 | +0.25 [+0.25, +0.25], p 0.25 |" in printed
    assert f"| varied: x | {nothing} | -0.25 [-0.25, -0.25], p 0.25 |" in printed
    assert f"| {base} | {nothing} | -0.25 [-0.25, -0.25], p 0.25 |" in printed


@pytest.mark.heavy
def test_every_search_is_run_on_every_photo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, plot = tmp_path / "rows.json", tmp_path / "plot.png"
    converge(monkeypatch, "--photos", "2", "--json", str(file), "--plot", str(plot))
    rows = json.loads(file.read_text())["rows"]
    names = list(convergence.searches())
    assert [(row["photo"], row["search"]) for row in rows] == [
        (photo, name) for photo in (0, 1) for name in names
    ]
    mean = np.mean([row["size"] for row in rows if row["search"] == "varied: seed 1"])
    printed = capsys.readouterr().out.splitlines()
    line = next(line for line in printed if line.startswith("| varied: seed 1 | "))
    assert line.split(" | ")[2] == f"{mean:.2f}"
    with pytest.raises(SystemExit):
        converge(monkeypatch, "--only", "vried")
    assert "--only: no search is called vried" in capsys.readouterr().err
    with Image.open(plot) as drawn:
        assert drawn.width == 800
