"""Theorem 1 over modules as people write them: accepted and bit-equal, or refused with a reason.

Each row is a way in which Python code outside the graph can decide what a network computes.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel
from torchvision import transforms
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms._presets import ImageClassification

import convad_fx
from convad_fx.compiler.capture.trace import trace
from convad_fx.compiler.capture.verify import compare
from convad_fx.errors import ConvadError

MEAN, STD = (0.48, 0.45, 0.4), (0.23, 0.22, 0.2)
IMAGE = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    ).eval()  # fmt: skip


class Forward(nn.Module):
    """A network whose forward is this function of the module and the image."""

    def __init__(self, forward: Callable[[Forward, Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.function = network(), forward
        self.register_buffer("mean", torch.tensor(MEAN).reshape(3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).reshape(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def only_tensors(self: Forward, x: Tensor) -> Tensor:
    if isinstance(x, Tensor):
        x = x * 2
    return self.net(x)


def by_is_tensor(self: Forward, x: Tensor) -> Tensor:
    return self.net(x - 1 if torch.is_tensor(x) else x)


def without_gradient(self: Forward, x: Tensor) -> Tensor:
    with torch.no_grad():
        x = self.net[:3](x)
    return self.net[3:](x)


def with_gradient(self: Forward, x: Tensor) -> Tensor:
    with torch.enable_grad():
        return self.net(x)


def autocast_off(self: Forward, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return self.net(x)


def sizes_are_no_tensors(self: Forward, x: Tensor) -> Tensor:
    height = x.shape[-1]
    if isinstance(height, Tensor):
        x = x * 0
    return self.net(F.interpolate(x, size=(height, height)))


class LoRA(nn.Module):
    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner, self.scale = inner, 0.5
        self.down, self.up = nn.Linear(inner.in_features, 2), nn.Linear(2, inner.out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.scale * self.up(self.down(x))


class Lightning(nn.Module):
    """What a LightningModule looks like from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.log_every, self.criterion = network(), 10, nn.CrossEntropyLoss()

    @property
    def trainer(self) -> object:
        raise RuntimeError("not attached to a Trainer")

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        return self.criterion(self(batch[0]), batch[1])


