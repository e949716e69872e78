"""`convad-fx check`."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from convad_fx import models, report
from convad_fx.cli import options as opts
from convad_fx.cli.command import FOUND
from convad_fx.cli.output import print_json
from convad_fx.convert import check

EXAMPLES = """Examples:

\b
  convad-fx check resnet50
  convad-fx check vit_b_16                     (findings: exit code 1)
  convad-fx check mine:build --size 96         (the function build in ./mine.py)
  convad-fx check timm:convnext_atto --json
  convad-fx check resnet18 --draw plan.svg
"""


def command(
    model: opts.ModelArgument,
    weights: opts.Weights = "none",
    size: opts.Size = None,
    draw: Annotated[
        Path | None,
        Option(metavar="FILE", help="Draw the plan to a file: .svg, .png or .pdf, by the ending."),
    ] = None,
    as_json: opts.Json = False,
) -> None:
    """Can regions be switched off inside MODEL? Where not: the operation, why, and what to do.

    The answer depends on the network's graph, not on its weights, so none are loaded by default.
    Exit code 0 if it can, 1 if there are findings, 2 if there is no such model.
    """
    if draw is not None:
        report.writable_picture(draw)
    classifier = models.resolve(model, weights, size=size)
    if draw is None:
        answer = check(classifier.model, classifier.example())
    else:
        answer = report.save_plan(classifier.model, classifier.example(), draw)
    if as_json:
        print_json({"name": classifier.name, "size": classifier.size, **answer.to_dict()})
    else:
        typer.echo(str(answer))
    if not answer.ok:
        raise typer.Exit(FOUND)
