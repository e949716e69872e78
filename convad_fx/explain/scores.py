"""From a network's answers to scores of its classes: the only place where a softmax is taken.

An *answer* is what the network returns for one image. A *score* is what an explanation keeps to
`gamma`: by default the softmax, or the answer itself where the network ends in one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from convad_fx.errors import PolicyError
from convad_fx.explain.options import check_class

#: Scores by their names.
SCORES = ("softmax", "sigmoid", "probability", "logit")

#: What users pass as `score`: a name; a function of answers (K, C); None: decide by the network.
ScoreChoice: TypeAlias = str | Callable[[Tensor], Tensor] | None

#: A class that the network does not predict is lost below this share of its score on the image.
LOST_BELOW = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """What K answers say about one class.

    Args:
        target: the class.
        classes: number of classes that may be the target.
        top: the predicted class, (K,) integers; of independent labels the one of largest score.
        confidence: the target's score, (K,).
        predicted: whether the network predicts the target, (K,).
    """

    target: int
    classes: int
    top: NDArray[np.int64]
    confidence: NDArray[np.float64]
    predicted: NDArray[np.bool_]

    @property
    def score_only(self) -> bool:
        """Of the whole image: whether the score alone counts, since no prediction is to be kept.

        So it is for a class that the network does not predict, and for a single value.
        """
        return self.classes == 1 or not self.predicted[0]

    def passing(self, min_confidence: float, *, score_only: bool = False) -> NDArray[np.bool_]:
        """(K,): whether the target has this score, and is predicted unless `score_only`."""
        enough: NDArray[np.bool_] = self.confidence >= min_confidence
        return enough if score_only else enough & self.predicted

    def survives(self, whole: Scores) -> NDArray[np.bool_]:
        """(K,): whether the network still gives the target, as it does on the whole image.

        It is predicted; or, where the score alone counts, that is at least half of the whole
        image's.
        """
        if whole.score_only:
            return self.passing(LOST_BELOW * float(whole.confidence[0]), score_only=True)
        return self.predicted


@dataclass(frozen=True, slots=True)
class Score:
    """How answers become scores; made by `choose_score`.

    >>> answers = torch.tensor([[0.0, 2.0]], dtype=torch.float64)
    >>> choose_score("softmax", answers)(answers, target=1).confidence.round(3).tolist()
    [0.881]
    >>> one_logit = torch.tensor([[2.0]], dtype=torch.float64)        # 1 = yes, 0 = no
    >>> choose_score("sigmoid", one_logit)(one_logit, target=0).confidence.round(3).tolist()
    [0.119]

    Args:
        name: one of `SCORES`, or that of a function.
        function: of answers (K, C), instead of a name in `SCORES`.
        independent: whether every class is a label of its own, predicted from 0.5 on; else one of
            the classes is predicted.
        rounding: by how much probabilities may miss [0, 1].
    """

    name: str
    function: Callable[[Tensor], Tensor] | None = None
    independent: bool = False
    rounding: float = 1e-4

    @property
    def is_probability(self) -> bool:
        """Whether scores lie in [0, 1]."""
        return self.function is None and self.name != "logit"

    def __call__(self, answers: Tensor, target: int | None, *, optional: bool = False) -> Scores:
        """The scores of a class; of the one predicted for the first answer if `target` is None.

        Args:
            answers: (K, C), float64, finite, K >= 1.
            target: the class.
            optional: whether errors mention that the target may be left out.

        Raises:
            PolicyError: there is no such class, or the score does not suit the answers.
        """
        ranked = self._ranked(answers)
        values = self._scaled(ranked)
        top, classes = ranked.argmax(1), values.shape[1]
        if target is None:
            target = int(top[0])
        check_class(target, classes, allow_none=optional)
        confidence = values[:, target]
        predicted = confidence >= 0.5 if self.independent else top == target
        return Scores(int(target), classes, top.numpy(), confidence.numpy(), predicted.numpy())

    def of_all(self, answers: Tensor) -> Tensor:
        """The scores (K, classes) of all classes, for answers (K, C).

        Raises:
            PolicyError: the score does not suit the answers.
        """
        return self._scaled(self._ranked(answers))

    def _scaled(self, ranked: Tensor) -> Tensor:
        if self.function is None and self.name == "softmax":
            return torch.softmax(ranked, 1)
        if self.function is None and self.name == "sigmoid":
            return ranked.sigmoid()
        return ranked

    def _ranked(self, answers: Tensor) -> Tensor:
        """(K, classes): numbers in the order of the scores, not yet between 0 and 1."""
        if self.function is not None:
            return _called(self.function, self.name, answers)
        if self.name == "probability":
            self._check_probabilities(answers)
        if answers.shape[1] > 1:
            return answers
        if self.name == "softmax":
            raise PolicyError(
                "the softmax of a single value is always 1",
                hint="pass score='sigmoid' for the logit of a yes-or-no question, 'probability' "
                "for its probability, or a function for anything else",
            )
        no = 1 - answers if self.name == "probability" else -answers
        return torch.cat([no, answers], 1)

    def _check_probabilities(self, answers: Tensor) -> None:
        low, high = float(answers.min()), float(answers.max())
        if low >= -self.rounding and high <= 1 + self.rounding:
            return
        passed = "'softmax' or 'sigmoid'" if answers.shape[1] > 1 else "'sigmoid'"
        if high <= self.rounding:
            passed = "'softmax', which takes log-probabilities as well as logits,"
        raise PolicyError(
            f"the network's values lie in [{low:.3g}, {high:.3g}]: they are no probabilities",
            hint=f"pass score={passed} for logits, or 'logit' to use the values as they are",
        )


def _called(function: Callable[[Tensor], Tensor], name: str, answers: Tensor) -> Tensor:
    values: object = function(answers.clone())
    expected = f"one row of scores for each of {len(answers)} answers: (K, classes) or (K,)"
    hint = f"the answers have shape {tuple(answers.shape)}; compute with tensors, row by row"
    if not isinstance(values, Tensor):
        raise PolicyError(
            f"score {name} returned {type(values).__name__}, not {expected}", hint=hint
        )
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2 or len(values) != len(answers) or not values.shape[1]:
        raise PolicyError(
            f"score {name} returned shape {tuple(values.shape)}, not {expected}", hint=hint
        )
    values = values.detach().double().cpu()
    if not values.isfinite().all():
        raise PolicyError(
            f"score {name} returned values that are not finite",
            hint="look for a division by zero or a logarithm of zero in it",
        )
    return values


def choose_score(
    choice: ScoreChoice, answers: Tensor, activation: str = "none", rounding: float = 1e-4
) -> Score:
    """The score that the user chose, or that suits the network's answers.

    >>> choose_score(None, torch.tensor([[3.0, -1.0]])).name
    'softmax'
    >>> choose_score(None, torch.tensor([[0.7, 0.3]])).name                   # they sum to 1
    'probability'

    Args:
        choice: what the user passed.
        answers: (K, C), of the whole image or of any masks.
        activation: in which the network ends: "softmax", "log_softmax", "sigmoid" or "none".
        rounding: by how much probabilities may miss 1 as their sum, and [0, 1].

    Raises:
        PolicyError: no score has the name, or it would be taken of what is a probability already.
    """
    several = answers.shape[1] > 1
    sums_to_1 = several and _within_unit(answers, rounding) and _sums_to_1(answers, rounding)
    if choice is None:
        if activation in ("softmax", "sigmoid") or (activation == "none" and sums_to_1):
            choice = "probability"
        else:
            choice = "softmax" if several else "sigmoid"
    if not isinstance(choice, str):
        if not callable(choice):
            raise PolicyError(
                f"score must be a name or a function, not {choice!r}",
                hint=f"pass one of {', '.join(SCORES)}",
            )
        return Score(_name_of(choice), choice)
    check_score_name(choice)
    # The softmax of log-probabilities is exactly the probabilities.
    if choice == "sigmoid" or (choice == "softmax" and activation != "log_softmax"):
        _check_not_doubled(choice, activation)
    exclusive = activation == "softmax" or (activation != "sigmoid" and sums_to_1)
    independent = several and (choice == "sigmoid" or (choice == "probability" and not exclusive))
    return Score(choice, None, independent, rounding)


def _check_not_doubled(choice: str, activation: str) -> None:
    if activation != "none":
        raise PolicyError(
            f"the network ends in {activation}: a {choice} on top of it would distort its "
            "probabilities",
            hint="leave score out",
        )


def positive_score(whole: Scores, score: str, title: str) -> float:
    """The target's score on the whole image, of which shares are taken.

    Raises:
        PolicyError: it is not positive, so that a share of it means nothing.
    """
    value = float(whole.confidence[0])
    if value > 0:
        return value
    hint = "explain a class whose score is positive, or pass score='softmax' or 'sigmoid'"
    if score not in ("logit", "softmax"):
        hint = "explain a class whose score is positive, or pass a score with larger values"
    raise PolicyError(
        f"the score ({score}) of {title} is {value:.3g} on the whole image, and only a share of a "
        "positive score can be kept",
        hint=hint,
    )


def check_score_name(name: str | None) -> None:
    """Raise unless the value is None or one of `SCORES`."""
    if name is not None and name not in SCORES:
        raise PolicyError(
            f"there is no score called {name!r}", hint=f"pass one of {', '.join(SCORES)}"
        )


def _name_of(function: Callable[[Tensor], Tensor]) -> str:
    name = getattr(function, "__qualname__", type(function).__qualname__)
    module = getattr(function, "__module__", None)
    return f"{module}.{name}" if module else str(name)


def _within_unit(answers: Tensor, rounding: float) -> bool:
    return bool(((answers >= -rounding) & (answers <= 1 + rounding)).all())


def _sums_to_1(answers: Tensor, rounding: float) -> bool:
    return bool(((answers.sum(1) - 1).abs() <= rounding).all())


def rounding_of(dtype: torch.dtype) -> float:
    """By how much probabilities computed in this dtype may miss 1."""
    return max(1e-4, 4 * torch.finfo(dtype).eps)


def activation_of(answers: Tensor, rounding: float, call: Callable[[], object]) -> str:
    """In which activation a network ends: "softmax", "log_softmax", "sigmoid" or "none".

    Args:
        answers: (K, C).
        rounding: by how much probabilities may miss [0, 1].
        call: runs the network once, as eager code. Used only where the answers may be
            probabilities or their logarithms.
    """
    if not _within_unit(answers, rounding) and bool((answers > rounding).any()):
        return "none"
    watching = _LastActivation()
    with torch.no_grad(), watching:  # inference_mode would not take softmax and flatten apart
        result = call()
    return watching.activation(result)


_ACTIVATIONS = {
    "aten::_softmax": "softmax",
    "aten::_log_softmax": "log_softmax",
    "aten::sigmoid": "sigmoid",
    "aten::sigmoid_": "sigmoid",
}
_SAME_VALUES = ("aten::clone", "aten::_to_copy", "aten::detach")


class _LastActivation(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes which tensors are the result of a softmax or sigmoid, also after a change of shape."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._found: dict[int, tuple[Tensor, str]] = {}  # the tensor is kept, and with it its id

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result: Any = func(*args, **(kwargs or {}))
        name = func._schema.name
        activation = _ACTIVATIONS.get(name)
        if activation is None and args and (func.is_view or name in _SAME_VALUES):
            activation = self.activation(args[0])
        if activation is None or activation == "none":
            self._found.pop(id(result), None)  # it was overwritten in place
        else:
            self._found[id(result)] = result, activation
        return result

    def activation(self, result: object) -> str:
        """The activation of which a tensor is the result, or "none"."""
        return self._found[id(result)][1] if id(result) in self._found else "none"
