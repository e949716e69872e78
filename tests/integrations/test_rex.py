"""ReX with switching off: masks are read off its mutants exactly, and the real ReX runs on it.

The last test needs rex-xai, which pins numpy 1.26, in an environment of its own:

    python3 -m venv .rex && .rex/bin/pip install -e . rex-xai==0.4.1
    REX_PYTHON=.rex/bin/python pytest -m heavy tests/integrations/test_rex.py
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

import convad_fx
from convad_fx import images, models
from convad_fx.demo import scenes
from convad_fx.errors import ImageError, ModelError, PolicyError, Unavailable
from convad_fx.integrations import rex

ROOT = Path(rex.__file__).parents[2]


@pytest.fixture(scope="module")
def network() -> convad_fx.MaskedModule:
    return _network(convad_fx.Policy())


def _network(policy: convad_fx.Policy) -> convad_fx.MaskedModule:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    return convad_fx.convert(model.eval(), torch.zeros(1, 3, 8, 8), policy)


def _predictor(
    masked: convad_fx.MaskedModule, steps: images.Preprocess | None = None
) -> rex._Predictor:
    return rex._Predictor(masked, steps or images.standard(8, 8))


def _picture(folder: Path) -> Path:
    path = folder / "one.png"
    scene = Image.fromarray(scenes.held_out(1)[0].image)
    scene.save(path)
    return path


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_masks_are_read_off_mutants_exactly(network: convad_fx.MaskedModule, share: float) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, 3, 8, 8, generator=generator)
    mask = torch.rand(5, 1, 8, 8, generator=generator) < share
    mutants = torch.where(mask, x, rex.PAINT)  # as ReX paints
    assert torch.equal(_predictor(network).logits(mutants), network(x, mask))


def test_a_pixel_is_hidden_only_if_every_channel_is(network: convad_fx.MaskedModule) -> None:
    x = torch.randn(1, 3, 8, 8)
    x[:, 0, 0, 0] = rex.PAINT  # no picture has it, but one channel would not hide a pixel
    assert torch.equal(_predictor(network).logits(x), network(x))


def test_probabilities_and_batches(network: convad_fx.MaskedModule) -> None:
    rows = _predictor(network).predict(torch.zeros(3, 3, 8, 8), raw=True)
    assert rows.shape == (3, 4)
    torch.testing.assert_close(rows.sum(1), torch.ones(3))


def test_probabilities_of_networks_that_end_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """ReX takes the softmax of what it gets, so a network's own probabilities must survive it."""
    monkeypatch.setattr(rex, "_from_rex", lambda *_: lambda rows, target: rows.softmax(1))
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    mutants = torch.rand(3, 3, 8, 8)
    ended = nn.Sequential(*body, nn.Softmax(1)).eval()
    one = nn.Sequential(*body, nn.Linear(4, 1)).eval()
    with torch.no_grad():
        yes = one(mutants).sigmoid()
        cases = ((ended, ended(mutants)), (one, torch.cat([1 - yes, yes], 1)))
    for model, expected in cases:
        predictor = _predictor(convad_fx.convert(model, mutants[:1]))
        torch.testing.assert_close(predictor.predict(mutants, raw=True), expected)
        torch.testing.assert_close(predictor.predict(mutants), expected)


def test_raw_input_sees_the_pixels_behind_the_paint() -> None:
    masked = _network(convad_fx.Policy.paper())
    x = torch.randn(1, 3, 8, 8)
    mask = torch.rand(4, 1, 8, 8) < 0.5
    predictor = _predictor(masked)
    mutants = torch.where(mask, x, rex.PAINT)
    with pytest.raises(ImageError, match='policy with input="gate"'):
        predictor.logits(mutants)
    predictor.image = x
    assert torch.equal(predictor.logits(mutants), masked(x.expand(4, -1, -1, -1), mask))
    with pytest.raises(ImageError, match="another picture"):
        predictor.logits(torch.where(mask, x + 1, rex.PAINT))


def test_by_name() -> None:
    made = rex.script("demo")
    assert made.model_shape == ["N", 3, 96, 96]
    assert rex.script("squeezenet1_1", weights="none", size=(64, 64)).model_shape[2:] == [64, 64]


def test_by_file(tmp_path: Path) -> None:
    demo, file = models.resolve("demo"), tmp_path / "demo.cfx"
    policy = convad_fx.Policy(tau=0.25)
    masked = convad_fx.convert(demo.model, demo.example(), policy)
    convad_fx.save(masked, file, preprocessing=images.recorded(demo.preprocess))
    made = rex.script(str(file))
    assert made.model_shape == ["N", 3, 96, 96]
    x = torch.rand(2, 3, 96, 96)
    x[:, :, :50] = rex.PAINT
    found = made.prediction_function(x, raw=True)
    expected = torch.softmax(masked(x, (x != rex.PAINT).any(1, keepdim=True)), 1)
    torch.testing.assert_close(found, expected)
    with pytest.raises(PolicyError, match="was compiled with"):
        rex.script(str(file), policy=convad_fx.Policy())


