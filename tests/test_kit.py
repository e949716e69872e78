"""Real weights and photos: `pytest --kit DIR`. Skipped, with the reason, where there is none."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import convad_fx


@pytest.fixture(scope="session")
def models(kit: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("kit_models", kit / "models.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def photos(kit: Path, models: ModuleType, info: dict[str, Any], count: int) -> Tensor:
    """The first photos as the network reads them; for 32-pixel networks, shrunk to that."""
    files = sorted((kit / "images" / "imagenet").glob("*.[jJ]*"))[:count]
    assert len(files) == count
    batch = []
    for file in files:
        picture = Image.open(file).convert("RGB")
        if info["size"] == 32:
            picture = picture.resize((32, 32))
        batch.append(models.preprocess(picture, info))
    return torch.cat(batch)


@pytest.mark.parametrize(
    "name", ["mobilenet_v2", "mobilenet_v1_075_192", "cifar_resnet20", "cifar_resnet56"]
)
def test_equal_bit_for_bit_on_50_photos(kit: Path, models: ModuleType, name: str) -> None:
    model, info = models.load(name, kit)
    x = photos(kit, models, info, 50)
    masked = convad_fx.convert(model, x[:1])
    ones = torch.ones(1, 1, *x.shape[2:], dtype=torch.bool)
    with torch.inference_mode():
        for start in range(0, 50, 10):
            part = x[start : start + 10]
            assert torch.equal(masked(part, ones), model(part))
    assert masked.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize(
    "name", [pytest.param("mobilenet_v2", marks=pytest.mark.heavy), "mobilenet_v1_075_192"]
)
def test_what_a_search_asks_is_what_the_whole_image_gives(
    kit: Path, models: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, info = models.load(name, kit)
    x = photos(kit, models, info, 1)
    masked, asked = convad_fx.convert(model, x), []
    evaluate = convad_fx.MaskedModule.evaluate

    def listened(network: Any, image: Tensor, masks: Tensor, **options: Any) -> Any:
        found = evaluate(network, image, masks, **options)
        asked.append((masks, found.logits))
        return found

    monkeypatch.setattr(convad_fx.MaskedModule, "evaluate", listened)
    convad_fx.explain(masked, x, search=convad_fx.Search(partitions=2))
    masks, logits = (torch.cat(parts) for parts in zip(*asked, strict=True))
    assert len(masks) > 150
    with torch.inference_mode():
        wanted = torch.cat([masked(x, some) for some in masks.split(32)])
    torch.testing.assert_close(logits.cpu(), wanted, rtol=1e-4, atol=1e-3)
    assert torch.equal(logits.argmax(1), wanted.argmax(1))


@pytest.mark.heavy
def test_explanations_of_ten_photos_are_sufficient(kit: Path, models: ModuleType) -> None:
    model, info = models.load("mobilenet_v2", kit)
    x = photos(kit, models, info, 10)
    masked = convad_fx.convert(model, x[:1])
    names = _names(kit)
    for image in x:
        exp = convad_fx.explain(masked, image, search=convad_fx.Search(partitions=4), labels=names)
        assert exp.sufficient
        # once more from scratch: another conversion, the plain model for the whole image
        fresh = convad_fx.convert(model, image[None])
        with torch.inference_mode():
            whole = model(image[None]).softmax(1)[0]
            kept = fresh(image[None], torch.from_numpy(exp.mask)[None, None]).softmax(1)[0]
        assert whole.argmax() == kept.argmax() == exp.target
        assert kept[exp.target] >= 0.9 * whole[exp.target]
        assert 0 < exp.size < 1


def _names(kit: Path) -> dict[int, str]:
    with (kit / "images" / "imagenet" / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    index = next(
        k for k in rows[0] if "class" in k.lower() or "label" in k.lower() or "index" in k.lower()
    )
    return {int(row[index]): next(iter(row.values())) for row in rows}


def test_padded_cells_do_not_count(kit: Path, models: ModuleType) -> None:
    """TensorFlow's explicit asymmetric padding folds into the window, and keeps the last row."""
    model, info = models.load("mobilenet_v2", kit)
    size = info["size"]
    masked = convad_fx.convert(model, torch.zeros(1, 3, size, size), convad_fx.Policy(tau=0.9))
    assert "padding = ((0, 1), (0, 1))" in masked.code
    x = torch.rand(1, 3, size, size)
    assert torch.equal(masked(x), model(x))


def test_all_modules_are_networks(models: ModuleType, kit: Path) -> None:
    for name in models.ZOO:
        model, info = models.load(name, kit)
        assert isinstance(model, nn.Module)
        report = convad_fx.check(model, torch.zeros(1, 3, info["size"], info["size"]))
        assert report.ok, str(report)
