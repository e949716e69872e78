"""The network as machine code (AOTInductor), so that a fresh process need not compile.

The package in the file contains code and the smallest weights; the others are those of the network
in the file. It is made for one kind of device and one version of torch, for images of the example's
size and dtype, with one mask each (or one image, or one mask). All other calls run the graph: other
sizes, changed weights, and `evaluate` on anything but whole images.
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convad_fx import exporting
from convad_fx.compiler.capture.torch_export import quiet
from convad_fx.engine.weight_versions import weight_versions
from convad_fx.errors import Unavailable, first_line
from convad_fx.module import MaskedModule


def build(masked: MaskedModule) -> tuple[bytes, dict[str, Any]]:
    """The package, and a description of the system and inputs it was made for.

    Raises:
        UnsupportedModel: torch.export cannot capture the network.
        Unavailable: AOTInductor does not work here.
    """
    program = exporting.export(masked)
    image, _ = exporting.example(masked)
    with tempfile.TemporaryDirectory() as folder:
        try:
            with quiet():
                package = torch._inductor.aoti_compile_and_package(
                    program,
                    package_path=str(Path(folder, "network.pt2")),
                    inductor_configs={
                        "aot_inductor.package_constants_in_so": False,
                        # the number of threads of the machine that runs it, not of this one
                        "cpp.dynamic_threads": True,
                    },
                )
        except Exception as error:  # whatever the compiler and its tools raise
            raise Unavailable(
                f"AOTInductor cannot compile {masked.report.model} here"
                f" ({first_line(error, with_type=True)})",
                hint="install a C++ compiler (and CUDA's tools for a GPU), or save it without"
                " compiled=True",
            ) from error
        content = Path(package).read_bytes()
    return content, {
        **_system(image.device),
        "size": list(image.shape[1:]),
        "dtype": str(image.dtype).removeprefix("torch."),
    }


def _system(device: torch.device) -> dict[str, Any]:
    """The properties of this system that machine code depends on."""
    if device.type == "cuda":
        kind = torch.cuda.get_device_name(device)
        features = [f"cuda {torch.version.cuda}"]
    else:
        kind = torch.backends.cpu.get_cpu_capability()
        # processors of the same capability, such as "AVX512", differ in features
        capabilities = getattr(torch.cpu, "get_capabilities", dict)  # not in every torch
        features = [name for name, has in capabilities().items() if has is True]
    return {
        "torch": str(torch.__version__),
        "system": platform.system(),
        "machine": platform.machine(),
        "device": device.type,
        "kind": kind,
        "features": sorted(features),
    }


def mismatch(made_for: Mapping[str, Any], device: torch.device) -> str:
    """Why the package cannot run here, or ""."""
    here = _system(device)
    missing = sorted(set(made_for["features"]) - set(here.pop("features")))
    differences = [f"{key} {made_for[key]}, here {value}" for key, value in here.items()
                   if made_for[key] != value]  # fmt: skip
    if missing and not differences:
        return f"a processor with {', '.join(missing)}, which this one lacks"
    return "; ".join(differences)


class Compiled:
    """Calls the code of a package with the weights of a network. For trusted files only.

    Results have no gradients with respect to the weights; if the image requires a gradient, the
    graph runs instead.

    Raises:
        RuntimeError: torch cannot load the package.
    """

    def __init__(self, masked: MaskedModule, package: bytes, made_for: Any) -> None:
        self.masked, self.graph = masked, masked.forward
        self.size = tuple(int(n) for n in made_for["size"])
        self.dtype = getattr(torch, str(made_for["dtype"]))
        weights = next((t.device for t in masked.state_dict().values()), None)
        self.device = weights or torch.device(str(made_for["device"]))
        # torch unpacks the package into a folder of its own
        with tempfile.TemporaryDirectory(prefix="convad_fx-") as folder:
            path = Path(folder, "network.pt2")
            path.write_bytes(package)
            # the same as torch._inductor.aoti_load_package, without seconds of imports
            index = -1 if self.device.index is None else self.device.index
            self.loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, index)
        tensors: dict[str, Tensor] = dict(masked.named_parameters(remove_duplicate=False))
        tensors |= dict(masked.named_buffers(remove_duplicate=False))
        used = {
            name: tensors[name.removeprefix(exporting.PREFIX)].detach()
            for name in self.loader.get_constant_fqns()
        }
        # copied: torch does not document whether it keeps the given tensors alive
        self.loader.load_constants(used, False, True)
        self.versions = weight_versions(masked)

    def __call__(self, x: Any, mask: Any = None) -> Any:
        """Logits: by machine code where it fits the call, otherwise by the graph."""
        if mask is None and isinstance(x, Tensor) and x.dim() == 1 + len(self.size):
            mask = torch.ones_like(x[:1, :1], dtype=torch.bool)
        if not self._fits(x, mask):
            return self.graph(x, mask)
        batch = max(len(x), len(mask))
        inputs = [t.detach().expand(batch, *t.shape[1:]).contiguous() for t in (x, mask)]
        (logits,) = self.loader.boxed_run(inputs)
        return logits

    def _fits(self, x: Any, mask: Any) -> bool:
        return (
            isinstance(x, Tensor)
            and isinstance(mask, Tensor)
            and x.shape[1:] == self.size
            and mask.shape[1:] == (1, *self.size[1:])
            and (x.dtype, mask.dtype) == (self.dtype, torch.bool)
            and x.device == mask.device == self.device
            and len(x) > 0
            and len(mask) > 0
            and (len(x) == len(mask) or 1 in (len(x), len(mask)))
            and not (torch.is_grad_enabled() and x.requires_grad)
            and not torch.is_autocast_enabled(x.device.type)
            # not moved, cast or trained since: small weights are part of the code
            and weight_versions(self.masked) == self.versions
        )

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _nothing, ()  # a pickled or copied network runs its graph


def _nothing() -> None:
    return None
