"""Names to classifiers: the four kinds of names, published and local weights, users' mistakes."""

import contextlib
import dataclasses
import hashlib
import json
import sys
import time
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

from convad_fx import device, images, models, weights
from convad_fx.errors import ModelError, Unavailable


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """No cache, and a server that cannot be found, as on a machine without internet."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    published = torchvision.models.get_model_weights("squeezenet1_1").DEFAULT
    with _served_from(published, "https://convad-fx.invalid/squeezenet1_1-00000000.pth"):
        yield


@contextlib.contextmanager
def _served_from(member, url):
    before = member._value_
    member._value_ = dataclasses.replace(before, url=url)
    try:
        yield member
    finally:
        member._value_ = before


def _saved(folder: Path, name: str, **options) -> tuple[nn.Module, Path]:
    """A random `name`, saved under torchvision's naming: name, dash, start of the checksum."""
    torch.manual_seed(1)
    model = torchvision.models.get_model(name, **options).eval()
    torch.save(model.state_dict(), folder / "new.pth")
    digest = hashlib.sha256((folder / "new.pth").read_bytes()).hexdigest()
    return model, (folder / "new.pth").rename(folder / f"{name}-{digest[:8]}.pth")


def _same(a: nn.Module, b: nn.Module) -> bool:
    x = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64)
    with torch.no_grad():
        return torch.equal(a(x), b(x))


# ------------------------------------------------------------------------------- torchvision names
def test_random_weights_need_nothing_and_leave_the_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    classifier = models.resolve("squeezenet1_1", weights="none")
    assert torch.equal(torch.rand(3), expected)
    assert _same(classifier.model, models.resolve("squeezenet1_1", weights="none").model)
    assert (classifier.labels, classifier.label(7)) == ((), "class 7")
    assert classifier.example().shape == (1, 3, 224, 224)


@pytest.mark.parametrize("name", ["inception_v3", "efficientnet_b3"])
def test_the_size_is_the_networks_own(name):
    assert (
        models.resolve(name, weights="none").size
        == {
            "inception_v3": (299, 299),
            "efficientnet_b3": (300, 300),
        }[name]
    )


def test_published_weights_come_with_their_transforms_and_class_names(tmp_path, monkeypatch):
    """Through torchvision's own download code; the server is a file."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    model, path = _saved(tmp_path, "squeezenet1_1")
    published = torchvision.models.get_model_weights("squeezenet1_1").DEFAULT
    picture = Image.effect_noise((300, 200), 90).convert("RGB")
    with _served_from(published, path.as_uri()):
        for name in ("DEFAULT", "IMAGENET1K_V1"):
            classifier = models.resolve("squeezenet1_1", name)
            assert _same(classifier.model, model)
            assert (len(classifier.labels), classifier.label(1)) == (1000, "goldfish")
            x = images.to_input(picture, classifier.preprocess)
            assert torch.equal(x[0], published.transforms()(picture))
    assert (tmp_path / "torch/hub/checkpoints" / path.name).is_file()


def test_a_copy_of_a_published_file_counts_as_published(tmp_path, offline):
    """Download on one machine, carry it to another: googlenet's inputs are then transformed too."""
    _, path = _saved(tmp_path, "googlenet", init_weights=False)
    published = torchvision.models.get_model_weights("googlenet").DEFAULT
    hub = torch.hub.get_dir()
    with _served_from(published, f"https://convad-fx.invalid/{path.name}"):
        classifier = models.resolve("googlenet", str(path))
        assert classifier.model.transform_input
        assert classifier.label(1) == "goldfish"
        assert str(path) in classifier.weights
        # The same name with other contents is an ordinary file.
        path.write_bytes(path.read_bytes() + b"\0")
        assert models.resolve("googlenet", str(path)).labels == ()
    assert torch.hub.get_dir() == hub


def test_weights_that_cannot_be_fetched_end_quickly_in_one_line(offline):
    began = time.monotonic()
    with pytest.raises(Unavailable) as caught:
        models.resolve("squeezenet1_1")
    assert time.monotonic() - began < 20
    message = str(caught.value)
    assert "the weights IMAGENET1K_V1 of squeezenet1_1 cannot be fetched from https://" in message
    assert message.endswith("pass `--weights FILE`")
    assert "\n" not in message


