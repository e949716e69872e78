"""`convad-fx explain` of folders and tar files: what the command line adds to `convad_fx.many`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from convad_fx import models
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

FOUND, FAILED = 1, 2


@dataclass(frozen=True, slots=True)
class Run:
    """What is asked of which pictures, where the rows go, and who makes them."""

    spec: ClassifierSpec
    classifier: models.Classifier
    options: ExplainOptions
    pictures: Sequence[Path]
    folder: Path
    device: str
    ray: str | None = None
    workers: int | None = None


def holds(path: Path) -> bool:
    """Whether a path is one of many pictures: a folder or a tar file."""
    return path.is_dir() or is_tar(path)


def explain(run: Run, *, resume: bool, overlays: bool, as_json: bool) -> None:
    """Make the rows; a line for each as it is made, and a summary."""
    shard = Shard.from_environment()
    drawn = run.folder / "overlays" if overlays else None

    def on_outcome(outcome: Outcome) -> None:
        if not as_json and outcome.row is not None:
            typer.echo(_line(outcome))

    if run.ray is not None:
        if shard.world > 1:
            raise PolicyError("torchrun and `--ray` both share the pictures", hint="use one")
        explainer = Explainer(run.classifier, run.options, run.spec.device, drawn)
        found = on_ray.explain_many(
            explainer,
            run.pictures,
            run.folder,
            address=run.ray,
            resume=resume,
            device=run.device,
            workers=run.workers,
            spec=run.spec,
            on_outcome=on_outcome,
        )
    else:
        explainer = Explainer(run.classifier, run.options, run.spec.device, drawn)
        found = explain_many(
            explainer, run.pictures, run.folder, resume=resume, shard=shard, on_outcome=on_outcome
        )
    _finish(found, run, as_json)


def _finish(found: Summary, run: Run, as_json: bool) -> None:
    if as_json:
        about = {"model": run.classifier.name, "out": str(run.folder), **found.to_dict()}
        typer.echo(json.dumps(about, indent=1, ensure_ascii=False))
    else:
        spent = ", ".join(f"{name} {value:.1f}" for name, value in found.seconds.items())
        typer.echo(f"{found.explained} explained now, {found.skipped} before. Seconds: {spent}.")
        typer.echo(f"Rows are in {run.folder}.")
    for why in found.failed.values():
        typer.echo(f"convad-fx: not explained: {why}", err=True)
    if found.failed:
        raise typer.Exit(FOUND if found.rows else FAILED)


def _line(outcome: Outcome) -> str:
    row: Any = outcome.row
    name = row["target_name"] if row["target_name"] is not None else f"class {row['target']}"
    seconds = row["seconds_load"] + row["seconds_search"]
    doubt = "" if row["sufficient"] else " (NOT sufficient when asked again)"
    return (
        f"{outcome.key}  {row['size']:.1%}  {row['confidence_recheck']:.3f} of "
        f"{row['confidence_whole']:.3f}  {seconds:.1f} s  {name}{doubt}"
    )
