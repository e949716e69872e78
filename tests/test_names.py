"""Modules, parameters and buffers may have any name: those of our attributes, torch's, Python's."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import convad_fx
from convad_fx.errors import ArtifactError, UntraceableModel

#: Of `MaskedModule` and the code that it emits.
OURS = """policy report strategies engine evaluate _convad compile x mask kept gate image logits
    window_activity"""
#: Of torch.fx.GraphModule and torch.nn.Module.
TORCH = """graph _graph code _code meta recompile add_submodule print_readable _tracer_cls forward
    train eval to half type apply modules parameters state_dict get_submodule _modules _parameters
    _buffers __dict__ __class__ _forward_hooks dump_patches"""
#: Keywords and builtins of Python, and what is no identifier.
PYTHON = "class in lambda None def import print self torch getattr 0 12 a-b"
NAMES = tuple(f"{OURS} {TORCH} {PYTHON}".split())
assert len(NAMES) > 50

KINDS = ("module", "parameter", "buffer")


class Block(nn.Module):
    """Has one module, parameter or buffer of this name, used as torch allows for any name."""

    def __init__(self, name: str, kind: str, width: int) -> None:
        super().__init__()
        self.key = name
        if kind == "module":
            self._modules[name] = nn.Conv2d(width, width, 1)
        elif kind == "parameter":
            self._parameters[name] = nn.Parameter(torch.rand(width, 1, 1))
        else:
            self._buffers[name] = torch.rand(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.key in self._modules:
            return self._modules[self.key](x)
        return x * (self._parameters | self._buffers)[self.key]


class Net(Block):
    """The name at the top, and below it."""

    def __init__(self, name: str, kind: str) -> None:
        super().__init__(name, kind, 3)
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)
        self.inner = Block(name, KINDS[KINDS.index(kind) - 1], 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.conv(super().forward(x))).relu().mean((2, 3))


def network(name: str, kind: str) -> nn.Module:
    torch.manual_seed(0)
    return Net(name, kind).eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_any_name(name: str, kind: str, tmp_path: Path) -> None:
    model, x = network(name, kind), torch.rand(2, 3, 8, 8)
    masks = torch.rand(2, 1, 8, 8) > 0.5
    masked = convad_fx.convert(model, x)
    result = convad_fx.convert(network("other", kind), x)(x, masks)  # of the same values
    convad_fx.save(masked, tmp_path / "file")
    twins = (
        masked,
        convad_fx.load(tmp_path / "file"),
        copy.copy(masked),
        copy.deepcopy(masked),
        pickle.loads(pickle.dumps(masked)),
    )
    for twin in twins:
        assert torch.equal(twin(x), model(x))
        assert torch.equal(twin(x, masks), result)
        torch.testing.assert_close(twin.evaluate(x, masks).logits, result)
        assert list(twin.state_dict()) == list(model.state_dict())
        assert twin.report == masked.report
    assert masked.double()(x.double(), masks).dtype == torch.float64


@pytest.mark.parametrize("name", ["graph", "class", "policy", "self", "compile"])
def test_any_name_compiled(name: str) -> None:
    model, x = network(name, "module"), torch.rand(2, 3, 8, 8)
    assert convad_fx.check(model, x).ok
    masked = convad_fx.convert(model, x)
    masked.compile(backend="eager", fullgraph=True)
    torch.testing.assert_close(masked(x), model(x))
    torch.compiler.reset()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["policy", "evaluate", "engine", "mask", "x", "self", "kept", "0"])
def test_any_name_captured_by_torch_export(name: str, kind: str) -> None:
    model, x = network(name, kind), torch.rand(2, 3, 8, 8)
    masked = convad_fx.convert(model, x, front_end="export")
    assert torch.equal(masked(x), model(x))
    assert list(masked.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("name", ["graph", "class", "train", "forward"])
def test_names_that_torch_export_does_not_take(name: str) -> None:
    message = rf"torch.export cannot capture Net .*; {name} has a name that .*rename it, or pass"
    with pytest.raises(UntraceableModel, match=message):
        convad_fx.convert(network(name, "module"), torch.rand(2, 3, 8, 8), front_end="export")


@pytest.mark.parametrize("name", ["a b", 'a"b', "a\\b", "a'b", "größe"])
def test_names_that_a_file_does_not_hold(name: str, tmp_path: Path) -> None:
    model, x = network(name, "module"), torch.rand(2, 3, 8, 8)
    masked = convad_fx.convert(model, x)
    assert torch.equal(pickle.loads(pickle.dumps(masked))(x), model(x))
    with pytest.raises(ArtifactError, match="use letters, digits, _ and - in the names"):
        convad_fx.save(masked, tmp_path / "file")