class AnyArguments(nn.Module):
    """As peft's models are written."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Tensor, **kwargs: object) -> Tensor:
        return self.inner(*args, **kwargs)


def with_lora() -> nn.Module:
    net = network()
    net[-1] = LoRA(net[-1])
    return net.eval()


def with_weight_norm() -> nn.Module:
    net = network()
    parametrizations.weight_norm(net[0])
    return net


def with_pruning() -> nn.Module:
    net = network()
    prune.l1_unstructured(net[0], "weight", amount=0.5)
    return net


def doubling_hook() -> nn.Module:
    net = network()
    net[1].register_forward_hook(lambda module, inputs, output: output * 2)
    return net


def doubling_pre_hook() -> nn.Module:
    net = network()
    net[3].register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
    return net


#: Preprocessing as a module, of both generations of torchvision's transforms.
TRANSFORMS: dict[str, Callable[[ModuleType], nn.Module]] = {
    "Normalize": lambda t: t.Normalize(MEAN, STD),
    "Normalize list": lambda t: t.Normalize(list(MEAN), list(STD)),
    "Resize": lambda t: t.Resize((20, 16)),
    "Resize int": lambda t: t.Resize(20),
    "Resize larger": lambda t: t.Resize((30, 40)),
    "Resize without antialias": lambda t: t.Resize(20, antialias=False),
    "Resize bicubic": lambda t: t.Resize(20, interpolation=InterpolationMode.BICUBIC),
    "Resize nearest": lambda t: t.Resize(20, interpolation=InterpolationMode.NEAREST_EXACT),
    "CenterCrop": lambda t: t.CenterCrop(16),
    "CenterCrop larger": lambda t: t.CenterCrop(30),
    "Pad": lambda t: t.Pad(2, padding_mode="reflect"),
    "ConvertImageDtype": lambda t: t.ConvertImageDtype(torch.float32),
    "Grayscale": lambda t: nn.Sequential(t.Grayscale(), nn.Conv2d(1, 3, 1)),
    "Grayscale of three": lambda t: t.Grayscale(3),
    "several": lambda t: nn.Sequential(
        t.Resize(20), t.CenterCrop(16), t.ConvertImageDtype(torch.float32), t.Normalize(MEAN, STD)
    ),
}


@pytest.mark.parametrize("generation", [transforms, v2], ids=["v1", "v2"])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_before_the_network(name: str, generation: ModuleType) -> None:
    assert_exact_and_hiding(nn.Sequential(TRANSFORMS[name](generation), network()))


def assert_exact_and_hiding(model: nn.Module) -> None:
    """Equal bit for bit with everything kept, and values of hidden pixels never matter."""
    masked = convad_fx.convert(model.eval(), IMAGE[:1])
    mask = torch.ones(2, 1, 24, 24, dtype=torch.bool)
    mask[0, :, 3:14, 5:], mask[1, :, :, ::3] = False, False
    with torch.no_grad():
        for batch in (1, 2):
            assert torch.equal(masked(IMAGE[:batch]), model(IMAGE[:batch]))
        hidden = masked(IMAGE, mask)
        assert not torch.equal(hidden, model(IMAGE))
        for value in (torch.nan, 1e30):
            assert torch.equal(masked(torch.where(mask, IMAGE, value), mask), hidden)


def test_modules_of_kornia() -> None:
    kornia = pytest.importorskip("kornia")
    for module in (
        kornia.enhance.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
        kornia.augmentation.Normalize(torch.tensor(MEAN), torch.tensor(STD), p=1.0),
        kornia.geometry.Resize((20, 20), antialias=True),
        nn.Sequential(kornia.color.RgbToGrayscale(), nn.Conv2d(1, 3, 1)),
    ):
        assert_exact_and_hiding(nn.Sequential(module, network()))


def test_a_lightning_module_that_was_trained() -> None:
    lightning = pytest.importorskip("lightning")

    class Classifier(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.model, self.criterion = network(), nn.CrossEntropyLoss()

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x)

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            loss = self.criterion(self(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    model = Classifier()
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(IMAGE, torch.arange(2)))
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = lightning.Trainer(max_steps=1, accelerator="cpu", **dict.fromkeys(off, False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Lightning's own
        trainer.fit(model, data)
    assert_exact_and_hiding(model)


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"modules_to_save": ["1"]}])
def test_a_network_that_peft_has_wrapped(options: dict[str, object]) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["0", "7"], init_lora_weights=False, **options)
    assert_exact_and_hiding(peft.get_peft_model(network(), config))


def exported() -> nn.Module:
    return torch.export.export(network(), (IMAGE,)).module()


ACCEPTED: dict[str, Callable[[], nn.Module]] = {
    "weights.transforms()": lambda: nn.Sequential(
        ImageClassification(crop_size=16, resize_size=20), network()
    ),
    "any arguments": lambda: AnyArguments(network()),
    "buffers": lambda: Forward(lambda self, x: self.net((x - self.mean) / self.std)),
    "interpolate": lambda: Forward(lambda self, x: self.net(F.interpolate(x, scale_factor=2))),
    "isinstance": lambda: Forward(only_tensors),
    "is_tensor": lambda: Forward(by_is_tensor),
    "sizes": lambda: Forward(sizes_are_no_tensors),
    "no_grad": lambda: Forward(without_gradient),
    "enable_grad": lambda: Forward(with_gradient),
    "autocast switched off": lambda: Forward(autocast_off),
    "hook": doubling_hook,
    "pre-hook": doubling_pre_hook,
    "AveragedModel": lambda: AveragedModel(network()),
    "DataParallel": lambda: nn.DataParallel(network()),
    "torch.compile": lambda: torch.compile(network()),
    "weight norm": with_weight_norm,
    "pruned": with_pruning,
    "LoRA": with_lora,
    "Lightning": Lightning,
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted_and_equal_bit_for_bit(name: str) -> None:
    model = ACCEPTED[name]().eval()
    masked = convad_fx.convert(model, IMAGE[:1])
    plain = model._orig_mod if name == "torch.compile" else model
    with torch.no_grad():
        for batch in (1, 2):
            assert torch.equal(masked(IMAGE[:batch]), plain(IMAGE[:batch]))
    assert convad_fx.check(model, IMAGE).ok


def autocasting(self: Forward, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return self.net(x).float()


@torch.autocast("cpu", dtype=torch.bfloat16)
def decorated(self: Forward, x: Tensor) -> Tensor:
    return self.net(x).float()


def by_type(self: Forward, x: Tensor) -> Tensor:
    return self.net(x * 2 if type(x) is Tensor else x)


def by_number_of_images(self: Forward, x: Tensor) -> Tensor:
    return self.net(x * 2 if x.shape[0] == 1 else x)


@pytest.mark.parametrize("forward", [autocasting, decorated])
@pytest.mark.parametrize("front_end", ["auto", "symbolic", "export"])
def test_an_autocast_region_is_a_finding(forward, front_end: str) -> None:
    model = Forward(forward).eval()
    report = convad_fx.check(model, IMAGE, front_end=front_end)
    assert not report.ok
    assert "autocast" in str(report)
    assert "remove it from forward" in str(report)
    with pytest.raises(ConvadError, match="autocast"):
        convad_fx.convert(model, IMAGE, front_end=front_end)


def test_what_torch_fx_loses_is_captured_by_the_other_front_end() -> None:
    model = nn.Sequential(v2.Normalize(MEAN, STD), network()).eval()
    masked = convad_fx.convert(model, IMAGE)
    assert masked.report.front_end == "torch.export"
    assert torch.equal(masked(IMAGE), model(IMAGE))
    assert convad_fx.check(model, IMAGE).front_end == "torch.export"


def test_a_difference_names_the_first_module_that_differs() -> None:
    model = nn.Sequential(Forward(by_type)).eval()
    report = convad_fx.check(model, IMAGE, front_end="symbolic")
    (finding,) = report.findings
    assert finding.path == "0.net.0"
    assert "differ" in finding.why
    unverified = convad_fx.convert(model, IMAGE, front_end="symbolic", verify=False)
    assert not torch.equal(unverified(IMAGE), model(IMAGE))


def test_a_network_that_reads_hidden_pixels_is_caught() -> None:
    model = network()
    captured = trace(model, IMAGE).module
    ignoring = compare(model, captured, lambda x, mask: model(x), IMAGE, hides=True)
    assert ignoring is not None
    assert ignoring.what == "values of hidden pixels reach the result"
    assert compare(model, captured, lambda x, mask: model(x), IMAGE, hides=False) is None
    assert compare(model, captured, convad_fx.convert(model, IMAGE), IMAGE, hides=True) is None


def test_hooks_of_the_user_leave_nothing_behind() -> None:
    class Recorder:
        def __init__(self) -> None:
            self.outputs: list[Tensor] = []
            self.last: object = None

        def __call__(self, module: nn.Module, inputs: object, output: Tensor) -> None:
            self.outputs.append(output)
            self.last = output

        def method(self, module: nn.Module, inputs: object, output: Tensor) -> None:
            self.last = output

    seen, by_name, recorder = [], {}, Recorder()
    model = network()
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    model[2].register_forward_hook(lambda module, inputs, output: by_name.update(relu=output))
    model[3].register_forward_hook(recorder)
    model[4].register_forward_hook(recorder.method)
    expected = copy.deepcopy(model)(IMAGE)
    seen.clear(), by_name.clear(), recorder.outputs.clear()
    recorder.last = None
    masked = convad_fx.convert(model, IMAGE)
    assert convad_fx.check(model, IMAGE).ok
    assert (seen, by_name, recorder.outputs, recorder.last) == ([], {}, [], None)
    assert torch.equal(masked(IMAGE), expected)


#: What no front end captures rightly, and where the finding is.
FINDINGS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "number of images": (lambda: Forward(by_number_of_images), "net.0"),
    "type": (lambda: Forward(by_type), "net.0"),
}


@pytest.mark.parametrize("name", FINDINGS)
def test_what_no_front_end_captures_is_a_finding_at_its_module(name: str) -> None:
    build, path = FINDINGS[name]
    report = convad_fx.check(build().eval(), IMAGE)
    assert [finding.path.split("._")[0] for finding in report.findings] == [path]
    with pytest.raises(ConvadError):
        convad_fx.convert(build().eval(), IMAGE)


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "scripted": (lambda: torch.jit.script(network()), "TorchScript"),
    "exported": (exported, "torch.export"),
    "quantised": (
        lambda: torch.ao.quantization.quantize_dynamic(network(), {nn.Linear}, torch.qint8).eval(),
        "no rule",
    ),
    "a function": (lambda: network().forward, "Module"),
    "training mode": (lambda: network().train(), r"model\.eval\(\)"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*quant.*:UserWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_reason_that_is_true(name: str) -> None:
    build, why = REFUSED[name]
    with pytest.raises(ConvadError, match=why):
        convad_fx.convert(build(), IMAGE)  # type: ignore[arg-type]


def test_layers_of_einops() -> None:
    layers = pytest.importorskip("einops.layers.torch")
    net = nn.Sequential(
        layers.Rearrange("b c (h s) (w t) -> b (c s t) h w", s=2, t=2), nn.Conv2d(12, 4, 3),
        nn.ReLU(), layers.Reduce("b c h w -> b c", "mean"), nn.Linear(4, 3),
    ).eval()  # fmt: skip
    masked = convad_fx.convert(net, IMAGE)
    assert torch.equal(masked(IMAGE), net(IMAGE))


def test_verification_leaves_the_random_state_and_the_model_alone() -> None:
    model = network()
    state, before = torch.random.get_rng_state(), copy.deepcopy(model.state_dict())
    convad_fx.convert(model, IMAGE)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
