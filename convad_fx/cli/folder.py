"""`convad-fx explain` of folders and tar files: what the command line adds to `convad_fx.many`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

from convad_fx import models
from convad_fx.cli.output import exit_with_failures, print_json
from convad_fx.errors import PolicyError
from convad_fx.integrations import ray as on_ray
from convad_fx.many import (
    ClassifierSpec,
    Explainer,
    ExplainOptions,
    Outcome,
    Shard,
    Summary,
    explain_many,
)
from convad_fx.many.sources import is_tar


@dataclass(frozen=True, slots=True)
class FolderOptions:
    """Options for folders and tar files."""

    resume: Annotated[bool, Option("--resume", help="Many: continue an earlier run into DIR.")] = (
        False
    )
    overlays: Annotated[
        bool, Option("--overlays", help="Many: also write PNG and JSON of each image.")
    ] = False
    metric: Annotated[
        list[str] | None,
        Option(
            metavar="NAME",
            help="Many: insertion, deletion or robustness; may be given several times.",
        ),
    ] = None
    ray: Annotated[
        str | None,
        Option(
            metavar="ADDRESS",
            help="Many: spread over a Ray cluster: HOST:PORT, auto, or local to start one here.",
        ),
    ] = None
    workers: Annotated[
        int | None,
        Option(min=1, help="Ray: number of workers.  [default: one for each GPU, or CPU]"),
    ] = None

    def check(self) -> None:
        """Refuses workers without Ray."""
        if self.workers is not None and self.ray is None:
            raise PolicyError(
                "`--workers` needs `--ray`", hint="pass `--ray local` as well, or use torchrun"
            )

    @property
    def requested(self) -> bool:
        """Whether an option asks for rows, even of single images."""
        return bool(self.resume or self.overlays or self.metric or self.ray)


@dataclass(frozen=True, slots=True)
class FolderRun:
    """What to explain, with which options, where the rows go, and who computes them."""

    spec: ClassifierSpec
    classifier: models.Classifier
    explain_options: ExplainOptions
    pictures: Sequence[Path]
    folder: Path
    device: str
    options: FolderOptions


def is_collection(path: Path) -> bool:
    """Whether a path is a folder or a tar file."""
    return path.is_dir() or is_tar(path)


def explain_folders(run: FolderRun, *, as_json: bool) -> None:
    """Write the rows; print a line for each as it is made, and a summary."""
    options, shard = run.options, Shard.from_environment()

    def print_row(outcome: Outcome) -> None:
        if not as_json and outcome.row is not None:
            typer.echo(_row_line(outcome))

    if options.ray is not None and shard.world > 1:
        raise PolicyError("torchrun and `--ray` cannot be combined", hint="use one")
    drawn = run.folder / "overlays" if options.overlays else None
    explainer = Explainer(run.classifier, run.explain_options, run.spec.device, drawn)
    if options.ray is not None:
        summary = on_ray.explain_many(
            explainer,
            run.pictures,
            run.folder,
            address=options.ray,
            resume=options.resume,
            device=run.device,
            workers=options.workers,
            spec=run.spec,
            on_outcome=print_row,
        )
    else:
        summary = explain_many(
            explainer,
            run.pictures,
            run.folder,
            resume=options.resume,
            shard=shard,
            on_outcome=print_row,
        )
    _print_summary(summary, run, as_json)


def _print_summary(summary: Summary, run: FolderRun, as_json: bool) -> None:
    if as_json:
        about = {"model": run.classifier.name, "out": str(run.folder)}
        print_json({**about, **summary.to_dict()})
    else:
        times = ", ".join(f"{name} {value:.1f}" for name, value in summary.seconds.items())
        typer.echo(
            f"{summary.explained} explained now, {summary.skipped} before. Seconds: {times}."
        )
        typer.echo(f"Rows are in {run.folder}.")
    exit_with_failures(list(summary.failed.values()), "explained", summary.rows)


def _row_line(outcome: Outcome) -> str:
    row: Any = outcome.row
    name = row["target_name"] if row["target_name"] is not None else f"class {row['target']}"
    seconds = row["seconds_load"] + row["seconds_search"]
    other = "" if row["is_prediction"] else " (not predicted)"
    doubt = "" if row["sufficient"] else " (NOT sufficient when rechecked)"
    return (
        f"{outcome.key}  {row['size']:.1%}  {row['confidence_recheck']:.3f} of "
        f"{row['confidence_whole']:.3f}  {seconds:.1f} s  {name}{other}{doubt}"
    )
