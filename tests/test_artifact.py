"""Law 7: a network that was saved and loaded is the network that was saved; and bad files."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
import textwrap
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import example, given, settings
from strategies import Conv, LinearHead, Network, build, images, networks, policies, seeds
from torch import Tensor, nn

import convad_fx
from convad_fx.artifact import allowed, dataclass_codec, describe, is_artifact
from convad_fx.artifact import file as artifact_file
from convad_fx.artifact.file import VERSION
from convad_fx.errors import ArtifactError, ConvadError

DEFAULT = SimpleNamespace(
    tau=0.0, attribution="positional", input="gate", pool="dilute", fill="zero"
)


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2, padding=1)
        self.again = nn.Conv2d(4, 4, 1)
        self.fc = nn.Linear(4, 5)
        self.register_buffer("shift", torch.rand(1, 4, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x)) + self.shift
        return self.fc(self.again(self.again(x)).mean((2, 3)))


def tiny(model: nn.Module | None = None) -> convad_fx.MaskedModule:
    torch.manual_seed(0)
    return convad_fx.convert((model or Tiny()).eval(), torch.zeros(1, 3, 16, 16))


def some_masks(n: int, *grid: int) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    masks = torch.rand(n, 1, *grid, generator=generator) < 0.5
    masks[0] = False
    masks[0][(0, *(slice(n // 4, n // 2) for n in grid))] = True
    return masks


def assert_reloads(masked: convad_fx.MaskedModule, path: Path, x: Tensor) -> Any:
    convad_fx.save(masked, path)
    loaded = convad_fx.load(path)
    masks = some_masks(3, *x.shape[2:])
    with torch.no_grad():
        assert torch.equal(loaded(x), masked(x)), "all kept"
        # more masks than the example had images
        assert torch.equal(loaded(x[:1], masks), masked(x[:1], masks)), "three masks"
        expected, actual = masked.evaluate(x[:1], masks), loaded.evaluate(x[:1], masks)
    assert torch.equal(actual.logits, expected.logits), "on boxes"
    assert actual.area == expected.area
    assert list(loaded.state_dict()) == list(masked.state_dict())
    assert [n for n, _ in loaded.named_buffers()] == [n for n, _ in masked.named_buffers()]
    assert (loaded.policy, loaded.report) == (masked.policy, masked.report)
    for (name, a), (_, b) in zip(
        masked.named_parameters(remove_duplicate=False),
        loaded.named_parameters(remove_duplicate=False),
        strict=True,
    ):
        assert (a.stride(), a.requires_grad, a.dtype) == (b.stride(), b.requires_grad, b.dtype)
        assert a is not b, name
    again = path.with_suffix(".again")
    convad_fx.save(loaded, again)
    assert again.read_bytes() == path.read_bytes(), "saving what was loaded gives other bytes"
    return loaded


# ------------------------------------------------------------------------------------------ law 7
USUAL = Network(3, (9, 12), (Conv(4, stride=(2, 2, 2), padding="half"),), LinearHead(3))


@settings(max_examples=12)
@given(networks(max_blocks=4), seeds, policies())
@example(USUAL, 0, DEFAULT)
def test_random_networks_come_back(spec: Network, seed: int, policy: SimpleNamespace) -> None:
    x = images(spec, seed, batch=2)
    masked = convad_fx.convert(build(spec, seed), x[:1], convad_fx.Policy(**vars(policy)))
    with tempfile.TemporaryDirectory() as folder:
        loaded = assert_reloads(masked, Path(folder, "a.cfx"), x)
    assert loaded.policy.tau == policy.tau


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v3_small", "densenet121", "convnext_tiny", "googlenet"]
)
def test_networks_of_torchvision_come_back(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = {"init_weights": False} if name == "googlenet" else {}
    model = torchvision.models.get_model(name, **options).eval()
    x = torch.rand(2, 3, 64, 64)
    path = tmp_path / "a.cfx"
    assert_reloads(convad_fx.convert(model, x[:1]), path, x)
    size = sum(t.nbytes for t in model.state_dict().values())
    assert path.stat().st_size < 1.05 * size


def test_a_graph_of_torch_export_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 3, 64, 64)
    masked = convad_fx.convert(torchvision.models.resnet18().eval(), x[:1], front_end="export")
    loaded = assert_reloads(masked, tmp_path / "a.cfx", x)
    assert loaded.report.front_end == "torch.export"


def test_tied_strided_and_shared_memory_come_back(tmp_path: Path) -> None:
    model = Tiny().eval().to(memory_format=torch.channels_last)
    model.conv.weight.requires_grad_(False)
    model.other = nn.Linear(4, 5)  # no graph calls it, yet its keys belong to the model
    model.other.weight = model.fc.weight
    both = torch.rand(10)
    model.other.bias, model.fc.bias = nn.Parameter(both[:5]), nn.Parameter(both[5:])
    masked = tiny(model)
    assert masked.conv.weight.stride() != Tiny().conv.weight.stride()
    loaded = assert_reloads(masked, tmp_path / "a.cfx", torch.rand(2, 3, 16, 16))
    assert loaded.other.weight is loaded.fc.weight


def test_double_precision_comes_back_and_moves(tmp_path: Path) -> None:
    masked = tiny().double()
    loaded = assert_reloads(masked, tmp_path / "a.cfx", torch.rand(2, 3, 16, 16).double())
    x, masks = torch.rand(1, 3, 16, 16), some_masks(4, 16, 16)
    assert torch.equal(loaded.float()(x, masks), masked.float()(x, masks))


def test_a_fresh_process_needs_no_source(tmp_path: Path) -> None:
    source, path = tmp_path / "their_model.py", tmp_path / "a.cfx"
    source.write_text(
        textwrap.dedent("""
        from torch import nn
        class Theirs(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 2)
            def forward(self, x):
                return self.fc(self.conv(x).relu().amax((2, 3)))
        """)
    )
    begin = "import torch, convad_fx; torch.manual_seed(0); "
    ask = (
        "x, mask = torch.ones(1, 3, 8, 8), torch.arange(192).view(3, 1, 8, 8) % 3 > 0; "
        "print(masked(x, mask).tolist(), masked.evaluate(x, mask).logits.tolist())"
    )
    made = begin + (
        "import their_model; masked = convad_fx.convert(their_model.Theirs().eval(), "
        f"torch.zeros(1, 3, 8, 8)); convad_fx.save(masked, {str(path)!r}); "
    )
    first = _python(made + ask, tmp_path)
    source.unlink()
    second = _python(begin + f"masked = convad_fx.load({str(path)!r}); " + ask, Path.cwd())
    assert first == second
    assert len(json.loads(first.splitlines()[0].split("] [")[0] + "]")) == 3


def _python(code: str, folder: Path) -> str:
    root = str(Path(convad_fx.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_takes_it(tmp_path: Path) -> None:
    masked, x, masks = tiny(), torch.rand(1, 3, 16, 16), some_masks(4, 16, 16)
    convad_fx.save(masked, tmp_path / "a.cfx")
    loaded = convad_fx.load(tmp_path / "a.cfx", "cuda")
    torch.testing.assert_close(loaded(x.cuda(), masks.cuda()).cpu(), masked(x, masks))
    convad_fx.save(loaded, tmp_path / "b.cfx")
    assert torch.equal(convad_fx.load(tmp_path / "b.cfx")(x, masks), masked(x, masks))


# --------------------------------------------------------------------------------- what is inside
def test_a_file_says_what_it_is(tmp_path: Path) -> None:
    masked, path = tiny(), tmp_path / "a.cfx"
    steps = {"size": [16, 16], "mean": [0.5, 0.25, 0.1]}
    names = ["a", "ß", "c", "d", "e"]
    convad_fx.save(masked, path, preprocessing=steps, class_names=names)
    about = describe(path)
    assert about.policy == masked.policy
    assert about.report == masked.report
    assert about.versions["torch"] == torch.__version__
    assert (about.preprocessing, about.class_names) == (steps, tuple(names))
    assert is_artifact(path)


def test_findings_come_back(tmp_path: Path) -> None:
    class Sorted(Tiny):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(torch.sort(x, dim=3)[0])

    model = Sorted().eval()
    masked = convad_fx.convert(model, torch.zeros(1, 3, 16, 16), on_finding="ignore")
    assert masked.report.findings
    loaded = assert_reloads(masked, tmp_path / "a.cfx", torch.rand(2, 3, 16, 16))
    assert str(loaded.report) == str(masked.report)


def test_what_a_file_may_call() -> None:
    for name in (
        "os.system",
        "builtins.eval",
        "builtins.exec",
        "builtins.open",
        "builtins.__import__",
        "torch.load",
        "torch.save",
        "torch.from_file",
        "torch.compile",
        "torch.hub.load",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.set_.source_Storage",
        "torch.ops.load_library",
        "operator.methodcaller",
        "operator.attrgetter",
        "operator.call",
        "torch.nn.functional.boolean_dispatch",
        "subprocess.run",
    ):
        with pytest.raises(ArtifactError, match="which is not allowed"):
            allowed.function_of(name)
    for name in (
        "backward",
        "register_hook",
        "__reduce__",
        "storage",
        "numpy",
        "apply_",
        "data_ptr",
    ):
        with pytest.raises(ArtifactError, match="which is not allowed"):
            allowed.method_of(name)
    for name in ("torch.nn.DataParallel", "torch.nn.Module", "os.path", "torch.nn.functional"):
        with pytest.raises(ArtifactError, match="which is not allowed"):
            allowed.layer_of(name)
    for function in (torch.relu, F.max_pool2d, F.gelu, math.floor, torch.ops.aten.add.Tensor):
        assert allowed.function_of(allowed.name_of(function, "")) is function


# -------------------------------------------------------------------------------------- bad files
def test_what_cannot_be_saved(tmp_path: Path) -> None:
    path = tmp_path / "a.cfx"
    with pytest.raises(ArtifactError, match="expected a masked network, not a Tiny; pass what"):
        convad_fx.save(Tiny(), path)  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match="preprocessing cannot be written as JSON"):
        convad_fx.save(tiny(), path, preprocessing={"step": object()})
    hooked = tiny()
    hooked.conv.register_forward_hook(lambda *_: None)
    with pytest.raises(ArtifactError, match="conv: has forward hooks.*remove the hooks"):
        convad_fx.save(hooked, path)
    with pytest.raises(ArtifactError, match=r"cannot be written \(No such file"):
        convad_fx.save(tiny(), tmp_path / "none" / "a.cfx")
    assert list(tmp_path.iterdir()) == []


TIMM = """
    mobilenetv3_small_050 tf_mobilenetv3_small_minimal_100 nf_resnet26 tf_mixnet_s
