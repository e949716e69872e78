"""`convad-fx export`."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument

from convad_fx import artifact, models
from convad_fx.cli import options as opts
from convad_fx.convert import convert
from convad_fx.errors import PolicyError
from convad_fx.exporting import export_onnx

EXAMPLES = """Examples:

\b
  convad-fx export resnet50 -o resnet50.onnx
  convad-fx export mine:build --weights mine.pt --size 96 -o mine.onnx
  convad-fx export mine.cfx -o mine.onnx          (a file of convad-fx compile, with its policy)
"""


def command(
    model: Annotated[str, Argument(metavar="MODEL", help=opts.MODEL_HELP + opts.FILE_HELP)],
    out: opts.OutputFile,
    weights: opts.Weights = "DEFAULT",
    size: opts.Size = None,
    trusted: opts.Trusted = False,
) -> None:
    """Export MODEL, masked, to ONNX: inputs `image`, `mask` (bool, True = kept), output `logits`.

    The batch is free, the size of the image is not. Needs the packages onnx and onnxscript.
    """
    if Path(model).is_file():
        if weights != "DEFAULT" or size is not None:
            raise PolicyError(
                f"{model} contains its weights and size", hint="leave the options out"
            )
        masked = artifact.load(model, trusted=trusted)
    elif trusted:
        raise PolicyError(f"{model} is not a file", hint="leave `--trusted` out")
    else:
        classifier = models.resolve(model, weights, size=size)
        masked = convert(classifier.model, classifier.example())
    export_onnx(masked, out)
    typer.echo(f"{out}: {out.stat().st_size / 1e6:.1f} MB")