def test_a_damaged_download_names_the_file_to_delete(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    (tmp_path / "squeezenet1_1-01234567.pth").write_bytes(b"not these bytes")
    published = torchvision.models.get_model_weights("squeezenet1_1").DEFAULT
    url = (tmp_path / "squeezenet1_1-01234567.pth").as_uri()
    with (
        _served_from(published, url),
        pytest.raises(Unavailable, match=r"arrived damaged .*delete .*squeezenet1_1-01234567\.pth"),
    ):
        models.resolve("squeezenet1_1")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnt50", "did you mean resnet50"),
        ("ResNet-50", "did you mean resnet50"),
        ("qqqqqqq", "name a torchvision classifier, `timm:NAME`"),
        ("fasterrcnn_resnet50_fpn", "is not an image classifier"),
    ],
)
def test_unknown_names_get_suggestions(name, hint):
    with pytest.raises(ModelError, match=hint):
        models.resolve(name)


def test_unknown_and_useless_weights():
    with pytest.raises(ModelError, match="no weights called 'V3'; use DEFAULT, IMAGENET1K_V1"):
        models.resolve("resnet50", "V3")
    with pytest.raises(ModelError, match="VGG16_Weights.IMAGENET1K_FEATURES has no classifier"):
        models.resolve("vgg16", "IMAGENET1K_FEATURES")


# ------------------------------------------------------------------------------ local weights files
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_wrappers_prefixes_and_half_precision(tmp_path, wrapper, prefix, dtype):
    model = torchvision.models.squeezenet1_1(num_classes=7).eval().to(dtype)
    state = {prefix + k: v for k, v in model.state_dict().items()}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "mine.pt")
    classifier = models.resolve("squeezenet1_1", str(tmp_path / "mine.pt"), size=64)
    assert _same(classifier.model, model.float())


def test_safetensors(tmp_path):
    from safetensors.torch import save_file

    model = torchvision.models.shufflenet_v2_x0_5(num_classes=3).eval()
    save_file(model.state_dict(), tmp_path / "mine.safetensors")
    assert _same(
        models.resolve("shufflenet_v2_x0_5", str(tmp_path / "mine.safetensors")).model, model
    )


@pytest.mark.parametrize(
    "name",
    [
        "squeezenet1_1",
        "resnet18",
        "mobilenet_v3_small",
        "densenet121",
        "convnext_tiny",
        "googlenet",
    ],
)
def test_the_number_of_classes_is_read_off_the_file(tmp_path, name):
    options = {"init_weights": False} if name == "googlenet" else {}
    model = torchvision.models.get_model(name, num_classes=11, **options).eval()
    torch.save(model.state_dict(), tmp_path / "mine.pt")
    assert _same(models.resolve(name, str(tmp_path / "mine.pt")).model, model)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
@pytest.mark.parametrize("aux", [False, True])
def test_auxiliary_heads_may_be_in_the_file_or_not(tmp_path, name, aux):
    model = torchvision.models.get_model(name, num_classes=4, aux_logits=aux, init_weights=False)
    torch.save(model.state_dict(), tmp_path / "mine.pt")
    loaded = models.resolve(name, str(tmp_path / "mine.pt")).model
    assert loaded.state_dict().keys() == model.state_dict().keys()


def test_counters_that_old_files_lack_do_not_matter(tmp_path):
    model = torchvision.models.resnet18().eval()
    state = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.pth")
    assert _same(models.resolve("resnet18", str(tmp_path / "old.pth")).model, model)


def test_a_file_for_another_network_says_what_differs(tmp_path):
    torch.save(torchvision.models.squeezenet1_1().state_dict(), tmp_path / "other.pt")
    with pytest.raises(ModelError) as caught:
        models.resolve("resnet18", str(tmp_path / "other.pt"))
    message = str(caught.value)
    assert "does not fit the model's 122 tensors: 102 missing (conv1.weight, " in message
    assert "52 unknown to the model (features.0.weight, " in message
    assert message.endswith("the file was trained with")
    assert "\n" not in message


def test_tensors_of_another_shape_are_named_with_both_shapes(tmp_path):
    state = torchvision.models.squeezenet1_1().state_dict()
    state["features.0.weight"] = torch.zeros(64, 1, 3, 3)
    torch.save(state, tmp_path / "grey.pt")
    with pytest.raises(
        ModelError, match=r"weight is \(64, 1, 3, 3\) in the file and \(64, 3, 3, 3\) in the model"
    ):
        models.resolve("squeezenet1_1", str(tmp_path / "grey.pt"))


