"""Every CNN classifier of torchvision, random weights: accepted, and bit-equal on whole images.

The table is kept as golden text, so that a change of coverage or of the number of gates is a diff;
``pytest --refresh`` writes it anew.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

import convad_fx
from convad_fx.compiler.kernels.gating import gate

GOLDEN = Path(__file__).parents[1] / "golden" / "torchvision.txt"
TRANSFORMERS = ("vit", "swin", "maxvit")
NAMES = torchvision.models.list_models(module=torchvision.models)
CNNS = [name for name in NAMES if not name.startswith(TRANSFORMERS)]
# one network of each family in every run; the others are run with `-m heavy`
LIGHT = """
    alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3
    maxvit_t mnasnet0_5 mobilenet_v2 mobilenet_v3_small regnet_x_400mf regnet_y_400mf resnet18
    resnet50 resnext50_32x4d shufflenet_v2_x0_5 squeezenet1_1 swin_t vgg11_bn vit_b_32
""".split()  # noqa: SIM905


def build(name: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # googlenet's default initialisation
        fast = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        torch.manual_seed(0)
        return torchvision.models.get_model(name, weights=None, **fast).eval()


def size_of(name: str) -> int:
    if name.startswith(TRANSFORMERS):
        return 224
    return 75 if name == "inception_v3" else 64


def row(name: str) -> str:
    model = build(name)
    x = torch.rand(1, 3, size_of(name), size_of(name))
    report = convad_fx.check(model, x)
    if not report.ok:
        first = report.findings[0]
        return f"{name}: {len(report.findings)} findings, first {first.path} ({first.op})"
    masked = convad_fx.convert(model, x)
    with torch.inference_mode():
        equal = torch.equal(masked(x, torch.ones_like(x[:, :1], dtype=torch.bool)), model(x))
    assert equal, f"{name} differs on the whole image"
    assert list(masked.state_dict()) == list(model.state_dict())
    gates = sum(node.target is gate for node in masked.graph.nodes)
    return f"{name}: accepted, bit-equal, {gates} gates, {report.activities} activities"


def test_there_are_all_of_them() -> None:
    assert len(CNNS) >= 68


@pytest.mark.parametrize(
    "name", [n if n in LIGHT else pytest.param(n, marks=pytest.mark.heavy) for n in NAMES]
)
def test_torchvision(name: str, request: pytest.FixtureRequest) -> None:
    table = dict(line.split(": ", 1) for line in GOLDEN.read_text().splitlines())
    found = row(name)
    if request.config.getoption("--refresh"):
        table[name] = found.split(": ", 1)[1]
        GOLDEN.write_text("".join(f"{key}: {table[key]}\n" for key in sorted(table)))
    assert found == f"{name}: {table.get(name)}", "run with --refresh and read the diff"
    assert ("accepted" in found) == (name in CNNS)
