"""The command line `convad-fx`: `check`, `compile`, `export`, `explain`, `compare`, `tune`, `demo`.

Results on stdout, the rest on stderr.

Exit codes: 0 all well; 1 the answer is bad news (findings, a picture that cannot be read); 2
nothing could be answered, and a line on stderr says why.
"""

import contextlib
import difflib
import itertools
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from PIL import Image
from typer.core import TyperGroup

import convad_fx
from convad_fx import cli_many, cli_tune, images, models, report
from convad_fx import device as devices
from convad_fx.compiler.policy import Policy
from convad_fx.engine.precision import check_precision
from convad_fx.errors import ConvadError, ImageError, PolicyError, Unavailable, first_line
from convad_fx.explain import Explanation, Search, explain_disjoint, occlusion
from convad_fx.explain.explainer import image_digest
from convad_fx.explain.masker import Masker
from convad_fx.many import ClassifierSpec, ExplainOptions, Shard, rank_device
from convad_fx.metrics import Normalisation
from convad_fx.versions import versions

FOUND, FAILED = 1, 2


class OneLineErrors(TyperGroup):
    """Commands whose own errors are one line on stderr; only a bug shows a trace."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; our errors and a full memory end in a line and exit code 2."""
        try:
            return super().invoke(ctx)
        except ConvadError as error:
            message = str(error)
        except torch.OutOfMemoryError as error:
            message = f"{first_line(error)}; pass a smaller `--batch-size`, or `--device cpu`"
        typer.echo(f"convad-fx: {message}", err=True)
        raise typer.Exit(FAILED)