def test_files_that_are_no_state_dict(tmp_path):
    path = tmp_path / "odd.pt"
    with pytest.raises(ModelError, match="there is no weights file .*odd.pt; check the path"):
        weights.read(path)
    path.write_bytes(b"these are not the bytes of a tensor")
    with pytest.raises(ModelError, match=r"odd\.pt .*(is not a torch file|not a weights file)"):
        weights.read(path)
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(ModelError, match=r"contains more than tensors.*model\.state_dict\(\)"):
        weights.read(path)
    torch.save([torch.zeros(2)], path)
    with pytest.raises(ModelError, match="contains a list, not a state dict"):
        weights.read(path)
    torch.save({"a": torch.zeros(2), "epoch": 3}, path)
    with pytest.raises(ModelError, match="not tensors: epoch; put the state dict under one of"):
        weights.read(path)
    torch.save({"a": torch.zeros(2000)}, path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ModelError, match="odd.pt is damaged or not a weights file"):
        weights.read(path)
    (tmp_path / "odd.safetensors").write_bytes(b"12345678 not a header")
    with pytest.raises(ModelError, match="odd.safetensors is damaged or not a weights file"):
        weights.read(tmp_path / "odd.safetensors")


# ------------------------------------------------------------------------- sizes, means and labels
def test_the_users_numbers_win(tmp_path):
    classifier = models.resolve(
        "squeezenet1_1", "none", size=48, resize=50, mean=[0.5] * 3, std=[0.25] * 3
    )
    assert classifier.size == (48, 48)
    picture = Image.effect_noise((90, 70), 80).convert("RGB")
    expected = images.to_input(picture, images.standard(48, 50, [0.5] * 3, [0.25] * 3))
    assert torch.equal(images.to_input(picture, classifier.preprocess), expected)


def test_a_size_alone_keeps_the_margin():
    picture = Image.effect_noise((256, 256), 80).convert("RGB")
    x = images.to_input(picture, models.resolve("squeezenet1_1", "none", size=112).preprocess)
    assert torch.equal(x, images.to_input(picture, images.standard(112, 128)))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("labels.txt", "cat\ndog\nhen house\n\n"),
        ("labels.txt", "\ufeffcat\r\ndog\r\nhen house"),
        ("labels.json", '["cat", "dog", "hen house"]'),
        ("labels.json", '{"2": "hen house", "0": "cat", "1": "dog"}'),
        ("labels.json", '{"0": ["n1", "cat"], "1": ["n2", "dog"], "2": ["n3", "hen house"]}'),
    ],
)
def test_labels(tmp_path, file, content):
    (tmp_path / file).write_text(content, encoding="utf-8")
    torch.save(torchvision.models.squeezenet1_1(num_classes=3).state_dict(), tmp_path / "mine.pt")
    classifier = models.resolve(
        "squeezenet1_1", str(tmp_path / "mine.pt"), labels=tmp_path / file, size=64
    )
    assert classifier.labels == ("cat", "dog", "hen house")
    assert classifier.label(2) == "hen house"


def test_labels_that_do_not_fit(tmp_path):
    path = tmp_path / "labels.json"
    with pytest.raises(ModelError, match=r"labels\.json cannot be read"):
        models.read_labels(path)
    for content in ("[1", "3", '{"a": "cat"}', '{"1": "cat"}', "[[]]"):
        path.write_text(content)
        with pytest.raises(ModelError, match=r"labels\.json is not a list of names.*write \["):
            models.read_labels(path)
    path.write_text(json.dumps(["cat", "dog"]))
    with pytest.raises(
        ModelError, match=r"names 2 classes, and squeezenet1_1 answers .*\(1, 1000\)"
    ):
        models.resolve("squeezenet1_1", "none", labels=path)