""".split()  # noqa: SIM905


@pytest.mark.parametrize(
    "name", [*TIMM[:2], *(pytest.param(name, marks=pytest.mark.heavy) for name in TIMM[2:])]
)
def test_layers_of_timm_come_back_as_functions(name: str, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    masked = convad_fx.convert(timm.create_model(name).eval(), torch.zeros(1, 3, 64, 64))
    for buffer_name, buffer in masked.named_buffers():
        if "running" in buffer_name:
            buffer.uniform_(0.5, 1.5)
    loaded = assert_reloads(masked, tmp_path / "a.cfx", torch.rand(2, 3, 64, 64))
    homes = {type(module).__module__.partition(".")[0] for module in loaded.modules()}
    assert homes <= {"torch", "convad_fx"}


def test_a_layer_of_another_package_is_named(tmp_path: Path) -> None:
    norm_act = pytest.importorskip("timm.layers.norm_act")

    class Draws(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return z if z.sum() > 0 else -z

    layer = norm_act.BatchNormAct2d(4)
    masked = tiny(nn.Sequential(nn.Conv2d(3, 4, 3), layer, nn.Flatten(), nn.Linear(4 * 14**2, 5)))
    masked.get_submodule("1").act = Draws()
    with pytest.raises(ArtifactError, match=r"1: is a timm\.layers.*cannot be traced.*export"):
        convad_fx.save(masked, tmp_path / "a.cfx")
    masked.get_submodule("1").register_forward_hook(lambda *_: None)
    with pytest.raises(ArtifactError, match=r"1: is a timm\.layers.*whose source would be needed"):
        convad_fx.save(masked, tmp_path / "a.cfx")
    assert not (tmp_path / "a.cfx").exists()


def test_no_such_file_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"none\.cfx cannot be read \(No such file"):
        convad_fx.load(tmp_path / "none.cfx")
    foreign = tmp_path / "foreign"
    foreign.write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR." * 9)
    with pytest.raises(ArtifactError, match="foreign is not an artifact.*pass a file"):
        convad_fx.load(foreign)
    torch.save(Tiny().state_dict(), foreign)
    with pytest.raises(ConvadError, match="foreign is not an artifact; pass a file"):
        describe(foreign)
    assert not is_artifact(foreign)
    convad_fx.save(tiny(), foreign)
    with pytest.raises(ArtifactError, match="no device 'warp9' here"):
        convad_fx.load(foreign, "warp9")


def test_truncated_files(tmp_path: Path) -> None:
    path = tmp_path / "a.cfx"
    convad_fx.save(tiny(), path)
    whole = path.read_bytes()
    for size in (0, 1, 40, len(whole) // 2, len(whole) - 70, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(
            ArtifactError, match=r"a\.cfx(:| is) .*(not an artifact|cut short|damaged)"
        ):
            convad_fx.load(path)


def test_a_changed_byte_is_found_or_changes_nothing(tmp_path: Path) -> None:
    path, masked = tmp_path / "a.cfx", tiny()
    convad_fx.save(masked, path)
    whole = path.read_bytes()
    x, masks = torch.rand(1, 3, 16, 16), some_masks(3, 16, 16)
    expected, refused = masked(x, masks), 0
    places = range(0, len(whole), 97)
    for place in places:
        path.write_bytes(
            whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :]
        )
        try:
            loaded = convad_fx.load(path)
        except ArtifactError:
            refused += 1
        else:  # a field of the zip that nobody reads, such as a date
            assert torch.equal(loaded(x, masks), expected), f"byte {place}"
    assert refused > 0.9 * len(places)


def _forge(path: Path, change: Any, digests: bool = True) -> None:
    """Write the file anew after `change(parts)`, with digests that fit."""
    with zipfile.ZipFile(path) as archive:
        raw = {name: archive.read(name) for name in archive.namelist()}
        comment = archive.comment
    parts = {name: json.loads(raw[name]) for name in ("manifest.json", "network.json")}
    change(parts)
    raw["network.json"] = json.dumps(parts["network.json"]).encode()
    manifest = parts["manifest.json"]
    if digests:
        digest = hashlib.sha256(raw["network.json"]).hexdigest()
        manifest["parts"]["network.json"]["sha256"] = digest
    raw["manifest.json"] = json.dumps(manifest, separators=(",", ":")).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in raw.items():
            archive.writestr(name, part)
        digest = hashlib.sha256(raw["manifest.json"]).hexdigest()
        archive.comment = digest.encode() if digests else comment


def _row(parts: Any, op: str) -> Any:
    return next(row for row in parts["network.json"]["graphs"]["masked"] if row[0] == op)


EVIL = "__import__('pathlib').Path('hacked').touch()"
FORGERIES = {
    "a function": lambda p: _row(p, "call_function").__setitem__(2, "os.system"),
    "a name": lambda p: _row(p, "call_function").__setitem__(1, f"x = {EVIL}\n"),
    "an input": lambda p: _row(p, "placeholder").__setitem__(2, f"x={EVIL}"),
    "an option": lambda p: _row(p, "call_function").__setitem__(
        4, {f"kernel={EVIL}, x": 1, "channels": 3}
    ),
    "a layer's path": lambda p: _row(p, "call_module").__setitem__(2, f'conv"), {EVIL}, ("'),
    "a layer's class": lambda p: p["network.json"]["modules"][0].update(layer="os.path"),
    "a place as a layer": lambda p: p["network.json"]["modules"][0].pop("layer"),
    "a layer's insides": lambda p: p["network.json"]["modules"][0]["attributes"].update(
        _forward_hooks={"dict": {}}
    ),
    "a layer's method": lambda p: p["network.json"]["modules"][0]["attributes"].update(
        forward={"function": "builtins.eval"}
    ),
    **{
        f"a layer's {name}": lambda p, name=name: p["network.json"]["modules"][0][
            "attributes"
        ].update({name: {"function": "torch.relu"}})
        for name in ("forward", "_conv_forward", "_call_impl", "_compiled_call_impl", "__call__")
    },
    "getattr as a value": lambda p: p["network.json"]["modules"][0]["attributes"].update(
        activation={"function": "builtins.getattr"}
    ),
    "a function to call": lambda p: p["network.json"]["graphs"]["masked"].insert(
        1, ["call_function", "g", "builtins.max", [[EVIL]], {"key": {"node": 0}}]
    ),
    "a circle": lambda p: p["network.json"]["modules"][0].update(children={"me": 0}),
    "a parameter": lambda p: p["network.json"]["modules"][0]["parameters"].update(weight=999),
    "strides": lambda p: p["network.json"]["tensors"][0].update(strides=[1, 1, 1, 1 << 40]),
    "an operation": lambda p: _row(p, "call_function").__setitem__(0, "run"),
    "an operand": lambda p: _row(p, "call_module").__setitem__(3, [{"node": 999}]),
    "a value": lambda p: _row(p, "call_module").__setitem__(3, [{"pickle": "gASVBAAA"}]),
    "a dtype": lambda p: _row(p, "call_module").__setitem__(3, [{"torch": "load"}]),
    "an attribute": lambda p: p["network.json"]["graphs"]["masked"].insert(
        1, ["call_function", "g", "builtins.getattr", [{"node": 0}, "__class__"]]
    ),
    "a method": lambda p: p["network.json"]["graphs"]["masked"].insert(
        1, ["call_method", "g", "__reduce_ex__", [{"node": 0}, 2]]
    ),
    "a buffer": lambda p: p["network.json"]["graphs"]["masked"].insert(
        1, ["get_attr", "g", "__class__", []]
    ),
    "depth": lambda p: _row(p, "call_module").__setitem__(3, _deep(400)),
    "the policy": lambda p: p["manifest.json"]["policy"].update(tau=7),
    "the report": lambda p: p["manifest.json"]["report"].update(model="X:\n    pass\nimport os"),
    "no parts": lambda p: p["network.json"].clear(),
    "no layer's fields": lambda p: p["network.json"]["modules"][0].pop("buffers"),
    "a flag": lambda p: p["network.json"]["tensors"][0].update(requires_grad=1),
    "no strategies": lambda p: p["network.json"].pop("strategies"),
    "a plan's field": lambda p: _plan(p, "patch").update(more=1),
    "no plan's field": lambda p: _plan(p, "tile").pop("why"),
    "a graph in a plan": lambda p: _plan(p, "box").update(values=[]),
    "a number as a string": lambda p: _costs(p)[0].update(each="3"),
    "a bool as a number": lambda p: _costs(p)[0].update(reach=[True, False]),
    "a fraction as an integer": lambda p: _costs(p)[0].update(reach=[0.5, 0]),
    "not a number": lambda p: _plan(p, "box")["work"].update(total=math.nan),
    "infinity": lambda p: _costs(p)[0].update(each=math.inf),
    "a huge number": lambda p: _costs(p)[0].update(reach=[1 << 70, 0]),
    "a negative size": lambda p: _plan(p, "patch").update(tile=[-16, 16]),
    "no stride": lambda p: _costs(p)[0].update(strides=[0, 1]),
    "a string as a list": lambda p: _plan(p, "box").update(leaves=["ab"]),
    "an object as a list": lambda p: _plan(p, "box").update(levels={"axes": 1}),
    "a list as an object": lambda p: p["network.json"]["strategies"].update(box=[1]),
    "the policy's field": lambda p: p["manifest.json"]["policy"].update(more=1),
    "the policy's number": lambda p: p["manifest.json"]["policy"].update(tau="0.5"),
    "the report's count": lambda p: p["manifest.json"]["report"].update(gated="3"),
    "a version": lambda p: p["manifest.json"]["written_by"].update(torch=["2"]),
    "no versions": lambda p: p["manifest.json"].pop("written_by"),
}  # fmt: skip


def _plan(parts: Any, strategy: str) -> Any:
    return parts["network.json"]["strategies"][strategy]


def _costs(parts: Any) -> Any:
    return _plan(parts, "box")["work"]["costs"]


def _deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return [{"slice": value}]


@pytest.mark.parametrize("what", FORGERIES)
def test_forged_files_are_refused_and_nothing_is_run(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.cfx"
    convad_fx.save(tiny(), path)
    _forge(path, FORGERIES[what])
    with pytest.raises(ArtifactError, match=r"a\.cfx"):
        convad_fx.load(path)
    assert list(tmp_path.iterdir()) == [path]


def test_the_place_of_a_wrong_value_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.cfx"
    convad_fx.save(tiny(), path)
    _forge(path, FORGERIES["a number as a string"])
    where = r"Strategies\.box\.work\.costs"
    with pytest.raises(ArtifactError, match=rf"a finite number, not '3' @ {where}"):
        convad_fx.load(path)


def test_a_wrong_value_deep_inside_a_plan_is_refused() -> None:
    model = torchvision.models.alexnet().eval()
    plans = convad_fx.convert(model, torch.zeros(1, 3, 128, 128)).strategies.with_graphs({})
    assert plans.tile.stages

    def data() -> Any:
        return json.loads(json.dumps(dataclass_codec.unstructure(plans)))

    assert dataclass_codec.structure(data(), type(plans)) == plans
    for change in (
        lambda stage: stage["depends"][0].update(more=1),
        lambda stage: stage["depends"][0].pop("axes"),
        lambda stage: stage["depends"][0].update(axes=[2, "3"]),
        lambda stage: stage["depends"][0].update(strides=[2, -2]),
        lambda stage: stage.update(depends=[None]),
        lambda stage: stage.update(work="many"),
        lambda stage: stage.update(channels=True),
        lambda stage: stage.update(reach=[[1, 1, 1], [1, 1]]),
    ):
        changed = data()
        change(changed["tile"]["stages"][1])
        with pytest.raises(ArtifactError, match=r"expected .* @ Strategies\.tile\.stages"):
            dataclass_codec.structure(changed, type(plans))


def _escape(parts: dict[str, Any]) -> None:
    """`getattr` as a layer's forward reaches any builtin; `max` calls it."""
    network = parts["network.json"]
    root = network["modules"].pop()
    root["children"]["g"] = len(network["modules"])
    empty = {"parameters": {}, "buffers": {}, "children": {}}
    attributes = {"forward": {"function": "builtins.getattr"}}
    layer = {"layer": "torch.nn.Identity", "attributes": attributes, **empty}
    network["modules"] += [layer, root]
    rows = network["graphs"]["masked"]
    output, n = rows.pop(), len(rows)
    rows += [
        ["call_module", "a", "g", [{"node": 0}, "register_hook"]],
        ["call_module", "b", "g", [{"node": n}, "__globals__"]],
        ["call_function", "c", "operator.getitem", [{"node": n + 1}, "__builtins__"]],
        ["call_function", "d", "operator.getitem", [{"node": n + 2}, "eval"]],
        ["call_function", "e", "builtins.max", [[EVIL]], {"key": {"node": n + 3}}],
        output,
    ]