app = typer.Typer(
    name="convad-fx",
    cls=OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    # Plain text: the same in a terminal, a pipe and a log.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

MODEL_HELP = (
    "torchvision name, timm:NAME, package.module:function, or demo. The function is called without "
    "arguments and returns the network."
)

# Options that say what the model is; `check` and `explain` share them.
Weights = Annotated[
    str,
    typer.Option(
        metavar="WHICH",
        help="DEFAULT or another published name (downloaded once), a local .pt, .pth or "
        ".safetensors file, or none for random ones.",
    ),
]
Labels = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Class names: one per line, or a JSON list or dict."),
]
Size = Annotated[
    int | None,
    typer.Option(min=1, help="Height and width of the network's input.  [default: the model's]"),
]
Resize = Annotated[
    int | None,
    typer.Option(min=1, help="Short side before the centre crop.  [default: the model's margin]"),
]
Mean = Annotated[
    str | None,
    typer.Option(metavar="R,G,B", help="Subtracted, for pixels in 0..1.  [default: the model's]"),
]
Std = Annotated[
    str | None, typer.Option(metavar="R,G,B", help="Divided by.  [default: the model's]")
]
Device = Annotated[
    str, typer.Option(help="auto, cpu, cuda, cuda:1 ...; auto is CUDA where it works.")
]
Trusted = Annotated[
    bool, typer.Option("--trusted", help="Run the machine code in the file MODEL, if any.")
]
BatchSize = Annotated[
    int | None, typer.Option(min=1, help="Masks at a time; by default as is fastest.")
]
Precision = Annotated[
    str | None,
    typer.Option(
        help="Of the search: bfloat16 or float16. What it finds is checked in the network's own.  "
        "[default: the network's own]"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for machines.")]
Progress = Annotated[
    bool | None,
    typer.Option("--progress/--no-progress", help="Progress bar.  [default: in a terminal]"),
]
Gamma = Annotated[
    float, typer.Option(help="Share of the confidence on the whole picture to keep, in (0, 1].")
]
# Left out is not the same as set to the default: a file of `compile` has a policy of its own.
Tau = Annotated[
    float | None,
    typer.Option(help="A cell is active if more than this share of its input is.  [default: 0]"),
]
Attribution = Annotated[
    str | None, typer.Option(help="positional (default), or receptive as in the paper.")
]
Input = Annotated[
    str | None, typer.Option("--input", help="gate (default), strict, or raw as in the paper.")
]
Pool = Annotated[str | None, typer.Option(help="dilute (default), or renormalize.")]
Fill = Annotated[
    str | None,
    typer.Option(help="What hidden cells read as in convolutions: zero (default), or neighbour."),
]
PARTITIONS = Search().partitions
Partitions = Annotated[
    int, typer.Option(min=1, help="Random partitions; more make smoother maps and take longer.")
]
Seed = Annotated[int, typer.Option(min=0, help="The same seed finds the same explanation.")]


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one picture."""

    source: str
    explanation: Explanation
    files: tuple[Path, ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "image": self.source,
            **self.explanation.to_dict(),
            "seconds": round(self.seconds, 3),
            "files": [str(file) for file in self.files],
        }


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(", ".join(f"{name} {version}" for name, version in versions().items()))
        raise typer.Exit


@app.callback()
def main(
    _: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print versions."),
    ] = False,
) -> None:
    """Explain image classifiers by switching regions off inside them, not by painting over them."""
    convad_fx.keep_memory()


CHECK_EXAMPLES = """Examples:

\b
  convad-fx check resnet50
  convad-fx check vit_b_16                     (findings: exit code 1)
  convad-fx check mine:build --size 96         (the function build in ./mine.py)
  convad-fx check timm:convnext_atto --json
  convad-fx check resnet18 --draw plan.svg
"""


@app.command(epilog=CHECK_EXAMPLES, short_help="Can regions be switched off inside a network?")
def check(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    weights: Weights = "none",
    size: Size = None,
    draw: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Leave a picture of the plan: .svg, .png or .pdf, by the ending."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Can regions be switched off inside MODEL? Where not: the operation, why, and what to do.

    The answer depends on the network's graph, not on its weights, so none are loaded by default.
    Exit code 0 if it can, 1 if there are findings, 2 if there is no such model.
    """
    if draw is not None:
        report.writable_picture(draw)
    classifier = models.resolve(model, weights, size=size)
    if draw is None:
        answer = convad_fx.check(classifier.model, classifier.example())
    else:
        answer = report.save_plan(classifier.model, classifier.example(), draw)
    if as_json:
        _print_json({"name": classifier.name, "size": classifier.size, **answer.to_dict()})
    else:
        typer.echo(str(answer))
    if not answer.ok:
        raise typer.Exit(FOUND)


COMPILE_EXAMPLES = """Examples:

\b
  convad-fx compile resnet50 -o resnet50.cfx
  convad-fx compile mine:build --size 96 --labels mine.txt -o mine.cfx
  convad-fx compile resnet50 --compiled -o resnet50.cfx    (with machine code for this computer)
  convad-fx explain cat.jpg --model mine.cfx --out why
"""


@app.command("compile", epilog=COMPILE_EXAMPLES, short_help="Leave a masked network in a file.")
def compile_(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Where it goes.")],
    weights: Weights = "DEFAULT",
    labels: Labels = None,
    size: Size = None,
    resize: Resize = None,
    mean: Mean = None,
    std: Std = None,
    tau: Tau = None,
    attribution: Attribution = None,
    input_: Input = None,
    pool: Pool = None,
    fill: Fill = None,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compiled",
            help="Add machine code for this computer (AOTInductor): takes a minute or two. Such a "
            "file is loaded with `--trusted` only.",
        ),
    ] = False,
    device: Annotated[
        str, typer.Option(help="What the machine code is for: auto, cpu, cuda ...")
    ] = "auto",
    as_json: Json = False,
) -> None:
    """Convert MODEL once and leave it in FILE, for `explain --model FILE`.

    The file holds weights, preprocessing and class names, too. It is data: loading it needs neither
    the model's source nor its packages, and runs nothing of it. With `--compiled` there is machine
    code in it as well, which answers at once and must be trusted to be run.
    """
    policy = _policy(tau=tau, attribution=attribution, input=input_, pool=pool, fill=fill)
    if device != "auto" and not compiled:
        raise PolicyError(
            "the file is the same for every device: --device says what machine code is for",
            hint="pass `--compiled` as well, or leave `--device` out",
        )
    chosen = devices.choose(device) if compiled else torch.device("cpu")
    classifier = models.resolve(
        model,
        weights,
        labels=labels,
        size=size,
        resize=resize,
        mean=_three("--mean", mean),
        std=_three("--std", std),
    )
    _tell_if_random(classifier)
    masked = convad_fx.convert(classifier.model.to(chosen), classifier.example(chosen), policy)
    convad_fx.save(
        masked,
        out,
        preprocessing=images.recorded(classifier.preprocess),
        class_names=classifier.labels or None,
        compiled=compiled,
    )
    if as_json:
        about = {"name": classifier.name, "file": str(out), "bytes": out.stat().st_size}
        _print_json({**about, "policy": masked.policy.to_dict(), **masked.report.to_dict()})
    else:
        typer.echo(f"{masked.report}\n{out}: {out.stat().st_size / 1e6:.1f} MB")


EXPORT_EXAMPLES = """Examples:

\b
  convad-fx export resnet50 -o resnet50.onnx
  convad-fx export mine:build --weights mine.pt --size 96 -o mine.onnx
  convad-fx export mine.cfx -o mine.onnx          (a file of convad-fx compile, with its policy)
"""


