"""State-dict files: read them safely, and load them into a model with readable errors.

>>> import tempfile, pathlib
>>> path = pathlib.Path(tempfile.mkdtemp(), "tiny.pt")
>>> torch.save({"state_dict": {"module.weight": torch.ones(3, 2)}}, path)
>>> state = read(path)
>>> fill(nn.Linear(2, 3, bias=False), state, path)
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from convad_fx.errors import ModelError, first_line

State = dict[str, torch.Tensor]

# Keys of the state dict in the checkpoints of training scripts, and prefixes of its own keys there.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")


def read(path: Path) -> State:
    """The tensors of a file by name, also of a checkpoint ``{"state_dict": ...}``.

    ``.safetensors`` files are read by safetensors, all others by ``torch.load(weights_only=True)``,
    which runs no code from the file.

    Raises:
        ModelError: the file is missing, damaged, or holds something other than tensors.
    """
    if not path.is_file():
        raise ModelError(f"there is no weights file {path}", hint="check the path")
    try:
        loaded = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} contains more than tensors, or is not a torch file",
            hint="save the weights alone: `torch.save(model.state_dict(), path)`",
        ) from error
    except Exception as error:  # the unpickler raises errors of many types
        raise ModelError(
            f"{path} is damaged or not a weights file ({first_line(error)})",
            hint="download or export it again",
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
            break
    if not isinstance(loaded, dict) or not loaded:
        raise ModelError(
            f"{path} contains a {type(loaded).__name__}, not a state dict with tensors",
            hint="save the weights alone: `torch.save(model.state_dict(), path)`",
        )
    others = [str(key) for key, value in loaded.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise ModelError(
            f"{path} is not a state dict: not tensors: {_listed(others)}",
            hint=f"put the state dict under one of the keys {', '.join(_WRAPPERS)}",
        )
    return {str(key): value for key, value in loaded.items()}


def fill(model: nn.Module, state: State, path: Path) -> None:
    """Load `state`, which was read from `path`, into `model`, completely or not at all.

    Raises:
        ModelError: names or shapes differ; the message lists the differences.
    """
    target = model.state_dict()
    state = _without_prefixes(state, target.keys())
    # files older than torch 0.4.1 lack BatchNorm's counter, which is not used in eval mode
    missing = [k for k in target if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in target]
    shapes = [
        f"{k} is {tuple(state[k].shape)} in the file and {tuple(target[k].shape)} in the model"
        for k in target
        if k in state and state[k].shape != target[k].shape
    ]
    differences = []
    if missing:
        differences.append(f"{len(missing)} missing ({_listed(missing)})")
    if unexpected:
        differences.append(f"{len(unexpected)} unknown to the model ({_listed(unexpected)})")
    if shapes:
        differences.append(f"{len(shapes)} of another shape ({_listed(shapes)})")
    if differences:
        raise ModelError(
            f"{path} does not fit the model's {len(target)} tensors: {', '.join(differences)}",
            hint="name the architecture and the number of classes the file was trained with",
        )
    model.load_state_dict(state, strict=False)


def class_count(build: Callable[[int], nn.Module], state: State, default: int = 1000) -> int:
    """The number of classes that `state` was trained for, from a builder of its architecture.

    >>> class_count(lambda n: nn.Linear(4, n), {"weight": torch.ones(7, 4), "bias": torch.ones(7)})
    7

    A model is built for `default` classes. Tensors whose first size is `default` there and
    something else in the file belong to the classes. If these disagree, the result is `default`,
    and `fill` reports the differences.
    """
    with torch.device("meta"):
        target = build(default).state_dict()
    state = _without_prefixes(state, target.keys())
    counts = {
        state[k].shape[0]
        for k, v in target.items()
        if k in state
        and state[k].shape != v.shape
        and state[k].ndim == v.ndim > 0
        and v.shape[0] == default
    }
    return counts.pop() if len(counts) == 1 else default


def _without_prefixes(state: State, names: Iterable[str]) -> State:
    """`state` without the prefixes that wrappers add to all names."""
    names = set(names)
    while not names & state.keys():
        prefix = next((p for p in _PREFIXES if all(k.startswith(p) for k in state)), None)
        if prefix is None:
            return state
        state = {k.removeprefix(prefix): v for k, v in state.items()}
    return state


def _listed(entries: list[str], limit: int = 3) -> str:
    return ", ".join(entries[:limit]) + (", ..." if len(entries) > limit else "")