def test_no_way_leads_from_a_layer_to_the_interpreter(tmp_path: Path) -> None:
    path = tmp_path / "a.cfx"
    convad_fx.save(tiny(), path)
    _forge(path, _escape)
    with pytest.raises(ArtifactError, match=r"'forward' of a torch\.nn\.Identity would replace"):
        convad_fx.load(path)


@pytest.mark.parametrize(
    "kind", [nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.GELU, nn.LSTM]
)
def test_layers_have_no_attributes_that_their_classes_define(kind: type[nn.Module]) -> None:
    given = {nn.MultiheadAttention: (8, 2), nn.TransformerEncoderLayer: (8, 2), nn.LSTM: (8, 8)}
    layer = kind(*given.get(kind, ()))
    own = set(layer.__dict__) - set(nn.Module().__dict__)
    assert [allowed.check_attribute(kind, name) for name in sorted(own)] == sorted(own)


def test_a_forgery_that_changes_nothing_loads(tmp_path: Path) -> None:
    path = tmp_path / "a.cfx"
    convad_fx.save(tiny(), path)
    _forge(path, lambda parts: None)
    assert convad_fx.load(path).policy == convad_fx.Policy()


@pytest.mark.parametrize("part", ["manifest.json", "network.json"])
def test_tampered_parts_are_named(part: str, tmp_path: Path) -> None:
    path = tmp_path / "a.cfx"
    convad_fx.save(tiny(), path)
    _forge(path, lambda parts: parts[part].update(more=1), digests=False)
    with pytest.raises(ArtifactError, match=rf"{part} was changed or damaged"):
        convad_fx.load(path)


