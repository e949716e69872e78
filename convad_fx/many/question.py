"""What is asked of every picture, and the one function that asks it: the same in every process."""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from convad_fx import device as devices
from convad_fx import images, metrics, models, report
from convad_fx.compiler.policy import Policy
from convad_fx.engine.engine import check_precision
from convad_fx.errors import ImageError, PolicyError, Unavailable
from convad_fx.explain import Explanation, Search, explain
from convad_fx.explain.options import check_class, check_count, check_share
from convad_fx.many.provenance import Provenance, weights_digest
from convad_fx.many.rows import row_of
from convad_fx.many.sources import Item
from convad_fx.module import MaskedModule
from convad_fx.versions import versions, versions_of_pixels


def _insertion(masked: MaskedModule, x: Tensor, why: Explanation, _: Question) -> float:
    return metrics.insertion(masked, x, why.responsibility, why.target).area


def _deletion(masked: MaskedModule, x: Tensor, why: Explanation, _: Question) -> float:
    return metrics.deletion(masked, x, why.responsibility, why.target).area


def _robustness(masked: MaskedModule, x: Tensor, why: Explanation, asked: Question) -> float:
    # All kept: the network as it was.
    return metrics.robustness(masked, x, why.mask, why.target, n=50, seed=asked.seed).rho


#: Metrics by the names they have on the command line.
METRICS: dict[str, Callable[[MaskedModule, Tensor, Explanation, Question], float]] = {
    "insertion": _insertion,
    "deletion": _deletion,
    "robustness": _robustness,
}


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of every picture.

    >>> Question(metrics=("fame",))
    Traceback (most recent call last):
        ...
    convad_fx.errors.PolicyError: no metric is called 'fame'; pass insertion, deletion, robustness

    Args:
        policy: None is the default, or that of a network that was compiled with one.
        search, target, gamma, seed, contrastive, batch_size, precision: as in `convad_fx.explain`.
        metrics: of insertion, deletion (areas under the curve) and robustness (share of 50 solid
            colours).
    """

    policy: Policy | None = None
    search: Search = Search()  # noqa: RUF009 (frozen)
    target: int | None = None
    gamma: float = 0.9
    seed: int = 0
    contrastive: bool = False
    batch_size: int | str = "auto"
    metrics: tuple[str, ...] = ()
    precision: str | None = None

    def __post_init__(self) -> None:
        check_precision(self.precision)
        check_share("gamma", self.gamma, allow_zero=False, hint="0.9 is usual")
        check_count("seed", self.seed, minimum=0, hint="pass 0")
        if self.seed >= 2**63:
            raise PolicyError(f"seed {self.seed} does not fit a table", hint="pass a smaller one")
        for name in self.metrics:
            if name not in METRICS:
                raise PolicyError(
                    f"no metric is called {name!r}", hint=f"pass {', '.join(METRICS)}"
                )


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a process builds the classifier: the arguments of `models.resolve` or `models.opened`.

    >>> Recipe("demo").classifier().size
    (96, 96)
    """

    model: str
    weights: str = "DEFAULT"
    labels: Path | None = None
    size: int | None = None
    resize: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    device: torch.device | str = "cpu"
    trusted: bool = False

    def classifier(self) -> models.Classifier:
        """The classifier.

        Raises:
            ConvadError: as `models.resolve` and `models.opened`.
            PolicyError: trust in what is no file.
        """
        find = models.resolve
        if Path(self.model).is_file():
            find = functools.partial(models.opened, device=self.device, trusted=self.trusted)
        elif self.trusted:
            raise PolicyError(f"{self.model} is no file", hint="leave `--trusted` out")
        return find(
            self.model,
            self.weights,
            labels=self.labels,
            size=self.size,
            resize=self.resize,
            mean=self.mean,
            std=self.std,
        )


