"""Load a classifier by the name it has on the command line.

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

# torch.hub sets no timeout of its own.
_TIMEOUT_SECONDS = 15.0

#: `Classifier.weights` where the parameters are random.
RANDOM = "none (random)"


@dataclass(frozen=True, slots=True)
class Classifier:
    """A model with the preprocessing of its images and the names of its classes.

    Args:
        name: as given on the command line.
        model: in eval mode, on the CPU.
        preprocess: from an RGB image to the model's input.
        size: height and width of that input.
        labels: one name per class; empty if there are none.
        weights: where the parameters come from, for messages.
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
class _Overrides:
    """Preprocessing that replaces the model's own."""

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
    """The classifier called `name`, with `weights` loaded.

    >>> resolve("squeezenet1_1", weights="none", size=64).size
    (64, 64)

    Args:
        name: as described in this module's docstring.
        weights: `DEFAULT` for the best published ones (of your own function: those it returns),
            a published name (`IMAGENET1K_V1`), a file (.pt, .pth, .safetensors), or `none` for
            random ones. Published weights are downloaded once, to the caches of torchvision and
            timm. A file with the name and the checksum of published weights counts as published.
        labels: a file with the names of the classes: one per line, or a JSON list or dict.
        size, resize, mean, std: as in `convad_fx.images.standard`, instead of the model's own.

    Raises:
        ModelError: no such model, or weights or labels that do not fit it.
        Unavailable: weights cannot be downloaded, or timm is not installed.
    """
    overrides = _Overrides(size, resize, tuple(mean) if mean else None, tuple(std) if std else None)
    # Loaders print to stdout, which is for the caller's own output.
    with contextlib.redirect_stdout(sys.stderr):
        if name == "demo":
            classifier = _demo(weights, overrides)
        elif name.startswith("timm:"):
            classifier = _timm(name, weights, overrides)
        elif ":" in name:
            classifier = _from_function(name, weights, overrides)
        else:
            classifier = _torchvision(name, weights, overrides)
        return classifier if labels is None else _relabelled(classifier, labels)


