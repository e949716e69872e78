"""Maps in other tools' conventions. The page that shows the tools at work is run, where they are.

pip install grad-cam quantus torchmetrics && pytest -m heavy tests/integrations/test_maps.py
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor

import convad_fx
from convad_fx.errors import ImageError, ModelError, PolicyError
from convad_fx.integrations.maps import Responsibility, grayscale, quantus_explain

PAGE = Path(__file__).parents[2] / "docs" / "other-tools.md"
QUICK = convad_fx.Search(partitions=2)


def corner(x: Tensor, mask: Tensor) -> Tensor:
    """Sees the top left 8 x 8 pixels only."""
    seen = torch.where(mask, x, 0)[:, 0, :8, :8].mean((1, 2))
    return torch.stack([0 * seen, 8 * seen - 4], 1)


def test_maps_of_a_batch() -> None:
    x = torch.stack([torch.ones(1, 32, 32), -torch.ones(1, 32, 32)])
    with Responsibility(corner, search=QUICK, seed=3) as cam:
        maps = cam(input_tensor=x)
    assert (maps.shape, maps.dtype) == ((2, 32, 32), np.float32)
    assert 0 <= maps.min() < maps.max() == 1
    assert maps[0, :8, :8].mean() > 3 * maps[0, 8:, 8:].mean()
    whys = tuple(convad_fx.explain(corner, one, search=QUICK, seed=3) for one in x)
    assert [why.target for why in whys] == [1, 0]
    assert cam.explanations == whys
    for found, why in zip(maps, whys, strict=True):
        np.testing.assert_array_equal(found, grayscale(why))


def test_a_map_of_nothing_is_zero_and_not_nan() -> None:
    why = convad_fx.explain(
        lambda x, mask: torch.tensor([[0.0, 1.0]]).expand(len(mask), 2), torch.ones(1, 8, 8)
    )
    assert not grayscale(why).any()


def test_targets() -> None:
    cam = Responsibility(corner, search=QUICK)
    x = torch.ones(2, 1, 32, 32)
    plain = cam(x, [1, 1])
    # pytorch-grad-cam's ClassifierOutputTarget keeps the class so
    np.testing.assert_array_equal(cam(x, [SimpleNamespace(category=1)] * 2), plain)
    with pytest.raises(ImageError, match="1 targets for 2 images; pass one per image"):
        cam(x, [1])
    with pytest.raises(PolicyError, match="target 2 is not a class"):
        cam(x, [0, 2])


def two_corners(x: Tensor, mask: Tensor) -> Tensor:
    """Class 1 for the top left corner; class 0, less probable, for the bottom right one."""
    kept = torch.where(mask, x, 0)[:, 0]
    first, second = kept[:, :8, :8].mean((1, 2)), kept[:, -8:, -8:].mean((1, 2))
    return torch.stack([4 * second, 5 * first, 0 * first + 2], 1)


def test_any_class_has_a_map() -> None:
    """As Quantus' RandomLogit and MPRT ask: labels that are not the network's answer."""
    x = torch.ones(2, 1, 32, 32)
    cam = Responsibility(two_corners, search=QUICK)
    answer, other = cam(x, [1, 0])
    assert [(why.target, why.is_prediction) for why in cam.explanations] == [(1, True), (0, False)]
    assert all(why.sufficient for why in cam.explanations)
    assert answer[:8, :8].mean() > 2 * answer[-8:, -8:].mean()
    assert other[-8:, -8:].mean() > 2 * other[:8, :8].mean()


def test_the_score_reaches_the_search() -> None:
    x = torch.ones(1, 1, 32, 32)
    cam = Responsibility(two_corners, search=QUICK, score="sigmoid")
    cam(x, [0])
    assert (cam.explanations[0].score, cam.explanations[0].is_prediction) == ("sigmoid", True)
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(2),
        torch.nn.Flatten(), torch.nn.Linear(16, 3),
    ).eval()  # fmt: skip
    picture = torch.rand(1, 1, 32, 32)
    found = quantus_explain(model, picture, [2], score="sigmoid", search=QUICK)
    masked = convad_fx.convert(model, picture)
    why = convad_fx.explain(masked, picture, 2, score="sigmoid", search=QUICK)
    np.testing.assert_array_equal(found[0, 0], grayscale(why))
    by_softmax = convad_fx.explain(masked, picture, 2, search=QUICK)
    assert by_softmax.score == "softmax"
    assert why.confidence_whole != by_softmax.confidence_whole


def test_maps_of_different_sizes_are_refused() -> None:
    whys = [convad_fx.explain(corner, torch.ones(1, n, n), search=QUICK) for n in (16, 32)]
    with pytest.raises(ImageError, match="2 maps of 2 sizes"):
        grayscale(whys)


def test_quantus_explains_the_model_it_is_given() -> None:
    torch.manual_seed(0)
    model = torchvision.models.squeezenet1_1().eval()
    x = torch.rand(1, 3, 64, 64)
    maps = quantus_explain(model, x.numpy(), search=QUICK, seed=1, method="whatever")
    assert (maps.shape, maps.dtype) == ((1, 1, 64, 64), np.float32)
    masked = convad_fx.convert(model, x)
    why = convad_fx.explain(masked, x, search=QUICK, seed=1)
    np.testing.assert_array_equal(maps[0, 0], grayscale(why))
    np.testing.assert_array_equal(
        quantus_explain(masked, x.numpy(), [why.target], search=QUICK, seed=1), maps
    )
    with pytest.raises(ModelError, match=r"call model\.eval\(\)"):
        quantus_explain(model.train(), x.numpy())


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore")  # of these packages, and they are many
def test_the_page_runs() -> None:
    for package in ("pytorch_grad_cam", "quantus", "torchmetrics"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pytest.importorskip(package)
    names: dict[str, Any] = {}
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    assert len(blocks) == 4
    for block in blocks:
        exec(block, names)
    assert names["overlay"].shape == (96, 96, 3)
    assert names["overlay"].dtype == np.uint8
    assert np.isfinite(names["change"]).all()
    assert names["change"].shape == (2,)
    assert len(names["hits"]) == 2
    assert 0.5 < float(names["on_object"]) <= 1  # chance is a half
    assert 0 < float(names["overlap"]) < 1