def test_a_masked_network_needs_to_be_told_the_rest(network: convad_fx.MaskedModule) -> None:
    with pytest.raises(ModelError, match=r"images\.standard"):
        rex.script(network)
    made = rex.script(network, preprocess=images.standard(8), size=(8, 8))
    assert made.model_shape == ["N", 3, 8, 8]


def test_pictures_that_do_not_fit(network: convad_fx.MaskedModule, tmp_path: Path) -> None:
    path = str(_picture(tmp_path))
    with pytest.raises(ImageError, match="but the script has"):
        _predictor(network).preprocess(path, ["N", 3, 9, 9], "cpu")
    dark = images.standard(8, 8, mean=(5, 5, 5), std=(1e-3, 1e-3, 1e-3))
    with pytest.raises(ImageError, match="mark hidden pixels"):
        _predictor(network, dark).preprocess(path, ["N", 3, 8, 8], "cpu")


@pytest.mark.skipif(importlib.util.find_spec("rex_xai") is not None, reason="rex-xai is here")
def test_without_rex(network: convad_fx.MaskedModule, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="rex-xai is not installed"):
        _predictor(network).preprocess(str(_picture(tmp_path)), ["N", 3, 8, 8], "cpu")


def test_the_ready_script_is_where_it_is_said_to_be() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "convad_fx.integrations.rex"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    script = Path(done.stdout.strip())
    assert script == rex.where()
    assert "rex.script(" in script.read_text(encoding="utf-8")


#: Runs the real ReX, notes every mask that it made and every mask that the network was given.
HARNESS = """
import json, sys
import torch
from rex_xai.explanation import rex as tool
from rex_xai.input import config
from rex_xai.input.config import CausalArgs
from rex_xai.mutants import mutant
from rex_xai.responsibility import responsibility

script, picture = sys.argv[1:]
args = CausalArgs()
args.path, args.gpu, args.seed, args.iters, args.batch_size = picture, False, 0, 2, 16
args.mask_value = 0  # the default; the script hides all the same
args.minimum_confidence_threshold = 0.9
config.process_custom_script(script, args)
made, given = [], []
apply = responsibility._apply_to_data

def noting(mask, data):
    made.append(mask[:1].clone())
    return apply(mask, data)

responsibility._apply_to_data = noting
asked = args.script.prediction_function.__self__
network = asked.network

class Noted:
    policy = network.policy
    def __call__(self, x, mask):
        given.extend(mask.clone())
        return network(x, mask)
    def to(self, device):
        return self

asked.network = Noted()
why = tool.explanation(args, torch.device("cpu"))
searched = given[1 : 1 + len(made)]  # the first is the whole picture, the last extract
alone = why.sufficiency_mask[:1][None]
row = torch.softmax(network(asked.image, alone), 1)[0]
print(json.dumps({
    "masks": len(made),
    "same": len(searched) == len(made)
        and all(torch.equal(a, b) for a, b in zip(made, searched)),
    "different": len({mask.numpy().tobytes() for mask in made}),
    "target": why.data.target.classification,
    "confidence": why.data.target.confidence,
    "whole": torch.softmax(network(asked.image), 1)[0, why.data.target.classification].item(),
    "kept": alone.float().mean().item(),
    "top": int(row.argmax()),
    "kept_confidence": row.max().item(),
}))
"""


@pytest.mark.heavy
def test_the_real_rex_switches_off(tmp_path: Path) -> None:
    python = os.environ.get("REX_PYTHON")
    if python is None:
        pytest.skip("needs rex-xai in an environment of its own: see the top of this file")
    (tmp_path / "harness.py").write_text(HARNESS, encoding="utf-8")
    done = subprocess.run(
        [python, tmp_path / "harness.py", rex.where(), _picture(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CONVAD_FX_MODEL": "demo"},
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["same"], "the network was given other masks than ReX made"
    assert found["different"] > 20
    assert (found["target"], found["top"]) == (0, 0)
    assert found["confidence"] == pytest.approx(found["whole"], abs=1e-5)
    assert 0 < found["kept"] < 0.7
    # ReX rounds the confidence it asks for to four places
    assert found["kept_confidence"] >= 0.9 * found["confidence"] - 1e-4