class Explainer:
    """A classifier, converted once, that makes a row of one picture after the other.

    >>> from convad_fx.demo import scenes
    >>> import io
    >>> from PIL import Image
    >>> png = io.BytesIO()
    >>> Image.fromarray(scenes.held_out(1)[0].image).save(png, "png")
    >>> item = Item("ladybird.png", "ladybird.png", png.getvalue)
    >>> explainer = Explainer(Recipe("demo").classifier(), Question(search=Search(partitions=1)))
    >>> explainer(item)["target_name"]
    'ladybird'

    Args:
        classifier: as `models.resolve` gives it.
        question: what is asked.
        device: where.
        overlays: the folder for a drawing of each picture; None draws none.

    Raises:
        ConvadError: the network cannot be converted, or was compiled with another policy.
    """

    def __init__(
        self,
        classifier: models.Classifier,
        question: Question = Question(),
        device: torch.device | str = "cpu",
        overlays: Path | None = None,
    ) -> None:
        self.classifier, self.question, self.overlays = classifier, question, overlays
        self.device = torch.device(device)
        self.masked = models.masked_network(classifier, self.device, question.policy)
        if question.target is not None:
            with torch.inference_mode():
                logits = self.masked(classifier.example(self.device), None)
            check_class(question.target, logits.shape[1])
        self.weights_digest = weights_digest(self.masked)
        self.provenance = self._provenance()
        #: Seconds spent on drawing, all pictures together.
        self.drawing = 0.0

    def _provenance(self) -> Provenance:
        question = self.question
        try:
            preprocessing: Mapping[str, Any] = images.recorded(self.classifier.preprocess)
        except ImageError:  # steps of one's own: what can be said of them
            preprocessing = {"steps": str(self.classifier.preprocess.transform)}
        return Provenance(
            {
                "network": hashlib.sha256(self.masked.code.encode()).hexdigest(),
                "weights": self.weights_digest,
                "preprocessing": preprocessing,
                # a digest: every row carries this text
                "labels": hashlib.sha256(_json_list(self.classifier.labels)).hexdigest()[:16],
                "policy": self.masked.policy.to_dict(),
                "search": asdict(question.search),
                "target": question.target,
                "gamma": question.gamma,
                "seed": question.seed,
                "contrastive": question.contrastive,
                "precision": question.precision,
                "metrics": sorted(question.metrics),
                "versions": versions() | versions_of_pixels(),
            }
        )

    def __call__(self, item: Item) -> dict[str, Any]:
        """The picture's row, as JSON values.

        Raises:
            ImageError: the picture cannot be read.
            PolicyError: the target is not the network's answer to it.
            Unavailable: the overlay cannot be written.
        """
        began = time.perf_counter()
        content = item.read()
        picture = images.open_image(item.where, content)
        x = images.to_input(picture, self.classifier.preprocess)
        loaded = time.perf_counter()
        question = self.question
        on_device = x.to(self.device)
        why = explain(
            self.masked,
            on_device,
            question.target,
            question.gamma,
            seed=question.seed,
            search=question.search,
            contrastive=question.contrastive,
            batch_size=question.batch_size,
            precision=question.precision,
            labels=self.classifier.labels or None,
        )
        measured = {
            name: METRICS[name](self.masked, on_device, why, question) for name in question.metrics
        }
        searched = time.perf_counter()
        overlay = self._draw(item.key, why, x) if self.overlays is not None else None
        self.drawing += time.perf_counter() - searched
        return row_of(
            why,
            measured,
            {
                "key": item.key,
                "sha256": hashlib.sha256(content).hexdigest(),
                "bytes": len(content),
                "seconds_load": loaded - began,
                "seconds_search": searched - loaded,
                "overlay": overlay,
                "device": self.device.type,
                "model": self.classifier.name,
                "weights_digest": self.weights_digest,
                "policy": _json(why.policy),
                "versions": _json(why.versions),
                "run": self.provenance.digest,
                "provenance": self.provenance.text,
            },
        )

    def _draw(self, key: str, why: Explanation, x: Tensor) -> str:
        assert self.overlays is not None
        # The digest keeps a/1.png and b/1.png apart; the name is for people.
        stem = PurePosixPath(key).stem[:80].replace("\\", "_").replace("\0", "_")
        stem = f"{stem}-{hashlib.sha256(key.encode('utf-8', 'surrogateescape')).hexdigest()[:12]}"
        shown = images.displayable(x, self.classifier.preprocess)
        try:
            _, picture = report.save(why, shown, self.overlays, stem)
        except OSError as error:
            raise Unavailable(
                f"cannot write to {self.overlays} ({error.strerror})", hint="pass another `--out`"
            ) from error
        return f"{self.overlays.name}/{picture.name}"


def rank_device(name: str, rank: int) -> torch.device:
    """The device called `name`; where several GPUs are, each process of a machine its own.

    >>> rank_device("cpu", 3)
    device(type='cpu')
    """
    device = devices.choose(name)
    if str(device) == "cuda":  # no number was asked for
        device = devices.choose(f"cuda:{rank % torch.cuda.device_count()}")
    return device


def _json_list(names: Sequence[str]) -> bytes:
    return json.dumps(list(names)).encode()


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(dict(content), sort_keys=True)
