"""What `convert` and `check` require of the model and of the example image."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from convad_fx.errors import ImageError, ModelError, UntraceableModel

#: Modules whose forward is that of their ``module``.
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)


def unwrapped(model: nn.Module) -> nn.Module:
    """The network itself, without the wrappers of torch.compile, DataParallel and AveragedModel."""
    # torch._dynamo is slow to import; whoever compiled the model has imported it
    dynamo: Any = sys.modules.get("torch._dynamo.eval_frame")
    compiled: tuple[type[nn.Module], ...] = (dynamo.OptimizedModule,) if dynamo else ()
    while isinstance(model, compiled + _WRAPPERS):
        inner = model._orig_mod if isinstance(model, compiled) else model.module
        assert isinstance(inner, nn.Module)
        model = inner
    return model


def require_eval(model: object) -> None:
    """Raises `ModelError` unless the model is an `nn.Module` in eval mode."""
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            "a TorchScript module has no Python code left to capture",
            hint="pass the torch.nn.Module it was scripted or traced from",
        )
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"expected a torch.nn.Module, not {type(model).__name__}",
            hint="functions can be wrapped in a Module",
        )
    if isinstance(model, torch.fx.GraphModule) and hasattr(model, "validate_inputs"):
        raise ModelError(
            "a module made by torch.export has no eval mode, and no modules to name",
            hint="pass the torch.nn.Module that was exported",
        )
    training = next((name for name, m in model.named_modules() if m.training), None)
    if training is not None:
        raise ModelError(
            f"{type(model).__name__} is in training mode: dropout and batch statistics would change"
            " its results",
            hint="call model.eval()",
            path=training,
        )


def image_parameter(model: nn.Module) -> str:
    """The name of the parameter of forward that takes the image; ``x`` for ``*args``.

    Raises:
        ModelError: forward takes no image, or needs more than an image.
    """
    parameters = list(inspect.signature(model.forward).parameters.values())
    starred = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in starred]
    first = parameters[0] if parameters else None
    if first is None or first.kind in (first.KEYWORD_ONLY, first.VAR_KEYWORD) or len(needed) > 1:
        raise ModelError(
            f"{type(model).__name__}.forward takes {len(needed)} inputs ({', '.join(needed)});"
            " expected one image batch",
            hint="wrap it in a module that fixes the others",
        )
    return "x" if first.kind is first.VAR_POSITIONAL else first.name


def require_image(example: object) -> None:
    """Raises `ImageError` unless the example is a floating point batch (N, C, *grid)."""
    if not isinstance(example, Tensor) or not 3 <= example.dim() <= 5:
        given = tuple(example.shape) if isinstance(example, Tensor) else type(example).__name__
        raise ImageError(
            f"the example is {given}; expected an image batch (N, C, H, W), or with one or three"
            " grid axes",
            hint="for example torch.zeros(1, 3, 224, 224)",
        )
    if not example.is_floating_point():
        raise ImageError(
            f"the example has dtype {example.dtype}; expected a floating point image batch",
            hint="normalise the image as the model expects",
        )


def autocast_region(device: str, dtype: torch.dtype) -> UntraceableModel:
    """The refusal of a forward that opens an autocast region: no front end keeps it."""
    name = str(dtype).removeprefix("torch.")
    return UntraceableModel(
        f"forward opens torch.autocast({device!r}, dtype=torch.{name}), which would be lost",
        hint="remove it from forward; call the masked network inside such a region instead, or pass"
        f' precision="{name}" to evaluate',
    )
