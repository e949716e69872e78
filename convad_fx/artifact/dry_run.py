"""Whether a network from a file runs: once, without values, on the image size that it was made for.

On torch's meta device operations check their arguments and compute shapes, and no memory is used.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from convad_fx.compiler.capture.shapes import TreeInterpreter
from convad_fx.compiler.kernels.gating import gate
from convad_fx.compiler.kernels.mask_check import checked_mask
from convad_fx.errors import ArtifactError, first_line
from convad_fx.module import MaskedModule

#: No tensor that a network computes of two images may take more memory, in bytes.
MAX_BYTES = 2**37
_META = torch.device("meta")


def require_runs(masked: MaskedModule) -> None:
    """Run a network on the meta device.

    Where its operations depend on values, which meta tensors have not, nothing is decided.

    Raises:
        ArtifactError: it does not run; the message quotes torch's error.
    """
    kept = next((node for node in masked.graph.nodes if node.target is checked_mask), None)
    if kept is None or "channels" not in kept.kwargs:
        raise ArtifactError("the network does not check its image and mask")
    like = next((p for p in masked.parameters() if p.is_floating_point()), torch.zeros(()))
    size = (2, int(kept.kwargs["channels"]), *masked.strategies.box.image_size)
    try:
        image = torch.empty(size, dtype=like.dtype, device=_META)
        _require_memory(image)
        mask = torch.empty_like(image[:, :1], dtype=torch.bool)
        with torch.no_grad():
            _OnMeta(masked, garbage_collect_values=True).run(image, mask)
    except ArtifactError:
        raise
    except Exception as error:  # whatever an operation raises
        if isinstance(error, NotImplementedError) or "meta tensor" in str(error):
            return
        raise ArtifactError(
            f"the network does not run on a batch of shape {size}"
            f" ({first_line(error, with_type=True)})",
            hint="save the network again; trust no such file from others",
        ) from error


class _OnMeta(TreeInterpreter):
    """Runs a graph on the meta device, and bounds the memory of each result."""

    def run_node(self, n: torch.fx.Node) -> Any:
        result = super().run_node(n)
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor):
                _require_memory(value)
        return result

    def fetch_attr(self, target: str) -> Any:
        """A module or tensor of the network, on the meta device."""
        value = super().fetch_attr(target)
        return _module_on_meta(value) if isinstance(value, nn.Module) else value.to(_META)

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a layer; a batch norm only checks channels: torch computes its shape slowly."""
        module = self.fetch_attr(target)
        if isinstance(module, nn.modules.batchnorm._NormBase) and not kwargs:
            (z,) = args
            sizes = {t.shape for t in (*module._parameters.values(), *module._buffers.values())
                     if t is not None and t.dim()}  # fmt: skip
            if sizes - {z.shape[1:2]}:
                raise ValueError(f"{target} is not for {z.shape[1]} channels")
            return torch.empty_like(z)
        return module(*args, **kwargs)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function; what creates a tensor of a size creates it on the meta device."""
        if target is gate:
            z, activity = args[:2]
            shape = torch.broadcast_shapes(z.shape, activity.shape)  # type: ignore[no-untyped-call]
            return z.expand(shape)
        if "device" in kwargs or getattr(target, "__name__", "") in ("zeros", "ones", "full"):
            kwargs = {**kwargs, "device": _META}
        return super().call_function(target, args, kwargs)


def _module_on_meta(module: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers have no values; attributes are shared."""
    result = copy.copy(module)
    result._parameters = {n: _on_meta(p) for n, p in module._parameters.items()}
    result._buffers = {n: _on_meta(b) for n, b in module._buffers.items()}
    result._modules = {n: m and _module_on_meta(m) for n, m in module._modules.items()}
    return result


def _on_meta(t: Any) -> Any:
    if t is None:
        return None
    meta = t.detach().to(_META)
    return nn.Parameter(meta, requires_grad=False) if isinstance(t, nn.Parameter) else meta


def _require_memory(t: Tensor) -> None:
    if t.numel() * t.element_size() > MAX_BYTES:
        raise ArtifactError(
            f"a tensor of the network has the shape {tuple(t.shape)}, more than"
            f" {MAX_BYTES >> 30} GiB",
            hint="save the network again; trust no such file from others",
        )