@app.command("export", epilog=EXPORT_EXAMPLES, short_help="Leave a masked network as ONNX.")
def export_(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help=MODEL_HELP + " Or a file of `convad-fx compile`.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Where it goes.")],
    weights: Weights = "DEFAULT",
    size: Size = None,
    trusted: Trusted = False,
) -> None:
    """Leave MODEL, masked, as ONNX: inputs `image` and `mask` (bool, True = kept), output `logits`.

    The batch is free, the size of the image is not. Needs the packages onnx and onnxscript.
    """
    if Path(model).is_file():
        if weights != "DEFAULT" or size is not None:
            raise PolicyError(
                f"{model} has its weights and its size inside", hint="leave the options out"
            )
        masked = convad_fx.load(model, trusted=trusted)
    elif trusted:
        raise PolicyError(f"{model} is no file", hint="leave `--trusted` out")
    else:
        classifier = models.resolve(model, weights, size=size)
        masked = convad_fx.convert(classifier.model, classifier.example())
    convad_fx.export_onnx(masked, out)
    typer.echo(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


EXPLAIN_EXAMPLES = """Examples:

\b
  convad-fx explain cat.jpg --model resnet50 --out why
  convad-fx explain *.jpg --model timm:convnext_atto --out why --json > why.json
  convad-fx explain cat.jpg --model resnet18 --weights mine.pt --labels mine.txt --out why
  convad-fx explain cat.jpg --model mine:build --size 96 --mean 0.5 --std 0.5 --out why
  convad-fx explain cat.jpg --model resnet50 --target "tabby" --gamma 0.8 --out why
  convad-fx explain cat.jpg --model resnet50 --disjoint 3 --contrastive --out why
  convad-fx explain cat.jpg --model resnet50 --budget 1000 --minimal 16 --out why
  convad-fx explain photos shard-000.tar --model resnet50 --out rows --resume
  convad-fx explain photos --model resnet50 --out rows --resume --ray auto
"""


@app.command(epilog=EXPLAIN_EXAMPLES, short_help="Which part of a picture suffices?")
def explain(
    pictures: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE...", help="Image files; or folders and tar files of them."),
    ],
    model: Annotated[
        str, typer.Option(metavar="MODEL", help=MODEL_HELP + " Or a file of `convad-fx compile`.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where PNG and JSON files go.")],
    weights: Weights = "DEFAULT",
    labels: Labels = None,
    size: Size = None,
    resize: Resize = None,
    mean: Mean = None,
    std: Std = None,
    target: Annotated[
        str | None,
        typer.Option(metavar="CLASS", help="Number or name.  [default: what the network says]"),
    ] = None,
    gamma: Gamma = 0.9,
    seed: Seed = 0,
    tau: Tau = None,
    attribution: Attribution = None,
    input_: Input = None,
    pool: Pool = None,
    fill: Fill = None,
    partitions: Partitions = PARTITIONS,
    min_box: Annotated[
        int, typer.Option(min=1, help="Boxes of this many pixels are not split further.")
    ] = Search().min_box,
    confidence: Annotated[
        float | None,
        typer.Option(
            help="Share of the confidence a part must keep to pass; 0: class alone.  "
            "[default: gamma, at most 0.9]"
        ),
    ] = Search().confidence,
    order: Annotated[
        str, typer.Option(help="How the set grows: responsibility, or spatial: around the peak.")
    ] = Search().order,
    minimal: Annotated[
        int,
        typer.Option(
            min=0, help="Shrink it until no block of this many pixels' side can be spared; 0: no."
        ),
    ] = Search().minimal,
    disjoint: Annotated[
        int, typer.Option(min=1, help="Find up to this many explanations that share no pixel.")
    ] = 1,
    contrastive: Annotated[
        bool,
        typer.Option(
            "--contrastive", help="Find, too, what must be hidden for the class to change."
        ),
    ] = False,
    budget: Annotated[
        int | None,
        typer.Option(min=1, help="The most masks to ask about, per explanation.  [default: none]"),
    ] = None,
    stable: Annotated[
        float | None,
        typer.Option(
            help="Stop when the ranking is this reliable, in (0, 1].  [default: never]",
        ),
    ] = Search().stable,
    depth: Annotated[
        int | None, typer.Option(min=1, help="How often a box is split again.  [default: no limit]")
    ] = None,
    split: Annotated[
        str, typer.Option(help="Where boxes are cut: uniform, binomial, beta-binomial.")
    ] = Search().split,
    queue: Annotated[
        str, typer.Option(help="Combinations followed: area, intersection, all.")
    ] = Search().queue,
    queue_len: Annotated[
        int, typer.Option(min=1, help="How many of them, for area and intersection.")
    ] = Search().queue_len,
    weighted: Annotated[
        bool, typer.Option("--weighted", help="Count combinations by their confidence.")
    ] = False,
    batch_size: BatchSize = None,
    precision: Precision = None,
    trusted: Trusted = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Many: go on where an earlier run into DIR stopped.")
    ] = False,
    overlays: Annotated[
        bool, typer.Option("--overlays", help="Many: leave PNG and JSON of each picture, too.")
    ] = False,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Many: insertion, deletion or robustness; may be given several times.",
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Many: spread over a Ray cluster: HOST:PORT, auto, or local to start one here.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="On Ray: how many.  [default: one for each GPU, or CPU]"),
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
    progress: Progress = None,
) -> None:
    """Find a small part of each IMAGE that suffices for the network's answer.

    Leaves a PNG (picture, responsibility, explanation) and a JSON file per explanation in DIR; of
    several of one image, the second is called NAME-reason-2. Images that cannot be read are listed
    at the end, and the exit code is then 1.

    Of folders and tar files (WebDataset), DIR gets Parquet instead: one row per picture, kept as it
    is made, so that after a kill --resume goes on. Under torchrun processes share the pictures, on
    Ray (--ray) machines do.
    """
    policy = _policy(tau=tau, attribution=attribution, input=input_, pool=pool, fill=fill)
    check_precision(precision)
    search = Search(
        partitions=partitions,
        min_box=min_box,
        confidence=confidence,
        order=order,
        minimal=minimal,
        budget=budget,
        stable=stable,
        depth=depth,
        split=split,
        queue=queue,
        queue_len=queue_len,
        weighted=weighted,
    )
    if workers is not None and ray is None:
        raise PolicyError("--workers are Ray's", hint="pass `--ray local` as well, or use torchrun")
    many = bool(resume or overlays or metric or ray or any(map(cli_many.holds, pictures)))
    # On Ray the workers explain; here machine code alone needs what it was made for. Of several
    # processes on one machine each has a GPU of its own.
    here = "cpu" if ray is not None and not trusted else device
    chosen = rank_device(here, Shard.from_environment().local) if many else devices.choose(here)
    spec = ClassifierSpec(
        model,
        weights,
        labels,
        size,
        resize,
        _three("--mean", mean),
        _three("--std", std),
        chosen,
        trusted,
    )
    classifier = spec.load()
    _tell_if_random(classifier)
    index = _class(target, classifier.labels)
    folder = _folder(out)
    if many:
        if disjoint > 1:
            raise PolicyError(
                "--disjoint does not go with folders and tar files: one row per picture",
                hint="name the pictures themselves",
            )
        if progress:
            raise PolicyError(
                "--progress does not go with folders and tar files: a line is printed per picture",
                hint="leave it out",
            )
        options = ExplainOptions(
            policy,
            search,
            index,
            gamma,
            seed,
            contrastive,
            batch_size or "auto",
            tuple(metric or ()),
            precision,
        )
        run = cli_many.Run(spec, classifier, options, pictures, folder, device, ray, workers)
        cli_many.explain(run, resume=resume, overlays=overlays, as_json=as_json)
        return
    asker = _Asker(classifier, chosen, policy, search, batch_size or "auto", seed, precision)

    table = None if as_json else _Table([str(path) for path in pictures])
    done: list[Result] = []
    failed: list[tuple[Path, ConvadError]] = []
    for path, stem in zip(pictures, _stems(pictures, folder, disjoint), strict=True):
        try:
            results = asker.ask(
                images.open_image(path),
                str(path),
                folder=folder,
                stem=stem,
                progress=_wanted(progress),
                target=index,
                gamma=gamma,
                disjoint=disjoint,
                contrastive=contrastive,
            )
        # A picture that cannot be read, or whose answer is not the target: the next may do.
        except (ImageError, PolicyError) as error:
            failed.append((path, error))
            continue
        done += results
        if table:
            for result in results:
                table.add(result)

    if as_json:
        _print_json(
            {
                "model": classifier.name,
                "weights": classifier.weights,
                "device": str(asker.device),
                "explained": [result.to_dict() for result in done],
                "failed": [{"image": str(path), "error": str(why)} for path, why in failed],
            }
        )
    elif done:
        typer.echo(f"Pictures and JSON are in {folder}.")
    for _, why in failed:
        typer.echo(f"convad-fx: not explained: {why}", err=True)
    if failed:
        raise typer.Exit(FOUND if done else FAILED)


