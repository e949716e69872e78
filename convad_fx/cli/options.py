"""Options that commands share, each declared once."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from convad_fx import models
from convad_fx.compiler.policy import Policy
from convad_fx.errors import PolicyError
from convad_fx.explain import Search

MODEL_HELP = (
    "torchvision name, timm:NAME, package.module:function, or demo. The function is called without "
    "arguments and returns the network."
)
FILE_HELP = " Or a file of `convad-fx compile`."

ModelArgument = Annotated[str, Argument(metavar="MODEL", help=MODEL_HELP)]
ModelName = Annotated[str, Option(metavar="MODEL", help=MODEL_HELP)]
ImagePaths = Annotated[
    list[Path], Argument(metavar="IMAGE...", help="Image files, or folders of them.")
]
OutputFile = Annotated[Path, Option("--out", "-o", metavar="FILE", help="The file to write.")]

Weights = Annotated[
    str,
    Option(
        metavar="WHICH",
        help="DEFAULT or another published name (downloaded once), a local .pt, .pth or "
        ".safetensors file, or none for random ones.",
    ),
]
Labels = Annotated[
    Path | None,
    Option(metavar="FILE", help="Class names: one per line, or a JSON list or dict."),
]
Size = Annotated[
    int | None,
    Option(min=1, help="Height and width of the network's input.  [default: the model's]"),
]
Device = Annotated[str, Option(help="auto, cpu, cuda, cuda:1 ...; auto is CUDA where it works.")]
Trusted = Annotated[
    bool, Option("--trusted", help="Run the machine code in the file MODEL, if any.")
]
BatchSize = Annotated[int | None, Option(min=1, help="Masks per batch.  [default: the fastest]")]
Precision = Annotated[
    str | None,
    Option(
        help="Arithmetic of the search: bfloat16 or float16. The result is checked in the "
        "network's own.  [default: the network's own]"
    ),
]
Json = Annotated[bool, Option("--json", help="Print JSON on stdout, for machines.")]
Progress = Annotated[
    bool | None,
    Option("--progress/--no-progress", help="Progress bar.  [default: in a terminal]"),
]
Gamma = Annotated[
    float, Option(help="Share of the confidence on the whole image to keep, in (0, 1].")
]
Target = Annotated[
    str | None,
    Option(
        metavar="CLASS",
        help="Number or name of any class; of a network with one output, 1 is yes, 0 is no.  "
        "[default: the network's answer]",
    ),
]
Score = Annotated[
    str | None,
    Option(
        metavar="NAME",
        help="What is kept: softmax; sigmoid, for labels of their own or one output; probability, "
        "or logit, for the network's values as they are.  [default: what suits the network]",
    ),
]
Partitions = Annotated[
    int, Option(min=1, help="Random partitions; more make smoother maps and take longer.")
]
Seed = Annotated[int, Option(min=0, help="The same seed finds the same explanation.")]

_SEARCH = Search()
PARTITIONS = _SEARCH.partitions


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """The weights and the preprocessing of a model."""

    weights: Weights = "DEFAULT"
    size: Size = None
    resize: Annotated[
        int | None,
        Option(min=1, help="Short side before the centre crop.  [default: the model's margin]"),
    ] = None
    mean: Annotated[
        str | None,
        Option(metavar="R,G,B", help="Subtracted, for pixels in 0..1.  [default: the model's]"),
    ] = None
    std: Annotated[
        str | None, Option(metavar="R,G,B", help="Divided by.  [default: the model's]")
    ] = None

    def arguments(self) -> dict[str, Any]:
        """The options as `models.resolve` takes them."""
        mean, std = parse_channels("--mean", self.mean), parse_channels("--std", self.std)
        return {**asdict(self), "mean": mean, "std": std}

    def resolve(self, model: str, labels: Path | None = None) -> models.Classifier:
        """The classifier called `model`; a warning on stderr if its weights are random."""
        classifier = models.resolve(model, labels=labels, **self.arguments())
        warn_if_random(classifier)
        return classifier


@dataclass(frozen=True, slots=True)
class PolicyOptions:
    """How pixels are switched off. None is not the default: a compiled file has its own policy."""

    tau: Annotated[
        float | None,
        Option(help="A cell is active if more than this share of its input is.  [default: 0]"),
    ] = None
    attribution: Annotated[
        str | None, Option(help="positional (default), or receptive as in the paper.")
    ] = None
    input: Annotated[str | None, Option(help="gate (default), strict, or raw as in the paper.")] = (
        None
    )
    pool: Annotated[str | None, Option(help="dilute (default), or renormalize.")] = None
    fill: Annotated[
        str | None,
        Option(
            help="Value that convolutions read for inactive cells: zero (default), or neighbour."
        ),
    ] = None

    def policy(self) -> Policy | None:
        """The policy; None if no option was given."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return Policy(**given) if given else None


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """How an explanation is searched for: the fields of `Search`."""

    partitions: Partitions = PARTITIONS
    min_box: Annotated[
        int, Option(min=1, help="Boxes of this many pixels are not split further.")
    ] = _SEARCH.min_box
    confidence: Annotated[
        float | None,
        Option(
            help="Share of the confidence a part must keep to pass; 0: class alone.  "
            "[default: gamma, at most 0.9]"
        ),
    ] = _SEARCH.confidence
    order: Annotated[
        str, Option(help="How the set grows: responsibility, or spatial: around the peak.")
    ] = _SEARCH.order
    minimal: Annotated[
        int,
        Option(
            min=0,
            help="Shrink the set until no block of this side, in pixels, can be left out; 0: off.",
        ),
    ] = _SEARCH.minimal
    budget: Annotated[
        int | None, Option(min=1, help="Most masks per explanation.  [default: no limit]")
    ] = _SEARCH.budget
    stable: Annotated[
        float | None,
        Option(help="Stop when the ranking is this reliable, in (0, 1].  [default: never]"),
    ] = _SEARCH.stable
    depth: Annotated[
        int | None, Option(min=1, help="Most splits of one part.  [default: no limit]")
    ] = _SEARCH.depth
    split: Annotated[str, Option(help="Where boxes are cut: uniform, binomial, beta-binomial.")] = (
        _SEARCH.split
    )
    queue: Annotated[str, Option(help="Combinations followed: area, intersection, all.")] = (
        _SEARCH.queue
    )
    queue_len: Annotated[
        int, Option(min=1, help="How many of them, for area and intersection.")
    ] = _SEARCH.queue_len
    weighted: Annotated[
        bool, Option("--weighted", help="Count combinations by their confidence.")
    ] = _SEARCH.weighted

    def search(self) -> Search:
        """The options as the search takes them."""
        return Search(**asdict(self))


def parse_channels(option: str, text: str | None) -> tuple[float, ...] | None:
    """Three numbers from `0.485,0.456,0.406`, or from one number for all channels.

    >>> parse_channels("--mean", "0.5")
    (0.5, 0.5, 0.5)
    """
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


def warn_if_random(classifier: models.Classifier) -> None:
    """A warning on stderr if the weights are random."""
    if classifier.weights == models.RANDOM:
        typer.echo("convad-fx: the weights are random, and so are the answers", err=True)
