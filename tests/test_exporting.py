"""torch.export and ONNX of masked networks: two inputs, any batch, checked against onnxruntime.

One network of torchvision is tried in every run and a few with `-m heavy`; all of them take half an
hour, by ``python -m benchmarks.export``, which made the table of docs/export.md.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from compiler.toys import SHAPE, TOYS
from compiler.toys import build as build_toy
from torch import Tensor, nn
from typer.testing import CliRunner

import convad_fx
from benchmarks import export as tried
from convad_fx import cli
from convad_fx import exporting as program
from convad_fx.errors import ModelError, Unavailable, UnsupportedModel

PAGE = Path(__file__).parents[1] / "docs" / "export.md"
POLICIES = {
    "default": convad_fx.Policy(),
    "paper": convad_fx.Policy.paper(),
    "strict": convad_fx.Policy(input="strict", tau=0.5, pool="renormalize"),
    "layer masking": convad_fx.Policy.layer_masking(),
}


def toy(name: str, policy: convad_fx.Policy | None = None) -> convad_fx.MaskedModule:
    masked = convad_fx.convert(
        build_toy(name), torch.zeros(1, *SHAPE[1:]), policy or convad_fx.Policy()
    )
    return masked.requires_grad_(False)


def session_of(masked: convad_fx.MaskedModule, path: Path) -> Any:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    convad_fx.export_onnx(masked, path)
    return runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", TOYS)
def test_toys_by_torch_export(name: str) -> None:
    masked = toy(name)
    assert tried.difference(tried.by_torch(masked), masked, SHAPE[-1]).worst < 1e-5


@pytest.mark.parametrize("name", ["Residual", "SqueezeExcite", "PadShortcut"])
@pytest.mark.parametrize(
    "policy",
    [p if p == "default" else pytest.param(p, marks=pytest.mark.heavy) for p in POLICIES],
)
def test_toys_by_onnx(name: str, policy: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    masked = toy(name, POLICIES[policy])
    run = tried.by_onnx(masked, tmp_path / "toy.onnx")
    assert tried.difference(run, masked, SHAPE[-1]).worst < 1e-4


def test_the_comparison_sees_what_is_wrong() -> None:
    masked = toy("Residual")
    right = tried.by_torch(masked)

    def painted(x: Tensor, mask: Tensor) -> Tensor:
        return right(torch.where(mask, x, 0), torch.ones_like(mask))

    def nothing(x: Tensor, mask: Tensor) -> Tensor:
        return right(x, mask) * torch.nan

    for wrong in (painted, nothing):
        apart = tried.difference(wrong, masked, SHAPE[-1])
        assert apart.worst > 0.01
        assert not tried.good(apart.worst)
        assert apart.rounded is None


def test_what_rounding_alone_does_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that throws away all digits but the last ones, when everything is kept."""

    class Sensitive(torch.nn.Module):
        policy = convad_fx.Policy()

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            mean = x.mean((1, 2, 3), keepdim=True)
            lost = (mean * 1e4 + x - mean * 1e4).flatten(1)  # some 1e-3 of x is rounded away
            kept = torch.where(mask, x, 0).flatten(1)
            return torch.where(mask.flatten(1).all(1, keepdim=True), lost, kept)

    masked: Any = Sensitive()
    right = copy.deepcopy(masked).double()

    def run(x: Tensor, mask: Tensor) -> Tensor:
        return right(x.double(), mask).float()

    def wrong(x: Tensor, mask: Tensor) -> Tensor:
        return run(x, mask) * 1.1

    monkeypatch.setattr(tried, "LIMIT", 1e-4)
    apart = tried.difference(run, masked, SHAPE[-1])
    assert apart.rounded is not None
    assert 1e-4 < apart.rounded < 0.1
    assert tried.difference(wrong, masked, SHAPE[-1]).worst > 0.05


def test_inputs_and_outputs_have_names(tmp_path: Path) -> None:
    session = session_of(toy("Residual"), tmp_path / "toy.onnx")
    (image, mask), (logits,) = session.get_inputs(), session.get_outputs()
    assert (image.name, mask.name, logits.name) == ("image", "mask", "logits")
    assert (image.type, mask.type) == ("tensor(float)", "tensor(bool)")
    assert image.shape == ["batch", 3, 8, 8]
    assert mask.shape == ["batch", 1, 8, 8]


def test_the_program_has_any_batch_and_one_size() -> None:
    program = convad_fx.export(toy("Residual")).module()
    for n in (1, 2, 17):
        x = torch.rand(n, *SHAPE[1:])
        assert len(program(x, torch.ones(n, 1, *SHAPE[2:], dtype=torch.bool))) == n
    with pytest.raises((AssertionError, RuntimeError)):
        program(torch.rand(1, 3, 16, 16), torch.ones(1, 1, 16, 16, dtype=torch.bool))