COMPARE_EXAMPLES = """Examples:

\b
  convad-fx compare cat.jpg --model resnet50 --out compared
  convad-fx compare photos --model resnet50 --out compared       (a folder: means, too)
  convad-fx compare cat.jpg dog.jpg --model demo --out compared --paint blur --paint inpaint
  convad-fx compare photos --model resnet18 --weights mine.pt --out compared --json
"""

#: What is compared with switching off unless something else is asked for.
_COMPARED_PAINTS = ("grey", "black", "white", "blur", "inpaint")
_SWITCHED_OFF = "switched off"


@app.command(epilog=COMPARE_EXAMPLES, short_help="Switching off against painting over.")
def compare(
    pictures: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="Image files, or folders of them.")
    ],
    model: Annotated[str, typer.Option(metavar="MODEL", help=MODEL_HELP)],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the pages go.")],
    weights: Weights = "DEFAULT",
    labels: Labels = None,
    size: Size = None,
    resize: Resize = None,
    mean: Mean = None,
    std: Std = None,
    paint: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="zero, mean, black, white, grey, image-mean, blur, noise or inpaint; may be given "
            "several times.  [default: grey black white blur inpaint]",
        ),
    ] = None,
    backgrounds: Annotated[
        int, typer.Option(min=1, help="Backgrounds of each kind that explanations are planted on.")
    ] = 50,
    gamma: Gamma = 0.9,
    seed: Seed = 0,
    tau: Tau = None,
    attribution: Attribution = None,
    input_: Input = None,
    pool: Pool = None,
    fill: Fill = None,
    partitions: Partitions = PARTITIONS,
    batch_size: BatchSize = None,
    device: Device = "auto",
    as_json: Json = False,
    progress: Progress = None,
) -> None:
    """Explain each IMAGE by switching off and by painting over, and compare.

    The same search, seed and budget for all. Each explanation is then planted on solid colours and,
    where there are several pictures, on the others: `survives` is the share on which the plain
    network still gives the class. Leaves one PNG page for each picture in DIR, and compare.html,
    which has them all; for two pictures or more there are means, and what differs from switching
    off with 95 % intervals.
    """
    policy = _policy(tau=tau, attribution=attribution, input=input_, pool=pool, fill=fill)
    classifier = models.resolve(
        model,
        weights,
        labels=labels,
        size=size,
        resize=resize,
        mean=_three("--mean", mean),
        std=_three("--std", std),
    )
    _tell_if_random(classifier)
    preprocess = classifier.preprocess
    normalisation = Normalisation(tuple(preprocess.mean), tuple(preprocess.std))
    # Names of paints are checked before anything is converted.
    painters = {
        name: occlusion(classifier.model, name, mean=normalisation.mean, std=normalisation.std)
        for name in dict.fromkeys(paint or _COMPARED_PAINTS)
    }
    paths = list(dict.fromkeys(_expanded(pictures)))
    folder = _folder(out)
    asker = _Asker(classifier, devices.choose(device), policy)
    maskers: dict[str, Masker] = {_SWITCHED_OFF: asker.masked, **painters}

    read: dict[int, torch.Tensor] = {}
    first: dict[str, Path] = {}
    failed: list[tuple[Path, ConvadError]] = []
    for number, path in enumerate(paths):
        try:
            picture = images.open_image(path)
        except ImageError as error:
            failed.append((path, error))
            continue
        x = images.to_input(picture, preprocess)
        same = first.setdefault(image_digest(x), path)
        if same != path:  # it would be its copy's background, and count twice
            copy = ImageError(f"{path} shows the same as {same}", hint="leave one of them out")
            failed.append((path, copy))
            continue
        read[number] = x
    done: list[tuple[str, tuple[report.MaskerResult, ...], Path]] = []
    table = None if as_json else _Comparisons([str(path) for path in paths], list(maskers))
    stems = _stems(paths, folder)
    for number, x in read.items():
        compared = report.compare(
            maskers,
            classifier.model,
            x.to(asker.device),
            gamma=gamma,
            seed=seed,
            search=Search(partitions=partitions),
            n=backgrounds,
            others=[other for n, other in read.items() if n != number],
            normalisation=normalisation,
            batch_size=batch_size or "auto",
            labels=classifier.labels or None,
            progress=_wanted(progress),
        )
        shown = images.displayable(x, preprocess)
        page = folder / f"{stems[number]}-compared.png"
        source = str(paths[number])
        try:
            report.save_comparison(compared, shown, page, normalisation, paths[number].name)
        except OSError as error:
            raise _not_writable(folder, error) from error
        done.append((source, compared, page))
        if table:
            table.add(source, compared)

    means = report.means([compared for _, compared, _ in done])
    whole = folder / "compare.html" if done else None
    if whole:
        try:
            report.save_page(
                [report.PictureComparison(*one) for one in done],
                whole,
                model=classifier.name,
                failed=[str(why) for _, why in failed],
            )
        except OSError as error:
            raise _not_writable(folder, error) from error
    if as_json:
        _print_json(
            {
                "model": classifier.name,
                "weights": classifier.weights,
                "device": str(asker.device),
                "compared": [
                    {
                        "image": source,
                        "page": str(page),
                        "maskers": [row.to_dict() for row in compared],
                    }
                    for source, compared, page in done
                ],
                "page": str(whole) if whole else None,
                "means": means,
                "failed": [{"image": str(path), "error": str(why)} for path, why in failed],
            }
        )
    elif done:
        if len(done) > 1:
            _print_means(means)
        typer.echo(f"\nPages are in {folder}; compare.html has them all.")
    for _, why in failed:
        typer.echo(f"convad-fx: not compared: {why}", err=True)
    if failed:
        raise typer.Exit(FOUND if done else FAILED)


