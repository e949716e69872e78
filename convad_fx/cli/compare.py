"""`convad-fx compare`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from typer import Option

from convad_fx import device as devices
from convad_fx import images, models, report
from convad_fx.cli import options as opts
from convad_fx.cli.images import class_index, expand_folders, readable
from convad_fx.cli.output import (
    Failures,
    file_stems,
    make_folder,
    print_json,
    results_json,
    show_progress,
)
from convad_fx.cli.tables import ComparisonTable, print_means
from convad_fx.errors import ImageError, writing_to
from convad_fx.explain import Search, occlusion
from convad_fx.explain.explainer import image_digest
from convad_fx.explain.masker import Masker
from convad_fx.explain.scores import check_score_name
from convad_fx.images import Preprocess
from convad_fx.metrics import Normalisation

EXAMPLES = """Examples:

\b
  convad-fx compare cat.jpg --model resnet50 --out compared
  convad-fx compare photos --model resnet50 --out compared       (a folder: means, too)
  convad-fx compare cat.jpg dog.jpg --model demo --out compared --paint blur --paint inpaint
  convad-fx compare photos --model resnet18 --weights mine.pt --out compared --json
"""

DEFAULT_PAINTS = ("grey", "black", "white", "blur", "inpaint")
SWITCHED_OFF = "switched off"


def command(
    pictures: opts.ImagePaths,
    model: opts.ModelName,
    out: Annotated[Path, Option(metavar="DIR", help="Where the pages go.")],
    *,
    source: opts.ModelOptions,
    labels: opts.Labels = None,
    paint: Annotated[
        list[str] | None,
        Option(
            metavar="NAME",
            help="zero, mean, black, white, grey, image-mean, blur, noise or inpaint; may be given "
            "several times.  [default: grey black white blur inpaint]",
        ),
    ] = None,
    backgrounds: Annotated[
        int, Option(min=1, help="Backgrounds of each kind that explanations are planted on.")
    ] = 50,
    target: opts.Target = None,
    score: opts.Score = None,
    gamma: opts.Gamma = 0.9,
    seed: opts.Seed = 0,
    policy: opts.PolicyOptions,
    partitions: opts.Partitions = opts.PARTITIONS,
    batch_size: opts.BatchSize = None,
    device: opts.Device = "auto",
    as_json: opts.Json = False,
    progress: opts.Progress = None,
) -> None:
    """Explain each IMAGE by switching off and by painting over, and compare.

    All maskers use the same search, seed and budget. Each explanation is then planted on solid
    colours and on the other images: `survives` is the share on which the plain network still gives
    the class. Writes a PNG page for each image to DIR, and compare.html with all pages; with two
    images or more also means, and their differences from switching off with 95 % intervals.
    """
    chosen_policy = policy.policy()
    check_score_name(score)
    classifier = source.resolve(model, labels)
    normalisation = _normalisation(classifier.preprocess)
    # Names of paints are checked before anything is converted.
    painters = {
        name: occlusion(classifier.model, name, mean=normalisation.mean, std=normalisation.std)
        for name in dict.fromkeys(paint or DEFAULT_PAINTS)
    }
    paths = expand_folders(pictures)
    folder = make_folder(out)
    chosen = devices.choose(device)
    masked = models.masked_network(classifier, chosen, chosen_policy)
    options = {
        "target": class_index(target, classifier.labels),
        "score": score,
        "gamma": gamma,
        "seed": seed,
        "search": Search(partitions=partitions),
        "n": backgrounds,
        "batch_size": batch_size or "auto",
        "progress": show_progress(progress),
    }
    comparison = Comparison(
        classifier, {SWITCHED_OFF: masked, **painters}, chosen, folder, paths, options
    )
    comparison.run(as_json)


def _normalisation(preprocess: Preprocess) -> Normalisation:
    return Normalisation(tuple(preprocess.mean), tuple(preprocess.std))


@dataclass(frozen=True, slots=True)
class Comparison:
    """Maskers compared on the images in `paths`; `options` are further ones of `report.compare`."""

    classifier: models.Classifier
    maskers: Mapping[str, Masker]
    device: torch.device
    folder: Path
    paths: Sequence[Path]
    options: Mapping[str, Any]

    def run(self, as_json: bool) -> None:
        """Compare on each image; write the pages, and print a table or JSON."""
        failures = Failures()
        inputs = self._read(failures)
        table = None
        if not as_json:
            table = ComparisonTable([str(path) for path in self.paths], list(self.maskers))
        stems = dict(zip(self.paths, file_stems(self.paths, self.folder), strict=True))
        done: list[report.PictureComparison] = []
        for path, x in inputs.items():
            others = [other for other_path, other in inputs.items() if other_path != path]
            page = self.folder / f"{stems[path]}-compared.png"
            compared = self._compare(path, x, others, page)
            done.append(report.PictureComparison(str(path), compared, page))
            if table:
                table.add(str(path), compared)
        means = report.means([picture.results for picture in done])
        whole = self.folder / "compare.html" if done else None
        if whole:
            with writing_to(self.folder):
                name, failed = self.classifier.name, failures.messages
                report.save_page(done, whole, model=name, failed=failed)
        if as_json:
            results = {
                "compared": [_compared_dict(picture) for picture in done],
                "page": str(whole) if whole else None,
                "means": means,
            }
            print_json(results_json(self.classifier, self.device, failures, **results))
        elif done:
            if len(done) > 1:
                print_means(means)
            typer.echo(f"\nPages are in {self.folder}; compare.html has them all.")
        failures.exit("compared", done)

    def _read(self, failures: Failures) -> dict[Path, torch.Tensor]:
        inputs: dict[Path, torch.Tensor] = {}
        first: dict[str, Path] = {}
        for path, picture in readable(self.paths, failures):
            x = images.to_input(picture, self.classifier.preprocess)
            same = first.setdefault(image_digest(x), path)
            if same == path:
                inputs[path] = x
            else:  # it would be its copy's background, and count twice
                hint = "leave one of them out"
                failures.add(path, ImageError(f"{path} shows the same as {same}", hint=hint))
        return inputs

    def _compare(
        self, path: Path, x: torch.Tensor, others: Sequence[torch.Tensor], page: Path
    ) -> tuple[report.MaskerResult, ...]:
        preprocess = self.classifier.preprocess
        normalisation = _normalisation(preprocess)
        compared = report.compare(
            self.maskers,
            self.classifier.model,
            x.to(self.device),
            others=others,
            normalisation=normalisation,
            labels=self.classifier.labels or None,
            **self.options,
        )
        shown = images.displayable(x, preprocess)
        with writing_to(self.folder):
            report.save_comparison(compared, shown, page, normalisation, path.name)
        return compared


def _compared_dict(picture: report.PictureComparison) -> dict[str, Any]:
    return {
        "image": picture.name,
        "page": str(picture.drawing),
        "maskers": [row.to_dict() for row in picture.results],
    }
