"""Switching off against paint: like compared with like, and a page that shows it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import convad_fx
from convad_fx.errors import PolicyError
from convad_fx.explain import Search, explain, occlusion
from convad_fx.metrics import Normalisation, robustness
from convad_fx.report import MaskerResult, compare, draw_comparison, save_comparison

SCALE = Normalisation((0.5,), (0.25,))
PIXELS = np.random.default_rng(0).random((24, 24, 3))
IMAGE = SCALE.apply(torch.from_numpy(PIXELS).permute(2, 0, 1)[None], torch.zeros(1, 3, 24, 24))
SEARCH = Search(partitions=1, max_splits=2)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    return nn.Sequential(*layers).eval()


@pytest.fixture(scope="module")
def rows(model: nn.Module) -> tuple[MaskerResult, ...]:
    maskers = {
        "switched off": convad_fx.convert(model, IMAGE),
        "white": occlusion(model, "white", mean=0.5, std=0.25),
    }
    others = [torch.zeros_like(IMAGE), torch.ones_like(IMAGE)]
    return compare(
        maskers, model, IMAGE, search=SEARCH, n=4, others=others, normalisation=SCALE, seed=3
    )


def test_it_is_what_explain_and_robustness_say(
    model: nn.Module, rows: tuple[MaskerResult, ...]
) -> None:
    assert [row.name for row in rows] == ["switched off", "white"]
    masker = occlusion(model, "white", mean=0.5, std=0.25)
    alone = explain(masker, IMAGE, search=SEARCH, seed=3)
    assert rows[1].explanation == alone
    rho = robustness(model, IMAGE, alone.mask, alone.target, n=4, seed=3, normalisation=SCALE).rho
    assert rows[1].rho["colours"] == rho
    assert set(rows[1].rho) == {"colours", "images"}


def test_all_maskers_keep_the_same_score(model: nn.Module) -> None:
    """Painters of a network that ends in softmax, and of the second class."""
    ended = nn.Sequential(model, nn.Softmax(1)).eval()
    maskers = {"off": convad_fx.convert(ended, IMAGE), "white": occlusion(ended, "white")}
    second = int(model(IMAGE).argmin())
    for target in (None, second):
        arguments = {"search": SEARCH, "n": 4, "seed": 3}
        for row in compare(maskers, ended, IMAGE, target, **arguments):
            why = row.explanation
            assert (why.score, why.is_prediction) == ("probability", target is None)
            assert why.confidence_whole == pytest.approx(ended(IMAGE)[0, why.target].item())
            at_least = None if target is None else why.confidence_whole / 2
            found = robustness(model, IMAGE, why.mask, why.target, n=4, seed=3, at_least=at_least)
            assert row.rho["colours"] == found.rho


def test_what_was_shown_is_the_paint(rows: tuple[MaskerResult, ...]) -> None:
    assert rows[0].network_input is None
    shown: Tensor | None = rows[1].network_input
    assert shown is not None
    hidden = ~torch.from_numpy(rows[1].explanation.mask)
    pixels = SCALE.undo(shown)[0]
    assert torch.allclose(pixels[:, hidden], torch.ones(1, dtype=torch.float64))


def test_the_page_has_a_row_for_each_and_is_the_same_again(
    tmp_path: Path, rows: tuple[MaskerResult, ...]
) -> None:
    figure = draw_comparison(rows, PIXELS, SCALE, "a $picture$.png")
    assert len(figure.axes) == 4 * 3
    said = "\n".join(t.get_text() for axes in figure.axes for t in axes.texts)
    for part in ("a $picture$.png", "switched off", "white", "survives, colours", "class "):
        assert part in said
    files = [save_comparison(rows, PIXELS, tmp_path / f"{n}.png", SCALE) for n in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()
    with Image.open(files[0]) as page:
        assert page.width > 800


def test_nothing_to_compare(model: nn.Module) -> None:
    with pytest.raises(PolicyError, match="nothing to compare"):
        compare({}, model, IMAGE)
    with pytest.raises(PolicyError, match="nothing to compare"):
        draw_comparison((), PIXELS)


def test_a_name_that_is_no_text_is_written_by_its_bytes(
    tmp_path: Path, rows: tuple[MaskerResult, ...]
) -> None:
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")  # as Python lists such a file
    figure = draw_comparison(rows, PIXELS, SCALE, name)
    assert any(t.get_text() == "caf\\udce9.png" for axes in figure.axes for t in axes.texts)
    assert save_comparison(rows, PIXELS, tmp_path / "page.png", SCALE, name).stat().st_size