TUNE_EXAMPLES = """Examples:

\b
  convad-fx tune photos --model resnet50                      (a folder of ten photos or more)
  convad-fx tune photos --model resnet50 --masks objects      (where the objects are: cat.png)
  convad-fx tune *.jpg --model resnet50 --policy tau=0.5 --policy paper
  convad-fx tune photos --model resnet50 --out tuned.json --no-explain
"""


@app.command(epilog=TUNE_EXAMPLES, short_help="Which policy suits a network and its pictures?")
def tune(
    pictures: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="Image files, or folders of them.")
    ],
    model: Annotated[str, typer.Option(metavar="MODEL", help=MODEL_HELP)],
    weights: Weights = "DEFAULT",
    size: Size = None,
    resize: Resize = None,
    mean: Mean = None,
    std: Std = None,
    masks: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="True masks of the objects, white on black, of the pictures' size: cat.png for "
            "cat.jpg.",
        ),
    ] = None,
    aim: Annotated[
        str,
        typer.Option(help="robust: sufficient parts survive elsewhere; object: they lie on it."),
    ] = "robust",
    policy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="One to try, such as tau=0.5,input=strict, or paper, or layer-masking; may be "
            "given several times.",
        ),
    ] = None,
    grid: Annotated[
        str | None,
        typer.Option(
            help="Without --policy: few, or full: all sixty, which needs more images  "
            "[default: few]"
        ),
    ] = None,
    random: Annotated[
        int, typer.Option(min=2, help="Random masks that every policy is asked about, per image.")
    ] = 64,
    backgrounds: Annotated[
        int, typer.Option(min=1, help="Backgrounds of each kind: colours, and the other images.")
    ] = 10,
    explained: Annotated[
        bool,
        typer.Option(
            "--explain/--no-explain", help="Explain by the default and the leader: size, survival."
        ),
    ] = True,
    partitions: Annotated[
        int | None,
        typer.Option(min=1, help="Random partitions of these explanations.  [default: 2]"),
    ] = None,
    gamma: Gamma = 0.9,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Leave all measurements here, as JSON.")
    ] = None,
    batch_size: BatchSize = None,
    device: Device = "auto",
    as_json: Json = False,
    progress: Progress = None,
) -> None:
    """Choose how pixels are switched off (tau and the rest of the policy), by measuring on IMAGEs.

    Which policy's confidence tells best which parts of a picture keep the class on other
    backgrounds, in the plain network? The default is kept unless another is better by more than
    luck explains, however many are tried: five pictures are needed, ten or more are better. The
    last line says what to pass to `explain`.
    """
    tried = cli_tune.policies(grid, policy or ())
    if partitions is not None and not explained:
        raise PolicyError(
            "--partitions does nothing with --no-explain", hint="leave one of them out"
        )
    classifier = models.resolve(
        model,
        weights,
        size=size,
        resize=resize,
        mean=_three("--mean", mean),
        std=_three("--std", std),
    )
    _tell_if_random(classifier)
    preprocess = classifier.preprocess
    paths = list(dict.fromkeys(_expanded(pictures)))
    mask_files = cli_tune.mask_files(paths, masks) if masks else {}
    chosen = devices.choose(device)
    read: dict[Path, torch.Tensor] = {}
    truths: dict[Path, Any] = {}
    failed: list[tuple[Path, ConvadError]] = []
    for path in paths:
        try:
            picture = images.open_image(path)
        except ImageError as error:
            failed.append((path, error))
            continue
        if path in mask_files:
            truths[path] = cli_tune.read_mask(mask_files[path], picture, preprocess)
        read[path] = images.to_input(picture, preprocess).to(chosen)
    if read:
        lack = [str(path) for path in read if masks and truths.get(path) is None]
        if lack:
            typer.echo(f"convad-fx: no object is known in {', '.join(lack)}", err=True)
        found = convad_fx.tune(
            classifier.model.to(chosen),
            list(read.values()),
            masks=[truths.get(path) for path in read] if masks else None,
            policies=tried,
            aim=aim,
            gamma=gamma,
            tried=random,
            n=backgrounds,
            search=Search(partitions=partitions or 2) if explained else None,
            seed=seed,
            normalisation=Normalisation(tuple(preprocess.mean), tuple(preprocess.std)),
            names=[str(path) for path in read],
            batch_size=batch_size or "auto",
            progress=_wanted(progress),
        )
        about: dict[str, Any] = {
            "model": classifier.name,
            "weights": classifier.weights,
            "device": str(chosen),
            "failed": [{"image": str(path), "error": str(why)} for path, why in failed],
        }
        if out is not None:
            cli_tune.write(found, about, out)
        if as_json:
            _print_json({**about, **found.to_dict()})
        else:
            typer.echo(str(found))
    for _, why in failed:
        typer.echo(f"convad-fx: not read: {why}", err=True)
    if failed:
        raise typer.Exit(FOUND if read else FAILED)


