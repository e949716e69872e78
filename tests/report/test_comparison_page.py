"""The HTML page of a comparison: the JSON's numbers, in one file, whatever pictures are called."""

from __future__ import annotations

import base64
import dataclasses
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import convad_fx
from convad_fx import cli
from convad_fx.demo import scenes
from convad_fx.errors import PolicyError
from convad_fx.explain import Search, occlusion
from convad_fx.report import PictureComparison, compare, means, save_comparison, save_page

SCRIPT = "<script>alert(1)</script>"
VOID = {"meta", "img"}


class Page(HTMLParser):
    """What a browser would see: every tag closed, tables by cell, images, paragraphs by id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.images: list[dict[str, str | None]] = []
        self.said = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag in ("th", "td"):
            self.tables[-1][-1][-1] = " ".join(self.tables[-1][-1][-1].split())

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.said += data
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data


RELATIVE = "confidence, of the whole's"


def read(path: Path) -> Page:
    return Page(path.read_text("utf-8"))


def asked(folder: Path, out: Path, *options: str) -> dict:
    command = ("compare", folder, "--out", out, "--model", "demo", "--paint", "black", "--json")
    quick = ("--backgrounds", 3, "--partitions", 1, "--no-progress", "--device", "cpu", *options)
    result = CliRunner().invoke(cli.app, [str(part) for part in (*command, *quick)])
    assert result.exit_code in (0, 1), result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Page]:
    folder = tmp_path_factory.mktemp("two")
    for name, scene in zip(("ladybird.png", "<b>fish.png"), scenes.held_out(2), strict=True):
        Image.fromarray(scene.image).save(folder / name)
    (folder / "torn.png").write_text("no picture")
    answer = asked(folder, folder / "o", "--seed", "5", "--gamma", "0.8")
    return answer, read(Path(answer["page"]))


def test_the_summary_has_the_means_and_intervals_of_the_json(two: tuple[dict, Page]) -> None:
    answer, page = two
    head, *rows = page.tables[0]
    assert head[1:] == ["size", "survives, colours", "survives, pictures", RELATIVE]
    forms = {"size": ".1%", "colours": ".0%", "images": ".0%", "relative": ".1%"}
    wanted = [
        [
            entry["masker"],
            *(
                f"{entry[kind]['mean']:{form}} [{entry[kind]['low']:{form}}, "
                f"{entry[kind]['high']:{form}}]"
                for kind, form in forms.items()
            ),
        ]
        for entry in answer["means"]
    ]
    assert rows == wanted
    assert [row[0] for row in rows] == ["switched off", "black"]


def test_differences_are_paired_by_picture_as_in_the_json(two: tuple[dict, Page]) -> None:
    answer, page = two
    head, row = page.tables[1]
    assert head == page.tables[0][0]
    black = answer["means"][1]
    cells = [black["masker"]]
    forms = {"size": "+.1%", "colours": "+.0%", "images": "+.0%", "relative": "+.1%"}
    for kind, form in forms.items():
        less = black[kind]["less_first"]
        digits = 2 if form == "+.0%" else 3
        mean, low, high = (
            f"{round(less[name], digits) + 0.0:{form}}" for name in ("mean", "low", "high")
        )
        cells.append(f"{mean} [{low}, {high}], p {less['p']:.2g}")
    assert row == cells


def test_each_picture_has_the_numbers_and_the_drawing_of_the_json(two: tuple[dict, Page]) -> None:
    answer, page = two
    assert len(answer["compared"]) == len(page.images) == 2
    for one, (_, *rows), image in zip(
        answer["compared"], page.tables[2:], page.images, strict=True
    ):
        assert rows == [
            [
                row["masker"],
                f"{row['size']:.1%}",
                f"{row['rho']['colours']:.0%}",
                f"{row['rho']['images']:.0%}",
                f"{row['confidence_recheck'] / row['confidence_whole']:.1%}",
                f"{row['evaluations']:,}",
                "" if row["sufficient"] else "NOT sufficient",
            ]
            for row in one["maskers"]
        ]
        start, _, data = (image["src"] or "").partition(",")
        assert start == "data:image/png;base64"
        assert base64.b64decode(data, validate=True) == Path(one["page"]).read_bytes()
        name = one["image"]
        assert (image["alt"] or "").startswith(f"{name}: ")
        whole = one["maskers"][0]["confidence_whole"]
        assert f"{name}\n{one['maskers'][0]['target_name']}: confidence {whole:.3f}" in page.said


def test_means_of_confidence_are_those_of_the_pictures(two: tuple[dict, Page]) -> None:
    answer, _ = two
    for number, entry in enumerate(answer["means"]):
        rows = [one["maskers"][number] for one in answer["compared"]]
        own = [row["confidence_recheck"] / row["confidence_whole"] for row in rows]
        assert entry["relative"]["mean"] == pytest.approx(np.mean(own))


def test_the_page_says_what_was_measured_and_how(two: tuple[dict, Page]) -> None:
    answer, page = two
    said = " ".join(page.said.split())
    assert "On 2 pictures. For each way" in said
    assert "gamma = 0.8 of the confidence" in said
    assert "seed 5 for all" in said
    assert "backgrounds, 3 solid colours and 1 other picture, on which the original network" in said
    assert answer["compared"][0]["maskers"][0]["backgrounds"] == {"colours": 3, "images": 1}
    assert "Not compared, and not counted above:" in said
    (failed,) = answer["failed"]
    assert " ".join(failed["error"].split()) in said


def test_one_picture_has_no_intervals_and_no_other_pictures(tmp_path: Path) -> None:
    Image.fromarray(scenes.held_out(1)[0].image).save(tmp_path / "one.png")
    answer = asked(tmp_path, tmp_path / "o")
    page = read(Path(answer["page"]))
    head, *rows = page.tables[0]
    assert head[1:] == ["size", "survives, colours", RELATIVE]
    assert [row[1:] for row in rows] == [row[1:4] for row in page.tables[1][1:]]
    assert "One picture: no intervals." in page.said
    assert "[" not in page.said


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> PictureComparison:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    pixels = np.random.default_rng(0).random((16, 16, 3))
    image = torch.from_numpy(pixels).permute(2, 0, 1).float()
    maskers = {SCRIPT: convad_fx.convert(model, image[None]), "white": occlusion(model, "white")}
    labels = [f'{SCRIPT}{n}" onload="' for n in range(4)]
    compared = compare(
        maskers, model, image, search=Search(partitions=1, max_splits=2), n=2, labels=labels
    )
    path = tmp_path_factory.mktemp("drawn") / "1.png"
    return PictureComparison("1", compared, save_comparison(compared, pixels, path))


def test_names_and_labels_are_text_and_never_markup(
    tmp_path: Path, drawn: PictureComparison
) -> None:
    name = f'"{SCRIPT}\udcff.png'  # the last is how Python holds a byte that is no UTF-8
    picture = dataclasses.replace(drawn, name=name)
    path = save_page([picture], tmp_path / "p.html", model=SCRIPT, failed=[f"{SCRIPT}: torn"])
    text = path.read_text("utf-8")
    assert "<script" not in text
    page = Page(text)
    assert "script" not in page.tags
    # the model in title and headline, the masker in the title and two tables, the failure, the
    # picture, the label
    assert page.said.count(SCRIPT) == 2 + 3 + 1 + 1 + 1
    assert f"{SCRIPT}: torn" in page.said
    assert set(page.images[0]) == {"src", "alt"}
    assert (page.images[0]["alt"] or "").startswith(f'"{SCRIPT}\\udcff.png')


def test_the_page_loads_nothing_and_is_the_same_again(
    tmp_path: Path, drawn: PictureComparison
) -> None:
    first, second = (save_page([drawn, drawn], tmp_path / f"{n}.html") for n in "ab")
    assert first.read_bytes() == second.read_bytes()
    page = read(first)
    assert not {"script", "link", "iframe", "a"} & set(page.tags)
    assert "url(" not in first.read_text("utf-8")
    assert len(page.images) == 2


def test_what_cannot_be_one_page(tmp_path: Path, drawn: PictureComparison) -> None:
    path = tmp_path / "p.html"
    with pytest.raises(PolicyError, match="nothing to compare"):
        save_page([], path)
    turned = dataclasses.replace(drawn, results=drawn.results[::-1])
    with pytest.raises(PolicyError, match=r"compared with different settings.*same maskers"):
        save_page([drawn, turned], path)
    assert means([]) == []
    gone = dataclasses.replace(drawn, drawing=tmp_path / "gone.png")
    with pytest.raises(FileNotFoundError):
        save_page([gone], path)