def open_artifact(
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
    """The classifier in a file of `convad_fx.save`; its model is a masked network.

    Args:
        path: the file.
        weights: only `DEFAULT` is allowed: the file has its own.
        labels, size, resize, mean, std: as in `resolve`, instead of those in the file.
        device: where to load it.
        trusted: as in `convad_fx.load`.

    Raises:
        ArtifactError: no such file, or a damaged one.
        ModelError: other weights, or labels that do not fit.
        ImageError: the file has no preprocessing, or not in the form that `recorded` writes.
    """
    if weights != "DEFAULT":
        raise ModelError(
            f"{path} contains its weights", hint="leave `--weights` out, or compile it again"
        )
    masked, about = artifact.load(path, device, trusted), artifact.describe(path)
    record = dict(about.preprocessing or images.recorded(standard(size or 224)))
    if about.preprocessing is None and not (size and mean and std):
        raise ImageError(
            f"{path} does not record its preprocessing",
            hint="pass `--size`, `--mean` and `--std`, or compile it again",
        )
    if size:
        # normalised: lists of numbers, or an error
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
    """The classifier's network as `(x, mask) -> logits`, on `device`; converted if necessary.

    Without a policy, that of the file applies, or the default.

    >>> masked_network(resolve("demo"), torch.device("cpu")).policy == Policy()
    True

    Raises:
        PolicyError: it was compiled with another policy.
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
def _torchvision(name: str, weights: str, overrides: _Overrides) -> Classifier:
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        raise ModelError(_no_such_model(name), hint=_suggestion(name, names))
    published = torchvision.models.get_model_weights(name)
    build = functools.partial(_build, name)

    path = _weights_file(weights)
    if path is not None:
        known = _matching_release(path, published)
        if known is not None:
            return _published(name, known, overrides, path)
        state = read(path)
        # The auxiliary heads of these two do not affect the output; files may leave them out.
        if name in ("googlenet", "inception_v3"):
            build = functools.partial(build, aux_logits=any("aux" in k.lower() for k in state))
        model = build(class_count(build, state))
        fill(model, state, path)
        return _unpublished(name, model, str(path), published.DEFAULT, overrides)
    if weights == "none":
        return _unpublished(name, _build_random(build), RANDOM, published.DEFAULT, overrides)

    members = {"DEFAULT": published.DEFAULT, **{w.name: w for w in published}}
    if weights not in members:
        raise ModelError(
            f"{name} has no weights called {weights!r}",
            hint=f"use {', '.join(members)}, none, or a file (.pt, .pth, .safetensors)",
        )
    return _published(name, members[weights], overrides)


def _build(name: str, classes: int, **options: Any) -> nn.Module:
    # Their default initialisation is slow and warns, and is overwritten or not needed.
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    model: nn.Module = torchvision.models.get_model(name, num_classes=classes, **options)
    return model


def _published(
    name: str, weights: Any, overrides: _Overrides, path: Path | None = None
) -> Classifier:
    """Load by torchvision: from the internet, its cache, or a copy of the file at `path`."""
    if not weights.meta.get("categories"):
        raise ModelError(f"{weights} has no classifier, only features", hint="use other weights")
    cache = contextlib.nullcontext() if path is None else _hub_cache_with(path)
    try:
        with cache, _timeout():
            model = torchvision.models.get_model(name, weights=weights)
    except (OSError, http.client.HTTPException) as error:
        raise _not_fetched(f"the weights {weights.name} of {name}", weights.url, error) from error
    # A download with another checksum, or a damaged file in the cache.
    except (RuntimeError, EOFError, ValueError) as error:
        raise Unavailable(
            f"the weights {weights.name} of {name} arrived damaged ({error})",
            hint=f"delete {Path(torch.hub.get_dir(), 'checkpoints', Path(weights.url).name)}",
        ) from error
    return Classifier(
        name,
        model.eval(),
        *_presets(weights, overrides),
        labels=tuple(weights.meta["categories"]),
        weights=f"{weights.name}, from {path}" if path else weights.name,
    )


def _unpublished(
    name: str, model: nn.Module, weights: str, usual: Any, overrides: _Overrides
) -> Classifier:
    return Classifier(name, model.eval(), *_presets(usual, overrides), labels=(), weights=weights)


def _presets(weights: Any, overrides: _Overrides) -> tuple[Preprocess, tuple[int, int]]:
    """torchvision's preprocessing for `weights`, with the user's numbers where given."""
    usual = weights.transforms()
    size = overrides.size or usual.crop_size[0]
    # The margin around the crop stays in proportion.
    resize = overrides.resize or round(size * usual.resize_size[0] / usual.crop_size[0])
    mean, std = overrides.mean or tuple(usual.mean), overrides.std or tuple(usual.std)
    standard(size, resize, mean, std)  # checks the numbers
    steps = weights.transforms(crop_size=size, resize_size=resize, mean=mean, std=std)
    return Preprocess(steps, mean, std), (size, size)


def _matching_release(path: Path, published: Any) -> Any:
    """The `published` weights that the file is a copy of, by name and checksum, or None."""
    for weights in published:
        digits = re.search(r"-([0-9a-f]{8,})\.", path.name)
        if Path(weights.url).name != path.name or digits is None or not path.is_file():
            continue
        if _sha256(path).startswith(digits[1]):
            # torchvision's loader unpickles anything; `read` accepts tensors only.
            read(path)
            return weights
    return None


def _sha256(path: Path) -> str:
    """In hexadecimal; read in blocks, since weights may take gigabytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def _hub_cache_with(path: Path) -> Iterator[None]:
    """Replace torch.hub's cache by one that contains the file at `path`."""
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
def _timm(name: str, weights: str, overrides: _Overrides) -> Classifier:
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
        raise ModelError(_no_such_model(name), hint=_suggestion(name, names))

    def build(classes: int) -> nn.Module:
        model: nn.Module = timm.create_model(short, num_classes=classes)
        return model

    labels: tuple[str, ...] = ()
    path = _weights_file(weights)
    if path is not None:
        state = read(path)
        config = timm.get_pretrained_cfg(short)
        model = build(class_count(build, state, config.num_classes if config else 1000))
        fill(model, state, path)
        source = str(path)
    elif weights == "none":
        model, source = _build_random(lambda _: timm.create_model(short)), RANDOM
    else:
        tag = tag if weights == "DEFAULT" else weights
        model = _timm_published(f"{short}.{tag}" if tag else short)
        source = str(model.pretrained_cfg.get("tag") or "DEFAULT")
        labels = _timm_labels(model)
    config = timm.data.resolve_model_data_config(model)
    channels, *size = config["input_size"]
    if channels != 3:
        raise ModelError(f"{name} takes {channels} channels", hint="pick a model for RGB pictures")
    if overrides.size or overrides.resize:
        size = [overrides.size or size[0]] * 2
        config["input_size"] = (3, *size)
        config["crop_pct"] = (
            size[0] / overrides.resize if overrides.resize else config.get("crop_pct", 0.875)
        )
    config["mean"] = overrides.mean or tuple(config["mean"])
    config["std"] = overrides.std or tuple(config["std"])
    standard(size[0], overrides.resize, config["mean"], config["std"])
    steps = timm.data.create_transform(**config, is_training=False)
    preprocess = Preprocess(steps, tuple(config["mean"]), tuple(config["std"]))
    return Classifier(name, model.eval(), preprocess, (size[0], size[1]), labels, source)


def _timm_published(name: str) -> Any:
    """Load by timm. Its client retries for a minute, so check first whether the server answers."""
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
                with _timeout():
                    urllib.request.urlopen(ENDPOINT).close()
            except urllib.error.HTTPError:
                pass  # it answers
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


# ------------------------------------------------------------------ your own function, the demo
def _from_function(name: str, weights: str, overrides: _Overrides) -> Classifier:
    module_name, _, attribute = name.partition(":")
    # As `python -m` does, so that files in the working folder are found.
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
                f"{module_name} has no {attribute!r}", hint=_suggestion(attribute, names)
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
    source = _load_weights(name, model, weights) or "the function's own"
    size = overrides.size or 224
    preprocess = standard(
        size, overrides.resize, overrides.mean or IMAGENET_MEAN, overrides.std or IMAGENET_STD
    )
    return Classifier(name, model.eval().cpu(), preprocess, (size, size), (), source)


def _demo(weights: str, overrides: _Overrides) -> Classifier:
    from convad_fx.demo import network, scenes

    model = network.load()
    source = _load_weights("demo", model, weights) or "in the package"
    size = overrides.size or network.SIZE
    preprocess = standard(
        size, overrides.resize or size, overrides.mean or network.MEAN, overrides.std or network.STD
    )
    return Classifier("demo", model.eval(), preprocess, (size, size), tuple(scenes.CLASSES), source)


def _load_weights(name: str, model: nn.Module, weights: str) -> str:
    """Load the file `weights` into a model that has parameters; its path, or "" to keep them."""
    if weights in ("DEFAULT", "none"):
        return ""
    path = _weights_file(weights)
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
    """Raise `ModelError` unless there is one name per class of the network."""
    parameter = next(classifier.model.parameters(), torch.zeros(()))
    x = classifier.example(parameter.device)  # an artifact may be on a GPU
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
    # one value answers no or yes
    classes = (2,) if shape in ((1,), (1, 1)) else shape[1:]
    if classes != (len(classifier.labels),):
        raise ModelError(
            f"{source} names {len(classifier.labels)} classes, and {classifier.name} answers one "
            f"image with shape {shape}",
            hint="pass one name for each class of the model, in order",
        )


def read_labels(path: Path) -> tuple[str, ...]:
    """The class names in `path`: one per line, a JSON list, or a JSON dict from number to name.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp(), "labels.json")
    >>> _ = file.write_text('{"1": "dog", "0": ["n02123045", "cat"]}')
    >>> read_labels(file)
    ('cat', 'dog')

    Raises:
        ModelError: the file cannot be read, or has another form.
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


# ------------------------------------------------------------------------------------ shared parts
def _build_random(build: Callable[[int], nn.Module]) -> nn.Module:
    """A network with the same random weights every time; the caller's random state is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(1000)


def _weights_file(weights: str) -> Path | None:
    """`weights` as a path, if it looks like one."""
    path = Path(weights)
    known = path.suffix in (".pt", ".pth", ".safetensors", ".bin", ".ckpt")
    return path if known or path.is_file() or len(path.parts) > 1 else None


@contextlib.contextmanager
def _timeout() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_SECONDS)
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
        return f"{name} is not an image classifier"
    return f"torchvision has no classifier called {name!r}"


def _suggestion(name: str, names: Sequence[str]) -> str:
    plain = name.lower().replace("-", "_")
    close = difflib.get_close_matches(plain, names, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(close)}?"
    if names and not name.startswith("timm:"):
        return "name a torchvision classifier, `timm:NAME`, `package.module:function` or `demo`"
    return "check the name"


def _raised(error: BaseException) -> str:
    """The error and its line, for errors in the user's own code."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = first_line(error, with_type=True)
    return f"raised {text} ({Path(frame.filename).name}:{frame.lineno})"


__all__ = ["Classifier", "masked_network", "open_artifact", "read_labels", "resolve"]