DEMO_EXAMPLES = """Examples:

\b
  convad-fx demo
  convad-fx demo --out /tmp/demo --no-progress
"""


@app.command(epilog=DEMO_EXAMPLES, short_help="Try it, without any download.")
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where PNG and JSON files go.")] = Path(
        "convad_fx_demo"
    ),
    seed: Seed = 0,
    device: Device = "auto",
    progress: Progress = None,
) -> None:
    """Check, convert and explain a small network that comes with the package; needs no download.

    Its pictures were not among those it was trained on. They are drawn, so it is known which of
    their pixels show the object: the table says how much of each explanation does, and how much of
    the picture.
    """
    from convad_fx.demo import scenes

    folder = _folder(out)
    classifier = models.resolve("demo")
    asker = _Asker(classifier, devices.choose(device), seed=seed)
    typer.echo(str(asker.masked.report))

    held_out = scenes.held_out(3)
    pictures = [Image.fromarray(scene.image) for scene in held_out]
    x = torch.cat([images.to_input(p, classifier.preprocess) for p in pictures]).to(asker.device)
    with torch.inference_mode():
        same = torch.equal(asker.masked(x), classifier.model(x))
    verdict = "the same as before, bit for bit" if same else "NOT the same as before"
    typer.echo(f"Converted. With everything kept, its answers are {verdict}.\n")

    names = [f"{n}-{scenes.CLASSES[scene.label]}" for n, scene in enumerate(held_out, 1)]
    table = _Table(names, extra="on the object")
    for scene, picture, name in zip(held_out, pictures, names, strict=True):
        with _one_thread():
            (result,) = asker.ask(
                picture, name, folder=folder, stem=name, progress=_wanted(progress)
            )
        kept = result.explanation.mask
        inside = (kept & scene.mask).sum() / max(1, kept.sum())
        table.add(result, f"{inside:.0%} (fills {scene.mask.mean():.0%})")
    typer.echo(f"\nPictures and JSON are in {folder}.")


