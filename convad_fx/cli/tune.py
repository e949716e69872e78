"""`convad-fx tune`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from typer import Option

from convad_fx import device as devices
from convad_fx import images, tuning
from convad_fx.cli import options as opts
from convad_fx.cli.images import expand_folders, readable
from convad_fx.cli.masks import mask_files, read_mask
from convad_fx.cli.output import Failures, print_json, results_json, show_progress
from convad_fx.compiler.policy import Policy
from convad_fx.errors import PolicyError, writing_to
from convad_fx.explain import Search
from convad_fx.explain.evaluator import Mask
from convad_fx.explain.scores import check_score_name
from convad_fx.images import Preprocess
from convad_fx.metrics import Normalisation

EXAMPLES = """Examples:

\b
  convad-fx tune photos --model resnet50                      (a folder of ten photos or more)
  convad-fx tune photos --model resnet50 --masks objects      (where the objects are: cat.png)
  convad-fx tune *.jpg --model resnet50 --policy tau=0.5 --policy paper
  convad-fx tune photos --model resnet50 --out tuned.json --no-explain
"""

#: Sets of policies that `--grid` names.
GRIDS = {"few": tuning.FEW, "full": tuning.FULL}


@dataclass(frozen=True, slots=True)
class TuningOptions:
    """The policies to try, and how they are measured."""

    masks: Annotated[
        Path | None,
        Option(
            metavar="DIR",
            help="True masks of the objects, white on black, of the images' size: cat.png for "
            "cat.jpg.",
        ),
    ] = None
    aim: Annotated[
        str,
        Option(help="robust: sufficient parts survive elsewhere; object: they lie on the object."),
    ] = "robust"
    policy: Annotated[
        list[str] | None,
        Option(
            metavar="TEXT",
            help="One to try, such as tau=0.5,input=strict, or paper, or layer-masking; may be "
            "given several times.",
        ),
    ] = None
    grid: Annotated[
        str | None,
        Option(
            help="Without --policy: few, or full: all sixty, which needs more images  "
            "[default: few]"
        ),
    ] = None
    random: Annotated[
        int, Option(min=2, help="Random masks per image that every policy is tested on.")
    ] = 64
    backgrounds: Annotated[
        int, Option(min=1, help="Backgrounds of each kind: colours, and the other images.")
    ] = 10
    explained: Annotated[
        bool,
        Option(
            "--explain/--no-explain", help="Explain by the default and the leader, and compare."
        ),
    ] = True
    partitions: Annotated[
        int | None,
        Option(min=1, help="Random partitions of these explanations.  [default: 2]"),
    ] = None

    def policies(self) -> tuple[Policy, ...]:
        """The policies to try.

        Raises:
            PolicyError: options that contradict each other, or a policy or grid that is unknown.
        """
        tried = policies(self.grid, self.policy or ())
        if self.partitions is not None and not self.explained:
            raise PolicyError(
                "--partitions has no effect with --no-explain", hint="leave one of them out"
            )
        return tried


def command(
    pictures: opts.ImagePaths,
    model: opts.ModelName,
    *,
    source: opts.ModelOptions,
    options: TuningOptions,
    score: opts.Score = None,
    gamma: opts.Gamma = 0.9,
    seed: opts.Seed = 0,
    out: Annotated[
        Path | None, Option(metavar="FILE", help="Write all measurements here, as JSON.")
    ] = None,
    batch_size: opts.BatchSize = None,
    device: opts.Device = "auto",
    as_json: opts.Json = False,
    progress: opts.Progress = None,
) -> None:
    """Choose how pixels are switched off (tau and the rest of the policy), by measuring on IMAGEs.

    Which policy's confidence predicts best which parts of an image keep the class on other
    backgrounds, in the plain network? The default is kept unless another policy is significantly
    better, corrected for the number of policies: five images are needed, ten or more are better.
    The last line shows what to pass to `explain`.
    """
    tried = options.policies()
    check_score_name(score)
    classifier = source.resolve(model)
    preprocess = classifier.preprocess
    paths = expand_folders(pictures)
    files = mask_files(paths, options.masks) if options.masks else {}
    chosen = devices.choose(device)
    failures = Failures()
    inputs, truths = _read(paths, files, preprocess, failures)
    if inputs:
        lack = [str(path) for path, truth in truths.items() if truth is None]
        if options.masks and lack:
            typer.echo(f"convad-fx: no true mask for {', '.join(lack)}", err=True)
        result = tuning.tune(
            classifier.model.to(chosen),
            [x.to(chosen) for x in inputs.values()],
            masks=list(truths.values()) if options.masks else None,
            policies=tried,
            aim=options.aim,
            score=score,
            gamma=gamma,
            tried=options.random,
            n=options.backgrounds,
            search=Search(partitions=options.partitions or 2) if options.explained else None,
            seed=seed,
            normalisation=Normalisation(tuple(preprocess.mean), tuple(preprocess.std)),
            names=[str(path) for path in inputs],
            batch_size=batch_size or "auto",
            progress=show_progress(progress),
        )
        content = results_json(classifier, chosen, failures, **result.to_dict())
        if out is not None:
            _write(content, out)
        if as_json:
            print_json(content)
        else:
            typer.echo(str(result))
    failures.exit("read", inputs)


def _read(
    paths: Sequence[Path], files: Mapping[Path, Path], preprocess: Preprocess, failures: Failures
) -> tuple[dict[Path, torch.Tensor], dict[Path, Mask | None]]:
    """The inputs, and the masks in `files`, of the images that can be read."""
    inputs: dict[Path, torch.Tensor] = {}
    truths: dict[Path, Mask | None] = {}
    for path, picture in readable(paths, failures):
        mask_file = files.get(path)
        truths[path] = read_mask(mask_file, picture, preprocess) if mask_file else None
        inputs[path] = images.to_input(picture, preprocess)
    return inputs, truths


def _write(content: object, out: Path) -> None:
    with writing_to(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(content, indent=1), encoding="utf-8")


def policies(grid: str | None, texts: Sequence[str]) -> tuple[Policy, ...]:
    """The policies in `texts`, or those of a grid ("few" by default).

    Raises:
        PolicyError: a text that cannot be read, no such grid, or a grid beside texts.
    """
    if texts and grid is not None:
        raise PolicyError(
            "`--grid` and `--policy` cannot be combined", hint="leave one of them out"
        )
    grid = grid or "few"
    if texts:
        return tuple(map(tuning.parse_policy, texts))
    if grid not in GRIDS:
        raise PolicyError(
            f"grid must be one of {', '.join(GRIDS)}, not {grid!r}",
            hint="or name policies: --policy tau=0.5 --policy paper",
        )
    return GRIDS[grid]
