"""The picture: there, of the right things, whatever the class is called."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from convad_fx.errors import ImageError
from convad_fx.explain import Explanation, Search, explain
from convad_fx.report import draw, save, show_kept, show_responsibility

RED = np.zeros((24, 32, 3))
RED[..., 0] = 0.8


def patch(x: torch.Tensor, mask: torch.Tensor, /) -> torch.Tensor:
    seen = mask[:, 0, 4:12, 4:12].float().mean((1, 2))
    return torch.stack([0 * seen, 8 * seen - 4], 1)


WHY = explain(patch, torch.zeros(3, 24, 32), search=Search(4, max_splits=6), labels=["a", "patch"])


def titles(figure: Figure) -> str:
    return "\n".join(text.get_text() for axes in figure.axes for text in (axes.title, *axes.texts))


def test_files_are_written_and_the_picture_shows_the_kept_pixels(tmp_path: Path) -> None:
    text, picture = save(WHY, RED, tmp_path / "new" / "folder", "cat.v2")
    assert (text.name, picture.name) == ("cat.v2.json", "cat.v2.png")
    assert Explanation.from_json(text.read_text(encoding="utf-8")) == WHY
    with Image.open(picture) as opened:
        pixels = np.asarray(opened.convert("RGB"), dtype=float)
    height, width = pixels.shape[:2]
    assert width > 2 * height > 500
    # Panels: the image is red all over; of the explanation only the kept share is.
    is_red = np.abs(pixels - [204, 0, 0]).max(2) < 10
    left, right = is_red[:, : width // 3].sum(), is_red[:, -width // 3 :].sum()
    assert left > 0.5 * height * width / 3
    assert right / left == pytest.approx(WHY.size, abs=0.05)
    # The map has many colours.
    middle = pixels[:, width // 3 : 2 * width // 3].reshape(-1, 3)
    assert len(np.unique(middle, axis=0)) > 50


def test_the_same_explanation_gives_the_same_file(tmp_path: Path) -> None:
    first, second = (save(WHY, RED, tmp_path, stem)[1].read_bytes() for stem in ("a", "b"))
    assert first == second


def test_titles_say_what_was_found() -> None:
    said = titles(draw(WHY, RED))
    for part in (
        "patch",
        f"confidence {WHY.confidence_whole:.3f}",
        f"{WHY.evaluations:,} evaluations",
        f"sufficient: {WHY.size:.1%} of the pixels",
        f"confidence {WHY.confidence_recheck:.3f}, needed {0.9 * WHY.confidence_whole:.3f}",
    ):
        assert part in said


@pytest.mark.parametrize("kept", [False, True])
def test_nothing_kept_and_everything_kept_are_drawn(kept: bool, tmp_path: Path) -> None:
    shape = WHY.mask.shape
    extreme = dataclasses.replace(
        WHY, mask=np.full(shape, kept), responsibility=np.zeros(shape), sufficient=False
    )
    save(extreme, RED, tmp_path, "extreme")
    said = titles(draw(extreme, RED))
    assert "no responsibility found" in said
    assert f"NOT sufficient: {float(kept):.1%}" in said


@pytest.mark.parametrize("name", ["$1 bill_^{", "猫 🐞", "a" * 200, "", "two\nlines"])
def test_any_class_name_can_be_drawn(name: str, tmp_path: Path) -> None:
    save(dataclasses.replace(WHY, target_name=name), RED, tmp_path, "name")


@pytest.mark.parametrize(
    "image",
    [(RED * 255).astype(np.uint8), RED.astype(np.float32), RED[..., 0], RED[..., :1], RED + 5e-4],
)
def test_pictures_of_every_kind(image: np.ndarray) -> None:
    assert len(draw(WHY, image).axes) == 3


def test_axes_of_ones_own() -> None:
    figure = Figure()
    axes = figure.subplots(2, 3)
    assert draw(WHY, RED, axes=axes[1]) is figure
    assert not axes[0, 0].images
    assert axes[1, 2].images


def test_pyplot_is_left_alone() -> None:
    draw(WHY, RED)
    pyplot = sys.modules.get("matplotlib.pyplot")  # another test may have imported it
    assert pyplot is None or not pyplot.get_fignums()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (RED[:, :, :2], r"shape \(24, 32, 2\) is not an image; pass the image before"),
        (RED[None], "is not an image"),
        (RED[1:], "23x32 pixels does not fit an explanation of 24x32; pass what the network saw"),
        (RED * 2 - 1, r"values lie in \[-1, 0.6\], not in \[0, 1\]; pass the image before"),
        (RED * np.nan, "not in"),
        (RED.astype(int), "dtype int64 has no known range"),
    ],
)
def test_pictures_that_do_not_fit(image: np.ndarray, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        draw(WHY, image)


@pytest.mark.parametrize("stem", ["", "..", "a/b", "/etc/x", "a\\b"])
def test_a_stem_is_a_plain_name(stem: str, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="cannot name a file; pass a name without folder"):
        save(WHY, RED, tmp_path, stem)
    assert not list(tmp_path.iterdir())


def test_one_panel_goes_into_axes_of_ones_own() -> None:
    panels = Figure().subplots(1, 2)
    assert show_kept(WHY, RED, ax=panels[0]) is panels[0]
    assert show_responsibility(WHY, RED, panels[1]) is panels[1]
    assert "sufficient" in panels[0].get_title()
    assert "responsibility" in panels[1].get_title()
    # The kept pixels are in colour: the picture's red; the others are grey.
    pixels = np.asarray(panels[0].images[0].get_array())
    assert np.allclose(pixels[WHY.mask], RED[WHY.mask])
    assert np.ptp(pixels[~WHY.mask], axis=1).max() == 0
    assert show_kept(WHY, RED).get_figure() is not None
