"""`convad-fx explain`: of image files here, of folders and tar files in `convad_fx.cli.folder`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from convad_fx import device as devices
from convad_fx import images, models
from convad_fx.cli import options as opts
from convad_fx.cli.folder import FolderOptions, FolderRun, explain_folders, is_collection
from convad_fx.cli.images import class_index
from convad_fx.cli.output import (
    Failures,
    file_stems,
    make_folder,
    print_json,
    results_json,
    show_progress,
)
from convad_fx.cli.picture import PictureExplainer, Result
from convad_fx.cli.tables import ExplanationTable
from convad_fx.engine.precision import check_precision
from convad_fx.errors import ImageError, PolicyError
from convad_fx.explain import Search
from convad_fx.explain.scores import check_score_name
from convad_fx.many import ClassifierSpec, ExplainOptions, Shard, rank_device

EXAMPLES = """Examples:

\b
  convad-fx explain cat.jpg --model resnet50 --out why
  convad-fx explain *.jpg --model timm:convnext_atto --out why --json > why.json
  convad-fx explain cat.jpg --model resnet18 --weights mine.pt --labels mine.txt --out why
  convad-fx explain cat.jpg --model mine:build --size 96 --mean 0.5 --std 0.5 --out why
  convad-fx explain cat.jpg --model resnet50 --target "tabby" --gamma 0.8 --out why
  convad-fx explain xray.png --model mine:labels14 --score sigmoid --target 3 --out why
  convad-fx explain cat.jpg --model resnet50 --disjoint 3 --contrastive --out why
  convad-fx explain cat.jpg --model resnet50 --budget 1000 --minimal 16 --out why
  convad-fx explain photos shard-000.tar --model resnet50 --out rows --resume
  convad-fx explain photos --model resnet50 --out rows --resume --ray auto
"""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How each image is explained."""

    target: opts.Target = None
    score: opts.Score = None
    gamma: opts.Gamma = 0.9
    seed: opts.Seed = 0
    disjoint: Annotated[
        int, Option(min=1, help="Find up to this many explanations that share no pixel.")
    ] = 1
    contrastive: Annotated[
        bool,
        Option("--contrastive", help="Also find what must be hidden for the class to change."),
    ] = False
    batch_size: opts.BatchSize = None
    precision: opts.Precision = None

    def arguments(self, target: int | None, search: Search) -> dict[str, Any]:
        """The arguments that `explain_disjoint` and `ExplainOptions` have in common."""
        given = asdict(self) | {"target": target, "batch_size": self.batch_size or "auto"}
        del given["disjoint"]
        return {**given, "search": search}


def command(
    pictures: Annotated[
        list[Path],
        Argument(metavar="IMAGE...", help="Image files; or folders and tar files of them."),
    ],
    model: Annotated[str, Option(metavar="MODEL", help=opts.MODEL_HELP + opts.FILE_HELP)],
    out: Annotated[Path, Option(metavar="DIR", help="Where PNG and JSON files go.")],
    *,
    source: opts.ModelOptions,
    labels: opts.Labels = None,
    trusted: opts.Trusted = False,
    run_options: RunOptions,
    policy: opts.PolicyOptions,
    search: opts.SearchOptions,
    many: FolderOptions,
    device: opts.Device = "auto",
    as_json: opts.Json = False,
    progress: opts.Progress = None,
) -> None:
    """Find a small part of each IMAGE that suffices for the network's answer, or for --target.

    For a class that is not the network's answer, the part keeps its score alone, and the row says
    so.

    Writes a PNG (image, responsibility, explanation) and a JSON file per explanation to DIR. With
    --disjoint, the second explanation of an image is called NAME-reason-2. Images that cannot be
    read are listed at the end, and the exit code is then 1.

    Of folders and tar files (WebDataset), DIR gets Parquet instead: one row per image, written as
    it is made, so that --resume continues after a kill. torchrun distributes the images over
    processes, --ray over the workers of a Ray cluster.
    """
    chosen_policy = policy.policy()
    check_precision(run_options.precision)
    check_score_name(run_options.score)
    chosen_search = search.search()
    many.check()
    as_rows = many.requested or any(map(is_collection, pictures))
    # On Ray the workers explain; here only machine code needs the device it was made for. Of
    # several processes on one machine each has a GPU of its own.
    here = "cpu" if many.ray is not None and not trusted else device
    chosen = rank_device(here, Shard.from_environment().local) if as_rows else devices.choose(here)
    spec = ClassifierSpec(
        model, labels=labels, device=chosen, trusted=trusted, **source.arguments()
    )
    classifier = spec.load()
    opts.warn_if_random(classifier)
    target = class_index(run_options.target, classifier.labels)
    folder = make_folder(out)
    arguments = run_options.arguments(target, chosen_search)
    if as_rows:
        _refuse_for_rows(run_options.disjoint, progress)
        options = ExplainOptions(
            policy=chosen_policy, metrics=tuple(many.metric or ()), **arguments
        )
        run = FolderRun(spec, classifier, options, pictures, folder, device, many)
        explain_folders(run, as_json=as_json)
        return
    masked = models.masked_network(classifier, chosen, chosen_policy)
    arguments |= {"count": run_options.disjoint, "progress": show_progress(progress)}
    explainer = PictureExplainer(classifier, masked, chosen, folder, arguments)
    _explain_pictures(explainer, pictures, run_options.disjoint, as_json)


def _refuse_for_rows(disjoint: int, progress: bool | None) -> None:
    if disjoint > 1:
        raise PolicyError(
            "--disjoint cannot be used with folders and tar files: one row per picture",
            hint="name the pictures themselves",
        )
    if progress:
        raise PolicyError(
            "--progress cannot be used with folders and tar files: a line is printed per picture",
            hint="leave it out",
        )


def _explain_pictures(
    explainer: PictureExplainer, pictures: Sequence[Path], disjoint: int, as_json: bool
) -> None:
    table = None if as_json else ExplanationTable([str(path) for path in pictures])
    done: list[Result] = []
    failures = Failures()
    stems = file_stems(pictures, explainer.folder, disjoint)
    for path, stem in zip(pictures, stems, strict=True):
        try:
            results = explainer.explain(images.open_image(path), str(path), stem)
        # An unreadable image, or a target without a positive score: the next may be all right.
        except (ImageError, PolicyError) as error:
            failures.add(path, error)
            continue
        done += results
        if table:
            for result in results:
                table.add(result)
    if as_json:
        explained = [result.to_dict() for result in done]
        classifier, device = explainer.classifier, explainer.device
        print_json(results_json(classifier, device, failures, explained=explained))
    elif done:
        typer.echo(f"Pictures and JSON are in {explainer.folder}.")
    failures.exit("explained", done)
