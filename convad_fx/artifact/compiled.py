"""The network as machine code (AOTInductor), so that a fresh process need not compile.

The package in the file holds code, and of the weights only the smallest; it gets the others from
the network in the file, and where those are changed later the graph is run. It is made for one kind
of device and one version of torch, and answers the calls that it was made for: images of the
example's size and dtype, with one mask each (or one image, or one mask). Every other call runs the
graph, as if there were no package. So does `evaluate` on boxes: only whole images are compiled.
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
from convad_fx.compiler.capture.export import quiet
from convad_fx.errors import Unavailable, first_line
from convad_fx.module import MaskedModule


def build(masked: MaskedModule) -> tuple[bytes, dict[str, Any]]:
    """The package, and what it was made for.

    Raises:
        UnsupportedModel: torch.export cannot capture the network.
        Unavailable: AOTInductor does not work here.
    """
    program = exporting.export(masked)
    image, _ = exporting.example(masked)
    with tempfile.TemporaryDirectory() as folder:
        try:
            with quiet():
                made = torch._inductor.aoti_compile_and_package(
                    program,
                    package_path=str(Path(folder, "network.pt2")),
                    inductor_configs={
                        "aot_inductor.package_constants_in_so": False,
                        # as many as where it runs, not as here
                        "cpp.dynamic_threads": True,
                    },
                )
        except Exception as error:  # whatever the compiler and its tools raise
            raise Unavailable(
                f"AOTInductor cannot compile {masked.report.model} here"
                f" ({first_line(error, with_type=True)})",
                hint="it needs a C++ compiler (and CUDA's tools for a GPU); or save it without"
                " compiled=True",
            ) from error
        package = Path(made).read_bytes()
    return package, {
        **_here(image.device),
        "size": list(image.shape[1:]),
        "dtype": str(image.dtype).removeprefix("torch."),
    }


def _here(device: torch.device) -> dict[str, Any]:
    """What machine code depends on."""
    if device.type == "cuda":
        kind = torch.cuda.get_device_name(device)
        features = [f"cuda {torch.version.cuda}"]
    else:
        kind = torch.backends.cpu.get_cpu_capability()
        # one "AVX512" is not as good as another
        ask = getattr(torch.cpu, "get_capabilities", dict)  # not in every torch
        features = [name for name, has in ask().items() if has is True]
    return {
        "torch": str(torch.__version__),
        "system": platform.system(),
        "machine": platform.machine(),
        "device": device.type,
        "kind": kind,
        "features": sorted(features),
    }


def misfits(made_for: Mapping[str, Any], device: torch.device) -> str:
    """Why the package cannot run here, or ""."""
    here = _here(device)
    missing = sorted(set(made_for["features"]) - set(here.pop("features")))
    found = [f"{key} {made_for[key]}, here {now}" for key, now in here.items()
             if made_for[key] != now]  # fmt: skip
    if missing and not found:
        found = [f"a processor with {', '.join(missing)}, which this one has not"]
    return "; ".join(found)


class Compiled:
    """The code of a package, on the weights of a network. Made of trusted files only: it is run.

    Answers have no gradients with respect to the weights; where the image asks for its own, the
    graph is run.

    Raises:
        RuntimeError: torch cannot load the package.
    """

    def __init__(self, masked: MaskedModule, package: bytes, made_for: Any) -> None:
        self.masked, self.graph = masked, masked.forward
        self.size = tuple(int(n) for n in made_for["size"])
        self.dtype = getattr(torch, str(made_for["dtype"]))
        held = next((t.device for t in masked.state_dict().values()), None)
        self.device = held or torch.device(str(made_for["device"]))
        # torch takes the package apart into a folder of its own
        with tempfile.TemporaryDirectory(prefix="convad_fx-") as folder:
            path = Path(folder, "network.pt2")
            path.write_bytes(package)
            # torch._inductor.aoti_load_package does the same, after seconds of imports
            index = -1 if self.device.index is None else self.device.index
            self.loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, index)
        tensors: dict[str, Tensor] = dict(masked.named_parameters(remove_duplicate=False))
        tensors |= dict(masked.named_buffers(remove_duplicate=False))
        used = {
            name: tensors[name.removeprefix(exporting.PREFIX)].detach()
            for name in self.loader.get_constant_fqns()
        }
        # copied: which torch would keep the tensors that it is given alive is not documented
        self.loader.load_constants(used, False, True)
        self.state = self._state()

    def _state(self) -> tuple[tuple[int, int], ...]:
        """Where the weights are, and how often they were changed."""
        held = (*self.masked.parameters(), *self.masked.buffers())
        return tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in held)

    def __call__(self, x: Any, mask: Any = None) -> Any:
        """Logits, as the network's own forward."""
        if mask is None and isinstance(x, Tensor) and x.dim() == 1 + len(self.size):
            mask = torch.ones_like(x[:1, :1], dtype=torch.bool)
        if not self._fits(x, mask):
            return self.graph(x, mask)
        batch = max(len(x), len(mask))
        given = [t.detach().expand(batch, *t.shape[1:]).contiguous() for t in (x, mask)]
        (logits,) = self.loader.boxed_run(given)
        return logits

    def _fits(self, x: Any, mask: Any) -> bool:
        """Whether it was made for such a call."""
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
            # not moved, cast or trained since: small ones are in the code
            and self._state() == self.state
        )

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _nothing, ()  # a pickled or copied network runs its graph


def _nothing() -> None:
    return None


__all__ = ["Compiled", "build", "misfits"]
