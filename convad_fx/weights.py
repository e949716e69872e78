"""State-dict files: read them safely, fit them to a model, say readably where they do not fit.

>>> import tempfile, pathlib
>>> path = pathlib.Path(tempfile.mkdtemp(), "tiny.pt")
>>> torch.save({"state_dict": {"module.weight": torch.ones(3, 2)}}, path)
>>> state = read(path)
>>> fill(nn.Linear(2, 3, bias=False), state, path)
"""

import pickle
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from convad_fx.errors import ModelError, first_line

State = dict[str, torch.Tensor]

# Where training scripts put the state dict in a checkpoint, and what wrappers put before its keys.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")


def read(path: Path) -> State:
    """The tensors in `path` by name, unwrapped from `{"state_dict": ...}` and from `module.`.

    `.safetensors` is read as that, everything else by `torch.load(weights_only=True)`, which runs
    no code from the file.

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
            f"{path} holds more than tensors, or is no torch file, so it is not loaded",
            hint="save the weights alone: `torch.save(model.state_dict(), path)`",
        ) from error
    # On bytes that are no pickle the unpickler raises whatever it stumbles over.
    except Exception as error:
        raise ModelError(
            f"{path} is damaged or no weights file ({first_line(error)})",
            hint="fetch or export it again",
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
            break
    if not isinstance(loaded, dict) or not loaded:
        raise ModelError(
            f"{path} holds a {type(loaded).__name__}, not a state dict with tensors",
            hint="save the weights alone: `torch.save(model.state_dict(), path)`",
        )
    others = [str(key) for key, value in loaded.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise ModelError(
            f"{path} is not a state dict: {_listed(others)} {_are(others)} no tensor",
            hint=f"put the state dict under one of the keys {', '.join(_WRAPPERS)}",
        )
    return {str(key): value for key, value in loaded.items()}


def fill(model: nn.Module, state: State, path: Path) -> None:
    """Load `state`, read from `path`, into `model`, all of it or not at all.

    Raises:
        ModelError: names or shapes differ; the message lists both sides.
    """
    target = model.state_dict()
    state = _fitted(state, target.keys())
    # BatchNorm counts batches since torch 0.4.1; older files lack the counter, and nobody reads it.
    missing = [k for k in target if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in target]
    shapes = [
        f"{k} is {tuple(state[k].shape)} in the file and {tuple(target[k].shape)} in the model"
        for k in target
        if k in state and state[k].shape != target[k].shape
    ]
    wrong = []
    if missing:
        wrong.append(f"{len(missing)} missing ({_listed(missing)})")
    if unexpected:
        wrong.append(f"{len(unexpected)} unknown to the model ({_listed(unexpected)})")
    if shapes:
        wrong.append(f"{len(shapes)} of another shape ({_listed(shapes)})")
    if wrong:
        raise ModelError(
            f"{path} does not fit the model's {len(target)} tensors: {', '.join(wrong)}",
            hint="name the architecture and the number of classes the file was trained with",
        )
    model.load_state_dict(state, strict=False)


def class_count(build: Callable[[int], nn.Module], state: State, default: int = 1000) -> int:
    """How many classes `state` was trained for, given a builder of its architecture.

    >>> class_count(lambda n: nn.Linear(4, n), {"weight": torch.ones(7, 4), "bias": torch.ones(7)})
    7

    The tensors that belong to the classes are those whose first size is the number of classes in
    the model and something else, the same for all of them, in the file. Where that is not so the
    answer is `default`, and `fill` will say what differs.
    """
    with torch.device("meta"):
        target = build(default).state_dict()
    state = _fitted(state, target.keys())
    counts = {
        state[k].shape[0]
        for k, v in target.items()
        if k in state
        and state[k].shape != v.shape
        and state[k].ndim == v.ndim > 0
        and v.shape[0] == default
    }
    return counts.pop() if len(counts) == 1 else default


def _fitted(state: State, names: Iterable[str]) -> State:
    """`state` without the prefixes a wrapper put before every one of its names."""
    names = set(names)
    while not names & state.keys():
        prefix = next((p for p in _PREFIXES if all(k.startswith(p) for k in state)), None)
        if prefix is None:
            return state
        state = {k.removeprefix(prefix): v for k, v in state.items()}
    return state


def _listed(entries: list[str], most: int = 3) -> str:
    return ", ".join(entries[:most]) + (", ..." if len(entries) > most else "")


def _are(entries: list[str]) -> str:
    return "is" if len(entries) == 1 else "are"
