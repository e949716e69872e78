"""Options of a run over many pictures, and how each of its processes loads the classifier."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convad_fx import device as devices
from convad_fx import metrics, models
from convad_fx.compiler.policy import Policy
from convad_fx.engine.precision import check_precision
from convad_fx.errors import PolicyError
from convad_fx.explain import Explanation, Search
from convad_fx.explain.options import check_count, check_share
from convad_fx.explain.scores import LOST_BELOW, check_score_name
from convad_fx.module import MaskedModule


def _insertion(masked: MaskedModule, x: Tensor, why: Explanation, _: ExplainOptions) -> float:
    return metrics.insertion(masked, x, why.responsibility, why.target, score=why.score).area


def _deletion(masked: MaskedModule, x: Tensor, why: Explanation, _: ExplainOptions) -> float:
    return metrics.deletion(masked, x, why.responsibility, why.target, score=why.score).area


def _robustness(
    masked: MaskedModule, x: Tensor, why: Explanation, options: ExplainOptions
) -> float:
    # Without a mask the masked network equals the original model.
    return metrics.robustness(
        masked,
        x,
        why.mask,
        why.target,
        n=50,
        seed=options.seed,
        score=why.score,
        at_least=None if why.is_prediction else LOST_BELOW * why.confidence_whole,
    ).rho


#: Metrics by their names on the command line.
METRICS: dict[str, Callable[[MaskedModule, Tensor, Explanation, ExplainOptions], float]] = {
    "insertion": _insertion,
    "deletion": _deletion,
    "robustness": _robustness,
}


@dataclass(frozen=True, slots=True)
class ExplainOptions:
    """How every picture of a run is explained, and which metrics are added.

    >>> ExplainOptions(metrics=("fame",))
    Traceback (most recent call last):
        ...
    convad_fx.errors.PolicyError: no metric is called 'fame'; pass insertion, deletion, robustness

    Args:
        policy: None: the default, or the policy that the network was compiled with.
        search, target, gamma, seed, contrastive, batch_size, precision: as in `convad_fx.explain`.
        score: a name in `convad_fx.explain.SCORES`, which rows can hold; None: what suits the
            network.
        metrics: any of insertion, deletion (areas under the curve) and robustness (share of 50
            solid colours).
    """

    policy: Policy | None = None
    search: Search = Search()  # noqa: RUF009 (frozen)
    target: int | None = None
    score: str | None = None
    gamma: float = 0.9
    seed: int = 0
    contrastive: bool = False
    batch_size: int | str = "auto"
    metrics: tuple[str, ...] = ()
    precision: str | None = None

    def __post_init__(self) -> None:
        check_precision(self.precision)
        check_score_name(self.score)
        check_share("gamma", self.gamma, allow_zero=False, hint="0.9 is usual")
        check_count("seed", self.seed, minimum=0, hint="pass 0")
        if self.seed >= 2**63:
            raise PolicyError(
                f"seed {self.seed} exceeds the table's 64-bit integers", hint="pass a smaller one"
            )
        for name in self.metrics:
            if name not in METRICS:
                raise PolicyError(
                    f"no metric is called {name!r}", hint=f"pass {', '.join(METRICS)}"
                )

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of `convad_fx.explain`."""
        names = [field.name for field in fields(self) if field.name not in ("policy", "metrics")]
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class ClassifierSpec:
    """From what a process loads the classifier: `models.resolve` or `models.open_artifact`.

    >>> ClassifierSpec("demo").load().size
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

    def load(self) -> models.Classifier:
        """Load the classifier.

        Raises:
            ConvadError: as `models.resolve` and `models.open_artifact`.
            PolicyError: `trusted` is set, but `model` is not a file.
        """
        names = ("weights", "labels", "size", "resize", "mean", "std")
        arguments: dict[str, Any] = {name: getattr(self, name) for name in names}
        if Path(self.model).is_file():
            return models.open_artifact(
                self.model, device=self.device, trusted=self.trusted, **arguments
            )
        if self.trusted:
            raise PolicyError(f"{self.model} is not a file", hint="leave `--trusted` out")
        return models.resolve(self.model, **arguments)


def rank_device(name: str, rank: int) -> torch.device:
    """The device called `name`; "cuda" without a number becomes the GPU number `rank`.

    >>> rank_device("cpu", 3)
    device(type='cpu')
    """
    device = devices.choose(name)
    if str(device) == "cuda":
        device = devices.choose(f"cuda:{rank % torch.cuda.device_count()}")
    return device
