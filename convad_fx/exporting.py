"""The masked network for other tools: torch.export, and ONNX with two inputs, image and mask.

Both take any batch of images with one mask each, at the size of the example it was converted for.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from convad_fx.compiler.capture.torch_export import quiet
from convad_fx.errors import (
    ModelError,
    Unavailable,
    UnsupportedModel,
    first_line,
    require_regular_place,
)
from convad_fx.module import MaskedModule

#: Names of the exported network's inputs and output.
INPUTS, OUTPUT = ("image", "mask"), "logits"
#: Prefix of the names of parameters in an exported program.
PREFIX = "network."
#: An ONNX file is one protobuf message of at most 2 GB; networks with more bytes of weights than
#: this keep them in a second file.
MAX_BYTES_IN_ONE_FILE = 1_800_000_000


class _Plain(nn.Module):
    """A masked network as a plain module of two tensors, as exporters expect it."""

    def __init__(self, masked: MaskedModule) -> None:
        super().__init__()
        self.network = masked  # the attribute's name is PREFIX

    def train(self, mode: bool = True) -> _Plain:  # noqa: ARG002  (torch.export calls it)
        return self

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        logits: Tensor = self.network.forward(image, mask)
        return logits


def example(masked: MaskedModule, batch: int = 2) -> tuple[Tensor, Tensor]:
    """An image batch and masks of the size, dtype and device that the network was converted for."""
    kept = next(node for node in masked.graph.nodes if node.name == "kept")
    channels = int(kept.kwargs["channels"])
    like = next((p for p in masked.parameters() if p.is_floating_point()), torch.zeros(()))
    size = (batch, channels, *masked.strategies.box.image_size)
    image = torch.zeros(size, dtype=like.dtype, device=like.device)
    return image, torch.ones_like(image[:, :1], dtype=torch.bool)


def export(masked: MaskedModule) -> torch.export.ExportedProgram:
    """torch.export of a masked network: ``program.module()(image, mask)``.

    >>> import torch, torchvision, convad_fx
    >>> masked = convad_fx.convert(torchvision.models.alexnet().eval(), torch.zeros(1, 3, 64, 64))
    >>> program = convad_fx.export(masked)
    >>> x, mask = torch.rand(3, 3, 64, 64), torch.rand(3, 1, 64, 64) > 0.5
    >>> torch.allclose(program.module()(x, mask), masked(x, mask), atol=1e-5)
    True

    Image (N, C, H, W) and mask (N, 1, H, W), bool, have the same batch, of any size from 1 on; the
    image size is that of the example it was converted for.

    Raises:
        ModelError: not a masked network.
        UnsupportedModel: torch.export cannot capture it; the message quotes its error.
    """
    if not isinstance(masked, MaskedModule):
        raise ModelError(
            f"expected a masked network, not {type(masked).__name__}",
            hint="convert the model first: convad_fx.convert(model, example)",
        )
    batch = torch.export.Dim("batch", min=1, max=65536)
    try:
        with quiet(), torch.no_grad():
            return torch.export.export(
                _Plain(masked).eval(),
                example(masked),
                dynamic_shapes={name: {0: batch} for name in INPUTS},
                strict=False,
            )
    except Exception as error:  # torch.export passes on whatever a module raises
        reason = first_line(error, with_type=True)
        raise UnsupportedModel(
            f"torch.export cannot capture {masked.report.model}, masked: {reason}",
            hint="use convad_fx.save, whose files hold every masked network",
        ) from error


def export_onnx(masked: MaskedModule, path: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Write a masked network as ONNX: inputs ``image`` and ``mask`` (bool), output ``logits``.

    >>> convad_fx.export_onnx(masked, "resnet50.onnx")                # doctest: +SKIP
    >>> session = onnxruntime.InferenceSession("resnet50.onnx")       # doctest: +SKIP
    >>> session.run(None, {"image": image, "mask": mask})             # doctest: +SKIP

    Image and mask have the same batch, of any size. Results differ from torch's by rounding.
    Networks of more than 1.8 GB keep their weights in a second file beside it,
    ``resnet50.onnx.data``.

    Returns:
        The files written.

    Raises:
        ModelError, UnsupportedModel: as `export`; or ONNX lacks an operation.
        Unavailable: the packages onnx and onnxscript are not installed, or the file cannot be
            written: there is a directory or a device at `path`, say. What is there is unchanged.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise Unavailable(
            "ONNX needs the packages onnx and onnxscript", hint="`pip install convad_fx[onnx]`"
        ) from error
    path = Path(path)
    require_regular_place(path, Unavailable)
    program = export(masked)
    try:
        with quiet():
            onnx = torch.onnx.export(
                program, input_names=list(INPUTS), output_names=[OUTPUT], dynamo=True, verbose=False
            )
            assert onnx is not None
            shape = onnx.model.graph.inputs[0].shape
            assert shape is not None
            onnx.rename_axes({str(shape[0]): "batch"})  # torch.export's own name is like s31
    except Exception as error:  # the exporter raises errors of many types
        reason = first_line(error, with_type=True)
        raise UnsupportedModel(
            f"ONNX cannot hold {masked.report.model}, masked: {reason}",
            hint="use convad_fx.save, whose files hold every masked network",
        ) from error
    large = sum(t.nbytes for t in masked.state_dict().values()) > MAX_BYTES_IN_ONE_FILE
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name[:100]}.", dir=path.parent) as folder:
            with quiet():
                onnx.save(str(Path(folder, path.name)), external_data=large)
            # the weights first: the network's file is of no use without them
            files = sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name)
            return tuple(file.replace(path.with_name(file.name)) for file in files)
    except OSError as error:
        raise Unavailable(
            f"{path} cannot be written ({error.strerror or error})", hint="pass another path"
        ) from error