def test_double_precision() -> None:
    masked = toy("Residual").double()
    x, mask = tried.batch(2, SHAPE[-1])
    found = convad_fx.export(masked).module()(x.double(), mask)
    torch.testing.assert_close(found, masked(x.double(), mask))


def test_weights_may_lie_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    masked = toy("Residual")
    monkeypatch.setattr(program, "MAX_BYTES_IN_ONE_FILE", 0)
    path = tmp_path / "toy.onnx"
    path.write_text("old")
    files = convad_fx.export_onnx(masked, path)
    assert sorted(files) == sorted(tmp_path.iterdir()) == [path, tmp_path / "toy.onnx.data"]
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    x, mask = tried.batch(2, SHAPE[-1])
    (logits,) = session.run(None, {"image": x.numpy(), "mask": mask.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), masked(x, mask), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="expected a masked network, not Linear; convert"):
        convad_fx.export(nn.Linear(2, 2))  # type: ignore[arg-type]
    masked = toy("Residual")
    pytest.importorskip("onnxscript")
    with pytest.raises(Unavailable, match="cannot be written"):
        convad_fx.export_onnx(masked, tmp_path / "gone" / "toy.onnx")

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("it was\nnot possible")

    old = tmp_path / "old.onnx"
    old.write_text("old")
    with monkeypatch.context() as patched:
        patched.setattr(torch.onnx, "export", fails)
        with pytest.raises(UnsupportedModel, match="ONNX cannot hold Residual, masked: .*it was"):
            convad_fx.export_onnx(masked, old)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]
    with monkeypatch.context() as patched:
        patched.setattr(torch.export, "export", fails)
        with pytest.raises(UnsupportedModel, match="cannot capture Residual, masked: .*it was"):
            convad_fx.export(masked)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(Unavailable, match=r"needs the packages .*convad_fx\[onnx\]"):
        convad_fx.export_onnx(masked, old)


def test_from_the_command_line(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model, out = tmp_path / "demo.cfx", tmp_path / "demo.onnx"
    for args in (("compile", "demo", "-o", model, "--tau", "0.5"), ("export", model, "-o", out)):
        done = CliRunner().invoke(cli.app, [str(a) for a in args])
        assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"{out}: ")
    assert done.stderr == ""
    session = runtime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    x, mask = tried.batch(2, 96)
    (logits,) = session.run(None, {"image": x.numpy(), "mask": mask.numpy()})
    expected = convad_fx.load(model)(x, mask).detach()  # with the file's policy
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-3, atol=1e-3)
    done = CliRunner().invoke(cli.app, ["export", str(model), "-o", str(out), "--size", "9"])
    assert done.exit_code == 2
    assert "contains its weights and size; leave the options out" in done.stderr


# ---------------------------------------------------------------------------------------- the zoo
def told(name: str) -> dict[str, str]:
    """What the page says of a network."""
    rows = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines()]
    (row,) = (row for row in rows if row[0] == name)
    return dict(zip(("name", "plain", "torch.export", "ONNX"), row, strict=True))


@pytest.mark.filterwarnings("ignore")  # of the exporters
@pytest.mark.parametrize(
    "name",
    ["squeezenet1_1"]
    + [
        pytest.param(name, marks=pytest.mark.heavy)
        for name in ("shufflenet_v2_x0_5", "mobilenet_v3_small")
    ],
)
def test_torchvision_exports_as_the_page_says(name: str) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    found, page = tried.row(name), told(name)
    assert found["plain"] == page["plain"]
    for way in ("torch.export", "ONNX"):
        assert (
            tried.good(found[way]) == page[way].replace("e-", "").replace("e+", "").isdecimal()
        ), found


def test_the_page_says_how_many_were_tried() -> None:
    text = PAGE.read_text()
    listed = [name for name in tried.names() if f"\n| {name} | " in text]
    assert f"Of {len(listed)} networks tried ({len(tried.names())} there are)" in text


def test_the_table_tells_good_from_bad() -> None:
    rows = [
        {"name": "a", "plain": "yes", "torch.export": 0.0, "ONNX": 2e-7},
        {"name": "b", "plain": "no (X)", "torch.export": "cannot | be", "ONNX": 0.5},
    ]
    text = tried.table(rows)
    assert text.startswith(f"Of 2 networks tried ({len(tried.names())} there are), torch.export")
    assert "captures 1 as they are. Masked: torch.export 1, ONNX 1." in text
    assert text.splitlines()[-2:] == [
        "| a | yes | 0e+00 | 2e-07 |",
        "| b | no (X) | no: cannot / be | **5e-01** |",
    ]
