"""From a name on the command line to a classifier that is ready to be asked.

>>> classifier = resolve("squeezenet1_1", weights="none")
>>> classifier.name, classifier.size, classifier.model.training
('squeezenet1_1', (224, 224), False)

A name is one of

* `resnet50`: a classifier of torchvision,
* `timm:convnext_atto`: a model of timm, where that is installed,
* `package.module:function`: what your own function returns; the working folder is searched first,
* `demo`: the small network inside this package.
"""

import contextlib
import difflib
import functools
import hashlib
import http.client
import importlib
import json
import re
import shutil
import socket
import sys
import tempfile
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from convad_fx import artifact, images
from convad_fx.compiler.policy import Policy
from convad_fx.convert import convert
from convad_fx.errors import (
    ConvadError,
    ImageError,
    ModelError,
    PolicyError,
    Unavailable,
    first_line,
)
from convad_fx.images import IMAGENET_MEAN, IMAGENET_STD, Preprocess, standard
from convad_fx.module import MaskedModule
from convad_fx.weights import class_count, fill, read

# A server that says nothing for so long will not; torch.hub by itself would wait for ever.
_SECONDS = 15.0


#: Where the parameters come from, if from nowhere.
RANDOM = "none (random)"


@dataclass(frozen=True, slots=True)
class Classifier:
    """A model with everything needed to show it a picture and to name what it sees.

    Args:
        name: as given on the command line.
        model: in eval mode, on the CPU.
        preprocess: from an RGB picture to the model's input.
        size: height and width of that input.
        labels: one name per class; empty where nobody gave any.
        weights: where the parameters come from, for people.
    """

    name: str
    model: nn.Module
    preprocess: Preprocess
    size: tuple[int, int]
    labels: tuple[str, ...]
    weights: str

    def label(self, index: int) -> str:
        """The name of a class, or its number where classes have no names."""
        return self.labels[index] if self.labels else f"class {index}"

    def example(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """An input (1, 3, H, W) of zeros, of the right shape."""
        return torch.zeros(1, 3, *self.size, device=device)


@dataclass(frozen=True, slots=True)
class _Choices:
    """What the user asked for instead of the defaults."""

    labels: Path | None = None
    size: int | None = None
    resize: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def resolve(
    name: str,
    weights: str = "DEFAULT",
    *,
    labels: Path | None = None,
    size: int | None = None,
    resize: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Classifier:
    """The classifier called `name`, with `weights` in it.

    >>> resolve("squeezenet1_1", weights="none", size=64).size
    (64, 64)

    Args:
        name: see the top of this module.
        weights: `DEFAULT` for the best published ones (for one's own function: what it returns),
            one of the published names (`IMAGENET1K_V1`), a file (.pt, .pth, .safetensors), or
            `none` for random ones. Published weights are downloaded once and kept where torchvision
            and timm keep them. A file with the name and the checksum of a published one counts as
            published.
        labels: a file with the names of the classes: one per line, or a JSON list or dict.
        size, resize, mean, std: as in `convad_fx.images.standard`, instead of the model's own.

    Raises:
        ModelError: no such model, or weights or labels that do not fit it.
        Unavailable: weights that cannot be fetched, or timm where it is not installed.
    """
    choices = _Choices(
        labels, size, resize, tuple(mean) if mean else None, tuple(std) if std else None
    )
    # Loaders report on stdout, which belongs to the caller's own output.
    with contextlib.redirect_stdout(sys.stderr):
        if name == "demo":
            classifier = _demo(weights, choices)
        elif name.startswith("timm:"):
            classifier = _timm(name, weights, choices)
        elif ":" in name:
            classifier = _own(name, weights, choices)
        else:
            classifier = _torchvision(name, weights, choices)
        if choices.labels is None:
            return classifier
        return _relabelled(classifier, choices.labels)


def opened(
    path: str,
    weights: str = "DEFAULT",
    *,
    labels: Path | None = None,
    size: int | None = None,
    resize: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    device: torch.device | str = "cpu",
    trusted: bool = False,
) -> Classifier:
    """The classifier in a file of `convad_fx.save`: its model is a masked network already.

    Args:
        path: the file.
        weights: those in the file; anything but `DEFAULT` is an error.
        labels, size, resize, mean, std: as in `resolve`, instead of what the file records.
        device: where it goes.
        trusted: as in `convad_fx.load`.

    Raises:
        ArtifactError: no such file, or a damaged one.
        ModelError: other weights, or labels that do not fit.
        ImageError: no preprocessing is recorded, or none that is understood.
    """
    if weights != "DEFAULT":
        raise ModelError(
            f"{path} has its weights inside", hint="leave `--weights` out, or compile it again"
        )
    masked, about = artifact.load(path, device, trusted), artifact.describe(path)
    record = dict(about.preprocessing or images.recorded(standard(size or 224)))
    if about.preprocessing is None and not (size and mean and std):
        raise ImageError(
            f"{path} does not record what is done to pictures",
            hint="pass `--size`, `--mean` and `--std`, or compile it again",
        )
    if size:
        # as far as it is understood, this is a record with lists of numbers
        record = images.recorded(images.replayed(record))
        margin = record["resize"][0] / record["crop"][0]
        record |= {"crop": [size, size], "resize": [round(size * margin)]}
    record |= {"resize": [resize]} if resize else {}
    record |= {"mean": list(mean)} if mean else {}
    record |= {"std": list(std)} if std else {}
    preprocess = images.replayed(record)
    crop = images.recorded(preprocess)["crop"]
    classifier = Classifier(
        path, masked, preprocess, (crop[0], crop[-1]), about.class_names, "in the file"
    )
    if labels is not None:
        return _relabelled(classifier, labels)
    if classifier.labels:
        _check_labels(classifier, path)
    return classifier


def masked_network(
    classifier: Classifier,
    device: torch.device,
    policy: Policy | None = None,
) -> MaskedModule:
    """The classifier's network as `(x, mask) -> logits`, on `device`; converted, if it is not yet.

    Without a policy it is the file's own, or the default.

    >>> masked_network(resolve("demo"), torch.device("cpu")).policy == Policy()
    True

    Raises:
        PolicyError: it was compiled with another policy than the one wanted.
        ConvadError: as `convert`.
    """
    model = classifier.model.to(device)
    if not isinstance(model, MaskedModule):
        return convert(model, classifier.example(device), policy)
    if policy not in (None, model.policy):
        raise PolicyError(
            f"{classifier.name} was compiled with {model.policy}, not with {policy}",
            hint="leave the policy's options out, or compile it again",
        )
    return model


# ------------------------------------------------------------------------------------- torchvision
def _torchvision(name: str, weights: str, choices: _Choices) -> Classifier:
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        raise ModelError(_no_such_model(name), hint=_spelling(name, names))
    published = torchvision.models.get_model_weights(name)
    build = functools.partial(_build, name)

    path = _file(weights)
    if path is not None:
        known = _published_as(path, published)
        if known is not None:
            return _published(name, known, choices, path)
        state = read(path)
        # The auxiliary heads of these two are not part of the answer; files come with and without.
        if name in ("googlenet", "inception_v3"):
            build = functools.partial(build, aux_logits=any("aux" in k.lower() for k in state))
        model = build(class_count(build, state))
        fill(model, state, path)
        return _unpublished(name, model, str(path), published.DEFAULT, choices)
    if weights == "none":
        return _unpublished(name, _random(build), RANDOM, published.DEFAULT, choices)

    members = {"DEFAULT": published.DEFAULT, **{w.name: w for w in published}}
    if weights not in members:
        raise ModelError(
            f"{name} has no weights called {weights!r}",
            hint=f"use {', '.join(members)}, none, or a file (.pt, .pth, .safetensors)",
        )
    return _published(name, members[weights], choices)


def _build(name: str, classes: int, **options: Any) -> nn.Module:
    # Their default initialisation is slow and warns; it is about to be overwritten or ignored.
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    model: nn.Module = torchvision.models.get_model(name, num_classes=classes, **options)
    return model


def _published(name: str, weights: Any, choices: _Choices, path: Path | None = None) -> Classifier:
    """torchvision's own loading, from the internet, its cache, or a copy of the file at `path`."""
    if not weights.meta.get("categories"):
        raise ModelError(f"{weights} has no classifier, only features", hint="use other weights")
    source = contextlib.nullcontext() if path is None else _hub_with(path)
    try:
        with source, _patience():
            model = torchvision.models.get_model(name, weights=weights)
    except (OSError, http.client.HTTPException) as error:
        raise _not_fetched(f"the weights {weights.name} of {name}", weights.url, error) from error
    # A download whose checksum differs, or a damaged file in the cache.
    except (RuntimeError, EOFError, ValueError) as error:
        raise Unavailable(
            f"the weights {weights.name} of {name} arrived damaged ({error})",
            hint=f"delete {Path(torch.hub.get_dir(), 'checkpoints', Path(weights.url).name)}",
        ) from error
    return Classifier(
        name,
        model.eval(),
        *_presets(weights, choices),
        labels=tuple(weights.meta["categories"]),
        weights=f"{weights.name}, from {path}" if path else weights.name,
    )


def _unpublished(
    name: str, model: nn.Module, weights: str, usual: Any, choices: _Choices
) -> Classifier:
    return Classifier(name, model.eval(), *_presets(usual, choices), labels=(), weights=weights)


def _presets(weights: Any, choices: _Choices) -> tuple[Preprocess, tuple[int, int]]:
    """torchvision's own steps for `weights`, with the user's numbers in place of theirs."""
    usual = weights.transforms()
    size = choices.size or usual.crop_size[0]
    # A new size keeps the margin that the published one has around it.
    resize = choices.resize or round(size * usual.resize_size[0] / usual.crop_size[0])
    mean, std = choices.mean or tuple(usual.mean), choices.std or tuple(usual.std)
    standard(size, resize, mean, std)  # says what is wrong with the numbers
    steps = weights.transforms(crop_size=size, resize_size=resize, mean=mean, std=std)
    return Preprocess(steps, mean, std), (size, size)


def _published_as(path: Path, published: Any) -> Any:
    """Which of the `published` weights the file is a copy of, by name and checksum."""
    for weights in published:
        digits = re.search(r"-([0-9a-f]{8,})\.", path.name)
        if Path(weights.url).name != path.name or digits is None or not path.is_file():
            continue
        if _sha256(path).startswith(digits[1]):
            # torchvision's loader would unpickle anything; what passes here is tensors only.
            read(path)
            return weights
    return None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def _hub_with(path: Path) -> Iterator[None]:
    """torch.hub's cache replaced by one in which the file at `path` has already been downloaded."""
    before = torch.hub.get_dir()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "checkpoints").mkdir()
        place = Path(folder, "checkpoints", path.name)
        try:
            place.symlink_to(path.resolve())
        except OSError:  # Windows lets few users make links
            shutil.copyfile(path, place)
        torch.hub.set_dir(folder)
        try:
            yield
        finally:
            torch.hub.set_dir(before)


# -------------------------------------------------------------------------------------------- timm
def _timm(name: str, weights: str, choices: _Choices) -> Classifier:
    try:
        import timm
        import timm.data
    except ImportError as error:
        raise Unavailable(
            f"{name} needs timm, which is not installed", hint="`pip install timm`"
        ) from error
    short, _, tag = name.removeprefix("timm:").partition(".")
    if not timm.is_model(short):
        names = [f"timm:{n}" for n in timm.list_models()]
        raise ModelError(_no_such_model(name), hint=_spelling(name, names))

    def build(classes: int) -> nn.Module:
        model: nn.Module = timm.create_model(short, num_classes=classes)
        return model

    labels: tuple[str, ...] = ()
    path = _file(weights)
    if path is not None:
        state = read(path)
        config = timm.get_pretrained_cfg(short)
        model = build(class_count(build, state, config.num_classes if config else 1000))
        fill(model, state, path)
        source = str(path)
    elif weights == "none":
        model, source = _random(lambda _: timm.create_model(short)), RANDOM
    else:
        tag = tag if weights == "DEFAULT" else weights
        model = _timm_published(f"{short}.{tag}" if tag else short)
        source = str(model.pretrained_cfg.get("tag") or "DEFAULT")
        labels = _timm_labels(model)
    config = timm.data.resolve_model_data_config(model)
    channels, *size = config["input_size"]
    if channels != 3:
        raise ModelError(f"{name} takes {channels} channels", hint="pick a model for RGB pictures")
    if choices.size or choices.resize:
        size = [choices.size or size[0]] * 2
        config["input_size"] = (3, *size)
        config["crop_pct"] = (
            size[0] / choices.resize if choices.resize else config.get("crop_pct", 0.875)
        )
    config["mean"] = choices.mean or tuple(config["mean"])
    config["std"] = choices.std or tuple(config["std"])
    standard(size[0], choices.resize, config["mean"], config["std"])
    steps = timm.data.create_transform(**config, is_training=False)
    preprocess = Preprocess(steps, tuple(config["mean"]), tuple(config["std"]))
    return Classifier(name, model.eval(), preprocess, (size[0], size[1]), labels, source)


def _timm_published(name: str) -> Any:
    """timm's own loading. Its client retries for a minute, so look first whether it can work."""
    import timm

    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise ModelError(
            f"timm has no weights called {name}", hint="leave out the tag for the default"
        ) from error
    if not config.has_weights:
        raise Unavailable(
            f"timm publishes no weights for {name}", hint="pass `--weights FILE` or `none`"
        )
    overlay: dict[str, str] = {}
    if config.hf_hub_id:
        cached = _in_hub_cache(config.hf_hub_id)
        if cached:
            overlay = {"file": cached}
        else:
            from huggingface_hub.constants import ENDPOINT

            try:
                with _patience():
                    urllib.request.urlopen(ENDPOINT).close()
            except urllib.error.HTTPError:
                pass  # it answers, and that is all there was to know
            except OSError as error:
                url = f"{ENDPOINT}/{config.hf_hub_id}"
                raise _not_fetched(f"the weights of timm:{name}", url, error) from error
    try:
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
    except (OSError, http.client.HTTPException, RuntimeError) as error:
        url = config.hf_hub_id or config.url
        raise _not_fetched(f"the weights of timm:{name}", url, error) from error


def _in_hub_cache(repository: str) -> str | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    for file in ("model.safetensors", "pytorch_model.bin"):
        with contextlib.suppress(LocalEntryNotFoundError):
            return str(hf_hub_download(repository, file, local_files_only=True))
    return None


def _timm_labels(model: Any) -> tuple[str, ...]:
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset(model)
    if subset is None:
        return ()
    names = ImageNetInfo(subset)
    return tuple(names.index_to_description(i) for i in range(model.num_classes))


# ------------------------------------------------------------------------------ one's own, the demo
def _own(name: str, weights: str, choices: _Choices) -> Classifier:
    module_name, _, attribute = name.partition(":")
    # As `python -m` does, so that a file beside the user is found.
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ModelError(
                f"importing {module_name} needs {error.name}, which is not installed",
                hint=f"install {error.name}",
            ) from error
        raise ModelError(
            f"there is no module {module_name} in {Path.cwd()} or among the installed packages",
            hint="write MODEL as `package.module:function` and run from the folder it is in",
        ) from error
    except Exception as error:
        raise ModelError(f"importing {module_name} {_raised(error)}", hint="fix that") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [n for n in vars(found) if callable(getattr(found, n)) and n[0] != "_"]
            raise ModelError(
                f"{module_name} has no {attribute!r}", hint=_spelling(attribute, names)
            )
        found = getattr(found, part)
    try:
        model = found if isinstance(found, nn.Module) else found()
    except Exception as error:
        raise ModelError(
            f"{name} {_raised(error)}", hint="it is called without arguments"
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"{name} returned a {type(model).__name__}", hint="return a torch.nn.Module"
        )
    source = "the function's own"
    if weights not in ("DEFAULT", "none"):
        source = _filled(name, model, weights)
    preprocess = standard(
        choices.size or 224,
        choices.resize,
        choices.mean or IMAGENET_MEAN,
        choices.std or IMAGENET_STD,
    )
    size = choices.size or 224
    return Classifier(name, model.eval().cpu(), preprocess, (size, size), (), source)


def _demo(weights: str, choices: _Choices) -> Classifier:
    from convad_fx.demo import network, scenes

    model = network.load()
    source = "in the package"
    if weights not in ("DEFAULT", "none"):
        source = _filled("demo", model, weights)
    size = choices.size or network.SIZE
    preprocess = standard(
        size, choices.resize or size, choices.mean or network.MEAN, choices.std or network.STD
    )
    return Classifier("demo", model.eval(), preprocess, (size, size), tuple(scenes.CLASSES), source)


def _filled(name: str, model: nn.Module, weights: str) -> str:
    path = _file(weights)
    if path is None:
        raise ModelError(
            f"{name} has no weights called {weights!r}",
            hint="pass a file (.pt, .pth, .safetensors)",
        )
    fill(model, read(path), path)
    return str(path)


# ------------------------------------------------------------------------------------------ labels
def _relabelled(classifier: Classifier, path: Path) -> Classifier:
    named = replace(classifier, labels=read_labels(path))
    _check_labels(named, str(path))
    return named


def _check_labels(classifier: Classifier, source: str) -> None:
    """Refuses more or fewer names than the network has classes."""
    parameter = next(classifier.model.parameters(), torch.zeros(()))
    x = classifier.example(parameter.device)  # a file may have been opened on a GPU
    try:
        with torch.no_grad():
            answer = classifier.model(x)
    except Exception as error:
        raise ModelError(
            f"{classifier.name} fails on an input of shape {tuple(x.shape)}: it {_raised(error)}",
            hint="pass the `--size` it was made for",
        ) from error
    if not isinstance(answer, torch.Tensor):
        raise ModelError(
            f"{classifier.name} returns a {type(answer).__name__}, not a tensor of logits",
            hint="wrap it in a module that returns its logits (N, classes) alone",
        )
    shape = tuple(answer.shape)
    if shape != (1, len(classifier.labels)):
        raise ModelError(
            f"{source} names {len(classifier.labels)} classes, and {classifier.name} answers one "
            f"picture with shape {shape}",
            hint="pass one name for each class the model knows, in their order",
        )


def read_labels(path: Path) -> tuple[str, ...]:
    """The class names in `path`: one per line, a JSON list, or a JSON dict from number to name.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp(), "labels.json")
    >>> _ = file.write_text('{"1": "dog", "0": ["n02123045", "cat"]}')
    >>> read_labels(file)
    ('cat', 'dog')

    Raises:
        ModelError: the file is missing, or is none of the three.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(
            f"the labels in {path} cannot be read ({error})", hint="pass a text or JSON file"
        ) from error
    if path.suffix.lower() != ".json":
        return tuple(line.strip() for line in text.splitlines() if line.strip())
    try:
        labels = json.loads(text)
        if isinstance(labels, dict):
            numbered = {int(key): value for key, value in labels.items()}
            labels = [numbered[index] for index in range(len(numbered))]
        # Keras and others write [wordnet id, name].
        return tuple(str(entry[-1]) if isinstance(entry, list) else str(entry) for entry in labels)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ModelError(
            f"{path} is not a list of names, nor a dict from 0, 1, 2, ... to names ({error!r})",
            hint='write ["cat", "dog"] or {"0": "cat", "1": "dog"}',
        ) from error


# ------------------------------------------------------------------------------------ small pieces
def _random(build: Callable[[int], nn.Module]) -> nn.Module:
    """A network with random weights, the same every time; the caller's random state stays."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(1000)


def _file(weights: str) -> Path | None:
    """`weights` as a path, if it is meant as one."""
    path = Path(weights)
    meant = path.suffix in (".pt", ".pth", ".safetensors", ".bin", ".ckpt") or path.is_file()
    return path if meant or len(path.parts) > 1 else None


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _not_fetched(what: str, url: str, error: Exception) -> ConvadError:
    reason = getattr(error, "reason", None) or first_line(error)
    return Unavailable(
        f"{what} cannot be fetched from {url} ({reason})",
        hint="get that file on a machine that is online and pass `--weights FILE`",
    )


def _no_such_model(name: str) -> str:
    if name.startswith("timm:"):
        return f"timm has no model {name.removeprefix('timm:')!r}"
    if name in torchvision.models.list_models():
        return f"{name} is no image classifier"
    return f"torchvision has no classifier called {name!r}"


def _spelling(name: str, names: Sequence[str]) -> str:
    plain = name.lower().replace("-", "_")
    close = difflib.get_close_matches(plain, names, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(close)}?"
    if names and not name.startswith("timm:"):
        return "name a torchvision classifier, `timm:NAME`, `package.module:function` or `demo`"
    return "check the name"


def _raised(error: BaseException) -> str:
    """What happened and where, for an error of the user's own code."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = first_line(error, with_type=True)
    return f"raised {text} ({Path(frame.filename).name}:{frame.lineno})"


__all__ = ["Classifier", "read_labels", "resolve"]