@pytest.mark.parametrize(("version", "hint"), [
    (VERSION + 1, "update convad_fx"), (VERSION - 1, "convert the network and save it again"),
])  # fmt: skip
def test_another_version_says_so(version: int, hint: str, tmp_path: Path) -> None:
    path = tmp_path / "a.cfx"
    convad_fx.save(tiny(), path)
    _forge(path, lambda parts: parts["manifest.json"].update(version=version), digests=False)
    with pytest.raises(ArtifactError, match=f"version {version}.*expected {VERSION}; {hint}"):
        convad_fx.load(path)


def test_packed_and_more_parts_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.cfx"
    convad_fx.save(tiny(), path)
    whole = path.read_bytes()
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("more.py", "import os")
    with pytest.raises(ArtifactError, match=r"has the parts .*more\.py"):
        convad_fx.load(path)
    path.write_bytes(whole)
    with zipfile.ZipFile(path) as archive:
        raw, comment = {n: archive.read(n) for n in archive.namelist()}, archive.comment
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, part in raw.items():
            archive.writestr(name, part)
        archive.comment = comment
    with pytest.raises(ArtifactError, match=r"manifest\.json is compressed"):
        convad_fx.load(path)


# ------------------------------------------------------------------------------- interrupted saves
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
def test_an_interrupted_save_leaves_the_old_file(
    where: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, old, new = tmp_path / "a.cfx", tiny(), tiny().double()
    convad_fx.save(old, path)
    before = path.read_bytes()

    def fail(*args: Any) -> None:
        if where == "write":
            args[0].write(b"some")
        raise error

    home, name = (artifact_file, "_write_parts") if where == "write" else (os, where)
    with monkeypatch.context() as patch:
        patch.setattr(home, name, fail)
        expected = ArtifactError if isinstance(error, OSError) else KeyboardInterrupt
        with pytest.raises(expected) as caught:
            convad_fx.save(new, path)
    if isinstance(error, OSError):
        assert "No space left on device" in str(caught.value)
        assert "an old file at this path is unchanged" in str(caught.value)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    convad_fx.save(new, path)
    assert convad_fx.load(path).fc.weight.dtype == torch.float64


_SAVER = """
import sys, torch, convad_fx
masked = convad_fx.load(sys.argv[1])
print("ready", flush=True)
while True:
    convad_fx.save(masked, sys.argv[2])
"""


@pytest.mark.heavy
@pytest.mark.skipif(os.name == "nt", reason="Windows does not replace a file that is being read")
def test_saves_at_once_that_are_killed_leave_a_whole_file(tmp_path: Path) -> None:
    path, networks = tmp_path / "a.cfx", [tiny(), tiny().double()]
    environment = {**os.environ, "PYTHONPATH": str(Path(convad_fx.__file__).parents[1])}
    whole, savers = set(), []
    for number, masked in enumerate(networks):
        source = tmp_path / f"{number}.cfx"
        convad_fx.save(masked, source)
        whole.add(source.read_bytes())
        savers.append(
            subprocess.Popen(
                [sys.executable, "-c", _SAVER, str(source), str(path)],
                env=environment,
                stdout=subprocess.PIPE,
            )
        )
    try:
        for saver in savers:
            assert saver.stdout is not None
            assert saver.stdout.readline() == b"ready\n"
        while not path.exists():
            time.sleep(0.01)
        seen, reads, deadline = set(), 0, time.monotonic() + 60
        while reads < 300 or (seen != whole and time.monotonic() < deadline):
            now = path.read_bytes()
            assert now in whole
            seen.add(now)
            reads += 1
            time.sleep(0.002)
        assert seen == whole, "the two did not save in turn"
    finally:
        for saver in savers:
            saver.kill()  # SIGKILL, wherever it is
            saver.communicate()
    assert path.read_bytes() in whole
    convad_fx.load(path)


def test_saving_through_a_link_keeps_the_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real.cfx", tmp_path / "link.cfx"
    convad_fx.save(tiny(), real)
    link.symlink_to(real)
    convad_fx.save(tiny().double(), link)
    assert link.is_symlink()
    assert convad_fx.load(real).fc.weight.dtype == torch.float64