# ------------------------------------------------------------------------------------- one's own
OWN = """
import torch
from torch import nn

ready = nn.Conv2d(3, 2, 1)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 4)
    def forward(self, x):
        return self.fc(x.mean((2, 3)))

def build():
    print("building")
    return Net().train()

def broken():
    return {}["key"]

def wrong():
    return 3

class Several(Net):
    def forward(self, x):
        return {"out": super().forward(x)}
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module file in the working folder, forgotten again afterwards."""
    (tmp_path / "convad_own.py").write_text(OWN)
    (tmp_path / "convad_needy.py").write_text("import convad_missing\n")
    (tmp_path / "convad_faulty.py").write_text("x = 1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in ("convad_own", "convad_needy", "convad_faulty"):
        sys.modules.pop(name, None)


def test_ones_own_function(tmp_path, own, capsys):
    classifier = models.resolve("convad_own:build")
    assert not classifier.model.training
    assert classifier.size == (224, 224)
    out, err = capsys.readouterr()
    assert (out, err) == ("", "building\n")  # stdout is for results
    assert not models.resolve("convad_own:Net").model.training
    assert not models.resolve("convad_own:ready").model.training

    state = {"fc.weight": torch.ones(4, 3), "fc.bias": torch.ones(4)}
    torch.save(state, tmp_path / "own.pt")
    (tmp_path / "four.txt").write_text("a\nb\nc\nd")
    classifier = models.resolve(
        "convad_own:build",
        "own.pt",
        size=8,
        labels=tmp_path / "four.txt",
        mean=[0] * 3,
        std=[1] * 3,
    )
    assert classifier.model(torch.ones(1, 3, 8, 8)).tolist() == [[4.0] * 4]
    assert classifier.label(3) == "d"
    with pytest.raises(ModelError, match=r"returns a dict, not a tensor of logits.*wrap it"):
        models.resolve("convad_own:Several", labels=tmp_path / "four.txt")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("convad_nowhere:build", "no module convad_nowhere in .*run from the folder it is in"),
        ("convad_own:biuld", "has no 'biuld'; did you mean build"),
        (
            "convad_own:broken",
            r"raised KeyError: 'key' \(convad_own\.py:\d+\); it is called with",
        ),
        ("convad_own:wrong", r"returned a int; return a torch\.nn\.Module"),
        ("convad_needy:build", "needs convad_missing, which is not installed"),
        ("convad_faulty:build", r"raised ZeroDivisionError: .* \(convad_faulty\.py:1\)"),
    ],
)
def test_ones_own_mistakes(own, name, message):
    with pytest.raises(ModelError, match=message):
        models.resolve(name)


def test_a_size_the_model_cannot_take_is_said_when_labels_are_checked(own, tmp_path):
    (tmp_path / "convad_own.py").write_text(OWN.replace("x.mean((2, 3))", "x.view(1, 3)"))
    (tmp_path / "four.txt").write_text("a\nb\nc\nd")
    with pytest.raises(ModelError, match="fails on an input of shape .*pass the `--size`"):
        models.resolve("convad_own:build", labels=tmp_path / "four.txt")


# -------------------------------------------------------------------------------------------- timm
def test_timm_where_it_is_installed(tmp_path, monkeypatch):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    classifier = models.resolve("timm:resnet10t", "none", size=96, resize=100)
    assert classifier.size == (96, 96)
    assert images.to_input(Image.new("RGB", (300, 200)), classifier.preprocess).shape[2:] == (
        96,
        96,
    )
    config = timm.data.resolve_model_data_config(classifier.model)
    picture = Image.effect_noise((300, 200), 80).convert("RGB")
    expected = timm.data.create_transform(**config, is_training=False)(picture)
    plain = models.resolve("timm:resnet10t", "none")
    assert torch.equal(images.to_input(picture, plain.preprocess)[0], expected)

    model = timm.create_model("resnet10t", num_classes=5).eval()
    torch.save(model.state_dict(), tmp_path / "mine.pt")
    assert _same(models.resolve("timm:resnet10t", str(tmp_path / "mine.pt")).model, model)
    with pytest.raises(ModelError, match="did you mean timm:resnet10t"):
        models.resolve("timm:resnet10tt")
    with pytest.raises(ModelError, match="no weights called resnet10t.nothing"):
        models.resolve("timm:resnet10t.nothing")


def test_timm_without_its_server_is_quick(tmp_path, monkeypatch):
    pytest.importorskip("timm", reason="timm is not installed")
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "ENDPOINT", "https://convad-fx.invalid")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    began = time.monotonic()
    with pytest.raises(Unavailable, match="the weights of timm:resnet10t cannot be fetched"):
        models.resolve("timm:resnet10t")
    assert time.monotonic() - began < 20


def test_timm_where_it_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(Unavailable, match="needs timm, which is not installed; `pip install"):
        models.resolve("timm:resnet10t")


# ----------------------------------------------------------------------------------------- devices
def test_auto_is_cuda_only_where_it_works(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(device, "_failure", lambda d: "out of memory")
    assert device.choose("auto") == torch.device("cpu")
    monkeypatch.setattr(device, "_failure", lambda d: None)
    assert device.choose("auto") == torch.device("cuda")


def test_devices_that_do_not_work():
    assert device.choose("cpu") == torch.device("cpu")
    with pytest.raises(Unavailable, match="no device called 'gpu'; use auto, cpu, cuda"):
        device.choose("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(Unavailable, match="'cuda' does not work here .*pass `--device auto`"):
            device.choose("cuda")
    with pytest.raises(Unavailable, match="'cuda:99' does not work here"):
        device.choose("cuda:99")