# -------------------------------------------------------------------------------------------- work
class _Asker:
    """A classifier, converted once, that explains one picture after the other."""

    def __init__(
        self,
        classifier: models.Classifier,
        device: torch.device,
        policy: Policy | None = None,
        search: Search = Search(),  # noqa: B008 (frozen)
        batch_size: int | str = "auto",
        seed: int = 0,
        precision: str | None = None,
    ) -> None:
        self.classifier, self.device, self.search = classifier, device, search
        self.batch_size, self.seed, self.precision = batch_size, seed, precision
        self.masked = models.masked_network(classifier, device, policy)

    def ask(
        self,
        picture: Image.Image,
        source: str,
        *,
        folder: Path,
        stem: str,
        progress: bool,
        target: int | None = None,
        gamma: float = 0.9,
        disjoint: int = 1,
        contrastive: bool = False,
    ) -> list[Result]:
        began = time.perf_counter()
        x = images.to_input(picture, self.classifier.preprocess)
        explanations = explain_disjoint(
            self.masked,
            x.to(self.device),
            disjoint,
            target,
            gamma,
            progress=progress,
            seed=self.seed,
            search=self.search,
            contrastive=contrastive,
            batch_size=self.batch_size,
            precision=self.precision,
            labels=self.classifier.labels or None,
        )
        seconds = (time.perf_counter() - began) / len(explanations)
        shown = images.displayable(x, self.classifier.preprocess)
        results = []
        for explanation in explanations:
            try:
                name = _reason(stem, explanation.number)
                files = report.save(explanation, shown, folder, name)
            except OSError as error:
                raise _not_writable(folder, error) from error
            results.append(Result(source, explanation, files, seconds))
        return results


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """For networks so small that threads win little, and lose tenfold where cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Table:
    """Rows for people, each printed when it is known: their width is settled beforehand."""

    def __init__(self, sources: Sequence[str], extra: str = "") -> None:
        self._width = max(map(len, ("image", *sources)))
        self._extra = max(len(extra), 18) if extra else 0
        self._print("image", "kept", "confidence", "of", "masks", "seconds", extra, "answer")

    def add(self, result: Result, extra: str = "") -> None:
        why = result.explanation
        remark = ""
        if not why.sufficient:
            remark = " (NOT sufficient when asked again)"
        elif not why.mask.any():
            remark = " (said with everything hidden, too)"
        elif why.mask.all():
            remark = " (nothing smaller was found)"
        if why.number:
            remark += f" (reason {why.number + 1})"
        if why.contrast is not None:
            remark += f" ({why.contrast})"
        self._print(
            result.source,
            f"{why.size:.1%}",
            f"{why.confidence_recheck:.3f}",
            f"{why.confidence_whole:.3f}",
            f"{why.evaluations}",
            f"{result.seconds:.1f}",
            extra,
            why.title + remark,
        )

    def _print(self, source: str, *cells: str) -> None:
        *numbers, extra, answer = cells
        row = f"{source:<{self._width}}"
        for cell, width in zip(numbers, (6, 10, 5, 6, 7), strict=True):
            row += f"  {cell:>{width}}"
        if self._extra:
            row += f"  {extra:>{self._extra}}"
        typer.echo(f"{row}  {answer}")


class _Comparisons:
    """A block of rows for each picture: one row for each masker."""

    def __init__(self, sources: Sequence[str], names: Sequence[str]) -> None:
        self._width = max(map(len, ("image", *sources)))
        self._names = max(map(len, ("hidden pixels", *names)))
        self._kinds = ("colours", "images")
        heads = ("kept", "confidence", "of", "masks", "on colours", "on pictures")
        self._print("image", "hidden pixels", *heads, "answer")

    def add(self, source: str, compared: Sequence[report.MaskerResult]) -> None:
        for row in compared:
            why = row.explanation
            self._print(
                source,
                row.name,
                f"{why.size:.1%}",
                f"{why.confidence_recheck:.3f}",
                f"{why.confidence_whole:.3f}",
                f"{why.evaluations}",
                *(f"{row.rho[kind]:.0%}" if kind in row.rho else "-" for kind in self._kinds),
                why.title + ("" if why.sufficient else " (NOT sufficient when asked again)"),
            )

    def _print(self, source: str, name: str, *cells: str) -> None:
        *numbers, answer = cells
        line = f"{source:<{self._width}}  {name:<{self._names}}"
        for cell, width in zip(numbers, (6, 10, 5, 6, 10, 11), strict=True):
            line += f"  {cell:>{width}}"
        typer.echo(f"{line}  {answer}")


def _print_means(means: Sequence[dict[str, Any]]) -> None:
    n = means[0]["pictures"]
    width = max(len(entry["masker"]) for entry in means)
    typer.echo(f"\nMeans of {n} pictures; in brackets: less {means[0]['masker']}, 95 % interval")
    titles = {"size": "kept", "colours": "on colours", "images": "on pictures"}
    kinds = [kind for kind in titles if kind in means[0]]
    typer.echo(f"{'':<{width}}" + "".join(f"  {titles[kind]:<27}" for kind in kinds).rstrip())
    for entry in means:
        line = f"{entry['masker']:<{width}}"
        for kind in kinds:
            cell = f"{entry[kind]['mean']:.0%}"
            if (less := entry[kind].get("less_first")) is not None:
                cell += f" ({less['mean']:+.0%}, {less['low']:+.0%} to {less['high']:+.0%})"
            line += f"  {cell:<27}"
        typer.echo(line.rstrip())
    if n < 10:
        typer.echo("With fewer than about ten pictures the intervals are too narrow.")


def _expanded(paths: Sequence[Path]) -> list[Path]:
    """Files as they are, folders as the pictures in them, by name."""
    known = set(Image.registered_extensions())
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in known and p.is_file())
        if not inside:
            raise ImageError(f"there are no pictures in {path}", hint="name another folder")
        found += inside
    return found


def _tell_if_random(classifier: models.Classifier) -> None:
    if classifier.weights == models.RANDOM:
        typer.echo("convad-fx: the weights are random, and so are the answers", err=True)


def _policy(**options: Any) -> Policy | None:
    """The policy asked for; None where no option is."""
    given = {name: value for name, value in options.items() if value is not None}
    return Policy(**given) if given else None


def _wanted(progress: bool | None) -> bool:
    return sys.stderr.isatty() if progress is None else progress


def _print_json(content: object) -> None:
    typer.echo(json.dumps(content, indent=1, ensure_ascii=False))


def _three(option: str, text: str | None) -> tuple[float, ...] | None:
    """`0.485,0.456,0.406`, or one number for all channels."""
    if text is None:
        return None
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3:
        raise PolicyError(
            f"{option} {text} is not three numbers", hint=f"write {option} 0.485,0.456,0.406"
        )
    return numbers


def _class(wanted: str | None, labels: Sequence[str]) -> int | None:
    """A class by its number or its name, whatever the case of its letters."""
    if wanted is None:
        return None
    if wanted.isdecimal():
        return int(wanted)
    if not labels:
        raise PolicyError(
            f"the classes have no names, so none is called {wanted!r}",
            hint="pass a number as `--target`, or names with `--labels`",
        )
    plain = [label.lower() for label in labels]
    found = [index for index, label in enumerate(plain) if label == wanted.lower()]
    if len(found) == 1:
        return found[0]
    if found:
        raise PolicyError(
            f"{len(found)} classes are called {wanted!r}",
            hint=f"pass one of the numbers {', '.join(map(str, found))} as `--target`",
        )
    close = difflib.get_close_matches(wanted.lower(), plain, n=3)
    raise PolicyError(
        f"no class is called {wanted!r}",
        hint=f"did you mean {' or '.join(close)}?" if close else "pass its number",
    )


def _stems(paths: Sequence[Path], folder: Path, reasons: int = 1) -> list[str]:
    """A name for the files of each picture, even where `a/1.png` meets `b/1.png` and `b/1.jpg`.

    Pictures that lie in the folder themselves are not written over.
    """
    stems: list[str] = []
    here = folder.resolve()
    taken = {path.stem for path in paths if path.parent.resolve() == here}
    for path in paths:
        plain = re.sub(r"[\\/\0]", "_", path.stem) or "picture"
        names = (plain if n == 1 else f"{plain}-{n}" for n in itertools.count(1))
        for name in names:
            files = {_reason(name, number) for number in range(reasons)}
            if not files & taken:
                break
        stems.append(name)
        taken |= files
    return stems


def _reason(stem: str, number: int) -> str:
    return f"{stem}-reason-{number + 1}" if number else stem


def _folder(path: Path) -> Path:
    """`path`, made if need be: before the work, not after it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(path, error) from error
    return path


def _not_writable(path: Path, error: OSError) -> Unavailable:
    return Unavailable(f"cannot write to {path} ({error.strerror})", hint="pass another `--out`")
