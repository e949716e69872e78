"""`convad-fx compile`."""

from typing import Annotated

import torch
import typer
from typer import Option

from convad_fx import artifact, images
from convad_fx import device as devices
from convad_fx.cli import options as opts
from convad_fx.cli.output import print_json
from convad_fx.convert import convert
from convad_fx.errors import PolicyError

EXAMPLES = """Examples:

\b
  convad-fx compile resnet50 -o resnet50.cfx
  convad-fx compile mine:build --size 96 --labels mine.txt -o mine.cfx
  convad-fx compile resnet50 --compiled -o resnet50.cfx    (with machine code for this computer)
  convad-fx explain cat.jpg --model mine.cfx --out why
"""


def command(
    model: opts.ModelArgument,
    out: opts.OutputFile,
    source: opts.ModelOptions,
    policy: opts.PolicyOptions,
    labels: opts.Labels = None,
    compiled: Annotated[
        bool,
        Option(
            "--compiled",
            help="Add machine code for this computer (AOTInductor): takes a minute or two. Such a "
            "file is loaded with `--trusted` only.",
        ),
    ] = False,
    device: Annotated[str, Option(help="Device of the machine code: auto, cpu, cuda ...")] = "auto",
    as_json: opts.Json = False,
) -> None:
    """Convert MODEL once and save it to FILE, for `explain --model FILE`.

    The file also holds the weights, the preprocessing and the class names. It is data: loading it
    needs neither the model's source nor its packages, and runs no code of the file. With
    `--compiled` it also holds machine code, which needs no compilation and runs only if trusted.
    """
    chosen_policy = policy.policy()
    if device != "auto" and not compiled:
        raise PolicyError(
            "--device selects the device of the machine code, and the file has none",
            hint="pass `--compiled` as well, or leave `--device` out",
        )
    target = devices.choose(device) if compiled else torch.device("cpu")
    classifier = source.resolve(model, labels)
    masked = convert(classifier.model.to(target), classifier.example(target), chosen_policy)
    artifact.save(
        masked,
        out,
        preprocessing=images.recorded(classifier.preprocess),
        class_names=classifier.labels or None,
        compiled=compiled,
    )
    size = out.stat().st_size
    if as_json:
        about = {"name": classifier.name, "file": str(out), "bytes": size}
        print_json({**about, "policy": masked.policy.to_dict(), **masked.report.to_dict()})
    else:
        typer.echo(f"{masked.report}\n{out}: {size / 1e6:.1f} MB")
